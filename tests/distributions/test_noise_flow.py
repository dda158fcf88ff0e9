"""Laws of the noise flow beyond those of every distribution."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bayesspec.distributions import NoiseFlow
from bayesspec.distributions.spectrum_noise import HIT_WIDTH
from bayesspec.nn.noise import ALPHA_MAX, NoiseNetwork

F64 = torch.float64
K, D = 5, 24


@pytest.fixture
def flow(network: Callable) -> NoiseFlow:
    """Three spectra, all observed, in float64."""
    return NoiseFlow(torch.randn(3, D, dtype=F64), network(K), scale=torch.rand(3, dtype=F64) + 0.5)


def masked(flow: NoiseFlow, observed: Tensor) -> NoiseFlow:
    return NoiseFlow(flow.loc, flow.network, flow.scale, observed)


def autoregression(coefficients: Tensor, alpha: float) -> NoiseNetwork:
    """A network that is linear by construction: relu(x) - relu(-x) = x, and a constant width."""
    k = len(coefficients)
    noise = NoiseNetwork(k, channels=2 * k, hidden=2).to(F64)
    with torch.no_grad():
        for parameter in noise.parameters():
            parameter.zero_()
        identity = torch.eye(k, dtype=F64)
        noise.convolution.weight.copy_(torch.cat([identity, -identity]))
        both = torch.cat([coefficients, -coefficients])
        noise.pixelwise.weight.copy_(torch.stack([both, -both]))
        noise.heads.weight[0] = torch.tensor([1.0, -1.0])
        noise.heads.bias.copy_(
            torch.tensor([0.05, ALPHA_MAX * torch.atanh(torch.tensor(alpha / ALPHA_MAX)).item()])
        )
        noise.first_mean.copy_(torch.linspace(-0.2, 0.2, k))
        noise.first_alpha.copy_(torch.linspace(-1.0, 0.0, k))
    return noise


def test_jacobian_is_causal(flow: NoiseFlow) -> None:
    """d xi / d eps is lower triangular, zero beyond the K-th subdiagonal, its logdet is -sum(alpha)."""
    eps = 0.5 * torch.randn(D, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(flow.xi, eps)

    back = torch.arange(D)[:, None] - torch.arange(D)
    assert (jacobian[(back < 0) | (back > K)] == 0).all()
    assert (jacobian.diagonal(-K) != 0).any()
    assert (jacobian.diagonal() > 0).all()

    alpha = flow.network(eps)[1]
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, -alpha.sum())


@pytest.mark.usefixtures("no_hits")
def test_linear_flow_is_multivariate_normal() -> None:
    """With a linear network and constant widths the flow is a Gaussian AR(K) process, computed densely."""
    coefficients = torch.tensor([0.1, -0.2, 0.15, 0.05, 0.4], dtype=F64)
    noise, loc, scale = autoregression(coefficients, alpha=-0.7), torch.randn(D, dtype=F64), 1.7

    # eps = shift + lag eps + width xi
    lag, shift, width = (
        torch.zeros(D, D, dtype=F64),
        torch.full((D,), 0.05, dtype=F64),
        torch.full((D,), -0.7),
    )
    for d in range(K, D):
        lag[d, d - K : d] = coefficients
    shift[:K], width = noise.first_mean.detach(), width.to(F64)
    width[:K] = noise.first_alpha.detach()

    solve = torch.linalg.inv(torch.eye(D, dtype=F64) - lag)
    root = scale * solve * width.exp()
    dense = torch.distributions.MultivariateNormal(scale * (loc + solve @ shift), root @ root.T)

    sparse = NoiseFlow(loc, noise, scale)
    y = dense.sample((7,))
    torch.testing.assert_close(sparse.log_prob(y), dense.log_prob(y))

    drawn = sparse.sample((20_000,))
    assert ((drawn.mean(0) - dense.mean) / dense.stddev).abs().max() < 0.05
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(dense.covariance_matrix), drawn.T, upper=False
    )
    torch.testing.assert_close(whitened.cov(), torch.eye(D, dtype=F64), rtol=0.0, atol=0.05)


def test_sampler_inverts_density(flow: NoiseFlow, p_value: Callable) -> None:
    """Whitened noise of samples is standard normal, and uncorrelated along and across pixels."""
    xi = flow.xi(flow.residual(flow.sample((2000,)))).flatten(0, 1)

    for pixel in xi.T:
        assert p_value(pixel, "norm") > 1e-4
    correlation = xi.T.corrcoef() - torch.eye(D, dtype=F64)
    assert correlation.abs().max() < 4.5 / len(xi) ** 0.5
    squares = xi.square().T.corrcoef() - torch.eye(D, dtype=F64)  # widths too are independent
    assert squares.abs().max() < 6 / len(xi) ** 0.5


@pytest.mark.usefixtures("many_hits")
def test_hits_are_drawn_as_the_density_has_them(flow: NoiseFlow, p_value: Callable) -> None:
    """Whitened by their own distribution function, samples with many hits are standard normal, too."""
    assert p_value(flow.whiten(flow.sample((500,))), "norm") > 1e-4


def test_scale_is_a_change_of_variables(flow: NoiseFlow) -> None:
    """y = a (s + eps): the log-density of y is that of y / a at scale one, minus D log a."""
    y = flow.sample()
    unit = NoiseFlow(flow.loc, flow.network)
    expected = unit.log_prob(y / flow.scale[:, None]) - D * flow.scale.log()
    torch.testing.assert_close(flow.log_prob(y), expected)

    torch.manual_seed(1)
    one = unit.sample()
    torch.manual_seed(1)
    torch.testing.assert_close(flow.sample(), flow.scale[:, None] * one)


@pytest.mark.parametrize("away", [0.5, 3.0, 100.0])
def test_precision_is_the_slope(flow: NoiseFlow, away: float) -> None:
    """A term's slope by its own residual is -precision (r - mean), but for the little that a hit pulls."""
    y = flow.sample()
    mean, alpha = flow.network(flow.residual(y))
    y[:, -1] = flow.scale * (flow.loc + mean + away * alpha.exp())[:, -1]  # it has no part in other terms
    (slope,) = torch.autograd.grad(flow.log_prob(y.requires_grad_()).sum(), y)
    precision, residual = flow.precision(y)[:, -1], away * alpha[:, -1].exp()
    pull = -flow.scale * slope[:, -1] - precision * residual
    most = 2 * residual / (HIT_WIDTH * alpha[:, -1].exp()).square()
    assert ((pull > -1e-9) & (pull < most)).all()


def test_all_observed(flow: NoiseFlow) -> None:
    """Observed everywhere is the same as no mask, and nothing observed is log-density zero."""
    y = flow.sample()
    everything = torch.ones(3, D, dtype=torch.bool)
    torch.testing.assert_close(masked(flow, everything).log_prob(y), flow.log_prob(y), rtol=0.0, atol=0.0)
    assert flow.used.all()
    assert torch.equal(masked(flow, ~everything).log_prob(y * torch.nan), torch.zeros(3, dtype=F64))


@pytest.mark.parametrize("bad", [0, 2, K, 11, D - 3, D - 1])
def test_bad_pixel_costs_its_terms(flow: NoiseFlow, bad: int) -> None:
    """One bad pixel drops its own term and those it conditions: K + 1 in the interior, equation (16)."""
    observed = torch.ones(D, dtype=torch.bool)
    observed[bad] = False
    holed, y = masked(flow, observed), flow.sample()

    lost = {bad} | set(range(max(bad + 1, K), min(bad + K + 1, D)))
    kept = torch.tensor([d not in lost for d in range(D)])
    assert torch.equal(holed.used, kept.expand(3, D))
    assert bad in (0, 2, D - 3, D - 1) or len(lost) == K + 1

    torch.testing.assert_close(holed.log_prob_terms(y), flow.log_prob_terms(y) * kept, rtol=0.0, atol=0.0)
    assert not kept.all()


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_unobserved_values_have_no_influence(flow: NoiseFlow, junk: float) -> None:
    """Junk where not observed changes neither density nor gradients; its own gradient is exactly zero."""
    observed = torch.rand(3, D) > 0.15
    observed[:, 10] = False

    def evaluate(fill: float) -> list[Tensor]:
        y = torch.where(observed, clean, fill).requires_grad_()
        inputs = [y, loc, scale, *flow.network.parameters()]
        log_prob = NoiseFlow(loc, flow.network, scale, observed).log_prob(y)
        return [log_prob.detach(), *torch.autograd.grad(log_prob.sum(), inputs)]

    clean = flow.sample()
    loc, scale = flow.loc.clone().requires_grad_(), flow.scale.clone().requires_grad_()
    reference, found = evaluate(0.3), evaluate(junk)
    for expected, got in zip(reference, found, strict=True):
        assert got.isfinite().all()
        assert torch.equal(got, expected)
    assert (found[1][~observed] == 0).all()
    assert (found[2][~observed] == 0).all()


def test_exposures_share_a_spectrum(network: Callable) -> None:
    """A spectrum (N, 1, D) serves exposures (N, E, D), stays uncopied, and gets their summed gradient."""
    loc = torch.randn(2, 1, D, dtype=F64, requires_grad=True)
    observed = torch.rand(2, 3, D) > 0.1
    flow = NoiseFlow(loc, network(K), torch.rand(3, dtype=F64) + 0.5, observed)
    y = flow.sample()

    assert flow.batch_shape == (2, 3)
    assert flow.expand((4, 2, 3)).loc is loc
    assert flow.expand((4, 2, 3)).log_prob(y).stride(0) == 0

    log_prob = flow.log_prob(y)
    (gradient,) = torch.autograd.grad(log_prob.sum(), loc)
    for e in range(3):
        alone = NoiseFlow(loc[:, 0], flow.network, flow.scale[e], observed[:, e])
        torch.testing.assert_close(alone.log_prob(y[:, e]), log_prob[:, e])
        gradient = gradient - torch.autograd.grad(alone.log_prob(y[:, e]).sum(), loc)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_every_parameter_receives_a_gradient(flow: NoiseFlow) -> None:
    """The likelihood trains every parameter of the network."""
    flow.log_prob(flow.sample()).sum().backward()
    for name, parameter in flow.network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_cosmic_ray_is_finite(network: Callable) -> None:
    """A value of any height has a finite log-density and gradient in float32."""
    y = torch.zeros(D)
    y[12] = 1e5
    y.requires_grad_()
    log_prob = NoiseFlow(torch.zeros(D), network(K, torch.float32)).log_prob(y)
    assert log_prob.isfinite()
    assert torch.autograd.grad(log_prob, y)[0].isfinite().all()


def test_arguments_are_validated(network: Callable) -> None:
    """Wrong shapes, masks that are not bool, scales that are not positive and NaN are refused by name."""
    noise, loc, seen = network(K), torch.zeros(3, D, dtype=F64), torch.ones(3, D, dtype=torch.bool)
    with pytest.raises(ValueError, match="kernel = 5"):
        NoiseFlow(loc[:, :K], noise)
    with pytest.raises(ValueError, match="observed must be bool"):
        NoiseFlow(loc, noise, observed=seen.double())
    with pytest.raises(ValueError, match="same pixels"):
        NoiseFlow(loc, noise, observed=seen[:, 1:])
    with pytest.raises(ValueError, match="do not broadcast"):
        NoiseFlow(loc, noise, scale=torch.ones(2, dtype=F64))
    with pytest.raises(ValueError, match="scale"):
        NoiseFlow(loc, noise, scale=0.0, validate_args=True)
    with pytest.raises(ValueError, match="loc"):
        NoiseFlow(loc * torch.nan, noise, validate_args=True)

    y = loc.clone()
    y[1, 7] = torch.nan
    with pytest.raises(ValueError, match=r"1 observed pixels, the first at \(1, 7\)"):
        NoiseFlow(loc, noise, observed=seen, validate_args=True).log_prob(y)
    assert NoiseFlow(loc, noise, observed=~y.isnan(), validate_args=True).log_prob(y).isfinite().all()


@pytest.mark.usefixtures("no_hits")
def test_draws_do_not_run_away() -> None:
    """A width that grows fast with the noise before it feeds on itself, unless `reach` bounds it."""
    largest = {}
    for reach in (None, 0.4):
        network = NoiseNetwork(kernel=2, channels=4, hidden=2, reach=reach, initial_scale=0.1)
        with torch.no_grad():
            # alpha = log(0.1) + 8 |eps_{d-1}|
            for parameter in (*network.convolution.parameters(), *network.pixelwise.parameters()):
                parameter.zero_()
            network.convolution.weight[0, 1], network.convolution.weight[1, 1] = 1.0, -1.0
            network.pixelwise.weight[0, :2] = 1.0
            network.heads.weight[1, 0] = 8.0
        torch.manual_seed(0)
        largest[reach] = NoiseFlow(torch.zeros(50, 500), network).sample().abs().max()
    assert largest[None] > 100
    assert largest[0.4] < 20
