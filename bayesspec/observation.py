"""One star as it was observed: its exposures, each on its own pixels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from astropy import units as u
from numpy.typing import ArrayLike, NDArray

from .exceptions import ObservationError
from .grid import Rebinned, WavelengthGrid, flux_unit, rebin
from .units import per_wavelength, plain_values, to_angstrom, unit_of

__all__ = ["Exposure", "Gridded", "Observation", "printable"]

FULL_COVERAGE = 0.98
"""Fraction of the grid above which a spectrum counts as complete."""

FLUX_RANGE = 1e-37, 1e38
"""Range of mean |flux| that single precision can represent."""

LARGEST = 1e12
"""Limit on flux and sigma in model units; single precision can represent the squares."""

_HIGHEST = 1e30
"""Flux in units of the median |flux| above which a pixel is bad; squares of larger values may overflow."""

_BEST_SNR, _WORST_SNR = 1e8, 1e-18
"""Limits on median |flux| / sigma, beyond any measurement and beyond single precision."""


@dataclass(frozen=True, eq=False)
class Exposure:
    """One exposure on its own pixels: wavelength (vacuum Angstrom), flux, ivar or None, mask (True = bad)."""

    wavelength: NDArray[np.float64]
    flux: NDArray[np.float64]
    ivar: NDArray[np.float64] | None
    mask: NDArray[np.bool_]


class Gridded(NamedTuple):
    """A star as input of a model: exposures on the model's grid, each in units of about its mean |flux|."""

    name: str
    unit: u.UnitBase
    """Unit of the flux."""
    grid: WavelengthGrid
    flux: NDArray[np.float64]
    """(E, D), 0 where masked."""
    ivar: NDArray[np.float64]
    """(E, D), 0 where masked or unknown."""
    mask: NDArray[np.bool_]
    """(E, D), True = bad."""
    unit_flux: NDArray[np.float64]
    """The flux that corresponds to 1, (E,)."""
    free_scale: NDArray[np.bool_]
    """True where the scale is to be inferred, (E,)."""
    meta: Mapping[str, Any] = {}
    """Other information about the star, such as its coordinates and survey identifiers."""


class Observation:
    """One star as it was observed: a spectrum, or several exposures with their own pixels and coverage.

    A pixel is missing if its mask is True, its flux is not finite, or its ivar is not positive. So is one
    whose values cannot be measurements: a flux above 1e30 times the median |flux|, or an ivar that would give
    the median |flux| an S/N above 1e8 or below 1e-18.

    Arguments:
        wavelength: (M,), vacuum, heliocentric; Angstrom, or a Quantity of wavelength, frequency or energy.
        flux: (M,), or (E, M) for E exposures on the same pixels; per Angstrom, or a Quantity. Counts and
            fluxes without unit are taken as per Angstrom; flux densities per frequency (Jy) or in photons are
            converted to erg / (s cm2 Angstrom); magnitudes are refused.
        ivar: Inverse variance in the inverse square of the flux's unit, same shape, or None if unknown.
        mask: True = bad, same shape.
        name: What to call the star in tables, figures and errors.
        scale: Mean |flux| of the noiseless star over the model's grid, if it is known (as in the paper's test
            sets). Otherwise it is inferred (see `ObservationBatch`). A number in the flux's unit, or a
            Quantity; if the flux is converted, a Quantity per wavelength.
        meta: Other information, e.g. the file it came from.

    Raises:
        ObservationError: if these are not numbers, shapes or units do not fit, wavelengths repeat, no pixel
            is observed, or the median |flux| is outside 1e-100 to 1e100.

    Example:
        >>> import numpy as np
        >>> wavelength = np.linspace(3900, 9100, 3000)
        >>> star = Observation(wavelength, np.ones(3000), ivar=np.full(3000, 25.0), name="flat")
        >>> star
        <Observation 'flat': 1 exposure, 3900-9100 Angstrom, 100% observed, S/N 5.0>
    """

    def __init__(
        self,
        wavelength: ArrayLike | u.Quantity,
        flux: ArrayLike | u.Quantity,
        ivar: ArrayLike | u.Quantity | None = None,
        mask: ArrayLike | None = None,
        *,
        name: str = "",
        scale: float | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        name = printable(str(name or ""))
        label = name or "spectrum"
        unit = unit_of(flux)
        try:
            wavelength = to_angstrom(wavelength)
            density, factor = per_wavelength(unit, wavelength)
            flux = np.atleast_2d(plain_values(flux, unit))
            ivar = None if ivar is None else np.atleast_2d(plain_values(ivar, unit**-2))
            mask = np.zeros(flux.shape, bool) if mask is None else np.atleast_2d(plain_values(mask) != 0)
            if scale is not None and density != unit and getattr(scale, "unit", None) is None:
                raise u.UnitsError(f"with a flux in {unit}, the scale must be a Quantity per wavelength")
            scale = None if scale is None else float(plain_values(scale, density))
        except (u.UnitsError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            # RuntimeError is torch's, for tensors with gradients.
            raise ObservationError(f"{label}: {_one_line(error)}") from error
        for what, array in (("wavelength", wavelength[None]), ("ivar", ivar), ("mask", mask)):
            if array is not None and (array.ndim != 2 or array.shape[-1] != flux.shape[-1]):
                raise ObservationError(f"{label}: {what} {array.shape} does not fit flux {flux.shape}")
            if array is not None and what != "wavelength" and array.shape != flux.shape:
                raise ObservationError(f"{label}: {what} {array.shape} does not fit flux {flux.shape}")
        if scale is not None and not (np.isfinite(scale) and scale > 0):
            raise ObservationError(f"{label}: scale must be a positive number, got {scale}")

        # Drop rows without a wavelength (padding in some files), and sort the rest.
        with np.errstate(all="ignore"):
            flux = flux * factor
            ivar = None if ivar is None else ivar / factor / factor
        keep = np.flatnonzero((wavelength > 0) & (wavelength < _HIGHEST))
        keep = keep[np.argsort(wavelength[keep], kind="stable")]
        wavelength = wavelength[keep]
        if keep.size < 2 or (np.diff(wavelength) <= 0).any():
            raise ObservationError(
                f"{label}: at least two wavelengths are needed, and none twice (give arms or exposures on "
                "the same pixels as rows of flux, or to Observation.from_exposures)"
            )

        self.exposures: tuple[Exposure, ...] = tuple(
            _exposure(wavelength, row[keep], None if ivar is None else ivar[e][keep], mask[e][keep], label)
            for e, row in enumerate(flux)
        )
        self.unit: u.UnitBase = density
        self.name = name
        self.scale = scale
        self.meta: dict[str, Any] = dict(meta or {})
        if all(exposure.mask.all() for exposure in self.exposures):
            raise ObservationError(
                f"{label}: no pixel is observed (all masked, not finite, or ivar not positive or absurd)"
            )

    @classmethod
    def from_exposures(
        cls,
        observations: Iterable[Observation],
        *,
        name: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Observation:
        """Combine exposures of one star, each with its own pixels, coverage and noise.

        Raises:
            ObservationError: if there is none, their flux units cannot be converted into each other, or they
                state different scales, or only some state one.
        """
        parts = list(observations) if isinstance(observations, Iterable) else [observations]
        if not parts or not all(isinstance(part, Observation) for part in parts):
            raise ObservationError("from_exposures needs at least one observation, and nothing else")
        first = parts[0]
        star = cls.__new__(cls)
        star.name = first.name if name is None else printable(str(name))
        label = star.name or "exposures"
        star.unit, star.scale = first.unit, first.scale
        star.meta = {**first.meta, **(meta or {})}
        exposures: list[Exposure] = []
        for part in parts:
            try:
                factor = float(part.unit.to(first.unit))
            except u.UnitConversionError as error:
                raise ObservationError(f"{label}: {error}") from None
            scale = None if part.scale is None else part.scale * factor
            if scale != star.scale and (
                scale is None or star.scale is None or abs(scale / star.scale - 1) > 1e-6
            ):
                raise ObservationError(
                    f"{label}: one exposure has the scale {star.scale}, another {scale}; state the same for "
                    "all, or none"
                )
            exposures += [_rescale(exposure, factor, label) for exposure in part.exposures]
        star.exposures = tuple(exposures)
        return star

    def rebin(self, grid: WavelengthGrid) -> Rebinned:
        """All exposures on the model's grid: flux, ivar and mask, each (E, D)."""
        rows = [rebin(e.wavelength, e.flux, e.ivar, e.mask, grid) for e in self.exposures]
        return Rebinned(*(np.stack(column) for column in zip(*rows, strict=True)))

    def on_grid(self, grid: WavelengthGrid) -> Gridded:
        """The star as input of a model on this grid: rebinned, in model units.

        A pixel is missing if its flux is above `LARGEST` units, or its sigma not between 1 / `LARGEST` and
        `LARGEST`.

        Raises:
            ObservationError: if no pixel of the grid is observed, the observed flux is zero, or single
                precision cannot represent it.
        """
        label, (least, most) = self.name or "spectrum", FLUX_RANGE
        with np.errstate(all="ignore"):
            rebinned = self.rebin(grid)
            mask = rebinned.mask | ~np.isfinite(rebinned.flux) | ~np.isfinite(rebinned.ivar)
            unit = (
                np.full(len(mask), self.scale) if self.scale is not None else flux_unit(rebinned.flux, mask)
            )
            if ((unit <= 0) & ~mask.all(-1)).any():
                raise ObservationError(f"{label}: the observed flux is zero everywhere")
            unit = np.where(unit > 0, unit, 1.0)
            flux, ivar = rebinned.flux / unit[:, None], rebinned.ivar * unit[:, None] * unit[:, None]
        mask |= ~(np.abs(flux) < LARGEST)
        mask |= (rebinned.ivar > 0) & ~((ivar < LARGEST**2) & (ivar > LARGEST**-2))
        if mask.all():
            raise ObservationError(
                f"{label}: no observed pixel between {grid.start:g} and {grid.stop:g} Angstrom"
            )
        if not ((unit > least) & (unit < most)).all():
            raise ObservationError(
                f"{label}: mean |flux| {unit.max():.3g} is not between {least:g} and {most:g}; give the flux "
                "in another unit"
            )
        free = np.full(len(unit), self.scale is None) & ~mask.all(-1)
        flux, ivar = np.where(mask, 0.0, flux), np.where(mask, 0.0, ivar)
        return Gridded(self.name, self.unit, grid, flux, ivar, mask, unit, free, self.meta)

    @property
    def snr(self) -> float:
        """Median flux / sigma over the observed native pixels; 0 (never NaN) if no ivar is known."""
        ratios = [
            e.flux[~e.mask] * np.sqrt(e.ivar[~e.mask])
            for e in self.exposures
            if e.ivar is not None and not e.mask.all()
        ]
        return float(np.median(np.concatenate(ratios))) if ratios else 0.0

    def __len__(self) -> int:
        return len(self.exposures)

    def __repr__(self) -> str:
        low = min(e.wavelength[0] for e in self.exposures)
        high = max(e.wavelength[-1] for e in self.exposures)
        observed = 1 - np.mean(np.concatenate([e.mask for e in self.exposures]))
        noise = f"S/N {self.snr:.1f}" if self.snr else "noise unknown"
        plural = "s" if len(self) > 1 else ""
        return (
            f"<Observation {self.name!r}: {len(self)} exposure{plural}, {low:.0f}-{high:.0f} Angstrom, "
            f"{observed:.0%} observed, {noise}>"
        )


def printable(text: str) -> str:
    """Text with control characters, and bytes that are not UTF-8, escaped: safe for any terminal or file.

    Example:
        >>> print(printable(chr(7) + "star" + chr(0xDCFF)))
        \\x07star\\xff
    """
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", _spelled, text)


def _spelled(character: re.Match[str]) -> str:
    code = ord(character[0])
    # Python keeps an illegible byte of a file name in one of these code points.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character[0])[1:-1]


def _one_line(error: Exception) -> str:
    if "inhomogeneous" in str(error) or "same shape" in str(error):
        return "rows of different length; give each exposure as an observation to Observation.from_exposures"
    return str(error)


def _exposure(
    wavelength: NDArray, flux: NDArray, ivar: NDArray | None, mask: NDArray, label: str
) -> Exposure:
    bad = mask | ~np.isfinite(flux)
    if ivar is not None:
        bad = bad | ~(np.isfinite(ivar) & (ivar > 0))

    # Relative to the star's own level, so that units do not matter.
    seen = np.abs(flux[~bad & (flux != 0)])
    if seen.size:
        level = np.median(seen)
        if not 1e-100 < level < 1e100:
            raise ObservationError(f"{label}: the flux is about {level:.0e}, give it in another unit")
        bad = bad | ~(np.abs(flux) <= _HIGHEST * level)
        if ivar is not None:
            snr = level * np.sqrt(np.where(bad, 0.0, ivar))
            bad = bad | ~((snr > _WORST_SNR) & (snr < _BEST_SNR))
    ivar = None if ivar is None else np.where(bad, 0.0, ivar)
    return Exposure(wavelength, np.where(bad, 0.0, flux), ivar, bad)


def _rescale(exposure: Exposure, factor: float, label: str) -> Exposure:
    ivar = None if exposure.ivar is None else exposure.ivar / factor / factor
    return _exposure(exposure.wavelength, exposure.flux * factor, ivar, exposure.mask, label)
