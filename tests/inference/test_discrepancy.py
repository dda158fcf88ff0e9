"""Laws of e given the data: for Gaussian noise the normal-normal posterior of any textbook."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from bayesspec.inference.discrepancy import discrepancy_posterior


def point(model, batch, seed=0):
    rng = torch.Generator().manual_seed(seed)
    z = model.prior.centres[torch.arange(len(batch)) % 3, 0]
    w = torch.randn(len(batch), model.residual_dim, generator=rng).to(z)
    scale = torch.where(batch.free_scale, 1 + torch.rand(batch.flux.shape[:2], generator=rng), 1.0)
    x = z.new_zeros(len(z), 0)
    if model.passage is not None:
        x = 0.5 * torch.randn(len(z), model.passage.dim, generator=rng)
    return torch.cat([z, x.to(z), w], -1), scale.to(z)


@pytest.mark.usefixtures("no_hits")
def test_it_is_the_normal_normal_posterior(gaussian_stellar, gaussian_stellar_batch):
    """One exposure or several, complete or not, each of its own scale; written out star by star."""
    model, batch = gaussian_stellar, gaussian_stellar_batch
    latents, scale = point(model, batch)
    scale[3] = torch.tensor([0.7, 1.0, 1.6])
    found = discrepancy_posterior(model, batch, latents, scale)
    tau, s = model.residual.discrepancy(*model.split(latents)), model.spectrum(latents)
    for n in range(len(batch)):
        precision, weighted = tau[n] ** -2, torch.zeros_like(tau[n])
        for a, y, ivar, mask in zip(scale[n], batch.flux[n], batch.ivar[n], batch.mask[n], strict=True):
            weight = torch.where(mask, 0.0, a**2 * ivar)
            precision, weighted = precision + weight, weighted + weight * (y / a - s[n])
        torch.testing.assert_close(found.mean[n], weighted / precision)
        torch.testing.assert_close(found.std[n], precision.rsqrt())
        torch.testing.assert_close(found.share[n], 1 - tau[n] ** -2 / precision)


def test_without_data_it_is_the_prior(toy_stellar, toy_stellar_batch):
    """Where no exposure observed the pixel, NaN there or not."""
    batch = replace(
        toy_stellar_batch, flux=torch.where(toy_stellar_batch.mask, torch.nan, toy_stellar_batch.flux)
    )
    latents, scale = point(toy_stellar, batch)
    found = discrepancy_posterior(toy_stellar, batch, latents, scale)
    unseen = batch.mask.all(1)
    assert unseen.any()
    assert (found.mean[unseen] == 0).all()
    assert (found.share[unseen] == 0).all()
    tau = toy_stellar.discrepancy(latents)
    torch.testing.assert_close(found.std[unseen], tau[unseen])

    seen = ~unseen
    assert ((found.share[seen] > 0) & (found.share[seen] < 1)).all()
    assert (found.std[seen] < tau[seen]).all()
    assert all(part.isfinite().all() for part in found)


def test_perfect_data_are_believed(toy_stellar, toy_stellar_batch):
    """As the noise goes to nothing, spectrum and e together go to the data, whatever the spectrum was."""
    batch = toy_stellar_batch.select([0, 3])
    latents, scale = point(toy_stellar, batch)
    observed = ~batch.mask[:, 0]
    s, away, width = toy_stellar.spectrum(latents), [], []
    clean = (
        s[:, None] + 0.02 * torch.randn(batch.flux.shape, generator=torch.Generator().manual_seed(0))[:, :1]
    )
    for factor in (1.0, 1e2, 1e4, 1e6):
        sharp = replace(batch, flux=clean.expand_as(batch.flux), ivar=factor * batch.ivar)
        found = discrepancy_posterior(toy_stellar, sharp, latents, scale)
        away.append((s + found.mean - clean[:, 0])[observed].abs().max())
        width.append(found.std[observed].max())
    assert away[3] < 1e-4
    assert width[3] < 2e-4
    assert away[0] > away[1] > away[2] > away[3]
    assert found.share[observed].min() > 1 - 1e-3


@pytest.mark.usefixtures("no_hits")
def test_of_another_spectrum_the_mean_is_known(gaussian_stellar, gaussian_stellar_batch):
    """mean - share * (s' - s), exactly where the noise is Gaussian and the sizes are the same."""
    latents, scale = point(gaussian_stellar, gaussian_stellar_batch)
    other = latents.clone()
    other[:, gaussian_stellar.latent_dim + 1 :] += 1.0
    here, there = (
        discrepancy_posterior(gaussian_stellar, gaussian_stellar_batch, at, scale) for at in (latents, other)
    )
    shift = gaussian_stellar.spectrum(other) - gaussian_stellar.spectrum(latents)
    assert shift.abs().max() > 0.05
    torch.testing.assert_close(there.mean, here.mean - here.share * shift)
    torch.testing.assert_close(there.share, here.share)
    torch.testing.assert_close(there.std, here.std)


def test_cosmic_rays_are_not_the_star_s(toy_stellar, toy_stellar_batch):
    """Of a pixel far off, a small part of what is taken of a good one is taken for the star's."""
    batch = toy_stellar_batch.select([0])
    latents, scale = point(toy_stellar, batch)
    rays = batch.flux.clone()
    rays[0, 0, 50] += 100
    before, after = (
        discrepancy_posterior(toy_stellar, replace(batch, flux=flux), latents, scale)
        for flux in (batch.flux, rays)
    )
    assert after.share[0, 50] < 0.1 * before.share[0, 50]


def with_wide_pixels(model):
    """The model with an e that is 1, 5, 25 and 125 times as wide in 90, 6, 3 and 1 % of the pixels."""
    wide = copy.deepcopy(model)
    share = torch.tensor([0, 0.9, 0, 0.06, 0.03, 0.01])
    wide.residual.share.copy_(share[:, None].expand_as(wide.residual.share))
    return wide


def test_a_line_where_stars_have_lines_is_the_star_s(toy_stellar, toy_stellar_batch):
    """What sticks out of a good spectrum is taken for the star's where e may be that wide, and only there."""
    batch = toy_stellar_batch.select([0])
    batch = replace(batch, ivar=100 * batch.ivar)
    latents, scale = point(toy_stellar, batch)
    flux = toy_stellar.spectrum(latents)[:, None].expand_as(batch.flux).clone()
    flux[0, 0, 50] += 1.5
    spectra = [
        discrepancy_posterior(model, replace(batch, flux=flux), latents, scale).mean[0, 50]
        for model in (toy_stellar, with_wide_pixels(toy_stellar))
    ]
    assert spectra[0] < 0.5
    assert spectra[1] > 1.4


def test_lines_of_other_kinds_of_stars_do_not_count(toy_stellar, toy_stellar_batch):
    """What e is in stars of one kind says nothing of a star of another."""
    batch = toy_stellar_batch.select([0])
    latents, scale = point(toy_stellar, batch)
    means = []
    for kinds in ([], [1, 2], [0]):
        model = copy.deepcopy(toy_stellar)
        model.residual.kind.fill_(0)
        model.residual.share[kinds] = with_wide_pixels(toy_stellar).residual.share[kinds]
        means.append(discrepancy_posterior(model, batch, latents, scale).mean)
    assert torch.equal(means[0], means[1])
    assert not torch.allclose(means[0], means[2])


def test_draws_have_the_stated_moments(toy_stellar, toy_stellar_batch):
    """Of spectra away from s too: mean less share times away, and the standard deviation."""
    model = with_wide_pixels(toy_stellar)
    latents, scale = point(model, toy_stellar_batch)
    found = discrepancy_posterior(model, toy_stellar_batch, latents, scale)
    rng, shape = torch.Generator().manual_seed(0), (20_000, *found.mean.shape)
    uniform, normal = torch.rand(shape, generator=rng), torch.randn(shape, generator=rng)
    drawn = found.sample(torch.zeros(shape), uniform, normal)
    error = found.std / shape[0] ** 0.5
    assert ((drawn.mean(0) - found.mean).abs() < 6 * error).all()
    torch.testing.assert_close(drawn.std(0), found.std, rtol=0.3, atol=0)
    away = torch.full(shape, 0.1)
    moved = found.sample(away, uniform, normal)
    torch.testing.assert_close(moved.mean(0), drawn.mean(0) - 0.1 * found.share, rtol=0, atol=5e-3)


def test_a_star_does_not_depend_on_its_neighbours(toy_stellar, toy_stellar_batch):
    """Permuting the batch permutes the result."""
    order = [2, 0, 3, 1]
    latents, scale = point(toy_stellar, toy_stellar_batch)
    whole = discrepancy_posterior(toy_stellar, toy_stellar_batch, latents, scale)
    mixed = discrepancy_posterior(toy_stellar, toy_stellar_batch.select(order), latents[order], scale[order])
    for straight, permuted in zip(whole, mixed, strict=True):
        torch.testing.assert_close(permuted, straight[:, order])


def test_a_model_without_residual_term_has_none(toy_model, toy_batch):
    """And says so."""
    z = toy_model.prior.centres[0, :4]
    assert discrepancy_posterior(toy_model, toy_batch, z, torch.ones(4, 3)) is None
