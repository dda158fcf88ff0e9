"""The last step: calibration of the discrepancy on validation stars with noise of validation nights."""

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
"""S/N of the spectra: high enough that only e is uncertain."""

PER_CLASS = 16
"""Maximum number of stars of each class."""

TYPICAL = 6.0
"""Prior weight of all classes against one class, as a number of stars."""

LEAST_SHARES = 1e-3, 1e-3, 1e-3, 1e-3, 3e-5
"""Minimum mixture weight of each of `WIDTHS`."""

ROUNDS = 2
"""Number of iterations of fit and calibration."""

SMOOTH = 9
"""Pixels over which mixture weights are averaged."""


@torch.no_grad()
def fit_discrepancy(
    model: StellarModel, stars: StarLibrary, noise: NoiseLibrary, *, seed: int, progress: bool = False
) -> None:
    """Calibrate the scales of w and e, and the mixture weights of the widths of e, on validation stars.

    Noise of validation nights is added to the stars, and they are denoised. The mean amplitude found in a
    class becomes its usual one. The difference between the truth and the most probable spectrum is then e:
    tau becomes its robust scale, and the mixture weights are those of maximum likelihood for every class and
    pixel. These steps depend on each other, so they are done `ROUNDS` times.

    Arguments:
        model: The model, otherwise completely fitted.
        stars: Clean stars, of which the validation side is used.
        noise: Noise of exposures, of which the validation side is used.
        seed: Seed of the choice of noise for each star.
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
    """Difference between N truths and the most probable spectra."""

    square: Tensor
    """Squared difference in units of S tau, with the fitted S, (N, D)."""
    observed: Tensor
    """1 where it is known, else 0, (N, D)."""
    log_size: Tensor
    """Mean log amplitude of the residuals, (N,)."""


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
    """Mean log amplitude of the stars of every class, shrunk towards that of all classes, (classes,)."""
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
    """Maximum-likelihood mixture weights of `WIDTHS`, (K, D), for squares of e in units of tau.

    By expectation-maximisation, with the lower limits `LEAST_SHARES`.

    Arguments:
        square: (N, D).
        observed: 1 where known, else 0, (N, D).
        before: Prior weights, (K, D).
        count: Number of spectra that the prior is worth.
        iterations: Number of iterations.

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
