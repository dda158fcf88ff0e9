"""The law of the wild pixel: at any height it does to the rest of the spectrum what masking it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bayesspec
from bayesspec import demo
from bayesspec.bundle import shipped
from bayesspec.distributions import NoiseFlow, RobustNoiseFlow
from bayesspec.runtime import seeded

MODELS = ("kang2021", "stellar")
HEIGHTS = (10.0, -10.0, 100.0, 1e3, 1e5, 1e9, -1e9, 1e30)
"""Of the pixel, in units of the spectrum's mean flux."""

ALLOWED = 0.2
"""Posterior standard deviations by which the result elsewhere may differ from that of the masked pixel."""

NEAR = 12
"""Pixels on each side that the hit may concern: noise of the pixels after it is told by what was before."""


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    if request.param not in shipped():
        pytest.skip(f"needs the trained bundle {request.param}")
    return bayesspec.load_model(request.param)


@pytest.fixture(scope="module")
def observed(model):
    """Exposures (E, D) of the example star with the model's own noise, and their ivar, at an S/N."""
    truth = torch.as_tensor(demo.on_grid(demo.example_star(), model.grid), dtype=torch.float32)

    def make(snr: float, exposures: int):
        with seeded(int(snr)):
            if model.residual is None:
                drawn = NoiseFlow(truth.expand(exposures, -1), model.noise).sample()
                usual = (drawn - truth).abs().median() * 1.48
                flux, ivar = truth + (drawn - truth) / (snr * usual), None
            else:
                sigma = (model.noise.reference / snr).expand(exposures, -1)
                flux = RobustNoiseFlow(truth.expand(exposures, -1), model.noise, sigma).sample()
                ivar = sigma.numpy().astype(float) ** -2
        return flux.numpy().astype(float), ivar

    return make


def posterior_width(model, star):
    return bayesspec.denoise(star, model=model, method="laplace", draws=256).flux_std[0]


def check(model, flux, ivar, pixel, heights, *, width=None, allowed=ALLOWED, **options):
    """Compare spectra with one hit in the last exposure, of each height, with the one where it is masked."""
    mask = np.zeros(flux.shape, dtype=bool)
    mask[-1, pixel] = True

    def star(height: float | None) -> bayesspec.Observation:
        if height is None:
            return bayesspec.Observation(model.grid.wavelength, flux, ivar, mask)
        hit = flux.copy()
        hit[-1, pixel] = height
        return bayesspec.Observation(model.grid.wavelength, hit, ivar)

    result = bayesspec.denoise([star(None), *map(star, heights)], model=model, **options)
    width = posterior_width(model, star(None)) if width is None else width
    elsewhere = np.abs(np.arange(model.grid.size) - pixel) > NEAR
    shift = np.abs(result.flux[1:] - result.flux[0]) / width
    assert np.isfinite(result.flux).all()
    assert shift[:, elsewhere].max() < allowed, dict(zip(heights, shift[:, elsewhere].max(-1), strict=True))
    undecided = np.ptp(np.sort(result.class_probabilities[0])[-2:]) < 0.05
    assert undecided or (result.best_class[1:] == result.best_class[0]).all()


@pytest.mark.parametrize("snr", [5, 100])
def test_it_does_what_masking_it_does(model, observed, snr):
    check(model, *observed(snr, 1), 700, HEIGHTS[3::3], method="map")


def test_it_does_so_in_one_of_two_exposures(model, observed):
    """Of one height, from one start, in widths that one exposure would leave: all takes ten times as long."""
    flux, ivar = observed(20, 2)
    first = flux[:1], None if ivar is None else ivar[:1]
    width = posterior_width(model, bayesspec.Observation(model.grid.wavelength, *first))
    check(model, flux, ivar, 700, (1e5,), width=width, allowed=ALLOWED / 2, method="map", starts=1)


@pytest.mark.slow
@pytest.mark.parametrize(("snr", "exposures"), [(5, 1), (20, 1), (100, 1), (5, 3), (100, 3)])
@pytest.mark.parametrize("pixel", [0, 3, 300, 1100, 1700, 2047])
def test_at_any_place_and_signal(model, observed, snr, exposures, pixel):
    check(model, *observed(snr, exposures), pixel, HEIGHTS, method="map")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"method": "map", "engine": "autodelta", "steps": 1500},
        {"method": "importance", "draws": 4096},
        {"method": "nuts", "draws": 1500},
    ],
    ids=lambda options: options.get("engine", options["method"]),
)
def test_every_engine_obeys(model, observed, options):
    """With so many draws that their own scatter is well below what is allowed."""
    check(model, *observed(20, 1), 700, (100.0, 1e5), **options)
