"""Laws of joining the two arms of an exposure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from bayesspec.grid import NativePixels, WavelengthGrid, rebin
from bayesspec.io.arms import Frame, join_arms, pair_frames
from bayesspec.observation import Exposure

BLUE = np.arange(5600.0, 6100.0, 1.13)
RED = np.arange(5850.0, 6400.0, 1.38)


def arm(wavelength, flux, ivar, bad=False):
    mask = np.broadcast_to(bad, wavelength.shape)
    return Exposure(wavelength, np.where(mask, 0, flux), np.where(mask, 0.0, ivar), mask)


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.5), st.floats(0.1, 10))
def test_what_both_arms_agree_on_stays(seed, bad, ratio):
    """A straight line through both arms is kept, to the little that a masked neighbour can tilt it."""
    rng = np.random.default_rng(seed)
    blue = arm(BLUE, 3.0 + 1e-3 * (BLUE - 6000), 1.0, rng.random(len(BLUE)) < bad)
    red = arm(RED, 3.0 + 1e-3 * (RED - 6000), ratio, rng.random(len(RED)) < bad)
    joined = join_arms(blue, red)
    expected = 3.0 + 1e-3 * (joined.wavelength - 6000)
    assert_allclose(joined.flux[~joined.mask], expected[~joined.mask], atol=1e-3)
    assert (np.diff(joined.wavelength) > 0).all()
    assert_array_equal(joined.ivar > 0, ~joined.mask)
    assert not joined.flux[joined.mask].any()


def test_pixels_of_one_arm_only_are_untouched():
    rng = np.random.default_rng(0)
    blue = arm(BLUE, rng.normal(size=len(BLUE)), rng.uniform(1, 2, len(BLUE)), rng.random(len(BLUE)) < 0.1)
    red = arm(RED, rng.normal(size=len(RED)), rng.uniform(1, 2, len(RED)), np.arange(len(RED)) % 9 == 4)
    joined = join_arms(blue, red)
    for name in ("wavelength", "flux", "ivar", "mask"):
        mine, left, right = (getattr(exposure, name) for exposure in (joined, blue, red))
        assert_array_equal(mine[joined.wavelength < 5849], left[BLUE < 5849])
        assert_array_equal(mine[joined.wavelength > 6102], right[RED > 6102])


def test_a_masked_overlap_leaves_it_to_the_other_arm():
    rng = np.random.default_rng(1)
    red = arm(RED, rng.normal(size=len(RED)), rng.uniform(1, 2, len(RED)))
    blue = arm(BLUE, rng.normal(size=len(BLUE)), 1.0, BLUE > 5800)
    joined = join_arms(blue, red)
    assert_array_equal(joined.flux[-len(RED) :], red.flux)
    assert_array_equal(joined.ivar[-len(RED) :], red.ivar)

    dead = arm(RED, 1.0, 1.0, RED < 6110)
    whole = arm(BLUE, rng.normal(size=len(BLUE)), 1.0)
    assert_array_equal(join_arms(whole, dead).flux[: len(BLUE)], whole.flux)


def test_the_ivar_of_both_arms_adds_up():
    """Over the overlap, each blue pixel counts once and so does each red one."""
    rng = np.random.default_rng(2)
    blue, red = arm(BLUE, 1.0, rng.uniform(1, 2, len(BLUE))), arm(RED, 1.0, rng.uniform(1, 2, len(RED)))
    joined = join_arms(blue, red)
    assert_allclose(joined.ivar.sum(), blue.ivar.sum() + red.ivar.sum(), atol=4)


def test_the_noise_on_a_grid_is_as_stated():
    """Drawn noise, joined and rebinned: its variance is 1 / ivar in the blue, the overlap and the red."""
    rng = np.random.default_rng(3)
    grid = WavelengthGrid(5620.0, 6380.0, 160)
    noise = []
    for _ in range(1500):
        joined = join_arms(
            arm(BLUE, rng.normal(size=len(BLUE)), 1.0), arm(RED, 0.7 * rng.normal(size=len(RED)), 0.7**-2)
        )
        flux, ivar, mask = rebin(joined.wavelength, joined.flux, joined.ivar, joined.mask, grid)
        noise.append(flux * np.sqrt(ivar))
    assert not mask.any()
    variance = np.var(noise, axis=0)
    for low, high in ((5630, 5840), (5870, 6090), (6110, 6370)):
        assert_allclose(variance[(grid.wavelength > low) & (grid.wavelength < high)].mean(), 1, atol=0.06)


def frame(name, key=None):
    centre = BLUE if name.startswith("B") else RED + 2000
    return Frame(name, key, arm(centre, 1.0, 1.0))


@given(st.permutations([(camera, n) for camera in "BR" for n in range(4)]))
def test_partners_share_their_key_in_any_order(order):
    pairs = pair_frames(frame(f"{camera}{n}", (1, n)) for camera, n in order)
    assert len(pairs) == 4
    assert {tuple(f.name for f in pair) for pair in pairs} == {(f"B{n}", f"R{n}") for n in range(4)}


def test_without_keys_partners_are_those_of_the_same_position():
    names = ["B0", "R0", "B1", "B2", "R1"]
    pairs = pair_frames(map(frame, names))
    assert [tuple(f.name for f in pair) for pair in pairs] == [("B0", "R0"), ("B1", "R1"), ("B2",)]


@pytest.mark.parametrize("keys", [((1, 7), (2, 7)), ((1, 7), (1, 8)), ((1, 7), None)])
def test_frames_of_other_spectrographs_or_exposures_are_no_partners(keys):
    pairs = pair_frames([frame("B", keys[0]), frame("R", keys[1])])
    assert [tuple(f.name for f in pair) for pair in pairs] == [("B",), ("R",)]


def test_arms_that_do_not_meet_leave_a_gap():
    far = RED + 500
    joined = join_arms(arm(BLUE, 1.0, 1.0), arm(far, 1.0, 1.0))
    assert len(joined.wavelength) == len(BLUE) + len(far)
    grid = WavelengthGrid(5700.0, 6800.0, 200)
    mask = rebin(joined.wavelength, joined.flux, joined.ivar, joined.mask, grid).mask
    edges = NativePixels(BLUE).edges[-1], NativePixels(far).edges[0]
    inside = (grid.edges[:-1] > edges[0] + 1) & (grid.edges[1:] < edges[1] - 1)
    assert mask[inside].all()
    assert not mask[~inside].sum() > 2
