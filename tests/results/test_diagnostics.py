"""Laws of what there is to doubt in a star: probabilities that are what they say, and words with bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from bayesspec.results.diagnostics import Flag, PriorTail, notes, outlier_score
from bayesspec.runtime import seeded

USUAL = {"chi2": 1.0, "outlier": 0.5, "signal": 1e3, "lacking": np.nan, "step": 0.0}
GOOD = {"promise": 0.0, "budget_spent": False, "r_hat": 1.0, "divergences": 0, "pareto_k": 0.2} | {
    "ess_bulk": 1000.0,
    "ess_tail": 1000.0,
}
BAD = {
    Flag.LOW_SNR: ({"signal": 3.0}, {}),
    Flag.NOT_A_STAR: ({"outlier": 1e-6, "lacking": 0.2}, {}),
    Flag.OUTSIDE_CLASS: ({"outlier": 1e-6}, {}),
    Flag.OUTSIDE_MODEL: ({"chi2": 30.0}, {}),
    Flag.ARMS_DO_NOT_JOIN: ({"step": -0.1}, {}),
    Flag.UNFINISHED: ({}, {"promise": 3.0}),
    Flag.BUDGET_SPENT: ({}, {"budget_spent": True}),
    Flag.CHAINS_DISAGREE: ({}, {"r_hat": 1.2}),
    Flag.FEW_DRAWS: ({}, {"ess_tail": 30.0}),
    Flag.DIVERGENCES: ({}, {"divergences": 4}),
    Flag.BAD_WEIGHTS: ({}, {"pareto_k": 0.9}),
    Flag.BAD_LAPLACE: ({}, {"laplace_k": 0.9}),
}
WHY_IT_IS_STRANGE = {Flag.LOW_SNR, Flag.NOT_A_STAR, Flag.OUTSIDE_CLASS}
"""Of which one alone is named."""


@pytest.mark.parametrize("which", ["toy_model", "toy_stellar"])
def test_stars_of_a_class_are_as_rare_as_they_say(request, which):
    """The scores of a class's own draws are uniform: one in a thousand is below 0.001."""
    model = request.getfixturevalue(which)
    tail = PriorTail(model, 0, draws=20000)
    with seeded(1):
        for k in range(len(model.classes)):
            klass = torch.full((2000,), k)
            rest = torch.randn(2000, model.lead_dim - model.latent_dim + model.residual_dim)
            score = tail(torch.cat([model.prior(klass).sample(), rest], dim=-1), klass)
            assert kstest(score.numpy(), "uniform").pvalue > 1e-3


def test_the_least_of_several_probabilities_is_one():
    """As uniform as each of them, where they are independent; of one alone it is itself."""
    each = torch.rand(4, 5000, generator=torch.Generator().manual_seed(0))
    assert kstest(outlier_score(each).numpy(), "uniform").pvalue > 1e-3
    torch.testing.assert_close(outlier_score(each[:1]), each[0])


@pytest.mark.parametrize("least", [1e-3, 1e-12, 1e-35])
def test_a_small_score_is_not_zero(least):
    """1 - (1 - p)^4 is 4 p where p is small, and not what rounding leaves of 1 - 1."""
    doubts = torch.tensor([[least], [0.5], [1.0], [0.9]])
    assert float(outlier_score(doubts)) == pytest.approx(4 * least, rel=2e-3)


@pytest.mark.parametrize("outlier", [0.0, 1e-40, 1e-20, 9e-4])
def test_no_probability_is_said_to_be_zero(outlier):
    said = notes(1.0, outlier, 1000.0, np.nan, 0.0, {})[Flag.OUTSIDE_CLASS]
    assert 0 < float(said.split()[-1]) < 1e-3


def test_a_bit_keeps_its_meaning():
    """Catalogues are kept for years: a bit may be added, none may become another."""
    names = [
        "LOW_SNR",
        "NOT_A_STAR",
        "OUTSIDE_CLASS",
        "OUTSIDE_MODEL",
        "ARMS_DO_NOT_JOIN",
        "UNFINISHED",
        "BUDGET_SPENT",
        "CHAINS_DISAGREE",
        "FEW_DRAWS",
        "DIVERGENCES",
        "BAD_WEIGHTS",
        "BAD_LAPLACE",
    ]
    assert [flag.name for flag in Flag][: len(names)] == names
    assert [int(flag) for flag in Flag] == [2**k for k in range(len(Flag))]


def test_every_bit_has_its_words():
    """Nothing is said of a star without doubts; of each doubt one bit and one sentence, whatever others."""
    assert set(BAD) == set(Flag)
    assert not notes(**USUAL, diagnostics=GOOD)
    for several in (*itertools.combinations(Flag, 1), *itertools.combinations(Flag, 2)):
        star, draws = USUAL, GOOD
        for flag in several:
            star, draws = star | BAD[flag][0], draws | BAD[flag][1]
        said = notes(**star, diagnostics=draws)
        assert all(said.values())
        if not set(several) <= WHY_IT_IS_STRANGE or len(several) == 1:
            assert set(said) == set(several)
