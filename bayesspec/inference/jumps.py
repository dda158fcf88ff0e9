"""Jumps of chains across the whole posterior, where what follows a gradient would have to cross valleys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .importance import Pool
from .proposal import StudentMixture

__all__ = ["Jumps"]


class Jumps:
    r"""Proposals for R chains to be elsewhere, from what importance sampling has learned of their stars.

    Along a ridge of z, E(B-V) and the scale the prior of z has many bumps, and w stands for something else on
    each: a trajectory crosses few of the valleys between. A jump proposes another core c' from the mixtures q
    that importance sampling has fitted, and keeps the numbers :math:`\nu` of which w is made given the core,
    :math:`w = w(c, \nu)`. It is accepted, after Metropolis and Hastings, with probability

    .. math::
        \min\left(1, \frac{p(y, c', w') \, |\partial w' / \partial \nu| \, q(c)}
                          {p(y, c, w) \, |\partial w / \partial \nu| \, q(c')}\right)

    and so leaves the posterior what it is, however good or bad the proposals are.

    References:
        | Tierney 1994, Markov chains for exploring posterior distributions, Annals of Statistics 22, 1701
        | Gabrié, Rotskoff & Vanden-Eijnden 2022, Adaptive Monte Carlo augmented with normalizing flows,
        | PNAS 119, e2109420119 (https://arxiv.org/abs/2105.12603)

    Arguments:
        pool: Draws of N stars, and the mixtures they are from.
        star: The star of each chain, (R,).
        seeds: Of each chain's random numbers, (R,).
        count: Jumps of a chain.
    """

    def __init__(self, pool: Pool, star: NDArray[np.int64], seeds: Sequence[int], count: int) -> None:
        self.pool, self.star = pool, torch.as_tensor(star)
        self.mixture = StudentMixture.mean_of(pool.mixtures)
        cores = [
            self.mixture.select(self.star[[row]]).sample(count, seed, independent=True)
            for row, seed in enumerate(seeds)
        ]
        self.core = torch.cat(cores, dim=1)
        self.log_proposal = self.mixture.select(self.star).log_prob(self.core)

    def begin(self, seed: int) -> Tensor:
        """Points to begin at, (R, d): weighted draws, as far apart in their order as can be."""
        chains = torch.bincount(self.star)
        chosen = []
        for n, count in enumerate(chains.tolist()):
            edges = np.exp(self.pool.log_weight[n]).cumsum()
            points = (np.arange(count) + np.random.default_rng(seed).random()) / count
            chosen.extend(np.searchsorted(edges / edges[-1], points))
        return self.pool.theta[torch.as_tensor(np.array(chosen)), self.star]

    def __call__(self, rows: Sequence[int], number: Sequence[int], theta: Tensor) -> tuple[Tensor, Tensor]:
        """Where these chains may jump to, (B, d), and the log of what beside the densities decides, (B,).

        Arguments:
            rows: The chains, (B,).
            number: Which of its jumps it is of each.
            theta: Where they are, (B, d).
        """
        at, number = torch.as_tensor(rows), torch.as_tensor(number)
        star, end = self.star[at], self.pool.target.core
        core, rest = theta.tensor_split((end,), dim=-1)
        new, log_ratio = self.core[number, at], -self.log_proposal[number, at]
        log_ratio = log_ratio + self.mixture.select(star).log_prob(core)
        if self.pool.given is None:
            return new, log_ratio
        given = self.pool.given.select(star)
        w, change = given.moved(core, rest, new)
        return torch.cat([new, w], dim=-1), log_ratio + change
