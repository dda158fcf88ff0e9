"""The ablation: what is taken out is gone, and what is put in last is the model."""

from __future__ import annotations

import pytest
import torch

from bayesspec.benchmark.ablation import variants
from bayesspec.exceptions import BayesspecError


def test_parts_that_are_taken_out_are_gone(toy_stellar, toy_model, toy_stellar_batch):
    parts = list(variants(toy_stellar, toy_model).values())
    assert parts[0] is toy_model
    assert parts[-1] is toy_stellar
    bare, discrepant, without_size = parts[2:5]
    z = toy_stellar.prior.centres[:, 0]
    w = torch.randn(len(z), toy_stellar.residual_dim, generator=torch.Generator().manual_seed(0))
    latents = torch.cat([z, w], dim=-1)
    torch.testing.assert_close(bare.spectrum(latents), toy_stellar.generator(z), atol=1e-3, rtol=0)
    assert (bare.residual.discrepancy(z, w) < 1e-3 * toy_stellar.residual.discrepancy(z, w)).all()
    usual = w.clone()
    usual[:, : toy_stellar.residual.sizes] = 0
    torch.testing.assert_close(
        discrepant.residual.discrepancy(z, usual), toy_stellar.residual.discrepancy(z, usual)
    )
    for same in (w, usual):
        torch.testing.assert_close(
            without_size.residual(z, same), toy_stellar.residual(z, usual), rtol=1e-2, atol=1e-4
        )


def test_only_a_model_with_a_residual_term_is_taken_apart(toy_model):
    with pytest.raises(BayesspecError, match="residual term"):
        variants(toy_model, toy_model)
