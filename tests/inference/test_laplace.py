"""Laplace's approximation: exact where the posterior is normal, and known to be wrong where it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import bayesspec
from bayesspec.inference.importance import importance_draws
from bayesspec.inference.laplace import laplace_draws
from bayesspec.inference.proposal import StudentMixture
from bayesspec.results.diagnostics import Flag
from tests.conftest import first_exposures


def flat(draws):
    """Equally probable latents and scales, (N, S, d)."""
    latents, log_scale = draws.resample(1000, seed=1)
    return np.concatenate([latents, log_scale], axis=-1)


def test_is_the_posterior_where_that_is_normal(gaussian_stellar, gaussian_stellar_batch):
    """With little noise the posterior of a smooth model is normal: all as by importance, the evidence too."""
    batch = gaussian_stellar_batch.select([0, 1, 2])
    names = ("flux", "ivar", "mask", "unit_flux", "free_scale")
    batch = batch.with_tensors(**{name: getattr(batch, name)[:, :1] for name in names})
    found = laplace_draws(gaussian_stellar, batch, draws=1024)
    exact = importance_draws(gaussian_stellar, batch, draws=4096)
    mine, theirs = flat(found), flat(exact)
    trusted = found.diagnostics["laplace_k"] < 0.7
    assert trusted.any()
    assert (np.abs(found.log_evidence - exact.log_evidence)[trusted] < 0.3).all()
    for n in np.flatnonzero(trusted):
        std = theirs[n].std(0)
        moving = std > 0
        away = np.abs(mine[n].mean(0) - theirs[n].mean(0))[moving] / std[moving]
        ratio = np.log(mine[n].std(0)[moving] / std[moving])
        assert np.median(away) < 0.25
        assert np.abs(np.median(ratio)) < 0.1


def test_normal_mixture_is_its_density():
    """Infinite degrees of freedom: draws with unit scatter, and torch's own normal density."""
    mean, factor = torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[[2.0, 0.0], [1.0, 0.5]]]])
    mixture = StudentMixture(mean, factor, torch.zeros(1, 1), torch.ones(1, 2, dtype=torch.bool), torch.inf)
    theta = mixture.sample(4096, seed=0)
    normal = torch.distributions.MultivariateNormal(mean[:, 0], scale_tril=factor[:, 0])
    torch.testing.assert_close(mixture.log_prob(theta), normal.log_prob(theta), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cov(theta[:, 0].T), (factor @ factor.mT)[0, 0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("model", ["toy_model", "toy_stellar"])
def test_neighbours_and_order_do_not_matter(request, model):
    """A star alone has the draws that it has in a batch."""
    batch = request.getfixturevalue(f"{model}_batch" if model == "toy_stellar" else "toy_batch")
    batch = first_exposures(batch)
    network = request.getfixturevalue(model)
    rows = [2, 0]
    whole = laplace_draws(network, batch.select(rows), draws=64)
    for place, n in enumerate(rows):
        alone = laplace_draws(network, batch.select([n]), draws=64)
        np.testing.assert_allclose(whole.z[place], alone.z[0], rtol=2e-2, atol=2e-2)


def test_a_posterior_that_is_not_normal_says_so(toy_stellar, toy_stellar_batch, monkeypatch):
    """A proposal that is far too narrow has weights of infinite variance: the row is flagged."""
    from bayesspec.inference import importance as module

    honest = module.laplace_mixture

    def narrow(*args, **options):
        found = honest(*args, **options)
        return replace(found, factor=0.3 * found.factor)

    monkeypatch.setattr(module, "laplace_mixture", narrow)
    found = laplace_draws(toy_stellar, toy_stellar_batch.select([0]), draws=512)
    assert found.diagnostics["laplace_k"][0] > 0.7


def test_result_has_widths_intervals_and_the_flag(toy_stellar):
    rng = np.random.default_rng(0)
    wave = toy_stellar.grid.wavelength
    star = bayesspec.Observation(wave, 1 + 0.1 * rng.standard_normal(wave.size), np.full(wave.size, 100.0))
    res = bayesspec.denoise(star, model=toy_stellar, method="laplace", draws=128)
    low, high = res.interval(0.9)
    assert res.method == "laplace"
    assert (low < high).all()
    assert (res.flux_std > 0).all()
    assert (
        (res.full_table["laplace_k"] > 0.7) == [Flag.BAD_LAPLACE in Flag(int(f)) for f in res.flags]
    ).all()
