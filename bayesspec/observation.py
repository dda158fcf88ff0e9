"""What travels through the package: one star's exposures, and a batch of stars as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy import units as u
from numpy.typing import ArrayLike, NDArray

from .exceptions import ObservationError
from .grid import Rebinned, WavelengthGrid, flux_unit, rebin

if TYPE_CHECKING:
    import torch

__all__ = ["Exposure", "Observation", "ObservationBatch"]

FULL_COVERAGE = 0.98
"""Share of the grid above which a spectrum counts as complete."""

LARGEST = 1e12
"""Of flux and sigma in model units: single precision holds their squares."""


@dataclass(frozen=True, eq=False)
class Exposure:
    """One exposure on its own pixels: wavelength (vacuum Angstrom), flux, ivar or None, mask (True = bad)."""

    wavelength: NDArray[np.float64]
    flux: NDArray[np.float64]
    ivar: NDArray[np.float64] | None
    mask: NDArray[np.bool_]


class Observation:
    """One star as it was observed: a spectrum, or several exposures with their own pixels and coverage.

    Missing is what the mask says, and any pixel whose flux is not finite or whose ivar is not positive.

    Arguments:
        wavelength: (M,), vacuum, heliocentric; Angstrom, or a Quantity of length.
        flux: (M,), or (E, M) for E exposures on the same pixels; per Angstrom, any unit, or a Quantity.
        ivar: Inverse variance in the inverse square of the flux's unit, same shape, or None if unknown.
        mask: True = bad, same shape.
        name: What to call the star in tables, figures and errors.
        scale: Mean |flux| of the noiseless star over the model's grid, where that is known from elsewhere (as
            in the paper's test sets). Without it the data decide (see `ObservationBatch`).
        meta: Anything worth keeping, e.g. the file it came from.

    Raises:
        ObservationError: if shapes or units do not fit, wavelengths repeat, or no pixel is observed.

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
        unit = getattr(flux, "unit", None) or u.dimensionless_unscaled
        try:
            wavelength = _values(wavelength, u.AA)
            flux = np.atleast_2d(_values(flux, unit))
            ivar = None if ivar is None else np.atleast_2d(_values(ivar, unit**-2))
        except u.UnitConversionError as error:
            raise ObservationError(f"{name or 'spectrum'}: {error}") from error
        mask = np.zeros(flux.shape, bool) if mask is None else np.atleast_2d(np.asarray(mask, dtype=bool))
        for what, array in (("wavelength", wavelength[None]), ("ivar", ivar), ("mask", mask)):
            if array is not None and (array.ndim != 2 or array.shape[-1] != flux.shape[-1]):
                raise ObservationError(
                    f"{name or 'spectrum'}: {what} {array.shape} does not fit flux {flux.shape}"
                )
            if array is not None and what != "wavelength" and array.shape != flux.shape:
                raise ObservationError(
                    f"{name or 'spectrum'}: {what} {array.shape} does not fit flux {flux.shape}"
                )
        if scale is not None and not (np.isfinite(scale) and scale > 0):
            raise ObservationError(f"{name or 'spectrum'}: scale must be a positive number, got {scale}")

        # Rows without a wavelength (padding of some files) go; the rest is put in order.
        keep = np.flatnonzero(np.isfinite(wavelength) & (wavelength > 0))
        keep = keep[np.argsort(wavelength[keep], kind="stable")]
        wavelength = wavelength[keep]
        if keep.size < 2 or (np.diff(wavelength) <= 0).any():
            raise ObservationError(f"{name or 'spectrum'}: wavelengths must be at least two, and none twice")

        self.exposures: tuple[Exposure, ...] = tuple(
            _exposure(wavelength, row[keep], None if ivar is None else ivar[e][keep], mask[e][keep])
            for e, row in enumerate(flux)
        )
        self.unit: u.UnitBase = unit
        self.name = name
        self.scale = None if scale is None else float(scale)
        self.meta: dict[str, Any] = dict(meta or {})
        if all(exposure.mask.all() for exposure in self.exposures):
            raise ObservationError(
                f"{name or 'spectrum'}: no pixel is observed (all masked, not finite or ivar <= 0)"
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
            ObservationError: if there is none, or their flux units cannot be converted into each other.
        """
        parts = list(observations)
        if not parts:
            raise ObservationError("from_exposures needs at least one observation")
        first = parts[0]
        star = cls.__new__(cls)
        star.name = first.name if name is None else name
        star.unit, star.scale = first.unit, first.scale
        star.meta = {**first.meta, **(meta or {})}
        exposures: list[Exposure] = []
        for part in parts:
            try:
                factor = float(part.unit.to(first.unit))
            except u.UnitConversionError as error:
                raise ObservationError(f"{star.name or 'exposures'}: {error}") from None
            exposures += [_rescale(exposure, factor) for exposure in part.exposures]
        star.exposures = tuple(exposures)
        return star

    def rebin(self, grid: WavelengthGrid) -> Rebinned:
        """All exposures on the model's grid, flux, ivar and mask each (E, D)."""
        rows = [rebin(e.wavelength, e.flux, e.ivar, e.mask, grid) for e in self.exposures]
        return Rebinned(*(np.stack(column) for column in zip(*rows, strict=True)))

    def on_grid(self, grid: WavelengthGrid) -> tuple[Rebinned, NDArray[np.float64], NDArray[np.bool_]]:
        """Exposures on the grid in model units, the flux that 1 stands for, (E,), and free scales, (E,).

        A pixel whose flux is above `LARGEST` units, or whose sigma is not between its inverse and itself, is
        no measurement, and missing.

        Raises:
            ObservationError: if no pixel of the grid is observed, or the observed flux is zero.
        """
        on_grid = self.rebin(grid)
        label = self.name or "spectrum"
        with np.errstate(over="ignore", invalid="ignore"):
            mask = on_grid.mask | ~np.isfinite(on_grid.flux) | ~np.isfinite(on_grid.ivar)
            unit = np.full(len(mask), self.scale) if self.scale is not None else flux_unit(on_grid.flux, mask)
            if ((unit <= 0) & ~mask.all(-1)).any():
                raise ObservationError(f"{label}: the observed flux is zero everywhere")
            unit = np.where(unit > 0, unit, 1.0)
            flux, sigma_power = on_grid.flux / unit[:, None], on_grid.ivar * unit[:, None] * unit[:, None]
        mask |= ~(np.abs(flux) < LARGEST)
        mask |= (on_grid.ivar > 0) & ~((sigma_power < LARGEST**2) & (sigma_power > LARGEST**-2))
        if mask.all():
            raise ObservationError(
                f"{label}: no observed pixel between {grid.start:g} and {grid.stop:g} Angstrom"
            )
        scaled = Rebinned(np.where(mask, 0.0, flux), np.where(mask, 0.0, sigma_power), mask)
        return scaled, unit, np.full(len(unit), self.scale is None) & ~mask.all(-1)

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


@dataclass(frozen=True, eq=False)
class ObservationBatch:
    """N stars with up to E exposures on the model's grid, as tensors on one device.

    Each exposure is in units of about its own mean |flux| over its observed pixels (`unit_flux`). That is a
    unit and no more: the exposure's scale is a parameter of the model, and `free_scale` is True, unless the
    user states the star's scale, which then is the unit (docs: "The scale of an exposure").

    Arguments:
        flux: (N, E, D), model units, 0 where masked.
        ivar: (N, E, D), 0 where masked or unknown.
        mask: (N, E, D), True = bad. Exposures that a star does not have are masked throughout.
        unit_flux: (N, E), the flux in the star's unit that 1 stands for.
        free_scale: (N, E), True where the scale is to be inferred.
        free_index: (2, F), the positions of the True entries: known on the host, so that no device is asked.
        names: N names.

    Example:
        >>> import numpy as np
        >>> star = Observation(np.linspace(3900, 9100, 3000), np.full(3000, 7.0), name="flat")
        >>> batch = ObservationBatch.from_observations([star], WavelengthGrid())
        >>> batch.flux.shape, round(float(batch.unit_flux[0, 0]), 6), bool(batch.free_scale.any())
        (torch.Size([1, 1, 2048]), 7.0, True)
    """

    flux: torch.Tensor
    ivar: torch.Tensor
    mask: torch.Tensor
    unit_flux: torch.Tensor
    free_scale: torch.Tensor
    free_index: torch.Tensor
    names: tuple[str, ...] = field(default=())

    @classmethod
    def from_observations(
        cls,
        observations: Sequence[Observation],
        grid: WavelengthGrid,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> ObservationBatch:
        """Rebin, normalise and stack; in float32, as models are, whatever torch's default is.

        Raises:
            ObservationError: if a star has no observed pixel on the grid, or no flux but zero.
        """
        rows = [star.on_grid(grid) for star in observations]
        if not rows:
            raise ObservationError("a batch needs at least one observation")
        depth = max(row[0].flux.shape[0] for row in rows)
        return cls.from_arrays(
            *(np.stack([pad_exposures(row[0][k], depth, k == 2) for row in rows]) for k in range(3)),
            np.stack([pad_exposures(row[1], depth, 1.0) for row in rows]),
            np.stack([pad_exposures(row[2], depth, False) for row in rows]),
            names=tuple(star.name for star in observations),
            device=device,
            dtype=dtype,
        )

    @classmethod
    def from_arrays(
        cls,
        flux: NDArray,
        ivar: NDArray,
        mask: NDArray,
        unit_flux: NDArray,
        free_scale: NDArray,
        *,
        names: Sequence[str] = (),
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> ObservationBatch:
        """A batch from arrays that are on the grid and normalised already; shapes as the attributes'."""
        import torch

        def tensor(array: NDArray) -> torch.Tensor:
            kind = dtype or torch.float32
            return torch.as_tensor(np.ascontiguousarray(array)).to(device=device, dtype=kind)

        observed = ~np.asarray(mask, dtype=bool)
        free = np.asarray(free_scale, dtype=bool) & observed.any(-1)
        return cls(
            tensor(np.where(observed, flux, 0.0)),
            tensor(np.where(observed, ivar, 0.0)),
            torch.as_tensor(~observed).to(device),
            tensor(unit_flux),
            torch.as_tensor(free).to(device),
            torch.as_tensor(np.stack(np.nonzero(free))).to(device),
            tuple(names) or tuple(f"star {n}" for n in range(len(observed))),
        )

    def __len__(self) -> int:
        return self.flux.shape[0]

    @property
    def observed_fraction(self) -> torch.Tensor:
        """Share of the grid that at least one exposure observed, (N,)."""
        return (~self.mask).any(-2).to(self.flux.dtype).mean(-1)

    def select(self, index: Sequence[int] | NDArray[np.int64]) -> ObservationBatch:
        """The stars at these positions, in this order; a star may be taken several times."""
        import torch

        rows = np.asarray(index, dtype=np.int64)
        at = torch.as_tensor(rows).to(self.flux.device)
        tensors = {
            f.name: getattr(self, f.name)[at] for f in fields(self) if f.name not in ("free_index", "names")
        }
        return replace(self.with_tensors(**tensors), names=tuple(self.names[n] for n in rows))

    def with_tensors(self, *, free_scale: torch.Tensor, **tensors: torch.Tensor) -> ObservationBatch:
        """The batch with other tensors, by name; the positions of free scales follow from `free_scale`."""
        import torch

        index = torch.stack(torch.nonzero(free_scale, as_tuple=True))
        return replace(self, **tensors, free_scale=free_scale, free_index=index)

    def to(self, device: torch.device | str) -> ObservationBatch:
        """The same batch on another device."""
        return replace(
            self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "names"}
        )


def _values(array: ArrayLike | u.Quantity, unit: u.UnitBase) -> NDArray[np.float64]:
    """Plain numbers in a unit, of quantities and of table columns; NaN where a masked array is masked."""
    own = getattr(array, "unit", None)
    if isinstance(array, np.ma.MaskedArray):
        array = array.astype(float).filled(np.nan)
    values = np.asarray(array, dtype=float)
    return values if own is None else u.Quantity(values, own).to_value(unit)


def _exposure(wavelength: NDArray, flux: NDArray, ivar: NDArray | None, mask: NDArray) -> Exposure:
    bad = mask | ~np.isfinite(flux)
    if ivar is not None:
        bad = bad | ~(np.isfinite(ivar) & (ivar > 0))
        ivar = np.where(bad, 0.0, ivar)
    return Exposure(wavelength, np.where(bad, 0.0, flux), ivar, bad)


def _rescale(exposure: Exposure, factor: float) -> Exposure:
    ivar = None if exposure.ivar is None else exposure.ivar / factor**2
    return replace(exposure, flux=exposure.flux * factor, ivar=ivar)


def pad_exposures(array: NDArray, depth: int, value: float | bool | str) -> NDArray:
    """An array of exposures, (E, ...), with rows of one value after them, (depth, ...)."""
    missing = depth - array.shape[0]
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), constant_values=value)
