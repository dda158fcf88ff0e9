"""Laws of the mixtures that importance sampling draws from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import kstest

from bayesspec.inference.proposal import StudentMixture


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


@pytest.mark.parametrize("own", [[0, 1, 2], [0, 3, 4]], ids=["after them", "between them"])
def test_a_neighbour_with_more_exposures_changes_no_draw(mixture, own):
    """Pinned dimensions added to a batch leave what was there, wherever they stand."""
    mean, free = torch.zeros(2, 3, 5, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.bool)
    factor, at = torch.eye(5, dtype=torch.float64).repeat(2, 3, 1, 1), torch.tensor(own)
    mean[..., at], free[:, at] = mixture.mean, mixture.free
    factor[..., at[:, None], at] = mixture.factor
    wide = StudentMixture(mean, factor, mixture.log_weight, free)
    theta, wider = mixture.sample(100, seed=3), wide.sample(100, seed=3)
    assert torch.equal(wider[..., at], theta)
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


def test_few_draws_move_a_component_little(mixture):
    """One draw that has all the weight counts as one beside four for each dimension."""
    theta = mixture.sample(64, seed=8)
    weight = torch.zeros(64, 2, dtype=torch.float64)
    weight[5] = 1.0
    moved = mixture.adapted(theta, weight).mean[:, :-1]
    share = torch.tensor([1 / 13, 1 / 9], dtype=torch.float64)[:, None, None]
    expected = torch.lerp(mixture.mean, theta[5][:, None].expand_as(mixture.mean), share)
    own = mixture.log_weight > -torch.inf
    torch.testing.assert_close(moved[own], expected[own])


def test_numbers_beside_the_draws_are_standard_normal(mixture):
    """They change no draw, are the same for both stars, and of no correlation with it."""
    theta = mixture.sample(4096, seed=7, further=5)
    assert torch.equal(theta[:, 0, 3:], theta[:, 1, 3:])
    for k in range(5):
        assert kstest(theta[:, 0, 3 + k].numpy(), "norm").pvalue > 0.01
    together = torch.corrcoef(theta[:, 0].T)
    assert together[:3, 3:].abs().max() < 0.06


def test_independent_draws_follow_the_density(mixture):
    """Seeded, with no order among them: means of many agree with those of the sequence."""
    theta = mixture.sample(4096, seed=3, independent=True)
    assert torch.equal(theta, mixture.sample(4096, seed=3, independent=True))
    ordered = mixture.sample(4096, seed=3)
    error = ordered.std(0) / 4096**0.5
    assert ((theta.mean(0) - ordered.mean(0)).abs() <= 4 * error).all()
    following = torch.corrcoef(torch.stack([theta[:-1, 0, 0], theta[1:, 0, 0]]))[0, 1]
    assert abs(following) < 4 / 4096**0.5


def test_the_mean_of_mixtures_is_a_mixture(mixture):
    other = replace(mixture, mean=torch.where(mixture.free[:, None], mixture.mean + 1.5, 0.0))
    both = StudentMixture.mean_of([mixture, other])
    theta = both.sample(200, seed=4)
    expected = torch.logaddexp(mixture.log_prob(theta), other.log_prob(theta)) - math.log(2)
    torch.testing.assert_close(both.log_prob(theta), expected)


def test_stars_are_put_together_whatever_their_components(mixture):
    """Draws and densities are those of each by itself."""
    first, second = mixture.select(torch.tensor([0])), mixture.select(torch.tensor([1]))
    theta = second.sample(64, seed=5)
    larger = second.adapted(theta, torch.full(theta.shape[:2], 1 / 64))  # has a component more
    both = StudentMixture.concatenate([first, larger])
    theta = both.sample(200, seed=3)
    for n, own in enumerate((first, larger)):
        torch.testing.assert_close(theta[:, [n]], own.sample(200, seed=3))
        torch.testing.assert_close(both.log_prob(theta)[:, [n]], own.log_prob(theta[:, [n]]))
