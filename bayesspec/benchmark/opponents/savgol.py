"""Savitzky-Golay smoothing: local polynomials, wider where there is more noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from bayesspec.benchmark.measures.der_snr import der_noise
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.library import StarLibrary

from .base import Array, Baseline, Mask, fill_gaps
from .pairs import Pairs, search

__all__ = ["SavitzkyGolay"]

AMPLITUDES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Noise amplitudes, in units of that of the exposures; a window and an order are chosen for each."""

WINDOWS = (13, 3, 5, 7, 9, 11, 17, 21, 25, 31, 41, 51, 71, 101)
ORDERS = (2, 1, 4)  # except at the ends, an odd order smooths like the even one below it


class SavitzkyGolay(Baseline):
    """`scipy.signal.savgol_filter` on spectra whose gaps are interpolated.

    Window and order are those that did best on validation stars with noise of about the spectrum's own level
    (DER_SNR). The pipeline's ivar is not used: weighting by it would reduce the loss by only 1 %.

    Arguments:
        levels: Noise levels in units of the mean flux, (T,), ascending.
        windows: Pixels of the window at each, (T,), odd.
        orders: Order of the polynomial at each, (T,).

    Example:
        >>> flat = np.ones((1, 2048))
        >>> bool(np.allclose(SavitzkyGolay([0.1], [13], [2]).denoise(flat, 0 * flat, flat > 1), 1))
        True
    """

    name = "savgol"

    def __init__(self, levels: Sequence[float], windows: Sequence[int], orders: Sequence[int]) -> None:
        self.levels, self.windows, self.orders = list(levels), list(windows), list(orders)

    @classmethod
    def tune(cls, stars: StarLibrary, noise: NoiseLibrary, *, per_class: int, seed: int) -> Self:
        """Choose window and order for each noise level on validation stars and exposures."""
        levels, windows, orders = [], [], []
        for amplitude in AMPLITUDES:
            scaled = replace(noise, residual=noise.residual * amplitude, ivar=noise.ivar / amplitude**2)
            pairs = Pairs.draw(stars, scaled, per_class=per_class, seed=seed, gaps=0.0)
            level = float(np.median(der_noise(pairs.flux, pairs.mask)[0]))
            best = search(
                lambda window, order: cls([1.0], [max(window, order + 1 + order % 2)], [order]),
                {"window": WINDOWS, "order": ORDERS},
                pairs,
            )
            levels.append(level)
            windows.append(max(best["window"], best["order"] + 1 + best["order"] % 2))
            orders.append(best["order"])
        return cls(levels, windows, orders)

    def _denoise(self, flux: Array, ivar: Array, mask: Mask) -> Array:
        filled = fill_gaps(flux, mask)
        own = np.log(np.maximum(der_noise(flux, mask)[0], 1e-6))
        nearest = np.abs(own[:, None] - np.log(self.levels)).argmin(-1)
        clean = np.empty_like(filled)
        for level in np.unique(nearest):
            rows = nearest == level
            clean[rows] = savgol_filter(filled[rows], self.windows[level], self.orders[level], axis=-1)
        return clean

    def _state(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        return {}, {"levels": self.levels, "windows": self.windows, "orders": self.orders}

    @classmethod
    def _from_state(cls, arrays: Mapping[str, NDArray], config: Mapping[str, Any]) -> Self:
        return cls(**config)
