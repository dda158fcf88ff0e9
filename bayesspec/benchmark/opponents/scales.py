"""Noise as a function of wavelength, from training exposures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from bayesspec.training.exposures import NoiseLibrary

from .base import Array, fill_gaps

__all__ = ["noise_scale", "pipeline_factor"]

SMOOTHING = 9
"""Pixels of the running median over noise scales, which come from a limited number of exposures."""


def noise_scale(noise: NoiseLibrary) -> Array:
    """Robust standard deviation of the noise at each wavelength, with each exposure in its own unit, (D,)."""
    residual = noise.residual / _spread(np.abs(noise.residual), ~noise.mask, axis=1)[:, None]
    return _smooth(_spread(np.abs(residual), ~noise.mask, axis=0))


def pipeline_factor(noise: NoiseLibrary) -> Array:
    """Robust standard deviation of noise in units of the pipeline's, (D,): 1 where its ivar is correct."""
    known = ~noise.mask & (noise.ivar > 0)
    if not known.any():
        return np.ones(noise.residual.shape[1])
    return _smooth(_spread(np.abs(noise.residual) * np.sqrt(noise.ivar), known, axis=0))


def _spread(size: NDArray, among: NDArray[np.bool_], axis: int) -> Array:
    """The value with 68.27 % below it; 1 where there is none."""
    spread = _quantile(size, among, 0.6827, axis)
    return np.where(spread > 0, spread, 1.0)


def _quantile(values: NDArray, among: NDArray[np.bool_], q: float, axis: int) -> Array:
    ordered = np.sort(np.where(among, values, np.inf), axis=axis).astype(float)
    count = among.sum(axis, keepdims=True)
    at = np.clip(np.round(q * (count - 1)).astype(int), 0, None)
    return np.where(count > 0, np.take_along_axis(ordered, at, axis), 0.0).squeeze(axis)


def _smooth(scale: Array) -> Array:
    return median_filter(fill_gaps(scale[None], scale[None] <= 0)[0], size=SMOOTHING, mode="nearest")
