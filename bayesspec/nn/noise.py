"""The conditioner of the noise flow: mean and width of a pixel's noise from the pixels before it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# |alpha| stays below this, so that exp(+-alpha) is finite after a cosmic ray of any height. The possible
# widths, 5e-5 to 2e4 of the mean flux, include the noise of any spectrograph.
ALPHA_MAX = 10.0

# Number of pixels whose hidden units fit a CPU's cache; a whole batch at once is three times slower.
_CPU_BLOCK = 2**14


class NoiseNetwork(nn.Module):
    r"""Mean :math:`\mu_d` and log-width :math:`\alpha_d` of a pixel's noise, given the K pixels before it.

    For :math:`d > K` they are computed from :math:`\epsilon_{d-K}, \dots, \epsilon_{d-1}` by one convolution
    (1 -> C channels, kernel K), one pixel-wise layer (C -> C') and two heads. The first K pixels have learned
    constants. The paper drops the *first* of the D - K + 1 outputs of the convolution, which lets a pixel see
    itself; here the *last* is dropped. Log-widths of the convolution are bounded smoothly,
    :math:`\alpha = 10 \tanh(x / 10)`, so that no input makes a width vanish or overflow.

    An untrained network gives independent Gaussian noise of standard deviation `initial_scale`: the weights
    of its heads start at zero.

    References:
        | A novel stellar spectrum denoising method based on deep Bayesian modeling (Kang, He & Zhang 2021)
        | https://arxiv.org/abs/2103.02896, equations (11) to (16)

    Arguments:
        kernel: The number K of preceding pixels that a pixel depends on.
        channels: The number C of channels of the convolution.
        hidden: The number C' of hidden units of each pixel after it.
        reach: Preceding noise enters as reach * tanh(eps / reach). Without this bound (None) a width that
            grows with the preceding noise reinforces itself, and draws of the flow diverge.
        initial_scale: Standard deviation of an untrained network's noise. The initial weights of the
            convolution are scaled for inputs of this size.

    Example:
        >>> network = NoiseNetwork(initial_scale=0.1)
        >>> mean, alpha = network(torch.randn(3, 2048))
        >>> mean.shape, alpha.shape
        (torch.Size([3, 2048]), torch.Size([3, 2048]))
        >>> bool(torch.isclose(alpha.exp(), torch.tensor(0.1)).all())
        True
    """

    def __init__(
        self,
        kernel: int = 5,
        channels: int = 32,
        hidden: int = 16,
        *,
        reach: float | None = None,
        initial_scale: float = 0.1,
    ):
        super().__init__()

        if min(kernel, channels, hidden) < 1:
            raise ValueError(
                f"kernel, channels and hidden must be positive, not {kernel}, {channels}, {hidden}"
            )
        if reach is not None and not reach > 0:
            raise ValueError(f"reach must be positive, not {reach}")
        if not math.exp(-ALPHA_MAX) < initial_scale < math.exp(ALPHA_MAX):
            raise ValueError(f"initial_scale must be within exp(+-{ALPHA_MAX:g}), not {initial_scale}")

        self.config = {"kernel": kernel, "channels": channels, "hidden": hidden, "reach": reach}
        self.kernel, self.reach = kernel, reach
        self.first_mean = nn.Parameter(torch.zeros(kernel))
        self.first_alpha = nn.Parameter(torch.full((kernel,), math.log(initial_scale)))

        self.convolution = nn.Linear(kernel, channels)
        self.pixelwise = nn.Linear(channels, hidden)
        self.heads = nn.Linear(hidden, 2)

        with torch.no_grad():
            self.convolution.weight /= initial_scale
            self.heads.weight.zero_()
            self.heads.bias[0] = 0.0
            self.heads.bias[1] = ALPHA_MAX * math.atanh(math.log(initial_scale) / ALPHA_MAX)

    def forward(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-widths of all pixels in one pass.

        Arguments:
            eps: The noise, shape (..., D).

        Returns:
            The means and the log-widths, each of shape (..., D).
        """
        pixels, k = eps.shape[-1], self.kernel
        rows = eps.reshape(-1, pixels)
        block = max(1, _CPU_BLOCK // pixels if eps.device.type == "cpu" else len(rows))

        means, alphas = [], []
        for part in rows.split(block):
            # Spectra are joined end to end. Windows end one pixel early, so no pixel sees itself. Windows
            # that cover two spectra belong to first pixels, which are replaced below.
            padded, size = F.pad(self._bounded(part.reshape(-1)), (k, 0)), part.numel()
            mean, alpha = self._condition(torch.stack([padded[i : i + size] for i in range(k)]))
            means.append(mean)
            alphas.append(alpha)

        mean, alpha = torch.cat(means).reshape(eps.shape), torch.cat(alphas).reshape(eps.shape)
        return self._with_first(self.first_mean, mean), self._with_first(self.first_alpha, alpha)

    def step(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-width of one pixel d > K, for drawing noise pixel by pixel.

        Arguments:
            window: The K pixels before it, in order, shape (..., K).

        Returns:
            The mean and the log-width, each of shape (...).
        """
        mean, alpha = self._condition(self._bounded(window).reshape(-1, self.kernel).t())
        return mean.reshape(window.shape[:-1]), alpha.reshape(window.shape[:-1])

    def _bounded(self, eps: Tensor) -> Tensor:
        return eps if self.reach is None else self.reach * torch.tanh(eps / self.reach)

    def _condition(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        # (K, P) -> two (P,). Channels first, so that every product writes contiguous rows of pixels.
        h = windows
        for layer in (self.convolution, self.pixelwise):
            h = torch.addmm(layer.bias[:, None], layer.weight, h).relu_()
        mean, raw = torch.addmm(self.heads.bias[:, None], self.heads.weight, h)
        return mean, ALPHA_MAX * torch.tanh(raw / ALPHA_MAX)

    def _with_first(self, first: Tensor, rest: Tensor) -> Tensor:
        first = first[: rest.shape[-1]].expand(*rest.shape[:-1], -1)
        return torch.cat([first, rest[..., self.kernel :]], dim=-1)
