"""The objective of eq. (10): reconstruct spectra and preserve distances."""

from __future__ import annotations

import torch
from torch import Tensor

from .generator import Generator

__all__ = ["isometry_loss", "match_unit", "reconstruction_loss", "tolerant"]


def match_unit(flux: Tensor, mask: Tensor, spectrum: Tensor) -> Tensor:
    """Rescale an incomplete spectrum (..., D) to mean |flux| = 1 over all pixels.

    The input has mean |flux| = 1 over its observed pixels. The model's `spectrum` gives the contribution of
    the others to the mean. Complete spectra are returned unchanged. Gradients do not pass through the factor,
    so the loss cannot be reduced by shrinking the spectrum.
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
    r"""A loss that grows slowly beyond a tolerance t, :math:`t \log(1 + l / t)`; the loss itself for t = 0.

    A spectrum that L latents cannot express, such as one with strong emission lines, has a loss many times
    that of the others. In the plain mean it would dominate, and the other spectra would fit less well.

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
