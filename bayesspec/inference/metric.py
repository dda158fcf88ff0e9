"""The Fisher metric of the likelihood: how much a spectrum says of each latent and of its scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayesspec.batch import ObservationBatch
from bayesspec.distributions import NoiseFlow, RobustNoiseFlow
from bayesspec.model import StellarModel
from bayesspec.nn import NoiseNetwork

__all__ = ["information", "innovation"]

# Numbers in one pass: pixels times parameters, and pixels of a conditioner's slopes.
_CPU_NUMBERS, _CPU_WINDOWS = 2**23, 2**14


@torch.no_grad()
def information(
    model: StellarModel,
    batch: ObservationBatch,
    latents: Tensor,
    log_scale: Tensor,
    *,
    observed: bool = False,
) -> Tensor:
    """Information of every exposure on latents and its own log scale, (N, E, P, P), P = L + R + 1.

    Of the Gaussian flow it is the Fisher information of the conditionals. Of the robust flow it is that of
    Gaussians whose variances are what the mixture makes of each pixel's residual (iteratively reweighted
    least squares): a cosmic ray says nothing.

    Arguments:
        model: The model.
        batch: N stars.
        latents: (N, L + R).
        log_scale: (N, E).
        observed: Of the robust flow, weigh pixels by the curvature of their terms instead, which in the tails
            is less, or negative: what Laplace's approximation needs at a mode.
    """
    numbers = batch.flux[0].numel() * (latents.shape[-1] + 1)
    rows = max(1, _CPU_NUMBERS // numbers) if latents.device.type == "cpu" else len(batch)
    if rows >= len(batch):
        return _information(model, batch, latents, log_scale, observed)
    parts = []
    for first in range(0, len(batch), rows):
        own = slice(first, min(first + rows, len(batch)))
        part = batch.select(range(own.start, own.stop))
        parts.append(_information(model, part, latents[own], log_scale[own], observed))
    return torch.cat(parts)


def _information(
    model: StellarModel, batch: ObservationBatch, latents: Tensor, log_scale: Tensor, observed: bool
) -> Tensor:
    spectrum, jacobian = model.jacobian(latents)
    clean, slope = spectrum[:, None], jacobian[:, None].expand(-1, log_scale.shape[1], -1, -1)
    flow = model.likelihood(latents[:, None], clean, log_scale.exp(), batch)
    if isinstance(flow, NoiseFlow):
        return _of_gaussian(flow, batch.flux, clean, slope)
    found = _of_robust(flow, batch.flux, clean, slope, observed)

    # The size h of the residuals also moves the variance, of which the discrepancy's is a share.
    share = (flow.discrepancy.square() * flow.precision(batch.flux)).clamp_max(1.0)
    growth = model.residual.growth(model.split(latents)[1])[:, None]
    found[..., model.lead_dim, model.lead_dim] += 2 * growth.square() * share.square().sum(-1)
    return found


def _of_gaussian(flow: NoiseFlow, flux: Tensor, clean: Tensor, slope: Tensor) -> Tensor:
    observed, eps = flow.observed, flow.residual(flux)
    mean, _, d_mean, d_alpha = _conditioner(flow.network, eps)

    # A pixel's conditional is Normal(a (s + mean), a exp(alpha)): its centre and log width move with z
    # and log a directly, and through the noise before it, eps = y / a - s. Last dimension: z, log a.
    d_eps = -torch.cat([slope, (clean + eps)[..., None]], dim=-1)
    d_eps = torch.where(observed[..., None], d_eps, 0.0)
    direct = torch.cat([slope, (clean + mean)[..., None]], dim=-1)
    unit = torch.cat([torch.zeros_like(slope), torch.ones_like(mean)[..., None]], dim=-1)
    weight = flow.precision(flux).sqrt()[..., None]  # a hit says nothing
    centre = (direct + _along(d_mean, d_eps)) * weight
    width = (unit + _along(d_alpha, d_eps)) * flow.used[..., None]
    return centre.mT @ centre + 2 * width.mT @ width


def _of_robust(flow: RobustNoiseFlow, flux: Tensor, clean: Tensor, slope: Tensor, observed: bool) -> Tensor:
    d_eps = -torch.cat([slope, clean.expand(slope.shape[:-1])[..., None]], dim=-1)
    d_eps = torch.where(flow.observed[..., None], d_eps, 0.0)
    centre = innovation(flow, flux)(-d_eps)
    weight = flow.curvature(flux) if observed else flow.precision(flux)
    return (centre * weight[..., None]).mT @ centre


def innovation(flow: RobustNoiseFlow, flux: Tensor) -> Callable[[Tensor], Tensor]:
    """How what is new in every pixel, given those before it, follows small changes of the residual.

    A linear map of changes (..., D, P) to changes (..., D, P).
    """
    # A conditional's centre is mean(t) sigma^2 / c, t = (y / a - s) / c: its width stays as it is.
    sigma, _, total = flow.widths()
    t, kernel = flow.residual(flux) / total, flow.network.kernel
    d_mean = _slopes_by_window(
        lambda window, context: flow.network.step(window, context)[0],
        pad(t, (kernel, 0))[..., :-1].unfold(-1, kernel, 1),
        flow.context().expand(-1, *t.shape),
    )
    share = (sigma.square() / total)[..., None]
    return lambda d_eps: d_eps - share * _along(d_mean, d_eps / total[..., None])


def _slopes_by_window(step: Callable[[Tensor, Tensor], Tensor], windows: Tensor, context: Tensor) -> Tensor:
    """Derivatives of a conditional's centre by the K pixels before, (..., D, K)."""
    kernel = windows.shape[-1]
    flat, known = windows.reshape(-1, kernel), context.reshape(len(context), -1)
    size = _CPU_WINDOWS if flat.device.type == "cpu" else len(flat)
    slopes = []
    for block, facts in zip(flat.split(size), known.split(size, -1), strict=True):
        with torch.enable_grad():
            window = block.detach().requires_grad_()
            (slope,) = torch.autograd.grad(step(window, facts).sum(), window)
        slopes.append(slope)
    return torch.cat(slopes).reshape(windows.shape)


def _conditioner(noise: NoiseNetwork, eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and log width of every pixel, (..., D), and their slopes by the K pixels before, (..., D, K)."""
    kernel = noise.kernel
    windows = eps[..., :-1].unfold(-1, kernel, 1)
    flat = windows.reshape(-1, kernel)
    parts = []
    for block in flat.split(_CPU_WINDOWS if eps.device.type == "cpu" else len(flat)):
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
    for back in range(1, kernel + 1):
        slope = derivative[..., back:, kernel - back, None]
        result[..., back:, :] += slope * direction[..., :-back, :]
    return result
