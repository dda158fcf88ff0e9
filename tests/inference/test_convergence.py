"""Laws of what tells good draws from bad ones, under either generation of ArviZ, without torch."""

from __future__ import annotations

import numpy as np

from bayesspec.inference.convergence import chain_diagnostics, pareto_smooth


def test_diagnostics_tell_good_chains_from_bad_ones():
    """Independent draws pass; chains that disagree, that crawl, or that stand still do not."""
    rng = np.random.default_rng(1)
    good = rng.standard_normal((4, 500, 2))
    found = chain_diagnostics(good)
    assert found["r_hat"] < 1.01
    assert min(found["ess_bulk"], found["ess_tail"]) > 1500

    apart = good.copy()
    apart[0, :, 1] += 2.0
    assert chain_diagnostics(apart)["r_hat"] > 1.1
    crawling = np.cumsum(0.05 * good, axis=1)
    assert chain_diagnostics(crawling)["ess_bulk"] < 100
    still = good.copy()
    still[2] = 0.0
    assert chain_diagnostics(still) == {"r_hat": np.inf, "ess_bulk": 0.0, "ess_tail": 0.0}
    assert chain_diagnostics(good[:, :3])["r_hat"] == np.inf


def test_one_chain_is_held_against_itself():
    """A chain alone that drifts is not taken for one that has converged."""
    good = np.random.default_rng(3).standard_normal((1, 600, 2))
    assert chain_diagnostics(good)["r_hat"] < 1.01
    drifting = good + np.linspace(0, 3, 600)[:, None]
    assert chain_diagnostics(drifting)["r_hat"] > 1.1
    assert chain_diagnostics(good[:, :6])["r_hat"] == np.inf


def test_worst_quantity_counts():
    values = np.random.default_rng(2).standard_normal((4, 300, 3))
    values[1, :, 2] += 2.0
    alone = [chain_diagnostics(values[..., k]) for k in range(3)]
    together = chain_diagnostics(values)
    assert together["r_hat"] == max(one["r_hat"] for one in alone)
    assert together["ess_bulk"] == min(one["ess_bulk"] for one in alone)


def test_pareto_weights_are_those_of_the_ratios():
    """Normalised, in the order of the ratios, and all but the tail in proportion to them."""
    log_ratio = np.random.default_rng(0).normal(5, [[0.1], [1.0], [3.0]], (3, 1000))
    log_weight, _ = pareto_smooth(log_ratio)
    np.testing.assert_allclose(np.exp(log_weight).sum(-1), 1, rtol=1e-6)
    for ratio, weight in zip(log_ratio, log_weight, strict=True):
        order = ratio.argsort()
        assert (np.diff(weight[order]) >= -1e-9).all()
        body = order[:800]
        np.testing.assert_allclose(np.ptp((weight - ratio)[body]), 0, atol=1e-9)


def test_pareto_k_tells_good_weights_from_bad():
    """Below 0.5 where weights hardly differ, above 0.7 where one outweighs all; equal ones are no error."""
    widths = np.array([[0.1], [8.0], [0.0]])
    log_weight, k = pareto_smooth(np.random.default_rng(0).normal(0, 1, (3, 1000)) * widths)
    assert k[0] < 0.5
    assert k[1] > 0.7
    np.testing.assert_allclose(log_weight[2], -np.log(1000), rtol=1e-9)
