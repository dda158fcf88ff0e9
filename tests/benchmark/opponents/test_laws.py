"""Laws that every opponent keeps."""

from __future__ import annotations

import numpy as np
import pytest

from bayesspec.benchmark.opponents.base import Baseline, fill_gaps
from bayesspec.exceptions import BundleError, ObservationError
from tests.benchmark.opponents.conftest import NAMES

# Matrix products round differently in batches of another size; networks work in single precision.
CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(params=NAMES)
def opponent(request, fitted) -> Baseline:
    assert fitted(request.param).name == request.param
    return fitted(request.param)


def test_finite_and_full(opponent, pairs):
    """A clean spectrum at every pixel, gaps included, whatever is missing."""
    clean = opponent.denoise(pairs.flux, pairs.ivar, pairs.mask)
    assert clean.shape == pairs.flux.shape
    assert clean.dtype == np.float64
    assert np.isfinite(clean).all()
    blind = opponent.denoise(pairs.flux, 0 * pairs.ivar, pairs.mask)
    assert np.isfinite(blind).all()


def test_nothing_under_the_mask_has_influence(opponent, pairs):
    """NaN, infinities and huge numbers under the mask are as good as zeros, in flux and in ivar."""
    clean = opponent.denoise(pairs.flux, pairs.ivar, pairs.mask)
    for junk in (np.nan, np.inf, -1e30, 1e30):
        spoiled = [np.where(pairs.mask, junk, array) for array in (pairs.flux, pairs.ivar)]
        np.testing.assert_array_equal(opponent.denoise(*spoiled, pairs.mask), clean)


def test_pixels_that_are_not_finite_are_masked(opponent, pairs):
    """NaN where the mask says nothing is the same as the mask."""
    mask = pairs.mask.copy()
    mask[:, 40:43] = True
    flux = np.where(mask, np.nan, pairs.flux)
    expected = opponent.denoise(pairs.flux, pairs.ivar, mask)
    np.testing.assert_array_equal(opponent.denoise(flux, pairs.ivar, pairs.mask), expected)


def test_rows_are_independent(opponent, pairs):
    """A permutation permutes, and a spectrum alone is what it is among others."""
    clean = opponent.denoise(pairs.flux, pairs.ivar, pairs.mask)
    order = np.random.default_rng(0).permutation(len(clean))
    permuted = opponent.denoise(pairs.flux[order], pairs.ivar[order], pairs.mask[order])
    np.testing.assert_allclose(permuted, clean[order], **CLOSE)
    alone = opponent.denoise(pairs.flux[3:4], pairs.ivar[3:4], pairs.mask[3:4])
    np.testing.assert_allclose(alone, clean[3:4], **CLOSE)


@pytest.mark.parametrize("factor", [1e-17, 0.3, 4e5])
def test_scales_with_the_flux(opponent, pairs, factor):
    """Any unit of flux: the result is in it."""
    flux, ivar = pairs.flux.astype(float), pairs.ivar.astype(float)
    clean = opponent.denoise(flux, ivar, pairs.mask)
    scaled = opponent.denoise(factor * flux, ivar / factor**2, pairs.mask) / factor
    np.testing.assert_allclose(scaled, clean, **CLOSE)


def test_nothing_observed_is_nothing(opponent, pairs):
    """A row without a pixel, or without flux, is 0 and disturbs no other; no row at all is no error."""
    flux, ivar, mask = pairs.flux[:3].copy(), pairs.ivar[:3], pairs.mask[:3].copy()
    mask[0], flux[1] = True, 0
    clean = opponent.denoise(flux, ivar, mask)
    assert not clean[:2].any()
    np.testing.assert_allclose(
        clean[2:], opponent.denoise(pairs.flux[2:3], ivar[2:], pairs.mask[2:3]), **CLOSE
    )
    assert opponent.denoise(flux[:0], ivar[:0], mask[:0]).shape == (0, flux.shape[1])


@pytest.mark.parametrize("left", [1, 2, 5])
def test_a_handful_of_pixels_is_enough(opponent, pairs, left):
    """Finite and of the size of the flux, however little is left of a spectrum."""
    mask = np.ones_like(pairs.mask)
    mask[:, 60 : 60 + left] = False
    clean = opponent.denoise(np.where(mask, 0, 1 + 0 * pairs.flux), pairs.ivar, mask)
    assert np.isfinite(clean).all()
    assert np.abs(clean).max() < 10


@pytest.mark.parametrize("name", [name for name in NAMES if name != "xseer"])  # not trained on these stars
def test_makes_spectra_better(fitted, name, pairs):
    """A clear majority of the noisy spectra is nearer to the truth afterwards."""
    opponent = fitted(name)
    complete = pairs.mask.mean(-1) < 0.1
    before = (np.where(pairs.mask, 0, pairs.flux - pairs.clean) ** 2).sum(-1) / (~pairs.mask).sum(-1)
    assert np.mean(pairs.losses(opponent)[complete] < before[complete]) > 0.8


def test_what_is_saved_is_what_was_fitted(opponent, pairs, tmp_path):
    """To the last bit, with its key; and no pickle among the files."""
    folder = opponent.save(tmp_path / "deep" / "fit", key="abc")
    loaded = type(opponent).load(folder)
    assert (loaded.name, loaded.key, Baseline.stored_key(folder)) == (opponent.name, "abc", "abc")
    np.testing.assert_array_equal(
        loaded.denoise(pairs.flux, pairs.ivar, pairs.mask),
        opponent.denoise(pairs.flux, pairs.ivar, pairs.mask),
    )
    assert sorted(path.name for path in folder.iterdir()) == ["fit.json", "fit.safetensors"]


def test_a_damaged_fit_is_one_clear_error(opponent, tmp_path):
    """Which folder, and that it is no fit."""
    with pytest.raises(BundleError, match="not a fitted"):
        type(opponent).load(tmp_path)
    folder = opponent.save(tmp_path / "fit")
    (folder / "fit.safetensors").write_bytes(b"junk")
    with pytest.raises(BundleError, match=r"fit: not a fitted"):
        type(opponent).load(folder)


def test_shapes_that_do_not_fit_are_refused(opponent, pairs):
    with pytest.raises(ObservationError, match="one shape"):
        opponent.denoise(pairs.flux, pairs.ivar[:2], pairs.mask)
    with pytest.raises(ObservationError, match="one shape"):
        opponent.denoise(pairs.flux[0], pairs.ivar[0], pairs.mask[0])
    if opponent.size is not None:
        with pytest.raises(ObservationError, match="fitted for 128 pixels, not 100"):
            opponent.denoise(pairs.flux[:, :100], pairs.ivar[:, :100], pairs.mask[:, :100])


def test_gaps_are_bridged_in_straight_lines():
    """A straight spectrum is its own interpolation; observed pixels stay; a row of nothing is left alone."""
    rng = np.random.default_rng(0)
    line = np.linspace(1, 2, 50) * np.ones((20, 1))
    mask = rng.random(line.shape) < 0.5
    mask[:, [0, -1]] = False
    mask[-1] = True
    filled = fill_gaps(np.where(mask, 0, line), mask)
    np.testing.assert_allclose(filled[:-1], line[:-1], rtol=1e-12)
    assert not filled[-1].any()
