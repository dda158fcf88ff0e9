"""Text files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable
from astropy.utils.masked import Masked
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from bayesspec import Observation, read
from bayesspec.exceptions import ReadError
from bayesspec.grid import air_to_vacuum
from tests.io.conftest import same

WAVELENGTH = np.arange(4000.0, 4100.0, 2.0)
FLUX = np.where(np.arange(50) == 3, np.nan, np.cos(WAVELENGTH))
SIGMA = np.where(np.arange(50) == 5, 0.0, 0.25)


def text(*columns, separator=" ", head=""):
    return head + "".join(
        separator.join(map(repr, map(float, row))) + "\n" for row in zip(*columns, strict=True)
    )


def from_text(content, **options):
    return read(io.StringIO(content), **options)


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", " ; ", "   "])
@pytest.mark.parametrize("head", ["", "# made up\n\n", "# wavelength flux sigma\n"])
def test_two_and_three_columns(separator, head):
    (two,) = from_text(text(WAVELENGTH, FLUX, separator=separator, head=head)).exposures
    star = from_text(text(WAVELENGTH, FLUX, SIGMA, separator=separator, head=head))
    (three,) = star.exposures
    assert star.unit == u.dimensionless_unscaled
    assert two.ivar is None
    assert_array_equal(two.wavelength, WAVELENGTH)
    assert_array_equal(two.flux, np.nan_to_num(FLUX))
    assert_array_equal(two.mask, np.isnan(FLUX))
    assert_array_equal(three.mask, np.isnan(FLUX) | (SIGMA == 0))
    assert_allclose(three.ivar, np.where(three.mask, 0, 16))


@pytest.mark.parametrize(
    ("head", "columns"),
    [
        ("Wavelength,Flux,Sigma\n", (WAVELENGTH, FLUX, SIGMA)),
        ("wave,FLUX,Error\n", (WAVELENGTH, FLUX, SIGMA)),
        ("# flux,flux_err,lambda\n", (FLUX, SIGMA, WAVELENGTH)),
        ("loglam,flux,sigma\n", (np.log10(WAVELENGTH), FLUX, SIGMA)),
        ("wavelength,flux,ivar\n", (WAVELENGTH, FLUX, np.where(SIGMA > 0, 16.0, 0))),
        ("wavelength,flux,best_fit,sigma,mask\n", (WAVELENGTH, FLUX, FLUX, SIGMA, 0 * FLUX)),
    ],
)
def test_names_say_which_column_is_which(head, columns):
    named = from_text(text(*columns, separator=",", head=head)).exposures[0]
    plain = from_text(text(WAVELENGTH, FLUX, SIGMA)).exposures[0]
    for field in ("wavelength", "flux", "ivar"):
        assert_allclose(getattr(named, field), getattr(plain, field), rtol=1e-12)


# Sigma or ivar

CLEAR = [
    '"wavelength","flux","{}"\n',
    "'Wavelength';'Flux';'{}'\n",
    "# wavelength[A] flux[cgs] {}\n",
    "# wavelength (A) flux {}\n",
    "# Wavelength (Å), Flux (erg / s / cm2 / A), {}\n",
    "angstrom flux {}\n",
    "# wavelength flux {}\n# observed by me\n",
    "# observed by me\n# wavelength flux {}\n# S/N of 20\n",
    "# wavelength flux {}\nangstrom cgs cgs\n",
    "# wavelength flux {}\n# Angstrom - -\n",
    "# {1} made up\n# lambda\tflux\t{0}\n",
]
THIRD = {"sigma": 0.05, "Error": 0.05, "ivar": 400.0, "INV_VAR": 400.0, "variance": 0.0025}


@pytest.mark.parametrize("head", CLEAR)
@pytest.mark.parametrize("name", THIRD)
def test_the_third_column_is_what_its_name_says(head, name):
    """However the line of names is written, and whatever stands around it: S/N is 20."""
    content = text(WAVELENGTH, 1 + 0 * FLUX, 0 * FLUX + THIRD[name], head=head.format(name, "ivar weighted"))
    content = content.replace("nan", "1.0")
    assert_allclose(from_text(content).snr, 20)


@pytest.mark.parametrize(
    "head",
    [
        "# Lambda F_lambda ivar\n",
        "# lam f w\n",
        "lam f w\n",
        "x y z\n",
        "% wavelength flux ivar\n",
        "# wavelength flux ivar chi2\n",
        "# 1 wavelength\n# 2 flux\n# 3 ivar\n",
        "# the third column is the inverse variance\n",
        "# columns: wavelength, flux, weights\n",
        "# wavelength_nm flux sigma\n",
        "# wavelength flux[parsec of gold] sigma\n",
        "# wavelength flux sigma\n# wavelength in nm and flux in Jy\n",
        "# flux in units of mJy\n",
    ],
)
def test_names_and_units_that_are_not_understood_are_an_error(head):
    with pytest.raises(ReadError, match=r"StringIO: .*not understood"):
        from_text(text(WAVELENGTH, FLUX, SIGMA, head=head))


@pytest.mark.parametrize("head", ["frequency flux\n", "# wavelength mag\n", "# wavelength, AB mag\n"])
def test_names_of_something_else_are_an_error_in_two_columns_too(head):
    with pytest.raises(ReadError, match="not understood"):
        from_text(text(WAVELENGTH, FLUX, head=head))


@pytest.mark.parametrize("head", ["# V mag 12.1\n", "# made by me\n", "# third column: 1-sigma error\n"])
def test_a_remark_is_no_line_of_names(head):
    assert same(from_text(text(WAVELENGTH, FLUX, SIGMA, head=head)), from_text(text(WAVELENGTH, FLUX, SIGMA)))


# Units

UNITS = Observation(WAVELENGTH * u.AA, FLUX * u.mJy, np.where(SIGMA > 0, 16.0, 0.0) * u.mJy**-2)


@pytest.mark.parametrize(
    "head",
    [
        "# wavelength[nm] flux[mJy] sigma[mJy]\n",
        "wavelength (nm), flux (mJy), sigma (mJy)\n",
        "# Wavelength in nm, Flux in mJy, Error in mJy\n",
        "# wavelength flux sigma\n# nm mJy mJy\n",
    ],
)
def test_units_that_are_stated_count(head):
    star = from_text(text(WAVELENGTH / 10, FLUX, SIGMA, head=head))
    assert star.unit == UNITS.unit
    for field in ("wavelength", "flux", "ivar"):
        left, right = (getattr(s.exposures[0], field) for s in (star, UNITS))
        assert_allclose(left, right, rtol=1e-9)


def test_units_and_masks_of_ecsv_count():
    flux = Masked(FLUX * u.mJy, mask=np.arange(50) == 9)
    buffer = io.StringIO()
    QTable({"wavelength": WAVELENGTH / 10 * u.nm, "flux": flux, "err": SIGMA * u.mJy}).write(
        buffer, format="ascii.ecsv"
    )
    exposure, plain = from_text(buffer.getvalue()).exposures[0], UNITS.exposures[0]
    assert_array_equal(exposure.mask, plain.mask | (np.arange(50) == 9))
    assert_allclose(exposure.flux, np.where(exposure.mask, 0, plain.flux), rtol=1e-9)


def test_a_third_column_that_is_named_otherwise_is_no_sigma():
    head = "Wavelength,Flux,BestFit\n"
    assert from_text(text(WAVELENGTH, FLUX, FLUX, separator=",", head=head)).exposures[0].ivar is None


def test_a_named_mask_masks():
    mask = (np.arange(50) > 40).astype(float)
    star = from_text(text(WAVELENGTH, FLUX, mask, head="# wavelength flux mask\n"))
    assert_array_equal(star.exposures[0].mask, np.isnan(FLUX) | (mask > 0))


def test_booleans_and_bits_mask():
    rows = "".join(f"{4000 + n},1,{n % 2 == 1},{n // 2 << 24}\n" for n in range(4))
    star = from_text("wavelength,flux,mask,and_mask\n" + rows)
    assert_array_equal(star.exposures[0].mask, [False, True, True, True])


def test_blank_cells_are_missing():
    content = "4000,1,1\n4001,,1\n4002,--,1\n4003,null,1\n4004,2,\n4005,3,1\n"
    assert_array_equal(from_text(content).exposures[0].mask, [False, True, True, True, True, False])


@given(st.permutations(range(50)))
def test_the_order_of_the_lines_does_not_matter(order):
    lines = text(WAVELENGTH, FLUX, SIGMA).splitlines()
    assert same(from_text("\n".join(lines)), from_text("\n".join(lines[k] for k in order)))


def test_wavelengths_count_as_vacuum_unless_air_is_said():
    content = text(WAVELENGTH, FLUX)
    assert_array_equal(from_text(content).exposures[0].wavelength, WAVELENGTH)
    assert_allclose(from_text(content, air=True).exposures[0].wavelength, air_to_vacuum(WAVELENGTH))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("# only a comment\n", "no rows of numbers"),
        ("once upon a time\n", "no rows of numbers"),
        ("once upon a time\n4000 1\n4001 1\n", "not understood"),
        ("4000 oops\n4001 1\n", "not understood"),
        ("# " + "a " * 100_000 + "\n4000 1\n4001 1\n", "line 1 has 200003 characters"),
        ("#\n" * 1_000_001, "more than 1000000 lines"),
        ("a b\nc d\n", "line 2 is not a row of numbers"),
        ("4000 1\n4001 oops\n", "line 2 is not a row of numbers"),
        ("4000 1\n4001 1 1\n", "line 2 has 3 columns"),
        ("4000\n4001\n", "1 columns without names"),
        ("4000 1 1 1\n4001 1 1 1\n", "4 columns without names"),
        ("4000 1\n4000 1\n", "none twice"),
        ("4000 nan\n4001 nan\n", "no pixel is observed"),
        ("4000 1 0\n4001 1 -1\n", "no pixel is observed"),
    ],
)
def test_what_is_no_spectrum_is_an_error_with_the_line(content, cause, tmp_path):
    path = tmp_path / "bad.dat"
    path.write_text(content)
    with pytest.raises(ReadError, match=f"bad.dat.*{cause}"):
        read(path)
