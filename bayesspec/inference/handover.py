"""Importance sampling for every star and, where it is asked for, NUTS where weights are not to be trusted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bayesspec.batch import ObservationBatch
from bayesspec.model import StellarModel

from .draws import Draws
from .importance import TRUSTED, importance_draws
from .nuts import nuts_draws
from .scan import LatentScan

__all__ = ["importance_or_nuts"]


def importance_or_nuts(
    model: StellarModel,
    batch: ObservationBatch,
    *,
    handover: bool = False,
    seed: int = 0,
    scan: LatentScan | None = None,
    **options: Any,
) -> Draws:
    """`importance_draws`; with `handover` a star whose Pareto k stays above 0.7 is given to NUTS.

    Such a star's draws are then NUTS's, all of one weight, and as many as the others have; its evidence is
    still that of its weights, the best there is.

    Arguments:
        model: The model.
        batch: N stars.
        handover: Give such stars to NUTS, which takes minutes a star where there are many latents; else
            they keep their weighted draws, and a warning in their rows.
        seed: Of the random numbers.
        scan: `LatentScan(model)`, where it is at hand already.
        **options: Of `importance_draws`.

    Returns:
        Draws with the diagnostics of both: `handed_over`, True for what NUTS drew; `pareto_k` of the weights;
        `r_hat`, `ess_bulk`, `ess_tail`, `divergences` and `budget_spent`, which for weighted draws are
        1, their effective number, the same again, 0 and False.
    """
    found = importance_draws(model, batch, seed=seed, scan=scan, **options)
    ess, none = found.diagnostics["ess_bulk"], np.zeros(len(found), int)
    diagnostics = {
        "handed_over": (found.diagnostics["pareto_k"] > TRUSTED) & handover,
        **found.diagnostics,
        "r_hat": np.ones(len(found)),
        "ess_tail": ess.copy(),
        "divergences": none,
        "budget_spent": none > 0,
    }
    found = replace(found, diagnostics=diagnostics)
    rows = np.flatnonzero(diagnostics["handed_over"])
    if len(rows):
        _take(found, rows, nuts_draws(model, batch.select(rows), seed=seed, scan=scan))
    return found


def _take(found: Draws, rows: np.ndarray, chains: Draws) -> None:
    """Put draws of chains, evenly thinned, in the place of weighted ones."""
    assert found.log_weight is not None
    count, several = found.log_density.shape[-1], chains.log_density[0].size
    thinned = (np.arange(count) * several) // count
    for name in ("z", "x", "log_scale", "w", "log_density"):
        drawn = getattr(chains, name)
        pooled = drawn.reshape(len(rows), several, *drawn.shape[3:])
        getattr(found, name)[rows, 0] = pooled[:, thinned]
    found.log_weight[rows] = -np.log(count)
    for name in ("r_hat", "ess_bulk", "ess_tail", "divergences", "budget_spent"):
        found.diagnostics[name][rows] = chains.diagnostics[name]
