"""Laws of the wavelength grid and of rebinning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from bayesspec.grid import (
    NativePixels,
    WavelengthGrid,
    _median,
    air_to_vacuum,
    flux_unit,
    mean_absolute_flux,
    overlap_matrix,
    rebin,
)

seeds = st.integers(0, 2**32 - 1)
SMALL = WavelengthGrid(4000.0, 4100.0, 21)


@st.composite
def grids(draw):
    start = draw(st.floats(3000, 6000))
    span = draw(st.floats(50, 500))
    return WavelengthGrid(start, start + span, draw(st.integers(2, 60)), draw(st.booleans()))


@st.composite
def natives(draw):
    """Pixels whose widths drift like a spectrograph's, neighbours within 20 %, and their flux and ivar."""
    generator = np.random.default_rng(draw(seeds))
    size = draw(st.integers(2, 200))
    step = draw(st.floats(0.3, 8)) * generator.uniform(0.91, 1.09, size)
    wavelength = draw(st.floats(3000, 6500)) + np.cumsum(step)
    return wavelength, generator.normal(1, 1, size), generator.uniform(0.1, 10, size)


def dense(wavelength, grid):
    """The overlap of every pair of pixels, one by one."""
    low, high = NativePixels(wavelength).edges[:-1], NativePixels(wavelength).edges[1:]
    return np.array(
        [
            np.clip(np.minimum(high, right) - np.maximum(low, left), 0, None)
            for left, right in zip(grid.edges[:-1], grid.edges[1:], strict=True)
        ]
    )


@given(natives(), grids())
def test_overlap_matrix_is_the_pairwise_overlap(native, grid):
    wavelength, *_ = native
    assert_allclose(overlap_matrix(wavelength, grid).toarray(), dense(wavelength, grid), atol=1e-8)


@given(natives(), grids())
def test_rows_of_the_overlap_sum_to_the_length_covered(native, grid):
    wavelength, *_ = native
    first, *_, last = NativePixels(wavelength).edges
    covered = np.clip(np.minimum(grid.edges[1:], last) - np.maximum(grid.edges[:-1], first), 0, None)
    assert_allclose(overlap_matrix(wavelength, grid).sum(1), covered, atol=1e-8)


@given(natives(), st.integers(2, 60), st.booleans())
def test_the_integral_of_the_flux_is_conserved(native, size, log):
    """A grid whose borders are within the native range holds exactly the flux between them."""
    wavelength, flux, ivar = native
    edges = NativePixels(wavelength).edges
    start, stop = np.interp([0.2, 0.8], [0, 1], edges[[0, -1]])
    grid = WavelengthGrid(start, stop, size, log)
    assume(edges[0] <= grid.edges[0] and grid.edges[-1] <= edges[-1])
    mine = rebin(wavelength, flux, ivar, np.zeros(len(flux), bool), grid)
    integral = np.concatenate([[0], np.cumsum(flux * np.diff(edges))])
    expected = np.diff(np.interp(grid.edges[[0, -1]], edges, integral)).item()
    assert not mine.mask.any()
    assert_allclose(mine.flux @ np.diff(grid.edges), expected, atol=1e-6 * np.abs(flux).sum())


@given(natives(), grids(), seeds)
def test_flux_and_ivar_are_those_of_the_dense_formula(native, grid, seed):
    """The mean of the good pixels weighted by overlap, and the variance of this mean."""
    wavelength, flux, ivar = native
    bad = np.random.default_rng(seed).random(len(flux)) < 0.2
    mine = rebin(wavelength, flux, ivar, bad, grid)
    weight = dense(wavelength, grid) * ~bad
    total = weight.sum(1)
    observed = ~mine.mask
    share = weight[observed] / total[observed, None]
    assert_allclose(mine.flux[observed], share @ flux, rtol=1e-6, atol=1e-8)
    assert_allclose(1 / mine.ivar[observed], share**2 @ (1 / ivar), rtol=1e-6)
    assert (total[observed] >= 0.5 * np.diff(grid.edges)[observed] - 1e-8).all()
    assert (total[~observed] < 0.5 * np.diff(grid.edges)[~observed] + 1e-8).all()


def test_the_variance_is_that_of_many_noisy_draws():
    rng = np.random.default_rng(1)
    wavelength = np.geomspace(3990, 4110, 130)
    ivar = rng.uniform(0.5, 5, 130)
    bad = rng.random(130) < 0.1
    noise = rng.normal(size=(20_000, 130)) / np.sqrt(ivar)
    draws = rebin(wavelength, noise, np.broadcast_to(ivar, noise.shape), np.tile(bad, (20_000, 1)), SMALL)
    observed = ~draws.mask[0]
    assert_allclose(draws.flux.var(0)[observed] * draws.ivar[0][observed], 1, atol=0.05)


@given(natives(), grids(), st.floats(-3, 3), st.floats(-3, 3))
def test_rebinning_is_linear_in_flux(native, grid, a, b):
    wavelength, flux, ivar = native
    other, good = np.cos(wavelength), np.zeros(len(flux), bool)

    def onto(values):
        return rebin(wavelength, values, ivar, good, grid).flux

    assert_allclose(onto(a * flux + b * other), a * onto(flux) + b * onto(other), atol=1e-9)


@given(natives(), grids(), st.sampled_from([np.nan, np.inf, -np.inf, 1e30, 0.0]))
def test_what_masked_pixels_hold_does_not_matter(native, grid, junk):
    wavelength, flux, ivar = native
    bad = np.arange(len(flux)) % 4 == 1
    clean = rebin(wavelength, flux, ivar, bad, grid)
    dirty = rebin(wavelength, np.where(bad, junk, flux), np.where(bad, junk, ivar), bad, grid)
    for left, right in zip(clean, dirty, strict=True):
        assert_array_equal(left, right)
        assert np.isfinite(left).all()


@given(natives(), grids())
def test_a_constant_stays_constant(native, grid):
    wavelength, flux, ivar = native
    mine = rebin(wavelength, np.full(len(flux), 3.5), ivar, np.arange(len(flux)) % 5 == 0, grid)
    assert_allclose(mine.flux, np.where(mine.mask, 0, 3.5))
    assert_array_equal(mine.ivar > 0, ~mine.mask)


@pytest.mark.parametrize("need", [0.1, 0.5, 0.9, 1.0])
def test_a_pixel_counts_as_observed_where_enough_of_it_is_covered(need):
    """Native pixels a tenth of a grid pixel wide: the share that is good is a multiple of 0.1."""
    grid = WavelengthGrid(5000.0, 5010.0, 11)
    wavelength = np.arange(4999.55, 5010.5, 0.1)
    for bad_per_pixel in range(11):
        bad = np.arange(len(wavelength)) % 10 < bad_per_pixel
        mine = rebin(wavelength, np.ones_like(wavelength), None, bad, grid, min_coverage=need)
        assert_array_equal(mine.mask, 10 - bad_per_pixel < 10 * need - 1e-6)


def test_an_unknown_ivar_comes_back_as_zero():
    wavelength = np.linspace(3990, 4110, 100)
    assert not rebin(wavelength, np.ones(100), None, np.zeros(100, bool), SMALL).ivar.any()


def test_leading_axes_and_their_order_are_kept():
    rng = np.random.default_rng(2)
    wavelength = np.linspace(3990, 4110, 100)
    flux, bad = rng.normal(size=(3, 4, 100)), rng.random((3, 4, 100)) < 0.3
    ivar = rng.uniform(1, 2, (3, 4, 100))
    together = rebin(wavelength, flux, ivar, bad, SMALL)
    order = [2, 0, 1]
    permuted = rebin(wavelength, flux[order], ivar[order], bad[order], SMALL)
    assert together.flux.shape == (3, 4, SMALL.size)
    for left, right, k in zip(together, permuted, range(3), strict=True):
        assert_array_equal(left[order], right)
        alone = rebin(wavelength, flux[1, 2], ivar[1, 2], bad[1, 2], SMALL)[k]
        assert_allclose(left[1, 2], alone, rtol=1e-12)


@given(st.integers(4, 90), st.integers(1, 12))
def test_missing_rows_are_the_same_as_masked_ones(first, count):
    """Pixels do not stretch into the gap that removed rows leave."""
    wavelength = np.linspace(3990, 4110, 110)
    flux, ivar = np.sin(wavelength), np.full(110, 2.0)
    gone = np.zeros(110, bool)
    gone[first : first + count] = True
    masked = rebin(wavelength, flux, ivar, gone, SMALL)
    removed = rebin(wavelength[~gone], flux[~gone], ivar[~gone], np.zeros((~gone).sum(), bool), SMALL)
    for left, right in zip(masked, removed, strict=True):
        assert_allclose(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shift", [0.1, 0.6, 1.5])
def test_overlapping_arms_in_one_spectrum_leave_no_gap(shift):
    """Where pixels of two arms alternate, they share the range between them, however close they lie."""
    blue, red = np.arange(3990.0, 4060.0, 2.0), np.arange(4040.0 + shift, 4110.0, 2.0)
    overlap = overlap_matrix(np.sort(np.concatenate([blue, red])), SMALL)
    assert_allclose(overlap.sum(1), np.diff(SMALL.edges))


def test_a_spectrum_elsewhere_covers_nothing():
    mine = rebin(np.linspace(8000, 9000, 50), np.ones(50), np.ones(50), np.zeros(50, bool), SMALL)
    assert mine.mask.all()
    assert not mine.flux.any()
    assert overlap_matrix(np.linspace(8000, 9000, 50), SMALL).nnz == 0


@given(grids())
def test_borders_enclose_the_centres_and_repeat_the_spacing(grid):
    assert grid.wavelength.shape == (grid.size,)
    assert_allclose(grid.wavelength[[0, -1]], [grid.start, grid.stop])
    assert ((grid.edges[:-1] < grid.wavelength) & (grid.wavelength < grid.edges[1:])).all()
    spacing = np.diff(np.log(grid.edges)) if grid.log else np.diff(grid.edges)
    assert_allclose(spacing, spacing[0], rtol=1e-6)
    assert WavelengthGrid(**grid.to_dict()) == grid


@pytest.mark.parametrize(
    "arguments", [(0, 100, 10), (-1, 100, 10), (200, 100, 10), (100, 100, 10), (100, 200, 1), (np.nan, 1, 5)]
)
def test_impossible_grids_are_refused(arguments):
    with pytest.raises(ValueError, match="a grid needs"):
        WavelengthGrid(*arguments)


@pytest.mark.parametrize(
    "wavelength",
    [[5000.0], [[1.0, 2.0]], [2.0, 1.0], [1.0, 1.0], [1.0, np.nan], [-1.0, 1.0], [1.0, np.inf]],
)
def test_impossible_wavelengths_are_refused(wavelength):
    with pytest.raises(ValueError, match="wavelengths must be"):
        overlap_matrix(wavelength, SMALL)


@settings(max_examples=30)
@given(st.floats(0.1, 1e3), seeds)
def test_the_unit_of_flux_scales_with_the_flux_and_ignores_masked_pixels(factor, seed):
    rng = np.random.default_rng(seed)
    flux, mask = rng.normal(size=(3, 50)), rng.random((3, 50)) < 0.5
    unit = mean_absolute_flux(flux, mask)
    assert_allclose(mean_absolute_flux(-factor * np.where(mask, 99, flux), mask), factor * unit)
    expected = [np.abs(row[~bad]).mean() for row, bad in zip(flux, mask, strict=True)]
    assert_allclose(unit, expected)
    assert mean_absolute_flux(flux, np.ones_like(mask)).tolist() == [0, 0, 0]


@given(seeds, st.integers(1, 9))
def test_the_median_is_that_of_the_pixels_that_were_seen(seed, size):
    """Of an odd number and of an even one; 0 of none."""
    rng = np.random.default_rng(seed)
    values, mask = rng.normal(size=(3, size)), rng.random((3, size)) < 0.4
    expected = np.ma.median(np.ma.array(values, mask=mask), axis=-1).filled(0.0)
    assert_allclose(_median(np.where(mask, np.nan, values), mask), expected)


@pytest.mark.parametrize("mean", [0.3, 0.45, 0.55, 0.9])
def test_the_unit_is_the_mean_unless_noise_is_all_there_is(mean):
    """Which is where the mean is less than half of mean |flux|, here 1."""
    flux = np.tile([mean + 1, mean - 1], 50)
    assert flux_unit(flux, np.zeros(100, bool)) == pytest.approx(mean if mean > 0.5 else 1.0)


def test_vacuum_wavelengths_are_the_published_ones():
    """Morton 2000, and the air and vacuum wavelengths of H-alpha, H-beta and the sodium D2 line (NIST)."""
    air, vacuum = [6562.80, 4861.33, 5889.95], [6564.61, 4862.68, 5891.58]
    assert_allclose(air_to_vacuum(air), vacuum, atol=0.02)
    assert np.shape(air_to_vacuum(5000.0)) == ()
