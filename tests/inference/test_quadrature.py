"""Laws of the oracle: it is right where the answer is known, and it knows where it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from bayesspec.batch import ObservationBatch
from bayesspec.distributions import LatentPrior
from bayesspec.grid import WavelengthGrid
from bayesspec.inference.quadrature import quadrature
from bayesspec.model import StellarModel
from bayesspec.nn import Encoder, NoiseNetwork
from bayesspec.runtime import seeded

SIGMA, WIDTH = 0.3, torch.tensor([0.5, 0.8])


class Linear(nn.Module):
    """s = A z + b."""

    def __init__(self, latent_dim: int, size: int) -> None:
        super().__init__()
        self.map = nn.Linear(latent_dim, size)
        self.latent_dim = latent_dim

    def forward(self, z):
        return self.map(z)

    def jacobian(self, z):
        return self.map(z), self.map.weight.expand(*z.shape[:-1], -1, -1)


@pytest.fixture(scope="module", params=[1, 2, 3])
def linear_model(request):
    """White Gaussian noise, one Gaussian for each of two classes: everything is known in closed form."""
    with seeded(3):
        return StellarModel(
            WavelengthGrid(4000.0, 9000.0, 32),
            ("hot", "cool"),
            Encoder(latent_dim=request.param, size=32, hidden=4, channels=(2, 2)),
            Linear(request.param, 32),
            LatentPrior.from_classes([torch.randn(1, request.param) for _ in range(2)], WIDTH),
            NoiseNetwork(kernel=2, channels=2, hidden=2, initial_scale=SIGMA),
            {"name": "linear"},
        )


def known_scales(flux, mask=None):
    mask = np.zeros(flux.shape, bool) if mask is None else mask
    none = np.zeros(flux.shape[:2], bool)
    return ObservationBatch.from_arrays(flux, 0 * flux, mask, none + 1.0, none)


def closed_form(model, flux):
    """Evidence, class posterior, mean and covariance of z of one spectrum, (D,)."""
    a, b = model.generator.map.weight.double(), model.generator.map.bias.double()
    y = torch.as_tensor(flux).double()
    evidence, means, covariances = [], [], []
    for centre, width in zip(model.prior.centres[:, 0].double(), WIDTH.double(), strict=True):
        covariance = SIGMA**2 * torch.eye(len(y)).double() + width**2 * a @ a.T
        law = torch.distributions.MultivariateNormal(a @ centre + b, covariance)
        evidence.append(law.log_prob(y) - math.log(2))
        own = torch.linalg.inv(a.T @ a / SIGMA**2 + torch.eye(len(centre)) / width**2)
        covariances.append(own)
        means.append(own @ (a.T @ (y - b) / SIGMA**2 + centre / width**2))
    evidence = torch.stack(evidence)
    weight = evidence.softmax(0)
    mean = sum(w * m for w, m in zip(weight, means, strict=True))
    spread = zip(weight, covariances, means, strict=True)
    covariance = sum(w * (c + torch.outer(m - mean, m - mean)) for w, c, m in spread)
    return evidence.logsumexp(0), weight, mean, covariance


def test_linear_gaussian_model_in_closed_form(linear_model):
    """Evidence, classes, and moments of z and s to 1e-3."""
    with seeded(1):
        z = torch.randn(5, linear_model.latent_dim)
        flux = (linear_model.generator(z) + SIGMA * torch.randn(5, 32)).numpy()
    exact = quadrature(linear_model, known_scales(flux[:, None]))
    assert (exact.error < 1e-3).all()
    a = linear_model.generator.map.weight.double().numpy()
    for n in range(5):
        evidence, weight, mean, covariance = (x.numpy() for x in closed_form(linear_model, flux[n]))
        std = np.sqrt(covariance.diagonal())
        assert exact.log_evidence[n] == pytest.approx(evidence, abs=1e-3)
        np.testing.assert_allclose(exact.class_probabilities[n], weight, atol=1e-3)
        np.testing.assert_allclose((exact.z_mean[n] - mean) / std, 0, atol=1e-3)
        np.testing.assert_allclose(
            exact.z_cov[n] / np.outer(std, std), covariance / np.outer(std, std), atol=2e-3
        )
        flux_std = np.sqrt(np.einsum("dl,lm,dm->d", a, covariance, a))
        np.testing.assert_allclose(exact.flux_std[n], flux_std, rtol=2e-3)
        clean = linear_model.generator.map(torch.as_tensor(mean).float()).numpy()
        np.testing.assert_allclose((exact.flux_mean[n] - clean) / flux_std, 0, atol=2e-3)


def test_without_a_used_pixel_the_posterior_is_the_prior(toy_model):
    """Evidence 1, and the moments of the kernel density: twelve kernels in each of three classes."""
    mask = np.ones((1, 1, toy_model.grid.size), bool)
    mask[..., 50] = False  # observed, but without its predecessors not used: equation (16)
    exact = quadrature(toy_model, known_scales(np.ones(mask.shape), mask), tolerance=3e-3)
    prior = toy_model.prior
    mean = prior.centres.mean((0, 1))
    np.testing.assert_allclose(exact.log_evidence, 0, atol=3e-3)
    np.testing.assert_allclose(exact.class_probabilities, 1 / 3, atol=3e-3)
    covariance = torch.cov(prior.centres.reshape(-1, 2).T, correction=0)
    covariance = covariance + prior.bandwidth.square().mean() * torch.eye(2)
    np.testing.assert_allclose(exact.z_mean[0], mean, atol=3e-3)
    np.testing.assert_allclose(exact.z_cov[0], covariance, rtol=1e-2, atol=3e-3)


def test_a_free_scale_is_integrated(toy_model, toy_batch):
    """Evidence with a free scale = the integral over fixed scales, each a lattice of its own."""
    star = toy_batch.select([1])
    keep = [0]
    flux, mask = star.flux[:, keep].numpy(), star.mask[:, keep].numpy()
    free = ObservationBatch.from_arrays(flux, 0 * flux, mask, np.ones((1, 1)), np.ones((1, 1), bool))
    whole = quadrature(toy_model, free)

    centre = float(whole.log_scale_mean[0, 0])
    grid = centre + np.linspace(-0.15, 0.15, 31)
    values = []
    for log_scale in grid:
        fixed = known_scales(flux / math.exp(log_scale), mask)
        k, seen = toy_model.noise.kernel, ~mask[0, 0]
        used = seen.copy()
        for back in range(1, k + 1):
            used[k:] &= seen[k - back : -back]
        prior = -0.5 * log_scale**2 - 0.5 * math.log(2 * math.pi)
        values.append(quadrature(toy_model, fixed).log_evidence[0] - used.sum() * log_scale + prior)
    total = np.logaddexp.reduce(values) + math.log(grid[1] - grid[0])
    assert whole.log_evidence[0] == pytest.approx(total, abs=5e-3)


def test_masked_pixels_and_neighbours_have_no_influence(toy_model, toy_batch):
    """A star alone has the result that it has in a batch."""
    whole = quadrature(toy_model, toy_batch.select([0, 1]))
    for n in range(2):
        alone = quadrature(toy_model, toy_batch.select([n]))
        assert alone.log_evidence[0] == pytest.approx(whole.log_evidence[n], abs=2e-3)
        np.testing.assert_allclose(alone.z_mean[0], whole.z_mean[n], atol=1e-3)
        np.testing.assert_allclose(alone.class_probabilities[0], whole.class_probabilities[n], atol=2e-3)


def test_too_many_dimensions_are_refused(toy_model, toy_batch):
    """Four free scales and two latents are no work for a lattice."""
    flux = toy_batch.flux[:1, :1].expand(-1, 4, -1).numpy()
    free = np.ones((1, 4), bool)
    batch = ObservationBatch.from_arrays(flux, 0 * flux, np.zeros(flux.shape, bool), free + 0.0, free)
    with pytest.raises(ValueError, match="6 latents and free scales"):
        quadrature(toy_model, batch)


def test_leaves_no_trace(toy_model, toy_batch):
    """Random states are the caller's."""
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the caller's
    quadrature(toy_model, toy_batch.select([0]))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
