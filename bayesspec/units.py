"""Units of wavelengths and fluxes: spellings in files, and conversions."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from astropy import units as u
from numpy.typing import ArrayLike, NDArray

from .exceptions import ReadError

__all__ = ["FLUX_DENSITY", "parse_unit", "per_wavelength", "plain_values", "to_angstrom", "unit_of"]

FLUX_DENSITY = u.erg / u.s / u.cm**2 / u.AA
"""Flux densities per frequency or in photons are converted to this unit."""

_DENSITIES = (FLUX_DENSITY, FLUX_DENSITY * u.cm**2, FLUX_DENSITY / u.sr)
"""Flux, luminosity and surface brightness, per wavelength."""

_COUNTS = {u.ct, u.adu, u.electron, u.photon, u.DN}

_NO_UNIT = re.compile(r"|-+|none|unitless|relative( flux)?|arbitrary|normali[sz]ed", re.IGNORECASE)
_SPELLINGS = {
    r"(?i:\b[aå\u212b]ngstr[oö]ms?\b)|\b(?:A|Angs?)\b|[Åå\u212b]": "Angstrom",
    r"\bergs\b": "erg",
    r"\b(?:sec|seconds?)\b": "s",
    r"\bmicrons?\b": "um",
    r"\bcounts\b": "count",
    r"(?<![\d.])10 ?(?:\^|\*\*) ?\(?([+-]?\d+)\)? ?\*?(?!\*)": r"1e\1 ",
    r"\^": "**",
    r"^cgs$": FLUX_DENSITY.to_string(),
}
"""Spellings of units that astropy does not know, or takes for other units (A: ampere)."""


_INVERSE_SQUARE = re.compile(r"1 ?/ ?\((?P<one>.+)\) ?(?:\^|\*\*)2|\((?P<two>.+)\) ?(?:\^|\*\*) ?\(?-2\)?")
"""The unit of an ivar; astropy cannot parse numbers in brackets."""


def parse_unit(text: str | None) -> u.UnitBase | None:
    """The unit that a header states, or None if it states none.

    Raises:
        ReadError: if the unit is not understood.

    Example:
        >>> parse_unit("10^-17 ergs / (s cm^2 Ang)")
        Unit("1e-17 erg / (Angstrom s cm2)")
    """
    text = (text or "").strip()
    if _NO_UNIT.fullmatch(text):
        return None
    if inverse := _INVERSE_SQUARE.fullmatch(text):
        unit = parse_unit(inverse["one"] or inverse["two"])
        return None if unit is None else unit**-2
    spelled = text
    for pattern, unit in _SPELLINGS.items():
        spelled = re.sub(pattern, unit, spelled)
    try:
        return u.Unit(spelled)
    except (ValueError, TypeError):
        raise ReadError(f"the unit {text[:60]!r} is not understood") from None


def to_angstrom(array: ArrayLike | u.Quantity) -> NDArray[np.float64]:
    """Wavelengths in Angstrom, same shape, from wavelengths in any unit, frequencies or energies.

    NaN where a masked array is masked. Numbers without a unit are taken as Angstrom.

    Raises:
        UnitsError: if the unit is not one of a wavelength, frequency, energy or wavenumber.
        TypeError, ValueError: if the values are not numbers.

    Example:
        >>> to_angstrom([500, 600] * u.nm)
        array([5000., 6000.])
    """
    return plain_values(array, u.AA, u.spectral())


def unit_of(flux: ArrayLike | u.Quantity) -> u.UnitBase:
    """The unit of an array, or of the first of its rows."""
    if isinstance(flux, list | tuple) and flux:
        flux = flux[0]
    unit = getattr(flux, "unit", None)
    return u.dimensionless_unscaled if unit is None else unit


def plain_values(
    array: ArrayLike | u.Quantity, unit: u.UnitBase = u.dimensionless_unscaled, equivalencies: Any = ()
) -> NDArray[np.float64]:
    """Plain numbers in a unit, from quantities and table columns; NaN where a masked array is masked."""
    if isinstance(array, list | tuple) and any(
        hasattr(row, "unit") or hasattr(row, "filled") for row in array
    ):
        return np.stack([plain_values(row, unit, equivalencies) for row in array])
    own = getattr(array, "unit", None)
    plain: Any = array
    if hasattr(plain, "filled"):
        plain = plain.astype(float).filled(np.nan)
    values = np.asarray(plain)
    if values.dtype.kind not in "biufO":
        raise TypeError(f"expected real numbers, got {values.dtype}")
    values = values.astype(float)
    with np.errstate(all="ignore"):
        return values if own is None else own.to(unit, values, equivalencies)


def per_wavelength(
    unit: u.UnitBase, wavelength: NDArray[np.float64]
) -> tuple[u.UnitBase, NDArray[np.float64] | float]:
    """The unit per wavelength to which a flux is converted, and the factor in each pixel, () or (M,).

    Raises:
        UnitsError: if the unit is not a flux density, counts or dimensionless.
    """
    if isinstance(unit, u.UnitBase) and not isinstance(unit, u.UnrecognizedUnit):
        if any(unit.is_equivalent(kind) for kind in (u.dimensionless_unscaled, *_DENSITIES, u.AA**-1)):
            return unit, 1.0
        for density in _DENSITIES:
            if unit.is_equivalent(density, u.spectral_density(1 * u.AA)):
                with np.errstate(all="ignore"):
                    return density, unit.to(density, 1.0, u.spectral_density(wavelength * u.AA))
        if _COUNTS.intersection(unit.decompose().bases):
            return unit, 1.0
    raise u.UnitsError(f"the flux is in {unit}, which is neither a flux density nor counts")
