"""Laws of the benchmark sets: unseen stars and nights, the same for the same seed, and what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bayesspec.benchmark.measures.der_snr import der_snr
from bayesspec.benchmark.sets import SETS, BenchmarkRecipe, build_sets
from bayesspec.exceptions import BayesspecError
from bayesspec.grid import WavelengthGrid, mean_absolute_flux
from bayesspec.physics.doppler import Shift
from bayesspec.physics.throughput import BORDER, extinction_mode
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.library import CLASSES, StarLibrary
from bayesspec.training.simulation import choose_stars

GRID = WavelengthGrid(size=256)
RECIPE = BenchmarkRecipe(3, 2, (160, 480), (160, 480), (2.0, 5.0, 20.0), (30.0, 100.0), seed=1)


def make_library(n=400, seed=0):
    rng = np.random.default_rng(seed)
    slope = rng.uniform(-3, 3, (n, 1))
    flux = (GRID.wavelength / 6000) ** slope
    mask = rng.random((n, GRID.size)) < 0.005
    flux /= mean_absolute_flux(flux, mask)[:, None]
    return StarLibrary(
        np.where(mask, 0, flux).astype(np.float32),
        np.where(mask, 0, 1e4).astype(np.float32),
        mask,
        np.arange(n) % 10,
        np.array([f"star {i % (n // 2)}" for i in range(n)]),
        np.where(np.arange(n) % 3 == 0, "model", "observed"),
        np.full(n, "made up"),
        np.full(n, 100, np.float32),
    )


def make_noise(n=40, seed=1):
    rng = np.random.default_rng(seed)
    sigma = 0.1 * np.linspace(2, 1, GRID.size)
    mask = rng.random((n, GRID.size)) < 0.005
    residual = np.where(mask, 0, sigma * rng.standard_normal((n, GRID.size)))
    return NoiseLibrary(
        residual.astype(np.float32),
        np.where(mask, 0, sigma**-2).astype(np.float32),
        mask,
        np.array([f"night {i // 2}" for i in range(n)]),
    )


@pytest.fixture(scope="module")
def library():
    return make_library()


@pytest.fixture(scope="module")
def noise():
    return make_noise()


@pytest.fixture(scope="module")
def sets(library, noise):
    return {data.name: data for data in build_sets(library, noise, GRID, RECIPE)}


def test_no_star_and_no_night_of_a_training_is_in_a_set(sets, library, noise):
    seen_stars = {*library.split("train").star, *library.split("validation").star}
    seen_nights = {*noise.split("train").epoch, *noise.split("validation").epoch}
    assert set(sets) == set(SETS)
    for data in sets.values():
        assert not seen_stars & set(data.star)
        assert not seen_nights & set(data.epoch.ravel())
        assert len(set(data.klass)) == 10


def test_one_spectrum_a_star_and_real_ones_first(library):
    """Others of the same star are no independent test; no class has more than asked."""
    chosen = choose_stars(library, 3)
    assert len(set(chosen.star)) == len(chosen)
    assert np.bincount(chosen.klass).max() <= 3
    every = choose_stars(library, 1000)
    for c in range(len(CLASSES)):
        real = (every.kind[every.klass == c] == "observed").sum()
        assert (chosen.kind[chosen.klass == c] == "observed").sum() == min(real, 3)


def test_the_same_seed_gives_the_same_sets(sets, library, noise):
    """To the last bit, a set alone or among others; another seed gives others."""
    for name in SETS:
        (again,) = build_sets(library, noise, GRID, RECIPE, (name,))
        assert again.fingerprint == sets[name].fingerprint
        (other,) = build_sets(library, noise, GRID, replace(RECIPE, seed=2), (name,))
        assert other.fingerprint != sets[name].fingerprint


def test_a_spectrum_does_not_depend_on_the_other_stars(sets, library, noise):
    less = library.select(library.klass != 4)
    (alone,) = build_sets(less, noise, GRID, RECIPE, ("sky",))
    rows = sets["sky"].klass != 4
    np.testing.assert_array_equal(alone.flux, sets["sky"].flux[rows])


def test_masked_pixels_have_no_influence(sets, library, noise):
    """Whatever a library holds under its masks, the sets are the same."""
    spoiled = replace(library, flux=np.where(library.mask, np.float32(1e9), library.flux))
    junk = replace(noise, residual=np.where(noise.mask, np.float32(1e9), noise.residual))
    for data in build_sets(spoiled, junk, GRID, RECIPE):
        np.testing.assert_array_equal(data.flux, sets[data.name].flux)
        np.testing.assert_array_equal(data.mask, sets[data.name].mask)


def test_plain_is_the_star_and_one_exposures_noise(sets, noise):
    data = sets["plain"]
    for flux, mask, truth, epoch in zip(data.flux, data.mask, data.truth, data.epoch, strict=True):
        night = noise.select(noise.epoch == epoch[0])
        known = ~mask[0]
        away = [np.abs((flux[0] - truth - row)[known]).max() for row in night.residual]
        assert min(away) < 1e-5


@pytest.mark.parametrize("name", ["interval", "gaps"])
def test_gaps_are_as_wide_as_they_say(sets, name):
    data = sets[name]
    for mask, width in zip(data.mask[:, 0], data.condition["gap_width"], strict=True):
        starts = np.lib.stride_tricks.sliding_window_view(mask, width).all(-1)
        assert starts.any()
        assert mask.sum() < width + 0.05 * GRID.size


def test_gaps_are_where_they_say(sets):
    data = sets["gaps"]
    place = data.condition["gap_place"]
    assert data.mask[place == "blue end", 0, 0].all()
    assert data.mask[place == "middle", 0, 127:129].all()
    assert data.mask[place == "red end", 0, -1].all()


def test_levels_are_reached(sets):
    """By noise added, or by less of the exposure's own; the ivar is that of all the noise."""
    data = sets["der_snr"]
    np.testing.assert_allclose(der_snr(data.flux[:, 0], data.mask[:, 0]), data.condition["level"], rtol=0.01)
    noise = np.where(data.mask, 0, data.flux - data.truth[:, None]) * np.sqrt(data.ivar)
    assert abs((noise[~data.mask] ** 2).mean() - 1) < 0.1


def test_high_snr_is_reached_by_scaling_the_noise(sets):
    data = sets["high_snr"]
    for ivar, mask, snr in zip(data.ivar[:, 0], data.mask[:, 0], data.condition["snr"], strict=True):
        assert np.median(ivar[~mask] ** 0.5) == pytest.approx(snr, rel=0.05)


def test_arms_differ_by_the_factor(sets):
    """In what is observed, and in the truth: the star's light as it was calibrated."""
    data, plain = sets["arms"], sets["plain"]
    factor = data.condition["red_factor"]
    assert ((np.abs(factor - 1) >= 0.05) & (np.abs(factor - 1) <= 0.2)).all()
    red = GRID.wavelength > BORDER
    np.testing.assert_array_equal(data.star, plain.star)
    step = np.where(red, factor[:, None], 1.0)
    np.testing.assert_allclose(data.truth, step * plain.truth, rtol=1e-6)
    np.testing.assert_allclose(data.truth_ivar, plain.truth_ivar / step**2, rtol=1e-5)
    ratio = np.where(data.mask[:, 0], 1, data.flux[:, 0]) / np.where(data.mask[:, 0], 1, data.truth)
    np.testing.assert_allclose(np.median(ratio, axis=-1), 1, atol=0.05)


def test_moving_stars_are_shifted_dust_and_calibration_are_smooth_factors(sets):
    """With the same noise whatever is done to the star, and nothing done at zero."""
    for name, condition in (("moving", "velocity"), ("dust", "ebv"), ("calibration", "calibration_error")):
        data = sets[name]
        for star in np.unique(data.star):
            rows = np.flatnonzero(data.star == star)
            amount = data.condition[condition][rows]
            assert amount[0] == 0
            seen = ~data.mask[rows].any((0, 1)) & ~data.truth_mask[rows].any(0)
            noise = (data.flux[rows, 0] - data.truth[rows])[:, seen]
            np.testing.assert_allclose(noise, noise[:1].repeat(len(rows), 0), atol=1e-4)
            still = data.truth[rows[0]].astype(float)
            for row, size in zip(rows, amount, strict=True):
                good = seen & (np.abs(still) > 0.05)
                ratio = np.log(data.truth[row][good] / still[good])
                if name == "dust":
                    np.testing.assert_allclose(ratio, size * extinction_mode(GRID)[good], atol=1e-3)
                if name == "calibration" and good.mean() > 0.95:
                    assert np.sqrt(np.mean(ratio**2)) == pytest.approx(size, rel=0.1, abs=1e-6)
                if name == "moving":
                    moved = Shift(torch.tensor(float(size), dtype=torch.float64), GRID)
                    expected = moved.apply(torch.as_tensor(still)).numpy()
                    whole = good & ~moved.lacks(torch.as_tensor(data.truth_mask[rows[0]])).numpy()
                    np.testing.assert_allclose(data.truth[row][whole], expected[whole], atol=1e-5)
        assert not data.scale_known.any()


def test_visits_are_different_exposures(sets):
    data = sets["visits"]
    count = (~data.mask.all(-1)).sum(-1)
    np.testing.assert_array_equal(count, data.condition["exposures"])
    assert (count >= 2).all()
    assert [len(star) for star in data.observations()] == count.tolist()
    assert np.abs(data.flux[:, 0] - data.flux[:, 1]).max(-1).min() > 0


def test_sky_only_adds_where_it_says(sets):
    data = sets["sky"]
    assert (data.condition["sky_pixels"] > 0).all()
    (plain,) = [sets["plain"]]
    assert (np.abs(data.flux - data.truth[:, None]) * np.sqrt(data.ivar)).max() > 8
    assert (np.abs(plain.flux - plain.truth[:, None]) * np.sqrt(plain.ivar)).max() < 6


def test_hits_are_one_pixel_of_the_same_exposure(sets):
    """As high as they say, at an observed pixel, and nothing else changes; no method is told the scale."""
    data = sets["hits"]
    heights = data.condition["height"].reshape(-1, len(RECIPE.hits))
    assert heights.max() == 1e5
    np.testing.assert_array_equal(heights, np.tile(RECIPE.hits, (len(heights), 1)))
    flux, mask, ivar = (
        getattr(data, name)[:, 0].reshape(*heights.shape, -1) for name in ("flux", "mask", "ivar")
    )
    for name, array in (("mask", mask), ("ivar", ivar)):
        np.testing.assert_array_equal(array, array[:, :1].repeat(heights.shape[1], 1), err_msg=name)
    hit = np.arange(GRID.size) == data.condition["hit_pixel"].reshape(*heights.shape, 1)
    assert not (hit & mask).any()
    np.testing.assert_allclose(flux - flux[:, :1], np.where(hit, heights[..., None], 0), rtol=1e-5)
    assert all(star.scale is None for star in data.observations())


def test_scales_are_told_where_the_truth_has_one(sets, library, noise):
    """Not of one arm, and not of a star whose own mean |flux| is over fewer pixels."""
    assert not sets["one_arm"].scale_known.any()
    assert all(star.scale is None for star in sets["one_arm"].observations())
    assert all(star.scale == 1.0 for star in sets["gaps"].observations())
    part = replace(library, mask=library.mask | (GRID.wavelength > 7000))
    (data,) = build_sets(part, noise, GRID, RECIPE, ("plain",))
    assert not data.scale_known.any()


def test_single_is_the_mean_of_the_exposures(sets):
    """By inverse variance, in units of what is known; what is under the mask is 0."""
    data = sets["visits"]
    single, unit = data.single()
    assert (unit == 1).all()
    weight = data.ivar.sum(-2)
    mean = np.divide((data.ivar * data.flux).sum(-2), weight, out=np.zeros_like(weight), where=weight > 0)
    np.testing.assert_allclose(single.flux, mean, atol=1e-5)
    np.testing.assert_allclose(single.ivar, weight, rtol=1e-5)
    arm, unit = sets["one_arm"].single()
    observed = ~arm.mask
    np.testing.assert_allclose((arm.flux * observed).sum(-1) / observed.sum(-1), 1, rtol=1e-5)
    assert (unit != 1).any()


def test_errors_that_mean_nothing_are_not_believed(library, noise):
    """Those of models, and those that contradict the S/N of the catalogue."""
    wrong = replace(library, ivar=np.where(library.mask, 0, np.float32(1.0)))
    (data,) = build_sets(library, noise, GRID, RECIPE, ("plain",))
    (doubted,) = build_sets(wrong, noise, GRID, RECIPE, ("plain",))
    np.testing.assert_array_equal(data.truth_ivar.any(-1), data.kind != "model")
    assert not doubted.truth_ivar.any()


def test_nothing_to_test_on_is_said(library, noise):
    with pytest.raises(BayesspecError, match="no star"):
        next(build_sets(library.split("train"), noise, GRID, RECIPE))
    with pytest.raises(BayesspecError, match="no epoch"):
        next(build_sets(library, noise.split("train"), GRID, RECIPE))


def test_real_sets(shared_data):
    """The development spectra: all classes, and what is said of O and Carbon stars."""
    grid = WavelengthGrid()
    library = StarLibrary.read(shared_data / "stars.fits.gz", grid)
    noise = NoiseLibrary.from_files(sorted(shared_data.glob("boss_epochs/spec-7338-57[01]*")), grid)
    (data,) = build_sets(library, noise, grid, BenchmarkRecipe.quick(), ("plain",))
    assert all(sum(kinds.values()) for kinds in data.counts().values())
    assert np.isfinite(data.flux).all()
    assert not data.truth_ivar[data.kind == "model"].any()
