"""Laws of the mixtures that importance sampling draws from."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor
from torch.distributions import MultivariateNormal

from bayesspec.inference.proposal import SizedNormal, StudentMixture


@pytest.fixture
def mixture():
    """Two mixtures of three components in three dimensions; one has two components in two of them."""
    rng = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 3, 3, generator=rng, dtype=torch.float64)
    root = 0.3 * torch.randn(2, 3, 3, 3, generator=rng, dtype=torch.float64)
    free = torch.tensor([[True, True, True], [True, True, False]])
    both = free[:, None, :, None] & free[:, None, None, :]
    scale = root @ root.mT + 0.2 * torch.eye(3, dtype=torch.float64)
    scale = torch.where(both, scale, torch.eye(3, dtype=torch.float64))
    weight = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]], dtype=torch.float64)
    mean = torch.where(free[:, None], mean, 0.0)
    return StudentMixture(mean, torch.linalg.cholesky(scale), weight.log(), free)


def test_density_is_normalised(mixture):
    """Its integral over the two free dimensions is 1."""
    line = torch.linspace(-60, 60, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    theta = torch.cat([grid, torch.zeros(len(grid), 1, dtype=torch.float64)], dim=-1)[:, None]
    total = mixture.select(torch.tensor([1])).log_prob(theta).exp().sum() * (line[1] - line[0]) ** 2
    assert total == pytest.approx(1, abs=2e-3)


def test_density_is_that_of_scipy(mixture):
    """Component by component, in the dimensions that are free."""
    from scipy.stats import multivariate_t

    theta = mixture.sample(50, seed=1)
    for n, dim in enumerate((3, 2)):
        density = 0.0
        for mean, factor, weight in zip(
            mixture.mean[n], mixture.factor[n], mixture.log_weight[n].exp(), strict=True
        ):
            scale = (factor @ factor.T)[:dim, :dim].numpy()
            density = density + float(weight) * multivariate_t(mean[:dim].numpy(), scale, df=5).pdf(
                theta[:, n, :dim].numpy()
            )
        torch.testing.assert_close(mixture.log_prob(theta)[:, n].exp(), torch.as_tensor(density))


def test_draws_follow_the_density(mixture):
    """The draws of a mixture narrowed in one place are those of its marginal there: Kolmogorov-Smirnov."""
    from scipy.stats import t

    theta = mixture.sample(4096, seed=2)
    assert (theta[:, 1, 2] == 0).all()
    for n, d in ((0, 0), (0, 2), (1, 1)):
        scale = (mixture.factor[n] @ mixture.factor[n].mT).diagonal(dim1=-2, dim2=-1)[:, d].sqrt()
        parts = list(zip(mixture.log_weight[n].exp(), mixture.mean[n, :, d], scale, strict=True))

        def cdf(x, parts=parts):
            return sum(float(w) * t(5, float(m), float(s)).cdf(x) for w, m, s in parts)

        assert kstest(theta[:, n, d].numpy(), cdf).pvalue > 0.01


def test_a_neighbour_with_more_exposures_changes_no_draw(mixture):
    """Pinned dimensions added to a batch leave what was there."""
    wide = StudentMixture(
        torch.nn.functional.pad(mixture.mean, (0, 2)),
        torch.nn.functional.pad(mixture.factor, (0, 2, 0, 2))
        + torch.diag(torch.tensor([0.0, 0, 0, 1, 1], dtype=torch.float64)),
        mixture.log_weight,
        torch.nn.functional.pad(mixture.free, (0, 2)),
    )
    theta, wider = mixture.sample(100, seed=3), wide.sample(100, seed=3)
    assert torch.equal(wider[..., :3], theta)
    torch.testing.assert_close(wide.log_prob(wider), mixture.log_prob(theta))


def test_a_star_has_the_same_draws_alone(mixture):
    """To the last bit."""
    together = mixture.sample(100, seed=4)
    for n in range(2):
        alone = mixture.select(torch.tensor([n])).sample(100, seed=4)
        assert torch.equal(alone[:, 0], together[:, n])


def test_adaptation_brings_the_mixture_to_its_draws(mixture):
    """Fitted to draws of another mixture, by their weights, it comes closer to it (Kullback-Leibler)."""
    other = replace(mixture, mean=torch.where(mixture.free[:, None], mixture.mean + 1.5, 0.0))
    theta = mixture.sample(2048, seed=5)
    weight = (other.log_prob(theta) - mixture.log_prob(theta)).softmax(0)
    adapted = mixture.adapted(theta, weight)
    truth = other.sample(2048, seed=6)
    before = (other.log_prob(truth) - mixture.log_prob(truth)).mean(0)
    after = (other.log_prob(truth) - adapted.log_prob(truth)).mean(0)
    assert (after < 0.5 * before).all()
    assert (adapted.mean[1, :, 2] == 0).all()
    torch.testing.assert_close(adapted.log_weight.exp().sum(-1), torch.ones(2, dtype=torch.float64))
    assert adapted.log_weight[1, 2] == -torch.inf


class Linear(NamedTuple):
    """N linear models y = A z + g(h) B w + noise, of which each has M points to expand about."""

    given: SizedNormal
    by_z: Tensor
    """A, (N, D, 2)."""
    by_w: Tensor
    """B, (N, D, R)."""
    weight: Tensor
    """Inverse variance of the noise, (N, D)."""
    flux: Tensor
    """y, (N, D)."""

    @staticmethod
    def log_size(h: Tensor) -> Tensor:
        return 3 * torch.tanh(0.2 * h)

    def exact(self, core: Tensor) -> MultivariateNormal:
        """p(w | y, z, h), batch shape (..., N), of cores (z, h), (..., N, 3)."""
        z, size = core[..., :2], self.log_size(core[..., 2:]).exp()
        identity = torch.eye(self.by_w.shape[-1], dtype=core.dtype)
        gram = self.by_w.mT @ (self.weight[..., None] * self.by_w)
        precision = identity + size[..., None] ** 2 * gram
        left = self.flux - (self.by_z @ z[..., None])[..., 0]
        pull = size * (self.by_w.mT @ (self.weight * left)[..., None])[..., 0]
        return MultivariateNormal(torch.linalg.solve(precision, pull), precision_matrix=precision)


@pytest.fixture
def linear():
    """Two models of four components in twelve pixels; three expansions of each, which should be the same."""
    rng = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    n, m, d, r = 2, 3, 12, 4
    model = Linear(None, normal(n, d, 2), normal(n, d, r), normal(n, d).exp(), normal(n, d))
    core = normal(m, n, 3)
    w = model.exact(core).mean
    size = model.log_size(core[..., 2:]).exp()[..., None]
    slope = torch.func.vmap(torch.func.vmap(torch.func.grad(lambda h: model.log_size(h))))(core[..., 2])
    by_h = slope[..., None, None] * (size * model.by_w) @ w[..., None]
    jacobian = torch.cat([model.by_z.expand(m, -1, -1, -1), by_h, size * model.by_w], -1)
    precision = jacobian.mT @ (model.weight[..., None] * jacobian)
    precision = precision + torch.eye(precision.shape[-1], dtype=torch.float64)
    modes = (part.transpose(0, 1) for part in (core, w, precision))
    return model._replace(given=SizedNormal.at_mode(*modes, model.log_size))


def test_w_of_a_linear_model_is_exact(linear):
    """At any z and at any size, far from where the mode is; log density with its constant."""
    core = 3 * torch.randn(50, 2, 3, dtype=torch.float64)
    w = torch.randn(50, 2, 4, dtype=torch.float64)
    found = linear.given.log_prob(core, w)
    assert found.shape == (50, 2, 3)
    expected = linear.exact(core).log_prob(w)
    torch.testing.assert_close(found, expected[..., None].expand_as(found))


def test_draws_of_w_follow_their_density(linear):
    """Means and covariances of draws at one core are those of the exact conditional, any component's."""
    core = torch.randn(1, 2, 3, dtype=torch.float64)
    normal = torch.randn(20_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    exact = linear.exact(core[0])
    for component in range(3):
        chosen = torch.full((len(normal), 2), component)
        w = linear.given.transform(core.expand(len(normal), -1, -1), chosen, normal)
        offset = (w - exact.mean).transpose(0, 1)
        white = torch.linalg.solve_triangular(exact.scale_tril, offset.mT, upper=False)
        assert white.mean(-1).abs().max() < 5 / len(normal) ** 0.5
        covariance = white @ white.mT / len(normal) - torch.eye(4)
        assert covariance.abs().max() < 5 * (2 / len(normal)) ** 0.5


def test_no_data_leave_the_prior_of_w():
    """Where the precision is the prior's, w is standard normal, at any size."""
    core, w = torch.zeros(2, 1, 3).double(), torch.zeros(2, 1, 4).double()
    given = SizedNormal.at_mode(core, w, torch.eye(7).double().expand(2, 1, -1, -1), Linear.log_size)
    points, draws = torch.randn(9, 2, 3).double(), torch.randn(9, 2, 4).double()
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(draws).sum(-1)
    torch.testing.assert_close(given.log_prob(points, draws)[..., 0], expected)


@pytest.fixture
def sized(mixture):
    """The two mixtures, to which w in four dimensions belong, each component's its own."""
    rng = torch.Generator().manual_seed(3)
    mean = torch.where(mixture.free[:, None], mixture.mean, 0.0)
    root = torch.randn(2, 3, 7, 7, generator=rng, dtype=torch.float64)
    precision = 0.3 * root @ root.mT + torch.eye(7, dtype=torch.float64)
    w = torch.randn(2, 3, 4, generator=rng, dtype=torch.float64)
    return replace(mixture, given=SizedNormal.at_mode(mean, w, precision, Linear.log_size))


def test_draws_with_w_follow_the_density(sized):
    """The importance estimate of a density's normaliser, by draws of another, is 1; so is that of itself."""
    weight = torch.tensor([[0.2, 0.2, 0.6], [0.3, 0.7, 0.0]], dtype=torch.float64)
    wider = replace(sized, factor=torch.where(sized.factor != 0, 1.2 * sized.factor, 0.0))
    unit = ~sized.free[:, None].expand(-1, 3, -1)
    wider.factor.diagonal(dim1=-2, dim2=-1)[unit] = 1.0
    for other in (wider, replace(sized, log_weight=weight.log())):
        theta = other.sample(8192, seed=7)
        ratio = (sized.log_prob(theta) - other.log_prob(theta)).exp()
        error = ratio.std(0) / len(ratio) ** 0.5
        assert ((ratio.mean(0) - 1).abs() < 4 * error).all()
        assert (error > 0).all()


def test_w_of_one_component_is_normal_given_the_core(sized):
    """Whitened by mean and precision at its own core, every direction of it: Kolmogorov-Smirnov."""
    one = replace(sized, log_weight=torch.tensor([[0.0, -torch.inf, -torch.inf]] * 2, dtype=torch.float64))
    core, w = one.sample(4096, seed=8).tensor_split((3,), dim=-1)
    mean, precision = one.given._moments(core[..., None, :])
    axes = torch.einsum("nij,sni->snj", one.given.axes[:, 0], w)
    white = (axes - mean[..., 0, :]) * precision[..., 0, :].sqrt()
    for n in range(2):
        for k in range(4):
            assert kstest(white[:, n, k].numpy(), "norm").pvalue > 0.01


def test_a_star_has_the_same_draws_with_w_alone(sized):
    """To the last bit, and the same density."""
    together = sized.sample(100, seed=4)
    assert together.shape == (100, 2, 7)
    for n in range(2):
        alone = sized.select(torch.tensor([n]))
        assert torch.equal(alone.sample(100, seed=4)[:, 0], together[:, n])
        expected = sized.log_prob(together)[:, n]
        torch.testing.assert_close(alone.log_prob(together[:, n : n + 1])[:, 0], expected)


def test_a_neighbour_with_more_exposures_changes_no_draw_of_w(sized):
    """Scales stand before the size h: pinned ones among them leave what is before and after."""
    where = [0, 1, 4]

    def widened(part, *, both=False):
        rows = where if both else slice(None)
        new = torch.zeros(*part.shape[:-2], 5 if both else part.shape[-2], 5, dtype=part.dtype)
        if both:
            new += torch.eye(5, dtype=part.dtype)
        new[..., rows, :] = new[..., rows, :].index_copy(-1, torch.tensor(where), part)
        return new

    given = replace(sized.given, centre=widened(sized.given.centre), slope=widened(sized.given.slope))
    parts = widened(sized.mean), widened(sized.factor, both=True), sized.log_weight
    free = widened(sized.free.double()) > 0
    theta, wider = sized.sample(100, seed=3), StudentMixture(*parts, free, given).sample(100, seed=3)
    torch.testing.assert_close(wider[..., [0, 1, 4, 5, 6, 7, 8]], theta)
    assert (wider[..., 2:4] == 0).all()


def test_adaptation_keeps_w(sized):
    """One component more, drawn from and asked for its density as before."""
    theta = sized.sample(2048, seed=5)
    weight = torch.full(theta.shape[:2], 1 / len(theta), dtype=theta.dtype)
    adapted = sized.adapted(theta, weight)
    assert adapted.given.dim == 4
    assert adapted.given.strength.shape == (2, 4, 4)
    drawn = adapted.sample(512, seed=6)
    assert drawn.shape == (512, 2, 7)
    assert adapted.log_prob(drawn).isfinite().all()
    again = adapted.adapted(drawn, weight[:512] * 4)
    assert again.log_prob(drawn).shape == (512, 2)
