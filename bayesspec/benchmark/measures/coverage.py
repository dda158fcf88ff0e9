"""Coverage and width of posterior intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVELS", "Coverage", "interval_coverage", "pixel_coverage"]

LEVELS = (0.50, 0.68, 0.90, 0.95)
"""Probabilities of the central intervals."""


class Coverage(NamedTuple):
    """For each level: the fraction of pixels with the truth inside, and mean width, each (..., levels)."""

    share: NDArray[np.float64]
    width: NDArray[np.float64]


def interval_coverage(
    draws: NDArray,
    truth: NDArray,
    mask: NDArray,
    *,
    variance: NDArray | None = None,
    levels: tuple[float, ...] = LEVELS,
    seed: int = 0,
) -> Coverage:
    """Coverage and width of the central intervals of draws of a spectrum with equal weight.

    The truth has noise too. With its variance, such noise is added to each draw, and the intervals are for
    the truth as measured. Without it they are for the star, and the truth's noise counts against them.

    Arguments:
        draws: Clean spectra, (S, D).
        truth: (D,).
        mask: Pixels where the truth is missing, True = bad, (D,).
        variance: Variance of the truth's own noise, (D,), 0 where unknown.
        levels: Probabilities of the intervals.
        seed: Seed of the added noise.

    Returns:
        Each (levels,); 0 if the truth has no pixel.

    Example:
        >>> rng, nothing = np.random.default_rng(0), np.zeros(2000, bool)
        >>> right = interval_coverage(rng.normal(0, 1, (500, 2000)), rng.normal(0, 1, 2000), nothing)
        >>> bool(np.allclose(right.share, LEVELS, atol=0.04))
        True
    """
    good = ~np.asarray(mask, dtype=bool)
    if not good.any():
        return Coverage(np.zeros(len(levels)), np.zeros(len(levels)))
    noise = None if variance is None else variance[good]
    inside, width = pixel_coverage(draws[:, good], truth[good], variance=noise, levels=levels, seed=seed)
    return Coverage(inside.mean(-1), width.mean(-1))


def pixel_coverage(
    draws: NDArray,
    truth: NDArray,
    *,
    variance: NDArray | None = None,
    levels: tuple[float, ...] = LEVELS,
    seed: int = 0,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The same pixel by pixel: whether the truth is inside, how wide the interval is, each (levels, D)."""
    draws = np.asarray(draws, float)
    if variance is not None:
        draws = draws + np.sqrt(variance) * np.random.default_rng(seed).standard_normal(draws.shape)
    tails = np.array([(1 - level) / 2 for level in levels])
    # All ends at once, because sorting is the expensive part.
    ends = np.quantile(draws, np.concatenate([tails, 1 - tails]), axis=0)
    lower, upper = ends[: len(levels)], ends[len(levels) :]
    return (truth >= lower) & (truth <= upper), upper - lower
