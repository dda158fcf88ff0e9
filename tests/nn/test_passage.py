"""Laws of the passage of light: Doppler shift times smooth factors, and the density of its latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bayesspec.grid import WavelengthGrid
from bayesspec.nn import Passage
from bayesspec.physics.doppler import Shift
from bayesspec.physics.throughput import BORDER, arm_mode, calibration_modes, extinction_mode

F64 = torch.float64
GRID = WavelengthGrid(size=300)


@pytest.fixture
def passage():
    made = Passage(300, 4, (40.0, 0.1, 0.02, 0.03, 0.03), GRID.to_dict())
    curves = [extinction_mode(GRID), arm_mode(GRID), *calibration_modes(GRID, 2)]
    made.curves.copy_(torch.as_tensor(np.stack(curves)))
    return made.double()


@pytest.fixture
def x():
    return torch.tensor([[3.0, 3.0, 2.5, 0.7, -0.3], [-8.0, -1.0, 0.0, 0.3, 0.0]], dtype=F64)


def test_it_is_its_formula(passage, x):
    rest = torch.rand(2, 300, dtype=F64)
    physical = passage.physical(x)
    factor = torch.exp(physical[:, 1:] @ passage.curves)
    torch.testing.assert_close(passage(rest, x), factor * Shift(physical[:, 0], GRID).apply(rest))
    torch.testing.assert_close(physical, x * torch.tensor([40.0, 0.1, 0.02, 0.03, 0.03], dtype=F64))
    assert torch.equal(passage(rest, torch.zeros_like(x)), rest)


def test_derivatives_are_autograd_s(passage, x):
    """By x, and by anything that the spectrum at rest depends on."""
    by_rest = torch.randn(2, 300, 3, dtype=F64)
    u = torch.zeros(2, 3, dtype=F64)

    def spectrum(x, u):
        return passage(torch.linspace(1, 2, 300, dtype=F64) + (by_rest @ u[..., None])[..., 0], x)

    found, by_x, by_u = passage.jacobian(torch.linspace(1, 2, 300, dtype=F64).expand(2, -1), by_rest, x)
    torch.testing.assert_close(found, spectrum(x, u))
    expected = torch.autograd.functional.jacobian(lambda x, u: spectrum(x, u).sum(0), (x, u))
    torch.testing.assert_close(by_x, expected[0].transpose(0, 1))
    torch.testing.assert_close(by_u, expected[1].transpose(0, 1))


def test_the_density_is_student_s(passage, x):
    student = torch.distributions.StudentT(5.0, torch.zeros(5, dtype=F64), 1.0)
    torch.testing.assert_close(passage.log_prob(x), student.log_prob(x).sum(-1))


def test_names_are_of_the_latents(passage):
    assert passage.names == ("velocity_offset", "ebv_excess", "arm_step", "calibration 1", "calibration 2")
    assert passage.dim == len(passage.names)


def test_widths_have_to_fit():
    with pytest.raises(ValueError, match="needs 3 widths, not 2"):
        Passage(300, 2, (40.0, 0.1), GRID.to_dict())


def test_dust_reddens_as_fitzpatrick_says():
    """A(V) is 3.1 E(B-V), and A(B) - A(V) is E(B-V), near the middles of the bands."""
    grid = WavelengthGrid()
    magnitudes = -2.5 / np.log(10) * extinction_mode(grid)
    b, v = (np.interp(wavelength, grid.wavelength, magnitudes) for wavelength in (4405.0, 5470.0))
    assert b - v == pytest.approx(1.0, abs=0.08)
    assert (np.diff(magnitudes) < 0).all()


def test_modes_leave_the_mean_to_the_scale():
    grid = WavelengthGrid()
    for mode in (extinction_mode(grid), arm_mode(grid), *calibration_modes(grid, 3)):
        assert abs(mode.mean()) < 2e-3
    step = arm_mode(grid)
    assert np.ptp(step[grid.wavelength > BORDER]) == 0
    assert step.max() - step.min() == pytest.approx(1.0)


def test_another_prior_is_another_density(passage, x):
    """The density is that of the priors, whichever they are, in units of the widths."""
    before = passage.log_prob(x)
    old, new = passage.velocity_prior(), torch.distributions.Normal(-20.0, 5.0)
    passage.velocity_prior = lambda: new
    v = 40.0 * x[:, 0]
    torch.testing.assert_close(passage.log_prob(x) - before, new.log_prob(v) - old.log_prob(v))


def test_nowhere_has_no_density(passage, x):
    x[0, 1], x[1, 0] = torch.nan, torch.inf
    assert torch.equal(passage.log_prob(x), torch.full((2,), -torch.inf, dtype=F64))
