"""Laws of the robust noise flow beyond those of every distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bayesspec.distributions import RobustNoiseFlow
from bayesspec.distributions.spectrum_noise import HIT_SHARE, HIT_WIDTH
from bayesspec.nn import RobustNoiseNetwork

F64 = torch.float64
K, D = 3, 14


@pytest.fixture
def flow(robust_network: Callable) -> RobustNoiseFlow:
    """Two stars of three exposures, with a discrepancy for each star, a sixth of the pixels missing."""
    observed = torch.rand(2, 3, D) > 0.15
    noise_std = torch.where(observed, torch.rand(2, 3, D, dtype=F64) + 0.3, torch.nan)
    return RobustNoiseFlow(
        torch.randn(2, 1, D, dtype=F64),
        robust_network(D, K),
        noise_std,
        torch.rand(2, 3, dtype=F64) + 0.5,
        torch.rand(2, 1, D, dtype=F64),
        observed,
    )


@pytest.fixture
def mixed(flow: RobustNoiseFlow) -> RobustNoiseFlow:
    """The same with a discrepancy of three widths, whose shares differ from pixel to pixel."""
    shares = (torch.randn(2, 1, 3, D, dtype=F64)).softmax(-2)
    return changed(flow, shares=shares, kinds=(0.5, 1.0, 4.0))


def changed(flow: RobustNoiseFlow, **arguments: Tensor | bool | None) -> RobustNoiseFlow:
    names = ("loc", "network", "noise_std", "scale", "discrepancy", "observed", "shares", "kinds")
    return RobustNoiseFlow(**{name: getattr(flow, name) for name in names} | arguments)


def gaussian(pixels: int = D) -> RobustNoiseNetwork:
    """A network that has learned nothing, on a base of one Gaussian of twice the pipeline's width."""
    network = RobustNoiseNetwork(pixels, K, components=1).double()
    network.log_scales.data.fill_(math.log(2.0))
    return network


def test_log_prob_is_its_formula(flow: RobustNoiseFlow) -> None:
    """Pixel by pixel, component by component, from the pixels before alone."""
    y = flow.sample()
    context, (log_weights, scales) = flow.context(), flow.network.mixture()
    terms = flow.log_prob_terms(y)
    for n, e in ((0, 0), (1, 2)):
        a, window = flow.scale[n, e], torch.zeros(K, dtype=F64)
        for d in range(D):
            mean, alpha = flow.network.step(window, context[:, n, e, d, None])
            t = torch.zeros((), dtype=F64)
            if flow.observed[n, e, d]:
                sigma, tau = flow.noise_std[n, e, d] / a, flow.discrepancy[n, 0, d]
                c = (sigma**2 + tau**2).sqrt()
                r = y[n, e, d] / a - flow.loc[n, 0, d]
                widths = (tau**2 + (scales * alpha.exp() * sigma) ** 2).sqrt()
                normal = torch.distributions.Normal(mean * sigma**2 / c, widths)
                usual = (log_weights + normal.log_prob(r)).logsumexp(0)
                width = (tau**2 + (HIT_WIDTH * alpha.exp() * sigma) ** 2).sqrt()
                hit = torch.distributions.Cauchy(mean * sigma**2 / c, width).log_prob(r)
                parts = usual + math.log(1 - HIT_SHARE), hit + math.log(HIT_SHARE)
                expected = torch.logaddexp(*parts) - a.log()
                torch.testing.assert_close(terms[n, e, d], expected)
                t = r / c
            else:
                assert terms[n, e, d] == 0
            window = torch.cat([window[1:], t[None]])
    assert torch.equal(flow.used, flow.observed)


def test_sampler_inverts_density(flow: RobustNoiseFlow, p_value: Callable) -> None:
    """Whitened samples are standard normal, and uncorrelated along and across pixels, as their squares."""
    y = flow.sample((2000,))
    assert torch.equal(
        y[:, ~flow.observed], (flow.scale[..., None] * flow.loc).expand_as(y)[:, ~flow.observed]
    )
    xi = flow.whiten(y)[:, flow.observed].detach()

    for pixel in xi.T:
        assert p_value(pixel, "norm") > 1e-4
    for power, bound in ((1, 4.5), (2, 6.5)):
        correlation = xi.pow(power).T.corrcoef() - torch.eye(xi.shape[1], dtype=F64)
        assert correlation.abs().max() < bound / len(xi) ** 0.5


@pytest.mark.usefixtures("many_hits")
def test_hits_are_drawn_as_the_density_has_them(flow: RobustNoiseFlow, p_value: Callable) -> None:
    """A hit takes the place of e, whose usual width widens it: whitened, samples are standard normal."""
    flow = changed(flow, discrepancy=4 * flow.discrepancy)
    assert p_value(flow.whiten(flow.sample((1000,)))[:, flow.observed], "norm") > 1e-4


def test_whitening_is_the_density(flow: RobustNoiseFlow) -> None:
    """d xi / d y is lower triangular, zero beyond the K-th subdiagonal, and carries the log-density."""
    y, seen = flow.sample(), flow.observed[0, 1]

    def xi(one: Tensor) -> Tensor:
        return flow.whiten(torch.where(torch.tensor([0, 1, 0])[:, None] == 1, one, y))[0, 1]

    jacobian = torch.autograd.functional.jacobian(xi, y[0, 1])
    back = torch.arange(D)[:, None] - torch.arange(D)
    assert (jacobian[(back < 0) | (back > K)] == 0).all()

    logdet = torch.linalg.slogdet(jacobian[seen][:, seen]).logabsdet
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(xi(y[0, 1])[seen]).sum()
    torch.testing.assert_close(logdet + normal, flow.log_prob(y)[0, 1])


@pytest.mark.usefixtures("no_hits")
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_whitening_reaches_the_tails(dtype: torch.dtype) -> None:
    """A Gaussian residual is whitened to what it is at 0, 0.1, 30 and 1e4 standard deviations."""
    t = torch.tensor([0.0, 0.1, -5.0, 30.0, -1e4], dtype=dtype)
    flow = RobustNoiseFlow(
        torch.zeros(5, dtype=dtype), gaussian(5).to(dtype), torch.full((5,), 0.5, dtype=dtype)
    )
    torch.testing.assert_close(flow.whiten(t).detach(), t)


@pytest.mark.usefixtures("no_hits")
def test_one_gaussian_is_a_convolution(flow: RobustNoiseFlow) -> None:
    """With one component and a network that knows nothing: independent Gaussians of summed variance."""
    plain = changed(flow, network=gaussian())
    y = plain.sample()
    spread = (
        flow.scale[..., None]
        * ((2 * flow.noise_std / flow.scale[..., None]).square() + flow.discrepancy.square()).sqrt()
    )
    normal = torch.distributions.Normal(flow.scale[..., None] * flow.loc, spread, validate_args=False)
    terms = normal.log_prob(y)
    torch.testing.assert_close(plain.log_prob_terms(y)[flow.observed], terms[flow.observed])
    precision = (flow.scale[..., None] / spread).square()
    torch.testing.assert_close(plain.precision(y)[flow.observed], precision[flow.observed])
    torch.testing.assert_close(plain.curvature(y)[flow.observed], precision[flow.observed])


@pytest.mark.usefixtures("no_hits")
def test_discrepancy_is_an_integral(mixed: RobustNoiseFlow) -> None:
    """A term is that of the noise alone, integrated over e; e given the data has the integrand's moments."""
    flow, y = mixed, mixed.sample()
    centre, alpha = flow.conditional(y)
    sigma, tau, _ = flow.widths()
    log_weights, scales = flow.network.mixture()

    x = torch.linspace(-30, 30, 12001, dtype=F64)[:, None, None, None]
    prior = torch.zeros(12001, 2, 3, D, dtype=F64)
    for share, width in zip(flow.shares.unbind(-2), flow.kinds, strict=True):
        prior += share * torch.exp(-0.5 * (x / width).square()) / (width * math.sqrt(2 * math.pi))
    noise = torch.distributions.Normal(0.0, (alpha.exp() * sigma)[..., None] * scales, validate_args=False)
    left = flow.residual(y) - centre - x * tau
    density = (log_weights + noise.log_prob(left[..., None])).logsumexp(-1).exp() * prior
    integral = (density.sum(0) * 0.005).log() - flow.scale.log()[..., None]
    seen = flow.observed
    torch.testing.assert_close(flow.log_prob_terms(y)[seen], integral[seen], rtol=1e-6, atol=1e-6)

    found, odds = flow.discrepancy_given(y), density / density.sum(0)
    mean = (odds * x * tau).sum(0)
    spread = (odds * (x * tau - mean).square()).sum(0)
    torch.testing.assert_close(found.mean[seen], mean[seen], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.variance[seen], spread[seen], rtol=1e-5, atol=1e-6)
    assert (found.mean[~seen] == 0).all()
    usual = sum(s * k**2 for s, k in zip(flow.shares.unbind(-2), flow.kinds, strict=True))
    torch.testing.assert_close(found.variance[~seen], (usual * flow.discrepancy**2).expand(2, 3, D)[~seen])


def test_draws_of_the_discrepancy(mixed: RobustNoiseFlow) -> None:
    """e is drawn from its posterior, and e and y drawn together are e drawn given y."""
    names = ("loc", "noise_std", "scale", "discrepancy", "observed", "shares")
    star = changed(mixed, **{name: getattr(mixed, name)[:1] for name in names})
    shape, times = torch.Size([500, 1, 3, D]), 10  # a few at once, for memory

    y = star.sample()
    found = star.discrepancy_given(y)
    drawn = torch.cat([star.discrepancy_given(y.expand(shape)).sample() for _ in range(times)])
    error = (drawn.mean(0) - found.mean) / (found.variance / len(drawn)).sqrt()
    assert error.abs().max() < 5
    assert ((drawn.var(0) / found.variance).log().abs() < 0.5).all()  # tails are heavy

    together = []
    for _ in range(times):
        e = star.sample_discrepancy(shape)
        y = star.sample_given(e, shape)
        together.append((e, star.discrepancy_given(y).sample(), star.residual(y)))
    e, again, away = (torch.cat(part)[:, star.observed] for part in zip(*together, strict=True))
    parts = [again.abs() ** power - e.abs() ** power for power in (0.5, 1.0)]
    parts.append((again - e) * away.tanh())  # and it goes with the data as it did
    for apart in parts:
        assert ((apart.mean(0) / (apart.std(0) / len(e) ** 0.5)).abs() < 5).all()


@pytest.mark.usefixtures("no_hits")
def test_a_large_discrepancy_leaves_nothing_to_predict(flow: RobustNoiseFlow) -> None:
    """Where the discrepancy dwarfs the noise, pixels are independent Gaussians of its width."""
    wide = changed(flow, discrepancy=torch.full((D,), 1e5, dtype=F64))
    y = wide.sample()
    expected = torch.where(flow.observed, wide.residual(y) / 1e5, 0.0)
    torch.testing.assert_close(wide.whiten(y).detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("widths", ["one", "several"])
def test_precision_is_the_slope(flow: RobustNoiseFlow, mixed: RobustNoiseFlow, widths: str) -> None:
    """A term's slope by its own residual is -precision (r - centre), its curvature that of the slope."""
    flow = flow if widths == "one" else mixed
    y = flow.sample()
    y[..., :-1] += 3.0  # the last pixel's slope has no part in other terms
    centre, _ = flow.conditional(y)
    y.requires_grad_()
    (slope,) = torch.autograd.grad(flow.log_prob(y).sum(), y, create_graph=True)
    (second,) = torch.autograd.grad(slope[..., -1].sum(), y)
    a, seen = flow.scale, flow.observed[..., -1]
    residual = (flow.residual(y) - centre)[..., -1]
    torch.testing.assert_close((a * slope[..., -1])[seen], -(flow.precision(y)[..., -1] * residual)[seen])
    torch.testing.assert_close((a.square() * second[..., -1])[seen], -flow.curvature(y)[..., -1][seen])
    for weight in (flow.precision(y), flow.curvature(y)):
        assert (weight[~flow.observed] == 0).all()
    assert (flow.precision(y)[flow.observed] > 0).all()


def test_scale_is_a_change_of_variables(flow: RobustNoiseFlow) -> None:
    """y = a (s + e + n): that of y / a with noise_std / a at scale one, minus log a for a used pixel."""
    y, a = flow.sample(), flow.scale[..., None]
    unit = changed(flow, scale=1.0, noise_std=flow.noise_std / a)
    expected = unit.log_prob(y / a) - flow.used.sum(-1) * flow.scale.log()
    torch.testing.assert_close(flow.log_prob(y), expected)


def test_missing_pixel_costs_its_own_term(flow: RobustNoiseFlow) -> None:
    """A pixel that is not observed drops its own term; the K after it know less, all others the same."""
    whole = changed(flow, observed=None, noise_std=torch.full((D,), 0.5, dtype=F64))
    observed = torch.ones(D, dtype=torch.bool)
    observed[6] = False
    holed, y = changed(whole, observed=observed), whole.sample()
    difference = holed.log_prob_terms(y) - whole.log_prob_terms(y)
    assert torch.equal(holed.used, observed.expand(2, 3, D))
    apart = torch.arange(D)
    assert (difference[..., (apart < 6) | (apart > 6 + K)] == 0).all()
    assert (difference[..., 7 : 7 + K] != 0).all()


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 0.0, 1e30])
def test_unobserved_values_have_no_influence(flow: RobustNoiseFlow, junk: float) -> None:
    """Junk where not observed changes neither density nor gradients; its own gradient is exactly zero."""
    seen, clean = flow.observed, flow.sample()
    tau = flow.discrepancy.expand(2, 3, D)
    loc, scale = flow.loc.clone().requires_grad_(), flow.scale.clone().requires_grad_()

    def evaluate(fill: float) -> list[Tensor]:
        values = [torch.where(seen, x, fill).requires_grad_() for x in (clean, flow.noise_std, tau)]
        y, noise_std, discrepancy = values
        flow_ = changed(flow, loc=loc, scale=scale, noise_std=noise_std, discrepancy=discrepancy)
        log_prob = flow_.log_prob(y)
        gradients = torch.autograd.grad(log_prob.sum(), [*values, loc, scale, *flow.network.parameters()])
        others = flow_.whiten(y), flow_.precision(y), flow_.curvature(y)
        return [log_prob.detach(), *gradients, *(x.detach() for x in others)]

    found = evaluate(junk)
    for expected, got in zip(evaluate(0.3), found, strict=True):
        assert got.isfinite().all()
        assert torch.equal(got, expected)
    for gradient in found[1:4]:
        assert (gradient[~seen] == 0).all()
    assert torch.equal(
        changed(flow, observed=torch.zeros_like(seen)).log_prob(clean), torch.zeros(2, 3, dtype=F64)
    )


def test_cosmic_ray_costs_a_bounded_amount() -> None:
    """Thirty standard deviations cost a few units, not 450; any height is finite, in float32."""
    network = RobustNoiseNetwork(D)
    flow = RobustNoiseFlow(torch.zeros(D), network, torch.full((D,), 0.1))
    y = torch.zeros(3, D)
    y[1, 7], y[2, 7] = 3.0, 1e6
    log_prob = flow.log_prob(y.requires_grad_())
    assert log_prob[0] - log_prob[1] < 20
    assert log_prob.isfinite().all()
    assert torch.autograd.grad(log_prob.sum(), y)[0].isfinite().all()
    precision = flow.precision(y)
    assert precision[1, 7] < 0.01 * precision[0, 7]
    assert flow.whiten(y).isfinite().all()


def test_batches_are_not_copied(flow: RobustNoiseFlow) -> None:
    """Draws of the latent, stars and exposures broadcast; what does not differ is computed once."""
    y, draws = flow.sample(), torch.randn(5, 2, 1, D, dtype=F64)
    many = changed(flow, loc=draws)
    assert many.batch_shape == (5, 2, 3)
    assert many.context().shape[1:] == (2, 3, D)
    for s in range(5):
        torch.testing.assert_close(many.log_prob(y)[s], changed(flow, loc=draws[s]).log_prob(y))
    assert flow.expand((4, 2, 3)).noise_std is flow.noise_std
    assert flow.expand((4, 2, 3)).log_prob(y).stride(0) == 0


def test_every_parameter_receives_a_gradient(flow: RobustNoiseFlow) -> None:
    """The likelihood trains every parameter of the network."""
    flow.log_prob(flow.sample()).sum().backward()
    for name, parameter in flow.network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_arguments_are_validated(flow: RobustNoiseFlow) -> None:
    """Shapes that do not fit are refused by name."""
    with pytest.raises(ValueError, match=f"network's {D} pixels"):
        changed(flow, loc=flow.loc[..., 1:])
    with pytest.raises(ValueError, match=r"noise_std .* same pixels"):
        changed(flow, noise_std=flow.noise_std[..., 1:])
    with pytest.raises(ValueError, match=r"loc, scale, observed, noise_std, discrepancy do not broadcast"):
        changed(flow, discrepancy=torch.ones(7, 1, D, dtype=F64))
    with pytest.raises(ValueError, match="observed must be bool"):
        changed(flow, observed=flow.observed.double())


def test_one_device(flow: RobustNoiseFlow, only_meta: type) -> None:
    """What is told of a residual touches no tensor on another device than the arguments'."""
    tensors = ("loc", "noise_std", "scale", "discrepancy", "observed")
    arguments = {name: getattr(flow, name).to("meta") for name in tensors} | {"validate_args": False}
    there, y = changed(flow, network=flow.network.to("meta"), **arguments), arguments["loc"]
    with only_meta():
        told = (there.whiten, there.precision, there.curvature, there.log_prob_terms)
        assert {tuple(tell(y).shape) for tell in told} == {(2, 3, D)}
