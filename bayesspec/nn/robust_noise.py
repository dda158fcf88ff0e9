"""The conditioner of the robust noise flow: noise given the preceding pixels and the pipeline's errors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Means stay below MEAN_MAX standard deviations, widths within exp(+-ALPHA_MAX) of the pipeline's.
MEAN_MAX, ALPHA_MAX = 4.0, 3.0

# Noise of this many standard deviations has half its usual weight in the prediction for the next pixels, and
# larger noise less: a cosmic ray says nothing about their noise.
WILD = 30.0

# Pixels on each side over which the pipeline's noise is averaged: far wider than a sky line.
_AROUND = 24
# Legendre polynomials of the position along the spectrum.
_POLYNOMIALS = 3

# Number of pixels whose hidden units fit a CPU's cache.
_CPU_BLOCK = 2**14


class RobustNoiseNetwork(nn.Module):
    r"""Mean :math:`\mu_d` and log-width :math:`\alpha_d` of a pixel's whitened noise, and the base's mixture.

    One convolution over the K pixels before d, one pixel-wise layer and two heads, as in
    :class:`bayesspec.nn.noise.NoiseNetwork`. Besides the noise itself, the input has the *context* of a
    pixel, which is known before the fluxes: which of the K pixels are observed, how much larger the
    pipeline's standard deviation is than in the surroundings (a sky line), and the position along the
    spectrum. The network is smooth: the noise enters as reach * tanh(t / reach) / (1 + (t / 30)^2), so that a
    high cosmic ray has no effect, activations are SiLU, and :math:`|\mu| < 4`, :math:`|\alpha| < 3`.

    The base is a mixture of M Gaussians of mean zero, weights :math:`\pi_m` and scales :math:`\kappa_m`. Its
    widest components describe cosmic rays and residuals of sky lines.

    An untrained network gives mean 0 and log-width 0 for any input.

    Arguments:
        pixels: The number D of pixels of the spectra.
        kernel: The number K of preceding pixels that a pixel depends on.
        channels: The number of channels of the convolution.
        hidden: The number of hidden units of each pixel after it.
        components: The number M of components of the base.
        reach: Bound on the preceding noise in the input, in standard deviations.

    Example:
        >>> network = RobustNoiseNetwork()
        >>> context = network.context(torch.full((3, 2048), 0.1), torch.ones(2048, dtype=torch.bool))
        >>> mean, alpha = network(torch.randn(3, 2048), context)
        >>> mean.shape, alpha.shape
        (torch.Size([3, 2048]), torch.Size([3, 2048]))
    """

    reference: Tensor
    position: Tensor
    bound: Tensor

    def __init__(
        self,
        pixels: int = 2048,
        kernel: int = 5,
        channels: int = 24,
        hidden: int = 12,
        components: int = 5,
        *,
        reach: float = 4.0,
    ):
        super().__init__()

        sizes = {
            "pixels": pixels,
            "kernel": kernel,
            "channels": channels,
            "hidden": hidden,
            "components": components,
        }
        if min(sizes.values()) < 1 or not reach > 0:
            raise ValueError(f"{', '.join(sizes)} and reach must be positive, not {sizes}, {reach}")

        self.config = sizes | {"reach": reach}
        self.kernel, self.reach = kernel, reach
        self.convolution = nn.Linear(kernel, channels)
        self.known = nn.Linear(kernel + 1 + _POLYNOMIALS, channels, bias=False)
        self.pixelwise = nn.Linear(channels, hidden)
        self.heads = nn.Linear(hidden, 2)

        # From a little narrower than the pipeline's noise to thirty times as wide, each with 1/4 of the
        # weight of the one before.
        self.log_scales = nn.Parameter(torch.linspace(-0.2, math.log(30.0), components))
        self.log_weights = nn.Parameter(-math.log(4.0) * torch.arange(components, dtype=torch.float32))

        # Typical standard deviation of the noise, with median 1, for spectra without errors.
        self.register_buffer("reference", torch.ones(pixels))
        x = torch.linspace(-1, 1, pixels)
        position = torch.stack([x, 1.5 * x.square() - 0.5, 2.5 * x**3 - 1.5 * x])
        self.register_buffer("position", position, persistent=False)
        self.register_buffer("bound", torch.tensor([[MEAN_MAX], [ALPHA_MAX]]), persistent=False)

        with torch.no_grad():
            self.heads.weight.zero_()
            self.heads.bias.zero_()

    def mixture(self) -> tuple[Tensor, Tensor]:
        r"""Log-weights :math:`\log \pi_m` and scales :math:`\kappa_m` of the base, each of shape (M,)."""
        return self.log_weights.log_softmax(0), self.log_scales.exp()

    def context(self, noise_std: Tensor, observed: Tensor) -> Tensor:
        """Input that is known before the fluxes, for every pixel, shape (I, ..., D).

        Arguments:
            noise_std: Standard deviation of the pipeline's noise, in any unit, positive, shape (..., D).
            observed: True where a pixel is observed, shape (..., D).
        """
        contrast = self.contrast(noise_std, observed)
        seen = observed.to(noise_std.dtype)
        before = F.pad(seen, (self.kernel, 0)).expand(*contrast.shape[:-1], -1)
        flags = [before[..., i : i + seen.shape[-1]] for i in range(self.kernel)]
        position = [p.expand_as(contrast) for p in self.position]
        return torch.stack([*flags, contrast, *position])

    @staticmethod
    def contrast(noise_std: Tensor, observed: Tensor) -> Tensor:
        """Log of `noise_std` minus the mean log over 24 pixels on each side, shape (..., D).

        Smoothly limited to +-1; 0 where not observed.
        """
        seen = observed.to(noise_std.dtype)
        log_std = noise_std.log() * seen
        around = _moving_sum(log_std) / _moving_sum(seen).clamp_min(1.0)
        return torch.tanh(log_std - around) * seen

    def forward(self, t: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-widths of all pixels in one pass.

        Arguments:
            t: The whitened noise, zero where not observed, shape (..., D).
            context: Context of the pixels, shape (I, ..., D); it may lack leading dimensions of t.

        Returns:
            The means and the log-widths, each of shape (..., D).
        """
        pixels, k = t.shape[-1], self.kernel
        lead = t.dim() - context.dim() + 1
        draws, batch = math.prod(t.shape[:lead]), math.prod(t.shape[lead:-1])
        context = context.expand(-1, *t.shape[lead:]).reshape(len(context), batch, pixels)
        rows = t.reshape(draws, batch, pixels)
        block = max(1, _CPU_BLOCK // pixels if t.device.type == "cpu" else batch)

        # Spectra with the same context are done together, so that the context enters only once.
        columns = []
        for part, known in zip(rows.split(block, 1), context.split(block, 1), strict=True):
            offset = self._offset(known.reshape(len(known), -1))
            outputs = []
            for spectra in part:
                before = F.pad(self._bounded(spectra), (k, 0))
                windows = torch.stack([before[:, i : i + pixels] for i in range(k)])
                outputs.append(self._condition(windows.reshape(k, -1), offset))
            columns.append(torch.stack(outputs, 1).reshape(2, *part.shape))

        mean, alpha = torch.cat(columns, 2).reshape(2, *t.shape)
        return mean, alpha

    def step(self, window: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-width of one pixel, for drawing noise pixel by pixel.

        Arguments:
            window: The K pixels before it, in order, zero where there is none, shape (..., K).
            context: Context of the pixel, shape (I, ...).

        Returns:
            The mean and the log-width, each of shape (...).
        """
        offset = self._offset(context.reshape(len(context), -1))
        windows = self._bounded(window).reshape(-1, self.kernel).t()
        mean, alpha = self._condition(windows, offset).reshape(2, *window.shape[:-1])
        return mean, alpha

    def _bounded(self, t: Tensor) -> Tensor:
        return self.reach * torch.tanh(t / self.reach) / (1 + (t / WILD).square())

    def _offset(self, context: Tensor) -> Tensor:
        return torch.addmm(self.convolution.bias[:, None], self.known.weight, context)

    def _condition(self, windows: Tensor, offset: Tensor) -> Tensor:
        # (K, P), (C, P) -> (2, P). Channels first, so that every product writes contiguous rows of pixels.
        h = F.silu(torch.addmm(offset, self.convolution.weight, windows), inplace=True)
        h = F.silu(torch.addmm(self.pixelwise.bias[:, None], self.pixelwise.weight, h), inplace=True)
        raw = torch.addmm(self.heads.bias[:, None], self.heads.weight, h)
        return self.bound * torch.tanh(raw / self.bound)


def _moving_sum(value: Tensor) -> Tensor:
    # The difference of the running sums at the two ends of the window.
    running = F.pad(value.cumsum(-1), (1, 0))
    pixel = torch.arange(value.shape[-1], device=value.device)
    last = (pixel + _AROUND + 1).clamp_max(len(pixel))
    return running[..., last] - running[..., (pixel - _AROUND).clamp_min(0)]
