"""Laws of the second-order optimiser: AutoDelta's optimum, whatever the gaps, scales and neighbours."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from bayesspec.inference.density import log_joint
from bayesspec.inference.map import map_estimate
from bayesspec.inference.newton import LONGEST, _Climb, _updated, climb, find_modes, newton_estimate
from bayesspec.inference.target import Target
from tests.conftest import first_exposures


@pytest.mark.parametrize("classes", ["joint", "marginal"])
def test_reaches_the_reference_optimum(toy_model, toy_batch, classes):
    """Log density within 0.05 of AutoDelta's, or better, and it is the density there."""
    found = newton_estimate(toy_model, toy_batch, classes=classes, starts=3)
    reference = map_estimate(toy_model, toy_batch, classes=classes, starts=3, steps=500)
    assert (found.log_density > reference.log_density - 0.05).all()
    density, klass = log_joint(toy_model, toy_batch, found.z, found.log_scale, classes)
    assert torch.equal(density, found.log_density)
    assert torch.equal(klass, found.klass)
    assert (found.log_scale[~toy_batch.free_scale] == 0).all()


def test_the_promise_is_that_of_the_climb_that_won(toy_model, toy_batch):
    """Not of another one, which may have ended earlier or later."""
    modes = find_modes(toy_model, toy_batch, classes="joint", iterations=2)
    best = modes.log_density.argmax(-1)
    found = newton_estimate(toy_model, toy_batch, iterations=2)
    assert (best > 0).any()
    assert torch.equal(found.promise, modes.promise[torch.arange(len(best)), best])


def test_curvature_is_learned_from_steps():
    """Along a step it becomes what the gradients say, but never less than a fifth of what it was (Powell)."""
    rng = torch.Generator().manual_seed(0)
    root, step = (torch.randn(50, *shape, generator=rng, dtype=torch.float64) for shape in ((4, 4), (4,)))
    old = root @ root.mT + torch.eye(4, dtype=torch.float64)
    change = (old @ step[..., None])[..., 0] * torch.linspace(-1, 3, 50, dtype=torch.float64)[:, None]
    new = _updated(old, step, change)
    along, was, told = (
        (step * part).sum(-1)
        for part in ((new @ step[..., None])[..., 0], (old @ step[..., None])[..., 0], change)
    )
    torch.testing.assert_close(along, told.maximum(0.2 * was))
    assert (torch.linalg.eigvalsh(new) > 0).all()


def test_a_climb_never_descends(toy_model, toy_batch):
    """However bad the start, the end is no lower."""
    batch = replace(toy_batch, flux=toy_batch.flux.double())
    target = Target(copy.deepcopy(toy_model).double(), batch)
    theta = target.join(*(torch.randn(part.shape).double() for part in target.split(target.free.double())))
    begin = target.log_density(theta)
    for iterations in (1, 3, 30):
        _, end, *_ = climb(target, theta, np.arange(len(theta)), iterations)
        assert (end >= begin).all()
        begin = end


def test_a_size_that_explains_nothing_does_not_run_away(toy_stellar, toy_stellar_batch):
    """Where the size of the residuals hardly changes with h, a misfit sends no climb to absurd h.

    No step changes h by more than `LONGEST`, none promises less than nothing, and every star keeps a mode.
    """
    model = copy.deepcopy(toy_stellar)
    model.residual.spread.fill_(0.02)
    model.residual.local_spread.fill_(0.02)
    batch = first_exposures(toy_stellar_batch, 2)
    batch = replace(batch, ivar=1e6 * batch.ivar)
    target = Target(model, batch)
    theta = target.join(*(torch.randn(part.shape) for part in target.split(target.free.float())))
    state = _Climb(theta, *target.gradient(theta), target.metric(theta), torch.full((len(theta),), 1e-6))
    step, _ = state.proposal(slice(target.end, target.core))
    assert step[:, target.end : target.core].norm(dim=-1).max() == pytest.approx(LONGEST)
    assert (state.promise() >= 0).all()
    assert find_modes(model, batch).log_density.amax(-1).isfinite().all()


@pytest.mark.gpu
def test_runs_on_a_gpu(toy_model, toy_batch):
    """The same optimum on a real device."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    here = newton_estimate(toy_model, toy_batch)
    there = newton_estimate(copy.deepcopy(toy_model).cuda(), toy_batch.to("cuda"))
    torch.testing.assert_close(here.log_density, there.log_density.cpu(), rtol=1e-4, atol=1e-2)
