"""Laws of the training loop: deterministic, and a stopped run that is resumed is the run that was not."""

from __future__ import annotations

import multiprocessing
import random
import signal
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bayesspec.exceptions import BayesspecError
from bayesspec.runtime import seeded
from bayesspec.training import loop


class Stop(Exception):
    """A kill, at a step of the test's choosing."""


def network():
    with seeded(3):
        return nn.Linear(4, 1)


def regression(net, stop_at=None):
    """Noisy linear regression; raises at a given call."""
    calls = 0

    def loss(rng):
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Stop
        x = torch.randn(16, 4, generator=rng)
        y = x @ torch.tensor([1.0, -2.0, 0.5, 3.0]) + 0.1 * torch.randn(16, generator=rng)
        return (net(x)[:, 0] - y).square().mean()

    return loss


def test_same_seed_same_weights():
    """Seeds decide everything; torch's own random state is not used and not changed."""
    state = torch.random.get_rng_state()
    nets = [network() for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        loop.minimise(net, regression(net), steps=30, learning_rate=0.05, seed=seed)
    assert torch.equal(nets[0].weight, nets[1].weight)
    assert not torch.equal(nets[0].weight, nets[2].weight)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_minimises():
    """The weights of the regression are found."""
    net = network()
    start = float(regression(net)(torch.Generator().manual_seed(0)).detach())
    end = loop.minimise(net, regression(net), steps=400, learning_rate=0.1, seed=0)
    torch.testing.assert_close(net.weight[0], torch.tensor([1.0, -2.0, 0.5, 3.0]), atol=0.05, rtol=0)
    assert end < 0.1 * start


def test_resumed_run_equals_one_that_was_never_stopped(tmp_path, monkeypatch):
    """Killed at any step and resumed from its checkpoint: the same weights to the last bit."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    straight = network()
    loop.minimise(straight, regression(straight), steps=40, learning_rate=0.05, seed=1)

    file = tmp_path / "deep" / "net.safetensors"
    for stop_at in (7, 13):
        killed = network()
        with pytest.raises(Stop):
            loop.minimise(
                killed, regression(killed, stop_at), steps=40, learning_rate=0.05, seed=1, checkpoint=file
            )
    resumed = network()
    end = loop.minimise(resumed, regression(resumed), steps=40, learning_rate=0.05, seed=1, checkpoint=file)
    assert torch.equal(straight.weight, resumed.weight)

    # A finished run is not run again.
    again = network()
    assert (
        loop.minimise(again, regression(again, 1), steps=40, learning_rate=0.05, seed=1, checkpoint=file)
        == end
    )
    assert torch.equal(straight.weight, again.weight)


def _train(file):
    net = network()
    net.register_buffer("ballast", torch.zeros(2**19))  # so that to write it takes longer than all else
    loop.minimise(net, regression(net), steps=30, learning_rate=0.05, seed=1, checkpoint=file)
    return net.weight


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_kill_9_at_random_moments(tmp_path, monkeypatch):
    """With a checkpoint after every step most kills fall into the writing of one: it is never half of one."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    file, rng, context = tmp_path / "net.safetensors", random.Random(3), multiprocessing.get_context("fork")
    whole, kills = _train(tmp_path / "whole.safetensors"), 0
    for _ in range(5):
        running = context.Process(target=_train, args=(file,))
        running.start()
        running.join(rng.uniform(0.01, 0.05))
        running.kill()
        running.join()
        kills += running.exitcode == -signal.SIGKILL
    assert kills > 0
    assert torch.equal(_train(file), whole)


def test_a_loss_that_is_not_finite_stops_the_run():
    """NaN is an error that says where, not a network of NaN."""
    net = network()
    with pytest.raises(BayesspecError, match="noise: the loss is nan at step 0"):
        loop.minimise(
            net, lambda rng: net.weight.sum() * torch.nan, steps=5, learning_rate=0.1, seed=0, label="noise"
        )


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-40]),
        lambda file: file.write_bytes(b""),
        lambda file: save_file({"rng": torch.zeros(3)}, file, {"progress": '{"step": 1, "running": 0}'}),
        lambda file: save_file({"rng": torch.zeros(3)}, file),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    """Cut short, empty, or of another network: one line that says which file."""
    file, net = tmp_path / "net.safetensors", network()
    loop.minimise(net, regression(net), steps=3, learning_rate=0.05, seed=1, checkpoint=file)
    damage(file)
    with pytest.raises(BayesspecError, match=r"net\.safetensors: not a checkpoint of this training") as error:
        loop.minimise(net, regression(net), steps=3, learning_rate=0.05, seed=1, checkpoint=file)
    assert "\n" not in str(error.value)


def test_progress_is_on_stderr(capsys):
    """Bars leave stdout to results."""
    net = network()
    loop.minimise(
        net, regression(net), steps=5, learning_rate=0.1, seed=0, progress=True, label="toy network"
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert "toy network" in err
