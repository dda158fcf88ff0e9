"""The noise of real exposures: each exposure minus the mean of its star's exposures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from bayesspec.exceptions import ObservationError, ReadError
from bayesspec.grid import WavelengthGrid, mean_absolute_flux
from bayesspec.observation import Observation

from .split import split_by_hash

__all__ = ["NoiseLibrary", "exposure_noise"]

Array = NDArray[np.float64]

CLIP = 5.0
"""Standard deviations of the usual noise beyond which a pixel is a hit, excluded from level and mean."""

USUAL, NEIGHBOURS = 51, 11
"""Widths in pixels of the running medians for the usual noise around a pixel and for the star's flux."""


def exposure_noise(
    star: Observation, grid: WavelengthGrid
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    r"""Noise of every exposure of one star: residual, ivar and mask (True = bad), each (E, D).

    Exposures are rebinned, scaled to the same brightness by their ratios over common pixels, and normalised
    to mean |flux| = 1 of their star. Their mean contains each exposure's own noise, so the plain difference
    has variance :math:`(1 - 1/n) \sigma^2`. It is scaled by :math:`\sqrt{n / (n - 1)}`, where n is the number
    of exposures in the mean.

    A hit, i.e. a pixel far from the other exposures, is excluded from ratios and means, as if it were masked.
    Its residual is its full height above the mean of the others. If two exposures differ, the hit is the one
    that differs more from its neighbours. A pixel that only one exposure observed is masked, and so is one
    where the only other is a hit.

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

    level = _levels(on_grid.flux, observed)[:, None]
    flux, ivar = on_grid.flux / level, on_grid.ivar * level**2
    regular = observed & ~_hits(flux, ivar, observed)
    kept = regular.sum(0)
    mean = np.where(regular, flux, 0.0).sum(0) / np.maximum(kept, 1)

    # The unit: mean |flux| of the star, smoothed because hits in pixels of a single exposure are not known.
    unit = mean_absolute_flux(_around(mean, n > 0, NEIGHBOURS), n == 0)
    unit = np.where(unit > 0, unit, 1.0)
    usable = observed & (n > 1) & ((kept > 1) | ~regular)
    factor = np.where(regular, np.sqrt(kept / np.maximum(kept - 1, 1)), 1.0)
    residual = np.where(usable, (flux - mean) * factor / unit, 0.0)
    return residual, np.where(usable, ivar * unit**2, 0.0), ~usable


def _levels(flux: Array, observed: NDArray[np.bool_]) -> Array:
    """Brightness of each exposure, (E,): the best fit to the ratios of all pairs.

    Each ratio is that of two sums over the pixels that both observed and on which they agree. Unlike ratios
    of single pixels it is not biased by noise, and hits are excluded.
    """
    differences, ratios = [], []
    for i, j in combinations(range(len(flux)), 2):
        shared = observed[i] & observed[j]
        if shared.any():
            differences.append(np.sqrt(shared.sum()) * (np.eye(len(flux))[i] - np.eye(len(flux))[j]))
            ratios.append(np.sqrt(shared.sum()) * np.log(_ratio(flux[i, shared], flux[j, shared])))
    return np.exp(np.linalg.lstsq(np.array(differences), np.array(ratios))[0])


def _ratio(one: Array, other: Array) -> float:
    """Brightness ratio of two exposures, from their common pixels (M,)."""
    sizes = np.median(np.abs(one)), np.median(np.abs(other))
    if min(sizes) <= 0:
        return 1.0
    ratio = sizes[0] / sizes[1]
    for _ in range(10):
        away = np.abs(one - ratio * other)
        spread = np.maximum(1.4826 * _around(away, away >= 0, USUAL), 1e-9 * sizes[0])
        weight = (away < CLIP * spread) / spread**2
        sums = weight @ one, weight @ other
        if min(sums) <= 0:  # nothing but noise
            break
        ratio = sums[0] / sums[1]
    return ratio


def _hits(flux: Array, ivar: Array, observed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """True where an exposure is far from the others, relative to its noise there, (E, D).

    The reference is the median of the exposures. For an even number of them, it is the one of the two middle
    values that is nearer to the median of the surrounding pixels, because stars are smoother than hits.
    """
    n = observed.sum(0)
    ordered = np.sort(np.where(observed, flux, np.inf), axis=0)
    lower, upper = (_pick(ordered, k) for k in ((n - 1) // 2, n // 2))
    around = _around((lower + upper) / 2, n > 0, NEIGHBOURS)
    middle = np.where(np.abs(lower - around) <= np.abs(upper - around), lower, upper)

    # The usual noise: that of the exposure in the surrounding pixels, or the pipeline's for all exposures in
    # this pixel, which includes sky lines. The exposure's own error at a hit may be as large as the hit.
    more = np.sqrt(n / np.maximum(n - 1, 1))
    away = np.abs(flux - np.where(observed, flux, 0.0).sum(0) / np.maximum(n, 1)) * more
    own = 1.4826 * np.stack([_around(a, o & (n > 1), USUAL) for a, o in zip(away, observed, strict=True)])
    sigma = np.sort(np.where(ivar > 0, 1 / np.sqrt(np.where(ivar > 0, ivar, 1.0)), np.inf), axis=0)
    stated = _pick(sigma, ((ivar > 0).sum(0) - 1) // 2)
    return observed & (np.abs(flux - middle) > CLIP * more * np.maximum(own, stated))


def _pick(ordered: Array, index: NDArray[np.int64]) -> Array:
    """Values of an array (E, D) at each pixel's index, (D,); 0 where there is none."""
    inside = (index >= 0) & (index < len(ordered))
    value = np.take_along_axis(ordered, np.where(inside, index, 0)[None], 0)[0]
    return np.where(inside & np.isfinite(value), value, 0.0)


def _around(values: Array, seen: NDArray[np.bool_], width: int) -> Array:
    """Running median over the observed pixels, (D,); 0 elsewhere."""
    smooth = np.zeros(len(values))
    # Mirrored without repeating the last pixel, which would otherwise dominate the median there.
    smooth[seen] = median_filter(values[seen], size=min(width, max(seen.sum(), 1)), mode="mirror")
    return smooth


@dataclass(frozen=True, eq=False)
class NoiseLibrary:
    """Noise of real exposures on the model's grid, at mean |flux| = 1 of their star.

    Arguments:
        residual: (N, D), 0 where masked.
        ivar: (N, D), the pipeline's, 0 where masked or unknown.
        mask: (N, D), True = bad.
        epoch: (N,), plate-mjd, by which the data are split.
    """

    residual: NDArray[np.float32]
    ivar: NDArray[np.float32]
    mask: NDArray[np.bool_]
    epoch: NDArray[np.str_]

    @classmethod
    def from_files(cls, paths: Iterable[str | Path], grid: WavelengthGrid) -> NoiseLibrary:
        """Extract the noise of every exposure in spec files that hold individual exposures.

        Raises:
            ReadError: if a file cannot be read, or does not have two exposures of the same pixels.
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
        """The epochs of one side (train, validation, test) of `split_by_hash`; a quarter is for testing."""
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
