"""How far draws can be trusted: ArviZ's R-hat, effective sample sizes and Pareto k, without torch."""

from __future__ import annotations

import warnings
from contextlib import suppress
from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["chain_diagnostics", "import_arviz", "pareto_smooth"]


def import_arviz() -> ModuleType:
    """ArviZ, without what its last 0.x release says about the next one on import."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
        import arviz
    return arviz


def chain_diagnostics(values: ArrayLike) -> dict[str, float]:
    """Rank-normalised R-hat, and effective sample sizes of bulk and tails, each of the worst quantity.

    Arguments:
        values: (chains, draws) or (chains, draws, P), P quantities.

    Returns:
        `r_hat`, `ess_bulk`, `ess_tail`; an R-hat that does not exist (less than eight draws, or chains that
        do not move) is infinite, so is not taken for a good one, and its effective sample sizes are 0. One
        chain alone is taken for two, its halves.

    References:
        | Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, Bayesian Analysis 16, 667
        | https://arxiv.org/abs/1903.08008

    Example:
        >>> found = chain_diagnostics(np.random.default_rng(0).standard_normal((4, 300, 3)))
        >>> found["r_hat"] < 1.01, found["ess_bulk"] > 900, found["ess_tail"] > 900
        (True, True, True)
    """
    arviz = import_arviz()
    values = np.asarray(values, dtype=float)
    if len(values) == 1:
        half = values.shape[1] // 2
        values = np.stack([values[0, :half], values[0, half : 2 * half]])
    columns = values.reshape(*values.shape[:2], -1).transpose(2, 0, 1)
    found = {"r_hat": 1.0, "ess_bulk": np.inf, "ess_tail": np.inf}
    for column in columns:
        if column.shape[1] < 4 or not (np.ptp(column, axis=1) > 0).all():
            return {"r_hat": np.inf, "ess_bulk": 0.0, "ess_tail": 0.0}
        found["r_hat"] = max(float(arviz.rhat(column)), found["r_hat"])
        found["ess_bulk"] = min(found["ess_bulk"], float(arviz.ess(column, method="bulk")))
        tail = arviz.ess(column, method="tail", prob=(0.05, 0.95))
        found["ess_tail"] = min(found["ess_tail"], float(tail))
    return found


def pareto_smooth(log_ratio: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Normalised Pareto-smoothed log weights, (N, S), and Pareto's k, (N,), of log importance ratios (N, S).

    A k that cannot be fitted is infinite.

    References:
        | Vehtari, Simpson, Gelman, Yao & Gabry 2024, JMLR 25, 72 (https://arxiv.org/abs/1507.02646)

    Example:
        >>> log_weight, k = pareto_smooth(np.random.default_rng(0).normal(0, 0.3, (2, 1000)))
        >>> np.exp(log_weight).sum(-1).round(6), bool((k < 0.7).all())
        (array([1., 1.]), True)
    """
    try:
        from arviz_stats.base import array_stats
    except ModuleNotFoundError:
        psislw, sign = import_arviz().psislw, 1.0
    else:
        psislw, sign = array_stats.psislw, -1.0  # ArviZ 1.x asks for log likelihoods to leave out
    smoothed, k = log_ratio - log_ratio.max(-1, keepdims=True), np.full(len(log_ratio), np.inf)
    for n, row in enumerate(smoothed.copy()):
        with suppress(ValueError):  # raised where all weights in the tail are the same
            smoothed[n], k[n] = psislw(sign * row)
    smoothed -= np.logaddexp.reduce(smoothed, axis=-1, keepdims=True)
    return smoothed, np.where(np.isnan(k), np.inf, k)
