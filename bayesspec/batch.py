"""The input of a model: a batch of stars on its grid, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .exceptions import ObservationError
from .grid import WavelengthGrid
from .observation import Gridded, Observation

if TYPE_CHECKING:
    import torch

__all__ = ["ObservationBatch", "pad_exposures"]


@dataclass(frozen=True, eq=False)
class ObservationBatch:
    """N stars with up to E exposures on the model's grid, as tensors on one device.

    Each exposure is divided by a unit, `unit_flux`, which is about its mean |flux| over the observed pixels.
    The exposure's scale is still a parameter of the model (`free_scale` is True), unless the user states the
    star's scale, which is then the unit (docs: "The scale of an exposure").

    Arguments:
        flux: (N, E, D), model units, 0 where masked.
        ivar: (N, E, D), 0 where masked or unknown.
        mask: (N, E, D), True = bad. Exposures that a star does not have are masked throughout.
        unit_flux: (N, E), the flux that corresponds to 1, in the star's unit.
        free_scale: (N, E), True where the scale is to be inferred.
        free_index: (2, F), the positions of the True entries, kept to avoid synchronising with the device.
        noise_known: (N,), True where the pipeline states the noise of all exposures.
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
    noise_known: torch.Tensor
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
        """Rebin, normalise and stack, in float32 by default, like models, whatever torch's default is.

        Raises:
            ObservationError: as `Observation.on_grid`, or if there is no star.
        """
        return cls.from_gridded([star.on_grid(grid) for star in observations], device=device, dtype=dtype)

    @classmethod
    def from_gridded(
        cls,
        stars: Sequence[Gridded],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> ObservationBatch:
        """Stack stars that are already on one grid; see `Observation.on_grid`.

        Raises:
            ObservationError: if there is no star.
        """
        if not stars:
            raise ObservationError("a batch needs at least one observation")
        depth = max(len(star.flux) for star in stars)

        def stacked(name: str, value: float | bool) -> NDArray:
            return np.stack([pad_exposures(getattr(star, name), depth, value) for star in stars])

        empty = {"flux": 0.0, "ivar": 0.0, "mask": True, "unit_flux": 1.0, "free_scale": False}
        return cls.from_arrays(
            *(stacked(name, value) for name, value in empty.items()),
            names=tuple(star.name for star in stars),
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
        """A batch from arrays that are already on the grid and normalised; shapes as for the attributes."""
        import torch

        def tensor(array: NDArray) -> torch.Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), device=device, dtype=dtype or torch.float32)

        observed = ~np.asarray(mask, dtype=bool)
        known = (~observed | (np.asarray(ivar) > 0)).all((-2, -1))
        free = np.asarray(free_scale, dtype=bool) & observed.any(-1)
        return cls(
            tensor(np.where(observed, flux, 0.0)),
            tensor(np.where(observed, ivar, 0.0)),
            torch.as_tensor(~observed, device=device),
            tensor(unit_flux),
            torch.as_tensor(free, device=device),
            torch.as_tensor(np.stack(np.nonzero(free)), device=device),
            torch.as_tensor(known, device=device),
            tuple(names) or tuple(f"star {n}" for n in range(len(observed))),
        )

    def __len__(self) -> int:
        return self.flux.shape[0]

    @property
    def observed_fraction(self) -> torch.Tensor:
        """Fraction of the grid that at least one exposure observed, (N,)."""
        return (~self.mask).any(-2).to(self.flux.dtype).mean(-1)

    def select(self, index: Sequence[int] | NDArray[np.int64] | torch.Tensor) -> ObservationBatch:
        """The stars at these positions, in this order; a star may be taken several times."""
        import torch

        rows = np.asarray(index, dtype=np.int64)
        at = torch.as_tensor(rows).to(self.flux.device)
        tensors = {
            f.name: getattr(self, f.name)[at] for f in fields(self) if f.name not in ("free_index", "names")
        }
        return replace(self.with_tensors(**tensors), names=tuple(self.names[n] for n in rows))

    def with_tensors(self, *, free_scale: torch.Tensor, **tensors: torch.Tensor) -> ObservationBatch:
        """The batch with some tensors replaced, by name; `free_index` follows from `free_scale`."""
        import torch

        index = torch.stack(torch.nonzero(free_scale, as_tuple=True))
        changed: dict[str, Any] = {**tensors, "free_scale": free_scale, "free_index": index}
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> ObservationBatch:
        """The same batch on another device."""
        return replace(
            self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "names"}
        )


def pad_exposures(array: NDArray, depth: int, value: float | bool | str) -> NDArray:
    """An array of exposures, (E, ...), padded with rows of one value to (depth, ...)."""
    missing = depth - array.shape[0]
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), constant_values=value)
