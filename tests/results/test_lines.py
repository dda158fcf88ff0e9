"""Widths of lines in results: at rest whatever the velocity, in Angstrom whatever the flux's unit."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from bayesspec import WavelengthGrid, denoise
from bayesspec.results.lines import LINES, equivalent_width
from bayesspec.results.table import line_columns

GRID = WavelengthGrid()


def _spectrum(velocity=0.0):
    """H alpha and Na D on a slope, of a star that moves."""
    rest = GRID.wavelength / (1 + velocity / 299_792.458)
    dips = (0.5 * np.exp(-0.5 * ((rest - w) / 5) ** 2) for w in (6564.6, 5894.6))
    return (1 - sum(dips)) * (GRID.wavelength / 6000) ** -1.5


@pytest.mark.parametrize("velocity", [-800.0, -50.0, 300.0, 900.0])
def test_the_width_is_that_at_rest(velocity):
    nothing = np.zeros(GRID.size, bool)
    for name in ("H alpha", "Na D"):
        at_rest, _ = equivalent_width(GRID, _spectrum(), nothing, LINES[name])
        moving, measured = equivalent_width(GRID, _spectrum(velocity), nothing, LINES[name], velocity)
        assert measured
        assert moving == pytest.approx(at_rest, rel=0.02)  # edges of bands fall elsewhere in pixels


def test_a_line_that_is_mostly_unseen_is_masked():
    seen = np.ones((2, GRID.size), bool)
    seen[1, (GRID.wavelength > 6500) & (GRID.wavelength < 6600)] = False
    columns = line_columns(GRID, [_spectrum()[None]] * 2, seen, np.zeros(2))
    assert columns["ew_h_alpha"].mask.tolist() == [False, True]
    assert columns["ew_na_d"].mask.tolist() == [False, False]
    assert not any(name.endswith("_err") for name in columns)


def test_draws_give_mean_and_width():
    """Of lines whose depths are known, one draw after another."""
    depth = np.random.default_rng(5).uniform(0.4, 0.6, 200)
    line = np.exp(-0.5 * ((GRID.wavelength - 6564.6) / 4) ** 2)
    columns = line_columns(GRID, [1 - depth[:, None] * line], np.ones((1, GRID.size), bool), np.zeros(1))
    area = 4 * np.sqrt(2 * np.pi)
    assert columns["ew_h_alpha"][0] == pytest.approx(depth.mean() * area, rel=0.01)
    assert columns["ew_h_alpha_err"][0] == pytest.approx(depth.std() * area, rel=0.01)


def test_a_result_has_them_and_so_have_its_files(tmp_path):
    from bayesspec.demo import example_star

    star = example_star()
    point, drawn = denoise(star), denoise(star, method="laplace", draws=128)
    table, mode = drawn.equivalent_widths(), point.equivalent_widths()
    for name in ("ew_h_alpha", "ew_h_beta", "ew_mg_b"):
        assert abs(table[name][0] - mode[name][0]) < 5 * table[f"{name}_err"][0]
        assert table[name].unit == "Angstrom"
    drawn.write(tmp_path)
    summary = Table.read(tmp_path / "summary.ecsv")
    assert summary["ew_h_alpha"][0] == pytest.approx(table["ew_h_alpha"][0])
    assert summary["ew_h_alpha_err"][0] > 0
