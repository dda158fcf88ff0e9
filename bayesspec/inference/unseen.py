"""Pixels far from all that were seen: how much more may be wrong there than the size found elsewhere says."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from bayesspec.batch import ObservationBatch
from bayesspec.model import StellarModel

__all__ = ["RAMP", "Unseen", "remoteness", "unseen_posterior"]

RAMP = 1 / 16
"""Of the grid: so far from the nearest seen pixels an unseen one is as remote as can be."""


class Unseen(NamedTuple):
    r"""A log-normal factor on how far spectra of N stars may be from their means where nothing was seen.

    The model has one size of residuals, :math:`e^{\varsigma h}`, for all pixels of a star, and finds it where
    it sees them. Elsewhere stars have another one, not far from it:
    :math:`\log g \sim \mathcal{N}(\mu_C, \sigma_C^2)`, counted in every class, and one for all pixels of a
    draw. Where nothing was seen s goes from its mean :math:`\bar s` to
    :math:`\bar s + g^\omega (s - \bar s)`, with the remoteness :math:`\omega_d` of the pixel.
    """

    mean: Tensor
    """(N, D), 0 where seen."""
    spread: Tensor
    """(N, D), 0 where seen."""

    @property
    def factor(self) -> Tensor:
        """Root mean square of the factor, (N, D): that of standard deviations."""
        return (self.mean + self.spread.square()).exp()

    def sample(self, away: Tensor, normal: Tensor) -> Tensor:
        """Differences (S, N, D) of draws from their mean, made larger, from random numbers (S, N, 1)."""
        return (self.mean + self.spread * normal).exp() * away


def remoteness(mask: Tensor) -> Tensor:
    """How far a pixel is from all that were seen, (N, D), of masks (N, E, D): 0 if seen, 1 beyond `RAMP`.

    A pixel lost among seen ones is as its neighbours are: only where most pixels around it are unseen, too,
    is it remote.

    Example:
        >>> mask = torch.zeros(1, 1, 2048, dtype=torch.bool)
        >>> mask[..., 700:710] = mask[..., 1500:] = True
        >>> remote = remoteness(mask)[0]
        >>> [round(float(remote[d]), 2) for d in (100, 705, 1500, 1564, 2047)]
        [0.0, 0.0, 0.0, 0.5, 1.0]
    """
    unseen = mask.all(-2).float()
    reach = max(1, round(RAMP * unseen.shape[-1]))
    around = avg_pool1d(unseen, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)
    return (2 * around - 1).clamp_min(0) * unseen


@torch.no_grad()
def unseen_posterior(model: StellarModel, batch: ObservationBatch, latents: Tensor) -> Unseen | None:
    """What is not known of pixels that no exposure saw; None if the model has no residual term.

    Arguments:
        model: The model.
        batch: N stars with E exposures.
        latents: (N, L + R), whose z says of what kind the stars are.
    """
    if model.residual is None:
        return None
    z, _, _ = model.parts(latents)
    mean, spread = model.residual.unseen_sizes(z)
    remote = remoteness(batch.mask).to(z.dtype)
    return Unseen(mean[:, None] * remote, spread[:, None] * remote)
