"""Laws of observations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.table import Column, MaskedColumn
from astropy.utils.masked import Masked
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from bayesspec.batch import ObservationBatch
from bayesspec.exceptions import ObservationError
from bayesspec.grid import WavelengthGrid
from bayesspec.observation import Observation, printable
from bayesspec.units import FLUX_DENSITY

GRID = WavelengthGrid(4000.0, 4500.0, 64)
NATIVE = np.linspace(3990, 4510, 400)
SDSS = u.Unit(1e-17 * u.erg / u.s / u.cm**2 / u.AA)
FIELDS = ("flux", "ivar", "mask", "unit_flux", "free_scale", "free_index")

seeds = st.integers(0, 2**32 - 1)


def star(seed=0, *, bad=0.0, low=3990, high=4510, **options):
    rng = np.random.default_rng(seed)
    wavelength = np.linspace(low, high, 400)
    flux = 5 + np.sin(wavelength / 20) + rng.normal(0, 0.1, 400)
    return Observation(wavelength, flux, rng.uniform(50, 150, 400), rng.random(400) < bad, **options)


def batch(*stars, **options):
    return ObservationBatch.from_observations(stars, GRID, dtype=torch.float64, **options)


def equal(left, right):
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in FIELDS)


# What is missing


@given(seeds)
def test_missing_is_masked_or_not_finite_or_without_positive_ivar(seed):
    rng = np.random.default_rng(seed)
    flux = rng.choice([1.0, -2.0, 0.0, np.nan, np.inf, -np.inf], 400)
    ivar = rng.choice([1.0, 4.0, 0.0, -1.0, np.nan, np.inf], 400)
    mask = rng.random(400) < 0.3
    (exposure,) = Observation(NATIVE, flux, ivar, mask).exposures
    missing = mask | ~np.isfinite(flux) | ~np.isfinite(ivar) | ~(ivar > 0)
    assert_array_equal(exposure.mask, missing)
    assert_array_equal(exposure.flux, np.where(missing, 0, flux))
    assert_array_equal(exposure.ivar, np.where(missing, 0, ivar))


@given(seeds, st.floats(-40, 40))
def test_what_cannot_be_a_measurement_is_missing_in_any_unit(seed, power):
    """A flux of 1e31 times the usual, or an error of 1e-10 or 1e20 of it: nothing overflows later."""
    rng, unit = np.random.default_rng(seed), 10.0**power
    kind = rng.permutation(np.repeat([0, 1, 2, 3], [250, 50, 50, 50]))
    flux = np.where(kind == 1, 1e31, 1.0) * rng.uniform(4, 6, 400) * unit
    ivar = np.choose(kind, [4.0, 4.0, 1e20, 1e-40]) / unit**2
    star = Observation(NATIVE, flux, ivar)
    assert_array_equal(star.exposures[0].mask, kind > 0)
    assert_array_equal(Observation(NATIVE, flux).exposures[0].mask, kind == 1)
    assert np.isfinite(star.snr)
    rebinned = star.rebin(GRID)
    assert all(np.isfinite(part).all() for part in rebinned)
    assert (rebinned.ivar[~rebinned.mask] > 0).all()


@pytest.mark.parametrize("value", [1e300, np.inf, 1e-300])
def test_an_ivar_that_is_a_code_is_missing_and_its_square_root_never_taken(value):
    ivar = np.where(np.arange(400) < 300, 4.0, value)
    assert_array_equal(Observation(NATIVE, np.ones(400), ivar).exposures[0].mask, np.arange(400) >= 300)


def test_a_hit_of_any_height_below_is_observed():
    """What is judged is the number, not the star: robust inference sees to cosmic rays."""
    flux = np.where(np.arange(400) == 7, 1e20, 1.0)
    assert not Observation(NATIVE, flux, np.full(400, 100.0)).exposures[0].mask.any()


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30, -1e30])
def test_what_missing_pixels_hold_changes_nothing(junk):
    bad = np.arange(400) % 7 == 0
    flux, ivar = np.cos(NATIVE / 30) + 2, np.full(400, 3.0)
    clean = Observation(NATIVE, flux, ivar, bad, name="a")
    dirty = Observation(NATIVE, np.where(bad, junk, flux), np.where(bad, 0, ivar), name="a")
    assert equal(batch(clean), batch(dirty))


def test_masked_arrays_mask():
    flux = np.ma.MaskedArray(np.ones(400), mask=np.arange(400) < 9)
    assert_array_equal(Observation(NATIVE, flux).exposures[0].mask, np.arange(400) < 9)


def test_quantities_and_rows_mask_too():
    flux, bad = np.ones(400), np.arange(400) < 9
    for masked in (
        Masked(flux * SDSS, mask=bad),
        [np.ma.MaskedArray(flux, mask=bad)],
        [Masked(flux * SDSS, mask=bad)],
    ):
        assert_array_equal(Observation(NATIVE, masked).exposures[0].mask, bad)
    assert_array_equal(
        Observation(NATIVE, flux, mask=np.ma.MaskedArray(0 * flux, bad)).exposures[0].mask, bad
    )


@given(st.sampled_from([1e-9, 1e-3, 0.03, 0.09, 0.2, 0.3, 0.45]), st.sampled_from([0.7, 1.0, 1.3]))
def test_arms_that_overlap_in_one_table_observe_their_overlap(offset, step):
    """Whatever their offset: no pixel is lost, the flux is the mean, and two arms see better than one."""
    blue, red = np.arange(3990, 4300, step), np.arange(3990 + 200 * step + offset, 4510, step)
    wavelength = np.concatenate([blue, red])
    flux = np.where(np.arange(wavelength.size) < blue.size, 4.0, 6.0)
    flux, ivar, mask = (
        part[0] for part in Observation(wavelength, flux, np.ones(wavelength.size)).rebin(GRID)
    )
    inside = (GRID.wavelength > red[0] + 10) & (GRID.wavelength < blue[-1] - 10)
    assert not mask.any()
    assert_allclose(flux[inside], 5, atol=0.2)
    assert np.median(ivar[inside]) > 1.6 * np.median(ivar[GRID.wavelength > 4310])


def test_rows_come_in_order_and_padding_goes():
    order = np.random.default_rng(3).permutation(400)
    shuffled = np.concatenate([NATIVE[order], [np.nan, 0.0, -5.0]])
    values = np.concatenate([np.arange(400.0)[order], [1.0, 2.0, 3.0]])
    (exposure,) = Observation(shuffled, values, values + 1).exposures
    assert_array_equal(exposure.wavelength, NATIVE)
    assert_array_equal(exposure.flux, np.arange(400.0))
    assert_array_equal(exposure.ivar, np.arange(400.0) + 1)


# Units


@given(st.floats(1e-3, 1e3))
def test_units_of_wavelength_and_ivar_do_not_matter(factor):
    flux, ivar = 1 + np.sin(NATIVE / 50) ** 2, np.full(400, 4.0)
    other = u.Unit(factor * SDSS)
    plain = Observation(NATIVE * u.AA, flux * SDSS, ivar / SDSS**2)
    converted = Observation(NATIVE / 10 * u.nm, flux * SDSS, (ivar / SDSS**2).to(other**-2))
    for left, right in zip(plain.exposures, converted.exposures, strict=True):
        assert_allclose(left.wavelength, right.wavelength, rtol=1e-12)
        assert_allclose(left.ivar, right.ivar, rtol=1e-9)
    assert plain.unit == converted.unit == SDSS


@given(st.floats(1e-3, 1e3))
def test_a_batch_gives_the_flux_back_in_its_own_unit(factor):
    """Model units times unit_flux is the rebinned flux, whatever its scale, and S/N stays."""
    one = star(bad=0.1)
    exposure = one.exposures[0]
    scaled = Observation(
        exposure.wavelength, factor * exposure.flux, exposure.ivar / factor**2, exposure.mask
    )
    first, second = batch(one), batch(scaled)
    assert_allclose(second.unit_flux, factor * first.unit_flux, rtol=1e-9)
    assert_allclose(second.flux, first.flux, atol=1e-9)
    assert_allclose(second.ivar, first.ivar, rtol=1e-9)
    assert_allclose(first.flux * first.unit_flux[..., None], one.rebin(GRID).flux[None], rtol=1e-12)


@pytest.mark.parametrize(
    "unit", ["Jy", "1e-20 erg / (s Hz cm2)", "photon / (s cm2 Angstrom)", "W / m2", "mJy / sr"]
)
@pytest.mark.parametrize("axis", ["Angstrom", "nm", "THz", "eV", "1 / cm"])
def test_any_flux_density_becomes_one_per_wavelength(unit, axis):
    """S/N is that of the input; the flux is what astropy converts it to."""
    unit, rng = u.Unit(unit), np.random.default_rng(1)
    wavelength, sigma = NATIVE * u.AA, rng.uniform(0.1, 0.2, 400)
    flux = rng.normal(3, sigma)
    plain = Observation(wavelength, flux * unit, sigma**-2)
    star = Observation(wavelength.to(axis, u.spectral()), flux * unit, sigma**-2 * unit**-2)
    assert star.unit.is_equivalent(FLUX_DENSITY) or star.unit.is_equivalent(FLUX_DENSITY / u.sr)
    for made in (plain, star):
        (exposure,) = made.exposures
        expected = (flux * unit).to_value(star.unit, u.spectral_density(wavelength))
        assert_allclose(exposure.wavelength, NATIVE, rtol=1e-12)
        assert_allclose(exposure.flux, expected, rtol=1e-9)
        assert_allclose(exposure.flux * np.sqrt(exposure.ivar), flux / sigma, rtol=1e-9)


@pytest.mark.parametrize(
    "unit", ["erg / (s cm2 Angstrom)", "W / (m2 um)", "ct / s", "adu", "electron", "", "%"]
)
def test_what_is_per_wavelength_or_counts_keeps_its_unit(unit):
    star = Observation(NATIVE, np.full(400, 2.0) * u.Unit(unit))
    assert star.unit == u.Unit(unit)
    assert_array_equal(star.exposures[0].flux, 2.0)


def test_each_row_counts_in_its_own_unit():
    flux = [np.full(400, 3.0) * SDSS, np.full(400, 3.0) * u.Unit(10 * SDSS)]
    assert_allclose([e.flux[0] for e in Observation(NATIVE, flux).exposures], [3, 30])


def test_wavelengths_may_be_logarithms():
    star = Observation(np.log10(NATIVE) * u.dex(u.AA), np.ones(400))
    assert_allclose(star.exposures[0].wavelength, NATIVE)


def test_table_columns_keep_their_unit():
    plain = Observation(NATIVE * u.AA, np.ones(400) * SDSS)
    columns = Observation(Column(NATIVE / 10, unit="nm"), MaskedColumn(np.ones(400), unit=SDSS))
    assert columns.unit == SDSS
    assert_allclose(columns.exposures[0].wavelength, plain.exposures[0].wavelength)


def test_exposures_of_mixed_units_come_in_the_first_ones():
    first = Observation(NATIVE, np.full(400, 3.0) * SDSS, np.full(400, 4.0), name="first")
    second = Observation(NATIVE, np.full(400, 3.0) * u.Unit(10 * SDSS), np.full(400, 4.0))
    both = Observation.from_exposures([first, second], meta={"extra": 1})
    assert (both.name, both.unit, both.meta) == ("first", SDSS, {"extra": 1})
    assert_allclose([e.flux[0] for e in both.exposures], [3, 30])
    assert_allclose([e.ivar[0] for e in both.exposures], [4, 0.04])
    ratios = [e.flux * np.sqrt(e.ivar) for e in both.exposures]
    assert_allclose(ratios[0], ratios[1])


# Scale


@pytest.mark.parametrize("low_high", [(3990, 4510), (3990, 4250), (4250, 4510), (4100, 4200)])
def test_the_unit_is_the_mean_absolute_flux_of_what_is_observed(low_high):
    one = batch(star(low=low_high[0], high=low_high[1]))
    observed = ~one.mask
    assert_allclose(one.flux[observed].abs().mean(), 1, rtol=1e-12)


@given(seeds, st.floats(1, 300), st.sampled_from([-1, 1]))
@settings(max_examples=30)
def test_no_pixel_moves_the_unit_by_more_than_a_bright_line(seed, power, sign):
    """A pixel of any height moves the unit as much as one of ten median deviations."""
    exposure = star(seed).exposures[0]
    flux = exposure.flux.copy()
    flux[200] = sign * 10**power
    clean, hit = (batch(Observation(exposure.wavelength, y, exposure.ivar)) for y in (exposure.flux, flux))
    spread = np.median(np.abs(exposure.flux - np.median(exposure.flux)))
    allowed = 10 * spread * 3 / clean.flux.shape[-1]  # a native pixel touches up to three of the grid
    assert abs(float(hit.unit_flux - clean.unit_flux)) < 1.5 * allowed
    assert hit.flux.isfinite().all()
    elsewhere = ~hit.mask & (hit.flux.abs() < 5)
    assert elsewhere.sum() >= clean.flux.numel() - 3


@pytest.mark.parametrize("ivar", [1e300, 1e-300])
def test_a_sigma_that_cannot_be_is_missing(ivar):
    exposure = star().exposures[0]
    states = exposure.ivar.copy()
    states[200] = ivar
    one = batch(Observation(exposure.wavelength, exposure.flux, states))
    assert one.ivar.isfinite().all()
    masked = np.arange(len(states)) == 200
    other = batch(Observation(exposure.wavelength, exposure.flux, exposure.ivar, masked))
    both = ~one.mask & ~other.mask
    fluxes = (part.flux[both] * part.unit_flux[0, 0] for part in (one, other))
    assert_allclose(*fluxes, rtol=0.02)


def test_noise_does_not_bias_the_unit():
    """At S/N 1 the unit is still that of the clean star; where there is no star it is mean |flux|."""
    rng = np.random.default_rng(0)
    wavelength = np.linspace(4000, 4500, 4000)
    noise = rng.normal(0, 5, (200, 4000))
    clean, noisy = (batch(Observation(wavelength, 5 + part)) for part in (0 * noise, noise))
    assert_allclose(noisy.unit_flux.mean(), clean.unit_flux.mean(), rtol=0.01)
    sky = batch(Observation(wavelength, noise[0]))
    assert_allclose(sky.flux.abs().mean(), 1, rtol=1e-12)


@given(seeds, st.floats(0, 0.9))
@settings(max_examples=30)
def test_the_scale_is_free_unless_it_is_known(seed, bad):
    block = np.arange(400) < bad * 400
    exposure = star(seed).exposures[0]
    data = (exposure.wavelength, exposure.flux, exposure.ivar, block)
    unknown, known = batch(Observation(*data)), batch(Observation(*data, scale=5.0))
    assert unknown.free_scale.all()
    assert not known.free_scale.any()
    assert_allclose(known.unit_flux, 5.0)
    assert_allclose(known.flux * known.unit_flux[..., None], unknown.flux * unknown.unit_flux[..., None])


@pytest.mark.parametrize("scales", [(3.0, 5.0), (3.0, None), (None, 3.0), (3.0, 3.0, 3.1)])
def test_exposures_with_different_scales_are_refused(scales):
    with pytest.raises(ObservationError, match=r"Vega.*scale"):
        Observation.from_exposures([star(scale=scale) for scale in scales], name="Vega")


@given(st.floats(1e-3, 1e3))
def test_one_scale_stated_in_other_units_is_one_scale(factor):
    flux = np.full(400, 3.0)
    first = Observation(NATIVE, flux * SDSS, scale=4.0)
    second = Observation(NATIVE, flux * u.Unit(factor * SDSS), scale=4.0 / factor)
    third = Observation(NATIVE, flux * SDSS, scale=(4.0 * SDSS).to(factor * SDSS))
    assert Observation.from_exposures([first, second, third]).scale == 4.0


# Names


@given(st.text(st.characters(), max_size=8))
def test_a_name_is_text_that_can_be_printed_and_written(name):
    made = star(name=name)
    for text in (made.name, repr(made), Observation.from_exposures([made], name=name).name):
        assert text.encode().decode() == text
        assert len(text.splitlines()) <= 1
    assert name != made.name or name == printable(name)


# Exposures


def test_exposures_on_the_same_pixels_are_those_given_one_by_one():
    rng = np.random.default_rng(5)
    flux, ivar, mask = rng.normal(5, 1, (3, 400)), rng.uniform(1, 2, (3, 400)), rng.random((3, 400)) < 0.1
    together = Observation(NATIVE, flux, ivar, mask)
    apart = Observation.from_exposures(
        Observation(NATIVE, *rows) for rows in zip(flux, ivar, mask, strict=True)
    )
    assert len(together) == len(apart) == 3
    assert equal(batch(together), batch(apart))


def test_the_snr_is_flux_over_sigma():
    assert Observation(NATIVE, np.full(400, 6.0), np.full(400, 0.25)).snr == 3.0
    assert Observation(NATIVE, np.full(400, 6.0)).snr == 0.0


# Errors


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ((NATIVE, np.ones(399)), "does not fit"),
        ((NATIVE, np.ones(400), np.ones(399)), "does not fit"),
        ((NATIVE, np.ones((2, 400)), np.ones(400)), "does not fit"),
        ((NATIVE, np.ones(400), None, np.zeros(7, bool)), "does not fit"),
        ((NATIVE, np.ones((2, 2, 400))), "does not fit"),
        ((np.tile(NATIVE, (2, 1)), np.ones(400)), "does not fit"),
        ((np.full(400, 5000.0), np.ones(400)), "none twice"),
        ((np.full(400, np.nan), np.ones(400)), "at least two"),
        ((NATIVE, np.full(400, np.nan)), "no pixel is observed"),
        ((NATIVE, np.ones(400), np.zeros(400)), "no pixel is observed"),
        ((NATIVE, np.ones(400), None, np.ones(400, bool)), "no pixel is observed"),
        ((NATIVE, [np.ones(400), np.ones(399)]), "rows of different length"),
        ((NATIVE, [np.ones(400) * SDSS, np.ones(399) * SDSS]), "rows of different length"),
        ((NATIVE, np.ones(400), [np.ones(400), np.ones(399)]), "rows of different length"),
        ((NATIVE, np.ones(400) * 1j), "real numbers"),
        ((NATIVE, ["one"] * 400), "real numbers"),
        ((NATIVE, np.ones(400), None, ["good"] * 400), "real numbers"),
        ((NATIVE, np.ones(400) * u.mag), "neither a flux density"),
        ((NATIVE, np.ones(400) * u.ABmag), "neither a flux density"),
        ((NATIVE, np.ones(400) * u.dB), "neither a flux density"),
        ((NATIVE, np.ones(400) * u.Jy / u.beam), "neither a flux density"),
        ((NATIVE, np.ones(400) * u.K), "neither a flux density"),
        ((np.ones(400), NATIVE * u.AA), "neither a flux density"),
        ((NATIVE, Column(np.ones(400), unit=u.Unit("flx", parse_strict="silent"))), "neither a flux density"),
        ((NATIVE * u.km / u.s, np.ones(400)), "not convertible"),
        ((NATIVE, np.ones(400) * u.Jy, np.ones(400) * SDSS**-2), "not convertible"),
        ((NATIVE, np.full(400, 1e120)), "another unit"),
        ((NATIVE, np.full(400, 1e-120)), "another unit"),
        ((NATIVE, np.ones(400), np.full(400, 1e300)), "no pixel is observed"),
        ((NATIVE * u.kg, np.ones(400)), "not convertible"),
        ((NATIVE, np.ones(400) * SDSS, np.ones(400) * u.s), "not convertible"),
    ],
)
def test_unusable_spectra_are_refused_by_name(arguments, cause):
    with pytest.raises(ObservationError, match=f"Vega.*{cause}"):
        Observation(*arguments, name="Vega")


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_is_a_positive_number(scale):
    with pytest.raises(ObservationError, match=r"Vega.*scale"):
        star(scale=scale, name="Vega")


def test_the_scale_of_a_flux_that_is_converted_needs_a_unit():
    with pytest.raises(ObservationError, match=r"Vega.*scale must be a Quantity"):
        Observation(NATIVE, np.ones(400) * u.Jy, scale=1.0, name="Vega")
    assert Observation(NATIVE, np.ones(400) * u.Jy, scale=2 * FLUX_DENSITY).scale == 2.0


def test_unusable_batches_are_refused_by_name():
    with pytest.raises(ObservationError, match=r"Vega.*between 4000 and 4500"):
        batch(star(low=8000, high=9000, name="Vega"))
    with pytest.raises(ObservationError, match=r"Vega.*zero everywhere"):
        batch(Observation(NATIVE, np.zeros(400), name="Vega"))
    with pytest.raises(ObservationError, match="at least one"):
        batch()
    with pytest.raises(ObservationError, match="at least one"):
        Observation.from_exposures([])
    with pytest.raises(ObservationError, match=r"Vega.*not convertible"):
        Observation.from_exposures([Observation(NATIVE, np.ones(400) * SDSS, name="Vega"), star()])
