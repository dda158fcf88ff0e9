"""Every real file at hand, in every way of reading it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from astropy.io import fits
from numpy.testing import assert_allclose

from bayesspec import read
from bayesspec.exceptions import ReadError
from bayesspec.grid import WavelengthGrid
from tests.io.conftest import same, shared_params, to_bytes

GRID = WavelengthGrid()
FULL = ("raw/sdss-full/*", "boss_epochs/*")
EVERY = ("raw/*/*", "boss_epochs/*", "sky_fibres/*", "lamost_repeats/*")


def check(star):
    """What holds for any real spectrum of these surveys."""
    for exposure in star.exposures:
        assert (np.diff(exposure.wavelength) > 0).all()
        assert 3500 < exposure.wavelength[0] < 6200 < exposure.wavelength[-1] < 10500
        assert np.isfinite(exposure.flux).all()
        assert (~exposure.mask).mean() > 0.7
        assert exposure.ivar is None or np.array_equal(exposure.ivar > 0, ~exposure.mask)
    assert not star.rebin(GRID).mask.all(-1).any()


@pytest.mark.parametrize("path", shared_params(*EVERY))
def test_every_file_is_read(path):
    star = read(path)
    check(star)
    assert len(star) == 1
    assert star.meta["file"] == str(path)


@pytest.mark.parametrize("path", shared_params("raw/*/*", "sky_fibres/*"))
def test_strict_masks_more_but_leaves_a_spectrum(path):
    """A fibre with a bad flat is the exception: LOWFLAT is set in all its pixels."""
    lenient = read(path)
    if "BADFLAT" in lenient.meta.get("flags", ()):
        with pytest.raises(ReadError, match="no pixel is observed"):
            read(path, strict=True)
        return
    mask = read(path, strict=True).exposures[0].mask
    assert (mask >= lenient.exposures[0].mask).all()
    assert (~mask).mean() > 0.6


@pytest.mark.parametrize("path", shared_params(*FULL))
def test_every_exposure_of_full_files_is_read(path):
    """The exposures are in the coadd: their mean by ivar is the coadd, well within its errors."""
    coadd, star = read(path), read(path, exposures="individual")
    check(star)
    assert len(star) == len(star.meta["exposures"])
    assert all("+" in name for name in star.meta["exposures"])
    assert not star.meta["left_out"]

    one, all_of_them = coadd.rebin(GRID), star.rebin(GRID)
    total = all_of_them.ivar.sum(0)
    both = (total > 0) & ~one.mask[0]
    mean = (all_of_them.ivar * all_of_them.flux).sum(0)[both] / total[both]
    apart = (mean - one.flux[0, both]) * np.sqrt(one.ivar[0, both])
    assert np.median(np.abs(apart)) < 0.5
    assert np.mean(np.abs(apart) > 3) < 0.01
    overlap = (GRID.wavelength[both] > 5900) & (GRID.wavelength[both] < 6250)
    gain = total[both] / one.ivar[0, both]
    assert_allclose(np.median(gain[overlap]), np.median(gain[~overlap]), rtol=0.25)


@pytest.mark.slow
def test_the_epochs_hold_267_exposures(shared_data):
    paths = sorted((shared_data / "boss_epochs").glob("*"))
    assert sum(len(read(path, exposures="individual")) for path in paths) == 267


@pytest.mark.parametrize("path", shared_params("raw/*/*"))
def test_path_file_and_hdus_agree(path):
    star = read(path)
    with path.open("rb") as file:
        assert same(star, read(file))
    if path.suffix == ".fits":
        with fits.open(path) as hdus:
            assert same(star, read(hdus))


@pytest.mark.parametrize("path", shared_params("raw/sdss-full/*"))
def test_exposures_are_found_without_headers(path):
    """Names of HDUs gone, columns in upper case, headers bare: the same exposures."""
    with fits.open(path) as hdus:
        bare = [fits.PrimaryHDU()]
        for hdu in hdus[1:]:
            columns = [fits.Column(c.name.upper(), c.format, array=hdu.data[c.name]) for c in hdu.columns]
            bare.append(fits.BinTableHDU.from_columns(columns))
    buffer = io.BytesIO(to_bytes(fits.HDUList(bare)))
    star = read(path, exposures="individual")
    found = read(buffer, exposures="individual")
    assert same(star, found)
    assert found.meta["class"] == star.meta["class"]


@pytest.mark.parametrize("path", shared_params("sky_fibres/*"))
def test_sky_fibres_hold_noise_as_stated(path):
    """Nothing but noise: flux / sigma is of order one."""
    (exposure,) = read(path).exposures
    ratio = (exposure.flux * np.sqrt(exposure.ivar))[~exposure.mask]
    assert 0.5 < 1.4826 * np.median(np.abs(ratio)) < 3


@pytest.mark.parametrize("path", shared_params("raw/lamost-dr1/*"))
def test_the_old_layout_has_its_lines_where_they_belong(path):
    """H alpha of A, F and G stars is at 6564.6 Angstrom; the survey blanks telluric oxygen, 7594 to 7621."""
    star = read(path)
    (exposure,) = star.exposures
    away = abs(exposure.wavelength - 6564.6)
    if star.meta["subclass"][0] in "AFG":
        core, beside = (
            exposure.flux[part & ~exposure.mask] for part in (away < 4, (away > 40) & (away < 80))
        )
        assert core.mean() < 0.9 * beside.mean()
    assert exposure.mask[(exposure.wavelength > 7594) & (exposure.wavelength < 7621)].all()
