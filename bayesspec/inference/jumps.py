"""Jumps of chains across the whole posterior, where what follows a gradient would have to cross valleys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .conditional import GivenCore
from .importance import Pool, with_w
from .proposal import StudentMixture
from .target import Target

__all__ = ["Jumps"]

BLOCK = 256
"""Jumps of each chain whose densities under the mixture are evaluated together."""


class Jumps:
    r"""Proposals for R chains to be elsewhere, from what importance sampling has learned of their stars.

    Along a ridge of z, E(B-V) and the scale the prior of z has many bumps, and w stands for something else on
    each: a trajectory crosses few of the valleys between. A jump proposes a point :math:`\theta'` from the
    density q that importance sampling has fitted: a core from its mixtures, and w from its normal
    distribution given the core. It is accepted, after Metropolis and Hastings, with probability

    .. math:: \min\left(1, \frac{p(y, \theta') \, q(\theta)}{p(y, \theta) \, q(\theta')}\right)

    and so leaves the posterior what it is, however good or bad the proposals are. Proposals do not depend on
    where a chain is: the densities of all are evaluated together, before the chains begin.

    References:
        | Tierney 1994, Markov chains for exploring posterior distributions, Annals of Statistics 22, 1701
        | Gabrié, Rotskoff & Vanden-Eijnden 2022, Adaptive Monte Carlo augmented with normalizing flows,
        | PNAS 119, e2109420119 (https://arxiv.org/abs/2105.12603)

    Arguments:
        target: The density of N stars.
        given: The scores w given the core, or None where there are none.
        pools: Of each star by itself: draws, the mixtures they are from, and the one fitted to them all.
        star: The star of each chain, (R,).
        seeds: Of each chain's random numbers, (R,).
        count: How often a chain may ask.
        tries: Jumps that are tried each time, one after the other.
    """

    def __init__(
        self,
        target: Target,
        given: GivenCore | None,
        pools: Sequence[Pool],
        star: NDArray[np.int64],
        seeds: Sequence[int],
        count: int,
        tries: int,
    ) -> None:
        self.target, self.given, self.pools = target, given, pools
        self.star, self.tries = torch.as_tensor(star), tries
        self.mixture = StudentMixture.concatenate([_learned(pool.mixtures) for pool in pools])
        further = target.dim - target.core
        core, chains = target.core, self.mixture.select(self.star)
        drawn = [
            chains.select(torch.tensor([row])).sample(count * tries, seed, further, independent=True)
            for row, seed in enumerate(seeds)
        ]
        own = None if given is None else given.select(self.star)
        self.theta, log_given = with_w(torch.cat(drawn, dim=1), core, own)
        log_core = torch.cat([chains.log_prob(part) for part in self.theta[..., :core].split(BLOCK)])
        log_density = target.select(star).log_density(self.theta).double()
        self.log_worth = (log_density - log_core.double() - log_given.double()).nan_to_num(nan=-torch.inf)
        level = np.stack([np.random.default_rng([seed, 1]).random(count * tries) for seed in seeds], axis=-1)
        self.log_level = torch.as_tensor(np.log(level)).to(self.log_worth)

    def begin(self, seed: int) -> Tensor:
        """Points to begin at, (R, d): weighted draws, as far apart in their order as can be."""
        chains = torch.bincount(self.star)
        begin = self.theta.new_empty(len(self.star), self.target.dim)
        for n, (pool, count) in enumerate(zip(self.pools, chains.tolist(), strict=True)):
            edges = np.exp(pool.log_weight[0]).cumsum()
            points = (np.arange(count) + np.random.default_rng(seed).random()) / count
            chosen = np.searchsorted(edges / edges[-1], points)
            begin[self.star == n] = pool.theta[torch.as_tensor(chosen), 0]
        return begin

    def __call__(
        self, rows: Sequence[int], number: Sequence[int], theta: Tensor, log_density: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where these chains are after their jumps, (B, d), and how many were accepted, (B,).

        Arguments:
            rows: The chains, (B,).
            number: How often each has asked before.
            theta: Where they are, (B, d).
            log_density: There, (B,).
        """
        at = torch.as_tensor(rows)
        first = torch.as_tensor(number) * self.tries
        worth = log_density.to(self.log_worth) - self._log_proposal(self.star[at], theta)
        accepted = torch.zeros_like(worth, dtype=torch.long)
        for index in (first + k for k in range(self.tries)):
            better = self.log_level[index, at] < self.log_worth[index, at] - worth
            theta = torch.where(better[:, None], self.theta[index, at], theta)
            worth = torch.where(better, self.log_worth[index, at], worth)
            accepted += better
        return theta, accepted

    def _log_proposal(self, star: Tensor, theta: Tensor) -> Tensor:
        """log q of thetas (B, d), (B,), of chains of these stars (B,)."""
        core, w = theta.tensor_split((self.target.core,), dim=-1)
        found = self.mixture.select(star).log_prob(core).double()
        if self.given is None:
            return found
        return found + self.given.select(star).log_prob(core, w).double()


def _learned(mixtures: Sequence[StudentMixture]) -> StudentMixture:
    """Half of the proposals from the last mixture, which fits best, half from all; the first ones are wide.

    A chain stays for long at points which the proposals hardly cover.
    """
    return StudentMixture.mean_of([StudentMixture.mean_of(mixtures), mixtures[-1]])
