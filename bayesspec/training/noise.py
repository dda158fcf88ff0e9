"""Step four: the noise flow, trained on the noise of real exposures by maximum likelihood (eqs. 11-16)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bayesspec.distributions import NoiseFlow
from bayesspec.nn import NoiseNetwork
from bayesspec.runtime import seeded

from .exposures import NoiseLibrary
from .loop import minimise

__all__ = ["NoiseRecipe", "train_noise"]


@dataclass(frozen=True)
class NoiseRecipe:
    """Noise flow (eqs. 11-16).

    Arguments:
        kernel: K.
        channels: C.
        hidden: C'.
        reach: Bound on the conditioner's input, in standard deviations; keeps draws from diverging.
        steps: Updates.
        batch_size: Exposures per update.
        learning_rate: Maximum learning rate.
        weight_decay: Weight decay of AdamW.
    """

    kernel: int = 5
    channels: int = 32
    hidden: int = 16
    reach: float = 4.0
    steps: int = 4_000
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4


def train_noise(
    noise: NoiseLibrary,
    recipe: NoiseRecipe,
    *,
    seed: int,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> NoiseNetwork:
    """Maximise the masked log-density per used term, eq. (16), of the training exposures.

    Arguments:
        noise: Training exposures.
        recipe: Sizes and steps.
        seed: Seed of the weights and the batches.
        checkpoint: File to resume from, see `minimise`.
        progress: Show a bar on stderr.
    """
    spread = float(np.std(noise.residual[~noise.mask]))
    with seeded(seed):
        network = NoiseNetwork(
            recipe.kernel,
            recipe.channels,
            recipe.hidden,
            reach=recipe.reach * spread,
            initial_scale=spread,
        )
    residual, observed = torch.as_tensor(noise.residual), ~torch.as_tensor(noise.mask)
    clean = torch.zeros(residual.shape[1])

    def loss(rng: torch.Generator) -> Tensor:
        rows = torch.randint(len(residual), (recipe.batch_size,), generator=rng)
        flow = NoiseFlow(clean, network, observed=observed[rows])
        return -flow.log_prob(residual[rows]).sum() / flow.used.sum()

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
