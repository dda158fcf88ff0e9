"""Surveys of a few stars whose truth is known, for the steps that count on the validation side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.library import StarLibrary
from bayesspec.training.split import split_by_hash


@pytest.fixture(scope="session")
def named() -> Callable[..., NDArray]:
    """Names that the split puts on a side."""

    def choose(side: str, count: int, test: float = 0.15) -> NDArray:
        names = np.array([f"s{n}" for n in range(30 * count)])
        return names[split_by_hash(names, test=test) == side][:count]

    return choose


@pytest.fixture(scope="session")
def validation_survey(named) -> Callable[..., tuple[StarLibrary, NoiseLibrary]]:
    """Clean stars, and eight nights of white noise of one size, all of them of the validation side."""

    def make(flux: NDArray, klass: NDArray, sigma: float) -> tuple[StarLibrary, NoiseLibrary]:
        stars = StarLibrary(
            flux,
            np.full_like(flux, 1e6),
            np.zeros(flux.shape, bool),
            klass,
            named("validation", len(klass)),
            np.full(len(klass), "observed"),
            np.full(len(klass), "toy"),
            np.full(len(klass), 1000.0, np.float32),
        )
        white = sigma * np.random.default_rng(0).normal(size=(8, flux.shape[1])).astype(np.float32)
        ivar = np.full_like(white, sigma**-2)
        return stars, NoiseLibrary(white, ivar, white > 9, named("validation", 8, test=0.25))

    return make
