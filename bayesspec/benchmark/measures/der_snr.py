"""S/N of a spectrum from its fluxes alone: DER_SNR."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["der_noise", "der_snr"]

GAUSSIAN = 1.482602
"""Standard deviation of a normal distribution whose median absolute value is 1."""

STEP = 2
"""Spacing of the three pixels of a difference, because the noise of neighbours may be correlated."""


def der_snr(flux: NDArray, mask: NDArray) -> NDArray[np.float64]:
    """Median flux divided by the noise from second differences, (...,), see `der_noise`.

    References:
        | Stoehr et al. 2008, DER_SNR: A Simple & General Spectroscopic Signal-to-Noise Measurement Algorithm,
        | ASP Conf. Ser. 394, 505

    Arguments:
        flux: (..., D).
        mask: True = bad, (..., D).

    Returns:
        The ratio; 0 if there is no complete difference, infinite if a spectrum has no noise.

    Example:
        >>> noisy = 1 + np.random.default_rng(0).normal(0, 0.1, 100_000)
        >>> round(float(der_snr(noisy, noisy < -9)), 1)
        10.0
    """
    noise, told = der_noise(flux, mask)
    signal = _median(np.asarray(flux, float), ~np.asarray(mask, dtype=bool))
    ratio = np.full(noise.shape, np.inf)
    np.divide(signal, noise, out=ratio, where=noise > 0)
    return np.where(told, ratio, 0.0)


def der_noise(flux: NDArray, mask: NDArray) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    r"""Standard deviation of a spectrum's noise from its fluxes, (...,), and whether it could be measured.

    .. math:: \sigma = \frac{1.482602}{\sqrt 6} \, \mathrm{median}_i \,
        |2 f_i - f_{i-2} - f_{i+2}|

    The original removes missing pixels and joins the rest. Here a difference needs all three pixels, so that
    the two sides of a gap are never compared.

    Arguments:
        flux: (..., D).
        mask: True = bad, (..., D).

    Example:
        >>> noisy = 1 + np.random.default_rng(0).normal(0, 0.1, 100_000)
        >>> der_noise(noisy, noisy < -9)[0].round(2)
        np.float64(0.1)
    """
    seen = ~np.asarray(mask, dtype=bool)
    flux = np.where(seen, flux, 0.0).astype(float)
    difference = np.abs(2 * flux[..., STEP:-STEP] - flux[..., : -2 * STEP] - flux[..., 2 * STEP :])
    whole = seen[..., STEP:-STEP] & seen[..., : -2 * STEP] & seen[..., 2 * STEP :]
    return GAUSSIAN / np.sqrt(6) * _median(difference, whole), whole.any(-1)


def _median(values: NDArray, seen: NDArray) -> NDArray[np.float64]:
    """Median over the observed values of the last axis; 0 where there is none."""
    count = seen.sum(-1, keepdims=True)
    ordered = np.sort(np.where(seen, values, np.inf), axis=-1)
    middle = [np.take_along_axis(ordered, np.maximum(at, 0), -1) for at in ((count - 1) // 2, count // 2)]
    return np.where(count > 0, (middle[0] + middle[1]) / 2, 0.0)[..., 0]
