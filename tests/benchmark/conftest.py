"""Benchmark sets of made-up stars, small enough to be run by a bundle of random weights."""

from __future__ import annotations

import numpy as np
import pytest

from bayesspec.benchmark.sets import BenchmarkRecipe, build_sets
from bayesspec.grid import WavelengthGrid, mean_absolute_flux
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.library import StarLibrary

GRID = WavelengthGrid(size=128)
RECIPE = BenchmarkRecipe(1, 1, (160, 800), (160, 800), (3.0, 10.0), (30.0,), seed=1)


@pytest.fixture(scope="session")
def made_up_stars() -> StarLibrary:
    rng = np.random.default_rng(0)
    n = 400
    flux = (GRID.wavelength / 6000) ** rng.uniform(-3, 3, (n, 1))
    mask = np.zeros(flux.shape, bool)
    flux /= mean_absolute_flux(flux, mask)[:, None]
    return StarLibrary(
        flux.astype(np.float32),
        np.full(flux.shape, 1e4, np.float32),
        mask,
        np.arange(n) % 10,
        np.array([f"star {i}" for i in range(n)]),
        np.where(np.arange(n) % 3 == 0, "model", "observed"),
        np.full(n, "made up"),
        np.full(n, 100, np.float32),
    )


@pytest.fixture(scope="session")
def made_up_noise() -> NoiseLibrary:
    rng = np.random.default_rng(1)
    residual = 0.1 * rng.standard_normal((40, GRID.size))
    epochs = np.array([f"night {i // 2}" for i in range(40)])
    ivar = np.full(residual.shape, 100, np.float32)
    return NoiseLibrary(residual.astype(np.float32), ivar, np.zeros(residual.shape, bool), epochs)


@pytest.fixture(scope="session")
def small_sets(made_up_stars, made_up_noise):
    return list(build_sets(made_up_stars, made_up_noise, GRID, RECIPE))
