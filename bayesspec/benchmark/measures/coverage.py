"""Do posterior intervals hold the truth as often as they say, and how wide are they?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVELS", "Coverage", "interval_coverage", "pixel_coverage"]

LEVELS = (0.50, 0.68, 0.90, 0.95)
"""Shares of the posterior that a central interval holds."""


class Coverage(NamedTuple):
    """For each level: the share of pixels whose truth is inside, and the mean width, each (..., levels)."""

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
    """Coverage and width of the central intervals of equally probable draws of a spectrum.

    What is taken for the truth has noise of its own. With its variance the intervals are those of what would
    be measured: each draw has such noise added. Without, they are those of the star, and the truth's noise
    counts against them.

    Arguments:
        draws: Clean spectra, (S, D).
        truth: (D,).
        mask: Pixels that the truth does not have, True = bad, (D,).
        variance: Of the truth's own noise, (D,), 0 where unknown.
        levels: Shares of the posterior.
        seed: Of the noise that is added.

    Returns:
        Each (levels,); 0 where the truth has no pixel.

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
    # All ends at once: sorting is what costs.
    ends = np.quantile(draws, np.concatenate([tails, 1 - tails]), axis=0)
    lower, upper = ends[: len(levels)], ends[len(levels) :]
    return (truth >= lower) & (truth <= upper), upper - lower
