"""What the default model promises of any input, on the package's example star with simulated noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bayesspec
from bayesspec import demo
from bayesspec.bundle import shipped
from bayesspec.distributions import RobustNoiseFlow
from bayesspec.physics.doppler import Shift
from bayesspec.physics.throughput import BORDER, extinction_mode
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


@pytest.fixture(scope="module")
def still(model, observed):
    """The star as it is: the result of `map`."""
    flux, sigma, _ = observed()
    return bayesspec.denoise(star(model, flux, sigma), model=model)


@pytest.mark.parametrize("red", [0.85, 1.15])
def test_arms_that_do_not_join_are_told_and_cost_little(model, observed, still, red):
    """The step is in the spectrum that is reported, as it is in the data, and not in the one at rest."""
    flux, sigma, truth = observed(red=red)
    res = {1.0: still, red: bayesspec.denoise(star(model, flux, sigma), model=model)}
    assert not any("join" in note for note in res[1.0].warnings[0])
    assert any("join" in note for note in res[red].warnings[0])
    step = res[red].passage[0, model.passage.names.index("arm_step")]
    assert np.exp(step) == pytest.approx(red, rel=0.04)
    stepped = np.where(model.grid.wavelength > BORDER, red, 1.0) * truth
    losses = {f: np.mean((res[f].flux[0] - y) ** 2) for f, y in ((1.0, truth), (red, stepped))}
    assert losses[red] < 2 * losses[1.0]


@pytest.mark.parametrize("velocity", [-300.0, 500.0])
def test_a_moving_star_costs_what_one_at_rest_does(model, observed, still, velocity):
    flux, sigma, truth = observed()
    moved = (
        Shift(torch.tensor(velocity, dtype=torch.float64), model.grid).apply(torch.as_tensor(truth)).numpy()
    )
    res = bayesspec.denoise(star(model, flux - truth + moved, sigma), model=model)
    offset = res.table["velocity_offset"].quantity[0].to_value("km/s")
    assert offset - still.table["velocity_offset"][0] == pytest.approx(velocity, abs=30)
    losses = [np.mean((found.flux[0] - y) ** 2) for found, y in ((still, truth), (res, moved))]
    assert losses[1] < 2 * losses[0]
    np.testing.assert_allclose(res.rest_flux[0], still.rest_flux[0], atol=0.15)


def test_a_star_behind_dust_costs_what_one_in_front_does(model, observed, still):
    flux, sigma, truth = observed()
    dust = np.exp(extinction_mode(model.grid))
    behind = star(model, flux * dust, sigma * dust)
    red = bayesspec.denoise(behind, model=model, method="laplace", draws=256)
    table = red.table
    assert table["ebv_excess"][0] - still.table["ebv_excess"][0] == pytest.approx(1.0, abs=0.15)
    assert 0 < table["ebv_excess_err"][0] < 0.2
    losses = [np.mean((found.flux[0] / y - 1) ** 2) for found, y in ((still, truth), (red, truth * dust))]
    assert losses[1] < 2 * losses[0]


def noise(model, one, found=None):
    """The noise, a standard deviation in the star's unit, that is found with the star, (D,)."""
    res = bayesspec.denoise(one, model=model) if found is None else found
    batch = model.batch(one)
    factor = model.noise_level(torch.as_tensor(res.latents).float(), batch).exp().item()
    return factor * batch.ivar[0, 0].numpy() ** -0.5 * batch.unit_flux[0, 0].item()


@pytest.mark.parametrize("level", [0.01, 0.1])
def test_noise_level_is_inferred_in_any_unit(model, observed, level):
    """Where the pipeline states none: it is a latent of the program, like the rest."""
    flux, sigma, _ = observed(level)
    found = [noise(model, star(model, unit * flux)) / unit for unit in (1.0, 1e-17)]
    # What a model cannot express of a bright star counts as its noise.
    assert np.median(found[0] / sigma) == pytest.approx(1, abs=0.1 if level > 0.05 else 0.25)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-2)


def test_errors_that_are_stated_are_nearly_believed(model, observed, still):
    """A pipeline that states twice the noise is found to, as far as the prior lets it be."""
    flux, sigma, _ = observed()
    stated, right = (
        np.median(noise(model, star(model, flux, by * sigma), known) / sigma)
        for by, known in ((2.0, None), (1.0, still))
    )
    assert right == pytest.approx(1, abs=0.05)
    assert 1 < stated < 2


def test_what_is_no_star_says_so(model, observed, still):
    _, sigma, _ = observed()
    rng = np.random.default_rng(1)
    wavelength = model.grid.wavelength
    lines = 1 + sum(5 * np.exp(-0.5 * ((wavelength - w) / 40) ** 2) for w in (4700, 5600, 6900, 8100))
    quasar = lines + sigma * rng.standard_normal(len(sigma))
    sky = sigma * rng.standard_normal(len(sigma))
    res = bayesspec.denoise([star(model, y, sigma) for y in (quasar, sky)], model=model)
    assert still.outlier_score[0] > 0.05
    assert max(res.outlier_score) < 0.01
    assert "very weak signal" in res.warnings[1][0]
    assert not still.warnings[0]


@pytest.mark.parametrize(
    "level", [0.1, *(pytest.param(level, marks=pytest.mark.slow) for level in (0.02, 0.005))]
)
def test_output_is_better_than_the_input_and_intervals_hold(model, observed, level):
    flux, sigma, truth = observed(level)
    one = star(model, flux, sigma, scale=1.0)
    res = bayesspec.denoise(one, model=model, uncertainty=True, draws=256)
    assert np.mean((res.flux[0] - truth) ** 2) < np.mean((flux - truth) ** 2)
    inside = np.abs(res.flux[0] - truth) < 1.645 * res.flux_std[0]
    assert 0.75 < inside.mean() < 0.995
    assert res.full_table["pareto_k"][0] < 0.7


@pytest.mark.slow
def test_autodelta_ends_at_the_optimum_of_the_fast_climb(model, observed):
    """AutoDelta and Newton's steps maximise one program, w summed out: as high, and the same spectrum."""
    stars = []
    for seed in range(3):
        flux, sigma, _ = observed(level=0.1, seed=seed)
        stars.append(star(model, flux, sigma))
    fast = bayesspec.denoise(stars, model=model, method="map")
    slow = bayesspec.denoise(stars, model=model, method="map", engine="autodelta", steps=300)
    width = bayesspec.denoise(stars, model=model, method="laplace").flux_std
    apart = np.sqrt(np.mean(((fast.flux - slow.flux) / width) ** 2, axis=-1))
    assert np.median(apart) < 0.2
    assert (apart < 1).all()
    assert (fast.best_class == slow.best_class).all()
