"""The noise of real exposures: what is left of each when the mean of its star's exposures is subtracted."""

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
"""Standard deviations of the usual noise beyond which a pixel is a hit, and has no part in level and mean."""

USUAL, NEIGHBOURS = 51, 11
"""Pixels whose median tells the usual noise around a pixel, and the star's flux around it."""


def exposure_noise(
    star: Observation, grid: WavelengthGrid
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    r"""Noise of every exposure of one star: residual, ivar and mask (True = bad), each (E, D).

    Exposures are rebinned and brought to one brightness by their ratios over the pixels that they share, and
    to mean |flux| = 1 of their star. Their mean contains each exposure's own noise, so the plain difference
    has variance :math:`(1 - 1/n) \sigma^2`; it is scaled by :math:`\sqrt{n / (n - 1)}`, with n the exposures
    that are in the mean.

    A hit, far from what the others have, is in no ratio and in no mean: to the other exposures the pixel is
    as if it were masked in this one. Its own residual is its whole height above the mean of the others. Of
    two exposures that differ, that one is hit which stands out from its neighbours. A pixel that only one
    exposure observed is masked, and so is one where the only other is hit.

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

    # The unit: mean |flux| of the star, hits in pixels that one exposure alone observed left out.
    unit = mean_absolute_flux(_around(mean, n > 0, NEIGHBOURS), n == 0)
    unit = np.where(unit > 0, unit, 1.0)
    usable = observed & (n > 1) & ((kept > 1) | ~regular)
    factor = np.where(regular, np.sqrt(kept / np.maximum(kept - 1, 1)), 1.0)
    residual = np.where(usable, (flux - mean) * factor / unit, 0.0)
    return residual, np.where(usable, ivar * unit**2, 0.0), ~usable


def _levels(flux: Array, observed: NDArray[np.bool_]) -> Array:
    """Brightness of each exposure, (E,): what fits the ratios of all pairs best.

    A ratio is that of two sums, over the pixels that both observed and in which they agree: noise gives it no
    bias, as it would the ratios of single pixels, and a hit of any height has no part in it.
    """
    differences, ratios = [], []
    for i, j in combinations(range(len(flux)), 2):
        shared = observed[i] & observed[j]
        if shared.any():
            differences.append(np.sqrt(shared.sum()) * (np.eye(len(flux))[i] - np.eye(len(flux))[j]))
            ratios.append(np.sqrt(shared.sum()) * np.log(_ratio(flux[i, shared], flux[j, shared])))
    return np.exp(np.linalg.lstsq(np.array(differences), np.array(ratios))[0])


def _ratio(one: Array, other: Array) -> float:
    """How much brighter one exposure is than another, of the pixels (M,) of both."""
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
    """True where an exposure is far from what the others have in a pixel, (E, D), for its noise there.

    They are compared with their median. Of the two in the middle of an even number, and so of two exposures
    in all, it is the one nearer to the median of the pixels around: stars are smoother than hits.
    """
    n = observed.sum(0)
    ordered = np.sort(np.where(observed, flux, np.inf), axis=0)
    lower, upper = (_pick(ordered, k) for k in ((n - 1) // 2, n // 2))
    around = _around((lower + upper) / 2, n > 0, NEIGHBOURS)
    middle = np.where(np.abs(lower - around) <= np.abs(upper - around), lower, upper)

    # The usual noise: of the exposure in the pixels around, or the pipeline's of all exposures in this pixel,
    # which knows the lines of the sky. Its own error of a hit may be as large as the hit.
    more = np.sqrt(n / np.maximum(n - 1, 1))
    away = np.abs(flux - np.where(observed, flux, 0.0).sum(0) / np.maximum(n, 1)) * more
    own = 1.4826 * np.stack([_around(a, o & (n > 1), USUAL) for a, o in zip(away, observed, strict=True)])
    sigma = np.sort(np.where(ivar > 0, 1 / np.sqrt(np.where(ivar > 0, ivar, 1.0)), np.inf), axis=0)
    stated = _pick(sigma, ((ivar > 0).sum(0) - 1) // 2)
    return observed & (np.abs(flux - middle) > CLIP * more * np.maximum(own, stated))


def _pick(ordered: Array, index: NDArray[np.int64]) -> Array:
    """The value at each pixel's index of arrays (E, D), (D,); 0 where there is none."""
    inside = (index >= 0) & (index < len(ordered))
    value = np.take_along_axis(ordered, np.where(inside, index, 0)[None], 0)[0]
    return np.where(inside & np.isfinite(value), value, 0.0)


def _around(values: Array, seen: NDArray[np.bool_], width: int) -> Array:
    """Running median of the pixels that were seen, (D,); 0 elsewhere."""
    smooth = np.zeros(len(values))
    # Mirrored without the last pixel itself, which would otherwise have the majority there.
    smooth[seen] = median_filter(values[seen], size=min(width, max(seen.sum(), 1)), mode="mirror")
    return smooth


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
