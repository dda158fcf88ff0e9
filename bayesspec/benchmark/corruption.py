"""What is done to a clean spectrum in each benchmark set: noise of real exposures, and then worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

# A formula that imports nothing of this package.
from bayesspec.benchmark.measures.der_snr import der_snr
from bayesspec.grid import WavelengthGrid
from bayesspec.observation import FULL_COVERAGE
from bayesspec.physics.doppler import Shift
from bayesspec.physics.throughput import BORDER, calibration_modes, extinction_mode

from .injection import cosmic_rays, sky_residuals

if TYPE_CHECKING:
    from .sets import BenchmarkRecipe

__all__ = ["PAPER_SIZE", "SETS", "UNKNOWN_SCALE", "Exposures", "Truth"]

PAPER_SIZE = 2048
"""Pixels of the paper's grid, which widths of gaps are given in."""


class Truth(NamedTuple):
    """One clean spectrum, (D,)."""

    flux: NDArray
    mask: NDArray


class Exposures(NamedTuple):
    """E noisy exposures of it: flux, ivar and mask, each (E, D), and the E nights of their noise.

    `truth` is the star if it is another than the library's, since it moves; `factor`, (D,), what dust and
    flux calibration make of it: its light times this is what is to be found.
    """

    flux: NDArray
    ivar: NDArray
    mask: NDArray
    epoch: NDArray
    truth: Truth | None = None
    factor: NDArray | float = 1.0

    def without(self, removed: NDArray) -> Exposures:
        """The same with pixels (D,) removed."""
        return self._replace(mask=self.mask | removed)


Condition = dict[str, float | str]
Expose = Callable[[int], Exposures]
Noisy = tuple[Exposures, Condition]
Builder = Callable[[Truth, Expose, np.random.Generator, WavelengthGrid, "BenchmarkRecipe"], Iterator[Noisy]]


def _plain(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> Iterator[Noisy]:
    yield expose(1), {}


def _interval(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> Iterator[Noisy]:
    exposure = expose(1)
    low, high = (_in_pixels(width, grid) for width in recipe.random_gap)
    width = int(rng.integers(low, high + 1))
    first = int(rng.integers(0, grid.size - width + 1))
    yield exposure.without(_between(grid, first, first + width)), {"gap_width": width, "gap_start": first}


def _gaps(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> Iterator[Noisy]:
    """Of complete spectra alone: an end that the truth does not have cannot be removed."""
    if (~truth.mask).mean() < FULL_COVERAGE:
        return
    exposure = expose(1)
    for width in (_in_pixels(width, grid) for width in recipe.gap_widths):
        starts = {"blue end": 0, "middle": (grid.size - width) // 2, "red end": grid.size - width}
        for place, first in starts.items():
            removed = _between(grid, first, first + width)
            yield exposure.without(removed), {"gap_width": width, "gap_place": place}


def _der_snr(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> Iterator[Noisy]:
    """The exposure's own noise and Gaussian noise on top; its own less, where it alone is too much."""
    exposure = expose(1)
    own, white = exposure.flux[0] - truth.flux, rng.standard_normal(grid.size)
    mask = exposure.mask[0]
    for level in recipe.levels:
        share = _solve(lambda a: der_snr(truth.flux + a * own, mask), level, 1.0)
        extra = 0.0
        if share == 1.0:
            extra = _solve(lambda b: der_snr(truth.flux + own + b * white, mask), level, 10.0)
        variance = share**2 * _variance(exposure.ivar) + extra**2
        yield (
            exposure._replace(
                flux=truth.flux + share * own[None] + extra * white,
                ivar=np.where(exposure.ivar > 0, 1 / np.maximum(variance, 1e-30), 0.0),
            ),
            {"level": level, "noise_share": share, "gaussian": extra},
        )


def _sky(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> Iterator[Noisy]:
    """The pipeline flags nothing, and its ivar stays as it was."""
    exposure = expose(1)
    sigma = _sigma(exposure, truth)
    sky, hits = sky_residuals(grid, sigma, rng), cosmic_rays(sigma, rng)
    yield (
        exposure._replace(flux=exposure.flux + sky + hits),
        {"sky_pixels": int((np.abs(sky) > sigma).sum()), "cosmic_pixels": int((hits > 0).sum())},
    )


def _hits(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> Iterator[Noisy]:
    """One pixel of the same exposure raised by each height in turn; not flagged, the ivar as it was."""
    exposure = expose(1)
    pixel = int(rng.choice(np.flatnonzero(~exposure.mask[0])))
    for height in recipe.hits:
        hit = np.where(np.arange(grid.size) == pixel, height, 0.0)
        yield exposure._replace(flux=exposure.flux + hit), {"height": height, "hit_pixel": pixel}


def _moving(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> Iterator[Noisy]:
    exposure = expose(1)
    for velocity in recipe.velocities:
        shift = Shift(torch.tensor(velocity, dtype=torch.float64), grid)
        flux = shift.apply(torch.as_tensor(truth.flux, dtype=torch.float64)).numpy()
        moved = Truth(flux, shift.lacks(torch.as_tensor(truth.mask)).numpy())
        part = exposure._replace(flux=exposure.flux + (flux - truth.flux), truth=moved)
        yield part.without(moved.mask), {"velocity": velocity}


def _dust(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> Iterator[Noisy]:
    exposure = expose(1)
    for ebv in recipe.ebv:
        yield _dimmed(exposure, truth, np.exp(ebv * extinction_mode(grid))), {"ebv": ebv}


def _calibration(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> Iterator[Noisy]:
    """Off by a smooth factor, of as much root mean square in its logarithm."""
    exposure = expose(1)
    modes = calibration_modes(grid, 4)
    mixed = rng.standard_normal(len(modes)) @ modes
    for level in recipe.calibration:
        error = mixed * level / np.sqrt(np.mean(mixed**2))
        yield _dimmed(exposure, truth, np.exp(error)), {"calibration_error": level}


def _dimmed(exposure: Exposures, truth: Truth, factor: NDArray) -> Exposures:
    """The star's light times a factor, and the noise as it was."""
    return exposure._replace(flux=exposure.flux + (factor - 1) * truth.flux, factor=factor)


def _arms(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> Iterator[Noisy]:
    exposure = expose(1)
    factor = 1 + rng.choice([-1, 1]) * rng.uniform(0.05, 0.20)
    scale = np.where(grid.wavelength > BORDER, factor, 1.0)
    yield (
        exposure._replace(flux=exposure.flux * scale, ivar=exposure.ivar / scale**2, factor=scale),
        {"red_factor": float(factor)},
    )


def _visits(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> Iterator[Noisy]:
    count = int(rng.integers(2, 7))
    yield expose(count), {"exposures": count}


def _high_snr(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> Iterator[Noisy]:
    exposure = expose(1)
    now = 1 / np.median(_sigma(exposure, truth)[~exposure.mask[0]])
    for target in recipe.high_snr:
        share = now / target
        noise = exposure.flux - truth.flux
        yield (
            exposure._replace(flux=truth.flux + share * noise, ivar=exposure.ivar / share**2),
            {"snr": target, "noise_share": float(share)},
        )


def _one_arm(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> Iterator[Noisy]:
    exposure = expose(1)
    blue = grid.wavelength <= BORDER
    for arm, removed in (("blue", ~blue), ("red", blue)):
        yield exposure.without(removed), {"arm": arm}


def _sigma(exposure: Exposures, truth: Truth) -> NDArray[np.float64]:
    """Standard deviation of an exposure's noise, (D,): the pipeline's, or one for all pixels by the bulk."""
    seen = ~exposure.mask[0]
    bulk = 1.4826 * np.median(np.abs((exposure.flux[0] - truth.flux)[seen]))
    return np.where(exposure.ivar[0] > 0, np.sqrt(_variance(exposure.ivar[0])), bulk)


def _variance(ivar: NDArray) -> NDArray[np.float64]:
    return np.divide(1.0, ivar, out=np.zeros(ivar.shape), where=ivar > 0)


def _solve(measure: Callable[[float], NDArray], level: float, most: float) -> float:
    """The amount of noise in (0, most] at which a measure that falls with it has fallen to the level."""
    low, high = 0.0, most
    if measure(high) >= level:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(middle) > level else (low, middle)
    return high


def _in_pixels(width: int, grid: WavelengthGrid) -> int:
    """A width of the paper's grid in pixels of another."""
    return max(1, round(width * grid.size / PAPER_SIZE))


def _between(grid: WavelengthGrid, first: int, last: int) -> NDArray[np.bool_]:
    pixel = np.arange(grid.size)
    return (pixel >= first) & (pixel < last)


SETS: dict[str, tuple[Builder, bool]] = {
    "plain": (_plain, False),
    "interval": (_interval, False),
    "gaps": (_gaps, True),
    "der_snr": (_der_snr, True),
    "sky": (_sky, False),
    "hits": (_hits, True),
    "arms": (_arms, False),
    "moving": (_moving, True),
    "dust": (_dust, True),
    "calibration": (_calibration, True),
    "visits": (_visits, False),
    "high_snr": (_high_snr, True),
    "one_arm": (_one_arm, True),
}
"""What is done to a clean spectrum, and whether each star is taken under several conditions."""

UNKNOWN_SCALE = ("hits", "one_arm", "moving", "dust", "calibration", "arms")
"""Sets in which nobody is told the scale of the truth, as what the spectrum itself says of it is wrong."""
