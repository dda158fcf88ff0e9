"""Laws of the Doppler shift: it moves lines as the formula says, undoes itself, and has exact derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from bayesspec.grid import WavelengthGrid
from bayesspec.physics.doppler import SPEED_OF_LIGHT, Shift

F64 = torch.float64
GRIDS = [WavelengthGrid(), WavelengthGrid(log=True)]


def lines(grid: WavelengthGrid, ratio: float = 1.0, width: float = 6.0) -> torch.Tensor:
    """Absorption lines at rest wavelengths times a ratio, as wide in the rest frame whatever it is."""
    rest = torch.as_tensor(grid.wavelength) / ratio
    return 1 - sum(
        0.5 * torch.exp(-0.5 * ((rest - centre) / width) ** 2) for centre in (4341.7, 5891.6, 8500.4)
    )


@pytest.mark.parametrize("grid", GRIDS, ids=["linear", "log"])
@pytest.mark.parametrize("velocity", [-600.0, -123.4, 30.0, 600.0])
def test_a_line_moves_as_the_formula_says(grid, velocity):
    moved = Shift(torch.tensor(velocity, dtype=F64), grid).apply(lines(grid))
    expected = lines(grid, 1 + velocity / SPEED_OF_LIGHT)
    assert (moved - expected).abs().max() < 4e-3


@pytest.mark.parametrize("grid", GRIDS, ids=["linear", "log"])
def test_at_rest_nothing_changes(grid):
    spectrum = torch.randn(3, grid.size, dtype=F64)
    assert torch.equal(Shift(torch.zeros(3, dtype=F64), grid).apply(spectrum), spectrum)


@pytest.mark.parametrize("grid", GRIDS, ids=["linear", "log"])
def test_there_and_back(grid):
    velocity = torch.tensor([250.0, -480.0], dtype=F64)
    back = SPEED_OF_LIGHT * (1 / (1 + velocity / SPEED_OF_LIGHT) - 1)
    spectrum = lines(grid, width=10.0).expand(2, -1)
    again = Shift(back, grid).apply(Shift(velocity, grid).apply(spectrum))
    assert (again - spectrum)[:, 10:-10].abs().max() < 2e-3


@pytest.mark.parametrize(
    "grid", [WavelengthGrid(4000.0, 4100.0, 40), WavelengthGrid(4000.0, 4100.0, 40, True)]
)
def test_derivatives_are_those_of_the_shift(grid):
    """By autograd against finite differences, and `slope` against autograd."""
    spectrum = torch.randn(2, 40, dtype=F64, requires_grad=True)
    velocity = torch.tensor([130.0, -77.0], dtype=F64, requires_grad=True)
    assert gradcheck(lambda v, s: Shift(100 * v, grid).apply(s), (velocity / 100, spectrum))
    pull = torch.randn(2, 40, dtype=F64)
    (by_velocity,) = torch.autograd.grad((Shift(velocity, grid).apply(spectrum) * pull).sum(), velocity)
    slope = Shift(velocity, grid).slope(spectrum)
    torch.testing.assert_close(by_velocity, (slope * pull).sum(-1))


def test_columns_are_spectra():
    grid = GRIDS[0]
    shift, columns = (
        Shift(torch.tensor([70.0, -70.0], dtype=F64), grid),
        torch.randn(2, grid.size, 3, dtype=F64),
    )
    moved = shift.apply_columns(columns)
    for k in range(3):
        torch.testing.assert_close(moved[..., k], shift.apply(columns[..., k]))


@pytest.mark.parametrize("velocity", [0.0, 300.0, -300.0])
def test_what_is_masked_is_told(velocity):
    """A pixel that is not said to lack anything does not change with what stands at masked pixels."""
    grid = GRIDS[0]
    mask = torch.rand(grid.size, generator=torch.Generator().manual_seed(0)) < 0.1
    shift, spectrum = Shift(torch.tensor(velocity, dtype=F64), grid), lines(grid)
    spoiled = torch.where(mask, 1e6, spectrum)
    whole = ~shift.lacks(mask)
    assert torch.equal(shift.apply(spoiled)[whole], shift.apply(spectrum)[whole])
    assert 0.4 < whole.double().mean() < 0.95


def test_it_runs_on_a_device(only_meta):
    with only_meta():
        spectrum, velocity = torch.ones(2, 2048, device="meta"), torch.ones(2, device="meta")
        shift = Shift(velocity, GRIDS[0])
        assert shift.apply(spectrum).shape == shift.slope(spectrum).shape == (2, 2048)
        assert shift.apply_columns(torch.ones(2, 2048, 5, device="meta")).shape == (2, 2048, 5)
