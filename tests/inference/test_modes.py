"""Laws of whatever finds the mode, AutoDelta or second-order steps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pyro
import pytest
import torch

from bayesspec.inference.map import map_estimate
from bayesspec.inference.newton import newton_estimate


@pytest.fixture(params=[partial(map_estimate, steps=80), newton_estimate], ids=["autodelta", "newton"])
def engine(request):
    """Finds the mode of every star of a batch."""
    return request.param


def test_permuting_the_batch_permutes_the_result(engine, toy_model, toy_batch):
    """A star's result does not depend on its neighbours."""
    order = [2, 0, 3, 1]
    straight = engine(toy_model, toy_batch)
    permuted = engine(toy_model, toy_batch.select(order))
    alone = engine(toy_model, toy_batch.select([1]))
    for whole, mixed, single in zip(straight, permuted, alone, strict=True):
        torch.testing.assert_close(whole[order], mixed, rtol=1e-3, atol=2e-3, equal_nan=True)
        torch.testing.assert_close(whole[1:2], single, rtol=1e-3, atol=2e-3, equal_nan=True)


def test_masked_pixels_have_no_influence(engine, toy_model, toy_batch):
    """NaN under the mask gives the same maximum to the last bit."""
    spoiled = replace(toy_batch, flux=torch.where(toy_batch.mask, torch.nan, toy_batch.flux))
    for clean, dirty in zip(engine(toy_model, toy_batch), engine(toy_model, spoiled), strict=True):
        assert torch.equal(clean.nan_to_num(7.0), dirty.nan_to_num(7.0))


@pytest.mark.parametrize("short", [partial(map_estimate, steps=5), partial(newton_estimate, iterations=3)])
def test_leaves_no_trace(short, toy_model, toy_batch):
    """Parameter store, random state, default dtype, threads and gradient mode are the caller's."""
    pyro.get_param_store().clear()
    pyro.param("mine", torch.ones(2))
    torch.manual_seed(1)
    before = torch.random.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    found = short(toy_model, toy_batch, classes="marginal")
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before[1:]
    assert torch.is_grad_enabled()
    assert not any(parameter.requires_grad for parameter in toy_model.parameters())
    assert not any(part.requires_grad for part in found)
    pyro.get_param_store().clear()
