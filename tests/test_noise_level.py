"""Laws of the noise level that an exposure itself tells of: robust, blind under the mask, in any unit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bayesspec.batch import ObservationBatch
from bayesspec.model import STATED, UNSTATED
from bayesspec.noise_level import fill_ivar, robust_level

D = 2048
SHAPE = 1 + 0.8 * torch.cos(torch.linspace(0, 5, D))
"""How the noise goes with wavelength: nine times as large in one place as in another."""
LEVELS = torch.tensor([0.01, 0.1, 1.0, 30.0])


@pytest.fixture
def noise():
    """Pure noise of four levels and one shape, (4, D); nothing is masked."""
    rng = torch.Generator().manual_seed(0)
    flux = LEVELS[:, None] * SHAPE * torch.randn(4, D, generator=rng)
    return flux, torch.zeros(4, D, dtype=torch.bool)


@pytest.fixture
def batch(noise):
    """Three stars of four exposures; the ivar is known of all, of two, and of none."""
    flux, mask = (torch.stack([part] * 3) for part in noise)
    mask = mask | (torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.05)
    mask[2, 3] = True
    ivar = (LEVELS[:, None] * SHAPE).square().reciprocal().expand(3, -1, -1).clone()
    ivar[1, 2:] = 0
    ivar[2] = 0
    arrays = (1 + flux).numpy(), ivar.numpy(), mask.numpy(), np.ones((3, 4)), np.zeros((3, 4), bool)
    return ObservationBatch.from_arrays(*arrays)


def test_level_of_noise_is_its_own(noise):
    """To the few per cent that a median of two thousand pixels is good for, over four decades."""
    torch.testing.assert_close(robust_level(*noise, SHAPE), LEVELS, rtol=0.08, atol=0)


def test_level_follows_its_units(noise):
    """c times the flux, c times the level; a reference in another unit, the level in its inverse."""
    flux, mask = noise
    level = robust_level(flux, mask, SHAPE)
    torch.testing.assert_close(robust_level(7 * flux, mask, SHAPE), 7 * level)
    torch.testing.assert_close(robust_level(flux, mask, 7 * SHAPE), level / 7)


def test_level_is_blind_to_stars(noise):
    """Continuum, lines and cosmic rays of any height move it by no more than the pixels they touch."""
    flux, mask = noise
    x = torch.linspace(0, 1, D)
    level = robust_level(flux, mask, SHAPE)
    continuum = 20 * LEVELS[:, None] * (1 + x + x.square())
    torch.testing.assert_close(robust_level(flux + continuum, mask, SHAPE), level, rtol=0.01, atol=0)

    lines = sum(torch.exp(-0.5 * ((x - centre) * D / 4) ** 2) for centre in (0.1, 0.35, 0.6, 0.9))
    with_lines = robust_level(flux - 50 * LEVELS[:, None] * lines, mask, SHAPE)
    torch.testing.assert_close(with_lines, level, rtol=0.06, atol=0)

    rays = flux.clone()
    rays[:, torch.arange(50, D, 150)] += 1e6
    torch.testing.assert_close(robust_level(rays, mask, SHAPE), level, rtol=0.06, atol=0)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30, 0.0])
def test_masked_pixels_have_no_influence(noise, batch, junk):
    """Whatever stands under the mask, in flux and in ivar, every result is the same to the last bit."""
    flux, mask = noise
    mask = torch.rand(mask.shape, generator=torch.Generator().manual_seed(2)) < 0.1
    spoiled = torch.where(mask, junk, flux)
    assert torch.equal(robust_level(spoiled, mask, SHAPE), robust_level(flux, mask, SHAPE))
    torch.testing.assert_close(robust_level(spoiled, mask, SHAPE), LEVELS, rtol=0.1, atol=0)

    hidden = {name: torch.where(batch.mask, junk, getattr(batch, name)) for name in ("flux", "ivar")}
    assert torch.equal(fill_ivar(replace(batch, **hidden), SHAPE).ivar, fill_ivar(batch, SHAPE).ivar)


def test_known_exposures_stay(batch):
    """Bit for bit; nothing but the ivar of the others changes."""
    filled = fill_ivar(batch, SHAPE)
    assert torch.equal(filled.ivar[0], batch.ivar[0])
    assert torch.equal(filled.ivar[1, :2], batch.ivar[1, :2])
    for name in ("flux", "mask", "unit_flux", "free_scale"):
        assert getattr(filled, name) is getattr(batch, name)


def test_filled_ivar_is_about_that_of_the_noise(batch):
    """Of the reference's shape exactly, of the noise's level nearly; positive where observed, 0 elsewhere."""
    filled = fill_ivar(batch, SHAPE)
    observed = ~batch.mask
    assert ((filled.ivar > 0) == observed).all()
    assert filled.ivar.isfinite().all()
    level = torch.where(observed, filled.ivar.rsqrt() / SHAPE, torch.nan)[2, :3]
    ends = (level.nan_to_num(-1).amax(-1), level.nan_to_num(torch.inf).amin(-1))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=0)
    torch.testing.assert_close(ends[0], LEVELS[:3], rtol=0.08, atol=0)


def test_filled_ivar_follows_the_unit_of_the_flux(batch):
    """c times the flux: ivar over c squared, as of a known one."""
    blind = replace(batch, ivar=0 * batch.ivar)
    before, after = (fill_ivar(replace(blind, flux=c * batch.flux), SHAPE).ivar for c in (1, 4))
    torch.testing.assert_close(after, before / 16)
    torch.testing.assert_close(fill_ivar(blind, 4 * SHAPE).ivar, before)


def test_an_exposure_of_which_some_is_unknown_is_unknown(batch):
    """Its known pixels do not stand out among the others."""
    ivar = batch.ivar.clone()
    ivar[0, 1, ::3] = 0
    ivar[1, 2, ::3] = 1e9
    partly, without = (fill_ivar(replace(batch, ivar=part), SHAPE).ivar for part in (ivar, 0 * ivar))
    assert torch.equal(partly[0, 1], without[0, 1])
    assert torch.equal(partly[1, 2], without[1, 2])


def test_permuting_stars_and_exposures_permutes(batch):
    """No exposure's ivar depends on its neighbours."""
    filled = fill_ivar(batch, SHAPE).ivar
    assert torch.equal(fill_ivar(batch.select([2, 0, 1]), SHAPE).ivar, filled[[2, 0, 1]])
    order = [3, 1, 0, 2]
    parts = {name: getattr(batch, name)[:, order] for name in ("flux", "ivar", "mask")}
    assert torch.equal(fill_ivar(replace(batch, **parts), SHAPE).ivar, filled[:, order])


def test_filling_twice_is_filling_once(batch):
    """What is filled is known."""
    filled = fill_ivar(batch, SHAPE)
    assert torch.equal(fill_ivar(filled, SHAPE).ivar, filled.ivar)


def test_runs_on_a_device_without_a_cpu_tensor_in_the_way(batch, only_meta):
    """No tensor is read or made elsewhere."""
    batch, reference = batch.to("meta"), SHAPE.to("meta")
    with only_meta():
        assert fill_ivar(batch, reference).ivar.shape == batch.ivar.shape


def test_a_guessed_level_may_be_further_off_than_a_stated_one(toy_stellar, toy_stellar_batch):
    """One width of its prior away it is 16 % larger where it is stated, and e times where it is not."""
    known = torch.arange(len(toy_stellar_batch)) % 2 == 0
    batch = replace(toy_stellar_batch, noise_known=known)
    latents = torch.zeros(len(batch), toy_stellar.lead_dim + toy_stellar.residual_dim)
    latents[:, toy_stellar.lead_dim] = 1.0
    flow = toy_stellar.likelihood(
        latents, toy_stellar.spectrum(latents), torch.ones(batch.mask.shape[:2]), batch
    )
    larger = torch.where(batch.mask, 1.0, flow.noise_std * batch.ivar.sqrt())
    expected = torch.where(known, STATED, UNSTATED).exp()[:, None, None].expand_as(larger)
    torch.testing.assert_close(larger, torch.where(batch.mask, 1.0, expected))
    assert STATED < UNSTATED
