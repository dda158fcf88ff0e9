"""Laws of several exposures: likelihoods multiply, the posterior tightens, scales do not move the star."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bayesspec import load_model
from bayesspec.batch import ObservationBatch
from bayesspec.benchmark.sbc import simulate
from bayesspec.inference.importance import importance_draws
from bayesspec.inference.target import Target
from bayesspec.observation import Observation


def moments(draws):
    """Means and standard deviations of z, each (N, L)."""
    weight, z = np.exp(draws.log_weight[:, 0]), draws.z[:, 0].astype(float)
    mean = np.einsum("ns,nsl->nl", weight, z)
    return mean, np.sqrt(np.einsum("ns,nsl->nl", weight, (z - mean[:, None]) ** 2))


def test_likelihoods_multiply(toy_model):
    """log p(y1..y3, z) - log p(z) is the sum of log p(ye, z) - log p(z), for scales known and free."""
    mask = np.zeros((5, 3, toy_model.grid.size), bool)
    mask[2:, 1, 40:] = True
    batch, truth = simulate(toy_model, mask, seed=1)
    free = batch.free_scale.numpy()

    def excess(exposures):
        part = ObservationBatch.from_arrays(
            *(getattr(batch, name)[:, exposures].numpy() for name in ("flux", "ivar", "mask", "unit_flux")),
            free[:, exposures],
        )
        target = Target(toy_model, part)
        prior = toy_model.log_joint_classes(truth.z).logsumexp(-1)
        return target.log_density(target.join(truth.z, truth.log_scale[:, exposures])) - prior

    torch.testing.assert_close(
        excess([0, 1, 2]), excess([0]) + excess([1]) + excess([2]), rtol=1e-5, atol=1e-3
    )


def test_half_the_pixels_in_another_unit_are_the_same_star():
    """What is seen of one arm alone, in any unit, agrees with all of it within its own error."""
    model = load_model("kang2021")
    pixels = model.grid.size
    batch, _ = simulate(model, np.zeros((8, 1, pixels), bool), seed=4)
    wave, unit = model.grid.wavelength, 7.3
    flux = batch.flux[:, 0].double().numpy()
    whole = [Observation(wave, y, scale=1.0) for y in flux]
    halves = [Observation(wave, unit * y, mask=np.arange(pixels) >= pixels // 2) for y in flux]

    def posterior(stars):
        batch = ObservationBatch.from_observations(stars, model.grid, dtype=torch.float32)
        return moments(importance_draws(model, batch, draws=512, starts=2))

    (mean, _), (other, wider) = posterior(whole), posterior(halves)
    # Half the data's mean differs from all the data's by less than its own error: var = wider^2 - std^2.
    pull = (other - mean) / wider
    assert (np.abs(pull) < 4.5).all()
    assert 0.3 < np.sqrt((pull**2).mean()) < 1.2
    # To take the mean of half the pixels for the scale is what must not be done, and would be seen.
    wrong = [
        Observation(wave, s.exposures[0].flux, mask=s.exposures[0].mask, scale=unit * 1.2) for s in halves
    ]
    biased, narrow = posterior(wrong)
    assert np.sqrt((((biased - mean) / narrow) ** 2).mean()) > 2


@pytest.fixture(scope="module")
def white_dwarf(shared_data):
    """A white dwarf with six red and six blue frames, each exposure by itself."""
    import bayesspec

    path = shared_data / "raw/sdss-full/boss-full-WDhotter.fits"
    star = bayesspec.read(path, exposures="individual")
    assert len(star) == 6
    return [
        Observation(e.wavelength, e.flux, e.ivar, e.mask, name=f"{n}") for n, e in enumerate(star.exposures)
    ]


def test_white_dwarf(white_dwarf):
    """A real star: errors fall as 1 / sqrt(n), units do not matter, red of one goes with blue of another."""
    import bayesspec

    def part(star, low, high, unit=1.0):
        e = star.exposures[0]
        beyond = (e.wavelength < low) | (e.wavelength > high)
        return Observation(e.wavelength, unit * e.flux, e.ivar / unit**2, e.mask | beyond)

    first, second, *_ = white_dwarf
    stars = [Observation.from_exposures(white_dwarf[:n]) for n in (1, 2, 6)]
    stars += [
        part(first, 0, 1e5, unit=7.3),
        Observation.from_exposures([part(first, 0, 6000), part(second, 6000, 1e5, unit=5.0)]),
    ]
    res = bayesspec.denoise(stars, model="kang2021", method="importance")
    mean, std = moments(res.draws)
    assert {res.classes[k] for k in res.best_class} == {"WD"}
    np.testing.assert_allclose(std[1] / std[0], np.sqrt(1 / 2), rtol=0.2)
    np.testing.assert_allclose(std[2] / std[0], np.sqrt(1 / 6), rtol=0.2)
    assert (np.abs(mean[2] - mean[0]) < 4 * std[0]).all()
    np.testing.assert_allclose(mean[3], mean[0], atol=0.02 * std[0].min())
    np.testing.assert_allclose(res.flux[3], 7.3 * res.flux[0], rtol=1e-3)
    assert (np.abs(mean[4] - mean[0]) < 4 * std[4]).all()
