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
"""Share of the grid above which a spectrum counts as complete."""

FLUX_RANGE = 1e-37, 1e38
"""Mean |flux| that single precision holds."""

LARGEST = 1e12
"""Of flux and sigma in model units: single precision holds their squares."""

_HIGHEST = 1e30
"""Flux in units of the median |flux| above which it is junk: its square would leave float64."""

_BEST_SNR, _WORST_SNR = 1e8, 1e-18
"""Median |flux| / sigma that measurements do not reach, and that single precision does not hold."""


@dataclass(frozen=True, eq=False)
class Exposure:
    """One exposure on its own pixels: wavelength (vacuum Angstrom), flux, ivar or None, mask (True = bad)."""

    wavelength: NDArray[np.float64]
    flux: NDArray[np.float64]
    ivar: NDArray[np.float64] | None
    mask: NDArray[np.bool_]


class Gridded(NamedTuple):
    """A star as a model takes it: exposures on the model's grid, each in units of about its mean |flux|."""

    name: str
    unit: u.UnitBase
    """Of the flux."""
    grid: WavelengthGrid
    flux: NDArray[np.float64]
    """(E, D), 0 where masked."""
    ivar: NDArray[np.float64]
    """(E, D), 0 where masked or unknown."""
    mask: NDArray[np.bool_]
    """(E, D), True = bad."""
    unit_flux: NDArray[np.float64]
    """The flux that 1 stands for, (E,)."""
    free_scale: NDArray[np.bool_]
    """True where the scale is to be inferred, (E,)."""
    meta: Mapping[str, Any] = {}
    """What else is known of the star, such as its place and its survey's numbers."""


class Observation:
    """One star as it was observed: a spectrum, or several exposures with their own pixels and coverage.

    Missing is what the mask says, and any pixel whose flux is not finite or whose ivar is not positive. So
    are numbers that cannot be measurements: a flux above 1e30 times the median |flux|, or an ivar by which
    the median |flux| has an S/N above 1e8 or below 1e-18.

    Arguments:
        wavelength: (M,), vacuum, heliocentric; Angstrom, or a Quantity of wavelength, frequency or energy.
        flux: (M,), or (E, M) for E exposures on the same pixels; per Angstrom, or a Quantity. Counts and
            fluxes without unit count as per Angstrom; flux densities per frequency (Jy) and in photons are
            converted to erg / (s cm2 Angstrom); magnitudes are refused.
        ivar: Inverse variance in the inverse square of the flux's unit, same shape, or None if unknown.
        mask: True = bad, same shape.
        name: What to call the star in tables, figures and errors.
        scale: Mean |flux| of the noiseless star over the model's grid, where that is known from elsewhere (as
            in the paper's test sets). Without it the data decide (see `ObservationBatch`). A number in the
            flux's unit, or a Quantity; where the flux is converted, a Quantity per wavelength.
        meta: Anything worth keeping, e.g. the file it came from.

    Raises:
        ObservationError: if these are no numbers, shapes or units do not fit, wavelengths repeat, no pixel is
            observed, or the flux is of a size that floats cannot compute with (1e-100, 1e100).

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
            # The last one is torch's, of tensors with gradients.
            raise ObservationError(f"{label}: {_one_line(error)}") from error
        for what, array in (("wavelength", wavelength[None]), ("ivar", ivar), ("mask", mask)):
            if array is not None and (array.ndim != 2 or array.shape[-1] != flux.shape[-1]):
                raise ObservationError(f"{label}: {what} {array.shape} does not fit flux {flux.shape}")
            if array is not None and what != "wavelength" and array.shape != flux.shape:
                raise ObservationError(f"{label}: {what} {array.shape} does not fit flux {flux.shape}")
        if scale is not None and not (np.isfinite(scale) and scale > 0):
            raise ObservationError(f"{label}: scale must be a positive number, got {scale}")

        # Rows without a wavelength (padding of some files) go; the rest is put in order.
        with np.errstate(all="ignore"):
            flux = flux * factor
            ivar = None if ivar is None else ivar / factor / factor
        keep = np.flatnonzero((wavelength > 0) & (wavelength < _HIGHEST))
        keep = keep[np.argsort(wavelength[keep], kind="stable")]
        wavelength = wavelength[keep]
        if keep.size < 2 or (np.diff(wavelength) <= 0).any():
            raise ObservationError(
                f"{label}: wavelengths must be at least two, and none twice (arms or exposures on the same "
                "pixels are rows of flux, or observations for Observation.from_exposures)"
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
        """Gather exposures of one star, each with its own pixels, coverage and noise.

        Raises:
            ObservationError: if there is none, their flux units cannot be converted into each other, or they
                do not all state the same scale (or none): a star has one, and so have its exposures.
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
        """All exposures on the model's grid, flux, ivar and mask each (E, D)."""
        rows = [rebin(e.wavelength, e.flux, e.ivar, e.mask, grid) for e in self.exposures]
        return Rebinned(*(np.stack(column) for column in zip(*rows, strict=True)))

    def on_grid(self, grid: WavelengthGrid) -> Gridded:
        """The star as a model on this grid takes it: rebinned, in model units.

        A pixel whose flux is above `LARGEST` units, or whose sigma is not between its inverse and itself, is
        no measurement, and missing.

        Raises:
            ObservationError: if no pixel of the grid is observed, the observed flux is zero, or it is of a
                size that single precision does not hold.
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
        """Median flux / sigma over the observed native pixels; NaN-free: 0 where no ivar is known."""
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
    """Text that any terminal or file can hold: control characters, and bytes that are no UTF-8, spelled out.

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
        return "rows of different length; each exposure as an observation goes to Observation.from_exposures"
    return str(error)


def _exposure(
    wavelength: NDArray, flux: NDArray, ivar: NDArray | None, mask: NDArray, label: str
) -> Exposure:
    bad = mask | ~np.isfinite(flux)
    if ivar is not None:
        bad = bad | ~(np.isfinite(ivar) & (ivar > 0))

    # Judged by the star's own level, so that units do not matter.
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
