"""Spectra of specutils."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import InverseVariance, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from numpy.testing import assert_allclose, assert_array_equal
from specutils import Spectrum

from bayesspec import Observation, read
from bayesspec.exceptions import ReadError

AXIS = np.linspace(4000, 9000, 300)
FLUX = 3 + np.sin(AXIS / 100)
SIGMA = np.linspace(0.1, 0.2, 300)
UNIT = u.Unit(1e-17 * u.erg / u.s / u.cm**2 / u.AA)


def spectrum(**changes):
    options = {"spectral_axis": AXIS * u.AA, "flux": FLUX * UNIT, "uncertainty": StdDevUncertainty(SIGMA)}
    return Spectrum(**{**options, **changes})


def agree(left, right):
    for a, b in zip(left.exposures, right.exposures, strict=True):
        assert_allclose(a.wavelength, b.wavelength, rtol=1e-12)
        assert_allclose(a.flux, b.flux, rtol=1e-10)
        assert_allclose(a.ivar, b.ivar, rtol=1e-10)
        assert_array_equal(a.mask, b.mask)


EXPECTED = Observation(AXIS, FLUX * UNIT, SIGMA**-2)


@pytest.mark.parametrize(
    "uncertainty",
    [
        StdDevUncertainty(SIGMA),
        VarianceUncertainty(SIGMA**2),
        InverseVariance(SIGMA**-2),
        StdDevUncertainty(SIGMA * 10, unit=UNIT / 10),
    ],
)
def test_any_kind_of_uncertainty_becomes_the_ivar(uncertainty):
    star = read(spectrum(uncertainty=uncertainty))
    assert star.unit == UNIT
    agree(star, EXPECTED)


@pytest.mark.parametrize("unit", [u.nm, u.micron, u.GHz, u.eV])
def test_any_spectral_unit_becomes_a_wavelength(unit):
    axis = (AXIS * u.AA).to(unit, u.spectral())
    agree(read(spectrum(spectral_axis=axis)), EXPECTED)


def test_flux_per_frequency_becomes_flux_per_wavelength():
    density = u.spectral_density(AXIS * u.AA)
    flux = (FLUX * UNIT).to(u.Jy, density)
    sigma = (SIGMA * UNIT).to(u.Jy, density)
    star = read(spectrum(flux=flux, uncertainty=StdDevUncertainty(sigma)))
    factor = star.unit.to(UNIT)
    assert_allclose(star.exposures[0].flux * factor, FLUX, rtol=1e-9)
    assert_allclose(star.exposures[0].ivar / factor**2, SIGMA**-2, rtol=1e-9)


def test_masked_pixels_and_useless_uncertainties_are_missing():
    mask = np.arange(300) % 10 == 0
    sigma = np.where(np.arange(300) % 10 == 1, 0, np.where(np.arange(300) % 10 == 2, np.nan, SIGMA))
    star = read(spectrum(mask=mask, uncertainty=StdDevUncertainty(sigma)))
    assert_array_equal(star.exposures[0].mask, np.arange(300) % 10 < 3)


def test_no_uncertainty_is_an_unknown_ivar():
    assert read(spectrum(uncertainty=None)).exposures[0].ivar is None


def test_two_axes_of_flux_are_exposures():
    several = spectrum(
        flux=np.tile(FLUX, (3, 1)) * UNIT, uncertainty=StdDevUncertainty(np.tile(SIGMA, (3, 1)))
    )
    star = read(several, exposures="individual")
    assert len(star) == len(star.meta["exposures"]) == 3
    agree(star, Observation.from_exposures([EXPECTED] * 3))


def test_the_name_and_meta():
    star = read(spectrum(), name="Vega")
    assert star.name == "Vega"
    assert star.meta["file"] is None
    assert read(spectrum()).name == Spectrum.__name__


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"spectral_axis": AXIS * u.km / u.s}, "not a wavelength, frequency or energy"),
        ({"uncertainty": UnknownUncertainty(SIGMA)}, "uncertainty of type"),
        ({"flux": np.ones((2, 2, 300)) * UNIT, "uncertainty": None}, "3 axes"),
        ({"flux": np.full(300, np.nan) * UNIT}, "no pixel is observed"),
        ({"flux": FLUX * u.mag, "uncertainty": None}, "in mag"),
    ],
)
def test_other_spectra_are_refused(changes, cause):
    with pytest.raises(ReadError, match=f"{Spectrum.__name__}.*{cause}"):
        read(spectrum(**changes))
