"""The discrepancy of single pixels: what the data say of e, which the likelihood has summed out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.distributions.robust_flow import NoiseGiven
from bayesspec.model import StellarModel
from bayesspec.nn.residual import WIDTHS

__all__ = ["Discrepancy", "discrepancy_posterior"]


class Discrepancy(NamedTuple):
    r"""e given the data and one spectrum s: of K widths, normal for each, pixel by pixel.

    Of another spectrum s' of the same posterior the means are `means - shares * (s' - s)`.
    """

    odds: Tensor
    """Probability of each width, (K, N, D)."""
    means: Tensor
    """(K, N, D), in the unit of s; 0 where no exposure observed the pixel."""
    shares: Tensor
    """(K, N, D), in [0, 1): how much of what is seen beyond s is taken for the star's, not for noise."""
    variances: Tensor
    """(K, N, D)."""

    @property
    def mean(self) -> Tensor:
        """(N, D)."""
        return (self.odds * self.means).sum(0)

    @property
    def share(self) -> Tensor:
        """(N, D)."""
        return (self.odds * self.shares).sum(0)

    @property
    def std(self) -> Tensor:
        """(N, D)."""
        about = (self.means - self.mean).square()
        return (self.odds * (self.variances + about)).sum(0).sqrt()

    def sample(self, away: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """Draws of e, (S, N, D), each for a spectrum that is `away` from s, from random numbers (S, N, D)."""
        chosen = (uniform > self.odds.cumsum(0)[:-1, None]).sum(0)
        drawn = torch.zeros_like(away)
        for k, (mean, share, variance) in enumerate(
            zip(self.means, self.shares, self.variances, strict=True)
        ):
            drawn = torch.where(chosen == k, mean - share * away + variance.sqrt() * normal, drawn)
        return drawn


@torch.no_grad()
def discrepancy_posterior(
    model: StellarModel, batch: ObservationBatch, latents: Tensor, scale: Tensor
) -> Discrepancy | None:
    r"""The posterior of e given y, z, w and a; None if the model has no residual term.

    :math:`e_d \sim \mathcal{N}(0, \tau_d^2)`, and exposure by exposure :math:`r_d - \mu_d = e_d + n_d` where
    the noise has the variance that the mixture makes of this residual. e is narrower or several times as wide
    in some pixels, as the residual term's `shares` say. The likelihood, to which the widest are outliers like
    others, does not ask whose they are; here it matters: what sticks out by far more than the noise, where
    stars of this kind are known to have lines, is rather the star's than a cosmic ray. That neighbours stick
    out, too, says nothing: so do those of a sky line.

    What is expected of a pixel's noise follows from the noise of those before it. So e is asked for twice:
    the second time it is known, near enough, and no longer taken for noise there.

    Arguments:
        model: The model.
        batch: N stars with E exposures.
        latents: (N, L + R).
        scale: (N, E).
    """
    if model.residual is None:
        return None
    latents = latents[:, None]
    flow = model.likelihood(latents, model.spectrum(latents), scale, batch)
    z, _, _ = model.parts(latents[:, 0])
    tau, shares = model.discrepancy(latents[:, 0]), model.residual.shares(z).movedim(-2, 0)

    found = _given(flow.noise_given(batch.flux, WIDTHS), tau, shares)
    return _given(flow.noise_given(batch.flux, WIDTHS, found.mean[:, None]), tau, shares)


def _given(noise: NoiseGiven, tau: Tensor, shares: Tensor) -> Discrepancy:
    """Of E exposures' noise, parts (..., N, E, D), of tau, (N, D), and of the widths' shares, (K, N, D)."""
    widths = torch.tensor(WIDTHS, dtype=tau.dtype, device=tau.device)[:, None, None]
    precision = noise.precision.sum(-2)
    whole = precision + (widths * tau).square().reciprocal()
    odds = (noise.log_density.sum(-2) + shares.log()).softmax(0)
    means = (noise.precision * noise.beyond).sum(-2) / whole
    return Discrepancy(odds, means, precision / whole, whole.reciprocal())
