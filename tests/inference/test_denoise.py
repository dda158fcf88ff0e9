"""Laws of `bayesspec.denoise`, with the shipped model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from astropy import units as u

import bayesspec
from bayesspec.distributions import NoiseFlow
from bayesspec.exceptions import BayesspecError, ObservationError
from bayesspec.inference.denoise import METHODS, choose_method
from bayesspec.runtime import seeded


@pytest.fixture(scope="module")
def model():
    return bayesspec.load_model("kang2021")


@pytest.fixture(scope="module")
def stars(model):
    """Six spectra drawn from the model, with its own noise, in arbitrary units."""
    with seeded(2):
        klass = torch.tensor([1, 2, 3, 4, 5, 6])
        clean = model.generator(model.prior(klass).sample())
        noisy = NoiseFlow(clean, model.noise).sample().numpy()
    unit = u.Unit("1e-17 erg / (s cm2 Angstrom)")
    return [
        bayesspec.Observation(model.grid.wavelength, 20 * y * unit, name=f"star {n}")
        for n, y in enumerate(noisy)
    ], clean.numpy()


@pytest.fixture(scope="module")
def result(model, stars):
    return bayesspec.denoise(stars[0], model=model)


def test_denoises(result, stars):
    """Spectra come back closer to the truth than they went in, in the unit they came in."""
    observations, clean = stars
    observed = np.array([star.exposures[0].flux for star in observations])
    after = np.square(result.flux - 20 * clean).mean(-1)
    before = np.square(observed - 20 * clean).mean(-1)
    assert (after < 0.2 * before).all()
    assert result.units[0] == observations[0].unit
    np.testing.assert_allclose(result.class_probabilities.sum(-1), 1, rtol=1e-5)


def test_unit_of_the_flux_comes_back(result, model, stars):
    """The same star in a unit a million times smaller: same latent, flux a million times larger."""
    star = stars[0][2]
    wavelength, flux = star.exposures[0].wavelength, star.exposures[0].flux
    scaled = bayesspec.denoise(bayesspec.Observation(wavelength, 1e6 * flux), model=model)
    np.testing.assert_allclose(scaled.z[0], result.z[2], atol=1e-3)
    np.testing.assert_allclose(scaled.flux[0], 1e6 * result.flux[2], rtol=2e-3, atol=20)


def test_order_and_batches_do_not_matter(result, model, stars):
    """Reversed, and three at a time: the same rows."""
    backward = bayesspec.denoise(stars[0][::-1], model=model, batch_size=3)
    np.testing.assert_allclose(backward.z[::-1], result.z, atol=2e-3)
    assert backward.names[::-1] == result.names


def test_stars_of_several_exposures_keep_their_rows(result, model, stars):
    """However many exposures each has, rows are in the order of the input."""
    first, second, third, *_ = stars[0]
    deep = bayesspec.Observation.from_exposures([first, first, first], name="deep")
    mixed = bayesspec.denoise([deep, second, third], model=model, batch_size=2)
    assert mixed.names == ("deep", second.name, third.name)
    np.testing.assert_allclose(mixed.z[1:], result.z[1:3], atol=2e-3)
    assert (~mixed.observed_mask).any(-1).sum(-1).tolist() == [3, 1, 1]


def test_same_seed_same_result(result, model, stars):
    """To the last bit."""
    again = bayesspec.denoise(stars[0], model=model)
    np.testing.assert_array_equal(again.flux, result.flux)


def test_a_gap_does_not_move_the_star(result, model, stars):
    """Half of the pixels gone and the rest in another unit: the scale is inferred, the latent stays."""
    star = stars[0][3]
    wavelength, flux = star.exposures[0].wavelength, star.exposures[0].flux
    red = bayesspec.Observation(wavelength[1024:], 3 * flux[1024:], name="red half")
    res = bayesspec.denoise(red, model=model)
    np.testing.assert_allclose(res.z[0], result.z[3], atol=0.15)
    assert np.square(res.flux[0] / 3 - result.flux[3]).mean() < 0.1 * np.square(result.flux[3]).mean()
    assert res.observed_fraction[0] == pytest.approx(0.5, abs=0.01)


def test_red_and_blue_exposures_work_together(model, stars):
    """Two half spectra with different units, one star: as good as the whole."""
    star, clean = stars[0][3], stars[1][3]
    wavelength, flux = star.exposures[0].wavelength, star.exposures[0].flux
    blue = bayesspec.Observation(wavelength[:1024], flux[:1024])
    red = bayesspec.Observation(wavelength[1024:], 5 * flux[1024:])
    res = bayesspec.denoise(bayesspec.Observation.from_exposures([blue, red], name="both"), model=model)
    shape = res.model_flux[0] / np.abs(res.model_flux[0]).mean()
    assert np.square(shape - clean / np.abs(clean).mean()).mean() < 2e-3
    assert res.scale.shape == (1, 2)


def test_unusable_stars_are_named(model, stars):
    """A star off the grid is an error that names it, or a failure beside the others' results."""
    off = bayesspec.Observation(np.linspace(10_000, 20_000, 100), np.ones(100), name="infrared")
    with pytest.raises(ObservationError, match="infrared: no observed pixel between 4000 and 9000"):
        bayesspec.denoise([stars[0][0], off], model=model)
    res = bayesspec.denoise([off, stars[0][0]], model=model, on_error="skip")
    assert len(res) == 1
    assert res.failures[0][:2] == (0, "infrared")
    with pytest.raises(BayesspecError, match="no method is called 'magic'"):
        bayesspec.denoise(stars[0][0], model=model, method="magic")


def test_uncertainty_is_importance_sampling(toy_model):
    """Asked for without a method, it is importance sampling's, to the last bit; the mode has none."""
    star = bayesspec.Observation(toy_model.grid.wavelength, np.ones(toy_model.grid.size), name="flat")
    asked = bayesspec.denoise(star, model=toy_model, uncertainty=True, draws=256)
    named = bayesspec.denoise(star, model=toy_model, method="importance", draws=256)
    assert asked.method == "importance"
    assert (asked.flux_std > 0).all()
    np.testing.assert_array_equal(asked.flux_std, named.flux_std)

    point = bayesspec.denoise(star, model=toy_model)
    assert point.method == "map"
    assert point.flux_std is None
    with pytest.raises(BayesspecError, match="uncertainty=True"):
        point.interval()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_is_named_is_used(method):
    """Whether uncertainty is asked or not, but `map` has none to give."""
    assert choose_method(method) == method
    if method == "map":
        with pytest.raises(BayesspecError, match="map is a point"):
            choose_method(method, uncertainty=True)
    else:
        assert choose_method(method, uncertainty=True) == method


def test_what_is_no_star_says_so(model):
    """Pure noise of ten times the model's is flagged in its row, and nothing is NaN."""
    rng = np.random.default_rng(0)
    sky = bayesspec.Observation(model.grid.wavelength, rng.normal(0, 3, 2048), name="sky")
    res = bayesspec.denoise(sky, model=model)
    assert "hardly a signal" in res.warnings[0][0]
    assert np.isfinite(res.flux).all()
    assert np.isfinite(res.z).all()
    assert res.chi2[0] > 2
