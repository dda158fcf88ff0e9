"""Laws of the split: by name, not by row."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bayesspec.training.split import near_duplicates, split_by_hash


@given(st.lists(st.text(max_size=8), min_size=1, max_size=30), st.randoms())
def test_the_same_star_is_always_on_the_same_side(names, random):
    """Whatever else is in the table, and in whatever order."""
    sides = dict(zip(names, split_by_hash(names), strict=True))
    shuffled = random.sample(names, len(names))
    assert all(sides[n] == side for n, side in zip(shuffled, split_by_hash(shuffled), strict=True))


def test_shares_are_as_asked():
    """Of many stars each side gets its share."""
    sides = split_by_hash([f"star {n}" for n in range(20_000)], validation=0.1, test=0.25)
    assert abs((sides == "test").mean() - 0.25) < 0.01
    assert abs((sides == "validation").mean() - 0.1) < 0.01


def test_near_duplicates_are_one_star_and_chains_too():
    """Spectra within the distance of one another share a name, through others as well; others keep theirs."""
    rng = np.random.default_rng(0)
    base = rng.normal(1, 0.3, (3, 500)).astype(np.float32)
    flux = np.concatenate([base, base[:1] + 0.008, base[:1] + 0.016])
    mask = np.zeros(flux.shape, bool)
    mask[3, :100] = True
    flux[3, :100] = 99
    names = near_duplicates(["a", "b", "c", "d", "e"], flux, mask, distance=0.01)
    assert names.tolist() == ["a", "b", "c", "a", "a"]
    kept = near_duplicates(list("abcde"), flux, mask, distance=0.01, among=np.array([1, 1, 1, 0, 0], bool))
    assert kept.tolist() == list("abcde")
    few = near_duplicates(list("abcde"), flux, mask, distance=0.01, among=np.array([0, 0, 0, 1, 1], bool))
    assert few.tolist() == list("abcdd")


def test_spectra_that_share_few_pixels_are_two_stars():
    """However alike they are there: half of the grid has to say so."""
    flux = np.ones((2, 100))
    for common, names in ((49, ["a", "b"]), (51, ["a", "a"])):
        mask = np.zeros(flux.shape, bool)
        mask[1, common:] = True
        assert near_duplicates(["a", "b"], flux, mask, distance=0.01).tolist() == names
