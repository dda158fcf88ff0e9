"""Nothing that is read is silently wrong: broken files give the right spectrum, or one error and why.

Each law runs on a few dozen random cases in the normal run and on thousands with `-m slow`; `hostile.py`
makes them. Memory and time of every single case are bounded (`hostile.MEMORY`, `hostile.SECONDS`).
"""

from __future__ import annotations

import io
import sys

import pytest
from astropy.io import fits
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from bayesspec import read
from bayesspec.exceptions import ReadError
from bayesspec.io.tables import count_spectra, open_spectra
from tests.io import hostile
from tests.io.conftest import to_bytes
from tests.io.hostile import WRITERS, Values, agrees, each, outcome

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bounds on memory are Linux's")


def cases(few, many):
    """How many cases of a law the normal run takes, and how many the slow one."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def files():
    return hostile.real_files()


def from_file(case):
    """The spectrum of a case (name, content), in the two ways a file of its layout can be read."""
    name, content = case
    star = outcome(lambda: read(io.BytesIO(content)), "BytesIO: ")
    if "SDSS" in name or "sdss" in name:
        outcome(lambda: read(io.BytesIO(content), exposures="individual"), "BytesIO: ")
    return star


@cases(60, 5000)
def test_bytes_changed_anywhere(files, examples):
    counts = each(hostile.bytes_changed(files), examples)(from_file)
    assert min(counts.values()) > 0


@cases(50, 3000)
def test_cut_off_anywhere(files, examples):
    """A FITS file that ends before its data do is refused, or whole without its end: never half of it."""
    whole = {name: read(io.BytesIO(content)) for name, content in files.items()}

    def law(case):
        name, _ = case
        star = from_file(case)
        if star is not None and "text" not in name and "ascii" not in name:
            agrees(star.exposures[0], vars(whole[name].exposures[0]).values())
        return star

    assert each(hostile.cut(files), examples)(law)["refused"] > 0


@cases(60, 5000)
def test_headers_that_claim_anything(files, examples):
    each(hostile.cards_changed(files), examples)(from_file)


@cases(60, 3000)
def test_text_of_any_kind(examples):
    counts = each(hostile.tokens_changed(), examples)(from_file)
    assert min(counts.values()) > 0


@cases(60, 4000)
def test_values_of_any_kind(examples):
    """What comes out is what the documentation says of these values, in every layout."""

    def law(case):
        values, layout = case
        if not values.loglam.size and layout == "row of vectors":  # FITS has no such columns
            return None
        survey, write = WRITERS[layout]
        star = outcome(lambda: read(io.BytesIO(write(values))), "BytesIO: ")
        expected = values.expected(survey)
        assert (star is None) == (expected is None)
        if star is not None:
            agrees(star.exposures[0], expected)
        return star

    counts = each(st.tuples(hostile.damage(), st.sampled_from(sorted(WRITERS))), examples)(law)
    assert min(counts.values()) > 0


@cases(40, 2000)
def test_what_must_not_matter(examples, tmp_path_factory):
    """Order, case and spelling of columns, further columns, byte order, units, air, gzip, links, vectors."""
    folder = tmp_path_factory.mktemp("neutral")
    values = Values()

    def law(case):
        (hdu, _), way = case
        hdus = fits.HDUList([fits.PrimaryHDU(), hdu])
        if way == "table":
            source = hostile.as_table(hdu)
        elif way == "hdus":
            source = hdus
        elif way == "link":
            (folder / "star.fits").write_bytes(to_bytes(hdus))
            (folder / "link").unlink(missing_ok=True)
            source = folder / "link"
            source.symlink_to("star.fits")
        else:
            source = io.BytesIO(to_bytes(hdus, layers=way))
        star = outcome(lambda: read(source), "nothing is wrong with it")
        (exposure,) = star.exposures
        assert_allclose(exposure.wavelength, values.wavelength, rtol=1e-9)
        assert_allclose(exposure.flux * star.unit.to(hostile.UNIT), values.flux, rtol=1e-9)
        assert_allclose(exposure.ivar / star.unit.to(hostile.UNIT) ** 2, values.ivar, rtol=1e-9)
        assert not exposure.mask.any()
        return star

    ways = st.sampled_from(["table", "hdus", "link", 0, 1, 3])
    each(st.tuples(hostile.dressed(), ways), examples)(law)


# Files of many spectra


@pytest.fixture(scope="module")
def tables():
    return hostile.files_of_many()


def rows_of(content, path):
    """All stars of a file of many, in which every row is a star or an error; None if the file is refused."""
    path.write_bytes(content)
    if outcome_of_opening(path) is None:
        return None
    file = open_spectra(path)
    stars = []
    for row in [*range(min(len(file), 6)), len(file) - 1]:
        if row >= 0:
            stars.append(outcome(lambda row=row: file.read(row), ""))
    file.close()
    return stars or None


def outcome_of_opening(path):
    with hostile.bounded():
        count = count_spectra(path)
        try:
            open_spectra(path).close()
            error = None
        except ReadError as refused:
            error = str(refused)
    assert (error is None) == (count is not None)
    if error is not None:
        assert error.startswith(f"{path}: ")
        assert "MemoryError" not in error
    return count


@cases(40, 2000)
def test_files_of_many_broken_anywhere(tables, examples, tmp_path_factory):
    path = tmp_path_factory.mktemp("many") / "many.fits"
    broken = st.one_of(hostile.bytes_changed(tables), hostile.cards_changed(tables), hostile.cut(tables))
    each(broken, examples)(lambda case: rows_of(case[1], path))


@cases(30, 1000)
def test_rows_of_any_values(examples, tmp_path_factory):
    """A row with anything wrong with it is read as it must be, and its neighbours are as they were."""
    path = tmp_path_factory.mktemp("rows") / "rows.fits"
    clean = Values()

    def law(case):
        values, layout = case
        if len(values.loglam) != len(clean.loglam):
            return None
        path.write_bytes(hostile.MANY[layout]([clean, values, clean]))
        file = open_spectra(path)
        stars = [outcome(lambda row=row: file.read(row), "") for row in range(3)]
        file.close()
        for star, rows in zip(stars, (clean, values, clean), strict=True):
            expected = rows.expected("SDSS")
            assert (star is None) == (expected is None)
            if star is not None:
                agrees(star.exposures[0], expected)
        return stars[1]

    layouts = st.sampled_from(sorted(hostile.MANY))
    each(st.tuples(hostile.damage(), layouts), examples)(law)
