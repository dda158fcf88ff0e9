"""Whitened coordinates change how a tool moves, and nothing of what the program says."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, TraceEnum_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoNormal,
)
from pyro.infer.autoguide.initialization import init_to_median, init_to_uniform
from pyro.optim import ClippedAdam

from bayesspec.inference.importance import importance_draws
from bayesspec.inference.nuts import enumerated_log_density
from bayesspec.inference.target import Target
from bayesspec.inference.whiten import Whitened
from bayesspec.runtime import seeded
from tests.conftest import first_exposures


@pytest.fixture(scope="module")
def star(toy_stellar_batch):
    """One noisy star of one exposure with a gap: its posterior is wide enough to be sampled quickly."""
    star = toy_stellar_batch.select([1])
    names = ("flux", "ivar", "mask", "unit_flux", "free_scale")
    star = star.with_tensors(**{name: getattr(star, name)[:, :1] for name in names})
    return replace(star, ivar=0.05 * star.ivar)


@pytest.fixture(scope="module")
def white(toy_stellar, star):
    return Whitened.at_modes(toy_stellar, star)


@pytest.fixture(scope="module")
def many(toy_stellar, toy_stellar_batch):
    """Stars of one arm and of two exposures, and their coordinates."""
    batch = first_exposures(toy_stellar_batch.select([2, 3]), 2)
    return batch, Whitened.at_modes(toy_stellar, batch)


def coordinates(white, batch, seed=0):
    rng = torch.Generator().manual_seed(seed)
    u = {
        f"{name}_white": torch.randn(len(batch), own.stop - own.start, generator=rng)
        for name, own in white.columns.items()
    }
    free = u["log_scale_white"][tuple(batch.free_index)]
    return {**u, "log_scale_white": free} if len(free) else {k: v for k, v in u.items() if k[0] != "l"}


def test_map_is_linear_with_laplaces_covariance(toy_stellar, many):
    """Of many stars at once: sites are mode + L u, L L^T Laplace's covariance, in the sites' units."""
    model, (batch, white) = toy_stellar, many
    assert torch.equal(white.factor, white.factor.tril())
    u = coordinates(white, batch)
    with seeded(0):
        trace = poutine.trace(poutine.condition(poutine.reparam(model, white), u)).get_trace(batch)
    theta = white.centre.clone()
    order = torch.cat(
        [white._scattered(value) if name == "log_scale_white" else value for name, value in u.items()],
        dim=-1,
    )
    theta = theta + (white.factor @ order[..., None])[..., 0]
    for name, own in white.columns.items():
        value = trace.nodes[name]["value"]
        expected = theta[:, own]
        if name == "log_scale":
            expected = expected[tuple(batch.free_index)]
        torch.testing.assert_close(value.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_density_is_the_programs_and_the_volume(toy_stellar, many):
    model, (batch, white) = toy_stellar, many
    u = coordinates(white, batch, seed=1)
    program = poutine.condition(poutine.reparam(model, white), u)
    with pyro.get_param_store().scope():
        empty = AutoDelta(poutine.block(program, hide=["C"]))
        found = -TraceEnum_ELBO(max_plate_nesting=1).loss(program, empty, batch)
    with seeded(0):
        trace = poutine.trace(program).get_trace(batch)
    sites = {name: trace.nodes[name]["value"] for name in white.columns}
    log_scale = torch.zeros_like(batch.unit_flux).index_put(tuple(batch.free_index), sites["log_scale"])
    theta = Target(model, batch).join(model.of_sites(sites), log_scale)
    expected = (
        enumerated_log_density(model, batch, theta).sum() - len(batch) * model.passage.widths.log().sum()
    )
    pinned = torch.cat(
        [batch.free_scale, torch.ones_like(white.centre[:, batch.free_scale.shape[1] :]) > 0], -1
    )
    volume = torch.where(pinned, white.factor.diagonal(dim1=-2, dim2=-1).log(), 0.0).sum()
    torch.testing.assert_close(torch.tensor(found), expected + volume, rtol=1e-4, atol=1e-2)


def test_a_known_site_keeps_its_value_and_moves_the_others(toy_stellar, star, white):
    """Velocity is conditioned inside: no coordinate of its own, and z, q, w as the covariance has them."""
    known = torch.tensor([30.0])
    program = poutine.reparam(poutine.condition(toy_stellar, {"v": known}), white)
    with seeded(0):
        trace = poutine.trace(program).get_trace(star)
    assert "v_white" not in trace.nodes
    assert torch.equal(trace.nodes["v"]["value"], known)
    assert torch.isfinite(trace.log_prob_sum())
    own, after = white.columns["v"], white.columns["q"]
    expected = (known - white.centre[:, own.start]) / white.factor[:, own.start, own.start]
    u = {n: trace.nodes[f"{n}_white"]["value"] for n in ("z", "q")}
    if "log_scale_white" in trace.nodes:
        u["log_scale"] = white._scattered(trace.nodes["log_scale_white"]["value"])
    else:
        u["log_scale"] = torch.zeros_like(star.unit_flux)
    before = torch.cat([u["log_scale"], u["z"]], dim=-1)
    mean = white.centre[:, own.start] + (white.factor[:, own.start, : own.start] * before).sum(-1)
    own_u = (known - mean) / white.factor[:, own.start, own.start]
    vector = torch.cat([before, own_u[:, None], u["q"]], dim=-1)
    expected = white.centre[:, after] + (white.factor[:, after, : after.stop] @ vector[..., None])[..., 0]
    torch.testing.assert_close(trace.nodes["q"]["value"], expected, rtol=1e-4, atol=1e-5)


def test_stock_autodelta_ends_at_the_mode(toy_stellar, star, white):
    """From two standard deviations away in all coordinates, by Adam: not below the climb's end."""
    program = poutine.reparam(toy_stellar, white)
    elbo, away = TraceEnum_ELBO(max_plate_nesting=1), partial(init_to_uniform, radius=2.0)
    with pyro.get_param_store().scope(), seeded(0):
        at_mode = AutoDelta(poutine.block(program, hide=["C"]), init_loc_fn=init_to_median)
        best = elbo.loss(program, at_mode, star)
        guide = AutoDelta(poutine.block(program, hide=["C"]), init_loc_fn=away)
    with pyro.get_param_store().scope(), seeded(0):
        svi = SVI(program, guide, ClippedAdam({"lr": 0.15, "lrd": 0.97}), elbo)
        losses = [svi.step(star) for _ in range(200)]
    assert losses[0] > best + 5
    assert losses[-1] < best + 0.1


@pytest.mark.parametrize("kind", [AutoNormal, AutoLowRankMultivariateNormal, AutoLaplaceApproximation])
def test_stock_guides_work(toy_stellar, star, white, kind):
    """Each begins near the posterior, gets better, and makes draws of the clean spectrum."""
    program = poutine.reparam(toy_stellar, white)
    with pyro.get_param_store().scope(), seeded(0):
        guide = kind(poutine.block(program, hide=["C"]))
        svi = SVI(program, guide, ClippedAdam({"lr": 0.02}), TraceEnum_ELBO(max_plate_nesting=1))
        losses = torch.tensor([svi.step(star) for _ in range(60)])
        if kind is AutoLaplaceApproximation:
            guide = guide.laplace_approximation(star)
        draws = Predictive(poutine.reparam(toy_stellar.with_flux, white), guide=guide, num_samples=3)(star)
    assert losses[-30:].mean() <= losses[:30].mean() + 1.0
    assert draws["flux"].shape[-1] == star.flux.shape[-1]
    assert draws["flux"].isfinite().all()


@pytest.mark.slow
def test_stock_nuts_is_the_posterior(toy_stellar, star, white):
    """Means and widths of every latent, by stock NUTS and by importance sampling."""
    found = importance_draws(toy_stellar, star, draws=8192)
    latents = torch.as_tensor(found.resample(4000, seed=1)[0][0])
    sites = ("z", "v", "q", "w")
    with pyro.get_param_store().scope(), seeded(0):
        kernel = NUTS(poutine.reparam(toy_stellar, white), max_tree_depth=6)
        chain = MCMC(kernel, 1200, 200, disable_progbar=True)
        chain.run(star)
        program = poutine.reparam(toy_stellar.with_flux, white)
        draws = Predictive(program, chain.get_samples(), return_sites=sites)(star)
    sampled = toy_stellar.of_sites({name: draws[name][:, 0] for name in sites})
    mean, std = latents.mean(0), latents.std(0)
    assert ((sampled.mean(0) - mean).abs() / std).max() < 0.25
    assert (sampled.std(0) / std).log().abs().max() < 0.25
