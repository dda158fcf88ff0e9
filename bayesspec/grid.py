"""The wavelength grid of the model, and flux-conserving rebinning to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import median_filter
from scipy.sparse import csr_array

__all__ = [
    "NativePixels",
    "Pixels",
    "Rebinned",
    "WavelengthGrid",
    "air_to_vacuum",
    "flux_unit",
    "mean_absolute_flux",
    "mean_exposure",
    "overlap_matrix",
    "rebin",
]

Array = NDArray[np.float64]

FARTHEST = 10.0
"""Pixels are clipped at this many median deviations from the median to find the unit of a spectrum."""


@dataclass(frozen=True)
class WavelengthGrid:
    """Pixels of the model: vacuum wavelengths, heliocentric, in Angstrom.

    Arguments:
        start: Wavelength of the first pixel's centre.
        stop: Wavelength of the last pixel's centre.
        size: Number of pixels D.
        log: Uniform in the logarithm of the wavelength instead of the wavelength.

    Example:
        >>> grid = WavelengthGrid()
        >>> grid.size, float(grid.wavelength[0]), float(grid.wavelength[-1])
        (2048, 4000.0, 9000.0)
    """

    start: float = 4000.0
    stop: float = 9000.0
    size: int = 2048
    log: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.start < self.stop and self.size >= 2):
            raise ValueError(f"a grid needs 0 < start < stop and at least two pixels, got {self}")

    @cached_property
    def wavelength(self) -> Array:
        """Pixel centres, (D,), Angstrom."""
        space = np.geomspace if self.log else np.linspace
        return space(self.start, self.stop, self.size)

    @cached_property
    def edges(self) -> Array:
        """Pixel borders, (D + 1,), Angstrom."""
        if self.log:
            return np.exp(_edges(np.log(self.wavelength)))
        return _edges(self.wavelength)

    def to_dict(self) -> dict[str, Any]:
        """The four arguments, for the card of a bundle."""
        return asdict(self)


class Rebinned(NamedTuple):
    """Spectra on the model's grid: flux, ivar and mask (True = bad), each (..., D).

    Flux and ivar are 0 where the mask is True.
    """

    flux: Array
    ivar: Array
    mask: NDArray[np.bool_]


class Pixels(Protocol):
    """A target of rebinning: D pixels between D + 1 borders in Angstrom, such as a `WavelengthGrid`."""

    @property
    def size(self) -> int:
        """Number of pixels D."""

    @property
    def edges(self) -> Array:
        """Pixel borders, (D + 1,), Angstrom."""


@dataclass(frozen=True, eq=False)
class NativePixels:
    """Pixels of an instrument, which extend half-way to their neighbours.

    Arguments:
        wavelength: Pixel centres, (M,), strictly increasing, Angstrom.
    """

    wavelength: Array

    @property
    def size(self) -> int:
        """Number of pixels M."""
        return len(self.wavelength)

    @cached_property
    def edges(self) -> Array:
        """Pixel borders, (M + 1,), Angstrom."""
        return _edges(self.wavelength)


def overlap_matrix(wavelength: ArrayLike, grid: Pixels) -> csr_array:
    """Overlap in Angstrom of grid pixel d and native pixel m, (D, M).

    Native pixels extend half-way to their neighbours, but not into a gap where rows are missing, i.e. where
    a step is over 1.5 times as long as those around it. Where two arms in one spectrum overlap, their pixels
    share the range between them, however close they are.

    Arguments:
        wavelength: Native pixel centres, (M,), strictly increasing, Angstrom.
        grid: The grid to rebin to.

    Raises:
        ValueError: if the wavelengths are not finite, positive and strictly increasing.
    """
    wavelength = np.asarray(wavelength, dtype=float)
    if wavelength.ndim != 1 or wavelength.size < 2:
        raise ValueError(f"wavelengths must be one row of at least two pixels, got shape {wavelength.shape}")
    if not (np.isfinite(wavelength).all() and wavelength[0] > 0 and (np.diff(wavelength) > 0).all()):
        raise ValueError("wavelengths must be finite, positive and strictly increasing")

    # Each interval of the merged borders is in one grid pixel, and in one native pixel or a gap.
    lower, upper = _native_borders(wavelength)
    cuts = np.unique(np.concatenate([lower, upper, grid.edges]))
    cuts = cuts[(cuts >= max(lower[0], grid.edges[0])) & (cuts <= min(upper[-1], grid.edges[-1]))]
    middle = (cuts[1:] + cuts[:-1]) / 2
    column = np.searchsorted(lower, middle) - 1
    inside = middle < upper[column]
    row = np.searchsorted(grid.edges, middle) - 1
    length = np.diff(cuts)
    return csr_array((length[inside], (row[inside], column[inside])), shape=(grid.size, wavelength.size))


def rebin(
    wavelength: ArrayLike,
    flux: ArrayLike,
    ivar: ArrayLike | None,
    mask: ArrayLike,
    grid: Pixels,
    *,
    min_coverage: float = 0.5,
    overlap: csr_array | None = None,
) -> Rebinned:
    """Average flux densities over the pixels of the grid, with variance and mask.

    A grid pixel is the mean of the good native pixels it overlaps, weighted by the length of the overlap, so
    the integral of the flux is conserved. Its variance is that of this mean. It counts as observed if good
    native pixels cover at least `min_coverage` of it.

    Arguments:
        wavelength: Native pixel centres, (M,), Angstrom.
        flux: Flux densities per Angstrom, (..., M).
        ivar: Their inverse variance, (..., M), positive where the mask is False; None for unknown (comes back
            as 0).
        mask: True = bad, (..., M). Flux and ivar have no influence there.
        grid: The grid to rebin to.
        min_coverage: Fraction of a grid pixel that must be observed, in (0, 1].
        overlap: `overlap_matrix(wavelength, grid)`, if already computed.

    Example:
        >>> native = np.geomspace(3900, 9100, 4000)
        >>> flat = rebin(native, np.ones(4000), np.full(4000, 4.0), np.zeros(4000, bool), WavelengthGrid())
        >>> bool(np.allclose(flat.flux, 1)), bool(flat.mask.any())
        (True, False)
    """
    overlap = overlap_matrix(wavelength, grid) if overlap is None else overlap
    bad = np.asarray(mask, dtype=bool)
    lead, native = bad.shape[:-1], bad.shape[-1]
    flat = np.where(bad, 0.0, np.asarray(flux, dtype=float)).reshape(-1, native)
    good = (~bad).astype(float).reshape(-1, native)

    covered = (overlap @ good.T).T
    observed = covered >= min_coverage * np.diff(grid.edges) * (1 - 1e-9)
    weight = np.where(observed, covered, 1.0)
    mean = np.where(observed, (overlap @ flat.T).T / weight, 0.0)

    inverse = np.zeros_like(mean)
    if ivar is not None:
        variance = np.zeros_like(good)
        np.divide(1.0, np.asarray(ivar, dtype=float).reshape(-1, native), out=variance, where=good > 0)
        squared = overlap.power(2) @ variance.T
        np.divide(weight**2, squared.T, out=inverse, where=observed & (squared.T > 0))

    shape = (*lead, grid.size)
    return Rebinned(mean.reshape(shape), inverse.reshape(shape), ~observed.reshape(shape))


def mean_exposure(flux: NDArray, ivar: NDArray, mask: NDArray) -> Rebinned:
    """Exposures (..., E, D) averaged by inverse variance: flux, ivar and mask (True = bad), each (..., D).

    If one that is not masked has no inverse variance, all have equal weight and the mean's ivar is 0. Where
    all are masked, the flux is 0 too.
    """
    seen = ~mask
    ivar = np.where(seen, ivar, 0.0)
    known = (mask | (ivar > 0)).all(-2, keepdims=True)
    weight = np.where(known, ivar, seen)
    total = weight.sum(-2)
    mean = (weight * np.where(seen, flux, 0.0)).sum(-2)
    mean = np.divide(mean, total, out=np.zeros_like(mean), where=total > 0)
    return Rebinned(mean, np.where(known, ivar, 0.0).sum(-2), np.all(mask, -2))


def mean_absolute_flux(flux: NDArray, mask: NDArray) -> NDArray:
    """Mean |flux| over the observed pixels, (...,): the model's unit of flux.

    0 where nothing is observed.
    """
    observed = ~mask
    count = observed.sum(-1)
    return np.where(observed, np.abs(flux), 0.0).sum(-1) / np.maximum(count, 1)


def flux_unit(flux: NDArray, mask: NDArray) -> NDArray:
    """Estimate of the mean |flux| of the *clean* spectrum over the observed pixels, (...,), from a noisy one.

    Noise increases the mean of |flux|. The flux of a star is positive at all wavelengths, so the plain mean
    equals mean |flux| for a clean spectrum and is unbiased for a noisy one. If it is less than half of mean
    |flux|, the spectrum is nearly all noise, and mean |flux| is returned. Pixels are clipped at `FARTHEST`
    median deviations from the median, so a cosmic ray counts no more than a bright line. 0 where nothing is
    observed.

    Example:
        >>> noisy = 1 + np.random.default_rng(0).normal(0, 1, 100_000)
        >>> noisy[0] = 1e20
        >>> nothing = noisy < -np.inf
        >>> round(float(flux_unit(np.abs(noisy), nothing)), 2), round(float(flux_unit(noisy, nothing)), 2)
        (1.17, 1.0)
    """
    size, mean = _robust_mean(np.abs(flux), mask), _robust_mean(flux, mask)
    return np.where(mean > size / 2, mean, np.where(size > 0, size, mean_absolute_flux(flux, mask)))


def _robust_mean(values: NDArray, mask: NDArray) -> NDArray:
    """Mean over the observed pixels, (...,), of values (..., D) clipped around their median."""
    middle = _median(values, mask)[..., None]
    reach = FARTHEST * _median(np.abs(values - middle), mask)[..., None]
    drawn = np.clip(np.where(mask, middle, values), middle - reach, middle + reach)
    return np.where(mask, 0.0, drawn).sum(-1) / np.maximum((~mask).sum(-1), 1)


def _median(values: NDArray, mask: NDArray) -> NDArray:
    """Median over the observed pixels, (...,); 0 where there is none."""
    count = (~mask).sum(-1, keepdims=True)
    ordered = np.sort(np.where(mask, np.inf, values), axis=-1)
    low, high = (np.take_along_axis(ordered, np.maximum(k, 0), -1) for k in ((count - 1) // 2, count // 2))
    return np.where(count > 0, low / 2 + high / 2, 0.0)[..., 0]


def air_to_vacuum(wavelength: ArrayLike) -> Array:
    """Vacuum wavelengths for wavelengths in air, in Angstrom: Morton 2000 (ApJS 130, 403), eq. (8).

    Below 2000 Angstrom they are not converted, because by convention wavelengths there are always vacuum.

    Example:
        >>> round(float(air_to_vacuum(6562.79)), 2)
        6564.6
    """
    # Not with specutils, which would load wcslib for every reader.
    wavelength = np.asarray(wavelength, dtype=float)
    in_air = wavelength >= 2000
    s2 = np.square(1e4 / np.where(in_air, wavelength, 2000.0))
    n = 1 + 8.34254e-5 + 2.406147e-2 / (130 - s2) + 1.5998e-4 / (38.9 - s2)
    return np.where(in_air, n * wavelength, wavelength)


def _native_borders(centres: Array) -> tuple[Array, Array]:
    step = np.diff(centres)
    # Where arms overlap, their pixels alternate: a short step between long ones is not the size of a pixel.
    beside = np.minimum(np.append(0.0, step[:-1]), np.append(step[1:], 0.0))
    size = np.where(step < beside / 2.2, beside, step)  # one missing row makes 2
    usual = median_filter(size, size=min(11, len(size)), mode="nearest")
    gap = step > 1.5 * usual
    middle = (centres[1:] + centres[:-1]) / 2
    upper = np.where(gap, centres[:-1] + usual / 2, middle)
    lower = np.where(gap, centres[1:] - usual / 2, middle)
    first, last = centres[0] - (upper[0] - centres[0]), centres[-1] + (centres[-1] - lower[-1])
    return np.concatenate([[first], lower]), np.concatenate([upper, [last]])


def _edges(centres: Array) -> Array:
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[centres[0] * 2 - middle[0]], middle, [centres[-1] * 2 - middle[-1]]])
