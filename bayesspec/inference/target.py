"""The posterior density as a function of one vector per star: value, gradient, metric and curvature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.model import SCALE_WIDTH, StellarModel

from .density import log_joint
from .draws import Draws
from .metric import information, information_by_size

__all__ = ["Target", "inverse_factor"]

# Pixels in one pass: what a CPU's cache likes, and what an accelerator's memory bears.
_CPU_PIXELS, _PIXELS = 2**19, 2**24

# Laplace's curvature may differ from the Fisher metric by these factors, no more.
_CURVATURE = (0.05, 50.0)


class Target:
    r"""log p(y, z, a, w) of N stars at theta = (z, log a, w): L latents, E log scales, and R of the residual.

    Here z is all that the residual does not scale: with a passage x stands after z, and is among the L.

    Components of theta that are not free, the log scales of exposures whose scale is known or that a star
    does not have, are 0 wherever a theta is returned, and their gradient is 0; matrices have a unit diagonal
    there.

    Arguments:
        model: The model.
        batch: N stars.
        classes: `joint`: the density of the best class, eq. (7). `marginal`: the class summed out.
        told: How much the data say of w, `information_by_size`, (N, 2 T - 1, R, R): then w is summed out of
            the density by Laplace's method, as far as that depends on the sizes h, and theta holds the w that
            is most probable given the rest. The mode of all together is no estimate of h: the larger h, the
            smaller w, the more probable.
    """

    def __init__(
        self,
        model: StellarModel,
        batch: ObservationBatch,
        classes: Literal["joint", "marginal"] = "marginal",
        told: Tensor | None = None,
    ) -> None:
        self.model, self.batch, self.classes, self.told = model, batch, classes, told
        self.latent_dim = model.lead_dim
        self.end = self.latent_dim + batch.free_scale.shape[-1]
        self.core = self.end + (0 if model.residual is None else model.residual.sizes)
        always = torch.ones_like(batch.free_scale[:, :1])
        parts = always.expand(-1, self.latent_dim), batch.free_scale, always.expand(-1, model.residual_dim)
        self.free = torch.cat(parts, dim=-1)

    @property
    def dim(self) -> int:
        """L + E + R, free or not."""
        return self.free.shape[-1]

    def select(self, rows: Sequence[int] | NDArray) -> Target:
        """The same density for the stars at these positions."""
        told = None if self.told is None else self.told[torch.as_tensor(rows)]
        return Target(self.model, self.batch.select(rows), self.classes, told)

    def join(self, latents: Tensor, log_scale: Tensor) -> Tensor:
        """theta, (..., N, d), of latents (..., N, L + R) and log scales (..., N, E)."""
        z, w = self.model.split(latents)
        return torch.cat([z, torch.where(self.batch.free_scale, log_scale, 0.0), w], dim=-1)

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (..., N, L + R) and log scales (..., N, E)."""
        z, log_scale, w = theta.tensor_split((self.latent_dim, self.end), dim=-1)
        return torch.cat([z, w], dim=-1), log_scale

    def draws(self, theta: NDArray[np.float32], **facts: Any) -> Draws:
        """Draws of thetas (N, chains, draws, d), with what else is known of them."""
        cuts = self.model.latent_dim, self.latent_dim, self.end
        z, x, log_scale, w = np.split(theta, cuts, axis=-1)
        return Draws(z=z, x=x, log_scale=log_scale, w=w, **facts)

    def log_density(self, theta: Tensor) -> Tensor:
        """Log density, (..., N), of thetas (..., N, d), without gradient, in blocks that fit memory."""
        flat = theta.reshape(-1, *theta.shape[-2:])
        with torch.no_grad():
            parts = [self._value(block) for block in flat.split(self._block)]
        return torch.cat(parts).reshape(theta.shape[:-1])

    def gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Log density, (..., N), and its gradient, (..., N, d)."""
        values, gradients = [], []
        for block in theta.reshape(-1, *theta.shape[-2:]).split(self._block):
            with torch.enable_grad():
                point = block.detach().requires_grad_()
                value = self._value(point)
                (gradient,) = torch.autograd.grad(value.sum(), point)
            values.append(value.detach())
            gradients.append(torch.where(self.free, gradient, 0.0))
        return torch.cat(values).reshape(theta.shape[:-1]), torch.cat(gradients).reshape(theta.shape)

    @torch.no_grad()
    def metric(self, theta: Tensor, *, observed: bool = False) -> Tensor:
        """Positive definite curvature, (N, d, d), at theta (N, d).

        The Fisher information of the flow's conditionals, plus the prior's curvature; where their sum is
        not positive, its absolute value. With a residual term, whose many dimensions make that dear, the
        curvature of p(z) is made positive alone.

        Arguments:
            theta: (N, d).
            observed: See `information`; the matrix may then be of either sign.
        """
        curvature, prior = self._fisher(theta, observed), self._prior_curvature(theta)
        z = slice(0, self.latent_dim)
        if self.core < self.dim:
            values, vectors = torch.linalg.eigh(prior)
            curvature[:, z, z] += (vectors * values.abs()[..., None, :]) @ vectors.mT
            curvature.diagonal(dim1=-2, dim2=-1)[:, self.end :] += 1.0
            if self.told is not None:
                sizes = slice(self.end, self.core)
                curvature[:, sizes, sizes] += self._bend_of_sizes(theta, self.told)
            if observed:
                self._less_product(theta, curvature)
            return curvature
        curvature[:, z, z] += prior
        scale = curvature.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-6).sqrt()
        values, vectors = torch.linalg.eigh(curvature / (scale[..., None] * scale[..., None, :]))
        values = values.abs().clamp_min(1e-3)
        positive = (vectors * values[..., None, :]) @ vectors.mT
        return positive * (scale[..., None] * scale[..., None, :])

    @torch.no_grad()
    def laplace(self, theta: Tensor) -> Tensor:
        """Lower Cholesky factor, (N, d, d), of Laplace's covariance at a mode theta (N, d).

        Second derivatives are differences of gradients a standard deviation to either side, along the axes of
        the metric: the density has kinks (its conditioner is piecewise linear), and what a proposal needs is
        the curvature over the width of the posterior, not that between two kinks. They are kept within a
        factor of the metric, so that the covariance is positive definite whatever the data.

        With a residual term, whose noise has no kinks, it is the observed metric that is inverted, or the
        Fisher metric where that is not positive.
        """
        if self.core < self.dim:
            summed, metric = self.summed(theta)
            curvature = summed.metric(theta, observed=True)
            positive = torch.linalg.cholesky_ex(curvature).info == 0
            axes = inverse_factor(torch.where(positive[:, None, None], curvature, metric))
            return torch.linalg.cholesky(axes @ axes.mT)
        axes = inverse_factor(self.metric(theta))
        # One offset per free axis: theta + axis and theta - axis, in a leading dimension.
        steps = torch.where(self.free[..., None], axes, 0.0).permute(2, 0, 1)
        _, ahead = self.gradient(theta + steps)
        _, behind = self.gradient(theta - steps)
        curvature = torch.einsum("ind,ndj->nij", 0.5 * (behind - ahead), axes)
        curvature = 0.5 * (curvature + curvature.mT)
        pinned = torch.diag_embed((~self.free).to(theta.dtype))
        # Where a gradient a standard deviation away overflows, the metric is all that is known.
        known = curvature.isfinite().all(-1).all(-1)[:, None, None]
        curvature = torch.where(known, curvature, torch.diag_embed(self.free.to(theta.dtype)))
        values, vectors = torch.linalg.eigh(curvature + pinned)
        factor = axes @ (vectors * values.clamp(*_CURVATURE).rsqrt()[..., None, :])
        return torch.linalg.cholesky(factor @ factor.mT)

    @property
    def _block(self) -> int:
        """Thetas per star in one pass."""
        pixels = _CPU_PIXELS if self.batch.flux.device.type == "cpu" else _PIXELS
        return max(1, pixels // self.batch.flux.numel())

    @torch.no_grad()
    def summed(self, theta: Tensor) -> tuple[Target, Tensor]:
        """The density with w summed out, by what the data say of it at theta (N, d), and its metric there."""
        told = information_by_size(self.model, self.batch, *self.split(theta))
        target = Target(self.model, self.batch, self.classes, told)
        metric, sizes = self.metric(theta), slice(self.end, self.core)
        metric[:, sizes, sizes] += target._bend_of_sizes(theta, told)
        return target, metric

    def _bend_of_sizes(self, theta: Tensor, told: Tensor) -> Tensor:
        """What summing w out adds to the curvature along the sizes, positive, (N, T + 2, T + 2)."""
        with torch.enable_grad():
            h = theta[:, self.end : self.core].detach().requires_grad_()
            volume = self.model.residual_term.log_volume(h, told).sum()
            (slope,) = torch.autograd.grad(volume, h, create_graph=True)
            rows = [torch.autograd.grad(one.sum(), h, retain_graph=True)[0] for one in slope.unbind(-1)]
        bend = torch.stack(rows, dim=-1)
        values, vectors = torch.linalg.eigh(0.5 * (bend + bend.mT))
        return (vectors * values.clamp_min(0)[..., None, :]) @ vectors.mT

    def _less_product(self, theta: Tensor, curvature: Tensor) -> None:
        """Take off what the product of sizes and w bends: score times second derivative of s."""
        latents, log_scale = self.split(theta)
        z, hw = self.model.split(latents.detach())
        with torch.enable_grad():
            s = self.model.spectrum(latents).detach().requires_grad_()
            value = self.model.exposures(latents, s, log_scale.exp(), self.batch).log_prob(self.batch.flux)
            (score,) = torch.autograd.grad(value.sum(), s)
            hw = hw.requires_grad_()
            along = (score * self.model.spectrum(torch.cat([z, hw], dim=-1))).sum()
            (slope,) = torch.autograd.grad(along, hw, create_graph=True)
            sizes = self.core - self.end
            rows = [
                torch.autograd.grad(one.sum(), hw, retain_graph=True)[0]
                for one in slope[:, :sizes].unbind(-1)
            ]
        product = torch.stack(rows, dim=-2)
        curvature[:, self.end : self.core, self.end :] -= product
        curvature[:, self.core :, self.end : self.core] -= product[..., sizes:].mT

    def _value(self, theta: Tensor) -> Tensor:
        value = log_joint(self.model, self.batch, *self.split(theta), self.classes)[0]
        if self.told is None:
            return value
        return value - self.model.residual_term.log_volume(theta[..., self.end : self.core], self.told)

    def _fisher(self, theta: Tensor, observed: bool = False) -> Tensor:
        """Fisher information of the likelihood and of the scales' prior, (N, d, d)."""
        latents, log_scale = self.split(theta)
        found = information(self.model, self.batch, latents, log_scale, observed=observed)
        last, own = latents.shape[-1], torch.arange(log_scale.shape[-1], device=theta.device)
        index = torch.arange(self.dim, device=theta.device)
        at, scale = torch.cat([index[: self.latent_dim], index[self.end :]]), self.latent_dim + own

        fisher = torch.zeros(*theta.shape, theta.shape[-1], dtype=theta.dtype, device=theta.device)
        fisher[:, at[:, None], at] = found[..., :last, :last].sum(1)
        cross = torch.where(self.batch.free_scale[..., None], found[..., last, :last], 0.0)
        fisher[:, scale[:, None], at], fisher[:, at[:, None], scale] = cross, cross.mT
        free = torch.where(self.batch.free_scale, found[..., last, last] + SCALE_WIDTH**-2, 1.0)
        fisher[:, scale, scale] = free
        return fisher

    def _prior_curvature(self, theta: Tensor) -> Tensor:
        """Minus the second derivatives of log p(z), (N, L, L); of either sign."""
        with torch.enable_grad():
            z, w = (part.detach() for part in self.model.split(self.split(theta)[0]))
            by_class = self.model.log_joint_classes(torch.cat([z.requires_grad_(), w], dim=-1))
            value = by_class.amax(-1) if self.classes == "joint" else by_class.logsumexp(-1)
            (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
            rows = [
                torch.autograd.grad(column.sum(), z, retain_graph=True)[0] for column in gradient.unbind(-1)
            ]
        curvature = -torch.stack(rows, dim=-1)
        return 0.5 * (curvature + curvature.mT)


def inverse_factor(precision: Tensor) -> Tensor:
    """A matrix A with A A^T = precision^-1."""
    factor = torch.linalg.cholesky(precision)
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    return torch.linalg.solve_triangular(factor.mT, identity, upper=True)
