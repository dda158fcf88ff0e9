"""The last step: how e is spread beneath what is found of unseen stars with noise of other nights."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.inference.denoise import denoise
from bayesspec.model import StellarModel
from bayesspec.nn.residual import WIDTHS
from bayesspec.noise_level import NORMAL_MEDIAN

from .clean import Residuals, smooth, without_junk
from .exposures import NoiseLibrary
from .library import StarLibrary
from .simulation import NoisyStars, choose_sides, high_snr, simulate

__all__ = ["fit_discrepancy", "most_probable_shares"]

SNR = 100.0
"""Of the spectra: so much light that what is found of a star beside e is hardly uncertain."""

PER_CLASS = 16
"""Stars of each class."""

TYPICAL = 6.0
"""Stars of a class that those of all classes count as, where the class's own shares are counted."""

LEAST_SHARES = 1e-3, 1e-3, 1e-3, 1e-3, 3e-5
"""Of pixels whose discrepancy is each of `WIDTHS` as large as usual."""

ROUNDS = 2
"""Fits of these stars, each with what the one before has found."""

SMOOTH = 9
"""Pixels over which shares are averaged."""


@torch.no_grad()
def fit_discrepancy(
    model: StellarModel, stars: StarLibrary, noise: NoiseLibrary, *, seed: int, progress: bool = False
) -> None:
    """Bring the residual term to the sizes that unseen stars have: of w, of e, and shares of its widths.

    Unseen stars are given the noise of unseen nights and denoised. The size that is found in them on average
    is made the usual one. What is then left of the truth is e, in units of tau as the likelihood finds it:
    tau is made the size of most of it, and shares, for every class and pixel, are what makes it most
    probable. Since all of these bear on what is found, this is done `ROUNDS` times.

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
    residual = model.residual_term
    for _ in range(ROUNDS):
        left = _left(model, data, progress)
        usual_size = _usual_sizes(left.log_size, data.klass, len(model.classes))[residual.kind]
        bulk = NORMAL_MEDIAN**2 * left.square[left.observed > 0].median()
        residual.factor *= usual_size.exp()[:, None, None]
        residual.log_bands += usual_size[:, None]
        residual.log_discrepancy += 0.5 * bulk.log()
        square, observed = left.square / bulk, left.observed
        usual = most_probable_shares(square, observed)
        residual.share.copy_(usual.expand_as(residual.share))
        for c in np.unique(data.klass):
            own = torch.as_tensor(data.klass == c)
            residual.share[c] = most_probable_shares(square[own], observed[own], usual, TYPICAL)


class _Left(NamedTuple):
    """What the most probable spectra leave of N truths."""

    square: Tensor
    """Squares in units of tau at the size that was found, (N, D)."""
    observed: Tensor
    """1 where that is known, else 0, (N, D)."""
    log_size: Tensor
    """Mean log size of the residuals, (N,)."""


def _left(model: StellarModel, data: NoisyStars, progress: bool) -> _Left:
    found = denoise(data.observations(), model=model, method="map", progress=progress)
    latents = torch.as_tensor(found.latents)
    unit = (found.scale * found.exposure_unit)[:, :1]
    left = torch.as_tensor((data.truth / unit).astype(np.float32)) - model.spectrum(latents)
    unknown = torch.as_tensor(data.truth_mask | data.mask.all(axis=1))
    z, _, hw = model.parts(latents)
    parts = z, torch.where(unknown, 0.0, left), torch.zeros_like(left), unknown
    clean = without_junk(Residuals(*parts), model.residual_term.basis.float())
    log_size = model.residual_term.log_sizes(model.residual_term.split(hw)[0]).mean(-1)
    return _Left((clean.flux / model.discrepancy(latents)).square(), (~clean.mask).float(), log_size)


def _usual_sizes(log_size: Tensor, klass: NDArray[np.int64], classes: int) -> Tensor:
    """Mean log size of the stars of every class, drawn to that of all classes, (classes,)."""
    means = {int(c): log_size[klass == c].mean() for c in np.unique(klass)}
    every = torch.stack(list(means.values())).mean()
    sizes = every.repeat(classes)
    for c, mean in means.items():
        count = int((klass == c).sum())
        sizes[c] = (count * mean + TYPICAL * every) / (count + TYPICAL)
    return sizes


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
        >>> WIDTHS[int(share.mean(1).argmax())]  # most of it is about twice as wide
        2.4
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
