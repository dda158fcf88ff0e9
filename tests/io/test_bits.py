"""Laws of the mask policy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from bayesspec.io.bits import DOUBTFUL, LAMOST_MASK, MISSING, SPPIXMASK, bad_pixels, fibre_flags

WORDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)
TABLES = {"SDSS": SPPIXMASK, "LAMOST": LAMOST_MASK}


@pytest.mark.parametrize("survey", TABLES)
@pytest.mark.parametrize("strict", [False, True])
def test_each_bit_masks_exactly_if_its_name_is_listed(survey, strict):
    listed = {*MISSING, *DOUBTFUL} if strict else {*MISSING}
    for name, bit in TABLES[survey].items():
        assert bad_pixels([1 << bit], survey=survey, strict=strict).item() == (name in listed), name


@given(WORDS, st.sampled_from([*TABLES]), st.booleans())
def test_a_pixel_is_bad_if_any_of_its_bits_is(words, survey, strict):
    options = {"survey": survey, "strict": strict}
    each = [any(bad_pixels([1 << b], **options).item() for b in range(31) if w >> b & 1) for w in words]
    assert_array_equal(bad_pixels(words, **options), each)


@given(WORDS, st.sampled_from([*TABLES]))
def test_strict_only_adds(words, survey):
    assert (bad_pixels(words, survey=survey) <= bad_pixels(words, survey=survey, strict=True)).all()


def test_remarks_about_the_fibre_never_mask_and_are_named():
    fibre = [(1 << 7), 0, (1 << 3) | (1 << 20)]
    assert fibre_flags(fibre) == ("BADARC", "BADSKYFIBER")
    assert not bad_pixels(2**16 - 1, strict=True)
    assert fibre_flags(np.zeros(3)) == ()


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint32, np.int64, ">f4", ">i4"])
def test_the_type_of_the_bits_does_not_matter(kind):
    words = np.array([0, 4, 8, 32], dtype=kind)
    assert_array_equal(bad_pixels(words, survey="LAMOST"), [False, True, False, True])
    assert not bad_pixels(np.array([np.nan, 0.0]), survey="LAMOST", strict=True).any()
    assert bad_pixels(np.array([-1], np.int32)).item()


def test_booleans_say_it_themselves():
    bad = np.array([True, False, True])
    for survey in ("SDSS", "LAMOST"):
        np.testing.assert_array_equal(bad_pixels(bad, survey=survey), bad)
    assert fibre_flags(bad) == ()
