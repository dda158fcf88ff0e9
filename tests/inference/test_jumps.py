"""Laws of jumps: they leave the posterior what it is, and there and back is nowhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bayesspec.inference.importance import Pool, importance_draws
from bayesspec.inference.jumps import Jumps
from bayesspec.inference.newton import find_modes
from bayesspec.inference.nuts import nuts_draws
from bayesspec.inference.target import Target

CHAINS = 400


@pytest.fixture(scope="module")
def jumps(toy_stellar, toy_stellar_batch):
    """Of two stars, the second with a gap and a scale to find; 400 chains each."""
    target = Target(toy_stellar, toy_stellar_batch.select([0, 1]))
    pool = Pool.of(target, find_modes(toy_stellar, target.batch, starts=3))
    for seed in range(3):
        pool.draw(1024, seed)
        pool.adapt()
    return Jumps(pool, np.repeat([0, 1], CHAINS), range(2 * CHAINS), 4)


def test_there_and_back(jumps):
    """A jump and its reverse: the same point, and logs of their ratios that cancel."""
    rows, number = list(range(0, 2 * CHAINS, 100)), [1] * 8
    theta = jumps.begin(0)[rows]
    there, ratio = jumps(rows, number, theta)
    assert (there - theta).norm(dim=-1).min() > 0.1

    end = jumps.pool.target.core
    back = Jumps(jumps.pool, jumps.star.numpy(), range(2 * CHAINS), 4)
    back.core[1, rows] = theta[:, :end]
    back.log_proposal = back.mixture.select(back.star).log_prob(back.core)
    again, other = back(rows, number, there)
    torch.testing.assert_close(again, theta, atol=2e-3, rtol=0)
    torch.testing.assert_close(other, -ratio, atol=2e-2, rtol=0)


def test_the_posterior_stays(jumps, toy_stellar):
    """Chains that begin at draws of the posterior are draws of it after jumps alone; most have moved."""
    begin = theta = jumps.begin(1)
    target = jumps.pool.target.select(jumps.star.numpy())
    density, rng = target.log_density(theta), torch.Generator().manual_seed(2)
    rows = list(range(len(theta)))
    for number in range(4):
        new, ratio = jumps(rows, [number] * len(rows), theta)
        value = target.log_density(new)
        accepted = torch.rand(len(theta), generator=rng).log() < value - density + ratio
        theta = torch.where(accepted[:, None], new, theta)
        density = torch.where(accepted, value, density)
    moved = (theta != begin).any(-1)
    for star in range(2):
        own = jumps.star == star
        assert moved[own].float().mean() > 0.7
        before, after = begin[own], theta[own]
        free = jumps.pool.target.free[star]
        std = before.std(0)[free]
        assert ((before.mean(0) - after.mean(0))[free].abs() < 4.5 * std * (2 / CHAINS) ** 0.5).all()
        ratio = after.std(0)[free] / std
        assert (ratio.log().abs() < 4.5 / CHAINS**0.5).all()


def test_begins_are_draws_by_their_weights(jumps):
    """As many of each draw as its weight says, to one."""
    for star in range(2):
        points = jumps.begin(3)[jumps.star == star]
        weight = torch.as_tensor(np.exp(jumps.pool.log_weight[star]))
        same = (points[:, None] == jumps.pool.theta[:, star]).all(-1).sum(0)
        assert ((same - CHAINS * weight).abs() < 1.001).all()


def test_nuts_with_jumps_agrees_with_importance(toy_stellar, toy_stellar_batch):
    """Where there are many latents: means and widths of the core, within Monte Carlo error."""
    batch = toy_stellar_batch.select([1])
    chains = nuts_draws(toy_stellar, batch, chains=2, warmup=50, draws=150)
    weighted = importance_draws(toy_stellar, batch, draws=2048, starts=3)
    jumped = chains.sample_stats["jumped"]
    assert 0.1 < (jumped > 0).mean() < 1
    weight = np.exp(weighted.log_weight[0, 0])
    error = 1 / np.sqrt(weighted.diagnostics["ess_bulk"][0]) + 1 / np.sqrt(chains.diagnostics["ess_bulk"][0])
    for name in ("z", "x"):
        yours = getattr(weighted, name)[0, 0]
        mine = getattr(chains, name)[0].reshape(-1, yours.shape[-1])
        mean = weight @ yours
        std = np.sqrt(weight @ (yours - mean) ** 2)
        assert (np.abs(mine.mean(0) - mean) < 4 * error * std).all()
        assert (np.abs(np.log(mine.std(0) / std)) < 4 * error).all()
