"""The noise of real exposures: what is left of each when the mean of its star's exposures is subtracted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bayesspec.exceptions import ObservationError, ReadError
from bayesspec.grid import WavelengthGrid, mean_absolute_flux
from bayesspec.observation import Observation

from .split import split_by_hash

__all__ = ["NoiseLibrary", "exposure_noise"]


def exposure_noise(
    star: Observation, grid: WavelengthGrid
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    r"""Noise of every exposure of one star: residual, ivar and mask (True = bad), each (E, D).

    Exposures are rebinned and brought to mean |flux| = 1 as everywhere in this package; one that covers only
    part of the grid is brought to the unit of the others over that part. Their mean contains each exposure's
    own noise, so the plain difference has variance :math:`(1 - 1/n) \sigma^2`; it is scaled by
    :math:`\sqrt{n / (n - 1)}`, with n the exposures that observed the pixel. A pixel that only one of them
    observed is masked.

    References:
        | Kang, He & Zhang 2021, RAA 21, 169, section 4.1; the factor is this package's correction

    Raises:
        ObservationError: if no two exposures share a pixel.

    Example:
        >>> rng, grid = np.random.default_rng(0), WavelengthGrid()
        >>> star = Observation(grid.wavelength, 5 + rng.normal(0, 0.5, (4, 2048)))
        >>> residual, _, _ = exposure_noise(star, grid)
        >>> residual.shape, bool(abs(residual.std() - 0.1) < 0.005)
        ((4, 2048), True)
    """
    on_grid = star.rebin(grid)
    observed = ~on_grid.mask
    n = observed.sum(0)
    if not (n > 1).any():
        raise ObservationError(f"{star.name or 'star'}: noise needs two exposures of the same pixels")

    # The unit: mean |flux| over the grid of the star, as far as an exposure's own pixels can tell.
    own = mean_absolute_flux(on_grid.flux, on_grid.mask)
    unit = np.where(own > 0, own, 1.0)
    for _ in range(3):
        scaled = np.where(observed, on_grid.flux / unit[:, None], 0.0)
        mean = scaled.sum(0) / np.maximum(n, 1)
        seen = n > 0
        whole = mean_absolute_flux(mean, ~seen)
        part = np.array([mean_absolute_flux(mean, ~o) for o in observed])
        unit = np.where((own > 0) & (part > 0), own * whole / np.where(part > 0, part, 1.0), unit)

    scaled = on_grid.flux / unit[:, None]
    mean = np.where(observed, scaled, 0.0).sum(0) / np.maximum(n, 1)
    usable = observed & (n > 1)
    residual = np.where(usable, (scaled - mean) * np.sqrt(n / np.maximum(n - 1, 1)), 0.0)
    return residual, np.where(usable, on_grid.ivar * unit[:, None] ** 2, 0.0), ~usable


@dataclass(frozen=True, eq=False)
class NoiseLibrary:
    """Noise of real exposures on the model's grid, at mean |flux| = 1 of their star.

    Arguments:
        residual: (N, D), 0 where masked.
        ivar: (N, D), the pipeline's, 0 where masked or unknown.
        mask: (N, D), True = bad.
        epoch: (N,), plate-mjd: what a split goes by.
    """

    residual: NDArray[np.float32]
    ivar: NDArray[np.float32]
    mask: NDArray[np.bool_]
    epoch: NDArray[np.str_]

    @classmethod
    def from_files(cls, paths: Iterable[str | Path], grid: WavelengthGrid) -> NoiseLibrary:
        """Extract the noise of every exposure in spec files that hold individual exposures.

        Raises:
            ReadError: if a file cannot be read, or has not two exposures of the same pixels.
        """
        from bayesspec.io import read

        parts = []
        for path in map(Path, paths):
            try:
                star = read(path, exposures="individual")
                residual, ivar, mask = exposure_noise(star, grid)
            except ObservationError as error:
                raise ReadError(f"{path}: {error}") from error
            parts.append(
                cls(
                    residual.astype(np.float32),
                    ivar.astype(np.float32),
                    mask,
                    np.full(len(residual), epoch_name(path), dtype="U40"),
                )
            )
        if not parts:
            raise ReadError("a noise library needs at least one file")
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def select(self, rows: NDArray) -> NoiseLibrary:
        """The library's rows by index or boolean mask."""
        return NoiseLibrary(*(getattr(self, f.name)[rows] for f in fields(self)))

    def split(self, side: str, *, salt: str = "") -> NoiseLibrary:
        """The epochs of one side (train, validation, test) of `split_by_hash`; a quarter is for tests."""
        return self.select(split_by_hash(self.epoch, test=0.25, salt=salt) == side)

    def __len__(self) -> int:
        return len(self.residual)


def epoch_name(path: Path) -> str:
    """The plate and night of a spec-PLATE-MJD-FIBER file: exposures of one night share their sky.

    Example:
        >>> epoch_name(Path("spec-7338-57050-0737.fits.gz"))
        '7338-57050'
    """
    parts = path.name.split(".")[0].split("-")
    return "-".join(parts[1:3]) if len(parts) >= 4 and parts[0] == "spec" else parts[0]
