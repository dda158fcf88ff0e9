"""The last step but one: how e is spread beneath what is found of unseen stars with noise of other nights."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from bayesspec.inference.denoise import denoise
from bayesspec.model import StellarModel
from bayesspec.nn.residual import WIDTHS

from .clean import Residuals, smooth, without_junk
from .exposures import NoiseLibrary
from .library import StarLibrary
from .simulation import NoisyStars, choose_sides, high_snr, simulate

__all__ = ["fit_shares", "most_probable_shares"]

SNR = 100.0
"""Of the spectra: so much light that what is found of a star beside e is hardly uncertain."""

PER_CLASS = 16
"""Stars of each class."""

TYPICAL = 6.0
"""Stars of a class that those of all classes count as, where the class's own shares are counted."""

LEAST_SHARES = 1e-3, 1e-3, 1e-3, 1e-3, 3e-5, 1e-5
"""Of pixels whose discrepancy is each of `WIDTHS` as large as usual."""

SMOOTH = 9
"""Pixels over which shares are averaged."""


@torch.no_grad()
def fit_shares(
    model: StellarModel, stars: StarLibrary, noise: NoiseLibrary, *, seed: int, progress: bool = False
) -> Tensor:
    """How often e has each of `WIDTHS`, for every class and pixel: (kinds, K, D), of sum 1 over K.

    Unseen stars are given the noise of unseen nights and denoised. What is then left of the truth is e as it
    is, in units of tau as the likelihood finds it: a strong line that no pattern has is an outlier to the
    likelihood and does not widen its tau.

    Arguments:
        model: The model, all else of it fitted.
        stars: Clean stars; those of the validation side count.
        noise: Noise of exposures; those of the validation side count.
        seed: Of which noise each star is given.
        progress: Show a bar on stderr.

    Raises:
        BayesspecError: if no star with S/N above 60, or no night, is on the validation side.
    """
    chosen = choose_sides(stars, noise, PER_CLASS, "validation")
    data = simulate("high_snr", partial(high_snr, levels=(SNR,)), *chosen, model.grid, seed=seed)
    square, observed = _left(model, data, progress)
    usual = most_probable_shares(square, observed)
    shares = usual.repeat(len(model.residual.share), 1, 1)
    for c in np.unique(data.klass):
        own = torch.as_tensor(data.klass == c)
        shares[c] = most_probable_shares(square[own], observed[own], usual, TYPICAL)
    return shares


def _left(model: StellarModel, data: NoisyStars, progress: bool) -> tuple[Tensor, Tensor]:
    """Squares of what the most probable spectra leave of the truth, over tau's, and where that is known."""
    found = denoise(data.observations(), model=model, method="map", progress=progress)
    latents = torch.as_tensor(found.latents)
    unit = (found.scale * found.exposure_unit)[:, :1]
    left = torch.as_tensor((data.truth / unit).astype(np.float32)) - model.spectrum(latents)
    unknown = torch.as_tensor(data.truth_mask | data.mask.all(axis=1))
    parts = latents[:, : model.latent_dim], torch.where(unknown, 0.0, left), torch.zeros_like(left), unknown
    clean = without_junk(Residuals(*parts), model.residual.basis.float())
    tau = model.discrepancy(latents)
    return (clean.flux / tau).square(), (~clean.mask).float()


def most_probable_shares(
    square: Tensor,
    observed: Tensor,
    before: Tensor | None = None,
    count: float = 0.0,
    iterations: int = 30,
) -> Tensor:
    """Shares of `WIDTHS`, (K, D), that make squares of e in units of tau most probable.

    By expectation-maximisation; none is less than it may be, however few spectra there are.

    Arguments:
        square: (N, D).
        observed: 1 where known, else 0, (N, D).
        before: Shares that are expected, (K, D).
        count: How many spectra these are worth.
        iterations: Of expectation and maximisation.

    Example:
        >>> square = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)).square()
        >>> share = most_probable_shares(4 * square, torch.ones(500, 64))
        >>> WIDTHS[int(share.mean(1).argmax())]  # most of it is twice as wide
        2.0
    """
    widths, least = (torch.tensor(values)[:, None] for values in (WIDTHS, LEAST_SHARES))
    before = torch.full((len(WIDTHS), square.shape[-1]), 1 / len(WIDTHS)) if before is None else before
    density = torch.stack([-0.5 * square / width**2 - width.log() for width in widths])
    share = before
    for _ in range(iterations):
        whose = (density + share.log()[:, None]).softmax(0)
        share = ((whose * observed).sum(1) + count * before) / (observed.sum(0) + count).clamp_min(1e-12)
        share = smooth(share, SMOOTH).maximum(least)
        share = share / share.sum(0)
    return share
