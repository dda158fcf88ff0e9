"""Laws of the arithmetic: single precision is enough, and nothing far out is NaN."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import bayesspec
from bayesspec import demo
from bayesspec.bundle import shipped
from bayesspec.inference.target import Target
from tests.conftest import first_exposures

METHODS = {
    "map": {"starts": 2},
    "laplace": {"starts": 2, "draws": 512},
    "importance": {"starts": 2, "draws": 512, "rounds": 1},
}


@pytest.fixture(
    scope="module", params=["toy_model", "toy_stellar", pytest.param("stellar", marks=pytest.mark.slow)]
)
def model(request):
    if request.param != "stellar":
        return request.getfixturevalue(request.param)
    if "stellar" not in shipped():
        pytest.skip("needs the trained bundle stellar")
    return bayesspec.load_model("stellar")


@pytest.fixture(scope="module")
def stars(model):
    """One whole, one with a gap, both with noise of which the errors are stated."""
    rng = np.random.default_rng(0)
    wavelength, size = model.grid.wavelength, model.grid.size
    if size == 2048:
        truth = demo.on_grid(demo.example_star(), model.grid)
    else:
        with torch.no_grad():
            truth = model.generator(model.prior.centres[0, 0]).numpy()
    sigma = 0.1 * np.abs(truth).mean()
    flux = truth + sigma * rng.standard_normal((2, size))
    gap = np.zeros((2, size), bool)
    gap[1, size // 4 : size // 2] = True
    ivar = np.full(size, sigma**-2)
    return [bayesspec.Observation(wavelength, f, ivar, mask) for f, mask in zip(flux, gap, strict=True)]


@pytest.mark.parametrize("method", METHODS)
def test_single_precision_is_enough(model, stars, method):
    """All that is reported is the same in double precision, to a small share of its own error."""
    double = copy.deepcopy(model).double()
    single, other = (
        bayesspec.denoise(stars, model=one, method=method, **METHODS[method]) for one in (model, double)
    )
    width = bayesspec.denoise(stars, model=model, method="laplace", starts=2).flux_std
    # Rounding decides which of two draws of equal weight is kept: means of draws differ by more than a mode.
    allowed = 0.1 if method == "importance" else 0.02
    assert (np.abs(single.flux - other.flux) < allowed * width).all()
    np.testing.assert_allclose(single.class_probabilities, other.class_probabilities, atol=allowed)
    if method != "map":
        assert np.isfinite(other.flux_draws(20)).all()
        np.testing.assert_allclose(single.flux_std, other.flux_std, rtol=allowed)
    if single.x.size:
        assert (np.abs(single.x - other.x) < allowed).all()


FAR = (3.0, 30.0, 1e3, 1e6)
"""Distances from what is usual, in prior standard deviations."""


@pytest.mark.parametrize("distance", FAR)
def test_the_prior_is_finite_far_from_all_stars(model, distance):
    """The density of all classes, falling with the distance, and its gradient, which leads back."""
    rng = torch.Generator().manual_seed(0)
    centre, width = model.prior.centres[:, 0], model.prior.bandwidth.reshape(len(model.classes), -1)
    way = torch.nn.functional.normalize(torch.randn(centre.shape, generator=rng), dim=-1)
    z = (centre + distance * width * way).requires_grad_()
    density = model.prior.log_prob_all(z)
    assert density.isfinite().all()
    (gradient,) = torch.autograd.grad(density.logsumexp(-1).sum(), z)
    assert gradient.isfinite().all()
    if distance > 100:
        away = z.detach() - centre
        assert ((gradient * away).sum(-1) < 0).all()
        assert (model.prior.log_prob_all(z.detach() + away) < density).all()


@pytest.mark.parametrize("distance", [-30.0, -5.0, 5.0, 30.0])
def test_velocity_dust_and_calibration_may_be_extreme(model, distance):
    """Each by itself, and all at once: spectra and densities are finite, and so are the gradients."""
    if model.passage is None:
        pytest.skip("has no passage")
    effects = len(model.passage.names)
    x = distance * torch.cat([torch.eye(effects), torch.ones(1, effects)])
    latents = torch.cat(
        [
            model.prior.centres[0, 0].expand(len(x), -1),
            x,
            torch.zeros(len(x), model.residual_dim),
        ],
        dim=-1,
    ).requires_grad_()
    spectrum = model.spectrum(latents)
    assert spectrum.isfinite().all()
    density = model.log_joint_classes(latents)
    (gradient,) = torch.autograd.grad(density.sum() + spectrum.square().mean(), latents)
    assert density.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("height", [1e2, 1e4, 1e6])
def test_huge_residuals_have_a_finite_density(model, stars, height):
    """One pixel, or all of them, far from any spectrum of the model: value, gradient and metric."""
    for pixels in (slice(40, 41), slice(None)):
        flux = stars[0].exposures[0].flux.copy()
        flux[pixels] += height * np.median(np.abs(flux))
        exposure = stars[0].exposures[0]
        star = bayesspec.Observation(exposure.wavelength, flux, exposure.ivar, scale=1.0)
        batch = model.batch(star)
        target = Target(model, batch)
        theta = torch.zeros(1, target.dim)
        theta[:, : model.latent_dim] = model.prior.centres[0, 0]
        value, gradient = target.gradient(theta)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        torch.linalg.cholesky(target.metric(theta))


def test_one_pixel_is_enough_for_laplaces_factor(toy_stellar, toy_stellar_batch):
    """All but one are masked: the factor exists, finite and with a positive diagonal."""
    batch = first_exposures(toy_stellar_batch.select([0]))
    mask = torch.ones_like(batch.mask)
    mask[..., 40] = False
    target = Target(toy_stellar, replace(batch, mask=mask))
    theta = torch.zeros(1, target.dim)
    theta[:, : toy_stellar.latent_dim] = toy_stellar.prior.centres[0, 0]
    factor = target.laplace(theta)
    assert factor.isfinite().all()
    assert (factor.diagonal(dim1=-2, dim2=-1) > 0).all()
