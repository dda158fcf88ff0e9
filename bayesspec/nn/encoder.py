"""The encoder z = E(y) of eq. (10): a first guess of the latents, which inference then improves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """E: R^D -> R^L by strided convolutions, with the missing pixels as a second input.

    The flux is first divided by its mean |flux| over the observed pixels, so the latents do not depend on its
    scale.

    References:
        | Kang, He & Zhang 2021, RAA 21, 169, eq. (10) (https://arxiv.org/abs/2103.02896)

    Arguments:
        latent_dim: L.
        size: D, the number of pixels.
        hidden: Features of the dense layer.
        channels: Channels after each convolution; each has kernel 8 and stride 4.

    Example:
        >>> encoder = Encoder(latent_dim=3)
        >>> encoder(torch.ones(7, 2048), torch.zeros(7, 2048, dtype=torch.bool)).shape
        torch.Size([7, 3])
    """

    def __init__(
        self, latent_dim: int = 3, size: int = 2048, hidden: int = 128, channels: Sequence[int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "latent_dim": latent_dim,
            "size": size,
            "hidden": hidden,
            "channels": list(channels),
        }
        if not (channels and size >= 4 ** len(channels)):
            raise ValueError(f"{size} pixels cannot go through {len(channels)} convolutions of stride 4")
        layers: list[nn.Module] = []
        for channels_in, channels_out in zip([2, *channels], channels, strict=False):
            layers += [nn.Conv1d(channels_in, channels_out, kernel_size=8, stride=4, padding=2), nn.SiLU()]
        width = size // 4 ** len(channels) * channels[-1]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, latent_dim)
        )

    def forward(self, flux: Tensor, mask: Tensor) -> Tensor:
        """Latents (..., L) of spectra (..., D), mask True = bad; masked values have no influence."""
        observed = ~mask
        flux = torch.where(observed, flux, 0.0)
        unit = flux.abs().sum(-1, keepdim=True) / observed.sum(-1, keepdim=True).clamp_min(1)
        # Missing pixels get the mean flux.
        filled = torch.where(observed, flux / unit.clamp_min(1e-12) - 1, 0.0)
        x = torch.stack([filled, mask.to(flux.dtype)], dim=-2)
        z = self.layers(x.reshape(-1, *x.shape[-2:]))
        return z.reshape(*flux.shape[:-1], -1)
