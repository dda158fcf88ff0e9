"""What the tests of the distributions share: seeded randomness and a noise network that is not trivial."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from bayesspec.nn import NoiseNetwork, RobustNoiseNetwork


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from one seed and leaves the random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20210169)
        yield


@pytest.fixture
def p_value() -> Callable[[Tensor, str], float]:
    """How probable it is that numbers of a distribution, by its name in scipy, are as far from it.

    Pyro's own goodness of fit is of no use: its p-value of a chi square of some hundred is 1.
    """
    return lambda numbers, name: float(kstest(numbers.detach().flatten().double().numpy(), name).pvalue)


@pytest.fixture
def network() -> Callable[..., NoiseNetwork]:
    """Networks whose mean and width depend on the pixels before, in every parameter."""

    def build(kernel: int = 5, dtype: torch.dtype = torch.float64) -> NoiseNetwork:
        generator = torch.Generator().manual_seed(kernel)
        noise = NoiseNetwork(kernel, channels=12, hidden=8, reach=2.0, initial_scale=0.5).to(dtype)
        with torch.no_grad():
            for name, parameter in noise.named_parameters():
                size = 0.05 if name.startswith("convolution") else 0.3
                parameter += size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        return noise

    return build


@pytest.fixture
def robust_network() -> Callable[..., RobustNoiseNetwork]:
    """Robust networks whose mean and width depend on all they see, in every parameter."""

    def build(pixels: int, kernel: int = 5, components: int = 3) -> RobustNoiseNetwork:
        generator = torch.Generator().manual_seed(kernel)
        noise = RobustNoiseNetwork(pixels, kernel, channels=12, hidden=8, components=components).double()
        with torch.no_grad():
            for parameter in noise.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            noise.log_scales.copy_(torch.linspace(-0.3, 0.9, components))
        return noise

    return build
