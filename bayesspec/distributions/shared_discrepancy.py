"""Several exposures of a star: each has its own noise, and all share the discrepancy of the model."""

from __future__ import annotations

from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from .discrepancy_integral import DiscrepancyIntegral
from .pixel_mixture import DiscrepancyGiven, PixelMixture
from .robust_flow import RobustNoiseFlow

__all__ = ["SharedDiscrepancy"]


class SharedDiscrepancy(TorchDistribution):
    r"""Distribution of the E exposures of a star, (E, D), that share one discrepancy e.

    Given the pixels before it, pixel d of the exposures has the density

    .. math:: \int p(e_d) \prod_e p(r_{ed} - e_d \mid r_{e, <d})\, \mathrm{d} e_d,

    with the mixtures of `RobustNoiseFlow`. For one exposure it is that flow itself, in closed form. For
    several, the integral is a sum over nodes, dense around e = 0 and around the values on which exposures
    agree. The log density of a pixel is usually accurate to 1e-5, and to 1e-2 at worst.

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
        total = (DiscrepancyIntegral.of(given, self._prior(), observed).log_density() - scale.sum(-2)).sum(-1)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def log_prob_terms(self, value: Tensor) -> Tensor:
        """Log density of every pixel given those before it and the earlier exposures, (..., E, D)."""
        if not self._joint:
            return self.flow.log_prob_terms(value)
        self._validate(value)
        given, prior = self.flow.given(value), self._prior()
        terms = (
            DiscrepancyIntegral.of(given, prior, self.flow.observed).terms()
            - self.flow.scale.log()[..., None]
        )
        return terms if self.flow.observed is None else torch.where(self.flow.observed, terms, 0.0)

    def precision(self, value: Tensor) -> Tensor:
        """Information of each exposure about s, marginalised over e, unit 1 / s^2, (..., E, D).

        For one exposure it is that of the flow. For several, the noise has the weights given the posterior
        mean of e from all exposures.
        """
        if not self._joint:
            return self.flow.precision(value)
        alone, left = self._alone(value)
        several = left * self._where_observed(alone.precision())
        return torch.where(self._by_one, self.flow.precision(value), several)

    def curvature(self, value: Tensor) -> Tensor:
        """Minus the second derivatives with respect to s, likewise; of several exposures, for known e."""
        if not self._joint:
            return self.flow.curvature(value)
        alone, left = self._alone(value)
        several = left * self._where_observed(alone.curvature())
        return torch.where(self._by_one, self.flow.curvature(value), several)

    def _alone(self, value: Tensor) -> tuple[PixelMixture, Tensor]:
        """The noise given the mean of e, and the fraction of its information left without e, (..., 1, D)."""
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
        """Pixels that only one exposure observed, (..., 1, D)."""
        if self.flow.observed is None:
            return torch.zeros((), dtype=torch.bool, device=self.flow.loc.device)
        return self.flow.observed.sum(-2, keepdim=True) == 1

    def _where_observed(self, value: Tensor) -> Tensor:
        return value if self.flow.observed is None else torch.where(self.flow.observed, value, 0.0)

    def discrepancy_given(self, value: Tensor) -> DiscrepancyGiven | DiscrepancyIntegral:
        """The posterior of e, (..., D): its mean, its variance, and `sample()`."""
        if self.event_shape[0] == 1:
            return DiscrepancyGiven(*(part[..., 0, :] for part in self.flow.discrepancy_given(value)))
        return DiscrepancyIntegral.of(
            self.flow.given(value), self._prior(), self.flow.observed, everywhere=True
        )

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
        """Probabilities and variances of the widths of e, each (..., 1, D)."""
        variances = self.flow.prior_variances()
        shares = [torch.as_tensor(s).to(variances[0]) for s in self.flow.prior_shares()]
        return shares, variances

    def _validate(self, value: Tensor) -> None:
        if self._validate_args:
            self.flow._validate_sample(value)
