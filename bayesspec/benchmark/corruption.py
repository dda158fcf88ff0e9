"""Perturbations of a clean spectrum in each benchmark set: noise of real exposures, and further effects."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from bayesspec.grid import WavelengthGrid
from bayesspec.observation import FULL_COVERAGE
from bayesspec.physics.doppler import Shift
from bayesspec.physics.throughput import BORDER, calibration_modes, extinction_mode
from bayesspec.training.simulation import (
    Expose,
    Exposures,
    Noisy,
    Truth,
    between,
    in_pixels,
    sigma,
    variance,
)

from .injection import cosmic_rays, sky_residuals
from .measures.der_snr import der_snr

__all__ = ["arms", "calibration", "dust", "gaps", "hits", "moving", "noisy", "plain", "sky", "visits"]


def plain(truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid) -> Iterator[Noisy]:
    """One exposure, without further perturbations."""
    yield expose(1), {}


def gaps(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, widths: tuple[int, ...]
) -> Iterator[Noisy]:
    """Remove intervals from complete spectra only: an end that is missing in the truth cannot be removed."""
    if (~truth.mask).mean() < FULL_COVERAGE:
        return
    exposure = expose(1)
    for width in (in_pixels(width, grid) for width in widths):
        starts = {"blue end": 0, "middle": (grid.size - width) // 2, "red end": grid.size - width}
        for place, first in starts.items():
            removed = between(grid, first, first + width)
            yield exposure.without(removed), {"gap_width": width, "gap_place": place}


def noisy(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, levels: tuple[float, ...]
) -> Iterator[Noisy]:
    """Add Gaussian noise to that of the exposure, or scale that down if it alone exceeds the level."""
    exposure = expose(1)
    own, white = exposure.flux[0] - truth.flux, rng.standard_normal(grid.size)
    mask = exposure.mask[0]
    for level in levels:
        share = _solve(lambda a: der_snr(truth.flux + a * own, mask), level, 1.0)
        extra = 0.0
        if share == 1.0:
            extra = _solve(lambda b: der_snr(truth.flux + own + b * white, mask), level, 10.0)
        total = share**2 * variance(exposure.ivar) + extra**2
        yield (
            exposure._replace(
                flux=truth.flux + share * own[None] + extra * white,
                ivar=np.where(exposure.ivar > 0, 1 / np.maximum(total, 1e-30), 0.0),
            ),
            {"level": level, "noise_share": share, "gaussian": extra},
        )


def sky(truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid) -> Iterator[Noisy]:
    """Add sky residuals and cosmic rays; nothing is flagged, and the ivar is unchanged."""
    exposure = expose(1)
    width = sigma(exposure, truth)
    lines, rays = sky_residuals(grid, width, rng), cosmic_rays(width, rng)
    yield (
        exposure._replace(flux=exposure.flux + lines + rays),
        {"sky_pixels": int((np.abs(lines) > width).sum()), "cosmic_pixels": int((rays > 0).sum())},
    )


def hits(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, heights: tuple[float, ...]
) -> Iterator[Noisy]:
    """Raise one pixel of an exposure by each height in turn; it is not flagged, and the ivar is unchanged."""
    exposure = expose(1)
    pixel = int(rng.choice(np.flatnonzero(~exposure.mask[0])))
    for height in heights:
        hit = np.where(np.arange(grid.size) == pixel, height, 0.0)
        yield exposure._replace(flux=exposure.flux + hit), {"height": height, "hit_pixel": pixel}


def moving(
    truth: Truth,
    expose: Expose,
    rng: np.random.Generator,
    grid: WavelengthGrid,
    velocities: tuple[float, ...],
) -> Iterator[Noisy]:
    """Shift the star by each velocity, km/s."""
    exposure = expose(1)
    for velocity in velocities:
        shift = Shift(torch.tensor(velocity, dtype=torch.float64), grid)
        flux = shift.apply(torch.as_tensor(truth.flux, dtype=torch.float64)).numpy()
        moved = Truth(flux, shift.lacks(torch.as_tensor(truth.mask)).numpy())
        part = exposure._replace(flux=exposure.flux + (flux - truth.flux), truth=moved)
        yield part.without(moved.mask), {"velocity": velocity}


def dust(
    truth: Truth,
    expose: Expose,
    rng: np.random.Generator,
    grid: WavelengthGrid,
    reddenings: tuple[float, ...],
) -> Iterator[Noisy]:
    """Redden the star by each E(B-V), magnitudes."""
    exposure = expose(1)
    for ebv in reddenings:
        yield _dimmed(exposure, truth, np.exp(ebv * extinction_mode(grid))), {"ebv": ebv}


def calibration(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, levels: tuple[float, ...]
) -> Iterator[Noisy]:
    """Multiply by a smooth factor whose logarithm has each of these rms values."""
    exposure = expose(1)
    modes = calibration_modes(grid, 4)
    mixed = rng.standard_normal(len(modes)) @ modes
    for level in levels:
        error = mixed * level / np.sqrt(np.mean(mixed**2))
        yield _dimmed(exposure, truth, np.exp(error)), {"calibration_error": level}


def _dimmed(exposure: Exposures, truth: Truth, factor: NDArray) -> Exposures:
    """The star's flux times a factor, with unchanged noise."""
    return exposure._replace(flux=exposure.flux + (factor - 1) * truth.flux, factor=factor)


def arms(truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid) -> Iterator[Noisy]:
    """Multiply the red arm by a factor that is off by 5 to 20 %."""
    exposure = expose(1)
    factor = 1 + rng.choice([-1, 1]) * rng.uniform(0.05, 0.20)
    scale = np.where(grid.wavelength > BORDER, factor, 1.0)
    yield (
        exposure._replace(flux=exposure.flux * scale, ivar=exposure.ivar / scale**2, factor=scale),
        {"red_factor": float(factor)},
    )


def visits(truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid) -> Iterator[Noisy]:
    """Two to six exposures."""
    count = int(rng.integers(2, 7))
    yield expose(count), {"exposures": count}


def _solve(measure: Callable[[float], NDArray], level: float, most: float) -> float:
    """The amount of noise in (0, most] at which a measure that falls with noise reaches the level."""
    low, high = 0.0, most
    if measure(high) >= level:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(middle) > level else (low, middle)
    return high
