"""Laws of the class prior beyond those of every distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from sklearn.neighbors import KernelDensity
from torch import Tensor

from bayesspec.distributions import ClassKDE, LatentPrior, NoiseFlow
from bayesspec.nn.noise import NoiseNetwork

F64 = torch.float64
SIZES, BANDWIDTHS = (40, 7, 1), (0.05, 0.3, 1.0)


@pytest.fixture
def latents() -> list[Tensor]:
    """Latents of three classes, hundreds of bandwidths apart."""
    return [torch.randn(m, 3, dtype=F64) + 5.0 * c for c, m in enumerate(SIZES)]


@pytest.fixture
def weights() -> list[Tensor]:
    return [torch.rand(m, dtype=F64) + 0.1 for m in SIZES]


@pytest.fixture
def prior(latents: list[Tensor], weights: list[Tensor]) -> LatentPrior:
    return LatentPrior.from_classes(latents, BANDWIDTHS, weights)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_is_scikit_learn(
    prior: LatentPrior, latents: list[Tensor], weights: list[Tensor], dtype: torch.dtype
) -> None:
    """Every class is scikit-learn's weighted kernel density, to 1e-5 in float32 too."""
    prior = prior.to(dtype)
    z = torch.cat([points[:5] + 0.1 * torch.randn(3) for points in prior.centres])
    found = prior.log_prob_all(z)

    for c, bandwidth in enumerate(BANDWIDTHS):
        # In the prior's precision: the density is exact for the centres it has.
        points, weight = (
            prior.centres[c, : SIZES[c]].double(),
            prior.log_weights[c, : SIZES[c]].double().exp(),
        )
        reference = (
            KernelDensity(bandwidth=bandwidth).fit(points, sample_weight=weight).score_samples(z.double())
        )
        np.testing.assert_allclose(found[:, c], reference, rtol=1e-5, atol=1e-5)


def test_anisotropic_is_a_change_of_variables(prior: LatentPrior) -> None:
    """Bandwidths h per dimension are a unit-bandwidth density in z / h."""
    h = torch.tensor([0.5, 1.0, 2.0])
    z = torch.randn(6, 3)
    scaled = LatentPrior(prior.centres / h, prior.log_weights, torch.ones(3))
    stretched = LatentPrior(prior.centres, prior.log_weights, h.expand(3, 3))
    torch.testing.assert_close(stretched.log_prob_all(z), scaled.log_prob_all(z / h) - h.log().sum())


def test_shaped_kernels_are_multivariate_normal(latents: list[Tensor], weights: list[Tensor]) -> None:
    """A mixture of normals whose covariances are those of the nearest centres, and the bandwidth's."""
    prior = LatentPrior.from_classes(latents, BANDWIDTHS, weights, neighbours=5, stretch=0.7).double()
    z = torch.randn(6, 3, dtype=F64)
    found = prior.log_prob_all(z)
    for c, (points, bandwidth) in enumerate(zip(latents, BANDWIDTHS, strict=True)):
        points, terms = points.float().double(), []
        for m, point in enumerate(points):
            near = points[(points - point).norm(dim=-1).argsort()[:5]]
            scatter = torch.cov(near.T) if len(near) > 1 else torch.zeros(3, 3, dtype=F64)
            covariance = bandwidth**2 * torch.eye(3, dtype=F64) + 0.7**2 * scatter
            normal = torch.distributions.MultivariateNormal(point, covariance)
            terms.append(normal.log_prob(z) + (weights[c][m] / weights[c].sum()).log())
        reference = torch.stack(terms).logsumexp(0)
        torch.testing.assert_close(found[:, c], reference, rtol=1e-4, atol=1e-4)


def test_kernels_lie_along_a_sequence() -> None:
    """Stars on a line have kernels that are long in it and as thin as the bandwidth across."""
    line = torch.linspace(-1, 1, 50)[:, None] * torch.tensor([0.6, 0.8])
    prior = LatentPrior.from_classes([line], [0.01], neighbours=10, stretch=1.0)
    along, across = torch.tensor([0.6, 0.8]), torch.tensor([-0.8, 0.6])
    z = prior(torch.zeros(20_000, dtype=torch.long)).sample()
    assert float((z @ across).std()) == pytest.approx(0.01, rel=0.03)
    assert float((z @ along).std()) == pytest.approx(float((line @ along).std()), rel=0.1)
    gap = 0.5 * (line[24] + line[25])
    of = prior.log_prob_all(torch.stack([line[24], gap, gap + 0.05 * across]))[:, 0].tolist()
    assert of[1] == pytest.approx(of[0], abs=0.1)
    assert of[2] == pytest.approx(of[1] - 12.5, abs=0.3)


def test_shapes_move_with_what_they_are_made_from(latents: list[Tensor]) -> None:
    """Latents and bandwidths twice as large: the same density in the new unit; a module's dtype is kept."""
    prior = LatentPrior.from_classes(latents, BANDWIDTHS, neighbours=4)
    larger = LatentPrior.from_classes([2 * z for z in latents], 2 * torch.tensor(BANDWIDTHS), neighbours=4)
    z = torch.cat([points[:3] for points in latents]).float()
    expected = prior.log_prob_all(z) - 3 * math.log(2)
    torch.testing.assert_close(larger.log_prob_all(2 * z), expected, rtol=1e-4, atol=1e-3)
    assert "precision_tril" not in prior.state_dict()
    assert prior.double().log_prob_all(z.double()).dtype == F64


def test_one_class_is_that_of_all(latents: list[Tensor]) -> None:
    """A class by itself has the density that it has among the others."""
    z = torch.randn(7, 3)
    for neighbours in (0, 4):
        prior = LatentPrior.from_classes(latents, BANDWIDTHS, neighbours=neighbours)
        for k in range(len(latents)):
            torch.testing.assert_close(
                prior.of_class(k, z.shape[:1]).log_prob(z), prior.log_prob_all(z)[:, k]
            )


def test_klass_picks_its_density(prior: LatentPrior) -> None:
    """Enumerated classes (n_class, 1, 1) against latents (N, 1, L) give each class's density."""
    z = torch.randn(4, 1, 3)
    every = prior.log_prob_all(z)
    assert every.shape == (4, 1, 3)
    torch.testing.assert_close(prior(torch.arange(3)[:, None, None]).log_prob(z), every.movedim(-1, 0))


def test_tail_is_a_parabola(prior: LatentPrior) -> None:
    """A hundred bandwidths and more away the density is its nearest kernel's, gradient included."""
    single = prior(torch.tensor(2))
    direction = torch.tensor([0.6, 0.0, 0.8])
    for distance in (1e2, 1e4):
        z = (prior.centres[2, 0] + distance * direction).requires_grad_()
        log_prob = single.log_prob(z)
        torch.testing.assert_close(
            log_prob.item(), -0.5 * distance**2 - 1.5 * math.log(2 * math.pi), rtol=1e-5, atol=0
        )
        torch.testing.assert_close(torch.autograd.grad(log_prob, z)[0], -distance * direction)

    z = torch.full((4, 3), 1e3, requires_grad=True)
    every = prior.log_prob_all(z)
    assert every.isfinite().all()
    assert torch.autograd.grad(every.sum(), z)[0].isfinite().all()


def test_padding_has_no_influence(prior: LatentPrior) -> None:
    """Padded centres change no density, receive no gradient and are never drawn."""
    padded = prior.log_weights == -torch.inf
    centres = torch.where(padded[..., None], 3.0, prior.centres).requires_grad_()
    klass, z = torch.tensor([0, 1, 2]), torch.randn(5, 1, 3)
    moved = ClassKDE(klass, centres, prior.log_weights, prior.bandwidth)

    log_prob = moved.log_prob(z)
    torch.testing.assert_close(log_prob, prior(klass).log_prob(z), rtol=0.0, atol=0.0)
    (gradient,) = torch.autograd.grad(log_prob.sum(), centres)
    assert gradient.isfinite().all()
    assert (gradient[padded] == 0).all()

    centres = torch.where(padded[..., None], 1e6, prior.centres)
    assert ClassKDE(klass, centres, prior.log_weights, prior.bandwidth).sample((5000,)).max() < 1e3


def test_many_latents_are_evaluated_in_blocks(prior: LatentPrior) -> None:
    """The density of many latents is that of each, whatever the number evaluated at once."""
    z = torch.randn(5000, 3)
    assert len(z) * prior.log_weights.numel() > 2 * 2**18
    torch.testing.assert_close(
        prior.log_prob_all(z)[::619], torch.stack([prior.log_prob_all(point) for point in z[::619]])
    )


def test_samples_have_the_marginals(prior: LatentPrior, p_value: Callable) -> None:
    """The distribution function of every latent in every class makes samples uniform."""
    z = prior(torch.arange(3)).sample((4000,))
    for c, bandwidth in enumerate(BANDWIDTHS):
        offset = (z[:, c, None] - prior.centres[c]) / bandwidth
        u = (prior.log_weights[c].exp()[:, None] * torch.special.ndtr(offset)).sum(1)
        for marginal in u.T:
            assert p_value(marginal, "uniform") > 1e-3


def test_enumeration_is_the_exact_sum(prior: LatentPrior) -> None:
    """TraceEnum_ELBO of class, latent and spectrum is log sum_C p(C) p(z|C) p(y|z), and so its gradient."""
    n, exposures, pixels = 4, 2, 12
    spectra, noise = torch.randn(3, pixels), NoiseNetwork(initial_scale=0.3)
    z = prior.centres[[0, 0, 1, 2], 0].clone().requires_grad_()
    y = (z @ spectra).detach()[:, None] + 0.3 * torch.randn(n, exposures, pixels)
    observed = torch.rand(n, exposures, pixels) > 0.1

    @config_enumerate
    def model() -> None:
        with pyro.plate("star", n, dim=-2):
            klass = pyro.sample("class", dist.Categorical(torch.ones(3) / 3))
            latent = pyro.sample("z", prior(klass), obs=z[:, None])
            with pyro.plate("exposure", exposures, dim=-1):
                pyro.sample("y", NoiseFlow(latent @ spectra, noise, observed=observed), obs=y)

    elbo = -TraceEnum_ELBO(max_plate_nesting=2).differentiable_loss(model, lambda: None)

    flow = NoiseFlow((z @ spectra)[:, None], noise, observed=observed)
    exact = (prior.log_prob_all(z) - math.log(3)).logsumexp(-1).sum() + flow.log_prob(y).sum()
    torch.testing.assert_close(elbo, exact)
    torch.testing.assert_close(torch.autograd.grad(elbo, z)[0], torch.autograd.grad(exact, z)[0])


def test_state_dict_is_the_prior(prior: LatentPrior) -> None:
    """Three buffers, no parameters; a prior built from them is the same."""
    state = prior.state_dict()
    assert set(state) == {"centres", "log_weights", "bandwidth"}
    assert not list(prior.parameters())

    z = torch.randn(5, 3)
    assert torch.equal(LatentPrior(**state).log_prob_all(z), prior.log_prob_all(z))


def test_arguments_are_validated(prior: LatentPrior) -> None:
    """Wrong shapes, classes out of range, empty classes and unnormalised weights are refused by name."""
    klass, arguments = torch.tensor([0, 2]), (prior.centres, prior.log_weights, prior.bandwidth)
    with pytest.raises(ValueError, match="klass must be an integer"):
        ClassKDE(klass.double(), *arguments)
    with pytest.raises(ValueError, match="klass must be below"):
        ClassKDE(klass + 1, *arguments, validate_args=True)
    with pytest.raises(ValueError, match="klass"):
        ClassKDE(klass - 1, *arguments, validate_args=True)
    with pytest.raises(ValueError, match="centres must be"):
        ClassKDE(klass, prior.centres[0], prior.log_weights, prior.bandwidth)
    with pytest.raises(ValueError, match="bandwidth must be"):
        ClassKDE(klass, prior.centres, prior.log_weights, prior.bandwidth[:2])
    with pytest.raises(ValueError, match="bandwidth"):
        ClassKDE(klass, prior.centres, prior.log_weights, -prior.bandwidth, validate_args=True)
    with pytest.raises(ValueError, match="sum to one"):
        ClassKDE(klass, prior.centres, prior.log_weights + 0.1, prior.bandwidth, validate_args=True)

    factor = torch.eye(3).expand(3, 40, 3, 3)
    with pytest.raises(ValueError, match="precision_tril must be"):
        ClassKDE(klass, *arguments, factor[:2])
    with pytest.raises(ValueError, match="lower triangular"):
        ClassKDE(klass, *arguments, -factor, validate_args=True)

    with pytest.raises(ValueError, match="class 1 is"):
        LatentPrior.from_classes([torch.zeros(4, 3), torch.zeros(0, 3)], [1.0, 1.0])
    with pytest.raises(ValueError, match="weights of class 0"):
        LatentPrior.from_classes([torch.zeros(4, 3)], [1.0], [torch.ones(3)])
    with pytest.raises(ValueError, match="sum to one"):
        LatentPrior.from_classes([torch.zeros(4, 3)], [1.0], [torch.zeros(4)])
