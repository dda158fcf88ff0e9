"""Several exposures of a star: noise is each one's own, what no spectrum of the model expresses is shared."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.utils.checkpoint import checkpoint

from . import spectrum_noise
from .nodes import close_about
from .pixel_mixture import DiscrepancyGiven, PixelMixture, least
from .robust_flow import RobustNoiseFlow
from .spectrum_noise import log_cauchy

__all__ = ["SharedDiscrepancy"]

NODES = 56
"""Of the quadrature over e."""

REACH = 5.0
"""Standard deviations of the widest Gaussian beyond which nothing is left of it."""

FARTHEST = 3.0
"""Times this no value of e has a density that can be told from 0."""

HIGHEST = 60.0
"""The log of how much denser the usual noise is than hits is no larger, lest it overflow."""

KEPT = 2**20
"""Pixels times nodes up to which all that gradients need is kept; of more it is computed again."""

TOGETHER = 2**18
"""Pixels times nodes in one step."""

CENTRING = 4
"""Steps of iteratively reweighted least squares that find where exposures agree."""

OUTLYING = 3.0
"""Standard deviations beyond which an exposure loses its say there."""


class SharedDiscrepancy(TorchDistribution):
    r"""Distribution of the E exposures of a star, (E, D), that share one discrepancy e.

    Given the pixels before it, pixel d of the exposures has the density

    .. math:: \int p(e_d) \prod_e p(r_{ed} - e_d \mid r_{e, <d})\, \mathrm{d} e_d,

    with the mixtures of `RobustNoiseFlow`: one exposure is that flow itself, in closed form. Of several the
    integral is a sum over nodes that lie closely about e = 0 and about the values on which exposures agree,
    and far apart elsewhere: right to 1e-5 in the log density of a pixel, as a rule, and to 1e-2 at the worst.

    Arguments:
        flow: A flow of batch shape (..., E), whose `loc`, `discrepancy` and `shares` have 1 in place of E.

    Raises:
        ValueError: If the flow's discrepancy is not shared by its exposures.

    Example:
        >>> from bayesspec.nn import RobustNoiseNetwork
        >>> clean, sigma, tau = torch.ones(4, 1, 2048), torch.full((4, 3, 2048), 0.1), torch.ones(2048)
        >>> flow = RobustNoiseFlow(clean, RobustNoiseNetwork(), sigma, torch.ones(4, 3), tau)
        >>> joint = SharedDiscrepancy(flow)
        >>> joint.batch_shape, joint.event_shape, joint.log_prob(joint.sample()).shape
        (torch.Size([4]), torch.Size([3, 2048]), torch.Size([4]))
    """

    arg_constraints = {}  # noqa: RUF012 - the type that torch declares
    support = constraints.independent(constraints.real, 2)

    def __init__(self, flow: RobustNoiseFlow, validate_args: bool | None = None) -> None:
        if not flow.batch_shape:
            raise ValueError("a flow of batch shape (..., E) is needed")
        tau = flow.discrepancy
        if tau is not None and tau.dim() > 1 and tau.shape[-2] != 1:
            raise ValueError(f"discrepancy {tuple(tau.shape)} differs from exposure to exposure")
        self.flow = flow
        super().__init__(flow.batch_shape[:-1], flow.batch_shape[-1:] + flow.event_shape, validate_args)

    def expand(self, batch_shape: list[int] | tuple[int, ...], _instance: Any = None) -> Self:
        """The same distribution with a larger batch shape; arguments are kept as they are."""
        new = self._get_checked_instance(type(self), _instance)
        new.flow = self.flow.expand(Size(batch_shape) + self.event_shape[:1])
        super(SharedDiscrepancy, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of exposures (..., E, D), shape (...)."""
        if not self._joint:
            return self.flow.log_prob(value).sum(-1)
        self._validate(value)
        given, observed = self.flow.given(value), self.flow.observed
        scale = self.flow.scale.log()[..., None].expand(given.beyond.shape)
        scale = scale if observed is None else torch.where(observed, scale, 0.0)
        total = (_Integral.of(given, self._prior(), observed).log_density() - scale.sum(-2)).sum(-1)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def log_prob_terms(self, value: Tensor) -> Tensor:
        """Of every pixel, given those before it and the same of the exposures before, (..., E, D)."""
        if not self._joint:
            return self.flow.log_prob_terms(value)
        self._validate(value)
        given, prior = self.flow.given(value), self._prior()
        terms = _Integral.of(given, prior, self.flow.observed).terms() - self.flow.scale.log()[..., None]
        return terms if self.flow.observed is None else torch.where(self.flow.observed, terms, 0.0)

    def precision(self, value: Tensor) -> Tensor:
        """What each exposure says of s, 1 / s^2, (..., E, D): in sum, of all together, what e leaves of it.

        Of one exposure that of the flow. Of several the noise is weighed as e is known from all of them.
        """
        if not self._joint:
            return self.flow.precision(value)
        alone, left = self._alone(value)
        several = left * self._where_observed(alone.precision())
        return torch.where(self._by_one, self.flow.precision(value), several)

    def curvature(self, value: Tensor) -> Tensor:
        """Minus the second derivatives by s, likewise: of several exposures exactly where e is known."""
        if not self._joint:
            return self.flow.curvature(value)
        alone, left = self._alone(value)
        several = left * self._where_observed(alone.curvature())
        return torch.where(self._by_one, self.flow.curvature(value), several)

    def _alone(self, value: Tensor) -> tuple[PixelMixture, Tensor]:
        """The noise beside the mean of e, and what share of its information e leaves, (..., 1, D)."""
        given, (shares, variances) = self.flow.given(value), self._prior()
        e = self.discrepancy_given(value).mean[..., None, :]
        terms = [s.log() - 0.5 * (v.log() + e.square() / v) for s, v in zip(shares, variances, strict=True)]
        odds = torch.stack(torch.broadcast_tensors(*terms)).softmax(0)
        beneath = sum(odd / v for odd, v in zip(odds, variances, strict=True))
        alone = given._replace(beyond=given.beyond - e, shares=(1.0,), variances=(0.0,), tau_square=0.0)
        noise = self._where_observed(alone.precision())
        return alone, beneath / (beneath + noise.sum(-2, keepdim=True))

    @property
    def _by_one(self) -> Tensor:
        """Pixels that one exposure has observed, (..., 1, D)."""
        if self.flow.observed is None:
            return torch.zeros((), dtype=torch.bool, device=self.flow.loc.device)
        return self.flow.observed.sum(-2, keepdim=True) == 1

    def _where_observed(self, value: Tensor) -> Tensor:
        return value if self.flow.observed is None else torch.where(self.flow.observed, value, 0.0)

    def discrepancy_given(self, value: Tensor) -> DiscrepancyGiven | _Integral:
        """The posterior of e, (..., D): its mean, its variance, and `sample()`."""
        if self.event_shape[0] == 1:
            return DiscrepancyGiven(*(part[..., 0, :] for part in self.flow.discrepancy_given(value)))
        return _Integral.of(self.flow.given(value), self._prior(), self.flow.observed, everywhere=True)

    @torch.no_grad()
    def sample(self, sample_shape: list[int] | tuple[int, ...] = Size()) -> Tensor:
        """Draw exposures, sample_shape + (..., E, D), which share a draw of e."""
        shape = self._extended_shape(sample_shape)
        e = self.flow.sample_discrepancy(shape[:-2] + Size([1]) + shape[-1:])
        return self.flow.sample_given(e, shape)

    @property
    def _joint(self) -> bool:
        return self.event_shape[0] > 1 and self.flow.discrepancy is not None

    def _prior(self) -> tuple[list[Tensor], list[Tensor]]:
        """Shares and variances of the widths of e, each (..., 1, D)."""
        variances = self.flow.prior_variances()
        shares = [torch.as_tensor(s).to(variances[0]) for s in self.flow.prior_shares()]
        return shares, variances

    def _validate(self, value: Tensor) -> None:
        if self._validate_args:
            self.flow._validate_sample(value)


@dataclass(frozen=True, eq=False)
class _Integral:
    """The integral over e of each pixel of all exposures."""

    given: PixelMixture
    """Of every exposure, (..., E, D)."""
    shares: list[Tensor]
    variances: list[Tensor]
    observed: Tensor | None
    wild: Tensor
    """Log of what a hit has of an exposure's density, (..., E, D); 0 where not observed."""
    usual: Tensor
    """How much more the usual noise has of it, at its centre and at width 1, (..., E, D); 0 likewise."""
    nodes: tuple[Tensor, Tensor]
    """Of e, with their weights, each (Q, ..., 1, D)."""
    about: tuple[Tensor, ...]
    """The values of e of which one is close to where the integrand is largest, (..., 1, D)."""

    @classmethod
    def of(
        cls,
        given: PixelMixture,
        prior: tuple[list[Tensor], list[Tensor]],
        observed: Tensor | None,
        everywhere: bool = False,
    ) -> _Integral:
        """With nodes where the usual noise of some exposure has not vanished, or `everywhere`."""
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
        """Of all exposures together, scales apart, (..., D)."""
        return self._integrate(False)[..., 0, :]

    def terms(self) -> Tensor:
        """Of every exposure given those before it, scales apart, (..., E, D)."""
        total = self._integrate(True)
        return total.diff(dim=-2, prepend=torch.zeros_like(total[..., :1, :]))

    @property
    def mean(self) -> Tensor:
        """Of e, (..., D)."""
        return self._moments[0]

    @property
    def variance(self) -> Tensor:
        """Of e, (..., D)."""
        return self._moments[1]

    @torch.no_grad()
    def sample(self) -> Tensor:
        """One draw of e, (..., D): of a node, then of the widths there, then of e given these."""
        e, log_odds = self._posterior()
        chosen = (log_odds.softmax(0).cumsum(0) < torch.rand_like(e[0])).sum(0).clamp_max(len(e) - 1)
        at = e.gather(0, chosen[None])[0][..., None, :]

        # The width of e, and of each exposure's noise, given e; None: a hit, or nothing observed.
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
        """Nodes, (Q, ..., D), and the logarithm of what each has of the posterior."""
        leaves = self._leaves()
        parts = [
            weight.log() + self._log_prior(e, *leaves) + self._gain(e, *leaves).sum(-2, keepdim=True)
            for e, weight in self._blocks()
        ]
        log_odds = torch.cat(parts)
        e = self.nodes[0].expand(log_odds.shape)
        return e[..., 0, :], log_odds[..., 0, :]

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Nodes and their weights, some at once, (Q', ..., 1, D)."""
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
        # If all are hits, these say nothing of e.
        hits = _together(self.wild, cumulative)
        return hits + torch.logaddexp(total.clamp_min(_tiny(total)).log() + height, torch.zeros_like(height))

    def _node(self, e: Tensor, weight: Tensor, height: Tensor, cumulative: bool, *leaves: Tensor) -> Tensor:
        """What nodes add to the density, hits of all exposures apart, in units of e^height of hits'."""
        gain = _together(self._gain(e, *leaves), cumulative)
        log_prior = self._log_prior(e, *leaves) - height
        return (weight * (_exp(log_prior + gain) - _exp(log_prior))).sum(0)

    def _leaves(self) -> tuple[Tensor, ...]:
        """What may have gradients."""
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
        """Log of every exposure's density given e, over that of a hit, (..., E, D)."""
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
    """Where the integrand may be largest, and nodes close about these, each (..., 1, D).

    About 0, and about the two values on which most exposures agree, or which one has that disagrees.
    """
    width = given.scales.min() * given.square.sqrt()
    inner, outer = (functools.reduce(f, variances).sqrt() for f in (torch.minimum, torch.maximum))
    outer = REACH * outer
    precision, far = 1 / width.square(), REACH * given.scales.max() * given.square.sqrt()
    seen = torch.ones_like(width, dtype=torch.bool) if observed is None else observed.expand(width.shape)
    precision = torch.where(seen, precision, 0.0)
    total = precision.sum(-2, keepdim=True)
    narrow = torch.where(total > 0, total.clamp_min(1e-30).rsqrt(), inner)

    # How far all are from each, the far ones in logarithm.
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
    """What x, (..., E, D), is of the exposure whose distance is least, (..., 1, D)."""
    least = distance == distance.amin(-2, keepdim=True)
    return torch.where(least, x, -torch.inf).amax(-2, keepdim=True)


def _agreed(beyond: Tensor, precision: Tensor, centre: Tensor) -> Tensor:
    """The value near `centre`, (..., 1, D), that exposures (..., E, D) agree on, outliers apart."""
    for _ in range(CENTRING):
        away = precision * (beyond - centre).square()
        say = precision / (1 + away / OUTLYING**2).square()
        centre = (say * beyond).sum(-2, keepdim=True) / say.sum(-2, keepdim=True).clamp_min(1e-30)
    return centre


def _together(each: Tensor, cumulative: bool) -> Tensor:
    """Of all exposures, or of the first, the first two, ..."""
    return each.cumsum(-2) if cumulative else each.sum(-2, keepdim=True)


def _exp(x: Tensor) -> Tensor:
    """Without the numbers next to 0 that a processor is slow with."""
    return x.clamp_min(-HIGHEST).exp()


def _tiny(of: Tensor) -> float:
    return least(of)
