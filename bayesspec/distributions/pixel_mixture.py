"""One pixel of one exposure given those before it: noise and discrepancy, both mixtures of Gaussians."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import spectrum_noise
from .spectrum_noise import HIT_WIDTH, log_cauchy, log_cauchy_tail

__all__ = ["DiscrepancyGiven", "PixelMixture"]

LOWEST = 80.0
"""Log densities are at least minus this, because a CPU is slow with subnormal numbers."""

FARTHEST = 1e30
"""Limit on squared residuals in units of the variance, against overflow."""


def least(density: Tensor) -> float:
    """Lower limit on a density, large enough for the first two derivatives of its logarithm to be finite."""
    return torch.finfo(density.dtype).tiny ** 0.48


class PixelMixture(NamedTuple):
    r"""The conditional distribution of each pixel's residual: K widths of e and M of noise, K M Gaussians.

    .. math:: r_d - \mu_d \sim (1 - \eta) \sum_{k, m} \lambda_k \pi_m\,
        \mathcal{N}(0,\; \omega_k^2 \tau_d^2 + \kappa_m^2 A_d) + \eta\,
        \mathrm{Cauchy}(0,\; \sqrt{\tau_d^2 + 30^2 A_d})

    A hit, of probability :math:`\eta`, replaces e in the residual, so it has no information about e.
    Densities can be summed directly, not as logarithms, because the Cauchy part keeps them from vanishing.
    """

    beyond: Tensor
    """Residuals minus their conditional centre, in the unit of s, 0 where not observed, (..., D)."""
    square: Tensor
    """A, the variance of noise of width 1, (..., D)."""
    log_weights: Tensor
    """Log weights of the widths of the noise, (M,)."""
    scales: Tensor
    """Widths of the noise, (M,)."""
    shares: tuple[Tensor | float, ...]
    """Weights of the widths of e, K times (..., D)."""
    variances: tuple[Tensor | float, ...]
    """Variances of e for each width, K times (..., D)."""
    tau_square: Tensor | float
    """Variance of e at its usual width, (..., D)."""

    @property
    def size(self) -> Tensor:
        """Squared residuals in units of A, (..., D)."""
        return (self.beyond.square() / self.square).clamp_max(FARTHEST)

    @property
    def hit_square(self) -> Tensor:
        """Squared width of a hit, in units of A, (..., D)."""
        return HIT_WIDTH**2 + self.tau_square / self.square

    def parts(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Weight, variance of the noise and variance of e for each Gaussian, the variances in units of A."""
        weights, squares = self.log_weights.exp().unbind(), self.scales.square().unbind()
        for share, variance in zip(self.shares, self.variances, strict=True):
            beneath = variance / self.square
            for weight, noise in zip(weights, squares, strict=True):
                yield share * weight, noise, beneath

    def log_density(self) -> Tensor:
        """Log density of the residuals, (..., D)."""
        size, total = self.size, torch.zeros_like(self.beyond)
        for weight, noise, beneath in self.parts():
            whole = noise + beneath
            total = total + weight * whole.rsqrt() * (-0.5 * size / whole).clamp_min(-LOWEST).exp()
        usual = total.clamp_min(least(total)).log() - 0.5 * math.log(2 * math.pi)
        hit = self.hit_square
        return (
            torch.logaddexp(
                usual + spectrum_noise.LOG_USUAL,
                log_cauchy(size / hit) - 0.5 * hit.log() + spectrum_noise.LOG_HIT,
            )
            - 0.5 * self.square.log()
        )

    def log_tail(self) -> Tensor:
        """Log probability of a residual at least as far out on the same side, (..., D)."""
        away, log_weights = self.beyond.abs() / self.square.sqrt(), []
        for weight, noise, beneath in self.parts():
            tail = torch.special.log_ndtr(-away / (noise + beneath).sqrt())
            log_weights.append(torch.log(torch.as_tensor(weight)) + tail + spectrum_noise.LOG_USUAL)
        log_weights.append(log_cauchy_tail(away / self.hit_square.sqrt()) + spectrum_noise.LOG_HIT)
        return functools.reduce(torch.logaddexp, log_weights)

    def responsibilities(self) -> tuple[list[Tensor], Tensor]:
        """Probability of every Gaussian, K M times (..., D), and of a hit, given the residuals."""
        size, hit = self.size, self.hit_square
        terms = [
            w * (n + b).rsqrt() * (-0.5 * size / (n + b)).clamp_min(-LOWEST).exp() for w, n, b in self.parts()
        ]
        log_hit = log_cauchy(size / hit) - 0.5 * hit.log() + 0.5 * math.log(2 * math.pi)
        wild = (log_hit + spectrum_noise.LOG_HIT - spectrum_noise.LOG_USUAL).exp()
        total = (sum(terms) + wild).clamp_min(torch.finfo(size.dtype).tiny)
        return [term / total for term in terms], wild / total

    def precision(self) -> Tensor:
        """Inverse variance of the Gaussian with the same gradient at the residual, 1 / s^2, (..., D)."""
        whose, wild = self.responsibilities()
        pulls = [r / (n + b) for r, (_, n, b) in zip(whose, self.parts(), strict=True)]
        return (sum(pulls) + wild * 2 / (self.hit_square + self.size)) / self.square

    def curvature(self) -> Tensor:
        """Minus the second derivative of the log density, 1 / s^2, (..., D)."""
        whose, wild = self.responsibilities()
        size = self.size
        tail = 2 / (self.hit_square + size)
        # The gradient of a log Cauchy density falls in its tail.
        bend, slope, square = wild * tail * (1 - tail * size), wild * tail, wild * tail.square()
        for r, (_, noise, beneath) in zip(whose, self.parts(), strict=True):
            pull = 1 / (noise + beneath)
            bend, slope, square = bend + r * pull, slope + r * pull, square + r * pull.square()
        return (bend - size * (square - slope.square())) / self.square


class DiscrepancyGiven(NamedTuple):
    """e given the data, pixel by pixel: a mixture of J Gaussians, each (J, ..., D), in the unit of s."""

    odds: Tensor
    means: Tensor
    variances: Tensor

    @classmethod
    def of_one(cls, given: PixelMixture, prior: list[Tensor], observed: Tensor | None) -> DiscrepancyGiven:
        """The posterior of e given one exposure.

        Arguments:
            given: The exposure's mixture.
            prior: Variances of e for each width, K times (..., D), also where not observed.
            observed: True where a pixel is observed, (..., D); None for all.
        """
        whose, wild = given.responsibilities()
        means, variances = [], []
        for _, noise, beneath in given.parts():
            told = beneath / (noise + beneath)
            means.append(told * given.beyond)
            variances.append(told * noise * given.square)
        nothing = torch.zeros_like(given.beyond)
        if observed is not None:
            whose = [torch.where(observed, r, 0.0) for r in whose]
            wild = torch.where(observed, wild, 1.0)
        odds = [*whose, *(share * wild for share in given.shares)]
        means += [nothing for _ in prior]
        variances += [variance + nothing for variance in prior]
        return cls(torch.stack(odds), torch.stack(means), torch.stack(variances))

    @property
    def mean(self) -> Tensor:
        """Posterior mean, (..., D)."""
        return (self.odds * self.means).sum(0)

    @property
    def variance(self) -> Tensor:
        """Posterior variance, (..., D)."""
        return (self.odds * (self.variances + (self.means - self.mean).square())).sum(0)

    def sample(self) -> Tensor:
        """One draw, (..., D)."""
        level, normal = torch.rand_like(self.mean), torch.randn_like(self.mean)
        chosen = (level * self.odds.sum(0) > self.odds.cumsum(0)[:-1]).sum(0, keepdim=True)
        mean, variance = (part.gather(0, chosen)[0] for part in (self.means, self.variances))
        return mean + variance.sqrt() * normal
