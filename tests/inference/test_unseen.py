"""Laws of what is not known of pixels that nothing was seen of, far from all that were."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from bayesspec import Observation
from bayesspec.inference.denoise import denoise
from bayesspec.inference.unseen import RAMP, Unseen, remoteness, unseen_posterior
from bayesspec.results.spectra import arviz_input

MEAN, SPREAD = 0.6, 0.4


@pytest.fixture(scope="module")
def remote_stellar(toy_stellar):
    """The toy model with residuals larger where nothing is seen, in every class alike."""
    model = copy.deepcopy(toy_stellar)
    model.residual.unseen_size.copy_(torch.tensor([MEAN, SPREAD]))
    return model


@pytest.fixture(scope="module")
def stars(toy_stellar, toy_stellar_batch):
    """A complete spectrum, and one of one arm only."""
    wavelength, parts = toy_stellar.grid.wavelength, toy_stellar_batch
    return [
        Observation(
            wavelength, *(part[n, 0].numpy() for part in (parts.flux, parts.ivar, parts.mask)), scale=1.0
        )
        for n in (0, 2)
    ]


@pytest.fixture(scope="module")
def usual(toy_stellar, stars):
    return denoise(stars, model=toy_stellar, method="importance", handover=False)


@pytest.fixture(scope="module")
def wider(remote_stellar, stars):
    return denoise(stars, model=remote_stellar, method="importance", handover=False)


def test_remoteness_is_nothing_where_there_is_light_and_all_far_from_it():
    """Of any exposure; from one to the other it grows; the spectrum may as well be read backwards."""
    size = 320
    reach = round(RAMP * size)
    mask = torch.zeros(2, 3, size, dtype=torch.bool)
    mask[0, :, 100:200] = mask[1, :2, 100:200] = True
    remote = remoteness(mask)
    assert (remote[1] == 0).all()
    assert (remote[0, :100] == 0).all()
    assert (remote[0, 200:] == 0).all()
    assert (remote[0, 100 + reach : 200 - reach] == 1).all()
    assert (remote[0, 100 : 101 + reach].diff() > 0).all()
    torch.testing.assert_close(remoteness(mask.flip(-1)), remote.flip(-1))


def test_few_pixels_among_others_are_as_these_are():
    """A few masked pixels are not remote; one seen in a gap is seen, and changes little around it."""
    mask = torch.zeros(1, 1, 320, dtype=torch.bool)
    mask[..., ::3] = True
    assert (remoteness(mask) == 0).all()
    mask[..., 100:300] = True
    before = remoteness(mask)[0]
    mask[..., 200] = False
    after = remoteness(mask)[0]
    assert after[200] == 0
    others = torch.arange(320) != 200
    assert (before - after)[others].min() >= 0
    assert (before - after)[others].max() < 0.06


def test_factor_is_that_of_the_samples():
    """Root mean square of log-normal factors; one for all pixels of a draw."""
    mean, spread = torch.tensor([[0.0, 0.3, 0.6]]), torch.tensor([[0.0, 0.2, 0.4]])
    unseen = Unseen(mean, spread)
    normal = torch.randn(200_000, 1, 1, generator=torch.Generator().manual_seed(0))
    drawn = unseen.sample(torch.ones(200_000, 1, 3), normal)
    torch.testing.assert_close(drawn.square().mean(0).sqrt(), unseen.factor, rtol=5e-3, atol=0)
    torch.testing.assert_close(drawn[..., 2], drawn[..., 1].square())
    assert (drawn[..., 0] == 1).all()


def test_sizes_are_those_of_the_star_s_kind(remote_stellar, toy_stellar_batch):
    """As remote as a pixel is, of that star; without a residual term there is nothing to say."""
    latents = torch.zeros(len(toy_stellar_batch), remote_stellar.latent_dim + remote_stellar.residual_dim)
    found = unseen_posterior(remote_stellar, toy_stellar_batch, latents)
    remote = remoteness(toy_stellar_batch.mask)
    torch.testing.assert_close(found.mean, MEAN * remote)
    torch.testing.assert_close(found.spread, SPREAD * remote)
    order = [2, 0, 3, 1]
    turned = unseen_posterior(remote_stellar, toy_stellar_batch.select(order), latents)
    torch.testing.assert_close(turned.mean, found.mean[order])
    without = copy.deepcopy(remote_stellar)
    without.residual = None
    assert unseen_posterior(without, toy_stellar_batch, latents[:, : without.latent_dim]) is None


def test_nothing_changes_but_widths_where_nothing_was_seen(usual, wider):
    """The spectrum is the same, its error too where there is light; elsewhere it is larger, as said."""
    np.testing.assert_array_equal(usual.flux, wider.flux)
    np.testing.assert_array_equal(usual.flux_std[0], wider.flux_std[0])
    remote = remoteness(torch.as_tensor(usual.observed_mask))[1].numpy()
    assert remote[:40].max() == 0
    assert remote.max() == 1
    factor = np.exp(MEAN * remote + (SPREAD * remote) ** 2)
    np.testing.assert_allclose(wider.flux_std[1], factor * usual.flux_std[1], rtol=1e-5)


@pytest.mark.parametrize("of", ["flux_draws", "arviz"])
def test_draws_are_as_wide_as_the_errors_say(usual, wider, of):
    """About the same mean; where there is light they are the same draws."""
    if of == "flux_draws":
        before, after = (result.flux_draws(4000, 1) for result in (usual, wider))
        spread, mean = after.std(0), after.mean(0)
        np.testing.assert_allclose(spread, wider.flux_std[1], rtol=0.12)
        assert (np.abs(mean - wider.flux[1]) < 0.12 * wider.flux_std[1]).all()
    else:
        before, after = (
            np.concatenate(arviz_input(result._posterior(1, ""), replicates=1000).clean)
            for result in (usual, wider)
        )
    np.testing.assert_allclose(before[:, :40], after[:, :40], rtol=1e-5)
    middle = before.mean(0)
    ratio = (after - middle)[:, -20:].std(0) / (before - middle)[:, -20:].std(0)
    np.testing.assert_allclose(ratio, np.exp(MEAN + SPREAD**2), rtol=0.15)


def test_tails_are_heavier_by_the_spread(usual, wider):
    """Sizes differ from star to star, so 99 % intervals grow more than 50 % ones do."""
    ends = {
        level: [np.subtract(*result[1].interval(level)[::-1])[0, -20:].mean() for result in (usual, wider)]
        for level in (0.5, 0.99)
    }
    assert ends[0.99][1] / ends[0.99][0] > 1.1 * ends[0.5][1] / ends[0.5][0]


def test_runs_on_a_device_without_a_cpu_tensor_in_the_way(remote_stellar, toy_stellar_batch, only_meta):
    model = copy.deepcopy(remote_stellar).to("meta")
    batch = replace(
        toy_stellar_batch,
        **{k: v.to("meta") for k, v in vars(toy_stellar_batch).items() if isinstance(v, torch.Tensor)},
    )
    latents = torch.zeros(len(batch), model.latent_dim + model.residual_dim, device="meta")
    with only_meta():
        found = unseen_posterior(model, batch, latents)
        drawn = found.sample(batch.flux[None, :, 0], torch.zeros(1, 1, 1, device="meta"))
    assert drawn.is_meta
    assert found.factor.is_meta
