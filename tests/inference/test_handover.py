"""Laws of the hand-over: doubtful stars have NUTS's posterior, the others are left as they were."""

from functools import partial

import numpy as np

import bayesspec
from bayesspec.batch import ObservationBatch
from bayesspec.inference.handover import importance_or_nuts
from bayesspec.inference.importance import importance_draws
from bayesspec.inference.nuts import nuts_draws
from bayesspec.inference.quadrature import quadrature


def test_trusted_stars_are_left_alone(toy_model, toy_batch):
    """Where k is below 0.7 the draws are importance sampling's own."""
    batch = toy_batch.select([0, 1])
    plain, found = (f(toy_model, batch, draws=512) for f in (importance_draws, importance_or_nuts))
    assert not found.diagnostics["handed_over"].any()
    np.testing.assert_array_equal(found.z, plain.z)
    np.testing.assert_array_equal(found.log_weight, plain.log_weight)
    np.testing.assert_array_equal(found.diagnostics["ess_bulk"], plain.diagnostics["ess_bulk"])


def test_the_hand_over_can_be_left_out(toy_model):
    """The weighted draws stay; the row says that they are not to be trusted, not that NUTS drew them."""
    star = bayesspec.Observation(toy_model.grid.wavelength, np.ones(toy_model.grid.size), scale=1.0)
    options = {"model": toy_model, "method": "importance", "draws": 20, "rounds": 0}
    res = bayesspec.denoise(star, **options)
    assert not res.full_table["handed_over"][0]
    assert res.warnings[0][-1].startswith("unreliable importance weights: Pareto k")
    assert "NUTS" not in res.full_table["warnings"][0]
    batch = ObservationBatch.from_observations([star], toy_model.grid)
    np.testing.assert_array_equal(res.draws.z, importance_draws(toy_model, batch, draws=20, rounds=0).z)


def test_doubtful_stars_are_drawn_by_nuts(toy_model, monkeypatch):
    """Twenty draws are too few for any k: the star's draws are NUTS's, thinned, and its row says so."""
    short = partial(nuts_draws, chains=2, warmup=60, draws=150)
    monkeypatch.setattr("bayesspec.inference.handover.nuts_draws", short)
    wave = toy_model.grid.wavelength
    star = bayesspec.Observation(wave, np.ones(len(wave)), name="a", scale=1.0)
    options = {"method": "importance", "draws": 20, "rounds": 0, "handover": True}
    res = bayesspec.denoise(star, model=toy_model, **options)
    assert res.full_table["handed_over"][0]
    assert "drawn by NUTS instead" in res.full_table["warnings"][0]

    batch = ObservationBatch.from_observations([star], toy_model.grid)
    chains = short(toy_model, batch)
    pooled = chains.z[0].reshape(-1, chains.z.shape[-1])
    np.testing.assert_array_equal(res.draws.z[0, 0], pooled[(np.arange(20) * len(pooled)) // 20])
    np.testing.assert_allclose(np.exp(res.draws.log_weight), 1 / 20)
    for name in ("r_hat", "ess_bulk", "ess_tail", "divergences"):
        np.testing.assert_array_equal(res.full_table[name], chains.diagnostics[name])

    exact = quadrature(toy_model, batch)
    std = np.sqrt(np.diagonal(exact.z_cov[0]))
    assert (
        np.abs(pooled.mean(0) - exact.z_mean[0]) < 5 * std / np.sqrt(chains.diagnostics["ess_bulk"])
    ).all()
    assert (np.abs(res.z[0] - exact.z_mean[0]) < 5 * std / np.sqrt(20)).all()
