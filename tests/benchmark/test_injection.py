"""Laws of what is injected: where sky lines are, and that cosmic rays only add."""

from __future__ import annotations

import numpy as np

from bayesspec.benchmark.injection import COSMIC_RAYS, SKY_LINES, cosmic_rays, sky_residuals
from bayesspec.grid import WavelengthGrid, air_to_vacuum

GRID = WavelengthGrid()


def test_residuals_are_at_sky_lines_alone():
    """Ten standard deviations of the profile away from every line there is nothing."""
    residual = sky_residuals(GRID, np.ones(GRID.size), np.random.default_rng(0))
    away = np.abs(GRID.wavelength - air_to_vacuum(list(SKY_LINES))[:, None]).min(0)
    assert np.abs(residual[away > 12]).max() < 1e-6
    assert np.abs(residual[away < 2]).max() > 3


def test_residuals_grow_with_the_noise():
    one, two = (sky_residuals(GRID, np.full(GRID.size, s), np.random.default_rng(0)) for s in (1.0, 2.0))
    np.testing.assert_allclose(two, 2 * one, atol=1e-12)


def test_cosmic_rays_add_and_are_as_many_as_they_say():
    rng = np.random.default_rng(0)
    flux = np.stack([cosmic_rays(np.ones(GRID.size), rng) for _ in range(400)])
    assert (flux >= 0).all()
    hit = (flux > 0).astype(int)
    clusters = (np.diff(hit, axis=-1, prepend=0) == 1).sum(-1)
    assert abs(clusters.mean() - COSMIC_RAYS) < 0.5
    assert flux.max(-1)[clusters > 0].min() >= 8
