"""Laws of the robust noise flow's training, on a small library whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bayesspec.distributions import RobustNoiseFlow
from bayesspec.nn import RobustNoiseNetwork
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.robust_noise import RobustNoiseRecipe, noise_widths, train_robust_noise

SHAPE = 1 + 0.5 * np.sin(np.linspace(0, 6, 128))
SMALL = RobustNoiseRecipe(kernel=3, channels=8, hidden=4, steps=150, batch_size=16)


@pytest.fixture(scope="module")
def noise() -> NoiseLibrary:
    """AR(1) noise whose pipeline knows its width, in 60 exposures of 12 epochs; a fiftieth is missing."""
    rng = np.random.default_rng(1)
    t = rng.standard_normal((60, 128))
    for d in range(1, 128):
        t[:, d] = 0.6 * t[:, d - 1] + 0.8 * t[:, d]
    width = rng.uniform(0.05, 0.2, (60, 1)) * SHAPE
    mask = rng.random(t.shape) < 0.02
    residual, ivar = np.where(mask, 0, t * width), np.where(mask, 0, width**-2)
    epoch = np.repeat([f"7000-{n}" for n in range(12)], 5)
    return NoiseLibrary(residual.astype(np.float32), ivar.astype(np.float32), mask, epoch)


@torch.no_grad()
def log_density(network: RobustNoiseNetwork, noise: NoiseLibrary) -> float:
    noise_std, _, _ = map(torch.as_tensor, noise_widths(noise))
    flow = RobustNoiseFlow(torch.zeros(128), network, noise_std, observed=noise_std.isfinite())
    return float(flow.log_prob(torch.as_tensor(noise.residual)).sum() / flow.used.sum())


def test_training_finds_the_correlation(noise: NoiseLibrary) -> None:
    """On unseen epochs a short training beats the start and most of the way to the truth; seeds repeat."""
    train, test = noise.split("train"), noise.split("test")
    network = train_robust_noise(train, SMALL, seed=0)
    start = log_density(RobustNoiseNetwork(**network.config), test)
    independent = np.log(np.sqrt(test.ivar[~test.mask])).mean() - 0.5 * np.log(2 * np.pi) - 0.5
    assert start < independent
    assert log_density(network, test) > independent + 0.7 * -np.log(0.8)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    np.testing.assert_allclose(network.reference, SHAPE / np.median(SHAPE), rtol=0.02)

    few = replace(SMALL, steps=3)
    again, once = (train_robust_noise(train, few, seed=0).state_dict() for _ in range(2))
    assert all(torch.equal(again[name], once[name]) for name in once)


def test_an_unknown_variance_is_found_in_the_residuals(noise: NoiseLibrary) -> None:
    """Exposures without ivar have the reference at their own level; a single such pixel is left out."""
    blind = replace(noise, ivar=0 * noise.ivar)
    widths, _, reference = noise_widths(blind)
    assert np.array_equal(np.isnan(widths), noise.mask)
    truth = 1 / np.sqrt(noise.ivar[~noise.mask])
    assert abs(np.log(widths[~noise.mask] / truth).mean()) < 0.05
    assert np.corrcoef(reference, SHAPE)[0, 1] > 0.9

    ivar = noise.ivar.copy()
    ivar[:, 10:12] = 0
    widths, level, reference = noise_widths(replace(noise, ivar=ivar))
    assert np.array_equal(np.isnan(widths), noise.mask | (ivar == 0))
    assert np.isfinite(reference).all()
    np.testing.assert_allclose(widths[5, 50], level[5] * reference[50], rtol=1e-3)


def test_masked_pixels_have_no_influence(noise: NoiseLibrary) -> None:
    """Garbage under the mask changes no weight."""
    few = replace(SMALL, steps=3)
    spoiled = replace(noise, residual=np.where(noise.mask, np.float32(1e6), noise.residual))
    clean, dirty = (train_robust_noise(library, few, seed=0).state_dict() for library in (noise, spoiled))
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)
