"""Laws of jumps: they leave the posterior what it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bayesspec.inference import nuts
from bayesspec.inference.chains import Settings
from bayesspec.inference.importance import Pool, effective, importance_draws
from bayesspec.inference.jumps import Jumps
from bayesspec.inference.newton import find_modes
from bayesspec.inference.nuts import nuts_draws
from bayesspec.inference.target import Target
from tests.conftest import first_exposures

CHAINS = 400


@pytest.fixture(scope="module")
def jumps(toy_stellar, toy_stellar_batch):
    """Of two stars, the second with a gap and a scale to find; 400 chains each, which ask twice."""
    target = Target(toy_stellar, first_exposures(toy_stellar_batch.select([0, 1])))
    pool = Pool.of(target, find_modes(toy_stellar, target.batch, starts=3))
    for seed in range(3):
        pool.draw(1024, seed)
        pool.adapt()
    pools = [pool.select(np.array([n])) for n in range(2)]
    pools[1].draw(1024, 3)  # one star may have learned more than the other
    pools[1].adapt()
    return Jumps(target, pool.given, pools, np.repeat([0, 1], CHAINS), range(2 * CHAINS), 2, 3)


def test_worth_is_that_of_importance_sampling(jumps):
    """Weighed by how much likelier a point is than it is proposed, proposals are draws of the posterior."""
    for star in range(2):
        worth = jumps.log_worth[:, jumps.star == star].flatten()
        evidence = worth.logsumexp(0) - np.log(len(worth))
        log_weight = torch.log_softmax(worth, 0).numpy()
        expected = np.logaddexp.reduce(jumps.pools[star].log_ratio[0]) - np.log(
            jumps.pools[star].log_ratio.shape[1]
        )
        assert abs(float(evidence) - expected) < 5 / effective(log_weight) ** 0.5 + 0.02


def test_density_of_proposals(jumps):
    """What is drawn and what its density is said to be belong together: w given the core, and the core."""
    rows = torch.arange(0, 2 * CHAINS, 50)
    theta = jumps.theta[1, rows]
    core, w = theta.tensor_split((jumps.target.core,), dim=-1)
    given = jumps.given.select(jumps.star[rows])
    normal = torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
    drawn, density = given.draw(core[None], normal[None])
    torch.testing.assert_close(given.log_prob(core, drawn[0]), density[0], atol=1e-2, rtol=1e-4)


def test_the_better_point_wins(jumps):
    """From a point of no density a chain jumps, and from one better than all proposals it does not."""
    rows = list(range(0, 2 * CHAINS, 100))
    theta = jumps.begin(0)[rows]
    nowhere, best = torch.full((len(rows),), -1e6), torch.full((len(rows),), 1e6)
    moved, accepted = jumps(rows, [0] * len(rows), theta, nowhere)
    assert (accepted > 0).all()
    assert (moved != theta).any(-1).all()
    stayed, accepted = jumps(rows, [0] * len(rows), theta, best)
    assert (accepted == 0).all()
    assert torch.equal(stayed, theta)


def test_every_proposal_is_offered_once(jumps):
    """Asked for the n-th time a chain is offered the next three, each against what it has taken by then.

    Proposals and levels are each chain's own.
    """
    rows, number = list(range(0, 2 * CHAINS, 20)), 1
    begin = jumps.begin(2)[rows]
    density = jumps.target.select(jumps.star[rows].numpy()).log_density(begin)
    found, accepted = jumps(rows, [number] * len(rows), begin, density)
    first = density.double() - jumps._log_proposal(jumps.star[rows], begin)
    for k, row in enumerate(rows):
        theta, worth, count = begin[k], first[k], 0
        for n in range(number * jumps.tries, (number + 1) * jumps.tries):
            if jumps.log_level[n, row] < jumps.log_worth[n, row] - worth:
                theta, worth, count = jumps.theta[n, row], jumps.log_worth[n, row], count + 1
        assert torch.equal(found[k], theta)
        assert accepted[k] == count
    assert accepted.max() > 1
    for numbers in (jumps.theta.flatten(0, 1), jumps.log_level.flatten()):
        assert len(numbers.unique(dim=0)) == len(numbers)


def test_the_posterior_stays(jumps, toy_stellar):
    """Chains that begin at draws of the posterior are draws of it after jumps alone; most have moved."""
    begin = theta = jumps.begin(1)
    target = jumps.target.select(jumps.star.numpy())
    rows = list(range(len(theta)))
    for number in range(2):
        theta, _ = jumps(rows, [number] * len(rows), theta, target.log_density(theta))
    moved = (theta != begin).any(-1)
    for star in range(2):
        own = jumps.star == star
        assert moved[own].float().mean() > 0.6
        before, after = begin[own], theta[own]
        free = jumps.target.free[star]
        std = before.std(0)[free]
        assert ((before.mean(0) - after.mean(0))[free].abs() < 4.5 * std * (2 / CHAINS) ** 0.5).all()
        ratio = after.std(0)[free] / std
        assert (ratio.log().abs() < 4.5 / CHAINS**0.5).all()


def test_begins_are_draws_by_their_weights(jumps):
    """As many of each draw as its weight says, to one."""
    for star in range(2):
        points = jumps.begin(3)[jumps.star == star]
        weight = torch.as_tensor(np.exp(jumps.pools[star].log_weight[0]))
        same = (points[:, None] == jumps.pools[star].theta[:, 0]).all(-1).sum(0)
        assert ((same - CHAINS * weight).abs() < 1.001).all()


@pytest.mark.parametrize(("learned", "draws", "rounds"), [(0, 9, 2), (10**9, 400, 5), (10**9, 1, 1)])
def test_importance_sampling_goes_on_until_it_has_learned(
    toy_stellar, toy_stellar_batch, monkeypatch, learned, draws, rounds
):
    """No shorter than told, and no longer; of few draws no longer than these need."""
    for name, value in {"ROUNDS": 2, "MORE_ROUNDS": 3, "JUMP_DRAWS": 64, "LEARNED": learned}.items():
        monkeypatch.setattr(nuts, name, value)
    target = Target(toy_stellar, first_exposures(toy_stellar_batch.select([0])))
    modes = find_modes(toy_stellar, target.batch, starts=2)
    settings = Settings(5, draws, 0.8, 2, 100, False, 1)
    found = nuts._prepared(target, modes, np.zeros(1, int), [1], settings, 0)
    assert len(found.pools[0].theta) == rounds * 64


def test_nuts_with_jumps_agrees_with_importance(toy_stellar, toy_stellar_batch):
    """Where there are many latents: means and widths of the core, within Monte Carlo error."""
    batch = first_exposures(toy_stellar_batch.select([1]))
    chains = nuts_draws(toy_stellar, batch, chains=2, warmup=50, draws=150, starts=8)
    weighted = importance_draws(toy_stellar, batch, draws=1024, starts=3)
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
