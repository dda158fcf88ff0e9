"""Laws of the prediction of second visits: calibrated where the model is right, whatever the calibration."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from bayesspec.benchmark.measures.coverage import LEVELS
from bayesspec.benchmark.repeats import predict_visits, same_star
from bayesspec.distributions import RobustNoiseFlow
from bayesspec.inference.denoise import METHODS
from bayesspec.inference.importance import importance_draws
from bayesspec.observation import Observation
from bayesspec.runtime import seeded

SIGMA = 0.04, 0.08
"""Standard deviation of the noise of first and second visits."""


@pytest.fixture(scope="module")
def model(toy_stellar):
    """The toy model with noise whose tails are not as wide as to leave nothing of 96 pixels."""
    tame = copy.deepcopy(toy_stellar)
    tame.noise.log_scales.zero_()
    return tame


@pytest.fixture(autouse=True)
def _weights_alone(monkeypatch):
    """Without the hand-over to NUTS, which is tested elsewhere."""
    monkeypatch.setitem(METHODS, "importance", importance_draws)


@pytest.fixture(scope="module")
def fluxes(model):
    """First and second visits of 24 stars that the model drew, (2, 24, D)."""
    count = 24
    with seeded(11):
        z = model.prior(torch.arange(count) % len(model.classes)).sample()
        w = torch.randn(count, model.residual_dim)
        s = model.spectrum(torch.cat([z, torch.zeros(count, model.passage.dim), w], -1))
        star = s + model.residual.discrepancy(z, w) * torch.randn_like(s)
        noise_std = [torch.full_like(star, sigma) for sigma in SIGMA]
        return np.stack([RobustNoiseFlow(star, model.noise, std).sample().numpy() for std in noise_std])


def pairs(model, fluxes, response=1.0, stated=1.0):
    """Pairs of observations; the second visit's spectrograph has a response, and its errors are stated so."""
    ones = np.ones(model.grid.size)
    first, second = (
        [Observation(model.grid.wavelength, factor * flux, ones / (factor * sigma) ** 2) for flux in part]
        for part, factor, sigma in zip(
            fluxes, (ones, response * ones), (SIGMA[0], stated * SIGMA[1]), strict=True
        )
    )
    return list(zip(first, second, strict=True))


@pytest.mark.parametrize("degree", [0, 2])
def test_predictions_hold_as_often_as_they_say(model, fluxes, degree):
    """Whatever the second visit's unit and response: both are fitted."""
    x = np.linspace(-1, 1, model.grid.size)
    response = 3 * (1 + 0.3 * x - 0.2 * x**2) if degree else 3.0
    visits = pairs(model, fluxes, response)
    found = predict_visits(model, visits, degree=degree, draws=256, starts=3)
    np.testing.assert_allclose(found.coverage.mean(0), LEVELS, atol=0.06)
    # Of the median star: one pixel in the wide tail of the noise can be worth a star's all.
    assert np.median(found.chi2) == pytest.approx(1, abs=0.25)
    assert np.median(found.input_chi2) == pytest.approx(1, abs=0.25)


def test_errors_that_are_too_small_show(model, fluxes):
    """Stated at half their size, the second visit's errors are found wanting."""
    visits = pairs(model, fluxes, stated=0.5)
    found = predict_visits(model, visits, degree=0, draws=256, starts=3)
    assert (found.coverage.mean(0)[:3] < np.array(LEVELS[:3]) - 0.08).all()
    assert np.mean(found.chi2) > 1.8


def test_what_is_not_scored_does_not_count(model, fluxes):
    """Where the atmosphere, or whatever it is, makes visits differ by more than their errors."""
    wavelength = model.grid.wavelength
    worse = fluxes.copy()
    red = wavelength > wavelength[60]
    worse[1][:, red] += 4 * SIGMA[1] * np.random.default_rng(0).normal(size=worse[1][:, red].shape)
    options = {"degree": 0, "draws": 256, "starts": 3}
    every = predict_visits(model, pairs(model, worse), **options)
    below = predict_visits(model, pairs(model, worse), between=(0.0, wavelength[60]), **options)
    assert np.mean(every.chi2) > 1.8
    assert np.median(below.chi2) == pytest.approx(1, abs=0.25)
    assert np.median(below.input_chi2) == pytest.approx(1, abs=0.25)
    np.testing.assert_allclose(below.coverage.mean(0), LEVELS, atol=0.06)


def test_a_model_that_knows_no_ivar_is_refused(model, toy_model, fluxes):
    """By name."""
    with pytest.raises(ValueError, match="inverse variance"):
        predict_visits(toy_model, pairs(model, fluxes[:, :1]))


def test_real_repeats_are_paired(shared_data):
    """Files of the same star, within five arcseconds; each pair once."""
    from bayesspec import read

    stars = [read(path) for path in shared_data.glob("lamost_repeats/*")]
    found = same_star(stars)
    assert len(found) > 30
    assert all(a < b for a, b in found)
    assert len(set(found)) == len(found)
    assert {stars[a].meta["ra"] == pytest.approx(stars[b].meta["ra"], abs=2e-3) for a, b in found} == {True}
