"""Laws of the objective of eq. (10)."""

from __future__ import annotations

import math

import torch
from torch import nn

from bayesspec.nn.isometry import isometry_loss, match_unit, reconstruction_loss


class Linear(nn.Module):
    """A generator that stretches every distance by the same factor."""

    def __init__(self, factor):
        super().__init__()
        basis, _ = torch.linalg.qr(torch.randn(50, 3, dtype=torch.float64))
        self.matrix = factor * math.sqrt(50) * basis

    def forward(self, z):
        return z @ self.matrix.T


def test_isometries_cost_nothing():
    """The loss of a map that stretches by f is (f - 1)^2, whatever the radius."""
    torch.manual_seed(0)
    z = torch.randn(20, 3, dtype=torch.float64)
    for factor in (1.0, 0.7, 1.5):
        generator = Linear(factor)
        for radius in (0.01, 0.3):
            loss = isometry_loss(generator, z, generator(z), radius)
            torch.testing.assert_close(loss, torch.full_like(loss, (factor - 1) ** 2), atol=1e-9, rtol=1e-9)


def test_incomplete_spectra_are_compared_in_the_unit_of_the_complete_one():
    """A gap, and the unit that a spectrum with a gap is in, cost nothing if the spectrum is right."""
    torch.manual_seed(0)
    s = torch.rand(8, 40, dtype=torch.float64) + 0.2
    s = s / s.mean(-1, keepdim=True)
    mask = torch.rand(8, 40) < 0.4
    own_unit = torch.where(mask, 0.0, s).sum(-1, keepdim=True) / (~mask).sum(-1, keepdim=True)
    torch.testing.assert_close(reconstruction_loss(s / own_unit, mask, s), torch.zeros(8).double())
    assert (reconstruction_loss(2 * s, torch.zeros_like(mask), s) > 0.1).all()


def test_shrinking_the_spectrum_is_no_way_out():
    """The unit carries no gradient: the loss pulls the spectrum to the data, never both to zero."""
    s = torch.rand(4, 30).requires_grad_()
    mask = torch.zeros(4, 30, dtype=torch.bool)
    mask[:, 10:] = True
    assert not match_unit(torch.rand(4, 30), mask, s).requires_grad


def test_masked_pixels_have_no_influence():
    """NaN under the mask: same loss, zero gradient."""
    torch.manual_seed(0)
    s, y = torch.rand(4, 30), torch.rand(4, 30)
    mask = torch.rand(4, 30) < 0.3
    spoiled = torch.where(mask, torch.nan, y).requires_grad_()
    loss = reconstruction_loss(spoiled, mask, s)
    torch.testing.assert_close(loss, reconstruction_loss(y, mask, s))
    (gradient,) = torch.autograd.grad(loss.sum(), spoiled)
    assert (gradient[mask] == 0).all()
