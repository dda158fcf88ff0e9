"""What every test shares: where the development spectra are, and which third-party warnings are known."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u

from bayesspec.grid import WavelengthGrid
from bayesspec.inference.result import Result

SHARED = Path(
    os.environ.get("BAYESSPEC_DATA", Path(__file__).parents[1].parent / "shared" / "data")
).resolve()


def shared_files(pattern: str) -> list[Path]:
    """Development spectra that match, for parametrising; empty where they are absent."""
    return sorted(SHARED.glob(pattern))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development spectra; tests that read it skip where it is absent."""
    if not (SHARED / "stars.fits.gz").exists():
        pytest.skip("needs the development spectra (set BAYESSPEC_DATA to their folder)")
    return SHARED


@pytest.fixture(scope="session")
def make_result() -> Callable[..., Result]:
    """A result from nothing: N random stars, their exposures and masks; no model is needed."""

    def make(
        stars: int = 3, exposures: int = 2, *, seed: int = 0, ivar: bool = True, **changes: object
    ) -> Result:
        rng = np.random.default_rng(seed)
        grid, classes = WavelengthGrid(size=64), ("O", "B", "A", "F", "G", "K", "M", "CV", "Carbon", "WD")
        spectra = rng.uniform(0.5, 1.5, (stars, grid.size))
        sigma = rng.uniform(0.05, 0.2, (stars, exposures, grid.size))
        scale = rng.uniform(0.5, 2.0, (stars, exposures))
        mask = rng.random((stars, exposures, grid.size)) < 0.2
        mask[..., 10:20] = True
        mask[..., 0] = False
        noisy = scale[..., None] * (spectra[:, None] + sigma * rng.standard_normal(sigma.shape))
        probabilities = rng.dirichlet(np.full(len(classes), 0.3), stars)
        values = {
            "method": "map",
            "model_name": "made up",
            "grid": grid,
            "classes": classes,
            "names": tuple(f"star {n}" for n in range(stars)),
            "units": (u.Unit("1e-17 erg / (s cm2 Angstrom)"),) * stars,
            "model_flux": spectra,
            "unit_flux": rng.uniform(1, 50, stars),
            "z": rng.standard_normal((stars, 3)),
            "class_probabilities": probabilities,
            "best_class": probabilities.argmax(-1),
            "log_density": rng.standard_normal(stars),
            "scale": scale,
            "exposure_unit": rng.uniform(1, 50, (stars, exposures)),
            "observed_flux": np.where(mask, 0, noisy),
            "observed_ivar": np.where(mask, 0, (scale[..., None] * sigma) ** -2) * ivar,
            "observed_mask": mask,
            "chi2": rng.uniform(0.8, 1.2, stars),
            "used_fraction": rng.uniform(0, 1, stars),
            "observed_fraction": (~mask).any(-2).mean(-1),
            "outlier_score": rng.uniform(0, 1, stars),
        }
        return Result(**{**values, **changes})

    return make
