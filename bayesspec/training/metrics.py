"""The metrics on a bundle's card, measured on stars and epochs that were not used in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student_t

from bayesspec.distributions import NoiseFlow, RobustNoiseFlow
from bayesspec.nn import Encoder, Generator, NoiseNetwork, RobustNoiseNetwork
from bayesspec.nn.isometry import reconstruction_loss

from .exposures import NoiseLibrary
from .library import CLASSES, StarLibrary

__all__ = ["generator_metrics", "noise_metrics"]

STUDENT_DOF = 4.0


@torch.no_grad()
def generator_metrics(encoder: Encoder, generator: Generator, stars: StarLibrary) -> dict[str, Any]:
    """Median loss of G(E(y)) for each class and kind, and the singular values of dG/dz (1: an isometry)."""
    flux, mask = torch.as_tensor(stars.flux), torch.as_tensor(stars.mask)
    z = encoder(flux, mask)
    loss = reconstruction_loss(flux, mask, generator(z)).numpy()
    singular = generator.singular_values(z).numpy()
    real = stars.kind != "model"
    kinds = {"real": real, "models": ~real, "all": real | True}

    def median(values: NDArray) -> float:
        return float(np.median(values))

    def by_class(statistic: Callable[[NDArray], float], among: NDArray) -> dict[str, float]:
        rows = {c: among & (stars.klass == k) for k, c in enumerate(CLASSES)}
        return {c: statistic(loss[own]) for c, own in rows.items() if own.any()}

    return {
        "spectra": {kind: by_class(len, among) for kind, among in kinds.items()},
        "median_loss": {
            kind: by_class(lambda x: float(np.median(x)), among) for kind, among in kinds.items()
        },
        "singular_values": {f"{q}%": float(np.percentile(singular, q)) for q in (1, 5, 50, 95, 99)},
        "singular_values_within_0.8_1.25": float(((singular > 0.8) & (singular < 1.25)).mean()),
    }


@torch.no_grad()
def noise_metrics(network: NoiseNetwork, train: NoiseLibrary, test: NoiseLibrary) -> dict[str, Any]:
    """Log-density per pixel of unseen epochs for the flow and for simpler models, over the same terms.

    The Gaussian and the AR(K) do not depend on wavelength, like the flow; the per-pixel models depend only on
    wavelength.
    """
    flow = NoiseFlow(torch.zeros(test.residual.shape[1]), network, observed=~torch.as_tensor(test.mask))
    used = flow.used.numpy()
    terms = {"flow": flow.log_prob_terms(torch.as_tensor(test.residual)).numpy()}

    spread = float(np.std(train.residual[~train.mask]))
    terms["gaussian"] = _gaussian(test.residual, spread)
    mean, spread = _autoregression(train, test, network.kernel)
    terms[f"ar{network.kernel}_gaussian"] = _gaussian(test.residual - mean, spread)
    observed = np.maximum((~train.mask).sum(0), 1)
    per_pixel = np.sqrt((train.residual.astype(float) ** 2).sum(0) / observed)
    terms["per_pixel_gaussian"] = _gaussian(test.residual, np.maximum(per_pixel, 1e-3))
    scale = _student_scale(train)
    terms["per_pixel_student_t"] = student_t.logpdf(test.residual / scale, STUDENT_DOF) - np.log(scale)

    return {
        "exposures": len(test),
        "epochs": sorted({str(epoch) for epoch in test.epoch}),
        "terms_used": float(used.mean()),
        "log_density_per_pixel": {name: float(value[used].mean()) for name, value in terms.items()},
    }


@torch.no_grad()
def robust_noise_metrics(
    network: RobustNoiseNetwork, train: NoiseLibrary, test: NoiseLibrary
) -> dict[str, Any]:
    """Log-density per pixel of unseen epochs with known ivar, for the robust flow and for simpler models.

    The Gaussian has the pipeline's errors. The Student-t has these errors times a factor for each pixel of
    the grid, fitted to training epochs. The AR(K) is fitted to residuals in units of the pipeline's errors.
    """
    train, test = (side.select(np.all(side.mask | (side.ivar > 0), -1)) for side in (train, test))
    sigma, widths = (np.where(side.mask, 1.0, side.ivar.clip(1e-30)) ** -0.5 for side in (train, test))
    observed = torch.as_tensor(~test.mask)
    flow = RobustNoiseFlow(
        torch.zeros(test.residual.shape[1]), network, torch.as_tensor(widths).float(), observed=observed
    )
    white = replace(train, residual=(train.residual / sigma).astype(np.float32))
    own = replace(test, residual=(test.residual / widths).astype(np.float32))
    mean, spread = _autoregression(white, own, network.kernel)
    scale = widths * _student_scale(white)
    terms = {
        "flow": flow.log_prob_terms(torch.as_tensor(test.residual)).numpy(),
        "pipeline_gaussian": _gaussian(test.residual, widths),
        "student_t": student_t.logpdf(test.residual / scale, STUDENT_DOF) - np.log(scale),
        f"ar{network.kernel}_gaussian": _gaussian(own.residual - mean, spread) - np.log(widths),
    }
    used = ~test.mask
    return {
        "exposures": len(test),
        "epochs": sorted({str(epoch) for epoch in test.epoch}),
        "terms_used": float(used.mean()),
        "log_density_per_pixel": {name: float(value[used].mean()) for name, value in terms.items()},
    }


def _gaussian(value: NDArray, spread: NDArray | float) -> NDArray:
    return -0.5 * (value / spread) ** 2 - np.log(spread) - 0.5 * np.log(2 * np.pi)


def _autoregression(train: NoiseLibrary, test: NoiseLibrary, order: int) -> tuple[NDArray, float]:
    """Means of the test pixels given the `order` pixels before them, and the width, fitted to train."""

    def windows(noise: NoiseLibrary) -> NDArray:
        return np.lib.stride_tricks.sliding_window_view(noise.residual, order, axis=-1)[:, :-1]

    complete = np.lib.stride_tricks.sliding_window_view(~train.mask, order + 1, axis=-1).all(-1)
    past, now = windows(train)[complete], train.residual[:, order:][complete]
    weights, *_ = np.linalg.lstsq(past.T @ past, past.T @ now, rcond=None)
    mean = np.zeros_like(test.residual)
    mean[:, order:] = windows(test) @ weights
    return mean, float(np.std(now - past @ weights))


def _student_scale(train: NoiseLibrary) -> NDArray:
    """Maximum-likelihood scale of the Student-t in every pixel, by expectation-maximisation."""
    square = train.residual.astype(float) ** 2
    observed = ~train.mask
    count = np.maximum(observed.sum(0), 1)
    variance = np.maximum((square * observed).sum(0) / count, 1e-6)
    for _ in range(50):
        weight = (STUDENT_DOF + 1) / (STUDENT_DOF + square / variance)
        variance = np.maximum((weight * square * observed).sum(0) / count, 1e-6)
    return np.sqrt(variance)
