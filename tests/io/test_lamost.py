"""LAMOST files in their three layouts."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from numpy.testing import assert_allclose, assert_array_equal

from bayesspec import read
from bayesspec.exceptions import ReadError
from bayesspec.io.sdss import FLUX_UNIT
from tests.io.conftest import LAMOST_LOGLAM, lamost_dr1, lamost_image, lamost_rows, lamost_table, same

SIZE = len(LAMOST_LOGLAM)
LAYOUTS = [lamost_table, lamost_image, lamost_dr1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_spectrum_without_its_padding(layout):
    star = read(layout())
    (exposure,) = star.exposures
    rows = lamost_rows()
    missing = (rows[1] == 0) | (np.arange(SIZE) >= SIZE - 12)
    assert star.unit == u.dimensionless_unscaled
    assert_allclose(exposure.wavelength, 10**LAMOST_LOGLAM, rtol=2e-7)
    assert_array_equal(exposure.mask, missing)
    assert_array_equal(exposure.flux, np.where(missing, 0, rows[0]))
    assert_array_equal(exposure.ivar, np.where(missing, 0, rows[1]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_facts_come_from_the_header(layout):
    meta = read(layout()).meta
    expected = {"survey": "LAMOST", "class": "STAR", "subclass": "F9", "redshift": 8.7e-5, "obsid": 101008}
    assert {key: meta[key] for key in expected} == expected


def test_the_case_of_columns_does_not_matter():
    assert same(read(lamost_table()), read(lamost_table(case=str.lower)))


def test_zeros_inside_a_spectrum_are_no_padding():
    hdus = lamost_image()
    hdus[0].data[0, 100:103] = 0
    assert not read(hdus).exposures[0].mask[[100, 101, 102]].any()


@pytest.mark.parametrize(
    ("word", "lenient", "strict"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (2, 0, 1),
        (4, 1, 1),
        (8, 0, 1),
        (16, 0, 1),
        (32, 1, 1),
        (1 << 24, 1, 1),
        (64, 0, 0),
    ],
)
def test_the_and_mask_masks_by_the_policy(word, lenient, strict):
    hdus = lamost_image()
    hdus[0].data[3, 60] = word
    assert read(hdus).exposures[0].mask[60] == lenient
    assert read(hdus, strict=True).exposures[0].mask[60] == strict


def test_the_wavelength_of_a_bare_image_is_in_its_row():
    bare = fits.HDUList([fits.PrimaryHDU(lamost_rows())])
    assert same(read(bare), read(lamost_image()))


@pytest.mark.parametrize("layout", [lamost_image, lamost_dr1])
def test_an_image_without_wavelengths_is_refused(layout):
    hdus = layout()
    hdus[0].data[2] = 1.0
    hdus[0].header.pop("COEFF1", None)
    with pytest.raises(ReadError, match="COEFF0 and COEFF1"):
        read(hdus)


def test_an_old_sdss_image_is_not_taken_for_lamost():
    """Its rows are flux, flux minus continuum, sigma, mask."""
    hdus = lamost_dr1()
    hdus[0].header["TELESCOP"] = "SDSS 2.5-M"
    with pytest.raises(ReadError, match="no LAMOST image"):
        read(hdus)


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 6, 500])
@pytest.mark.parametrize("positive", [False, True])
def test_a_picture_is_not_taken_for_lamost(rows, positive):
    picture = np.random.default_rng(0).normal(size=(rows, 390))
    hdus = fits.HDUList([fits.PrimaryHDU(np.abs(picture) if positive else picture)])
    hdus[0].header.update({"COEFF0": LAMOST_LOGLAM[0], "COEFF1": 1e-3})
    with pytest.raises(ReadError, match="no LAMOST image"):
        read(hdus)


def test_the_unit_of_an_image_counts():
    hdus = lamost_image()
    hdus[0].header["BUNIT"] = "1E-17 erg/cm^2/s/Ang"
    assert read(hdus).unit == FLUX_UNIT
    hdus[0].header["BUNIT"] = "mag"
    with pytest.raises(ReadError, match="in mag"):
        read(hdus)
