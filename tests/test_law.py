"""The law of the package: what `denoise` reports is the posterior of the Pyro program, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive

from bayesspec.benchmark.sbc import simulate
from bayesspec.bundle import load_model
from bayesspec.inference.importance import importance_draws
from bayesspec.inference.whiten import Whitened
from bayesspec.results.diagnostics import PriorTail
from bayesspec.results.spectra import Posterior, flux_draws
from bayesspec.results.summary import posterior_columns
from bayesspec.runtime import seeded

DRAWS = 400


def by_hand(model, batch, latents, log_scale):
    """Draws of the program's site `flux`, (S, D), given draws of all other sites, of one star."""
    many = batch.select([0] * len(latents))
    sites = model.sites(latents, log_scale, many)
    with seeded(1), torch.no_grad():
        return poutine.condition(model.with_flux, sites)(many)


def same(reported, drawn, std, count):
    """A mean of `count` draws, to five of its standard errors in all but a few of many pixels."""
    error = (reported - drawn).abs() / (std / count**0.5)
    assert error.quantile(0.95) < 5
    assert error.mean() < 1.8


@pytest.fixture(params=["complete", "gap", "one arm", "two exposures"])
def star(request, toy_stellar_batch):
    kinds = ["complete", "gap", "one arm", "two exposures"]
    one = toy_stellar_batch.select([kinds.index(request.param)])
    depth = 2 if request.param == "two exposures" else 1
    names = ("flux", "ivar", "mask", "unit_flux", "free_scale")
    return one.with_tensors(**{name: getattr(one, name)[:, :depth] for name in names})


def test_what_is_reported_is_the_programs_flux(toy_stellar, star):
    """Mean, width and quantiles, seen and unseen, of weighted draws and of the program run on these."""
    assert_reported(toy_stellar, star, draws=1024)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kang2021", "stellar"])
def test_the_shipped_models_keep_the_law(name):
    """The same of a star of the shipped model with a gap."""
    model = load_model(name)
    mask = np.zeros((1, 1, model.grid.size), bool)
    mask[..., 700:1000] = True
    star, _ = simulate(model, mask, seed=2)
    assert_reported(model, star)


def assert_reported(model, star, draws=2048):
    draws = importance_draws(model, star, draws=draws)
    columns = posterior_columns(model, star, draws, PriorTail(model, 0, draws=256))
    latents, log_scale = (torch.as_tensor(part[0]) for part in draws.resample(DRAWS, seed=3))
    flux = by_hand(model, star, latents, log_scale)
    scale = star.unit_flux[0] * log_scale.exp()
    pixels = (~star.mask[0]).sum(-1).float()
    free = star.free_scale[0]
    weight = pixels if bool(free.all()) else torch.where(free, 0.0, pixels)
    unit = (weight * scale).sum(-1) / weight.sum()
    flux = flux * unit[:, None]

    unit_flux, mean = (torch.as_tensor(columns[name][0]) for name in ("unit_flux", "model_flux"))
    mean, std = mean * unit_flux, torch.as_tensor(columns["model_flux_std"][0]) * unit_flux
    same(mean, flux.mean(0), std, 0.3 * DRAWS)
    # Tails of e are heavy: of its fourth moment few draws know.
    assert ((flux.std(0) / std).log().abs() < 0.25).float().mean() > 0.97
    assert abs(float((flux.std(0) / std).log().median())) < 0.04

    posterior = Posterior(
        model,
        star,
        draws,
        columns["z"][:1],
        columns["scale"],
        columns["model_flux"],
        columns["unit_flux"],
    )
    reported = np.quantile(flux_draws(posterior, DRAWS, 4), (0.05, 0.5, 0.95), axis=0)
    expected = np.quantile(flux.numpy(), (0.05, 0.5, 0.95), axis=0)
    away = np.abs(reported - expected) / std.numpy()
    assert np.quantile(away, 0.9) < 0.35
    assert away.mean() < 0.15


def test_map_is_completed_by_the_program(toy_stellar, star):
    """What the mode leaves of the data is shared between e and noise as the program says."""
    from bayesspec.inference.newton import newton_estimate
    from bayesspec.results.summary import point_columns

    found = newton_estimate(toy_stellar, star)
    columns = point_columns(toy_stellar, star, found, PriorTail(toy_stellar, 0, draws=256))
    flux = by_hand(toy_stellar, star, found.z.expand(DRAWS, -1), found.log_scale.expand(DRAWS, -1))
    same(torch.as_tensor(columns["model_flux"][0]), flux.mean(0), flux.std(0), DRAWS)


@pytest.mark.slow
def test_stock_nuts_gives_what_is_reported(toy_stellar, toy_stellar_batch):
    """Pyro's own NUTS on the program in whitened coordinates, and importance sampling: one posterior."""
    star = toy_stellar_batch.select([1])
    names = ("flux", "ivar", "mask", "unit_flux", "free_scale")
    star = star.with_tensors(**{name: getattr(star, name)[:, :1] for name in names})
    star = replace(star, ivar=0.05 * star.ivar)
    draws = importance_draws(toy_stellar, star, draws=8192)
    columns = posterior_columns(toy_stellar, star, draws, PriorTail(toy_stellar, 0, draws=256))
    white = Whitened.at_modes(toy_stellar, star)
    with pyro.get_param_store().scope(), seeded(0):
        kernel = NUTS(poutine.reparam(toy_stellar, white), max_tree_depth=6)
        chain = MCMC(kernel, num_samples=800, warmup_steps=200, disable_progbar=True)
        chain.run(star)
        program = poutine.reparam(toy_stellar.with_flux, white)
        drawn = Predictive(program, chain.get_samples(), return_sites=("flux", "log_scale"))(star)
    flux = drawn["flux"][:, 0] * drawn["log_scale"].exp() / columns["scale"][0, 0]
    mean, std = (torch.as_tensor(columns[name][0]) for name in ("model_flux", "model_flux_std"))
    assert ((flux.mean(0) - mean).abs() / std).mean() < 0.25
    assert abs(float((flux.std(0) / std).log().median())) < 0.15
