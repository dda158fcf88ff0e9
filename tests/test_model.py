"""Laws of the Pyro model: it is eqs. (3)-(6), and any Pyro tool can use it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta
from pyro.infer.inspect import get_model_relations

from bayesspec.batch import ObservationBatch
from bayesspec.distributions.spectrum_noise import HIT_SHARE, HIT_WIDTH
from bayesspec.inference.density import log_joint
from bayesspec.observation import Observation


def values(model, batch, seed=0):
    """Some point of the model's space: class, latents, log scales (N, E)."""
    rng = torch.Generator().manual_seed(seed)
    klass = torch.randint(len(model.classes), (len(batch),), generator=rng)
    z = model.prior.centres[klass, 0] + 0.1 * torch.randn(len(batch), model.latent_dim, generator=rng)
    log_scale = torch.where(batch.free_scale, 0.3 * torch.randn(batch.flux.shape[:2], generator=rng), 0.0)
    return klass, z, log_scale


def conditioned(model, klass, z, log_scale, batch):
    data = {"C": klass, "z": z, "log_scale": log_scale[tuple(batch.free_index)]}
    return poutine.condition(model, data)


def test_trace_is_the_formula_of_the_paper(toy_model, toy_batch):
    """log_prob_sum of the trace = log p(C) + log p(z|C) + log p(a) + sum of eq. (16), written out by hand."""
    klass, z, log_scale = values(toy_model, toy_batch)
    trace = poutine.trace(conditioned(toy_model, klass, z, log_scale, toy_batch)).get_trace(toy_batch)

    k = toy_model.noise.kernel
    total = -len(toy_batch) * math.log(len(toy_model.classes))
    for n in range(len(toy_batch)):
        centres, bandwidth = toy_model.prior.centres[klass[n]], toy_model.prior.bandwidth[klass[n]]
        kernels = dist.Normal(centres, bandwidth).log_prob(z[n]).sum(-1)
        total = total + (kernels + toy_model.prior.log_weights[klass[n]]).logsumexp(0)
        s = toy_model.generator(z[n])
        for e in range(toy_batch.flux.shape[1]):
            observed = ~toy_batch.mask[n, e]
            if toy_batch.free_scale[n, e]:
                total = total - 0.5 * log_scale[n, e] ** 2 - 0.5 * math.log(2 * math.pi)
            eps = toy_batch.flux[n, e] / log_scale[n, e].exp() - s
            mu, alpha = toy_model.noise(torch.where(observed, eps, 0.0))
            for d in range(len(s)):
                used = observed[d] if d < k else observed[d - k : d + 1].all()
                if used:
                    usual = dist.Normal(mu[d], alpha[d].exp()).log_prob(eps[d]) + math.log(1 - HIT_SHARE)
                    hit = dist.Cauchy(mu[d], HIT_WIDTH * alpha[d].exp()).log_prob(eps[d])
                    total = total + torch.logaddexp(usual, hit + math.log(HIT_SHARE)) - log_scale[n, e]

    torch.testing.assert_close(trace.log_prob_sum(), total, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("classes", ["joint", "marginal"])
def test_direct_density_is_the_trace(toy_model, toy_batch, classes):
    """log_joint is the trace at its best class, or the trace with the class enumerated and summed out."""
    _, z, log_scale = values(toy_model, toy_batch)
    direct, klass = log_joint(toy_model, toy_batch, z, log_scale, classes)
    every = torch.stack(
        [
            poutine.trace(conditioned(toy_model, torch.full_like(klass, c), z, log_scale, toy_batch))
            .get_trace(toy_batch)
            .log_prob_sum()
            for c in range(3)
        ]
    )
    if classes == "joint":
        best = conditioned(toy_model, klass, z, log_scale, toy_batch)
        expected = poutine.trace(best).get_trace(toy_batch).log_prob_sum()
        assert expected >= every.max()
    else:
        free = log_scale[tuple(toy_batch.free_index)]
        with pyro.get_param_store().scope():
            fixed = poutine.condition(toy_model, {"z": z, "log_scale": free})
            empty = AutoDelta(poutine.block(fixed, hide=["C"]))
            expected = -TraceEnum_ELBO(max_plate_nesting=1).loss(fixed, empty, toy_batch)
        expected = torch.as_tensor(expected)
    torch.testing.assert_close(direct.sum(), expected, rtol=1e-5, atol=1e-2)


def test_masked_pixels_have_no_influence(toy_model, toy_batch):
    """NaN under the mask changes neither the density nor a gradient."""
    klass, z, log_scale = values(toy_model, toy_batch)
    z.requires_grad_()
    spoiled = replace(toy_batch, flux=torch.where(toy_batch.mask, torch.nan, toy_batch.flux))
    results = []
    for batch in (toy_batch, spoiled):
        batch.flux.requires_grad_(False)
        density = (
            poutine.trace(conditioned(toy_model, klass, z, log_scale, batch)).get_trace(batch).log_prob_sum()
        )
        results.append((density, *torch.autograd.grad(density, z)))
    for clean, dirty in zip(*results, strict=True):
        torch.testing.assert_close(clean, dirty)


def test_masked_pixels_have_no_gradient(toy_model, toy_batch):
    """The density's gradient by the observed flux is zero under the mask, and not everywhere else."""
    klass, z, log_scale = values(toy_model, toy_batch)
    flux = toy_batch.flux.clone().requires_grad_()
    batch = replace(toy_batch, flux=flux)
    density = (
        poutine.trace(conditioned(toy_model, klass, z, log_scale, batch)).get_trace(batch).log_prob_sum()
    )
    (gradient,) = torch.autograd.grad(density, flux)
    assert (gradient[toy_batch.mask] == 0).all()
    assert (gradient[~toy_batch.mask] != 0).float().mean() > 0.9


def test_exposures_multiply(toy_model, toy_batch):
    """The log-likelihood of a star is the sum of those of its exposures, in any order."""
    _, z, log_scale = values(toy_model, toy_batch)
    whole = toy_model.log_likelihood(toy_batch, z, log_scale)
    parts = 0
    for e in range(toy_batch.flux.shape[1]):
        mask = toy_batch.mask.clone()
        mask[:, [other for other in range(mask.shape[1]) if other != e]] = True
        parts = parts + toy_model.log_likelihood(replace(toy_batch, mask=mask), z, log_scale)
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-3)


def test_unit_of_the_flux_only_shifts_the_density(toy_model, toy_batch):
    """y -> c y with a -> c a changes log p(y | z) by -log c for each used term."""
    _, z, log_scale = values(toy_model, toy_batch)
    flow_terms = (~toy_batch.mask).unfold(-1, toy_model.noise.kernel + 1, 1).all(-1).sum((-2, -1))
    first = (~toy_batch.mask)[..., : toy_model.noise.kernel].sum((-2, -1))
    before = toy_model.log_likelihood(toy_batch, z, log_scale)
    after = toy_model.log_likelihood(replace(toy_batch, flux=3 * toy_batch.flux), z, log_scale + math.log(3))
    torch.testing.assert_close(after, before - math.log(3) * (flow_terms + first), rtol=1e-4, atol=1e-2)


def test_any_pyro_tool_takes_it(toy_model, toy_batch):
    """Predictive draws from the prior, and SVI with the class enumerated lowers its loss."""
    free = poutine.uncondition(toy_model)
    with pyro.get_param_store().scope():
        draws = Predictive(free, num_samples=7)(toy_batch)
        assert draws["y"].shape == (7, *toy_batch.flux.shape)
        guide = AutoDelta(poutine.block(toy_model, hide=["C"]))
        svi = SVI(toy_model, guide, pyro.optim.Adam({"lr": 0.02}), TraceEnum_ELBO(max_plate_nesting=1))
        losses = [svi.step(toy_batch) for _ in range(60)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("which", ["toy_model", "toy_stellar"])
def test_pyro_finds_what_depends_on_what(request, which):
    """And draws it so: z on the class, the rest on nothing, what was observed on all but the class."""
    model = request.getfixturevalue(which)
    batch = request.getfixturevalue({"toy_model": "toy_batch"}.get(which, f"{which}_batch"))
    found = get_model_relations(model, (batch,))
    above = found["sample_sample"]
    latents = set(above) - {"y"}
    assert found["observed"] == ["y"]
    assert set(above["y"]) == latents - {"C"}
    assert above["z"] == ["C"]
    assert not any(above[name] for name in latents - {"z"})
    assert {"z", "y"} <= set(found["plate_sample"]["star"])


@pytest.mark.parametrize("which", ["toy_model", "toy_stellar"])
def test_a_star_becomes_what_the_program_takes(request, which):
    """One alone or in a list, with and without errors; the same batch as by hand."""
    model = request.getfixturevalue(which)
    wavelength = model.grid.wavelength
    star = Observation(wavelength, 5 + np.sin(wavelength / 300), np.full(wavelength.size, 100.0), name="sine")
    bare = Observation(wavelength, star.exposures[0].flux, name="bare")
    one, two = model.batch(star), model.batch([star, bare])
    for name in ("flux", "ivar", "mask", "unit_flux", "free_scale"):
        assert torch.equal(getattr(one, name)[0], getattr(two, name)[0])
    by_hand = ObservationBatch.from_observations([star, bare], model.grid)
    assert torch.equal(two.flux, by_hand.flux)
    trace = poutine.trace(model).get_trace(two)
    assert trace.log_prob_sum().isfinite()
    assert trace.nodes["y"]["value"] is two.flux


def test_a_copy_is_another_model(toy_model, toy_batch):
    """What is replaced or changed in a copy is as it was in the model; a shallow one shares the rest."""
    _, z, log_scale = values(toy_model, toy_batch)
    before = log_joint(toy_model, toy_batch, z, log_scale)[0]
    shallow, deep = copy.copy(toy_model), copy.deepcopy(toy_model)
    assert shallow.generator is toy_model.generator
    for one in (shallow, deep):
        assert torch.equal(log_joint(one, toy_batch, z, log_scale)[0], before)
        one.prior = copy.deepcopy(toy_model.prior)
        one.prior.centres = one.prior.centres + 1.0
        one.class_logits = one.class_logits + torch.arange(len(one.classes))
        one.card["name"] = "other"
    with torch.no_grad():
        next(deep.generator.parameters()).zero_()
    assert not torch.equal(log_joint(shallow, toy_batch, z, log_scale)[0], before)
    assert torch.equal(log_joint(toy_model, toy_batch, z, log_scale)[0], before)
    assert toy_model.name == "toy"


def test_known_scales_are_not_sampled(toy_model, toy_batch):
    """`log_scale` has one value for each exposure whose scale is free, and no site where none is."""
    trace = poutine.trace(toy_model).get_trace(toy_batch)
    assert trace.nodes["log_scale"]["value"].shape == (int(toy_batch.free_scale.sum()),)
    complete = toy_batch.select([0])
    assert "log_scale" not in poutine.trace(toy_model).get_trace(complete).nodes


def test_runs_on_a_device_without_a_cpu_tensor_in_the_way(toy_model, toy_batch, only_meta):
    """Density and gradient touch no tensor but those of the device they are on."""
    klass, z, log_scale = (value.to("meta") for value in values(toy_model, toy_batch))
    model, batch = copy.deepcopy(toy_model).to("meta"), toy_batch.to("meta")
    z.requires_grad_()
    free = log_scale[:, 0]  # as many as there are free scales: which they are cannot be asked of this device
    with only_meta(), pyro.validation_enabled(False):
        direct, _ = log_joint(model, batch, z, log_scale)
        data = {"C": klass, "z": z, "log_scale": free[:3]}
        density = poutine.trace(poutine.condition(model, data)).get_trace(batch).log_prob_sum()
        (gradient,) = torch.autograd.grad(density + direct.sum(), z)
    assert direct.shape == (len(batch),)
    assert gradient.shape == z.shape


@pytest.mark.gpu
def test_runs_on_a_gpu(toy_model, toy_batch):
    """The same density on a real device."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    _, z, log_scale = values(toy_model, toy_batch)
    here, _ = log_joint(toy_model, toy_batch, z, log_scale)
    there, _ = log_joint(copy.deepcopy(toy_model).cuda(), toy_batch.to("cuda"), z.cuda(), log_scale.cuda())
    torch.testing.assert_close(here, there.cpu(), rtol=1e-4, atol=1e-2)
