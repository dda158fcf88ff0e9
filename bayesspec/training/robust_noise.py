"""The noise of the default model: the robust flow, trained on real and on perturbed exposures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.distributions import RobustNoiseFlow
from bayesspec.nn import RobustNoiseNetwork
from bayesspec.noise_level import NORMAL_MEDIAN
from bayesspec.runtime import seeded

from .exposures import NoiseLibrary
from .loop import minimise

__all__ = ["RobustNoiseRecipe", "noise_widths", "train_robust_noise"]

# Outliers are log-uniform from 5 to this many standard deviations.
_WIDEST = 50.0


@dataclass(frozen=True)
class RobustNoiseRecipe:
    """Robust noise flow.

    Effects that are too rare in real exposures are added to them. The network has to predict the correct
    distribution of a pixel if some pixels before it are missing, contain discrepancy, or were hit by a cosmic
    ray, and if the pipeline's variance is wrong by a factor or missing.

    Arguments:
        kernel: K.
        channels: Channels of the convolution.
        hidden: Hidden units of each pixel after it.
        components: M, the number of components of the base.
        reach: Bound on the conditioner's input, in standard deviations of the noise.
        masked: Fraction of the exposures in which pixels, runs of pixels or an arm are removed.
        blurred: Fraction of the batches with a discrepancy.
        foreign: Fraction of the exposures that imitate another pipeline. Its variance is wrong by a factor,
            and by a different one in sky lines, or missing and replaced by the reference; neighbouring pixels
            are correlated, and some sky level is left in.
        outliers: Fraction of the pixels that are made outliers.
        steps: Updates.
        batch_size: Exposures per update.
        learning_rate: Maximum learning rate.
        weight_decay: Weight decay of AdamW.
    """

    kernel: int = 5
    channels: int = 24
    hidden: int = 12
    components: int = 5
    reach: float = 4.0
    masked: float = 0.5
    blurred: float = 0.25
    foreign: float = 0.5
    outliers: float = 3e-4
    steps: int = 2_500
    batch_size: int = 32
    learning_rate: float = 5e-3
    weight_decay: float = 1e-4


def train_robust_noise(
    noise: NoiseLibrary,
    recipe: RobustNoiseRecipe,
    *,
    seed: int,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> RobustNoiseNetwork:
    """Maximise the log-density per observed pixel of the training exposures.

    Arguments:
        noise: Training exposures. An exposure without any pipeline variance gets the reference, scaled to its
            own scatter. In other exposures, pixels without variance are left out.
        recipe: Sizes, perturbations and steps.
        seed: Seed of the weights, the batches and the perturbations.
        checkpoint: File to resume from, see `minimise`.
        progress: Show a bar on stderr.
    """
    widths, level, reference = noise_widths(noise)
    with seeded(seed):
        network = RobustNoiseNetwork(
            noise.residual.shape[1],
            recipe.kernel,
            recipe.channels,
            recipe.hidden,
            recipe.components,
            reach=recipe.reach,
        )
    network.reference.copy_(torch.as_tensor(reference))
    observed = torch.as_tensor(np.isfinite(widths))
    noise_std = torch.as_tensor(np.nan_to_num(widths, nan=1.0))
    exposures = _Exposures(
        torch.as_tensor(noise.residual),
        noise_std,
        observed,
        torch.as_tensor(level[:, None] * reference),
        network.contrast(noise_std, observed),
    )
    clean = torch.zeros(noise.residual.shape[1])

    def loss(rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(noise), (recipe.batch_size,), generator=rng)
        value, noise_std, discrepancy, observed = exposures.disturbed(rows, recipe, rng)
        flow = RobustNoiseFlow(clean, network, noise_std, discrepancy=discrepancy, observed=observed)
        return -flow.log_prob(value).sum() / observed.sum()

    minimise(
        network,
        loss,
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        seed=seed,
        label="noise",
        checkpoint=checkpoint,
        progress=progress,
    )
    return network.requires_grad_(False)


def noise_widths(
    noise: NoiseLibrary,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Standard deviations (N, D), NaN if unknown; levels of the exposures (N,); wavelength dependence (D,).

    The wavelength dependence has median 1. It is that of the pipeline's standard deviations, or of absolute
    residuals for exposures without them.
    """
    observed = ~noise.mask
    known = observed & (noise.ivar > 0)
    without = ~known.any(1, keepdims=True)
    with np.errstate(divide="ignore"):
        widths = np.where(known, 1 / np.sqrt(noise.ivar), np.nan)
    scatter = np.where(observed & without, NORMAL_MEDIAN * np.abs(noise.residual), np.nan)
    seen = np.where(known, widths, scatter)

    reference = np.ones(noise.residual.shape[1])
    for _ in range(2):  # twice, so that exposures with different pixels get consistent levels
        level = np.nanmedian(seen / reference, axis=1)
        reference = _filled(seen / level[:, None])
    reference /= np.median(reference)
    level = np.nanmedian(seen / reference, axis=1)

    widths = np.where(observed & without, level[:, None] * reference, widths)
    return widths.astype(np.float32), level.astype(np.float32), reference.astype(np.float32)


def _filled(values: NDArray) -> NDArray:
    # Median over the exposures; pixels that no exposure has are interpolated.
    some = np.isfinite(values).any(0)
    pixel = np.arange(values.shape[1])
    return np.interp(pixel, pixel[some], np.nanmedian(values[:, some], axis=0))


@dataclass(frozen=True)
class _Exposures:
    """Training exposures (N, D) with their own and the reference's standard deviations."""

    residual: Tensor
    noise_std: Tensor
    observed: Tensor
    typical: Tensor
    contrast: Tensor

    def disturbed(
        self, rows: Tensor, recipe: RobustNoiseRecipe, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Residual, noise_std, discrepancy and observed of some exposures, each (B, D), perturbed."""
        value, noise_std = self.residual[rows], self.noise_std[rows]

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=rng)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng)

        foreign = uniform(len(rows), 1) < recipe.foreign
        value, noise_std = (
            torch.where(foreign, other, own)
            for own, other in zip(
                (value, noise_std), self._of_another_pipeline(value, noise_std, rows, rng), strict=True
            )
        )

        hit = uniform(*value.shape) < recipe.outliers
        height = 5.0 * torch.exp(uniform(*value.shape) * math.log(_WIDEST / 5.0))
        value = torch.where(hit, value + height * normal(*value.shape) * noise_std, value)

        discrepancy = None
        if uniform() < recipe.blurred:
            least, most = torch.tensor([0.05, 2.0]).log()
            size = torch.exp(torch.lerp(least, most, uniform(len(rows), 1)))
            discrepancy = (size * self.typical[rows].median(-1, keepdim=True).values).expand_as(value)
            value = value + discrepancy * normal(*value.shape)

        removed = self._removed(len(value), value.shape[-1], rng) & (uniform(len(rows), 1) < recipe.masked)
        return value, noise_std, discrepancy, self.observed[rows] & ~removed

    def _of_another_pipeline(
        self, value: Tensor, noise_std: Tensor, rows: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        factor, lines, level = torch.randn((3, len(rows), 1), generator=rng)
        shared, without = torch.rand((2, len(rows), 1), generator=rng)

        # Resampling and sky residuals: a correlation of up to 0.5, a level of 0.3 standard deviations.
        t = torch.where(self.observed[rows], value / noise_std, 0.0)
        shared = 0.3 * shared
        t = (t + shared * (t.roll(1, -1) + t.roll(-1, -1))) / (1 + 2 * shared.square()).sqrt()
        value = (t + 0.3 * level) * noise_std

        # The BOSS pipeline doubles the errors in strong sky lines, others underestimate them.
        wrong = torch.exp(0.2 * factor + (0.5 * lines - 0.7) * self.contrast[rows])
        return value, wrong * torch.where(without < 0.2, self.typical[rows], noise_std)

    @staticmethod
    def _removed(rows: int, pixels: int, rng: torch.Generator) -> Tensor:
        # Up to a twentieth of the pixels; a run of up to an eighth of the spectrum; in a fifth, an arm.
        share, length, start, cut, side, arm = torch.rand((6, rows, 1), generator=rng)
        pixel = torch.arange(pixels)
        single = torch.rand((rows, pixels), generator=rng) < 0.05 * share
        first = start * pixels
        run = (pixel >= first) & (pixel < first + (pixels / 8) ** length)
        blue = pixel < pixels * (0.3 + 0.2 * cut)
        return single | run | ((arm < 0.2) & (blue == (side < 0.5)))
