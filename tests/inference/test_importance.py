"""Laws of importance sampling: it agrees with the lattice, and says when it cannot be trusted."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch

from bayesspec.batch import ObservationBatch
from bayesspec.distributions import NoiseFlow
from bayesspec.inference.convergence import pareto_smooth
from bayesspec.inference.importance import effective, importance_draws, laplace_mixture, thin
from bayesspec.inference.newton import find_modes
from bayesspec.inference.quadrature import quadrature
from bayesspec.inference.target import Target
from bayesspec.runtime import seeded
from tests.conftest import first_exposures


def moments(model, draws):
    """Means and standard deviations of z, class probabilities, and the Monte Carlo error in sigma."""
    weight, z = np.exp(draws.log_weight[:, 0]), draws.z[:, 0].astype(float)
    mean = np.einsum("ns,nsl->nl", weight, z)
    std = np.sqrt(np.einsum("ns,nsl->nl", weight, (z - mean[:, None]) ** 2))
    by_class = model.log_joint_classes(torch.as_tensor(draws.z[:, 0])).softmax(-1).numpy()
    return mean, std, np.einsum("ns,nsk->nk", weight, by_class), 1 / np.sqrt(draws.diagnostics["ess_bulk"])


def assert_agrees(model, draws, exact, sigmas=4.0):
    """Everything that the lattice knows, within the draws' Monte Carlo error."""
    mean, std, classes, error = moments(model, draws)
    true_std = np.sqrt(np.diagonal(exact.z_cov, axis1=1, axis2=2))
    allowed = sigmas * error[:, None] + 2e-3
    assert (np.abs(mean - exact.z_mean) < allowed * true_std).all()
    assert (np.abs(std / true_std - 1) < allowed).all()
    assert (np.abs(classes - exact.class_probabilities) < 0.5 * allowed).all()
    assert (np.abs(draws.log_evidence - exact.log_evidence) < allowed[:, 0]).all()


def few_scales(batch):
    """Stars whose latents and free scales a lattice can hold."""
    return batch.select(np.flatnonzero(batch.free_scale.sum(-1).numpy() <= 2))


def test_agrees_with_the_lattice(toy_model, toy_batch):
    """Evidence, classes, means and widths, for complete spectra, gaps, single arms and several exposures."""
    batch = few_scales(toy_batch)
    draws = importance_draws(toy_model, batch, draws=2048, starts=3)
    assert (draws.diagnostics["pareto_k"] < 0.7).all()
    assert_agrees(toy_model, draws, quadrature(toy_model, batch))


def test_agrees_where_the_noise_hides_the_star(toy_model, toy_batch):
    """Ten observed pixels: the posterior is nearly the prior, with a mode for every kernel."""
    mask = toy_batch.mask.clone()
    mask[..., 10:] = True
    batch = ObservationBatch.from_arrays(
        toy_batch.flux[:, :1].numpy(),
        toy_batch.ivar[:, :1].numpy(),
        mask[:, :1].numpy(),
        np.ones((4, 1)),
        np.zeros((4, 1), bool),
    )
    draws = importance_draws(toy_model, batch, draws=4096, starts=3)
    assert (draws.diagnostics["pareto_k"] < 0.7).all()
    assert_agrees(toy_model, draws, quadrature(toy_model, batch))


def test_evidence_follows_bayes_from_exposure_to_exposure(toy_model):
    """p(y1, y2) = p(y1) E[p(y2 | z)], the mean over the posterior given y1; means move likewise."""
    with seeded(4):
        z = toy_model.prior.centres[0, :1]
        s = toy_model.generator(z)[:, None].expand(-1, 2, -1)
        flux = NoiseFlow(s, toy_model.noise).sample().numpy()

    def given(*exposures):
        y = flux[:, list(exposures)]
        none = np.zeros(y.shape, bool)
        return ObservationBatch.from_arrays(y, 0 * y, none, none[..., 0] + 1.0, none[..., 0])

    first, both = (importance_draws(toy_model, b, draws=4096, starts=3) for b in (given(0), given(0, 1)))
    points = torch.as_tensor(first.z[:, 0]).transpose(0, 1)
    with torch.no_grad():
        second = toy_model.log_likelihood(given(1), points, torch.zeros(len(points), 1, 1))
    log_weight = first.log_weight[0, 0] + second[:, 0].double().numpy()
    step = np.logaddexp.reduce(log_weight)
    weight = np.exp(log_weight - step)
    error = np.sqrt(np.square(weight).sum())
    assert both.log_evidence[0] == pytest.approx(first.log_evidence[0] + step, abs=4 * error + 0.02)
    mean, std, _, _ = moments(toy_model, both)
    assert (np.abs(weight @ first.z[0, 0] - mean[0]) < (4 * error + 0.05) * std[0]).all()


def test_more_exposures_tighten(toy_model):
    """Sixteen exposures of a star: a quarter of the width that one leaves, where the prior is no help."""
    with seeded(8):
        z = toy_model.prior.centres[:, 0]
        s = toy_model.generator(z)[:, None].expand(-1, 16, -1)
        flux = NoiseFlow(s, toy_model.noise).sample().numpy()
    widths = []
    for count in (1, 16):
        y = flux[:, :count]
        none = np.zeros(y.shape, bool)
        batch = ObservationBatch.from_arrays(y, 0 * y, none, none[..., 0] + 1.0, none[..., 0])
        widths.append(moments(toy_model, importance_draws(toy_model, batch, starts=3))[1])
    ratio = widths[1] / widths[0]
    assert (ratio < 0.5).all()
    assert (ratio > 0.2).all()


def test_seeds_reproduce_and_neighbours_do_not_matter(toy_model, toy_batch):
    """The same seed gives the same draws, in any order and company; another seed gives others."""
    order = [2, 0, 3, 1]
    first, again = (importance_draws(toy_model, toy_batch, draws=256, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.z, again.z)
    np.testing.assert_array_equal(first.log_weight, again.log_weight)

    mixed = importance_draws(toy_model, toy_batch.select(order), draws=256, seed=5)
    alone = importance_draws(toy_model, toy_batch.select([1]), draws=256, seed=5)
    for whole, other in ((first.select(np.array(order)), mixed), (first.select(np.array([1])), alone)):
        np.testing.assert_allclose(other.z, whole.z, atol=5e-3)
        np.testing.assert_allclose(other.log_evidence, whole.log_evidence, atol=0.02)
    other = importance_draws(toy_model, toy_batch, draws=256, seed=6)
    assert not np.isclose(other.z, first.z).all()


def test_scales_that_are_known_stay(toy_model, toy_batch):
    """log scale 0 in every draw, and one that varies where it is free."""
    draws = importance_draws(toy_model, toy_batch, draws=128)
    free = toy_batch.free_scale.numpy()
    spread = draws.log_scale[:, 0].std(1)
    assert (spread[free] > 0).all()
    assert (draws.log_scale.transpose(0, 3, 1, 2)[~free] == 0).all()


def test_masked_pixels_have_no_influence(toy_model, toy_batch):
    """NaN under the mask gives the same draws to the last bit."""
    spoiled = replace(toy_batch, flux=torch.where(toy_batch.mask, torch.nan, toy_batch.flux))
    clean, dirty = (importance_draws(toy_model, b, draws=128) for b in (toy_batch, spoiled))
    np.testing.assert_array_equal(clean.z, dirty.z)
    np.testing.assert_array_equal(clean.log_weight, dirty.log_weight)


def test_leaves_no_trace(toy_model, toy_batch):
    """Random states are the caller's, and nothing has a graph."""
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the caller's
    importance_draws(toy_model, toy_batch, draws=64)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert not any(parameter.requires_grad for parameter in toy_model.parameters())


@pytest.fixture
def narrow(toy_model, toy_batch):
    """A density, Laplace's mixture for it, and one that is ten times too narrow."""
    target = Target(toy_model, toy_batch.select([0]))
    good = laplace_mixture(target, find_modes(toy_model, target.batch, starts=3))
    return target, good, replace(good, factor=0.1 * good.factor)


def weigh(target, mixture, seed=0, draws=1024):
    theta = mixture.sample(draws, seed)
    ratio = (target.log_density(theta) - mixture.log_prob(theta)).T.double().numpy()
    return theta, *pareto_smooth(ratio)


def test_a_bad_proposal_is_found_out(narrow):
    """k tells a proposal that is too narrow from a good one."""
    target, good, bad = narrow
    assert weigh(target, good)[2] < 0.5
    assert weigh(target, bad)[2] > 0.7


def test_adaptation_mends_a_bad_proposal(narrow):
    """Fitted to its own weighted draws a few times, it is as good as Laplace's."""
    target, good, mixture = narrow
    for seed in range(6):
        theta, log_weight, _ = weigh(target, mixture, seed)
        mixture = mixture.adapted(theta, torch.as_tensor(np.exp(log_weight).T.copy()).to(theta))
    _, log_weight, k = weigh(target, mixture, 9)
    assert k < 0.7
    reference = np.exp(2 * weigh(target, good, 9)[1]).sum()
    assert np.exp(2 * log_weight).sum() < 2 * reference


def test_components_are_those_that_some_star_has(toy_model, toy_batch):
    """However many climbs there were; a star has the same ones whatever stands beside it."""
    target = Target(toy_model, toy_batch)
    few, many = (laplace_mixture(target, find_modes(toy_model, toy_batch, starts=n)) for n in (3, 12))
    for mixture in (few, many):
        count = (~torch.isinf(mixture.log_weight)).sum(-1)
        assert mixture.log_weight.shape[1] == int(count.max())
    for n in range(len(toy_batch)):
        alone = Target(toy_model, toy_batch.select([n]))
        found = laplace_mixture(alone, find_modes(toy_model, alone.batch, starts=3))
        own = few.select(torch.tensor([n]))
        theta = found.sample(50, seed=0)
        torch.testing.assert_close(own.log_prob(theta), found.log_prob(theta), atol=2e-2, rtol=1e-4)


def test_rounds_are_weighed_together(toy_stellar, toy_stellar_batch, monkeypatch):
    """A star whose draws are effectively few is refined; evidence and means stay, effective draws grow."""
    import bayesspec.inference.importance as module

    batch = first_exposures(toy_stellar_batch.select([0, 1, 2]))
    once = importance_draws(toy_stellar, batch, draws=2048, starts=3, rounds=0)
    monkeypatch.setattr(module, "ENOUGH", 2.0)
    several = importance_draws(toy_stellar, batch, draws=512, starts=3, rounds=3)
    assert several.log_density.shape == (len(once), 1, 512)
    assert several.diagnostics["ess_bulk"].sum() > 1.1 * once.diagnostics["ess_bulk"].sum() / 4
    error = np.sqrt(1 / once.diagnostics["ess_bulk"] + 1 / several.diagnostics["ess_bulk"])
    assert (np.abs(several.log_evidence - once.log_evidence) < 4 * error).all()
    for n in range(len(once)):
        weights = [np.exp(draws.log_weight[n, 0]) for draws in (once, several)]
        means = [weight @ draws.z[n, 0] for weight, draws in zip(weights, (once, several), strict=True)]
        std = np.sqrt(weights[0] @ (once.z[n, 0] - means[0]) ** 2)
        assert (np.abs(means[0] - means[1]) < 5 * error[n] * std).all()


def test_thinning_keeps_the_heavy_and_the_mean():
    """Draws heavier than the level keep their share; means over many thinnings are those of all draws."""
    rng = np.random.default_rng(3)
    log_weight = rng.standard_normal(400) * 1.5
    log_weight -= np.logaddexp.reduce(log_weight)
    value = rng.standard_normal(400) + np.arange(400) / 200
    whole, means = np.exp(log_weight) @ value, []
    for seed in range(300):
        rows, kept = thin(log_weight, 100, seed)
        assert len(np.unique(rows)) == 100
        assert np.exp(kept).sum() == pytest.approx(1)
        heavy = log_weight[rows] > kept.min() + 0.01
        np.testing.assert_allclose(kept[heavy], log_weight[rows][heavy], atol=0.02)
        assert effective(kept) <= effective(log_weight) * 1.02
        means.append(np.exp(kept) @ value[rows])
    assert np.mean(means) == pytest.approx(whole, abs=4 * np.std(means) / np.sqrt(300) + 5e-3)
    rows, kept = thin(log_weight, 400, 0)
    np.testing.assert_array_equal(rows, np.arange(400))
    np.testing.assert_array_equal(kept, log_weight)


def test_runs_on_a_device_without_a_cpu_tensor_in_the_way(toy_model, toy_batch, only_meta):
    """The density of many draws of many stars touches no tensor but those of the device it is on."""
    target = Target(copy.deepcopy(toy_model).to("meta"), toy_batch.to("meta"))
    theta = torch.zeros(50, len(toy_batch), target.dim, device="meta")
    with only_meta(), pyro.validation_enabled(False):
        assert target.log_density(theta).shape == (50, len(toy_batch))


@pytest.mark.slow
def test_agrees_with_the_lattice_on_real_spectra(real_batch):
    """At least 50 real spectra of all ten classes: evidence, classes, means and widths of each."""
    from bayesspec.bundle import load_model

    model, (batch, klass) = load_model("kang2021"), real_batch
    draws = importance_draws(model, batch)
    compared = []
    for n in range(len(batch)):
        exact = quadrature(model, batch.select([n]), tolerance=2e-3, max_points=100_000)
        if exact.error[0] < 5e-3:
            compared.append(klass[n])
            assert_agrees(model, draws.select(np.array([n])), exact)
    assert len(compared) >= 50
    assert set(compared) == set(range(10))
    assert (draws.diagnostics["pareto_k"] < 0.7).mean() > 0.95
