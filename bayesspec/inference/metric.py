"""The Fisher metric of the likelihood: how much a spectrum says of each latent and of its scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayesspec.batch import ObservationBatch
from bayesspec.distributions import Conditioner, NoiseFlow, RobustNoiseFlow, SharedDiscrepancy
from bayesspec.model import STATED, UNSTATED, StellarModel

__all__ = ["by_knots", "information", "information_by_size", "innovation"]

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
    flow = model.likelihood(latents, spectrum, log_scale.exp(), batch)
    if isinstance(flow, NoiseFlow):
        return _of_gaussian(flow, batch.flux, clean, slope)
    noise = SharedDiscrepancy(flow)
    precision = noise.precision(batch.flux)
    weight = noise.curvature(batch.flux) if observed else precision
    centre = _centres(flow, batch.flux, clean, slope)
    found = (centre * weight[..., None]).mT @ centre

    # Sizes and the noise level move the variance, of which the discrepancy's is a share.
    total = precision.sum(-2, keepdim=True)
    of_e = flow.tau.square()
    share = (of_e * total).clamp_max(1.0)
    of_exposure = share.square() * precision / total.clamp_min(1e-30)
    h, _ = model.residual_term.split(model.split(latents)[1])
    moved = of_exposure.sqrt()[..., None] * model.residual_term.growth(h)[:, None]
    level = torch.where(batch.noise_known, STATED, UNSTATED).to(moved)[:, None, None]
    of_noise = (1 - of_e * precision).clamp_min(0.0)
    moved[..., 0] = level * torch.where(flow.seen, of_noise, 0.0)
    sizes = slice(model.lead_dim, model.lead_dim + h.shape[-1])
    found[..., sizes, sizes] += 2 * moved.mT @ moved
    return found


def _of_gaussian(flow: NoiseFlow, flux: Tensor, clean: Tensor, slope: Tensor) -> Tensor:
    eps = flow.residual(flux)
    mean, _, d_mean, d_alpha = _conditioner(flow.network, eps)

    # A pixel's conditional is Normal(a (s + mean), a exp(alpha)): its centre and log width move with z
    # and log a directly, and through the noise before it, eps = y / a - s. Last dimension: z, log a.
    d_eps = -torch.cat([slope, (clean + eps)[..., None]], dim=-1)
    d_eps = torch.where(flow.seen[..., None], d_eps, 0.0)
    direct = torch.cat([slope, (clean + mean)[..., None]], dim=-1)
    unit = torch.cat([torch.zeros_like(slope), torch.ones_like(mean)[..., None]], dim=-1)
    weight = flow.precision(flux).sqrt()[..., None]  # a hit says nothing
    centre = (direct + _along(d_mean, d_eps)) * weight
    width = (unit + _along(d_alpha, d_eps)) * flow.used[..., None]
    return centre.mT @ centre + 2 * width.mT @ width


@torch.no_grad()
def information_by_size(
    model: StellarModel, batch: ObservationBatch, latents: Tensor, log_scale: Tensor
) -> Tensor:
    r"""What the data say of w, as a function of the sizes at the T knots: (N, 2 T - 1, R, R).

    With sizes :math:`s_t` the information is the sum of these matrices, weighed by the T squares
    :math:`s_t^2` and the T - 1 products :math:`s_t s_{t + 1}`.

    Arguments:
        model: A model with a residual term.
        batch: N stars.
        latents: (N, L + R).
        log_scale: (N, E).
    """
    residual = model.residual_term
    rows = max(1, _CPU_NUMBERS // (batch.flux[0].numel() * residual.components))
    if latents.device.type == "cpu" and rows < len(batch):
        parts = []
        for first in range(0, len(batch), rows):
            own = slice(first, min(first + rows, len(batch)))
            part = batch.select(range(own.start, own.stop))
            parts.append(information_by_size(model, part, latents[own], log_scale[own]))
        return torch.cat(parts)

    spectrum, jacobian = model.jacobian(latents)
    h, _ = residual.split(model.split(latents)[1])
    slope = jacobian[..., -residual.components :] / residual.size(h)[..., None]
    flow = model.likelihood(latents, spectrum, log_scale.exp(), batch)
    slope = slope[:, None].expand(-1, log_scale.shape[1], -1, -1)
    centre = _centres(flow, batch.flux, spectrum[:, None], slope)[..., :-1]
    weight = SharedDiscrepancy(flow).precision(batch.flux)

    return by_knots(residual.between, centre, weight)


def by_knots(between: Tensor, slope: Tensor, weight: Tensor) -> Tensor:
    """Sums over pixels of slopes' products, for each product of the sizes at two knots.

    Between two knots a size is a sum of two terms, and so are its square's three.

    Arguments:
        between: How much each knot has of the size of a pixel, (T, D).
        slope: (N, E, D, R).
        weight: (N, E, D).

    Returns:
        (N, 2 T - 1, R, R): of the T squares, and of the T - 1 products of neighbours.
    """
    hats = between.to(slope.dtype)
    knots, pixels = hats.shape
    nothing = slope.new_zeros(len(slope), slope.shape[-1], slope.shape[-1])
    squares, products = [nothing] * knots, []
    for t in range(knots - 1):
        first, last = (-(-k * (pixels - 1) // (knots - 1)) for k in (t, t + 1))
        own = slice(first, last if t < knots - 2 else pixels)
        left, right = hats[t, own], hats[t + 1, own]
        part = slope[:, :, own].flatten(1, 2)

        def total(share: Tensor, part: Tensor = part, own: slice = own) -> Tensor:
            return (part * (weight[..., own] * share).flatten(1)[..., None]).mT @ part

        squares[t] = squares[t] + total(left.square())
        squares[t + 1] = squares[t + 1] + total(right.square())
        products.append(total(2 * left * right))
    return torch.stack([*squares, *products], dim=1)


def _centres(flow: RobustNoiseFlow, flux: Tensor, clean: Tensor, slope: Tensor) -> Tensor:
    """Derivatives of all pixels' centres, (N, E, D, P + 1), by P latents and the exposure's log scale."""
    d_eps = -torch.cat([slope, clean.expand(slope.shape[:-1])[..., None]], dim=-1)
    d_eps = torch.where(flow.seen[..., None], d_eps, 0.0)
    return innovation(flow, flux)(-d_eps)


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


def _conditioner(noise: Conditioner, eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
        torch.cat([first, rest.reshape(shape)], dim=-1)
        for first, rest in zip(noise(eps[..., :kernel]), (mean, alpha), strict=True)
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
