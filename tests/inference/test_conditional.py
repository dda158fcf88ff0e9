"""Laws of w given the core: exact where the noise is Gaussian, at any core; there and back again."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from bayesspec.inference.conditional import GivenCore
from bayesspec.inference.target import Target


def points(target, count, seed=0):
    """Cores about the origin, (count, N, d), and w, (count, N, R); log scales that are known are 0."""
    rng = torch.Generator().manual_seed(seed)
    theta = torch.randn(count, len(target.batch), target.dim, generator=rng, dtype=target.batch.flux.dtype)
    theta[..., : target.core] *= 0.3
    return torch.where(target.free, theta, 0.0).tensor_split((target.core,), dim=-1)


@pytest.fixture
def curved(gaussian_stellar, gaussian_stellar_batch):
    """Patterns are another thing for every z, e is next to nothing; so much noise that none is a hit."""
    model = copy.deepcopy(gaussian_stellar)
    rng = torch.Generator().manual_seed(1)
    model.residual.factor += 0.5 * torch.randn(model.residual.factor.shape, generator=rng)
    model.residual.offset += 0.3 * torch.randn(model.residual.offset.shape, generator=rng)
    model.residual.log_discrepancy.fill_(-12.0)
    target = Target(model, replace(gaussian_stellar_batch, ivar=gaussian_stellar_batch.ivar.clamp_max(1.0)))
    core, w = points(target, 1, seed=2)
    return target, GivenCore.at(model, target.batch, *target.split(torch.cat([core, w], -1)[0]))


def test_exact_where_the_noise_is_gaussian(curved):
    """At cores far from where it was made, the density over that of w does not depend on w.

    The scale and the noise level stay what they were there. The integral over e is right to 1e-5 a pixel.
    """
    target, given = curved
    core, _ = points(target, 1, seed=3)
    reference, _ = points(target, 1, seed=2)
    scale = slice(target.latent_dim, target.end + 1)
    core[..., scale] = reference[..., scale]
    core = core.expand(7, -1, -1)
    normal = torch.randn(7, len(target.batch), given.dim, dtype=core.dtype)
    w, log_prob = given.draw(core, normal)
    ratio = target.log_density(torch.cat([core, w], dim=-1)) - log_prob
    assert w.std(0).min() > 1e-2
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), atol=0.03, rtol=0)


def test_draws_are_normal_numbers_times_a_factor(curved):
    """The stated log density is that of the numbers less the log determinant of what is made of them."""
    target, given = curved
    core, _ = points(target, 1, seed=4)

    def of_first(normal):
        rest = torch.zeros(1, len(target.batch) - 1, given.dim, dtype=normal.dtype)
        return given.draw(core, torch.cat([normal[None, None], rest], dim=1))

    normal = torch.randn(given.dim, dtype=core.dtype)
    step = 1e-4 * torch.eye(given.dim, dtype=core.dtype)
    centre, log_prob = of_first(normal)
    jacobian = torch.stack([(of_first(normal + row)[0] - centre)[0, 0] / 1e-4 for row in step], dim=-1)
    unit = torch.distributions.Normal(0.0, 1.0).log_prob(normal).sum()
    torch.testing.assert_close(log_prob[0, 0], unit - torch.linalg.slogdet(jacobian)[1], rtol=1e-6, atol=1e-6)


def test_what_is_drawn_has_the_density_that_is_said(curved):
    target, given = curved
    core, w = points(target, 3, seed=5)
    normal = torch.randn(w.shape, dtype=w.dtype, generator=torch.Generator().manual_seed(0))
    drawn, density = given.draw(core, normal)
    torch.testing.assert_close(given.log_prob(core, drawn), density)
    torch.testing.assert_close(given.log_prob(core[1], w[1]), given.log_prob(core, w)[1])
    assert ((given.log_prob(core, w) - density).abs() > 0.1).all()


def test_a_mode_is_its_own_mean(toy_stellar, toy_stellar_batch):
    """Whatever the noise: where the density has no slope in w, nor has its normal approximation."""
    target = Target(toy_stellar, toy_stellar_batch)
    theta = torch.zeros(len(toy_stellar_batch), target.dim)
    theta[:, : toy_stellar.latent_dim] = toy_stellar.prior.centres[0, :1]
    end = target.core
    for _ in range(30):
        metric = target.metric(theta)[:, end:, end:]
        _, gradient = target.gradient(theta)
        theta[:, end:] += torch.cholesky_solve(gradient[:, end:, None], torch.linalg.cholesky(metric))[..., 0]
    given = GivenCore.at(toy_stellar, toy_stellar_batch, *target.split(theta))
    w, _ = given.draw(theta[None, :, :end], torch.zeros(1, len(theta), given.dim))
    torch.testing.assert_close(w[0], theta[:, end:], atol=5e-3, rtol=0)


def test_a_star_s_own_whatever_stands_beside_it(curved):
    target, given = curved
    core, w = points(target, 5, seed=7)
    together, density = given.draw(core, w)
    for n in range(len(target.batch)):
        alone, own = given.select(torch.tensor([n])).draw(core[:, [n]], w[:, [n]])
        torch.testing.assert_close(alone[:, 0], together[:, n])
        torch.testing.assert_close(own[:, 0], density[:, n])
