"""Artefacts of real spectra: residuals of sky lines and cosmic rays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bayesspec.grid import WavelengthGrid, air_to_vacuum

__all__ = ["COSMIC_RAYS", "SKY_LINES", "cosmic_rays", "sky_residuals"]

Array = NDArray[np.float64]

SKY_LINES = {
    5577.34: 3.0,
    5889.95: 1.0,
    5895.92: 1.0,
    6300.30: 1.5,
    6363.78: 1.0,
    **dict.fromkeys((6863.96, 6923.22, 7276.41, 7316.28, 7340.89, 7750.64, 7794.11, 7821.50), 0.7),
    **dict.fromkeys((7913.71, 7964.65, 7993.33, 8344.60, 8399.17, 8430.17, 8465.36, 8504.63), 1.0),
    **dict.fromkeys((8778.33, 8827.10, 8885.85, 8919.60, 8943.40, 8958.08), 1.0),
}
"""Wavelengths in air, Angstrom, of [O I], Na I and OH lines of the night sky (Osterbrock et al. 1996, PASP
108, 277), and the strength of their residuals relative to those of OH."""

RESIDUAL = (3.0, 10.0)
"""Height of an OH residual, in standard deviations of the noise around it: limits of a log-uniform law."""

LINE_WIDTH = 1.2
"""Standard deviation of the spectrograph's line profile, Angstrom."""

COSMIC_RAYS = 6.0
"""Mean number of cosmic rays per exposure that the pipeline missed."""

HIT = (8.0, 40.0)
"""Height of a cosmic ray, in standard deviations of the noise around it: limits of a log-uniform law."""


def sky_residuals(grid: WavelengthGrid, sigma: Array, rng: np.random.Generator) -> Array:
    """Residuals at every line of the night sky, (D,), from errors in strength and position.

    A line subtracted at the wrong position leaves a peak beside a trough; one with the wrong strength leaves
    a peak or a trough. Each residual is a mixture of both.

    Arguments:
        grid: Wavelength grid.
        sigma: Standard deviation of the noise, (D,).
        rng: Random numbers.
    """
    lines = air_to_vacuum(list(SKY_LINES))
    height = np.array(list(SKY_LINES.values())) * log_uniform(rng, *RESIDUAL, len(lines))
    height *= rng.choice([-1.0, 1.0], len(lines))
    tilt = rng.uniform(-1, 1, len(lines))

    away = (grid.wavelength - lines[:, None]) / LINE_WIDTH
    profile = np.exp(-0.5 * away**2) * ((1 - np.abs(tilt))[:, None] + tilt[:, None] * away * np.sqrt(np.e))
    nearest = np.clip(np.searchsorted(grid.wavelength, lines), 0, grid.size - 1)
    return (height * sigma[nearest]) @ profile


def cosmic_rays(sigma: Array, rng: np.random.Generator) -> Array:
    """Cosmic rays of one to three pixels, (D,), at random positions; their number is Poisson.

    Arguments:
        sigma: Standard deviation of the noise, (D,).
        rng: Random numbers.
    """
    flux = np.zeros(len(sigma))
    for _ in range(rng.poisson(COSMIC_RAYS)):
        width = rng.integers(1, 4)
        first = rng.integers(0, len(sigma) - width + 1)
        share = rng.uniform(0.3, 1.0, width)
        flux[first : first + width] += log_uniform(rng, *HIT) * sigma[first] * share / share.max()
    return flux


def log_uniform(rng: np.random.Generator, low: float, high: float, size: int | None = None) -> Array:
    """Random numbers whose logarithm is uniform."""
    return np.exp(rng.uniform(np.log(low), np.log(high), size))
