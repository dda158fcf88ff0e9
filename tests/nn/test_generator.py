"""Laws of the generator: it is a transposed-convolution network, smooth, and cheap."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from bayesspec.nn import Generator
from bayesspec.nn.generator import TransposedConvolution


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_transposed_convolution_is_torch_s(stride):
    """The matrix product and shifted sum equal torch's ConvTranspose1d with the same kernel."""
    torch.manual_seed(0)
    ours = TransposedConvolution(6, 5, stride)
    nn.init.normal_(ours.bias)
    theirs = nn.ConvTranspose1d(6, 5, kernel_size=2 * stride, stride=stride, padding=stride // 2)
    # (2 * stride * out, in): first the taps for the block itself, then those for the next one.
    kernel = ours.kernel.weight.reshape(2 * stride, 5, 6).permute(2, 1, 0)
    theirs.load_state_dict({"weight": kernel, "bias": ours.bias})
    x = torch.randn(3, 16, 6)
    torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2)).transpose(1, 2))


def test_jacobian_is_autograd_s():
    """The Jacobian by the chain rule equals reverse-mode autograd's, and its value equals G."""
    torch.manual_seed(0)
    generator = Generator(latent_dim=2, size=64, hidden=8, channels=(8, 4), strides=(4, 4)).double()
    z = torch.randn(3, 2, dtype=torch.float64)
    spectrum, jacobian = generator.jacobian(z)
    torch.testing.assert_close(spectrum, generator(z))
    for n in range(3):
        torch.testing.assert_close(jacobian[n], torch.autograd.functional.jacobian(generator, z[n]))
    assert torch.autograd.gradgradcheck(generator, z[:1].clone().requires_grad_())


def test_singular_values_are_those_of_the_jacobian():
    """From the Gram matrix or by SVD, per-pixel rms."""
    torch.manual_seed(0)
    generator = Generator(latent_dim=3, size=64, hidden=8, channels=(8, 4), strides=(4, 4)).double()
    z = torch.randn(2, 5, 3, dtype=torch.float64)
    _, jacobian = generator.jacobian(z)
    torch.testing.assert_close(generator.singular_values(z), torch.linalg.svdvals(jacobian / 64**0.5))


def test_any_batch_shape():
    """G maps each latent alone, whatever the shape of the batch."""
    generator = Generator(latent_dim=2, size=64, hidden=8, channels=(8, 4), strides=(4, 4))
    z = torch.randn(2, 3, 2)
    torch.testing.assert_close(generator(z)[1, 2], generator(z[1, 2]))


def test_sizes_that_do_not_fit_are_an_error():
    """Strides must divide the number of pixels, and be even."""
    with pytest.raises(ValueError, match="cannot make 100 pixels"):
        Generator(size=100)
    with pytest.raises(ValueError, match="must be even"):
        TransposedConvolution(2, 2, stride=3)


def test_one_device(only_meta):
    """G and its Jacobian touch no tensor of another device."""
    generator = Generator(latent_dim=2, size=64, hidden=8, channels=(8, 4), strides=(4, 4)).to("meta")
    with only_meta():
        assert generator.jacobian(torch.empty(3, 2, device="meta"))[1].shape == (3, 64, 2)


def test_costs_at_most_three_dense_layers():
    """One pass of a batch of 256 takes at most three dense 2048 x 2048 layers' time, in the same run."""
    generator, dense = Generator(latent_dim=3), nn.Linear(2048, 2048)
    z, x = torch.randn(256, 3), torch.randn(256, 2048)

    def seconds(network, value):
        times = []
        for _ in range(15):
            start = time.perf_counter()
            network(value)
            times.append(time.perf_counter() - start)
        return min(times)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads on a busy machine wait for each other
    try:
        with torch.no_grad():
            ratios = [seconds(generator, z) / seconds(dense, x) for _ in range(3)]
    finally:
        torch.set_num_threads(threads)
    assert min(ratios) <= 3
