"""Laws of the information: what a spectrum says of each latent, on paper and by autograd."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from bayesspec.distributions import RobustNoiseFlow, SharedDiscrepancy
from bayesspec.inference.metric import information, information_by_size
from bayesspec.inference.newton import newton_estimate
from bayesspec.inference.target import Target
from tests.conftest import first_exposures


def doubled(batch):
    names = "flux", "ivar", "unit_flux"
    return replace(batch, **{name: getattr(batch, name).double() for name in names})


def point(model, batch, seed=0):
    """Latents (N, L + R) near stars of the model, and log scales (N, E), 0 where known."""
    rng = torch.Generator().manual_seed(seed)
    z = model.prior.centres[torch.arange(len(batch)) % 3, 0]
    w = torch.randn(len(batch), model.residual_dim, generator=rng).to(z)
    log_scale = 0.2 * torch.randn(batch.flux.shape[:2], generator=rng)
    x = z.new_zeros(len(z), 0)
    if model.passage is not None:
        x = 0.5 * torch.randn(len(z), model.passage.dim, generator=rng)
    return torch.cat([z, x.to(z), w], -1), torch.where(batch.free_scale, log_scale, 0.0).to(z)


@pytest.fixture
def without_discrepancy(gaussian_stellar):
    """The Gaussian model whose pixels have no e of their own."""
    model = copy.deepcopy(gaussian_stellar)
    model.residual.log_discrepancy.fill_(-12.0)
    return model


@pytest.fixture
def known_noise(monkeypatch):
    """The pipeline's noise is as large as stated, to the last digit."""
    from bayesspec import model
    from bayesspec.inference import metric

    for module in (model, metric):
        monkeypatch.setattr(module, "STATED", 0.0)


@pytest.mark.parametrize("far", [0.0, 1.0, 10.0])
def test_information_is_positive_semidefinite(toy_stellar, toy_stellar_batch, far):
    """Anywhere, cosmic rays among the data or not, and 0 for an exposure that is not there."""
    model, batch = copy.deepcopy(toy_stellar).double(), doubled(toy_stellar_batch)
    rays = batch.flux.clone()
    rays[..., ::17] += 1e3
    latents, log_scale = point(model, batch)
    latents = latents + far * torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    for part in (batch, replace(batch, flux=rays)):
        found = information(model, part, latents, log_scale)
        torch.testing.assert_close(found, found.mT)
        values = torch.linalg.eigvalsh(found)
        assert (values[..., 0] > -1e-9 * values[..., -1].clamp_min(1e-12)).all()
        absent = batch.mask.all(-1)
        assert (found[absent] == 0).all()
        assert (values[~absent][:, -1] > 0).all()


@pytest.mark.usefixtures("no_hits", "known_noise")
def test_information_of_gaussian_noise_is_that_of_least_squares(without_discrepancy, gaussian_stellar_batch):
    """J^T W J of every exposure: J by autograd of the scaled spectrum, W the pipeline's inverse variance."""
    model, batch = without_discrepancy, gaussian_stellar_batch
    latents, log_scale = point(model, batch)
    found = information(model, batch, latents, log_scale)
    for n in range(len(batch)):
        for e in range(batch.flux.shape[1]):

            def seen(theta):
                return theta[-1].exp() * model.spectrum(theta[:-1])

            theta = torch.cat([latents[n], log_scale[n, e, None]])
            jacobian = torch.autograd.functional.jacobian(seen, theta)
            expected = jacobian.T @ (batch.ivar[n, e, :, None] * jacobian)
            torch.testing.assert_close(found[n, e], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("no_hits", "known_noise")
def test_information_adds_up_over_exposures(gaussian_stellar, gaussian_stellar_batch):
    """Three exposures say of z and w what their stack says: e is one for all of them."""
    model, batch = gaussian_stellar, gaussian_stellar_batch.select([3])
    latents, log_scale = point(model, batch)
    total = batch.ivar.sum(1, keepdim=True)
    mean = (batch.ivar * batch.flux).sum(1, keepdim=True) / total
    parts = {n: getattr(batch, n)[:, :1] for n in ("mask", "unit_flux", "free_scale")}
    stack = replace(batch, flux=mean, ivar=total, **(parts | {"mask": total <= 0}))
    by_exposure = information(model, batch, latents, log_scale).sum(1)
    whole = information(model, stack, latents, log_scale[:, :1]).sum(1)
    kept = slice(0, latents.shape[-1])
    torch.testing.assert_close(by_exposure[:, kept, kept], whole[:, kept, kept])
    sizes = (
        information_by_size(model, part, latents, a)
        for part, a in ((batch, log_scale), (stack, log_scale[:, :1]))
    )
    torch.testing.assert_close(*sizes)


@pytest.mark.parametrize("observed", [False, True])
def test_information_is_that_of_the_conditionals(toy_stellar, toy_stellar_batch, observed):
    """J by autograd through the conditioner: of what is left of each pixel, given those before, by s."""
    model, batch = copy.deepcopy(toy_stellar).double(), doubled(toy_stellar_batch).select([1])
    torch.nn.init.normal_(model.noise.heads.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    latents, log_scale = point(model, batch)
    spectrum, jacobian = model.jacobian(latents)
    flow = model.likelihood(latents, spectrum, log_scale.exp(), batch)

    def left(s):
        parts = flow.noise_std, flow.scale, flow.discrepancy, flow.observed, flow.shares, flow.kinds
        moved = RobustNoiseFlow(s, model.noise, *parts)
        return (moved.residual(batch.flux) - moved.conditional(batch.flux)[0])[0, 0]

    with torch.no_grad():
        by_s = torch.autograd.functional.jacobian(left, spectrum[0])
        slope = by_s @ jacobian[0]
        noise = SharedDiscrepancy(flow)
        weight = (noise.curvature if observed else noise.precision)(batch.flux)[0, 0]
        expected = slope.T @ (weight[:, None] * slope)
        found = information(model, batch, latents, log_scale, observed=observed)[0, 0, :-1, :-1]
    h = slice(model.lead_dim, model.lead_dim + model.residual.sizes)
    assert (found[h, h].diagonal() > expected[h, h].diagonal()).all()  # of the width, too
    expected[h, h] = found[h, h]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_cosmic_rays_say_nothing(toy_stellar, toy_stellar_batch):
    """A pixel a thousand standard deviations off has a hundredth of the information of a good one, if any."""
    model, batch = toy_stellar, toy_stellar_batch.select([0])
    latents, log_scale = point(model, batch)
    flow = model.likelihood(latents, model.spectrum(latents), log_scale.exp(), batch)
    good = flow.precision(model.spectrum(latents)[:, None].expand_as(batch.flux))[0, 0, 50]
    rays = batch.flux.clone()
    rays[0, 0, 50] += 1e2
    assert flow.precision(rays)[0, 0, 50] < 0.01 * good
    assert flow.curvature(rays)[0, 0, 50] < 0.01 * good


@pytest.mark.usefixtures("known_noise")
@pytest.mark.parametrize("depth", [1.0, 3e-3])
@pytest.mark.parametrize("components", [1, 3])
def test_observed_metric_is_minus_the_hessian_at_a_mode(
    without_discrepancy, gaussian_stellar_batch, components, depth
):
    """Of the penalised density, deep spectra and shallow, heavy tails and none; sizes within a factor of two.

    Of what summing w out adds to the curvature along the sizes the metric has the positive part alone.
    """
    model = without_discrepancy
    model.noise.log_scales = torch.nn.Parameter(torch.linspace(0.0, 1.5, components).double())
    model.noise.log_weights = torch.nn.Parameter(torch.linspace(0.0, -2.0, components).double())
    model.requires_grad_(False)
    batch = first_exposures(gaussian_stellar_batch.select([0, 3]), 2)
    known = replace(
        batch,
        ivar=depth * batch.ivar,
        free_scale=torch.zeros_like(batch.free_scale),
        free_index=batch.free_index[:, :0],
    )
    plain = Target(model, known)
    found = newton_estimate(model, known, classes="marginal", starts=3)
    theta = plain.join(found.z, found.log_scale)
    target, _ = plain.summed(theta)
    for _ in range(30):
        (_, gradient), metric = target.gradient(theta), target.metric(theta, observed=True)
        if gradient.abs().max() < 1e-7:
            break
        theta = theta + torch.linalg.solve(metric, gradient[..., None])[..., 0]
    assert gradient.abs().max() < 1e-6

    for n in range(len(known)):
        star = target.select([n])
        with torch.enable_grad():
            hessian = torch.autograd.functional.hessian(lambda t, s=star: s._value(t[None])[0], theta[n])
        free = star.free[0]
        expected, own = -hessian[free][:, free], metric[n][free][:, free]
        unit = expected.diagonal().rsqrt()
        difference = (own - expected) * unit[:, None] * unit
        h = slice(model.lead_dim, model.lead_dim + model.residual.sizes)
        assert difference[h, h].abs().max() < 0.8
        difference[h, h] = 0
        assert difference.abs().max() < 1e-4
        assert (torch.linalg.eigvalsh(own) > 0).all()


@pytest.mark.usefixtures("no_hits", "known_noise")
@pytest.mark.parametrize("depth", [1.0, 3e-3])
def test_w_is_summed_out(without_discrepancy, gaussian_stellar_batch, depth):
    """At the most probable w of any size, the penalised density is, but for a constant, that of the rest."""
    model, batch = without_discrepancy, gaussian_stellar_batch.select([0])
    batch = replace(batch, ivar=depth * batch.ivar)
    latents, log_scale = point(model, batch)
    theta = Target(model, batch).join(latents, log_scale)
    target, _ = Target(model, batch).summed(theta)
    ratios = []
    for h in (-2.0, -0.5, 0.0, 1.0, 3.0):
        theta[:, target.core - 1] = h
        z, hw = model.split(target.split(theta)[0])
        patterns = model.residual.jacobian(z, hw)[0, :, model.residual.sizes :].T
        precision = (patterns * batch.ivar[0, 0]) @ patterns.T + torch.eye(4)
        s = model.generator(theta[0, : model.latent_dim])
        pull = patterns @ (batch.ivar[0, 0] * (batch.flux[0, 0] - s))
        theta[0, target.core :] = torch.linalg.solve(precision, pull)

        covariance = patterns.T @ patterns + torch.diag(1 / batch.ivar[0, 0])
        marginal = torch.distributions.MultivariateNormal(s, covariance).log_prob(batch.flux[0, 0])
        ratios.append(target.log_density(theta)[0] - (marginal - 0.5 * h**2))
    torch.testing.assert_close(torch.stack(ratios), ratios[0].expand(5))


def test_blocks_of_stars_are_the_whole(toy_stellar, toy_stellar_batch, monkeypatch):
    """However few stars are worked on at once, the same information."""
    from bayesspec.inference import metric

    latents, log_scale = point(toy_stellar, toy_stellar_batch)
    whole = information(toy_stellar, toy_stellar_batch, latents, log_scale)
    monkeypatch.setattr(metric, "_CPU_NUMBERS", 1)
    monkeypatch.setattr(metric, "_CPU_WINDOWS", 100)
    parts = information(toy_stellar, toy_stellar_batch, latents, log_scale)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-3)
