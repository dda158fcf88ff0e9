"""The generator s = G(z) of eq. (4): latents to clean spectra by transposed convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, silu

__all__ = ["Generator", "TransposedConvolution"]


class TransposedConvolution(nn.Module):
    """A 1-d transposed convolution with kernel 2 * stride and padding stride / 2, channels last.

    The same map as `torch.nn.ConvTranspose1d`, written as one matrix product and a shifted sum: every output
    block is the second half of one input pixel's kernel plus the first half of the next one's. The sum costs
    hardly more than the product.

    Arguments:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        stride: Output pixels per input pixel, even.

    Example:
        >>> TransposedConvolution(8, 4, stride=2)(torch.zeros(5, 16, 8)).shape
        torch.Size([5, 32, 4])
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        if stride % 2:
            raise ValueError(f"the stride must be even, got {stride}")
        self.stride, self.channels_out = stride, channels_out
        self.kernel = nn.Linear(channels_in, 2 * stride * channels_out, bias=False)
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, W, channels_in) to (N, W * stride, channels_out)."""
        return self.without_bias(x) + self.bias

    def without_bias(self, x: Tensor) -> Tensor:
        """The linear part of the map, which is its own derivative."""
        first, second = self.kernel(x).chunk(2, dim=-1)
        blocks = pad(first, (0, 0, 0, 1)) + pad(second, (0, 0, 1, 0))
        pixels = blocks.reshape(x.shape[0], -1, self.channels_out)
        half = self.stride // 2
        return pixels[:, half:-half]


class Generator(nn.Module):
    """G: R^L -> R^D, smooth, trained to be locally isometric (eq. 10).

    Dense layers make a short sequence of features, and transposed convolutions lengthen it to D pixels. SiLU
    keeps G smooth, as Gauss-Newton and Hamiltonian dynamics need.

    References:
        | Kang, He & Zhang 2021, RAA 21, 169, section 3.2 (https://arxiv.org/abs/2103.02896)

    Arguments:
        latent_dim: L.
        size: D, the number of pixels, a multiple of the product of the strides.
        hidden: Features of the dense layer.
        channels: Channels before each transposed convolution.
        strides: Stride of each transposed convolution.

    Example:
        >>> Generator(latent_dim=3)(torch.zeros(7, 3)).shape
        torch.Size([7, 2048])
    """

    def __init__(
        self,
        latent_dim: int = 3,
        size: int = 2048,
        hidden: int = 256,
        channels: Sequence[int] = (64, 32),
        strides: Sequence[int] = (4, 8),
    ) -> None:
        super().__init__()
        upsampling = 1
        for stride in strides:
            upsampling *= stride
        if size % upsampling or len(channels) != len(strides):
            raise ValueError(
                f"strides {tuple(strides)} with channels {tuple(channels)} cannot make {size} pixels"
            )
        self.config: dict[str, Any] = {
            "latent_dim": latent_dim,
            "size": size,
            "hidden": hidden,
            "channels": list(channels),
            "strides": list(strides),
        }
        self.width = size // upsampling
        self.dense = nn.Linear(latent_dim, hidden)
        self.features = nn.Linear(hidden, self.width * channels[0])
        outputs = [*channels[1:], 1]
        self.upsample = nn.ModuleList(
            TransposedConvolution(*layer) for layer in zip(channels, outputs, strides, strict=True)
        )
        self.mean = nn.Parameter(torch.ones(size))

    @property
    def latent_dim(self) -> int:
        """L."""
        return self.dense.in_features

    def forward(self, z: Tensor) -> Tensor:
        """Spectra (..., D) of latents (..., L), in units of mean |flux|."""
        x = silu(self.features(silu(self.dense(z.reshape(-1, self.latent_dim)))))
        x = x.reshape(x.shape[0], self.width, -1)
        for layer, upsample in enumerate(self.upsample):
            x = upsample(silu(x) if layer else x)
        return (x.squeeze(-1) + self.mean).reshape(*z.shape[:-1], -1)

    def jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """G(z), (..., D), and dG/dz, (..., D, L): the chain rule, layer by layer."""
        flat = z.reshape(-1, self.latent_dim)
        x = self.dense(flat)
        slope = _silu_slope(x)
        columns = [slope * by_z for by_z in self.dense.weight.T]
        x = self.features(silu(x))
        slope, x = _silu_slope(x), silu(x).unflatten(-1, (self.width, -1))
        columns = [(slope * linear(c, self.features.weight)).unflatten(-1, (self.width, -1)) for c in columns]
        for layer, upsample in enumerate(self.upsample):
            if layer:
                slope, x = _silu_slope(x), silu(x)
                columns = [slope * c for c in columns]
            # The type of a ModuleList does not include that of its modules.
            x, columns = upsample(x), [upsample.without_bias(c) for c in columns]  # type: ignore[operator]
        spectrum, jacobian = x.squeeze(-1) + self.mean, torch.cat(columns, dim=-1)
        return spectrum.reshape(*z.shape[:-1], -1), jacobian.reshape(*z.shape[:-1], *jacobian.shape[1:])

    def singular_values(self, z: Tensor) -> Tensor:
        """Singular values of dG/dz in per-pixel rms, (..., L), descending: 1 where G is an isometry."""
        _, jacobian = self.jacobian(z)
        gram = jacobian.transpose(-1, -2) @ jacobian / jacobian.shape[-2]
        return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(-1)


def _silu_slope(x: Tensor) -> Tensor:
    """Derivative of x sigmoid(x)."""
    gate = torch.sigmoid(x)
    return gate * (1 + x * (1 - gate))
