"""Text files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from astropy import units as u
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from bayesspec import read
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


def test_a_third_column_that_is_named_otherwise_is_no_sigma():
    head = "Wavelength,Flux,BestFit\n"
    assert from_text(text(WAVELENGTH, FLUX, FLUX, separator=",", head=head)).exposures[0].ivar is None


def test_a_named_mask_masks():
    mask = (np.arange(50) > 40).astype(float)
    star = from_text(text(WAVELENGTH, FLUX, mask, head="# wavelength flux mask\n"))
    assert_array_equal(star.exposures[0].mask, np.isnan(FLUX) | (mask > 0))


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
        ("# only a comment\n", "no line of numbers"),
        ("once upon a time\n", "no line of numbers"),
        ("a b\nc d\n", "line 2 is not made of numbers"),
        ("4000 1\n4001 oops\n", "line 2 is not made of numbers"),
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
