"""Laws of the Pyro model with a residual term: s = G(z) + B w + e, e summed out."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta

from bayesspec.batch import ObservationBatch
from bayesspec.bundle import load_model, save_model
from bayesspec.inference.density import log_joint
from bayesspec.inference.nuts import enumerated_log_density
from bayesspec.inference.target import Target
from bayesspec.model import StellarModel
from bayesspec.nn.residual import USUAL


def values(model, batch, seed=0):
    """Some point of the model's space: latents (N, L + P + R), log scales (N, E)."""
    rng = torch.Generator().manual_seed(seed)
    klass = torch.arange(len(batch)) % len(model.classes)
    z = model.prior.centres[klass, 0] + 0.1 * torch.randn(len(batch), model.latent_dim, generator=rng)
    w = torch.randn(len(batch), model.residual_dim, generator=rng)
    log_scale = torch.where(batch.free_scale, 0.3 * torch.randn(batch.flux.shape[:2], generator=rng), 0.0)
    x = z.new_zeros(len(z), 0)
    if model.passage is not None:
        x = 0.5 * torch.randn(len(z), model.passage.dim, generator=rng)
    return torch.cat([z, x.to(z), w.to(z)], dim=-1), log_scale.to(z)


def conditioned(model, batch, latents, log_scale, **more):
    return poutine.condition(model, model.sites(latents, log_scale, batch) | more)


@pytest.mark.parametrize("classes", ["joint", "marginal"])
def test_direct_density_is_the_trace(toy_stellar, toy_stellar_batch, classes):
    """log_joint is the trace at its best class, or the trace with the class enumerated and summed out."""
    model, batch = toy_stellar, toy_stellar_batch
    latents, log_scale = values(model, batch)
    direct, klass = log_joint(model, batch, latents, log_scale, classes)
    if classes == "joint":
        program = conditioned(model, batch, latents, log_scale, C=klass)
        trace = poutine.trace(program).get_trace(batch)
        assert {"C", "z", "w", "log_scale", "y"} <= set(trace.nodes)
        expected = trace.log_prob_sum()
    else:
        program = conditioned(model, batch, latents, log_scale)
        with pyro.get_param_store().scope():
            empty = AutoDelta(poutine.block(program, hide=["C"]))
            expected = torch.as_tensor(-TraceEnum_ELBO(max_plate_nesting=1).loss(program, empty, batch))
        each = enumerated_log_density(model, batch, Target(model, batch).join(latents, log_scale))
        torch.testing.assert_close(direct, each, rtol=1e-5, atol=1e-3)
    expected = expected + len(batch) * model.passage.widths.log().sum()  # v and q of the program have units
    torch.testing.assert_close(direct.sum(), expected, rtol=1e-5, atol=1e-2)


def test_size_and_patterns_are_standard_normal(toy_stellar, toy_stellar_batch):
    """What the classes' densities of latents have beyond those of z is the density of x, and of h and w."""
    latents, _ = values(toy_stellar, toy_stellar_batch)
    z, x, w = toy_stellar.parts(latents)
    beyond = toy_stellar.log_joint_classes(latents) - toy_stellar.prior.log_prob_all(z) + math.log(3)
    beyond = beyond - toy_stellar.passage.log_prob(x)[:, None]
    unit = -0.5 * w.square().sum(-1) - 0.5 * w.shape[-1] * math.log(2 * math.pi)
    torch.testing.assert_close(beyond, unit[:, None].expand(-1, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("no_hits")
def test_likelihood_is_a_gaussian_on_paper(gaussian_stellar, gaussian_stellar_batch):
    """Of one exposure with Gaussian noise: y / a is normal about s, with the variance of noise and e."""
    model, batch = gaussian_stellar, gaussian_stellar_batch.select([0, 1, 2])
    first = {n: getattr(batch, n)[:, :1] for n in ("flux", "ivar", "mask", "unit_flux", "free_scale")}
    first["ivar"] = 1e-3 * first["ivar"]  # nothing is far out
    batch = batch.with_tensors(**first)
    latents, log_scale = values(model, batch)
    s, a = model.spectrum(latents), log_scale[:, :1].exp()
    tau, level = USUAL * model.discrepancy(latents), model.noise_level(latents, batch).exp()[:, None]
    std = a * (tau.square() + level.square() / (batch.ivar[:, 0] * a**2)).sqrt()
    terms = torch.distributions.Normal(a * s, std, validate_args=False).log_prob(batch.flux[:, 0])
    expected = torch.where(batch.mask[:, 0], 0.0, terms).sum(-1)
    torch.testing.assert_close(model.log_likelihood(batch, latents, log_scale), expected)


def test_jacobian_is_that_of_autograd(toy_stellar, toy_stellar_batch):
    """Derivatives of the spectrum by z, through G and the sizes, by h and by w."""
    model = copy.deepcopy(toy_stellar).double()
    latents = values(model, toy_stellar_batch)[0].double()
    spectrum, jacobian = model.jacobian(latents)
    torch.testing.assert_close(spectrum, model.spectrum(latents))
    for n, point in enumerate(latents):
        expected = torch.autograd.functional.jacobian(model.spectrum, point)
        torch.testing.assert_close(jacobian[n], expected)


def test_masked_pixels_have_no_influence(toy_stellar, toy_stellar_batch):
    """NaN under the mask, in flux and in ivar, changes neither the density nor a gradient."""
    batch = toy_stellar_batch
    latents, log_scale = values(toy_stellar, batch)
    hidden = {name: torch.where(batch.mask, torch.nan, getattr(batch, name)) for name in ("flux", "ivar")}
    results = []
    for part in (batch, replace(batch, **hidden)):
        point, scale = latents.clone().requires_grad_(), log_scale.clone().requires_grad_()
        density, _ = log_joint(toy_stellar, part, point, scale)
        results.append((density, *torch.autograd.grad(density.sum(), (point, scale))))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
        assert clean.isfinite().all()


def test_masked_pixels_have_no_gradient(toy_stellar, toy_stellar_batch):
    """The density's gradient by the observed flux is zero under the mask, and not elsewhere."""
    flux = toy_stellar_batch.flux.clone().requires_grad_()
    batch = replace(toy_stellar_batch, flux=flux)
    density = log_joint(toy_stellar, batch, *values(toy_stellar, batch))[0].sum()
    (gradient,) = torch.autograd.grad(density, flux)
    assert (gradient[batch.mask] == 0).all()
    assert (gradient[~batch.mask] != 0).float().mean() > 0.95


def test_permuting_stars_permutes(toy_stellar, toy_stellar_batch):
    """A star's density does not depend on its neighbours."""
    order = [2, 0, 3, 1]
    latents, log_scale = values(toy_stellar, toy_stellar_batch)
    whole, _ = log_joint(toy_stellar, toy_stellar_batch, latents, log_scale)
    mixed, _ = log_joint(toy_stellar, toy_stellar_batch.select(order), latents[order], log_scale[order])
    torch.testing.assert_close(mixed, whole[order])


def test_permuting_exposures_changes_nothing(toy_stellar, toy_stellar_batch):
    """Which of a star's exposures is the first is of no account."""
    order = [2, 0, 1]
    batch = toy_stellar_batch.select([3])
    latents, log_scale = values(toy_stellar, batch)
    parts = {name: getattr(batch, name)[:, order] for name in ("flux", "ivar", "mask", "free_scale")}
    mixed = replace(batch, **parts)
    expected, _ = log_joint(toy_stellar, batch, latents, log_scale)
    torch.testing.assert_close(log_joint(toy_stellar, mixed, latents, log_scale[:, order])[0], expected)


def test_exposures_that_are_not_there_change_nothing(toy_stellar, toy_stellar_batch):
    """Masked throughout, whatever stands there: the same density and gradient."""
    latents, log_scale = values(toy_stellar, toy_stellar_batch)
    batch, absent = toy_stellar_batch, torch.full_like(toy_stellar_batch.flux[:, :2], 1e3)
    wider = replace(
        batch,
        flux=torch.cat([batch.flux, absent], 1),
        ivar=torch.cat([batch.ivar, absent], 1),
        mask=torch.cat([batch.mask, absent > 0], 1),
        unit_flux=torch.cat([batch.unit_flux, absent[..., 0]], 1),
        free_scale=torch.cat([batch.free_scale, absent[..., 0] < 0], 1),
    )
    results = []
    for part, scale in ((batch, log_scale), (wider, torch.nn.functional.pad(log_scale, (0, 2)))):
        point = latents.clone().requires_grad_()
        density, _ = log_joint(toy_stellar, part, point, scale)
        results.append((density, *torch.autograd.grad(density.sum(), point)))
    for few, many in zip(*results, strict=True):
        torch.testing.assert_close(many, few)


def test_exposures_say_of_s_what_their_stack_says(gaussian_stellar):
    """With Gaussian noise, any ivar, masks and scales: the same ratio of the densities of two spectra.

    And so for any number of exposures into which the data of a star are split.
    """
    model, rng = gaussian_stellar, np.random.default_rng(0)
    one = exposures(np.ones((1, 96)), np.ones((1, 96)), np.zeros((1, 96), bool))
    latents = values(model, one)[0]
    latents[:, model.lead_dim] = 0  # of the noise level several exposures tell more
    spectra = torch.as_tensor(1 + 0.02 * rng.standard_normal((2, 1, 96)))
    tau = USUAL * model.discrepancy(latents)
    for count in (1, 2, 5):
        a = rng.uniform(0.5, 2.0, count)
        ivar, mask = rng.uniform(50, 5000, (count, 96)) / a[:, None] ** 2, rng.random((count, 96)) < 0.2
        flux = a[:, None] * (1 + 0.02 * rng.standard_normal((count, 96)))
        weight = np.where(mask, 0, ivar * a[:, None] ** 2)
        total = weight.sum(0)
        mean = (weight * flux / a[:, None]).sum(0) / np.where(total > 0, total, 1)

        split = exposures(flux, ivar, mask)
        by_exposure = model.exposures(latents, spectra, torch.as_tensor(a)[None], split).log_prob(split.flux)[
            :, 0
        ]
        stack = exposures(mean[None], total[None], (total == 0)[None])
        one_scale = torch.ones(1, 1).double()
        whole = model.exposures(latents, spectra, one_scale, stack).log_prob(stack.flux)[:, 0]
        torch.testing.assert_close(by_exposure[0] - by_exposure[1], whole[0] - whole[1], rtol=1e-3, atol=0.02)

        # The stack of all is what one number e and the noise of all make of s.
        var = torch.where(torch.as_tensor(total) > 0, tau[0].square() + 1 / torch.as_tensor(total), torch.inf)
        square = ((torch.as_tensor(mean) - spectra[:, 0]).square() / var).sum(-1)
        expected = -0.5 * (square[0] - square[1])  # hits apart, of which there is one in 1e5
        torch.testing.assert_close(whole[0] - whole[1], expected, rtol=1e-3, atol=1e-3)


def exposures(flux, ivar, mask):
    """One star's exposures, (E, D), of known scale."""
    parts = (part[None] for part in (flux, ivar, mask))
    known = np.ones((1, len(flux)))
    return ObservationBatch.from_arrays(*parts, known, known < 0, dtype=torch.float64)


@pytest.mark.usefixtures("no_hits")
def test_one_exposure_more_is_never_less_information(gaussian_stellar, gaussian_stellar_batch):
    """The curvature of the likelihood along the spectrum grows with each, up to that of e alone."""
    model, batch = gaussian_stellar, gaussian_stellar_batch.select([3])
    latents = values(model, batch)[0]
    tau, s, found = USUAL * model.discrepancy(latents), model.spectrum(latents), []
    for count in (1, 2, 3):
        part = replace(batch, **{n: getattr(batch, n)[:, :count] for n in ("flux", "ivar", "mask")})
        noise = model.exposures(latents, s, torch.ones(1, count).double(), part)
        found.append(noise.precision(part.flux).sum(1))
    assert (found[1] > found[0]).all()
    assert (found[2] > found[1]).all()
    assert (found[2] < tau**-2).all()


def test_bundle_is_the_model(toy_stellar, toy_stellar_batch, tmp_path):
    """Saved and loaded, it gives the same density to the last bit, and its card names the residual term."""
    again = load_model(save_model(toy_stellar, tmp_path / "toy", card={"name": "toy"}))
    point = values(toy_stellar, toy_stellar_batch)
    for classes in ("joint", "marginal"):
        before, after = (log_joint(m, toy_stellar_batch, *point, classes)[0] for m in (toy_stellar, again))
        assert torch.equal(before, after)
    assert again.card["architecture"]["residual"] == toy_stellar.residual.config
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_residual_term_and_robust_noise_go_together(toy_model, toy_stellar):
    """One without the other is an error that says so."""
    for noise, residual in ((toy_stellar.noise, None), (toy_model.noise, toy_stellar.residual)):
        parts = toy_model.encoder, toy_model.generator, toy_model.prior, noise
        with pytest.raises(ValueError, match="residual term needs a RobustNoiseNetwork"):
            StellarModel(toy_model.grid, toy_model.classes, *parts, residual=residual)


def test_noise_level_is_filled_where_the_noise_needs_it(toy_model, toy_stellar, toy_stellar_batch):
    """A model without a residual term leaves the batch as it is; one with it fills what is unknown."""
    blind = replace(toy_stellar_batch, ivar=0 * toy_stellar_batch.ivar)
    assert toy_model.with_noise_level(blind) is blind
    assert torch.equal(toy_stellar.with_noise_level(toy_stellar_batch).ivar, toy_stellar_batch.ivar)
    filled = toy_stellar.with_noise_level(blind)
    assert ((filled.ivar > 0) == ~blind.mask).all()
    assert log_joint(toy_stellar, filled, *values(toy_stellar, filled))[0].isfinite().all()


def test_any_pyro_tool_takes_it(toy_stellar, toy_stellar_batch):
    """Predictive draws from the prior, each of every site."""
    with pyro.get_param_store().scope():
        draws = Predictive(poutine.uncondition(toy_stellar), num_samples=3)(toy_stellar_batch)
    stars = len(toy_stellar_batch)
    assert draws["y"].shape == (3, *toy_stellar_batch.flux.shape)
    assert draws["w"].shape == (3, stars, toy_stellar.residual_dim)


def test_runs_on_a_device_without_a_cpu_tensor_in_the_way(toy_stellar, toy_stellar_batch, only_meta):
    """Density and gradient touch no tensor but those of the device they are on."""
    latents, log_scale = (value.to("meta") for value in values(toy_stellar, toy_stellar_batch))
    model, batch = copy.deepcopy(toy_stellar).to("meta"), toy_stellar_batch.to("meta")
    latents.requires_grad_()
    with only_meta(), pyro.validation_enabled(False):
        direct, klass = log_joint(model, batch, latents, log_scale)
        data = {"C": klass, **model.sites(latents, log_scale, batch)}
        density = poutine.trace(poutine.condition(model, data)).get_trace(batch).log_prob_sum()
        (gradient,) = torch.autograd.grad(density + direct.sum(), latents)
    assert direct.shape == (len(batch),)
    assert gradient.shape == latents.shape


@pytest.mark.gpu
def test_runs_on_a_gpu(toy_stellar, toy_stellar_batch):
    """The same density on a real device."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    point = values(toy_stellar, toy_stellar_batch)
    here, _ = log_joint(toy_stellar, toy_stellar_batch, *point)
    there, _ = log_joint(
        copy.deepcopy(toy_stellar).cuda(), toy_stellar_batch.to("cuda"), *(part.cuda() for part in point)
    )
    torch.testing.assert_close(here, there.cpu(), rtol=1e-4, atol=1e-2)
