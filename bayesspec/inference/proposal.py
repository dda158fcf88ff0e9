"""Mixtures of multivariate Student-t distributions, one for every star, to draw from and to adapt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

__all__ = ["StudentMixture"]

DOF = 5.0
"""Degrees of freedom: tails that no posterior with a Gaussian prior outruns, and a finite variance."""

RESERVED = 64
"""Dimensions of the random numbers: so many that those of a star do not change with its neighbours'."""

SMALLEST = 0.01
"""Least weight of a component: one that a first guess finds useless is asked again."""


@dataclass(frozen=True)
class StudentMixture:
    """N mixtures of M Student-t distributions in d dimensions, some of which may be pinned to 0.

    Arguments:
        mean: (N, M, d).
        factor: Lower Cholesky factors of the scale matrices, (N, M, d, d); unit diagonal where pinned.
        log_weight: (N, M), rows normalised; -inf for a component that a star does not have.
        free: (N, d), False where pinned.
        dof: Degrees of freedom; infinite for normal distributions.

    Example:
        >>> zero, one = torch.zeros(1, 1, 2), torch.eye(2).expand(1, 1, 2, 2)
        >>> free = torch.ones(1, 2, dtype=torch.bool)
        >>> mixture = StudentMixture(zero, one, torch.zeros(1, 1), free)
        >>> theta = mixture.sample(100, seed=0)
        >>> theta.shape, mixture.log_prob(theta).shape
        (torch.Size([100, 1, 2]), torch.Size([100, 1]))
    """

    mean: Tensor
    factor: Tensor
    log_weight: Tensor
    free: Tensor
    dof: float = DOF

    def select(self, rows: NDArray | Tensor) -> StudentMixture:
        """The mixtures of these stars."""
        rows = torch.as_tensor(rows, device=self.mean.device)
        parts = (self.mean[rows], self.factor[rows], self.log_weight[rows], self.free[rows])
        return StudentMixture(*parts, self.dof)

    @classmethod
    def mean_of(cls, mixtures: Sequence[StudentMixture]) -> StudentMixture:
        """Of several mixtures for the same stars, each as likely."""
        log_weight = torch.cat([mixture.log_weight for mixture in mixtures], dim=1) - math.log(len(mixtures))
        mean, factor = (
            torch.cat([getattr(mixture, name) for mixture in mixtures], dim=1) for name in ("mean", "factor")
        )
        return cls(mean, factor, log_weight, mixtures[0].free, mixtures[0].dof)

    @classmethod
    def concatenate(cls, mixtures: Sequence[StudentMixture]) -> StudentMixture:
        """Those of several groups of stars, one after the other, however many components each has."""
        most = max(mixture.log_weight.shape[1] for mixture in mixtures)

        def padded(part: Tensor, value: float | Tensor) -> Tensor:
            more = part.new_empty(len(part), most - part.shape[1], *part.shape[2:])
            return torch.cat([part, more.copy_(torch.as_tensor(value).expand_as(more))], dim=1)

        unit = torch.eye(mixtures[0].free.shape[-1]).to(mixtures[0].factor)
        return cls(
            torch.cat([padded(mixture.mean, 0.0) for mixture in mixtures]),
            torch.cat([padded(mixture.factor, unit) for mixture in mixtures]),
            torch.cat([padded(mixture.log_weight, -math.inf) for mixture in mixtures]),
            torch.cat([mixture.free for mixture in mixtures]),
            mixtures[0].dof,
        )

    def sample(self, count: int, seed: int, further: int = 0, *, independent: bool = False) -> Tensor:
        """Draws, (count, N, d), and standard normal numbers beside them, (count, N, d + further).

        Every star is given the same random numbers, whatever the others are.

        The numbers are a scrambled Sobol sequence, unless they have to be independent: averages over draws
        come out closer to the truth, and every component gets its share.

        Arguments:
            count: Of draws.
            seed: Of the random numbers.
            further: Columns of standard normal numbers, from the same sequence.
            independent: Whether draws are independent of each other.

        References:
            | Owen 1998, Scrambling Sobol' and Niederreiter-Xing points, J. Complexity 14, 466
        """
        stars, dim = self.free.shape
        from scipy.stats import chi2, qmc  # half a second, which `map` need not wait for

        columns = 2 + max(dim, RESERVED) + further
        if independent:
            uniform = np.random.default_rng(seed).random((count, columns))
        else:
            sequence = qmc.Sobol(columns, seed=seed)
            uniform = sequence.random_base2(max(1, count - 1).bit_length())[:count]
        uniform = uniform.clip(1e-12, 1 - 1e-12)
        level = torch.as_tensor(uniform[:, 0]).to(self.mean)
        tails = 1.0 if math.isinf(self.dof) else np.sqrt(self.dof / chi2.ppf(uniform[:, 1], self.dof))
        stretch = torch.as_tensor(np.broadcast_to(tails, count).copy()).to(self.mean)
        normal = torch.as_tensor(ndtri(uniform[:, 2 : 2 + dim])).to(self.mean)

        edges = self.log_weight.exp().cumsum(-1)
        edges = edges / edges[:, -1:]
        chosen = torch.searchsorted(edges, level.expand(stars, -1).contiguous()).T
        chosen = chosen.clamp_max(edges.shape[1] - 1)
        star = torch.arange(stars, device=self.mean.device)
        own = (self.free.cumsum(-1) - 1).clamp_min(0)  # the k-th number is that of the k-th free dimension
        offset = torch.where(self.free, stretch[:, None, None] * normal[:, own], 0.0)
        core = self.mean[star, chosen] + (self.factor[star, chosen] @ offset[..., None])[..., 0]
        rest = torch.as_tensor(ndtri(uniform[:, 2 + max(dim, RESERVED) :])).to(self.mean)
        return torch.cat([core, rest[:, None].expand(-1, stars, -1)], dim=-1)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log density, (..., N), of thetas (..., N, d)."""
        return (self._component_log_prob(theta) + self.log_weight).logsumexp(-1)

    def adapted(self, theta: Tensor, weight: Tensor) -> StudentMixture:
        """Fitted to weighted draws: components take over their share of the moments, and one is added.

        A step of expectation-maximisation moves the components, each mixed with what it was in proportion to
        the draws that speak for it. The new one stands where the mixture is thinnest, on the draw of greatest
        weight, and is as wide as the posterior is around it.

        References:
            | Cappé et al. 2008, Adaptive importance sampling in general mixture classes (arXiv:0710.4242)
            | Raftery & Bao 2010, Incremental mixture importance sampling, Biometrics 66, 1162

        Arguments:
            theta: Draws, (S, N, d).
            weight: Their normalised weights, (S, N).
        """
        dim = self.free.sum(-1)  # what is pinned, since other stars have more exposures, changes nothing
        share = (self._component_log_prob(theta) + self.log_weight).softmax(-1) * weight[..., None]
        mass = share.sum(0)
        count = mass.square() / share.square().sum(0).clamp_min(1e-30)
        trust = torch.where(mass > 0, count / (count + 4 * dim[:, None]), 0.0)
        mean, scatter = _moments(theta[:, :, None], share)
        mean = torch.lerp(self.mean, mean, trust[..., None])
        old = self.factor @ self.factor.mT
        scale = torch.lerp(old, scatter, trust[..., None, None])

        # Around the draw of greatest weight: the nearest tenth, in units of the whole posterior.
        star = torch.arange(theta.shape[1], device=theta.device)
        peak = theta[weight.argmax(0), star]
        _, whole = _moments(theta, weight)
        metric = self._factor(whole, old[:, 0])
        away = torch.linalg.solve_triangular(metric, (theta - peak).permute(1, 2, 0), upper=False)
        away = away.square().sum(1).T
        nearest = (4 * dim).clamp(min=len(theta) // 10, max=len(theta))
        near = away <= away.sort(dim=0).values.gather(0, nearest[None] - 1)
        local = torch.where(near, weight + 1 / len(theta), 0.0)
        _, around = _moments(theta, local)

        weights = torch.cat([mass.clamp_min(SMALLEST), torch.full_like(mass[:, :1], 0.2)], dim=-1)
        weights = torch.where(torch.isinf(torch.cat([self.log_weight, weights[:, :1] * 0], -1)), 0.0, weights)
        factor = torch.cat([self._factor(scale, old), self._factor(around, old[:, 0])[:, None]], dim=1)
        return StudentMixture(
            torch.cat([mean, peak[:, None]], dim=1),
            factor,
            (weights / weights.sum(-1, keepdim=True)).log(),
            self.free,
        )

    def _component_log_prob(self, theta: Tensor) -> Tensor:
        """Log density under every component, (..., N, M)."""
        dim = self.free.sum(-1)[:, None].to(theta.dtype)
        offset = theta[..., None, :] - self.mean
        lead = offset.shape[:-3]
        flat = offset.reshape(-1, *self.mean.shape).permute(1, 2, 3, 0)
        white = torch.linalg.solve_triangular(self.factor, flat, upper=False)
        square = white.square().sum(-2).permute(2, 0, 1).reshape(*lead, *self.log_weight.shape)
        log_det = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if math.isinf(self.dof):
            return -0.5 * (dim * math.log(2 * math.pi) + square) - log_det
        half = 0.5 * self.dof
        norm = torch.lgamma(half + 0.5 * dim) - math.lgamma(half) - 0.5 * dim * math.log(self.dof * math.pi)
        return norm - log_det - (half + 0.5 * dim) * torch.log1p(square / self.dof)

    def _factor(self, scale: Tensor, fallback: Tensor) -> Tensor:
        """Cholesky factors of scale matrices, unit where pinned, never thinner than 1e-3 of the fallback."""
        pinned = torch.diag_embed((~self.free).to(scale.dtype))
        if scale.dim() == 4:
            pinned = pinned[:, None]
        free = (pinned.diagonal(dim1=-2, dim2=-1) == 0).to(scale.dtype)
        scale = (scale + 1e-3 * fallback) * free[..., None] * free[..., None, :] + pinned
        return torch.linalg.cholesky(scale)


def _moments(theta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and scatter over the first dimension; theta has one dimension more than weight."""
    share = weight / weight.sum(0).clamp_min(1e-30)
    mean = (share[..., None] * theta).sum(0)
    offset = (theta - mean) * share[..., None].sqrt()
    return mean, torch.einsum("s...i,s...j->...ij", offset, offset)
