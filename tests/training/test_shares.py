"""Laws of the last step of training: how e is spread, on stars and nights whose truth is known."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bayesspec.exceptions import BayesspecError
from bayesspec.nn.residual import WIDTHS
from bayesspec.runtime import seeded
from bayesspec.training import clean
from bayesspec.training.shares import fit_discrepancy

STARS = 16
LINE = slice(40, 60)


@pytest.fixture(scope="module", autouse=True)
def no_edge():
    """A grid of 96 pixels would be nothing but edge, where what sticks out is junk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean, "EDGE", 0)
        yield


@pytest.fixture(scope="module")
def survey(toy_stellar, validation_survey):
    """Stars of two classes whose e is as wide as tau, or twice as wide, and forty times in a line."""
    model, size = toy_stellar, toy_stellar.grid.size
    with seeded(0):
        klass = torch.arange(2 * STARS) % 2
        z = model.prior(klass).sample()
        hw = torch.randn(len(z), model.residual_dim)
        hw[:, : model.residual.sizes] = 0
        latents = torch.cat([z, torch.zeros(len(z), model.passage.dim), hw], -1)
        width = torch.where(klass == 1, 2.0, 1.0)[:, None].repeat(1, size)
        width[klass == 1, LINE] = 40.0
        e = width * model.residual.discrepancy(z, hw) * torch.randn(len(z), size)
        flux = (model.spectrum(latents) + e).numpy()
    return validation_survey(flux, klass.numpy(), 0.1)


@pytest.fixture(scope="module")
def fitted(toy_stellar, survey):
    """The model, its discrepancy fitted."""
    model = copy.deepcopy(toy_stellar)
    fit_discrepancy(model, *survey, seed=0)
    return model


def test_shares_are_as_e_is(toy_stellar, fitted):
    """Wide where the stars of a class have lines, of which other classes hear little; a size is left to h."""
    shares = fitted.residual.share.float()
    torch.testing.assert_close(
        shares.sum(1), torch.ones(len(shares), toy_stellar.grid.size), rtol=0, atol=2e-3
    )
    width = (shares[:2] * torch.tensor(WIDTHS)[:, None].log()).sum(1).exp()
    inner, outer = slice(44, 56), torch.cat([width[:, :36], width[:, 64:]], -1).mean(-1)
    assert ((outer > 0.6) & (outer < 1.5)).all()
    assert width[1, inner].min() > 2.0 * outer[1]
    assert width[0, inner].max() < 1.7
    torch.testing.assert_close(shares[2], shares[3])  # of no stars: what all have
    assert not torch.allclose(shares[2], shares[0])


def test_sizes_are_those_of_unseen_stars(toy_stellar, survey):
    """A term that has its sizes three times too large, or too small, is brought to much the same."""
    found = []
    for wrong in (1 / 3, 3.0):
        model = copy.deepcopy(toy_stellar)
        model.residual.factor *= wrong
        model.residual.log_discrepancy += math.log(wrong)
        fit_discrepancy(model, *survey, seed=0)
        z = model.prior.centres[:2, 0]
        usual = torch.zeros(2, model.residual_dim)
        found.append(model.residual.discrepancy(z, usual).log().mean())
    assert abs(found[0] - found[1]) < 0.7 * 2 * math.log(3.0)


def test_seeds_repeat_and_order_does_not_matter(toy_stellar, survey, fitted):
    """The noise of a star is its own."""
    stars, noise = survey
    order = np.random.default_rng(0).permutation(len(stars))
    again = copy.deepcopy(toy_stellar)
    fit_discrepancy(again, stars.select(order), noise, seed=0)
    for name in ("share", "factor", "log_discrepancy", "log_bands"):
        torch.testing.assert_close(
            getattr(again.residual, name).float(),
            getattr(fitted.residual, name).float(),
            rtol=1e-2,
            atol=2e-3,
        )


def test_without_a_star_of_the_validation_side_it_says_so(toy_stellar, survey, named):
    """Those that the networks were trained on do not count."""
    stars, noise = survey
    elsewhere = replace(stars, star=named("train", len(stars)))
    with pytest.raises(BayesspecError, match="no star with S/N above 60 is on the validation side"):
        fit_discrepancy(toy_stellar, elsewhere, noise, seed=0)
