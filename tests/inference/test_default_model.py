"""What the default model promises of any input, on the package's example star with simulated noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bayesspec
from bayesspec import demo
from bayesspec.bundle import shipped
from bayesspec.distributions import RobustNoiseFlow
from bayesspec.inference.jumps import BORDER, with_arms_apart
from bayesspec.inference.level import infer_noise_level
from bayesspec.observation import ObservationBatch
from bayesspec.runtime import seeded


@pytest.fixture(scope="module")
def model():
    if "stellar" not in shipped():
        pytest.skip("needs the trained bundle stellar")
    return bayesspec.load_model("stellar")


@pytest.fixture(scope="module")
def observed(model):
    """Flux, sigma and truth of the example star at a noise level, with a factor on its red arm."""
    truth = demo.on_grid(demo.example_star(), model.grid)

    def make(level: float = 0.05, red: float = 1.0, seed: int = 0):
        sigma = level * model.noise.reference
        with seeded(seed):
            flow = RobustNoiseFlow(torch.as_tensor(truth, dtype=torch.float32), model.noise, sigma)
            flux = flow.sample().numpy().astype(float)
        scale = np.where(model.grid.wavelength > BORDER, red, 1.0)
        return flux * scale, sigma.numpy() * scale, truth

    return make


def star(model, flux, sigma=None, **options):
    ivar = None if sigma is None else sigma**-2.0
    return bayesspec.Observation(model.grid.wavelength, flux, ivar, **options)


@pytest.mark.parametrize("red", [0.85, 1.15])
def test_arms_that_do_not_join_are_told_and_cost_little(model, observed, red):
    res = {}
    for factor in (1.0, red):
        flux, sigma, truth = observed(red=factor)
        res[factor] = bayesspec.denoise(star(model, flux, sigma, scale=1.0), model=model)
    assert not any("join" in note for note in res[1.0].warnings[0])
    assert any("join" in note for note in res[red].warnings[0])
    blue, other = res[red].scale[0]
    assert other / blue == pytest.approx(red, rel=0.03)
    losses = {factor: np.mean((found.flux[0] - truth) ** 2) for factor, found in res.items()}
    assert losses[red] < 3 * losses[1.0]


def test_only_spectra_with_a_jump_are_taken_apart(model, observed):
    stars = [star(model, *observed(red=red)[:2], scale=1.0) for red in (1.0, 1.2)]
    several = bayesspec.Observation.from_exposures([stars[1], stars[1]])
    batch = ObservationBatch.from_observations([*stars, several], model.grid, dtype=torch.float32)
    apart = with_arms_apart(model, batch)
    assert (~apart.mask).any(-1).sum(-1).tolist() == [1, 2, 2]
    assert apart.free_scale.sum(-1).tolist() == [0, 1, 0]
    for name in ("flux", "ivar", "mask", "unit_flux"):
        assert torch.equal(getattr(apart, name)[[0, 2]], getattr(batch, name)[[0, 2]])
    # No pixel is lost, and none is there twice.
    assert torch.equal(apart.flux[1].sum(0), batch.flux[1, 0])


@pytest.mark.parametrize("level", [0.01, 0.1])
def test_noise_level_is_inferred_in_any_unit(model, observed, level):
    flux, sigma, _ = observed(level)
    batches = [
        infer_noise_level(model, ObservationBatch.from_observations([one], model.grid, dtype=torch.float32))
        for one in (star(model, flux), star(model, 1e-17 * flux))
    ]
    unit = batches[0].unit_flux[0, 0].item()
    ratio = (batches[0].ivar[0, 0] ** -0.5).numpy() * unit / sigma
    # What a model cannot express of a bright star counts as its noise.
    assert np.median(ratio) == pytest.approx(1, abs=0.1 if level > 0.05 else 0.25)
    torch.testing.assert_close(batches[0].ivar, batches[1].ivar, rtol=1e-2, atol=0)


def test_errors_that_are_stated_are_believed(model, observed):
    flux, sigma, _ = observed()
    batch = ObservationBatch.from_observations([star(model, flux, 2 * sigma)], model.grid)
    assert torch.equal(infer_noise_level(model, batch).ivar, batch.ivar)


def test_what_is_no_star_says_so(model, observed):
    flux, sigma, _ = observed()
    rng = np.random.default_rng(1)
    wavelength = model.grid.wavelength
    lines = 1 + sum(5 * np.exp(-0.5 * ((wavelength - w) / 40) ** 2) for w in (4700, 5600, 6900, 8100))
    quasar = lines + sigma * rng.standard_normal(len(sigma))
    sky = sigma * rng.standard_normal(len(sigma))
    res = bayesspec.denoise([star(model, y, sigma) for y in (flux, quasar, sky)], model=model)
    usual, *others = res.outlier_score
    assert usual > 0.05
    assert max(others) < 0.01
    assert "hardly a signal" in res.warnings[2][0]
    assert not res.warnings[0]


@pytest.mark.parametrize("level", [0.1, 0.02, 0.005])
def test_output_is_better_than_the_input_and_intervals_hold(model, observed, level):
    flux, sigma, truth = observed(level)
    res = bayesspec.denoise(star(model, flux, sigma, scale=1.0), model=model, uncertainty=True)
    assert np.mean((res.flux[0] - truth) ** 2) < np.mean((flux - truth) ** 2)
    inside = np.abs(res.flux[0] - truth) < 1.645 * res.flux_std[0]
    assert 0.75 < inside.mean() < 0.99
    assert res.table["pareto_k"][0] < 0.7
