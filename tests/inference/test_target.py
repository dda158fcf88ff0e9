"""Laws of the density's derivatives: gradient, Fisher metric, Laplace's covariance."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch

from bayesspec.batch import ObservationBatch
from bayesspec.distributions import NoiseFlow
from bayesspec.inference.newton import newton_estimate
from bayesspec.inference.target import Target
from bayesspec.runtime import seeded


@pytest.fixture
def target(toy_model, toy_batch):
    """The marginal density of the four toy stars in double precision, where differences can be trusted."""
    batch = replace(
        toy_batch,
        **{name: getattr(toy_batch, name).double() for name in ("flux", "ivar", "unit_flux")},
    )
    return Target(copy.deepcopy(toy_model).double(), batch)


@pytest.fixture
def theta(target):
    """A point near the mode of every star."""
    found = newton_estimate(target.model, target.batch, classes="marginal", starts=3)
    return target.join(found.z, found.log_scale)


def test_gradient_is_that_of_the_density(target, theta):
    """Differences of the density along any direction; nothing along scales that are known."""
    theta = theta + 0.01 * torch.where(target.free, torch.randn(theta.shape, dtype=theta.dtype), 0.0)
    value, gradient = target.gradient(theta)
    torch.testing.assert_close(value, target.log_density(theta))
    for k in range(target.dim):
        step = torch.where(target.free[:, k], 1e-6, 0.0)[:, None] * torch.eye(target.dim)[k]
        slope = (target.log_density(theta + step) - target.log_density(theta - step)) / 2e-6
        torch.testing.assert_close(gradient[:, k], slope, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("no_hits")
def test_fisher_metric_is_the_mean_curvature_of_the_likelihood(toy_model):
    """Over spectra drawn from the model, the mean outer product of the scores is the metric."""

    n = 4000
    z, log_scale = toy_model.prior.centres[1, :1].expand(n, -1), torch.full((n, 2), 0.3)
    with seeded(1):
        s = toy_model.generator(z)[:, None].expand(-1, 2, -1)
        flux = NoiseFlow(s, toy_model.noise, log_scale.exp()).sample().numpy()
    mask = np.zeros(flux.shape, bool)
    mask[:, 0, 50:60] = mask[:, 1, :30] = True
    batch = ObservationBatch.from_arrays(flux, 0 * flux, mask, mask[..., 0] + 1.0, np.ones((n, 2), bool))
    target = Target(toy_model, batch)
    theta = target.join(z, log_scale)

    with torch.enable_grad():
        point = theta.clone().requires_grad_()
        value = toy_model.log_likelihood(batch, *target.split(point))
        (score,) = torch.autograd.grad(value.sum(), point)
    scores = score.T @ score / n
    expected = target._fisher(theta).mean(0) - torch.diag(torch.tensor([0.0, 0, 1, 1]))
    unit = expected.diagonal().rsqrt()
    difference = (scores - expected) * unit[:, None] * unit
    assert difference.abs().max() < 6 * (2 / n) ** 0.5


def test_laplace_covariance_is_the_inverse_curvature(target, theta):
    """The second differences of the density, one standard deviation wide, along the factor's own axes."""
    factor = target.laplace(theta)
    centre = target.log_density(theta)
    for k in range(target.latent_dim):
        step = factor[..., k]
        drop = centre - 0.5 * (target.log_density(theta + step) + target.log_density(theta - step))
        torch.testing.assert_close(drop, torch.full_like(drop, 0.5), rtol=0.35, atol=0)
    assert (torch.diagonal(factor, dim1=-2, dim2=-1) > 0).all()


def test_metric_is_positive_definite_anywhere(target):
    """Far from every star of the library too, where the prior bends the wrong way."""
    theta = target.join(*(3 * torch.randn(part.shape) for part in target.split(target.free.double())))
    metric = target.metric(theta.double())
    assert (torch.linalg.eigvalsh(metric) > 0).all()
    pinned = ~target.free
    assert (metric.diagonal(dim1=-2, dim2=-1)[pinned] == 1).all()


def test_runs_on_a_device_without_a_cpu_tensor_in_the_way(toy_model, toy_batch, only_meta):
    """Gradient, metric and Laplace's covariance touch no tensor but those of the device they are on."""
    target = Target(copy.deepcopy(toy_model).to("meta"), toy_batch.to("meta"))
    theta = torch.zeros(len(toy_batch), target.dim, device="meta")
    with only_meta(), pyro.validation_enabled(False):
        value, gradient = target.gradient(theta)
        metric, factor = target.metric(theta), target.laplace(theta)
    assert value.shape == (len(toy_batch),)
    assert gradient.shape == theta.shape
    assert metric.shape == factor.shape == (*theta.shape, target.dim)
