"""Laws of the noise extractor: what was put in comes out, with its variance."""

from __future__ import annotations

import numpy as np
import pytest

from bayesspec.data.noise import NoiseLibrary, exposure_noise
from bayesspec.exceptions import ObservationError, ReadError
from bayesspec.grid import WavelengthGrid
from bayesspec.observation import Observation

GRID = WavelengthGrid(size=512)
SHAPE = 3 + np.sin(GRID.wavelength / 300)


def exposures(n, sigma=0.1, seed=0, mask=None, scale=None):
    rng = np.random.default_rng(seed)
    scale = np.ones(n) if scale is None else scale
    noise = sigma * rng.standard_normal((n, 512))
    flux = scale[:, None] * SHAPE.mean() * (SHAPE / SHAPE.mean() + noise)
    return Observation(GRID.wavelength, flux, mask=mask, name="star"), noise


@pytest.mark.parametrize("n", [2, 3, 8])
def test_variance_is_that_of_one_exposure(n):
    """However few exposures the mean is of: the leave-one-out factor."""
    spread = [exposure_noise(exposures(n, seed=s)[0], GRID)[0].std() for s in range(20)]
    assert np.mean(spread) == pytest.approx(0.1, rel=0.02)


def test_scale_of_an_exposure_does_not_matter():
    """Clouds halve an exposure's flux: its residual is as if they had not."""
    star, _ = exposures(4)
    clouded, _ = exposures(4, scale=np.array([1, 0.5, 2, 0.8]))
    np.testing.assert_allclose(exposure_noise(star, GRID)[0], exposure_noise(clouded, GRID)[0], atol=1e-9)


def test_partial_exposures_are_in_the_unit_of_the_whole():
    """A red-only exposure's noise has the variance of the others', in the star's unit."""
    mask = np.zeros((6, 512), bool)
    mask[0, :256] = True
    star, _ = exposures(6, mask=mask)
    residual, _, bad = exposure_noise(star, GRID)
    assert bad[0, :256].all()
    assert residual[0, 256:].std() == pytest.approx(residual[1:, 256:].std(), rel=0.15)


def test_masked_pixels_are_left_out_of_the_mean():
    """A spike under the mask, or a pixel that only one exposure has, is nobody's noise."""
    mask = np.zeros((3, 512), bool)
    mask[0, 100] = True
    mask[1:, 200] = True
    star, _ = exposures(3, mask=mask)
    spiked = Observation(GRID.wavelength, np.where(mask, 1e9, [e.flux for e in star.exposures]), mask=mask)
    plain, spoiled = exposure_noise(star, GRID), exposure_noise(spiked, GRID)
    for a, b in zip(plain, spoiled, strict=True):
        np.testing.assert_array_equal(a, b)
    assert plain[2][:, 200].all()
    assert not plain[2][1:, 100].any()


def test_one_exposure_has_no_noise():
    """There is nothing to compare it with."""
    with pytest.raises(ObservationError, match="star: noise needs two exposures"):
        exposure_noise(exposures(1)[0], GRID)


def test_files_without_exposures_are_named(tmp_path):
    """The file and the cause."""
    file = tmp_path / "spec-1-2-3.txt"
    np.savetxt(file, np.stack([GRID.wavelength, SHAPE], -1))
    with pytest.raises(ReadError, match="spec-1-2-3"):
        NoiseLibrary.from_files([file], GRID)


def test_real_epochs(shared_data):
    """A real epoch: whitened by the pipeline's ivar its noise is near 1, and about a tenth of the flux."""
    files = sorted(shared_data.glob("boss_epochs/spec-7339-5675*"))
    noise = NoiseLibrary.from_files(files, WavelengthGrid())
    good = ~noise.mask
    assert noise.epoch[0].startswith("7339-5675")
    assert 0.05 < noise.residual[good].std() < 0.25
    whitened = noise.residual[good] * np.sqrt(noise.ivar[good])
    assert 0.6 < np.percentile(np.abs(whitened), 68) < 1.4
