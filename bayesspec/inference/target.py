"""The posterior density as a function of one vector per star: value, gradient, metric and curvature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from bayesspec.distributions import NoiseFlow
from bayesspec.model import SCALE_WIDTH, StellarModel
from bayesspec.observation import ObservationBatch

from .map import log_joint

__all__ = ["Target"]

# Pixels in one pass: what a CPU's cache likes, and what an accelerator's memory bears.
_CPU_PIXELS, _PIXELS = 2**19, 2**24

# Laplace's curvature may differ from the Fisher metric by these factors, no more.
_CURVATURE = (0.05, 50.0)


class Target:
    r"""log p(y, z, a) of N stars at theta = (z, log a), a vector of L latents and E log scales.

    Components of theta that are not free, the log scales of exposures whose scale is known or that a star
    does not have, are 0 wherever a theta is returned, and their gradient is 0; matrices have a unit diagonal
    there.

    Arguments:
        model: The model.
        batch: N stars.
        classes: `joint`: the density of the best class, eq. (7). `marginal`: the class summed out.
    """

    def __init__(
        self,
        model: StellarModel,
        batch: ObservationBatch,
        classes: Literal["joint", "marginal"] = "marginal",
    ) -> None:
        self.model, self.batch, self.classes = model, batch, classes
        self.latent_dim = model.latent_dim
        latents = torch.ones_like(batch.free_scale[:, :1]).expand(-1, self.latent_dim)
        self.free = torch.cat([latents, batch.free_scale], dim=-1)

    @property
    def dim(self) -> int:
        """L + E, free or not."""
        return self.free.shape[-1]

    def select(self, rows: Sequence[int] | NDArray) -> Target:
        """The same density for the stars at these positions."""
        return Target(self.model, self.batch.select(rows), self.classes)

    def join(self, z: Tensor, log_scale: Tensor) -> Tensor:
        """theta, (..., N, L + E), of latents (..., N, L) and log scales (..., N, E)."""
        return torch.cat([z, torch.where(self.batch.free_scale, log_scale, 0.0)], dim=-1)

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (..., N, L) and log scales (..., N, E)."""
        return theta[..., : self.latent_dim], theta[..., self.latent_dim :]

    def log_density(self, theta: Tensor) -> Tensor:
        """Log density, (..., N), of thetas (..., N, L + E), without gradient, in blocks that fit memory."""
        flat = theta.reshape(-1, *theta.shape[-2:])
        with torch.no_grad():
            parts = [self._value(block) for block in flat.split(self._block)]
        return torch.cat(parts).reshape(theta.shape[:-1])

    def gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Log density, (..., N), and its gradient, (..., N, L + E)."""
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
    def metric(self, theta: Tensor) -> Tensor:
        """Positive definite curvature, (N, L + E, L + E), at theta (N, L + E).

        The Fisher information of the flow's conditionals, plus the prior's curvature; where their sum is
        not positive, its absolute value.
        """
        curvature = self._fisher(theta)
        curvature[:, : self.latent_dim, : self.latent_dim] += self._prior_curvature(theta)
        scale = curvature.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-6).sqrt()
        values, vectors = torch.linalg.eigh(curvature / (scale[..., None] * scale[..., None, :]))
        values = values.abs().clamp_min(1e-3)
        positive = (vectors * values[..., None, :]) @ vectors.mT
        return positive * (scale[..., None] * scale[..., None, :])

    @torch.no_grad()
    def laplace(self, theta: Tensor) -> Tensor:
        """Lower Cholesky factor, (N, L + E, L + E), of Laplace's covariance at a mode theta (N, L + E).

        Second derivatives are differences of gradients a standard deviation to either side, along the axes of
        the metric: the density has kinks (its conditioner is piecewise linear), and what a proposal needs is
        the curvature over the width of the posterior, not that between two kinks. They are kept within a
        factor of the metric, so that the covariance is positive definite whatever the data.
        """
        axes = _inverse_factor(self.metric(theta))
        # One offset per free axis: theta + axis and theta - axis, in a leading dimension.
        steps = torch.where(self.free[..., None], axes, 0.0).permute(2, 0, 1)
        _, ahead = self.gradient(theta + steps)
        _, behind = self.gradient(theta - steps)
        curvature = torch.einsum("ind,ndj->nij", 0.5 * (behind - ahead), axes)
        curvature = 0.5 * (curvature + curvature.mT)
        pinned = torch.diag_embed((~self.free).to(theta.dtype))
        values, vectors = torch.linalg.eigh(curvature + pinned)
        factor = axes @ (vectors * values.clamp(*_CURVATURE).rsqrt()[..., None, :])
        return torch.linalg.cholesky(factor @ factor.mT)

    @property
    def _block(self) -> int:
        """Thetas per star in one pass."""
        pixels = _CPU_PIXELS if self.batch.flux.device.type == "cpu" else _PIXELS
        return max(1, pixels // self.batch.flux.numel())

    def _value(self, theta: Tensor) -> Tensor:
        return log_joint(self.model, self.batch, *self.split(theta), self.classes)[0]

    def _fisher(self, theta: Tensor) -> Tensor:
        """Fisher information of the likelihood and of the scales' prior, (N, L + E, L + E)."""
        z, log_scale = self.split(theta)
        batch, noise, latent = self.batch, self.model.noise, self.latent_dim
        spectrum, jacobian = self.model.generator.jacobian(z)
        observed = ~batch.mask
        flow = NoiseFlow(spectrum[:, None], noise, log_scale.exp(), observed)
        eps = flow.residual(batch.flux)
        mean, alpha, d_mean, d_alpha = _linearised(noise, eps)

        # A pixel's conditional is Normal(a (s + mean), a exp(alpha)): its centre and log width move with z
        # and log a directly, and through the noise before it, eps = y / a - s. Last dimension: z, log a.
        clean = spectrum[:, None]
        slope = jacobian[:, None].expand(-1, eps.shape[1], -1, -1)
        d_eps = -torch.cat([slope, (clean + eps)[..., None]], dim=-1)
        d_eps = torch.where(observed[..., None], d_eps, 0.0)
        direct = torch.cat([slope, (clean + mean)[..., None]], dim=-1)
        unit = torch.cat([torch.zeros_like(slope), torch.ones_like(mean)[..., None]], dim=-1)
        weight = flow.used[..., None] * torch.exp(-alpha)[..., None]
        centre = (direct + _along(d_mean, d_eps)) * weight
        width = (unit + _along(d_alpha, d_eps)) * flow.used[..., None]
        information = centre.mT @ centre + 2 * width.mT @ width

        fisher = torch.zeros(*theta.shape, theta.shape[-1], dtype=theta.dtype, device=theta.device)
        fisher[:, :latent, :latent] = information[..., :latent, :latent].sum(1)
        free = batch.free_scale[..., None]
        cross = torch.where(free, information[..., latent, :latent], 0.0)
        fisher[:, latent:, :latent], fisher[:, :latent, latent:] = cross, cross.mT
        own = torch.where(batch.free_scale, information[..., latent, latent] + SCALE_WIDTH**-2, 1.0)
        fisher[:, latent:, latent:] = torch.diag_embed(own)
        return fisher

    def _prior_curvature(self, theta: Tensor) -> Tensor:
        """Minus the second derivatives of log p(z), (N, L, L); of either sign."""
        with torch.enable_grad():
            z = self.split(theta)[0].detach().requires_grad_()
            by_class = self.model.log_joint_classes(z)
            value = by_class.amax(-1) if self.classes == "joint" else by_class.logsumexp(-1)
            (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
            rows = [
                torch.autograd.grad(column.sum(), z, retain_graph=True)[0] for column in gradient.unbind(-1)
            ]
        curvature = -torch.stack(rows, dim=-1)
        return 0.5 * (curvature + curvature.mT)


def _inverse_factor(precision: Tensor) -> Tensor:
    """A matrix A with A A^T = precision^-1."""
    factor = torch.linalg.cholesky(precision)
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    return torch.linalg.solve_triangular(factor.mT, identity, upper=True)


def _linearised(noise: nn.Module, eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and log width of every pixel, (..., D), and their slopes by the K pixels before, (..., D, K)."""
    kernel = noise.kernel
    windows = eps[..., :-1].unfold(-1, kernel, 1)
    flat = windows.reshape(-1, kernel)
    parts = []
    for block in flat.split(_CPU_PIXELS // 32 if eps.device.type == "cpu" else len(flat)):
        with torch.enable_grad():
            window = block.detach().requires_grad_()
            outputs = noise.step(window)
            slopes = [torch.autograd.grad(part.sum(), window, retain_graph=True)[0] for part in outputs]
        parts.append((*(part.detach() for part in outputs), *slopes))
    mean, alpha, *slopes = (torch.cat(column) for column in zip(*parts, strict=True))

    # The first K pixels have constants of their own.
    shape = windows.shape[:-1]
    mean, alpha = (
        torch.cat([first.expand(*shape[:-1], kernel), rest.reshape(shape)], dim=-1)
        for first, rest in ((noise.first_mean, mean), (noise.first_alpha, alpha))
    )
    d_mean, d_alpha = (pad(slope.reshape(windows.shape), (0, 0, kernel, 0)) for slope in slopes)
    return mean, alpha, d_mean, d_alpha


def _along(derivative: Tensor, direction: Tensor) -> Tensor:
    """Derivatives (..., D, K) by the K pixels before, along directions (..., D, P): (..., D, P)."""
    kernel = derivative.shape[-1]
    result = torch.zeros_like(direction)
    for k in range(kernel):
        result[..., kernel:, :] += derivative[..., kernel:, k, None] * direction[..., k : k - kernel, :]
    return result
