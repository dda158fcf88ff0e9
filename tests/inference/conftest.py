"""Real spectra for the engines; nothing here is imported before it is asked for."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def real_batch(shared_data):
    """Up to seven unseen stars of each class with unseen real noise: whole, gaps, one arm, two exposures."""
    from bayesspec.batch import ObservationBatch
    from bayesspec.grid import WavelengthGrid
    from bayesspec.training.exposures import NoiseLibrary
    from bayesspec.training.library import StarLibrary

    grid, rng = WavelengthGrid(), np.random.default_rng(0)
    stars = StarLibrary.read(shared_data / "stars.fits.gz", grid).clean(60).split("test")
    files = sorted(shared_data.glob("boss_epochs/spec-73*"))
    noise = NoiseLibrary.from_files(files, grid).split("test")
    whole = (~stars.mask).mean(1) > 0.98
    rows = [rng.permutation(np.flatnonzero(whole & (stars.klass == k)))[:7] for k in range(10)]
    stars = stars.select(np.concatenate(rows))

    pick = rng.integers(len(noise), size=(len(stars), 2))
    flux = stars.flux[:, None] + noise.residual[pick]
    mask = stars.mask[:, None] | noise.mask[pick]
    for n in range(len(stars)):
        if n % 5 < 4:
            mask[n, 1] = True  # one exposure
        if n % 5 == 1:
            mask[n, 0, 600:900] = True
        elif n % 5 == 2:
            mask[n, 0, 900:] = True
        elif n % 5 == 3:
            mask[n, 0, :900] = True
    seen = ~mask
    free = (seen.mean(-1) < 0.98) & seen.any(-1)
    unit = np.where(free, (flux * seen).sum(-1) / seen.sum(-1).clip(1), 1.0)
    return ObservationBatch.from_arrays(flux / unit[..., None], 0 * flux, mask, unit, free), stars.klass
