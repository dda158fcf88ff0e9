"""What the sampling engines hand on: draws of the latents, their weights, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Draws"]


@dataclass(frozen=True, eq=False)
class Draws:
    """Posterior draws of N stars, the class summed out.

    Arguments:
        z: Latents, (N, chains, draws, L).
        log_scale: Log scale of every exposure, (N, chains, draws, E); 0 where the scale is known.
        log_weight: Normalised log weights, (N, chains, draws), for importance sampling; None where draws are
            equally probable.
        x: Latents of velocity and throughput, (N, chains, draws, P); P = 0 for a model without a passage.
        w: Latents of the residual term, (N, chains, draws, R); R = 0 for a model without.
        log_density: log p(y, z, w) at every draw, (N, chains, draws).
        log_evidence: log p(y), (N,); None where the engine does not give it.
        diagnostics: One number a star, each (N,): `pareto_k`, `laplace_k`, `r_hat`, `ess_bulk`, `ess_tail`,
            `divergences`, `budget_spent` where chains of NUTS had to go on by single steps, and
            `handed_over` for a star that importance sampling gave to NUTS.
        sample_stats: One number a draw, each (N, chains, draws): `energy`, `step_size`, `tree_depth`,
            `diverging`, `acceptance_rate`, under ArviZ's names.
        warmup_stats: The same of the draws of the warm-up, which are not among the posterior's.
    """

    z: NDArray[np.float32]
    log_scale: NDArray[np.float32]
    x: NDArray[np.float32]
    w: NDArray[np.float32]
    log_weight: NDArray[np.float64] | None
    log_density: NDArray[np.float64]
    log_evidence: NDArray[np.float64] | None = None
    diagnostics: dict[str, NDArray] = field(default_factory=dict)
    sample_stats: dict[str, NDArray] = field(default_factory=dict)
    warmup_stats: dict[str, NDArray] = field(default_factory=dict)

    @classmethod
    def concatenate(cls, parts: Sequence[Draws]) -> Draws:
        """The stars of several batches, by one method with one setting; the stars may differ in exposures."""
        depth = max(part.log_scale.shape[-1] for part in parts)

        def joined(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            if values[0] is None:
                return None
            if isinstance(values[0], dict):
                return {key: np.concatenate([value[key] for value in values]) for key in values[0]}
            if name == "log_scale":
                values = [np.pad(v, [(0, 0)] * 3 + [(0, depth - v.shape[-1])]) for v in values]
            return np.concatenate(values)

        return cls(**{column.name: joined(column.name) for column in fields(cls)})

    @property
    def latents(self) -> NDArray[np.float32]:
        """z and after it x and w, (N, chains, draws, L + P + R)."""
        return np.concatenate([self.z, self.x, self.w], axis=-1)

    def __len__(self) -> int:
        return len(self.z)

    def select(self, rows: NDArray | slice) -> Draws:
        """The stars at these positions."""
        return replace(
            self,
            z=self.z[rows],
            log_scale=self.log_scale[rows],
            x=self.x[rows],
            w=self.w[rows],
            log_weight=None if self.log_weight is None else self.log_weight[rows],
            log_density=self.log_density[rows],
            log_evidence=None if self.log_evidence is None else self.log_evidence[rows],
            diagnostics={name: value[rows] for name, value in self.diagnostics.items()},
            sample_stats={name: value[rows] for name, value in self.sample_stats.items()},
            warmup_stats={name: value[rows] for name, value in self.warmup_stats.items()},
        )

    def resample(self, count: int, *, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`count` equally probable draws of each star: latents (N, count, L + R), log scales (N, count, E).

        Systematic resampling, which adds the least noise; chains are pooled.
        """
        rng = np.random.default_rng(seed)
        n, chains, draws = self.log_density.shape
        latents = self.latents.reshape(n, chains * draws, -1)
        log_scale = self.log_scale.reshape(n, chains * draws, -1)
        if self.log_weight is None:
            weight = np.full((n, chains * draws), 1.0 / (chains * draws))
        else:
            weight = np.exp(self.log_weight.reshape(n, -1))
        edges = np.cumsum(weight, axis=-1)
        points = np.broadcast_to((np.arange(count) + rng.random()) / count, (n, count))  # for all stars alike
        rows = np.stack([np.searchsorted(e / e[-1], p) for e, p in zip(edges, points, strict=True)])
        star = np.arange(n)[:, None]
        return latents[star, rows], log_scale[star, rows]
