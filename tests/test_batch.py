"""Laws of batches."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from bayesspec.observation import Observation
from tests.test_observation import GRID, batch, equal, seeds, star


@given(st.permutations(range(4)))
@settings(max_examples=20)
def test_permuted_stars_give_permuted_batches(order):
    stars = [star(n, bad=0.1 * n, high=4510 - 60 * n, name=str(n)) for n in range(4)]
    permuted, selected = batch(*(stars[n] for n in order)), batch(*stars).select(order)
    assert equal(permuted, selected)
    assert permuted.names == selected.names == tuple(map(str, order))


def test_stars_may_be_selected_twice():
    two = batch(star(0, name="a"), star(1, high=4300, name="b")).select([1, 0, 1])
    assert two.names == ("b", "a", "b")
    assert_array_equal(two.free_index, [[0, 1, 2], [0, 0, 0]])


def test_missing_exposures_are_masked_and_take_part_in_nothing():
    lone = star(0, name="one")
    many = Observation.from_exposures([star(n, bad=0.2, high=4400) for n in range(3)], name="three")
    both, alone = batch(lone, many), batch(lone)
    assert both.flux.shape == (2, 3, GRID.size)
    assert both.mask[0, 1:].all()
    assert not both.free_scale[0, 1:].any()
    for name in ("flux", "ivar", "mask", "unit_flux"):
        assert torch.equal(getattr(both, name)[0, 0], getattr(alone, name)[0, 0])
    assert torch.equal(both.observed_fraction[0], alone.observed_fraction[0])


def test_an_exposure_off_the_grid_is_masked_where_another_one_is_on_it():
    away = star(low=8000, high=9000)
    both = batch(Observation.from_exposures([star(), away]))
    assert both.mask[0, 1].all()
    assert_array_equal(both.free_scale, [[True, False]])
    assert torch.isfinite(both.flux).all()


@given(seeds)
@settings(max_examples=20)
def test_a_batch_holds_zeros_where_masked_and_lists_its_free_scales(seed):
    rng = np.random.default_rng(seed)
    parts = [star(seed + n, bad=0.3, high=rng.uniform(4050, 4510)) for n in range(3)]
    mine = batch(*parts)
    assert not mine.flux[mine.mask].any()
    assert not mine.ivar[mine.mask].any()
    assert (mine.ivar[~mine.mask] > 0).all()
    assert torch.equal(torch.stack(torch.nonzero(mine.free_scale, as_tuple=True)), mine.free_index)
    assert mine.to("cpu").names == mine.names
    assert equal(mine.to("cpu"), mine)
