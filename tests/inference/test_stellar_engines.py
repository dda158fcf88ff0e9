"""Laws of the engines on a model with a residual term: one posterior, on paper where it is Gaussian."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch

import bayesspec
from bayesspec.inference.draws import Draws
from bayesspec.inference.importance import importance_draws, log_volume
from bayesspec.inference.map import map_estimate
from bayesspec.inference.newton import find_modes, newton_estimate
from bayesspec.inference.nuts import nuts_draws
from bayesspec.inference.target import Target
from bayesspec.nn.residual import USUAL
from bayesspec.results.diagnostics import PriorTail
from bayesspec.results.summary import posterior_columns
from tests.conftest import first_exposures

OPTIONS = {"draws": 512, "starts": 3}


@pytest.fixture(scope="module")
def four(toy_stellar_batch):
    """Complete, with a gap, of one arm, and of two exposures; a third would only take longer."""
    return first_exposures(toy_stellar_batch, 2)


@pytest.fixture(scope="module")
def found(toy_stellar, four):
    """Weighted draws of the four toy stars, each by itself."""
    draws = [
        importance_draws(toy_stellar, first_exposures(four.select([n]), 1 + n // 3), **OPTIONS)
        for n in range(4)
    ]
    return Draws.concatenate(draws)


@pytest.fixture(scope="module")
def stars(toy_stellar, four):
    """The four toy stars as a user has them, in units of their own."""
    observations = []
    for n, batch in enumerate(four.select([n]) for n in range(4)):
        seen = (~batch.mask[0]).any(-1)
        flux, ivar, mask = (part[0][seen].numpy() for part in (batch.flux, batch.ivar, batch.mask))
        unit, scale = 10.0 * (n + 1), None if batch.free_scale.any() else 10.0 * (n + 1)
        wavelength = toy_stellar.grid.wavelength
        observations.append(
            bayesspec.Observation(
                wavelength, unit * flux, ivar / unit**2, mask, name=f"star {n}", scale=scale
            )
        )
    return observations


@pytest.fixture(scope="module")
def result(toy_stellar, stars):
    return bayesspec.denoise(stars, model=toy_stellar, method="importance", **OPTIONS)


@pytest.fixture
def linear(gaussian_stellar, monkeypatch):
    """The Gaussian model in which sizes and noise are the usual ones: its posterior is one Gaussian."""
    from bayesspec import model as program
    from bayesspec.inference import metric

    for module in (program, metric):
        monkeypatch.setattr(module, "STATED", 0.0)
    model = copy.deepcopy(gaussian_stellar)
    model.residual.spread.zero_()
    model.residual.local_spread.zero_()
    return model


def on_paper(model, star):
    """Mean and standard deviation of s + e, and log evidence, of a star of known scale, by linear algebra."""
    latents = torch.zeros(1, model.latent_dim + model.residual_dim, dtype=torch.float64)
    latents[:, : model.latent_dim] = model.prior.centres[0, 0]
    s, jacobian = (part[0] for part in model.jacobian(latents))
    tau = USUAL * model.residual.discrepancy(*model.split(latents))[0]
    std = torch.ones(latents.shape[-1], dtype=torch.float64)
    std[: model.latent_dim] = model.prior.bandwidth[0]
    prior = (jacobian * std) @ (jacobian * std).T + torch.diag(tau.square())

    e, d = (~star.mask[0]).nonzero(as_tuple=True)
    noise = torch.diag(1 / star.ivar[0, e, d])
    marginal = torch.distributions.MultivariateNormal(s[d], prior[d][:, d] + noise)
    gain = torch.linalg.solve(marginal.covariance_matrix, prior[d]).T
    mean = s + gain @ (star.flux[0, e, d] - s[d])
    covariance = prior - gain @ prior[d]
    return mean, covariance.diagonal().sqrt(), marginal.log_prob(star.flux[0, e, d])


def test_importance_is_the_posterior_on_paper(linear, gaussian_stellar_batch):
    """Mean and width of every pixel of the flux, seen or not, e included; one exposure, a gap, two."""
    batch = first_exposures(gaussian_stellar_batch, 2)
    batch = replace(batch, free_scale=torch.zeros_like(batch.free_scale), free_index=batch.free_index[:, :0])
    single = {name: getattr(batch, name).float() for name in ("flux", "ivar", "unit_flux")}
    model, seen = copy.deepcopy(linear).float(), replace(batch, **single)
    alone = [first_exposures(seen.select([n]), 1 + n // 3) for n in range(len(seen))]
    draws = Draws.concatenate([importance_draws(model, one, draws=1024, starts=3) for one in alone])
    assert (draws.diagnostics["pareto_k"] < 0.7).all()
    columns = posterior_columns(model, seen, draws, PriorTail(model, 0, draws=256))
    error = 1 / np.sqrt(draws.diagnostics["ess_bulk"])
    for n in range(len(batch)):
        mean, std, evidence = (part.numpy() for part in on_paper(linear, batch.select([n])))
        assert (np.abs(columns["model_flux"][n] - mean) < 4 * error[n] * std).all()
        np.testing.assert_allclose(columns["model_flux_std"][n], std, rtol=4 * error[n])
        assert draws.log_evidence[n] == pytest.approx(evidence, abs=4 * error[n])


def test_laplace_s_evidence_is_that_on_paper(linear, gaussian_stellar_batch):
    """Density of the mode times its volume, w and e summed out: exact where the posterior is Gaussian."""
    star = gaussian_stellar_batch.select([0])
    modes, target = find_modes(linear, star, starts=3), Target(linear, star)
    best = modes.log_density[0].argmax()
    volume = log_volume(target, target.laplace(modes.theta[:, best]))[0]
    free = int(target.free.sum())
    laplace = modes.log_density[0, best] + volume + 0.5 * free * np.log(2 * np.pi)
    assert float(laplace) == pytest.approx(float(on_paper(linear, star)[2]), abs=5e-3)


def test_newton_is_the_posterior_s_mean_on_paper(linear, gaussian_stellar_batch):
    """Where it is Gaussian the mode is the mean: of the spectrum, to a fraction of its width."""
    star = gaussian_stellar_batch.select([0])
    estimate = newton_estimate(linear, star, starts=3)
    spectrum, (mean, std, _) = linear.spectrum(estimate.z)[0], on_paper(linear, star)
    tau = USUAL * linear.residual.discrepancy(*linear.split(estimate.z))[0]
    share = tau.square() * star.ivar[0, 0] / (1 + tau.square() * star.ivar[0, 0])
    whole = spectrum + share * (star.flux[0, 0] - spectrum)
    assert ((whole - mean).abs() < 0.05 * std).all()


def test_modes_are_stationary(toy_stellar, toy_stellar_batch):
    """No step promises more than a hundredth of the log density, with w summed out; nor one of w alone."""
    model = copy.deepcopy(toy_stellar).double()
    names = "flux", "ivar", "unit_flux"
    batch = replace(toy_stellar_batch, **{name: getattr(toy_stellar_batch, name).double() for name in names})
    modes = find_modes(model, batch, starts=3)
    star = torch.arange(len(batch))
    theta = modes.theta[star, modes.log_density.argmax(-1)]
    target, metric = Target(model, batch).summed(theta)
    _, gradient = target.gradient(theta)
    assert (promise(metric, gradient) < 0.02).all()

    own = slice(target.core, None)
    _, gradient = Target(model, batch).gradient(theta)
    assert (promise(metric[:, own, own], gradient[:, own]) < 5e-3).all()
    assert (theta[~target.free] == 0).all()


def promise(metric, gradient):
    step = torch.linalg.solve(metric, gradient[..., None])[..., 0]
    return 0.5 * (gradient * step).sum(-1)


def test_autodelta_reaches_no_higher_w(toy_stellar, toy_stellar_batch):
    """Given z, size and scales of the second-order mode, the w that Adam would climb to is no better."""
    modes = newton_estimate(toy_stellar, toy_stellar_batch, starts=3)
    target = Target(toy_stellar, toy_stellar_batch)
    theta = target.join(modes.z, modes.log_scale)
    w = theta[:, target.core :].clone().requires_grad_()
    optimiser = torch.optim.Adam([w], lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        (-target._value(torch.cat([theta[:, : target.core], w], -1)).sum()).backward()
        optimiser.step()
    ended = target.log_density(torch.cat([theta[:, : target.core], w.detach()], -1))
    assert (ended < target.log_density(theta) + 0.02).all()


def test_autodelta_runs(toy_stellar, toy_stellar_batch):
    """The reference engine finds w too; its joint density is no lower than where it began."""
    estimate = map_estimate(toy_stellar, toy_stellar_batch.select([0]), starts=1, steps=30)
    assert estimate.z.shape == (1, toy_stellar.lead_dim + toy_stellar.residual_dim)
    assert (estimate.z[:, toy_stellar.latent_dim :] != 0).all()
    assert estimate.log_density.isfinite().all()


def test_weights_can_be_trusted(found):
    """k below 0.7, and many effective draws, of complete spectra, gaps, one arm and several exposures."""
    assert (found.diagnostics["pareto_k"] < 0.7).all()
    assert (found.diagnostics["ess_bulk"] > 50).all()
    np.testing.assert_allclose(np.exp(found.log_weight).sum(-1), 1)
    assert found.latents.shape[:3] == (4, 1, OPTIONS["draws"])


def test_log_density_is_that_of_the_draws(toy_stellar, four, found):
    """What is recorded beside a draw belongs to that draw, w included."""
    target = Target(toy_stellar, four)
    latents, log_scale = (
        torch.as_tensor(part[:, 0, ::4]).transpose(0, 1) for part in (found.latents, found.log_scale)
    )
    density = target.log_density(target.join(latents, log_scale)).T
    np.testing.assert_allclose(density, found.log_density[:, 0, ::4], rtol=1e-5, atol=1e-2)


def assert_same_draws(some, others):
    """All but a few are the same: rounding decides which of two draws of equal weight is kept."""
    parts = [np.concatenate([d.latents, d.log_scale[..., :1]], -1)[:, 0] for d in (some, others)]
    for mine, yours in zip(*parts, strict=True):
        nearest = np.abs(mine[:, None] - yours).max(-1).min(-1)
        assert (nearest < 0.02).mean() > 0.9
    np.testing.assert_allclose(some.log_evidence, others.log_evidence, atol=0.02)


def test_seeds_reproduce(toy_stellar, four):
    """The same seed, the same draws; another seed, others."""
    batch = first_exposures(four.select([0, 1, 2]), 1)
    first, again, other = (importance_draws(toy_stellar, batch, seed=seed, **OPTIONS) for seed in (0, 0, 1))
    np.testing.assert_array_equal(again.latents, first.latents)
    np.testing.assert_array_equal(again.log_weight, first.log_weight)
    assert not np.isclose(other.latents, first.latents).any(-1).all()


def test_neighbours_do_not_matter(toy_stellar, four, found):
    """In company the same draws, in the places of one that has another number of exposures."""
    order = [3, 1]
    mixed = importance_draws(toy_stellar, four.select(order), **OPTIONS)
    np.testing.assert_allclose(mixed.log_evidence, found.log_evidence[order], atol=0.02)
    assert_same_draws(mixed, found.select(np.array(order)))


def test_result_has_the_residual_s_latents(toy_stellar, result):
    """x and w beside z; means of the draws; h among them."""
    star, components = len(result), toy_stellar.residual_dim
    assert result.w.shape == (star, components)
    assert result.latents.shape == (star, toy_stellar.lead_dim + components)
    assert result.x.shape == result.passage_std.shape == (star, toy_stellar.passage.dim)
    weight = np.exp(result.draws.log_weight[:, 0])
    np.testing.assert_allclose(result.w, np.einsum("ns,nsr->nr", weight, result.draws.w[:, 0]), atol=1e-4)
    np.testing.assert_array_equal(result[2].w, result.w[2:3])


def test_flux_has_a_width_everywhere(toy_stellar, stars, result):
    """In a gap, too, where it is wider than if the same spectrum had no gap."""
    assert np.isfinite(result.flux).all()
    assert (result.flux_std > 0).all()
    gap = result.observed_mask[1].all(0)
    assert gap.sum() == 10
    exposure = stars[1].exposures[0]
    flux, ivar = np.where(gap, result.flux[1], exposure.flux), np.median(exposure.ivar[~gap])
    filled = bayesspec.Observation(exposure.wavelength, flux, np.where(gap, ivar, exposure.ivar), scale=20.0)
    whole = bayesspec.denoise(filled, model=toy_stellar, method="importance", **OPTIONS)
    assert (whole.flux_std[0][gap] < result.flux_std[1][gap]).all()


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_are_those_of_the_posterior(result, level):
    """The mean is inside, and the width is that of a normal distribution, nearly, at the typical pixel."""
    from scipy.stats import norm

    found = result if level == 0.9 else result[1]  # of all of them it takes long
    lower, upper = found.interval(level)
    assert ((lower < found.flux) & (found.flux < upper)).mean() > 0.99
    ratio = (upper - lower) / (2 * norm.ppf(0.5 + level / 2) * found.flux_std)
    np.testing.assert_allclose(np.median(ratio, axis=-1), 1, atol=0.08)


def test_map_takes_from_the_data_what_the_noise_leaves(toy_stellar, stars):
    """The spectrum of the mode with e: closer to the data than without, the same in a gap."""
    point = bayesspec.denoise(stars, model=toy_stellar, method="map")
    assert point.flux_std is None
    assert point.w.shape == (4, toy_stellar.residual_dim)
    with torch.no_grad():
        without = toy_stellar.spectrum(torch.as_tensor(point.latents)).numpy()
    scale = point.scale[:, :1]
    data, seen = point.observed_flux[:, 0] / scale, ~point.observed_mask[:, 0]
    away = np.where(seen, np.abs(data - without), 0).sum(-1)
    assert (np.where(seen, np.abs(data - point.model_flux), 0).sum(-1) < away).all()
    unseen = point.observed_mask.all(1)
    np.testing.assert_allclose(point.model_flux[unseen], without[unseen], rtol=1e-5, atol=1e-6)


def test_arviz_holds_w(toy_stellar, result):
    """With its own dimension and coordinates; clean spectra with e have the width of the flux."""
    groups = result.to_arviz(1)
    w = groups["posterior"]["w"]
    assert w.dims == ("chain", "draw", "component")
    assert w.shape == (4, OPTIONS["draws"] // 4, toy_stellar.residual.components)
    passage = groups["posterior"]["passage"]
    assert passage.dims == ("chain", "draw", "effect")
    assert tuple(passage["effect"].values) == toy_stellar.passage.names
    np.testing.assert_allclose(passage.std(("chain", "draw")), result.passage_std[1], rtol=0.1)
    np.testing.assert_array_equal(w["component"], np.arange(toy_stellar.residual.components))
    clean = groups["predictions"]["flux"].values[0] * result.unit_flux[1]
    ratio = clean.std(0) / result.flux_std[1]
    assert np.median(ratio) == pytest.approx(1, abs=0.1)


def test_leaves_no_trace(toy_stellar, stars):
    """Parameter store, random states, default dtype, threads and gradient mode are the caller's."""
    pyro.get_param_store().clear()
    pyro.param("mine", torch.ones(2))
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the caller's
    others = torch.get_default_dtype(), torch.get_num_threads()
    result = bayesspec.denoise(stars[:1], model=toy_stellar, method="importance", draws=64)
    result.interval()
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    assert (torch.get_default_dtype(), torch.get_num_threads()) == others
    assert torch.is_grad_enabled()
    assert not any(parameter.requires_grad for parameter in toy_stellar.parameters())
    pyro.get_param_store().clear()


def test_order_of_the_stars_is_the_caller_s(toy_stellar, stars, result):
    """Denoised in another order: the same results in that order."""
    order = [3, 1, 0, 2]
    mixed = bayesspec.denoise([stars[n] for n in order], model=toy_stellar, method="importance", **OPTIONS)
    assert mixed.names == tuple(f"star {n}" for n in order)
    # Rounding decides which of two draws of equal weight is kept.
    assert (np.abs(mixed.flux - result.flux[order]) < 0.1 * result.flux_std[order]).all()
    np.testing.assert_allclose(mixed.flux_std, result.flux_std[order], rtol=0.1)


@pytest.mark.slow
def test_importance_agrees_with_nuts(toy_stellar, toy_stellar_batch):
    """Means and widths of the flux of a complete star and one with a gap, within Monte Carlo error."""
    batch = toy_stellar_batch.select([0, 1])
    weighted = importance_draws(toy_stellar, batch, draws=4096, starts=3)
    chains = nuts_draws(toy_stellar, batch, chains=3, warmup=200, draws=500, seed=2)
    assert (chains.diagnostics["r_hat"] < 1.03).all()
    assert (weighted.diagnostics["pareto_k"] < 0.7).all()
    rarity = PriorTail(toy_stellar, 0, draws=256)
    one, other = (posterior_columns(toy_stellar, batch, draws, rarity) for draws in (weighted, chains))
    ess = np.minimum(weighted.diagnostics["ess_bulk"], chains.diagnostics["ess_bulk"])
    error = np.sqrt(2 / ess)[:, None]
    std = one["model_flux_std"]
    assert (np.abs(one["model_flux"] - other["model_flux"]) < 4 * error * std).all()
    np.testing.assert_allclose(other["model_flux_std"] / std, 1, atol=4 * error.max())
    np.testing.assert_allclose(one["class_probabilities"], other["class_probabilities"], atol=4 * error.max())
