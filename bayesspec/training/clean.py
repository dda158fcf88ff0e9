"""Residuals of clean spectra from the generator, with bad pixels masked and the stars' own noise known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.nn import Encoder, Generator, Passage
from bayesspec.nn.isometry import match_unit
from bayesspec.noise_level import NORMAL_MEDIAN, robust_level

from .library import CLASSES, StarLibrary

__all__ = [
    "FLOOR",
    "Residuals",
    "beyond",
    "filled_classes",
    "fit_latents",
    "less_noise_of_the_clean",
    "smooth",
    "without_junk",
]

FLOOR = 0.03
"""Misfit of G allowed in every pixel, in mean flux, so that all pixels count even at S/N 1000."""

OUTLYING = 6.0
"""Robust standard deviations beyond which an isolated pixel of a clean spectrum counts as bad."""

LONE, EDGE = 3, 50
"""A bad pixel has at most LONE outlying neighbours (emission lines are wider) or is within EDGE of an end."""

CLEAN_SNR, FILLED = 60.0, 100
"""A spectrum with this S/N counts as clean: its noise is not subtracted from the star's residuals. In a class
with fewer such spectra, all count as clean."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """Residuals of N stars from G, at mean |flux| = 1 over the whole grid.

    Arguments:
        z: Best-fitting latents, (N, L).
        flux: x - G(z), (N, D), 0 where masked.
        variance: Variance of the stars' own noise, (N, D).
        mask: True = bad, (N, D).
    """

    z: Tensor
    flux: Tensor
    variance: Tensor
    mask: Tensor


@torch.no_grad()
def fit_latents(
    generator: Generator,
    encoder: Encoder,
    stars: StarLibrary,
    reference: Tensor,
    passage: Passage | None = None,
    iterations: int = 8,
) -> Residuals:
    """Fit latents to clean spectra, by Gauss-Newton steps from the encoder's guess.

    With a passage, each star's velocity, reddening and calibration are fitted together with z, with their
    priors. z and the residuals are then those of the star at rest, with these effects removed.
    """
    parts = []
    for first in range(0, len(stars), 128):
        own = stars.select(np.arange(first, min(first + 128, len(stars))))
        flux, mask = torch.as_tensor(own.flux), torch.as_tensor(own.mask)
        variance = _own_variance(own, reference)
        weight = torch.where(mask, 0.0, 1 / (variance + FLOOR**2))
        z = encoder(flux, mask)
        latents = torch.cat([z, z.new_zeros(len(z), 0 if passage is None else passage.dim)], dim=-1)
        prior = torch.zeros(latents.shape[-1])
        prior[z.shape[-1] :] = 1.0

        def spectra(latents: Tensor) -> Tensor:
            z, x = latents.tensor_split((generator.latent_dim,), dim=-1)
            if passage is None:
                return generator(z)
            seen = passage(generator(z), x)
            return seen / seen.abs().mean(-1, keepdim=True)  # the unit of the library

        def misfit(
            latents: Tensor,
            flux: Tensor = flux,
            mask: Tensor = mask,
            weight: Tensor = weight,
            prior: Tensor = prior,
        ) -> Tensor:
            spectrum = spectra(latents)
            left = match_unit(flux, mask, spectrum) - spectrum
            return (weight * left.square()).sum(-1) + (prior * latents.square()).sum(-1)

        damping = torch.full((len(z), 1, 1), 1e-3)
        best = misfit(latents)
        for _ in range(iterations):
            z, x = latents.tensor_split((generator.latent_dim,), dim=-1)
            spectrum, jacobian = generator.jacobian(z)
            if passage is not None:
                spectrum, by_x, by_z = passage.jacobian(spectrum, jacobian, x)
                unit, jacobian = spectrum.abs().mean(-1)[:, None], torch.cat([by_z, by_x], dim=-1)
                along = (spectrum.sign()[..., None] * jacobian).mean(-2, keepdim=True)
                spectrum = spectrum / unit
                jacobian = (jacobian - spectrum[..., None] * along) / unit[..., None]
            difference = match_unit(flux, mask, spectrum) - spectrum
            weighted = jacobian * weight[..., None]
            normal = weighted.mT @ jacobian + prior.diag()
            normal = normal + damping * torch.diag_embed(normal.diagonal(dim1=-2, dim2=-1).clamp_min(1e-6))
            pull = (weighted.mT @ difference[..., None])[..., 0] - prior * latents
            step = torch.linalg.solve(normal, pull)
            found = misfit(latents + step)
            better = found < best
            latents = torch.where(better[:, None], latents + step, latents)
            best = torch.where(better, found, best)
            damping = damping * torch.where(better, 0.3, 5.0)[:, None, None]
        z, x = latents.tensor_split((generator.latent_dim,), dim=-1)
        spectrum = spectra(latents)
        left = torch.where(mask, 0.0, match_unit(flux, mask, spectrum) - spectrum)
        if passage is not None:
            factor = passage.throughput(x) / passage(generator(z), x).abs().mean(-1, keepdim=True)
            left, variance = passage.shift(-x).apply(left / factor), variance / factor.square()
            left = torch.where(mask, 0.0, left)
        parts.append((z, left, variance, mask))
    return Residuals(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _own_variance(stars: StarLibrary, reference: Tensor) -> Tensor:
    """Variance of the stars' own noise, (N, D), from their errors, or else from their scatter."""
    flux, mask = torch.as_tensor(stars.flux), torch.as_tensor(stars.mask)
    ivar = torch.as_tensor(np.where(stars.mask, 0, stars.ivar))
    scatter = (reference * robust_level(flux, mask, reference)[:, None]).square()
    usable = torch.as_tensor(stars.believable)[:, None] & (ivar > 0)
    return torch.where(usable, ivar.clamp_min(1e-12).reciprocal(), scatter)


def beyond(residuals: Residuals, basis: Tensor) -> Tensor:
    """Residuals after subtraction of the patterns, 0 where masked."""
    return torch.where(residuals.mask, 0.0, residuals.flux - (residuals.flux @ basis.T) @ basis)


def without_junk(residuals: Residuals, basis: Tensor) -> Residuals:
    """Residuals with isolated outliers from the patterns masked, and all outliers near the ends."""
    left = beyond(residuals, basis)
    typical = torch.where(residuals.mask, torch.nan, left.abs()).nanmedian(-1, keepdim=True).values
    noise = torch.maximum((NORMAL_MEDIAN * typical).nan_to_num(1.0), residuals.variance.sqrt())
    far = left.abs() > OUTLYING * noise
    width = 2 * LONE + 1
    near = torch.nn.functional.avg_pool1d(far.float()[:, None], width, 1, LONE)[:, 0] * width
    pixel = torch.arange(far.shape[-1])
    edge = (pixel < EDGE) | (pixel >= far.shape[-1] - EDGE)
    mask = residuals.mask | (far & ((near <= LONE + 0.5) | edge))
    return Residuals(residuals.z, torch.where(mask, 0.0, residuals.flux), residuals.variance, mask)


def filled_classes(stars: StarLibrary) -> NDArray[np.bool_]:
    """Classes that have enough clean spectra by themselves, (K,)."""
    return np.bincount(stars.klass[stars.snr >= CLEAN_SNR], minlength=len(CLASSES)) >= FILLED


def less_noise_of_the_clean(residuals: Residuals, stars: StarLibrary, filled: NDArray) -> Residuals:
    """Residuals with only the noise variance in excess of that of a clean spectrum."""
    share = np.where(filled[stars.klass], 1 - np.square(stars.snr / CLEAN_SNR), 0).clip(0, 1)
    kept = torch.as_tensor(share, dtype=residuals.variance.dtype)[:, None]
    return replace(residuals, variance=kept * residuals.variance)


def smooth(power: Tensor, width: int) -> Tensor:
    """Running mean of rows (..., D) over `width` pixels."""
    padded = torch.nn.functional.pad(power[:, None], (width // 2, width // 2), mode="replicate")
    return torch.nn.functional.avg_pool1d(padded, width, 1)[:, 0]
