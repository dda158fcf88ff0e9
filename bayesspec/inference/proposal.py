"""Mixtures of multivariate Student-t distributions, one for every star, to draw from and to adapt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

__all__ = ["SizedNormal", "StudentMixture"]

DOF = 5.0
"""Degrees of freedom: tails that no posterior with a Gaussian prior outruns, and a finite variance."""

RESERVED = 64
"""Dimensions of the random numbers: so many that those of a star do not change with its neighbours'."""

SMALLEST = 0.01
"""Least weight of a component: one that a first guess finds useless is asked again."""


@dataclass(frozen=True)
class SizedNormal:
    r"""Normal distributions of w given a core, one for each of N stars and M components of its mixture.

    The likelihood of a linear model :math:`g w`, :math:`g = e^{f(h)}`, with w standard normal before the
    data, makes w given the core normal with precision :math:`1 + g^2 A` and mean
    :math:`(1 + g^2 A)^{-1} g (c - M \delta)`: exact in the size h, the last dimension of the core, and linear
    in how far the others are from the mode, :math:`\delta`.

    Arguments:
        centre: Of the core, where the mode is, (N, M, d).
        axes: Orthonormal eigenvectors of A, (N, M, R, R).
        strength: Its eigenvalues, (N, M, R).
        pull: c in these axes, (N, M, R).
        slope: M in these axes, (N, M, R, d), 0 for the size.
        log_size: f.
    """

    centre: Tensor
    axes: Tensor
    strength: Tensor
    pull: Tensor
    slope: Tensor
    log_size: Callable[[Tensor], Tensor]

    @classmethod
    def at_mode(
        cls, core: Tensor, w: Tensor, precision: Tensor, log_size: Callable[[Tensor], Tensor]
    ) -> SizedNormal:
        """From modes, core (N, M, d) and w (N, M, R), and precisions of both, (N, M, d + R, d + R)."""
        d = core.shape[-1]
        size = log_size(core[..., -1:]).exp()[..., None]
        identity = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
        strength, axes = torch.linalg.eigh((precision[..., d:, d:] - identity) / size.square())
        strength = strength.clamp_min(0.0)
        slope = axes.mT @ precision[..., d:, :d] / size
        slope[..., -1] = 0.0
        size = size[..., 0]
        pull = (1 + size.square() * strength) / size * (axes.mT @ w[..., None])[..., 0]
        return cls(core, axes, strength, pull, slope, log_size)

    @property
    def dim(self) -> int:
        """R."""
        return self.strength.shape[-1]

    def select(self, rows: NDArray | Tensor) -> SizedNormal:
        """Those of these stars."""
        parts = self.centre, self.axes, self.strength, self.pull, self.slope
        return SizedNormal(*(part[rows] for part in parts), self.log_size)

    def repeated(self) -> SizedNormal:
        """With one component more, as the first."""
        parts = self.centre, self.axes, self.strength, self.pull, self.slope
        return SizedNormal(*(torch.cat([part, part[:, :1]], dim=1) for part in parts), self.log_size)

    def transform(self, core: Tensor, chosen: Tensor, normal: Tensor) -> Tensor:
        """w, (S, N, R), given cores (S, N, d) of components (S, N), from standard normal numbers (S, R)."""
        star = torch.arange(core.shape[1], device=core.device)
        one = SizedNormal(
            *(part[star, chosen] for part in (self.centre, self.axes, self.strength, self.pull, self.slope)),
            self.log_size,
        )
        mean, precision = one._moments(core)
        return (one.axes @ (mean + normal[:, None] * precision.rsqrt())[..., None])[..., 0]

    def log_prob(self, core: Tensor, w: Tensor) -> Tensor:
        """Log density, (..., N, M), of w (..., N, R) given cores (..., N, d)."""
        mean, precision = self._moments(core[..., None, :])
        offset = torch.einsum("nmij,...ni->...nmj", self.axes, w) - mean
        constant = self.dim * math.log(2 * math.pi)
        return 0.5 * (precision.log() - precision * offset.square()).sum(-1) - 0.5 * constant

    def _moments(self, core: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and precision along the axes."""
        size = self.log_size(core[..., -1:]).exp()
        precision = 1 + size.square() * self.strength
        away = (self.slope @ (core - self.centre)[..., None])[..., 0]
        return size / precision * (self.pull - away), precision


@dataclass(frozen=True)
class StudentMixture:
    """N mixtures of M Student-t distributions in d dimensions, some of which may be pinned to 0.

    Scores of further dimensions, whose tails would leave no draw near the mode, follow as normal given these.

    Arguments:
        mean: (N, M, d).
        factor: Lower Cholesky factors of the scale matrices, (N, M, d, d); unit diagonal where pinned.
        log_weight: (N, M), rows normalised; -inf for a component that a star does not have.
        free: (N, d), False where pinned.
        given: The further R dimensions given the d, or None for R = 0.

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
    given: SizedNormal | None = None

    def select(self, rows: NDArray | Tensor) -> StudentMixture:
        """The mixtures of these stars."""
        rows = torch.as_tensor(rows, device=self.mean.device)
        given = None if self.given is None else self.given.select(rows)
        return StudentMixture(
            self.mean[rows], self.factor[rows], self.log_weight[rows], self.free[rows], given
        )

    def sample(self, count: int, seed: int) -> Tensor:
        """Draws, (count, N, d + R). Every star is given the same random numbers, whatever the others are.

        The numbers are a scrambled Sobol sequence: averages over draws come out closer to the truth than with
        independent ones, and every component gets its share.

        References:
            | Owen 1998, Scrambling Sobol' and Niederreiter-Xing points, J. Complexity 14, 466
        """
        stars, dim = self.free.shape
        further = 0 if self.given is None else self.given.dim
        from scipy.stats import chi2, qmc  # half a second, which `map` need not wait for

        sequence = qmc.Sobol(2 + max(dim, RESERVED) + further, seed=seed)
        uniform = sequence.random_base2(max(1, count - 1).bit_length())[:count]
        uniform = uniform.clip(1e-12, 1 - 1e-12)
        like = {"dtype": self.mean.dtype, "device": self.mean.device}
        level = torch.as_tensor(uniform[:, 0]).to(**like)
        stretch = torch.as_tensor(np.sqrt(DOF / chi2.ppf(uniform[:, 1], DOF))).to(**like)
        normal = torch.as_tensor(ndtri(uniform[:, 2 : 2 + dim])).to(**like)

        edges = self.log_weight.exp().cumsum(-1)
        edges = edges / edges[:, -1:]
        chosen = torch.searchsorted(edges, level.expand(stars, -1).contiguous()).T
        chosen = chosen.clamp_max(edges.shape[1] - 1)
        star = torch.arange(stars, device=self.mean.device)
        own = (self.free.cumsum(-1) - 1).clamp_min(0)  # the k-th number is that of the k-th free dimension
        offset = torch.where(self.free, stretch[:, None, None] * normal[:, own], 0.0)
        core = self.mean[star, chosen] + (self.factor[star, chosen] @ offset[..., None])[..., 0]
        if self.given is None:
            return core
        rest = torch.as_tensor(ndtri(uniform[:, 2 + max(dim, RESERVED) :])).to(**like)
        return torch.cat([core, self.given.transform(core, chosen, rest)], dim=-1)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log density, (..., N), of thetas (..., N, d + R)."""
        core, rest = theta.tensor_split((self.free.shape[-1],), dim=-1)
        by_component = self._component_log_prob(core) + self.log_weight
        if self.given is not None:
            by_component = by_component + self.given.log_prob(core, rest)
        return by_component.logsumexp(-1)

    def adapted(self, theta: Tensor, weight: Tensor) -> StudentMixture:
        """Fitted to weighted draws: components take over their share of the moments, and one is added.

        A step of expectation-maximisation moves the components, each mixed with what it was in proportion to
        the draws that speak for it. The new one stands where the mixture is thinnest, on the draw of greatest
        weight, and is as wide as the posterior is around it.

        References:
            | Cappé et al. 2008, Adaptive importance sampling in general mixture classes (arXiv:0710.4242)
            | Raftery & Bao 2010, Incremental mixture importance sampling, Biometrics 66, 1162

        Arguments:
            theta: Draws, (S, N, d + R); what the further dimensions are given these stays as it is.
            weight: Their normalised weights, (S, N).
        """
        theta = theta[..., : self.free.shape[-1]]
        dim = theta.shape[-1]
        share = (self._component_log_prob(theta) + self.log_weight).softmax(-1) * weight[..., None]
        mass = share.sum(0)
        count = mass.square() / share.square().sum(0).clamp_min(1e-30)
        trust = torch.where(mass > 0, count / (count + 4 * dim), 0.0)
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
        near = away <= away.kthvalue(min(len(theta), max(4 * dim, len(theta) // 10)), dim=0).values
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
            None if self.given is None else self.given.repeated(),
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
        norm = torch.lgamma(0.5 * (DOF + dim)) - math.lgamma(0.5 * DOF) - 0.5 * dim * math.log(DOF * math.pi)
        return norm - log_det - 0.5 * (DOF + dim) * torch.log1p(square / DOF)

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
