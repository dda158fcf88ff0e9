"""Step one: encoder and generator, trained together on clean spectra with the objective of eq. (10)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bayesspec.nn import Encoder, Generator
from bayesspec.nn.isometry import isometry_loss, reconstruction_loss, tolerant
from bayesspec.runtime import seeded

from .library import StarLibrary
from .loop import minimise

__all__ = ["GeneratorRecipe", "encode", "new_networks", "train_generator"]


@dataclass(frozen=True)
class Sizes:
    """Base of recipes with the sizes of encoder and generator."""

    latent_dim: int
    hidden: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    encoder_hidden: int
    encoder_channels: tuple[int, ...]


@dataclass(frozen=True)
class GeneratorRecipe(Sizes):
    """Encoder and generator (eq. 10).

    Arguments:
        latent_dim: L.
        hidden: Features of the generator's dense layer.
        channels: Channels before each transposed convolution.
        strides: Stride of each.
        encoder_hidden: Features of the encoder's dense layer.
        encoder_channels: Channels after each convolution.
        steps: Updates.
        batch_size: Spectra per update.
        learning_rate: Maximum learning rate.
        weight_decay: Weight decay of AdamW.
        radius: |delta| of eq. (10), per-pixel rms.
        isometry_weight: Weight of the squared relative error of a distance; eq. (10) has radius**2.
        tolerance: Reconstruction loss beyond which a spectrum has less influence (`tolerant`); 0 is eq. (10).
        balance: 1 draws every class equally often, 0 every star.
        corrupted: Fraction of spectra that the encoder sees with noise and a gap.
    """

    latent_dim: int = 3
    hidden: int = 256
    channels: tuple[int, ...] = (64, 32)
    strides: tuple[int, ...] = (4, 8)
    encoder_hidden: int = 128
    encoder_channels: tuple[int, ...] = (16, 32, 64)
    steps: int = 36_000
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    radius: float = 0.1
    isometry_weight: float = 0.012
    tolerance: float = 3e-3
    balance: float = 0.6
    corrupted: float = 0.15


class _Autoencoder(nn.Module):
    def __init__(self, encoder: Encoder, generator: Generator) -> None:
        super().__init__()
        self.encoder, self.generator = encoder, generator


def train_generator(
    library: StarLibrary,
    recipe: GeneratorRecipe,
    *,
    seed: int,
    model_vote: float = 1.0,
    start: tuple[Encoder, Generator] | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> tuple[Encoder, Generator]:
    """Train E and G on the library's spectra, classes balanced, missing pixels left out of the loss.

    The encoder sees a fraction of the spectra with noise and with an interval missing, while the target stays
    clean, so that its guess is useful for real observations.

    Arguments:
        library: Clean training spectra.
        recipe: Sizes, steps and weights.
        seed: Seed of the weights, the batches and the corruptions.
        model_vote: How often a theoretical star is drawn, relative to a real one of its class.
        start: Networks of the same sizes with the initial weights.
        checkpoint: File to resume from, see `minimise`.
        progress: Show a bar on stderr.
    """
    weights = library.sampling_weights(recipe.balance, model_vote)
    encoder, generator = new_networks(library, recipe, weights, seed)
    if start is not None:
        encoder.load_state_dict(start[0].state_dict())
        generator.load_state_dict(start[1].state_dict())

    flux, mask = torch.as_tensor(library.flux), torch.as_tensor(library.mask)
    chance = torch.as_tensor(weights)

    def loss(rng: torch.Generator) -> Tensor:
        rows = torch.multinomial(chance, recipe.batch_size, replacement=True, generator=rng)
        target, missing = flux[rows], mask[rows]
        z = encoder(*_corrupt(target, missing, recipe.corrupted, rng))
        spectrum = generator(z)
        reconstruction = tolerant(reconstruction_loss(target, missing, spectrum), recipe.tolerance)
        isometry = isometry_loss(generator, z, spectrum, recipe.radius, rng=rng)
        return (reconstruction + recipe.isometry_weight * isometry).mean()

    minimise(
        _Autoencoder(encoder, generator),
        loss,
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        seed=seed,
        label="generator",
        checkpoint=checkpoint,
        progress=progress,
    )
    return encoder.requires_grad_(False), generator.requires_grad_(False)


def new_networks(
    library: StarLibrary, sizes: Sizes, weights: np.ndarray, seed: int
) -> tuple[Encoder, Generator]:
    """Untrained networks for the library's spectra; the generator starts at their weighted mean.

    Arguments:
        library: Clean training spectra, (N, D).
        sizes: Sizes of the networks.
        weights: Weights of the spectra, (N,).
        seed: Seed of the initial weights of the networks.
    """
    size = library.flux.shape[1]
    with seeded(seed):
        encoder = Encoder(sizes.latent_dim, size, sizes.encoder_hidden, sizes.encoder_channels)
        generator = Generator(sizes.latent_dim, size, sizes.hidden, sizes.channels, sizes.strides)
    observed = ~library.mask * weights[:, None]
    mean = (library.flux * observed).sum(0) / np.maximum(observed.sum(0), 1e-12)
    with torch.no_grad():
        generator.mean.copy_(torch.as_tensor(mean))
    return encoder, generator


@torch.no_grad()
def encode(encoder: Encoder, library: StarLibrary) -> np.ndarray:
    """Latents of a library's spectra, (N, L)."""
    flux, mask = torch.as_tensor(library.flux), torch.as_tensor(library.mask)
    return torch.cat([encoder(f, m) for f, m in zip(flux.split(512), mask.split(512), strict=True)]).numpy()


def _corrupt(flux: Tensor, mask: Tensor, share: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    n, size = flux.shape
    worn = torch.rand(n, 1, generator=rng) < share
    noise = 0.2 * torch.rand(n, 1, generator=rng) * torch.randn(n, size, generator=rng)
    width = torch.rand(n, 1, generator=rng) * size / 2
    start = torch.rand(n, 1, generator=rng) * size
    pixel = torch.arange(size)
    gap = (pixel >= start) & (pixel < start + width)
    return torch.where(worn, flux + noise, flux), torch.where(worn, mask | gap, mask)
