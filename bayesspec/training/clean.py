"""What the generator leaves of clean spectra, and what of it is the stars': neither junk nor noise."""

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
"""Misfit of G that a star is forgiven, in mean flux: of a spectrum of S/N 1000, too, all pixels count."""

OUTLYING = 6.0
"""Robust standard deviations beyond which a lone pixel of a clean spectrum is taken for junk."""

LONE, EDGE = 3, 50
"""Junk has no more neighbours of its kind than this, unless it is this near to an end of the spectrum:
emission lines are wider."""

CLEAN_SNR, FILLED = 60.0, 100
"""A spectrum of this S/N is clean: what scatter it has is the star's, as far as anyone knows. In a class of
fewer such spectra all are clean that there are."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """What G leaves of N stars, in the unit in which each would be complete.

    Arguments:
        z: Latents that fit best, (N, L).
        flux: x - G(z), (N, D), 0 where masked.
        variance: Of the stars' own noise, (N, D).
        mask: True = bad, or junk, (N, D).
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
    """The latents whose spectra are nearest to clean ones, by Gauss-Newton steps from the encoder's guess.

    With a passage a star's own velocity, reddening and calibration are fitted beside z, as far as their prior
    lets them: what is left, and z, are those of the star at rest, in the library's light.
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
            return seen / seen.abs().mean(-1, keepdim=True)  # the library's spectra have this unit

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
    """Variance of the stars' own noise, (N, D): what their errors say, or else their scatter."""
    flux, mask = torch.as_tensor(stars.flux), torch.as_tensor(stars.mask)
    ivar = torch.as_tensor(np.where(stars.mask, 0, stars.ivar))
    scatter = (reference * robust_level(flux, mask, reference)[:, None]).square()
    usable = torch.as_tensor(stars.believable)[:, None] & (ivar > 0)
    return torch.where(usable, ivar.clamp_min(1e-12).reciprocal(), scatter)


def beyond(residuals: Residuals, basis: Tensor) -> Tensor:
    """What the patterns leave of residuals, 0 where masked."""
    return torch.where(residuals.mask, 0.0, residuals.flux - (residuals.flux @ basis.T) @ basis)


def without_junk(residuals: Residuals, basis: Tensor) -> Residuals:
    """Lone pixels far from what the patterns leave elsewhere are masked, and such at the ends."""
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
    """Classes with so many clean spectra that others need not be taken for clean, (K,)."""
    return np.bincount(stars.klass[stars.snr >= CLEAN_SNR], minlength=len(CLASSES)) >= FILLED


def less_noise_of_the_clean(residuals: Residuals, stars: StarLibrary, filled: NDArray) -> Residuals:
    """With no more variance than a spectrum has beyond that of a clean one."""
    share = np.where(filled[stars.klass], 1 - np.square(stars.snr / CLEAN_SNR), 0).clip(0, 1)
    kept = torch.as_tensor(share, dtype=residuals.variance.dtype)[:, None]
    return replace(residuals, variance=kept * residuals.variance)


def smooth(power: Tensor, width: int) -> Tensor:
    """Rows (..., D) averaged over so many pixels."""
    padded = torch.nn.functional.pad(power[:, None], (width // 2, width // 2), mode="replicate")
    return torch.nn.functional.avg_pool1d(padded, width, 1)[:, 0]
