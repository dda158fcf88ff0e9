"""The objective of eq. (10): reconstruct spectra, and keep distances."""

from __future__ import annotations

import torch
from torch import Tensor

from .generator import Generator

__all__ = ["isometry_loss", "match_unit", "reconstruction_loss", "tolerant"]


def match_unit(flux: Tensor, mask: Tensor, spectrum: Tensor) -> Tensor:
    """Bring an incomplete spectrum (..., D) to the unit in which it would be complete.

    A spectrum that lacks pixels is known in units of its mean |flux| over the pixels it has. The model's
    `spectrum` says what share of the mean the others carry. Complete spectra come back as they are. Gradients
    do not pass through the factor, so a spectrum cannot be explained by shrinking it.
    """
    observed = ~mask
    count = observed.sum(-1, keepdim=True).clamp_min(1)
    size = spectrum.detach().abs()
    share = torch.where(observed, size, 0.0).sum(-1, keepdim=True) / count / size.mean(-1, keepdim=True)
    unit = torch.where(observed, flux, 0.0).abs().sum(-1, keepdim=True) / count
    factor = torch.where(mask.any(-1, keepdim=True), share / unit.clamp_min(1e-12), 1.0)
    return torch.where(observed, flux * factor, 0.0)


def reconstruction_loss(flux: Tensor, mask: Tensor, spectrum: Tensor) -> Tensor:
    """Mean squared difference over the observed pixels, (...), at mean |flux| = 1: second term of eq. (10).

    Example:
        >>> flux, mask = torch.ones(2, 8), torch.zeros(2, 8, dtype=torch.bool)
        >>> reconstruction_loss(flux, mask, flux + 0.1)
        tensor([0.0100, 0.0100])
    """
    difference = torch.where(mask, 0.0, match_unit(flux, mask, spectrum) - spectrum)
    return difference.square().sum(-1) / (~mask).sum(-1).clamp_min(1)


def tolerant(loss: Tensor, tolerance: float) -> Tensor:
    r"""A loss whose pull fades beyond a tolerance t, :math:`t \log(1 + l / t)`; the loss itself for t = 0.

    A spectrum that L latents cannot express, such as one with strong emission lines, has a loss many times
    that of the others. Under the plain mean it would bend the surface that fits them.

    Example:
        >>> tolerant(torch.tensor([1e-6, 1.0]), 1e-3)
        tensor([9.9950e-07, 6.9088e-03])
    """
    return tolerance * torch.log1p(loss / tolerance) if tolerance else loss


def isometry_loss(
    generator: Generator, z: Tensor, spectrum: Tensor, radius: float, *, rng: torch.Generator | None = None
) -> Tensor:
    r"""First term of eq. (10) in units of the step, :math:`(|G(z + \delta) - G(z)| / |\delta| - 1)^2`, (...).

    Distances between spectra are per-pixel rms; :math:`\delta` is uniform on the sphere of the given radius.
    """
    step = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=rng)
    step = radius * step / step.norm(dim=-1, keepdim=True)
    distance = (generator(z + step) - spectrum).square().mean(-1).sqrt()
    return (distance / radius - 1).square()
