"""Signal to noise of a spectrum by itself: DER_SNR."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["der_snr"]

GAUSSIAN = 1.482602
"""Standard deviation of a normal distribution whose median absolute value is 1."""

STEP = 2
"""Pixels between the three of a difference: neighbours may share their noise."""


def der_snr(flux: NDArray, mask: NDArray) -> NDArray[np.float64]:
    r"""Median flux over the noise that third-order differences show, (...,).

    .. math:: \sigma = \frac{1.482602}{\sqrt 6} \, \mathrm{median}_i \,
        |2 f_i - f_{i-2} - f_{i+2}|

    The original closes the ranks where pixels are missing; here a difference needs its three pixels, so that
    no two sides of a gap are compared.

    References:
        | Stoehr et al. 2008, DER_SNR: A Simple & General Spectroscopic Signal-to-Noise Measurement Algorithm,
        | ASP Conf. Ser. 394, 505

    Arguments:
        flux: (..., D).
        mask: True = bad, (..., D).

    Returns:
        The ratio; 0 where no three pixels make a difference, infinite where a spectrum has no noise.

    Example:
        >>> noisy = 1 + np.random.default_rng(0).normal(0, 0.1, 100_000)
        >>> round(float(der_snr(noisy, noisy < -9)), 1)
        10.0
    """
    seen = ~np.asarray(mask, dtype=bool)
    flux = np.where(seen, flux, 0.0).astype(float)
    difference = np.abs(2 * flux[..., STEP:-STEP] - flux[..., : -2 * STEP] - flux[..., 2 * STEP :])
    whole = seen[..., STEP:-STEP] & seen[..., : -2 * STEP] & seen[..., 2 * STEP :]

    noise = GAUSSIAN / np.sqrt(6) * _median(difference, whole)
    signal = _median(flux, seen)
    ratio = np.full(noise.shape, np.inf)
    np.divide(signal, noise, out=ratio, where=noise > 0)
    return np.where(whole.any(-1), ratio, 0.0)


def _median(values: NDArray, seen: NDArray) -> NDArray[np.float64]:
    """Median over the last axis of what is seen; 0 where nothing is."""
    count = seen.sum(-1, keepdims=True)
    ordered = np.sort(np.where(seen, values, np.inf), axis=-1)
    middle = [np.take_along_axis(ordered, np.maximum(at, 0), -1) for at in ((count - 1) // 2, count // 2)]
    return np.where(count > 0, (middle[0] + middle[1]) / 2, 0.0)[..., 0]
