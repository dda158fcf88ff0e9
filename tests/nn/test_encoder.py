"""Laws of the encoder: missing pixels and units do not matter to it."""

from __future__ import annotations

import torch

from bayesspec.nn import Encoder


def test_scale_and_masked_values_have_no_influence():
    """c * y gives the latent of y, and NaN under the mask that of anything else."""
    torch.manual_seed(0)
    encoder = Encoder(latent_dim=3, size=64, hidden=8, channels=(4, 8)).double()
    flux = torch.rand(5, 64, dtype=torch.float64) + 0.1
    mask = torch.rand(5, 64) < 0.3
    z = encoder(flux, mask)
    torch.testing.assert_close(encoder(7 * flux, mask), z)
    spoiled = torch.where(mask, torch.nan, flux).requires_grad_()
    torch.testing.assert_close(encoder(spoiled, mask), z)
    (gradient,) = torch.autograd.grad(encoder(spoiled, mask).sum(), spoiled)
    assert (gradient[mask] == 0).all()
    assert (gradient[~mask] != 0).any()


def test_nothing_observed_is_finite():
    """A spectrum without any pixel still has a latent, not NaN."""
    encoder = Encoder(latent_dim=3, size=64, hidden=8, channels=(4, 8))
    assert encoder(torch.full((1, 64), torch.nan), torch.ones(1, 64, dtype=torch.bool)).isfinite().all()
