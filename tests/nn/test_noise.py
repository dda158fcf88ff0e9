"""Laws of the noise flow's conditioner."""

from __future__ import annotations

import math

import pytest
import torch

from bayesspec.nn.noise import ALPHA_MAX, NoiseNetwork


@pytest.fixture
def network() -> NoiseNetwork:
    """A network in float64 that uses every parameter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NoiseNetwork(kernel=5, channels=12, hidden=8, reach=2.0, initial_scale=0.5).double()
        torch.nn.init.normal_(network.heads.weight, std=0.3)
        yield network


@pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 3, 40), (0, 40), (3, 5), (3, 2), (9, 4099)])
def test_shapes(network: NoiseNetwork, shape: tuple[int, ...]) -> None:
    """Any batch, empty and larger than a block included, and any number of pixels."""
    eps = torch.randn(shape, dtype=torch.float64)
    mean, alpha = network(eps)
    assert mean.shape == alpha.shape == shape

    for row, mean_row, alpha_row in zip(eps.reshape(-1, shape[-1]), mean, alpha, strict=False):
        if len(shape) == 2:
            torch.testing.assert_close(network(row), (mean_row, alpha_row))


def test_step_is_forward(network: NoiseNetwork) -> None:
    """A step from the K pixels before gives a pixel what the pass over all pixels gives it."""
    eps = torch.randn(2, 3, 40, dtype=torch.float64)
    windows = eps.unfold(-1, network.kernel, 1)[..., :-1, :]
    for forward, step in zip(network(eps), network.step(windows), strict=True):
        torch.testing.assert_close(forward[..., network.kernel :], step)


def test_last_output_is_dropped(network: NoiseNetwork) -> None:
    """A pixel conditions the K pixels after it: not itself, none before, none beyond."""
    eps = torch.randn(40, dtype=torch.float64)
    mean, alpha = torch.autograd.functional.jacobian(lambda e: torch.stack(network(e)), eps)

    after = torch.arange(40)[:, None] - torch.arange(40)
    sees = (after >= 1) & (after <= network.kernel) & (torch.arange(40)[:, None] >= network.kernel)
    assert torch.equal(mean != 0, sees)
    assert torch.equal(alpha != 0, sees)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 30.0])
def test_starts_as_independent_gaussian(scale: float) -> None:
    """A new network says mean 0 and the given standard deviation, whatever it sees."""
    mean, alpha = NoiseNetwork(initial_scale=scale)(scale * torch.randn(3, 40))
    assert torch.equal(mean, torch.zeros_like(mean))
    torch.testing.assert_close(alpha, torch.full_like(alpha, math.log(scale)), rtol=1e-5, atol=1e-5)


def test_every_parameter_receives_a_gradient(network: NoiseNetwork) -> None:
    """Mean and log-width together depend on every parameter."""
    mean, alpha = network(torch.randn(3, 40, dtype=torch.float64))
    ((mean - 1).square().sum() + alpha.square().sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_no_input_breaks_it(network: NoiseNetwork) -> None:
    """Cosmic rays of any height leave widths within their bound and gradients finite."""
    eps = torch.zeros(40, dtype=torch.float64)
    eps[10], eps[30] = 1e6, -1e6
    eps.requires_grad_()

    mean, alpha = network(eps)
    assert mean.isfinite().all()
    assert (alpha.abs() <= ALPHA_MAX).all()
    (gradient,) = torch.autograd.grad((mean + alpha.exp() + (-alpha).exp()).sum(), eps)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "arguments", [{"kernel": 0}, {"hidden": 0}, {"initial_scale": 0.0}, {"initial_scale": 1e9}]
)
def test_arguments_are_validated(arguments: dict) -> None:
    """Sizes are positive and the scale is within the bound of widths."""
    with pytest.raises(ValueError, match=next(iter(arguments))):
        NoiseNetwork(**arguments)
