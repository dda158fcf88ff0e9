"""Laws of exposures that share a discrepancy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bayesspec.distributions import RobustNoiseFlow, SharedDiscrepancy
from bayesspec.distributions.spectrum_noise import LOG_HIT, LOG_USUAL

F64 = torch.float64
K, D = 2, 9
KINDS = (0.5, 1.0, 30.0)


def exposures(robust_network: Callable, count: int, tau: float = 1.0, masked: bool = True) -> RobustNoiseFlow:
    """Two stars of so many exposures, a few pixels missing, the discrepancy tau times the noise."""
    shares = torch.tensor([0.3, 0.65, 0.05], dtype=F64)[:, None].expand(3, D)
    observed = torch.rand(2, count, D) > (0.2 if masked else -1.0)
    network = robust_network(D, K)
    with torch.no_grad():  # wide noise is rare, as it is
        network.log_weights.copy_(torch.tensor([0.85, 0.13, 0.02]).log())
        network.log_scales.copy_(torch.tensor([1.0, 1.7, 6.0]).log())
    return RobustNoiseFlow(
        torch.randn(2, 1, D, dtype=F64),
        network,
        torch.rand(2, count, D, dtype=F64) + 0.3,
        torch.rand(2, count, dtype=F64) + 0.5,
        tau * (torch.rand(2, 1, D, dtype=F64) + 0.2),
        observed,
        shares,
        KINDS,
    )


def by_enumeration(flow: RobustNoiseFlow, y: Tensor) -> Tensor:
    """Log densities of the pixels of all exposures together, (N, D): every width of e and of all noise."""
    given, variances = flow.given(y), flow.prior_variances()
    noise = [(w + LOG_USUAL, s.square()) for w, s in zip(given.log_weights, given.scales, strict=True)]
    hit_square, seen = given.hit_square * given.square, flow.observed
    hit = (
        -torch.log1p(given.beyond.square() / hit_square)
        - math.log(math.pi)
        - 0.5 * hit_square.log()
        + LOG_HIT
    )
    terms = []
    for k, choice in itertools.product(
        range(len(KINDS)), itertools.product([*noise, None], repeat=y.shape[-2])
    ):
        log_weight, precision = flow.shares[k].log().expand(2, D).clone(), []
        for e, part in enumerate(choice):
            one = seen[:, e]
            # Not observed, an exposure says nothing of its width.
            if part is None:
                log_weight += torch.where(one, hit[:, e], LOG_HIT)
                precision.append(torch.zeros_like(hit[:, e]))
            else:
                log_weight += part[0]
                precision.append(torch.where(one, 1 / (part[1] * given.square[:, e]), 0.0))
        p, x = torch.stack(precision, -2), given.beyond
        total, prior = p.sum(-2), 1 / variances[k][:, 0]
        mean = (p * x).sum(-2) / (total + prior)
        square = (p * x.square()).sum(-2) - mean.square() * (total + prior)
        log_p = torch.where(p > 0, p, 1.0).log() - math.log(2 * math.pi)
        log_p = torch.where(p > 0, log_p, 0.0).sum(-2)
        terms.append(log_weight + 0.5 * (log_p + prior.log() - (total + prior).log() - square))
    return torch.stack(terms).logsumexp(0) - torch.where(seen, flow.scale.log()[..., None], 0.0).sum(-2)


@pytest.mark.parametrize("tau", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("count", [2, 3])
def test_the_integral_is_the_sum_over_all_widths(robust_network: Callable, count: int, tau: float) -> None:
    """Of every pixel, those far out, hit or missing among them, to 1e-3 in log density."""
    flow = exposures(robust_network, count, tau)
    joint = SharedDiscrepancy(flow)
    y = joint.sample()
    y[0, 0, 3] += 40.0
    y[1, :, 5] += 15.0
    y[1, -1, 7] += 1e6
    found, expected = joint.log_prob_terms(y).sum(-2), by_enumeration(flow, y)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-3)


def test_one_exposure_is_the_flow(robust_network: Callable) -> None:
    """In closed form."""
    flow = exposures(robust_network, 1)
    joint = SharedDiscrepancy(flow)
    y = joint.sample()
    assert torch.equal(joint.log_prob(y), flow.log_prob(y)[..., 0])
    assert torch.equal(joint.discrepancy_given(y).mean, flow.discrepancy_given(y).mean[..., 0, :])


def test_the_quadrature_is_the_closed_form(robust_network: Callable) -> None:
    """An exposure beside another that has not observed anything is an exposure alone."""
    flow = exposures(robust_network, 2)
    nothing = torch.zeros(2, 1, D, dtype=torch.bool)
    observed = torch.cat([flow.observed[:, :1], nothing], 1)
    names = ("loc", "network", "noise_std", "scale", "discrepancy", "observed", "shares", "kinds")
    arguments = {name: getattr(flow, name) for name in names}
    joint = SharedDiscrepancy(RobustNoiseFlow(**arguments | {"observed": observed}))
    cut = {name: arguments[name][:, :1] for name in ("noise_std", "scale", "observed")}
    alone = SharedDiscrepancy(RobustNoiseFlow(**arguments | cut))
    y = joint.sample()
    torch.testing.assert_close(joint.log_prob(y), alone.log_prob(y[:, :1]), rtol=0.0, atol=2e-4)
    one, two = alone.discrepancy_given(y[:, :1]), joint.discrepancy_given(y)
    torch.testing.assert_close(two.mean, one.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two.variance, one.variance, rtol=1e-4, atol=1e-4)


def test_exposures_share_what_they_show(robust_network: Callable) -> None:
    """Without noise two exposures are one spectrum, which is not s."""
    flow = exposures(robust_network, 2, masked=False)
    arguments = {name: getattr(flow, name) for name in ("loc", "network", "discrepancy", "shares", "kinds")}
    sharp = RobustNoiseFlow(**arguments, noise_std=1e-6 * flow.noise_std, scale=torch.ones(2, 2, dtype=F64))
    y = SharedDiscrepancy(sharp).sample(torch.Size([2000]))
    away = y - flow.loc
    both = torch.stack([away[:, :, 0], away[:, :, 1]]).flatten(1)
    assert torch.corrcoef(both)[0, 1] > 0.999
    assert away.std() > 0.3


def test_draws_given_the_data(robust_network: Callable) -> None:
    """e and two exposures drawn together are e drawn given these: alone, and beside them."""
    joint = SharedDiscrepancy(exposures(robust_network, 2))
    together = []
    for _ in range(10):  # a few at once, for memory
        e = joint.flow.sample_discrepancy(torch.Size([500, 2, 1, D]))
        y = joint.flow.sample_given(e, torch.Size([500, 2, 2, D]))
        found = joint.discrepancy_given(y)
        away = joint.flow.residual(y).sum(-2).tanh()
        together.append((e[..., 0, :], found.sample(), found.mean, away))
    e, again, mean, away = (torch.cat(part) for part in zip(*together, strict=True))
    for one, other in (
        (again.abs().sqrt(), e.abs().sqrt()),
        (again * away, e * away),
        (mean * away, e * away),
    ):
        apart = one - other
        assert ((apart.mean(0) / (apart.std(0) / len(e) ** 0.5)).abs() < 5).all()


def test_gradients_are_those_of_the_sum(robust_network: Callable) -> None:
    """By all that has one."""
    flow = exposures(robust_network, 2)
    y = SharedDiscrepancy(flow).sample()

    def gradients(density: Callable[[RobustNoiseFlow], Tensor]) -> tuple[Tensor, ...]:
        leaves = {
            n: getattr(flow, n).clone().requires_grad_() for n in ("loc", "noise_std", "scale", "discrepancy")
        }
        one = RobustNoiseFlow(
            **leaves, network=flow.network, observed=flow.observed, shares=flow.shares, kinds=KINDS
        )
        return torch.autograd.grad(density(one).sum(), [*leaves.values(), *flow.network.parameters()])

    found = gradients(lambda one: SharedDiscrepancy(one).log_prob(y))
    for got, expected in zip(found, gradients(lambda one: by_enumeration(one, y)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_order_and_batch(robust_network: Callable) -> None:
    """The order of the exposures does not matter, nor what stands beside a star; draws of s broadcast."""
    flow = exposures(robust_network, 3)
    joint = SharedDiscrepancy(flow)
    y = joint.sample()
    names = ("noise_std", "scale", "observed")
    turned = {name: getattr(flow, name)[:, [2, 0, 1]] for name in names}
    kept = {n: getattr(flow, n) for n in ("loc", "network", "discrepancy", "shares", "kinds")}
    other = SharedDiscrepancy(RobustNoiseFlow(**kept, **turned))
    torch.testing.assert_close(other.log_prob(y[:, [2, 0, 1]]), joint.log_prob(y), rtol=0.0, atol=1e-4)
    many = SharedDiscrepancy(
        RobustNoiseFlow(
            **kept | {"loc": flow.loc + torch.randn(5, 1, 1, 1)}, **{n: getattr(flow, n) for n in names}
        )
    )
    assert many.log_prob(y).shape == (5, 2)
    assert joint.expand((4, 2)).log_prob(y).shape == (4, 2)


def test_exposures_must_share(robust_network: Callable) -> None:
    """A discrepancy of each exposure's own is refused."""
    flow = exposures(robust_network, 2)
    names = ("loc", "network", "noise_std", "scale", "observed", "shares", "kinds")
    each = RobustNoiseFlow(
        **{n: getattr(flow, n) for n in names}, discrepancy=flow.discrepancy.expand(2, 2, D)
    )
    with pytest.raises(ValueError, match="differs from exposure"):
        SharedDiscrepancy(each)
