"""The integral over e in each pixel of several exposures, by quadrature with nodes near its maxima."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import spectrum_noise
from .nodes import close_about
from .pixel_mixture import PixelMixture, least
from .spectrum_noise import log_cauchy

__all__ = ["DiscrepancyIntegral"]

NODES = 56
"""Number of nodes of the quadrature over e."""

REACH = 5.0
"""Standard deviations of the widest Gaussian beyond which its density counts as 0."""

FARTHEST = 3.0
"""Limit on the centres of nodes, in units of REACH times the widest standard deviation of e."""

HIGHEST = 60.0
"""Limit on the log density ratio of the usual noise to hits, against overflow."""

KEPT = 2**20
"""Pixels times nodes up to which intermediate results are kept for gradients; above, they are recomputed."""

TOGETHER = 2**18
"""Pixels times nodes in one step."""

CENTRING = 4
"""Steps of iteratively reweighted least squares that find the values on which exposures agree."""

OUTLYING = 3.0
"""Standard deviations beyond which an exposure loses weight in these steps."""


@dataclass(frozen=True, eq=False)
class DiscrepancyIntegral:
    """The integral over e in each pixel, over the densities of all exposures."""

    given: PixelMixture
    """The mixture of every exposure, (..., E, D)."""
    shares: list[Tensor]
    variances: list[Tensor]
    observed: Tensor | None
    wild: Tensor
    """Log density of a hit in each exposure, (..., E, D); 0 where not observed."""
    usual: Tensor
    """Density of the usual noise at its centre for width 1, over that of a hit, (..., E, D); 0 likewise."""
    nodes: tuple[Tensor, Tensor]
    """Nodes of e and their weights, each (Q, ..., 1, D)."""
    about: tuple[Tensor, ...]
    """Values of e, (..., 1, D); one of them is close to the maximum of the integrand."""

    @classmethod
    def of(
        cls,
        given: PixelMixture,
        prior: tuple[list[Tensor], list[Tensor]],
        observed: Tensor | None,
        everywhere: bool = False,
    ) -> DiscrepancyIntegral:
        """The integral with nodes where the usual noise of an exposure is not negligible, or `everywhere`."""
        shares, variances = prior
        hit, log_square = given.hit_square, given.square.log()
        wild = log_cauchy(given.size / hit) - 0.5 * (hit.log() + log_square) + spectrum_noise.LOG_HIT
        usual = spectrum_noise.LOG_USUAL - 0.5 * (math.log(2 * math.pi) + log_square) - wild
        usual = usual.clamp_max(HIGHEST).exp()
        if observed is not None:
            wild, usual = torch.where(observed, wild, 0.0), torch.where(observed, usual, 0.0)
        with torch.no_grad():
            about, nodes = _place(given, variances, observed, everywhere)
        return cls(given, shares, variances, observed, wild, usual, nodes, about)

    def log_density(self) -> Tensor:
        """Log density of all exposures together, without the Jacobian of their scales, (..., D)."""
        return self._integrate(False)[..., 0, :]

    def terms(self) -> Tensor:
        """The same for every exposure given those before it, (..., E, D)."""
        total = self._integrate(True)
        return total.diff(dim=-2, prepend=torch.zeros_like(total[..., :1, :]))

    @property
    def mean(self) -> Tensor:
        """Posterior mean of e, (..., D)."""
        return self._moments[0]

    @property
    def variance(self) -> Tensor:
        """Posterior variance of e, (..., D)."""
        return self._moments[1]

    @torch.no_grad()
    def sample(self) -> Tensor:
        """One draw of e, (..., D): first a node, then the widths given this node, then e given the widths."""
        e, log_odds = self._posterior()
        chosen = (log_odds.softmax(0).cumsum(0) < torch.rand_like(e[0])).sum(0).clamp_max(len(e) - 1)
        at = e.gather(0, chosen[None])[0][..., None, :]

        # The width of e, and that of each exposure's noise, given e; a hit, or a pixel that is not observed,
        # has no precision.
        k = self._choose(
            [
                s.log() - 0.5 * (v.log() + at.square() / v)
                for s, v in zip(self.shares, self.variances, strict=True)
            ]
        )
        variance = torch.stack([v.expand(at.shape) for v in self.variances]).gather(0, k[None])[0]
        away = (self.given.beyond - at).square() / self.given.square
        terms = [
            w - s.log() - 0.5 * (away / s.square() + math.log(2 * math.pi)) + spectrum_noise.LOG_USUAL
            for w, s in zip(self.given.log_weights, self.given.scales, strict=True)
        ]
        m = self._choose([*terms, self.wild + 0.5 * self.given.square.log()])
        precision = torch.cat([self.given.scales.square().reciprocal(), self.given.scales.new_zeros(1)])[m]
        precision = precision / self.given.square
        if self.observed is not None:
            precision = torch.where(self.observed, precision, 0.0)
        whole = precision.sum(-2, keepdim=True) + 1 / variance
        mean = (precision * self.given.beyond).sum(-2, keepdim=True) / whole
        return (mean + whole.rsqrt() * torch.randn_like(mean))[..., 0, :]

    def _choose(self, log_weights: list[Tensor]) -> Tensor:
        stacked = torch.stack(torch.broadcast_tensors(*log_weights))
        level = torch.rand_like(stacked[0])
        return (stacked.softmax(0).cumsum(0) < level).sum(0).clamp_max(len(stacked) - 1)

    @functools.cached_property
    @torch.no_grad()
    def _moments(self) -> tuple[Tensor, Tensor]:
        e, log_odds = self._posterior()
        odds = log_odds.softmax(0)
        mean = (odds * e).sum(0)
        return mean, (odds * (e - mean).square()).sum(0)

    @torch.no_grad()
    def _posterior(self) -> tuple[Tensor, Tensor]:
        """Nodes, (Q, ..., D), and their log posterior weights up to a constant."""
        leaves = self._leaves()
        parts = [
            weight.log() + self._log_prior(e, *leaves) + self._gain(e, *leaves).sum(-2, keepdim=True)
            for e, weight in self._blocks()
        ]
        log_odds = torch.cat(parts)
        e = self.nodes[0].expand(log_odds.shape)
        return e[..., 0, :], log_odds[..., 0, :]

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Nodes and their weights in blocks, (Q', ..., 1, D)."""
        size = max(1, TOGETHER // self.given.beyond.numel())
        yield from zip(*(part.split(size) for part in self.nodes), strict=True)

    def _integrate(self, cumulative: bool) -> Tensor:
        """Log density of all exposures, (..., 1, D), or of the first, the first two, ..., (..., E, D)."""
        leaves = self._leaves()
        with torch.no_grad():
            heights = [
                self._log_prior(e, *leaves) + _together(self._gain(e, *leaves), cumulative)
                for e in self.about
            ]
            height = functools.reduce(torch.maximum, heights)
        total = torch.zeros_like(height)
        node = self._node
        if self.given.beyond.numel() * NODES > KEPT:
            node = functools.partial(checkpoint, node, use_reentrant=False, preserve_rng_state=False)
        for e, weight in self._blocks():
            total = total + node(e, weight, height, cumulative, *leaves)
        # If all exposures are hits, e is integrated over its prior.
        hits = _together(self.wild, cumulative)
        return hits + torch.logaddexp(total.clamp_min(_tiny(total)).log() + height, torch.zeros_like(height))

    def _node(self, e: Tensor, weight: Tensor, height: Tensor, cumulative: bool, *leaves: Tensor) -> Tensor:
        """Contribution of nodes, except hits in all exposures, in units of e^height times that of hits."""
        gain = _together(self._gain(e, *leaves), cumulative)
        log_prior = self._log_prior(e, *leaves) - height
        return (weight * (_exp(log_prior + gain) - _exp(log_prior))).sum(0)

    def _leaves(self) -> tuple[Tensor, ...]:
        """The tensors that may need gradients."""
        given = self.given
        weights = given.log_weights.exp() / given.scales
        return (
            given.beyond,
            1 / given.square,
            self.usual,
            weights,
            -0.5 / given.scales.square(),
            *self.shares,
            *self.variances,
        )

    def _gain(
        self,
        e: Tensor,
        beyond: Tensor,
        inverse: Tensor,
        usual: Tensor,
        weights: Tensor,
        rates: Tensor,
        *_: Tensor,
    ) -> Tensor:
        """Log density of every exposure given e, relative to that of a hit, (..., E, D)."""
        size = (beyond - e).square() * inverse
        total = torch.zeros_like(size)
        for weight, rate in zip(weights, rates, strict=True):
            total = torch.addcmul(total, weight, _exp(rate * size))
        return torch.log1p(usual * total)

    def _log_prior(self, e: Tensor, *leaves: Tensor) -> Tensor:
        """Log density of e, (..., 1, D)."""
        k, square = len(self.shares), e.square()
        shares, variances = leaves[-2 * k : -k], leaves[-k:]
        terms = [s * v.rsqrt() * _exp(-0.5 * square / v) for s, v in zip(shares, variances, strict=True)]
        total = functools.reduce(torch.add, terms)
        return total.clamp_min(_tiny(square)).log() - 0.5 * math.log(2 * math.pi)


def _place(
    given: PixelMixture, variances: list[Tensor], observed: Tensor | None, everywhere: bool
) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """Values of e near which the integrand may be largest, and nodes around them, each (..., 1, D).

    The values are 0 and two others, on which most exposures agree, or the value of one that disagrees.
    """
    width = given.scales.min() * given.square.sqrt()
    inner, outer = (functools.reduce(f, variances).sqrt() for f in (torch.minimum, torch.maximum))
    outer = REACH * outer
    precision, far = 1 / width.square(), REACH * given.scales.max() * given.square.sqrt()
    seen = torch.ones_like(width, dtype=torch.bool) if observed is None else observed.expand(width.shape)
    precision = torch.where(seen, precision, 0.0)
    total = precision.sum(-2, keepdim=True)
    narrow = torch.where(total > 0, total.clamp_min(1e-30).rsqrt(), inner)

    # Robust sum of the distances of all exposures from each: large distances count with their logarithm.
    x = given.beyond
    apart = (x[..., None, :] - x[..., None, :, :]).square() * precision[..., None, :]
    distance = torch.where(seen, torch.log1p(apart / OUTLYING**2).sum(-3), torch.inf)
    first = _where_least(distance, x)
    with_it = precision * (x - first).square() < OUTLYING**2
    second = _where_least(distance + torch.where(with_it, 1e3, 0.0), x)
    farthest = FARTHEST * outer
    centres = [_agreed(x, precision, start).clamp(-farthest, farthest) for start in (first, second)]
    zero = torch.zeros_like(centres[0])
    edge = torch.maximum(outer, functools.reduce(torch.maximum, [c.abs() for c in centres]) + REACH * narrow)
    lower, upper = -edge, edge
    if not everywhere:
        lower = torch.maximum(lower, torch.where(seen, x - far, torch.inf).amin(-2, keepdim=True))
        upper = torch.minimum(upper, torch.where(seen, x + far, -torch.inf).amax(-2, keepdim=True))
        lower, upper = torch.minimum(lower, -inner), torch.maximum(upper, inner)
    nodes = close_about([zero, *centres], [inner, narrow, narrow], lower, upper, NODES)
    return (zero, *centres), nodes


def _where_least(distance: Tensor, x: Tensor) -> Tensor:
    """The value of x, (..., E, D), of the exposure with the smallest distance, (..., 1, D)."""
    least = distance == distance.amin(-2, keepdim=True)
    return torch.where(least, x, -torch.inf).amax(-2, keepdim=True)


def _agreed(beyond: Tensor, precision: Tensor, centre: Tensor) -> Tensor:
    """The value near `centre`, (..., 1, D), on which exposures (..., E, D) agree, outliers excepted."""
    for _ in range(CENTRING):
        away = precision * (beyond - centre).square()
        say = precision / (1 + away / OUTLYING**2).square()
        centre = (say * beyond).sum(-2, keepdim=True) / say.sum(-2, keepdim=True).clamp_min(1e-30)
    return centre


def _together(each: Tensor, cumulative: bool) -> Tensor:
    """Sum over all exposures; cumulative: over the first, the first two, ..."""
    return each.cumsum(-2) if cumulative else each.sum(-2, keepdim=True)


def _exp(x: Tensor) -> Tensor:
    """Exponential without subnormal numbers, which are slow on a CPU."""
    return x.clamp_min(-HIGHEST).exp()


def _tiny(of: Tensor) -> float:
    return least(of)
