"""The paper's opponent: a convolutional denoising autoencoder, trained on noisy and clean spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bayesspec.grid import flux_unit
from bayesspec.nn import Encoder, Generator
from bayesspec.nn.isometry import tolerant
from bayesspec.runtime import seeded
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.generator import Sizes, new_networks
from bayesspec.training.library import StarLibrary
from bayesspec.training.loop import minimise

from .base import Array, Baseline, Mask
from .pairs import Pairs

__all__ = ["Autoencoder", "AutoencoderRecipe"]

SHIFT = 8
"""Maximum shift of the noise in pixels, because exposures of other nights have a different flexure."""


@dataclass(frozen=True)
class AutoencoderRecipe(Sizes):
    """Sizes and training of the autoencoder; the decoder has the layers of the package's generator.

    Arguments:
        latent_dim: Width of the bottleneck.
        hidden: Features of the decoder's dense layer.
        channels: Channels before each transposed convolution.
        strides: Stride of each.
        encoder_hidden: Features of the encoder's dense layer.
        encoder_channels: Channels after each convolution.
        steps: Updates.
        batch_size: Pairs per update.
        learning_rate: Maximum learning rate.
        weight_decay: Weight decay of AdamW.
        tolerance: Loss beyond which a spectrum has less influence, see `bayesspec.nn.isometry.tolerant`.
        balance: 1 draws every class equally often, 0 every star.
        model_vote: Weight of a theoretical star, relative to a real one.
        gaps: Fraction of pairs with an interval removed.
        amplitude: Factor on the noise, minimum and maximum, log-uniform, for half of the pairs.
    """

    latent_dim: int = 32
    hidden: int = 256
    channels: tuple[int, ...] = (64, 32)
    strides: tuple[int, ...] = (4, 8)
    encoder_hidden: int = 256
    encoder_channels: tuple[int, ...] = (16, 32, 64)
    steps: int = 20_000
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    tolerance: float = 3e-3
    balance: float = 0.8
    model_vote: float = 0.5
    gaps: float = 0.4
    amplitude: tuple[float, float] = (0.4, 3.0)


class _Network(nn.Module):
    def __init__(self, encoder: Encoder, decoder: Generator) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, flux: Tensor, mask: Tensor) -> Tensor:
        return self.decoder(self.encoder(flux, mask))


class Autoencoder(Baseline):
    """Encoder of strided convolutions, narrow bottleneck, decoder with the layers of the generator.

    It is trained to return clean training stars from noisy ones. The noise of real training exposures is
    drawn anew for every batch, and some spectra have an interval removed. One network handles spectra with
    and without gaps: missing pixels get the mean flux, and a second channel marks them. Like the paper's, it
    uses no noise level per pixel.

    References:
        | Kang, He & Zhang 2021, RAA 21, 169, section 4 (https://arxiv.org/abs/2103.02896)

    Arguments:
        encoder: From spectra to the bottleneck.
        decoder: From the bottleneck to spectra.
    """

    name = "autoencoder"

    def __init__(self, encoder: Encoder, decoder: Generator) -> None:
        self.network = _Network(encoder, decoder).requires_grad_(False).eval()
        self.size = len(decoder.mean)

    @classmethod
    def fit(
        cls,
        stars: StarLibrary,
        noise: NoiseLibrary,
        recipe: AutoencoderRecipe,
        *,
        seed: int,
        checkpoint: Path | None = None,
        progress: bool = False,
    ) -> Self:
        """Train on stars and noise.

        Arguments:
            stars: Clean training spectra.
            noise: Training exposures.
            recipe: Sizes and steps.
            seed: Seed of the weights, the batches and the corruptions.
            checkpoint: File to resume from, see `bayesspec.training.loop.minimise`.
            progress: Show a bar on stderr.
        """
        weights = stars.sampling_weights(recipe.balance, recipe.model_vote)
        encoder, decoder = new_networks(stars, recipe, weights, seed)
        network = _Network(encoder, decoder)
        flux, missing = torch.as_tensor(stars.flux), torch.as_tensor(stars.mask)
        chance = torch.as_tensor(weights)
        exposures = torch.as_tensor(noise.residual), torch.as_tensor(noise.mask)

        def loss(rng: torch.Generator) -> Tensor:
            rows = torch.multinomial(chance, recipe.batch_size, replacement=True, generator=rng)
            clean, unknown = flux[rows], missing[rows]
            residual, lost = _draw_noise(*exposures, recipe, rng)
            mask = unknown | lost
            noisy = torch.where(mask, 0.0, clean + residual)
            # The unit of flux is the one available to `denoise`, from the noisy spectrum's observed pixels.
            unit = torch.as_tensor(flux_unit(noisy.numpy(), mask.numpy()), dtype=clean.dtype).clamp_min(0.05)
            difference = clean / unit[:, None] - network(noisy, mask)
            square = torch.where(unknown, 0.0, difference).square().sum(-1) / (~unknown).sum(-1)
            return tolerant(square, recipe.tolerance).mean()

        minimise(
            network,
            loss,
            steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            seed=seed,
            label=f"autoencoder {recipe.latent_dim}",
            checkpoint=checkpoint,
            progress=progress,
        )
        return cls(encoder, decoder)

    @classmethod
    def tune(
        cls,
        stars: StarLibrary,
        noise: NoiseLibrary,
        validation: Pairs,
        recipe: AutoencoderRecipe,
        *,
        latent_dims: Sequence[int],
        share: float = 0.05,
        seed: int,
        checkpoints: Path | None = None,
        progress: bool = False,
    ) -> AutoencoderRecipe:
        """The recipe with the bottleneck that does best on validation pairs after a short training."""
        short = replace(recipe, steps=max(1, round(share * recipe.steps)))
        scores = {}
        for width in latent_dims:
            trial = cls.fit(
                stars,
                noise,
                replace(short, latent_dim=width),
                seed=seed,
                checkpoint=None if checkpoints is None else checkpoints / f"bottleneck-{width}.safetensors",
                progress=progress,
            )
            scores[width] = validation.score(trial)
        return replace(recipe, latent_dim=min(scores, key=scores.__getitem__))

    @torch.no_grad()
    def _denoise(self, flux: Array, ivar: Array, mask: Mask) -> Array:
        spectra = self.network(torch.as_tensor(flux, dtype=torch.float32), torch.as_tensor(mask))
        return spectra.numpy().astype(float)

    def _state(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        arrays = {name: tensor.numpy() for name, tensor in self.network.state_dict().items()}
        return arrays, {"encoder": self.network.encoder.config, "decoder": self.network.decoder.config}

    @classmethod
    def _from_state(cls, arrays: Mapping[str, NDArray], config: Mapping[str, Any]) -> Self:
        with seeded(0):  # the initial weights are overwritten; this keeps the caller's random state
            fitted = cls(Encoder(**config["encoder"]), Generator(**config["decoder"]))
        fitted.network.load_state_dict({name: torch.as_tensor(array) for name, array in arrays.items()})
        return fitted


def _draw_noise(
    residual: Tensor, mask: Tensor, recipe: AutoencoderRecipe, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noise and missing pixels of a batch, (B, D) each, with augmentation.

    The network would memorise a few hundred exposures. So each draw is two of them joined at a random pixel,
    shifted by some pixels, with a random sign, and half of the time with another amplitude.
    """
    n, size = recipe.batch_size, residual.shape[1]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, generator=rng)

    pixel = torch.arange(size)
    joint = pixel < uniform(0, size)
    row = torch.where(joint, *(torch.randint(len(residual), (n, 1), generator=rng) for _ in range(2)))
    column = (pixel + torch.randint(-SHIFT, SHIFT + 1, (n, 1), generator=rng)) % size
    low, high = recipe.amplitude
    other = torch.exp(uniform(math.log(low), math.log(high)))
    amplitude = torch.where(uniform(0, 1) < 0.5, other, 1.0)
    sign = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)

    width = uniform(0, size / 2) * (uniform(0, 1) < recipe.gaps)
    start = uniform(0, 1) * (size - width)
    gap = (pixel >= start) & (pixel < start + width)
    return amplitude * sign * residual[row, column], mask[row, column] | gap
