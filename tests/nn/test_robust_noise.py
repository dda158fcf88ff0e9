"""Laws of the robust noise flow's conditioner."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bayesspec.nn.robust_noise import ALPHA_MAX, MEAN_MAX, RobustNoiseNetwork

F64 = torch.float64
K, D = 5, 40


@pytest.fixture
def network() -> RobustNoiseNetwork:
    """A network in float64 that uses every parameter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = RobustNoiseNetwork(D, K, channels=12, hidden=8).double()
        torch.nn.init.normal_(network.heads.weight, std=0.3)
        yield network


def known(*batch: int) -> tuple[Tensor, Tensor]:
    """Standard deviations, and which pixels are observed."""
    return torch.rand(*batch, D, dtype=F64) + 0.3, torch.rand(*batch, D) > 0.2


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,), (900,)])
@pytest.mark.parametrize("draws", [(), (4,)])
def test_shapes(network: RobustNoiseNetwork, draws: tuple[int, ...], batch: tuple[int, ...]) -> None:
    """Any batch, empty and larger than a block included; leading dimensions share a context."""
    t, context = torch.randn(*draws, *batch, D, dtype=F64), network.context(*known(*batch))
    mean, alpha = network(t, context)
    assert mean.shape == alpha.shape == t.shape

    full = context.reshape(len(context), *[1] * len(draws), *batch, D).expand(-1, *t.shape)
    torch.testing.assert_close(network(t, full), (mean, alpha))


def test_step_is_forward(network: RobustNoiseNetwork) -> None:
    """A step from the K pixels before, zero where there is none, is what the pass over all pixels gives."""
    t, context = torch.randn(2, 3, D, dtype=F64), network.context(*known(2, 3))
    windows = torch.nn.functional.pad(t, (K, 0)).unfold(-1, K, 1)[..., :-1, :]
    for forward, step in zip(network(t, context), network.step(windows, context), strict=True):
        torch.testing.assert_close(forward, step)


def test_conditionals_are_causal(network: RobustNoiseNetwork) -> None:
    """A pixel conditions the K pixels after it: not itself, none before, none beyond."""
    t, context = torch.randn(D, dtype=F64), network.context(*known())
    mean, alpha = torch.autograd.functional.jacobian(lambda t: torch.stack(network(t, context)), t)

    after = torch.arange(D)[:, None] - torch.arange(D)
    sees = (after >= 1) & (after <= K)
    assert torch.equal(mean != 0, sees)
    assert torch.equal(alpha != 0, sees)


def test_context_flags_the_pixels_before(network: RobustNoiseNetwork) -> None:
    """A missing pixel, and the edge, are flagged to the K pixels after, not to itself; zero is no flag."""
    noise_std, observed = torch.ones(D, dtype=F64), torch.ones(D, dtype=torch.bool)
    holed = observed.clone()
    holed[20] = False
    t, differs = torch.zeros(D, dtype=F64), torch.zeros(D, dtype=torch.bool)
    differs[21 : 21 + K] = True
    mean, alpha = (
        a - b
        for a, b in zip(
            network(t, network.context(noise_std, holed)),
            network(t, network.context(noise_std, observed)),
            strict=True,
        )
    )
    assert torch.equal(mean != 0, differs)
    assert torch.equal(alpha != 0, differs)
    assert (network.context(noise_std, observed)[:K, :K].sum(0) == torch.arange(K)).all()


def test_contrast_knows_no_unit() -> None:
    """Contrast is that of the noise's shape: any unit, and any value where not observed, give the same."""
    noise_std, observed = known(3)
    contrast = RobustNoiseNetwork.contrast(noise_std, observed)
    junk = torch.where(observed, 1e-17 * noise_std, 1.0)
    torch.testing.assert_close(RobustNoiseNetwork.contrast(junk, observed), contrast)
    assert (contrast[~observed] == 0).all()

    flat, line = torch.ones(200, dtype=F64), torch.ones(200, dtype=torch.bool)
    flat[100] = 3.0
    contrast = RobustNoiseNetwork.contrast(flat, line)
    torch.testing.assert_close(contrast[100].atanh().item(), 48 / 49 * 1.0986123, rtol=1e-6, atol=0.0)
    assert contrast[[0, 50, 150, 199]].abs().max() < 1e-12


def test_starts_as_the_pipeline_s() -> None:
    """A new network says mean 0 and log-width 0, whatever it sees; its mixture is normalised."""
    network = RobustNoiseNetwork(D)
    mean, alpha = network(torch.randn(3, D), network.context(torch.rand(3, D) + 0.1, torch.rand(3, D) > 0.5))
    assert torch.equal(mean, torch.zeros(3, D))
    assert torch.equal(alpha, torch.zeros(3, D))
    log_weights, scales = network.mixture()
    torch.testing.assert_close(log_weights.exp().sum().item(), 1.0)
    assert (scales.diff() > 0).all()
    assert scales[-1] > 20


def test_it_is_smooth(network: RobustNoiseNetwork) -> None:
    """First and second derivatives by the noise are those of finite differences."""
    context = network.context(*known())
    t = torch.randn(D, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: network(t, context), t)
    assert torch.autograd.gradgradcheck(lambda t: network(t, context), t, fast_mode=True)


def test_no_input_breaks_it(network: RobustNoiseNetwork) -> None:
    """Cosmic rays of any height leave means and widths within their bounds and gradients finite."""
    t = torch.zeros(D, dtype=F64)
    t[10], t[30] = 1e6, -1e6
    mean, alpha = network(t.requires_grad_(), network.context(*known()))
    assert (mean.abs() <= MEAN_MAX).all()
    assert (alpha.abs() <= ALPHA_MAX).all()
    assert torch.autograd.grad((mean + alpha).sum(), t)[0].isfinite().all()


def test_its_config_builds_it(network: RobustNoiseNetwork) -> None:
    """A network of the same config takes its state and says the same."""
    twin = RobustNoiseNetwork(**network.config).double()
    twin.load_state_dict(network.state_dict())
    t, context = torch.randn(D, dtype=F64), network.context(*known())
    assert torch.equal(torch.stack(twin(t, context)), torch.stack(network(t, context)))
    assert network.reference.shape == (D,)


@pytest.mark.parametrize("arguments", [{"pixels": 0}, {"kernel": 0}, {"components": 0}, {"reach": 0.0}])
def test_arguments_are_validated(arguments: dict) -> None:
    """Sizes and the reach are positive."""
    with pytest.raises(ValueError, match=next(iter(arguments))):
        RobustNoiseNetwork(**arguments)
