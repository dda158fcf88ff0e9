"""Laws of the scan of the training latents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bayesspec.batch import ObservationBatch
from bayesspec.inference.scan import APART, LatentScan


def test_finds_the_latent_of_a_noiseless_spectrum(toy_model):
    """Each training latent's own spectrum, at any scale and with a gap, leads back to it (or its double)."""
    scan = LatentScan(toy_model)
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2, len(scan.z))
    flux = scan.templates.numpy()[:, None] * scale[:, None, None]
    mask = np.zeros(flux.shape, bool)
    mask[:, :, 30:45] = True
    batch = ObservationBatch.from_arrays(
        flux, 0 * flux, mask, np.ones(mask.shape[:2]), np.ones(mask.shape[:2], bool)
    )
    starts = scan.starts(batch, 2)
    found = starts.log_scale[:, 0].exp() * toy_model.generator(starts.z[:, 0])
    torch.testing.assert_close(found, torch.as_tensor(flux[:, 0], dtype=torch.float32), rtol=0, atol=0.02)
    assert (starts.z[:, 0] - scan.z).square().sum(-1).sqrt().median() == 0


def test_starts_are_of_different_classes(toy_model, toy_batch):
    """S starts are in S classes, and each latent is a training latent of its class."""
    scan = LatentScan(toy_model)
    starts = scan.starts(toy_batch, 3)
    assert (starts.klass.sort(-1).values == torch.arange(3)).all()
    for z, klass in zip(starts.z.reshape(-1, 2), starts.klass.reshape(-1), strict=True):
        assert (scan.z[scan.klass == klass] == z).all(-1).any()


def test_known_scales_stay(toy_model, toy_batch):
    """The log scale of an exposure whose scale is known is zero, and masked pixels have no influence."""
    scan = LatentScan(toy_model)
    starts = scan.starts(toy_batch, 3)
    known = ~toy_batch.free_scale[:, None].expand_as(starts.log_scale)
    assert (starts.log_scale[known] == 0).all()
    spoiled = replace(toy_batch, flux=torch.where(toy_batch.mask, torch.nan, toy_batch.flux))
    for clean, dirty in zip(starts, scan.starts(spoiled, 3), strict=True):
        assert torch.equal(clean, dirty)


def test_spread_starts_are_apart(toy_model, toy_batch):
    """No two are closer than APART, the first is the best of all classes, and known scales stay."""
    scan = LatentScan(toy_model)
    spread = scan.spread(toy_batch, 4)
    distance = torch.cdist(spread.z, spread.z) + torch.eye(4)
    assert (distance >= APART - 1e-4).all()
    assert torch.equal(spread.z[:, 0], scan.starts(toy_batch, 1).z[:, 0])
    known = ~toy_batch.free_scale[:, None].expand_as(spread.log_scale)
    assert (spread.log_scale[known] == 0).all()
