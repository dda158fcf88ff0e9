"""Laws of the noise extractor: what was put in comes out, with its variance."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from bayesspec.exceptions import ObservationError, ReadError
from bayesspec.grid import WavelengthGrid
from bayesspec.io import read
from bayesspec.observation import Observation
from bayesspec.training.exposures import NoiseLibrary, exposure_noise

GRID = WavelengthGrid(size=512)
SHAPE = 3 + np.sin(GRID.wavelength / 300)


def exposures(n, sigma=0.1, seed=0, mask=None, scale=None):
    rng = np.random.default_rng(seed)
    scale = np.ones(n) if scale is None else scale
    noise = sigma * rng.standard_normal((n, 512))
    flux = scale[:, None] * SHAPE.mean() * (SHAPE / SHAPE.mean() + noise)
    return Observation(GRID.wavelength, flux, mask=mask, name="star"), noise


@pytest.mark.parametrize("n", range(2, 11))
def test_variance_is_that_of_one_exposure(n):
    """However few exposures the mean is of: the leave-one-out factor."""
    spread = [exposure_noise(exposures(n, seed=s)[0], GRID)[0].std() for s in range(20)]
    assert np.mean(spread) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10])
@pytest.mark.parametrize("height", [-1e6, -1.0, 1.0, 3.0, 1e2, 1e5, 1e20])
@pytest.mark.parametrize("pixel", [0, 250, 511])
def test_a_hit_is_a_masked_pixel_to_all_others(n, height, pixel):
    """A hit of any height, in means of the star: the others' noise is as without it, and it stays whole."""
    star, noise = exposures(n, seed=n)
    flux = np.array([e.flux for e in star.exposures])
    # Where the ivar is known its own error may be as large as the hit.
    ivar = np.full(flux.shape, (0.1 * SHAPE.mean()) ** -2)
    mask = np.zeros(flux.shape, bool)
    mask[1, pixel] = True
    masked = exposure_noise(Observation(GRID.wavelength, flux, ivar, mask), GRID)
    flux[mask] += height * SHAPE.mean()
    ivar[mask] = np.maximum((height * SHAPE.mean()) ** -2.0, 1e-30)
    residual, _, bad = exposure_noise(Observation(GRID.wavelength, flux, ivar), GRID)
    assert np.abs(residual - masked[0])[~mask].max() < 0.005
    np.testing.assert_array_equal(bad[~mask], masked[2][~mask])
    assert residual[1, pixel] == pytest.approx(height + noise[1, pixel], rel=0.02, abs=0.2)


@pytest.mark.parametrize("sigmas", [2.0, 4.0, 5.0, 6.0, 8.0])
def test_what_may_be_noise_spoils_no_other_pixel(sigmas):
    """A pixel that is too far out for a Gaussian, and too near for a hit: the level knows nothing of it."""
    star, _ = exposures(3, sigma=0.05)
    flux = np.array([e.flux for e in star.exposures])
    before = exposure_noise(star, GRID)[0]
    flux[1, 250] += sigmas * 0.05 * SHAPE.mean()
    after = exposure_noise(Observation(GRID.wavelength, flux), GRID)[0]
    apart = np.arange(512) != 250
    assert np.abs(after - before)[:, apart].max() < 0.05 * 0.05


@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_tail_of_the_noise_stays(n):
    """As many hits come out as went in, and as high: none is cut off, none has a ghost."""
    rng = np.random.default_rng(n)
    star, noise = exposures(n, seed=1)
    hits = np.where(rng.random(noise.shape) < 0.01, 10 ** rng.uniform(0, 3, noise.shape), 0)
    hits *= (hits > 0).sum(0) == 1
    flux = SHAPE.mean() * hits + [e.flux for e in star.exposures]
    residual, _, bad = exposure_noise(Observation(GRID.wavelength, flux), GRID)
    np.testing.assert_array_equal(np.abs(residual) > 0.7, hits > 0)
    np.testing.assert_allclose(residual[hits > 0], hits[hits > 0], rtol=0.05, atol=0.4)
    assert not bad[hits > 0].any()
    assert residual[(hits == 0) & ~bad].std() == pytest.approx(0.1, rel=0.05)


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


def test_exposures_of_other_pixels_are_brought_together_by_the_whole_ones():
    """Blue-only and red-only ones share no pixel; their levels follow through those that both share."""
    mask = np.zeros((4, 512), bool)
    mask[0, 200:] = mask[1, :300] = True
    plain, _ = exposures(4, sigma=0.02, mask=mask)
    clouded, _ = exposures(4, sigma=0.02, mask=mask, scale=np.array([0.3, 3, 1, 2]))
    for a, b in zip(exposure_noise(plain, GRID), exposure_noise(clouded, GRID), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    residual, _, bad = exposure_noise(plain, GRID)
    assert residual[~bad].std() == pytest.approx(0.02, rel=0.05)
    assert np.abs(np.where(bad, 0, residual).sum(-1) / (~bad).sum(-1)).max() < 0.002


def test_one_exposure_has_no_noise():
    """There is nothing to compare it with."""
    with pytest.raises(ObservationError, match="star: noise needs two exposures"):
        exposure_noise(exposures(1)[0], GRID)


def test_exposures_of_nothing_have_no_noise():
    """Levels that nothing tells are no error."""
    flux = np.zeros((2, 512))
    residual, _, _ = exposure_noise(Observation(GRID.wavelength, flux), GRID)
    assert (residual == 0).all()


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


@pytest.mark.parametrize("bits", ["kept", "ignored"])
def test_real_exposures_have_one_level(shared_data, bits):
    """Medians of 100 pixels scatter as white noise does, the pipeline's mask bits read or not.

    Rebinning alone makes it some 5 % more; with plain means it was 2.5 times as much without bits.
    """
    away = []
    for file in sorted(shared_data.glob("boss_epochs/*.fits.gz"))[::4]:
        with fits.open(file) as hdus:
            for camera in hdus[4:] if bits == "ignored" else ():
                camera.data["mask"][:] = 0
            residual, _, mask = exposure_noise(read(hdus, exposures="individual"), WavelengthGrid())
        for first in range(0, 2000, 100):
            for part, bad in zip(residual[:, first : first + 100], mask[:, first : first + 100], strict=True):
                seen = part[~bad]
                if len(seen) > 80:
                    error = 1.2533 * 1.4826 * np.median(np.abs(seen - np.median(seen))) / np.sqrt(len(seen))
                    away.append(np.median(seen) / error)
    assert len(away) > 500
    assert np.std(away) < 1.15
