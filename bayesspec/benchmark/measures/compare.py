"""Comparisons with their uncertainties: fractions with intervals, medians with errors, classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

__all__ = ["Estimate", "accuracy", "confusion", "log_score", "mean", "median", "share", "wins"]

CONFIDENCE = 0.95

RESAMPLES = 1000

FLOOR = 1e-6
"""Minimum probability of the true class in a log score, so that a single star cannot dominate the mean."""


class Estimate(NamedTuple):
    """A number, its 95 % interval, and the number of spectra."""

    value: float
    low: float
    high: float
    spectra: int


def wins(ours: NDArray, theirs: NDArray) -> Estimate:
    """Fraction of spectra whose loss is below the opponent's; a tie counts half, so against itself it is 1/2.

    Arguments:
        ours: Losses, (N,).
        theirs: Losses of the same spectra, (N,).

    Raises:
        ValueError: if there is no spectrum.

    Example:
        >>> wins(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 3.0])).value.__round__(3)
        0.833
    """
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return share((ours < theirs) + 0.5 * (ours == theirs))


def share(happened: NDArray) -> Estimate:
    """Fraction of spectra to which something happened, (N,) of 0, 1, or 1/2 for a tie.

    The binomial interval is that of Jeffreys: the central quantiles of Beta(k + 1/2, n - k + 1/2). Its lower
    end is 0 if k = 0, and its upper end is 1 if k = n.

    References:
        | Brown, Cai & DasGupta 2001, Statistical Science 16, 101

    Raises:
        ValueError: if there is no spectrum.
    """
    happened = np.asarray(happened, dtype=float)
    n = len(happened)
    if not n:
        raise ValueError("there is no spectrum for a fraction")
    k, tail = float(happened.sum()), (1 - CONFIDENCE) / 2
    low = 0.0 if k == 0 else float(beta.ppf(tail, k + 0.5, n - k + 0.5))
    high = 1.0 if k == n else float(beta.ppf(1 - tail, k + 0.5, n - k + 0.5))
    return Estimate(k / n, low, high, n)


def median(values: NDArray, *, seed: int = 0) -> Estimate:
    """Median with its bootstrap interval; for fewer than three values, their range.

    Raises:
        ValueError: if there is no value.
    """
    return _bootstrap(values, np.median, seed)


def mean(values: NDArray, *, seed: int = 0) -> Estimate:
    """Mean, as `median`."""
    return _bootstrap(values, np.mean, seed)


def _bootstrap(values: NDArray, statistic: Callable[..., NDArray], seed: int) -> Estimate:
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError("there is no value for a median or mean")
    if len(values) < 3:
        return Estimate(float(statistic(values)), float(values.min()), float(values.max()), len(values))
    drawn = np.random.default_rng(seed).choice(values, (RESAMPLES, len(values)))
    tail = 50 * (1 - CONFIDENCE)
    # Ends are drawn values, not interpolated: infinite ones have no mean.
    ends = np.percentile(statistic(drawn, axis=-1), [tail, 100 - tail], method="nearest")
    return Estimate(float(statistic(values)), float(ends[0]), float(ends[1]), len(values))


def accuracy(probabilities: NDArray, klass: NDArray) -> Estimate:
    """Fraction of stars whose most probable class, from (N, K), is the true one, (N,)."""
    return share(probabilities.argmax(-1) == klass)


def log_score(probabilities: NDArray, klass: NDArray) -> Estimate:
    """Mean log probability of the true class, (N, K) and (N,): 0 is perfect, log(1/K) is uninformative."""
    own = probabilities[np.arange(len(klass)), klass]
    return mean(np.log(np.maximum(own, FLOOR)))


def confusion(probabilities: NDArray, klass: NDArray) -> NDArray[np.int64]:
    """Number of stars by true class (row) and most probable class (column), (K, K)."""
    size = probabilities.shape[-1]
    table = np.zeros((size, size), dtype=np.int64)
    np.add.at(table, (klass, probabilities.argmax(-1)), 1)
    return table
