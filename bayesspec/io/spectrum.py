"""Reader of specutils `Spectrum` objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from astropy import units as u
from numpy.typing import NDArray

from bayesspec.exceptions import ReadError
from bayesspec.observation import Observation

from .columns import to_vacuum

if TYPE_CHECKING:
    from specutils import Spectrum

__all__ = ["is_specutils", "read_spectrum"]


def is_specutils(source: Any) -> bool:
    """Whether it is a specutils spectrum; does not import specutils."""
    return hasattr(source, "spectral_axis") and hasattr(source, "flux")


def read_spectrum(spectrum: Spectrum, *, air: bool | None = None) -> Observation:
    """One spectrum, or several exposures on the same pixels if its flux has two axes.

    Units are those of `Observation`: any spectral unit, and flux densities per wavelength or per frequency.

    Raises:
        ReadError: if its axes or units are not those of a spectrum.
        ObservationError: if no pixel is observed.
    """
    axis = u.Quantity(spectrum.spectral_axis)
    if not axis.unit.is_equivalent(u.AA, u.spectral()):
        raise ReadError(f"the spectral axis is in {axis.unit}, not a wavelength, frequency or energy")

    place = spectrum.spectral_axis_index  # not always the last
    flux = _move(spectrum.flux, place)
    if flux.ndim > 2:
        raise ReadError(f"flux has {flux.ndim} axes, expected (M,) or exposures (E, M)")
    ivar = _ivar(spectrum.uncertainty, flux.unit, place)
    mask = None if spectrum.mask is None else _move(np.asarray(spectrum.mask, dtype=bool), place)

    return Observation(
        to_vacuum(axis, air),
        flux,
        ivar,
        mask,
        meta={
            "layout": "specutils spectrum",
            "exposures": ("spectrum",) * (len(flux) if flux.ndim == 2 else 1),
        },
    )


def _ivar(uncertainty: Any, unit: u.UnitBase, place: int) -> NDArray[np.float64] | None:
    """Inverse variance in 1 / unit**2; 0 where the uncertainty is not a positive number."""
    if uncertainty is None:
        return None
    power = {"std": 1, "var": 2, "ivar": -2}.get(uncertainty.uncertainty_type)
    if power is None:
        raise ReadError(f"uncertainty of type {uncertainty.uncertainty_type!r}; expected std, var or ivar")
    values = u.Quantity(uncertainty.array, uncertainty.unit or unit**power)
    values = _move(values.to_value(unit**power), place)
    known = np.isfinite(values) & (values > 0)
    return np.where(known, np.where(known, values, 1) ** (-2 / power), 0.0)


def _move(array: Any, place: int) -> Any:
    return np.moveaxis(array, place, -1)
