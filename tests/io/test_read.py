"""Laws of `read`, whatever the source and layout."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

import bayesspec
from bayesspec import Observation, read
from bayesspec.exceptions import ReadError
from tests.io.conftest import LAYOUTS, lamost_dr1, lamost_table, same, sdss, to_bytes, write

TEXT = "".join(f"{4000 + n} {np.cos(n):.6f} 0.1\n" for n in range(100))


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


# One spectrum, however it is handed over


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("ending", [".fits", ".fits.gz", ".fit", ""])
def test_path_text_file_and_hdus_agree(layout, layers, ending, tmp_path):
    path = write(tmp_path / f"star{ending}", layout(), layers)
    star = read(path)
    assert same(star, read(layout()))
    assert same(star, read(str(path)))
    assert same(star, read(io.BytesIO(path.read_bytes())))
    with path.open("rb") as file:
        assert same(star, read(file))
        assert not file.closed
    assert (star.name, star.meta["file"]) == ("star", str(path))


@pytest.mark.parametrize("memmap", [False, True])
def test_open_hdus_stay_usable_and_the_observation_outlives_them(layout, memmap, tmp_path):
    path = write(tmp_path / "star.fits", layout())
    with fits.open(path, memmap=memmap) as hdus:
        star = read(hdus)
        assert hdus[0].header is not None
        assert same(read(hdus), star)
    path.unlink()
    assert same(star, read(layout()))
    assert star.name == "star"


@pytest.mark.parametrize("make", [lambda: sdss(frames=()), lamost_table])
def test_tables_agree_with_their_file(make):
    hdus = make()
    star = read(Table.read(hdus[1]))
    assert same(star, read(make()))
    assert star.name == "Table"


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("ending", [".dat", ".txt", ".csv", ".dat.gz"])
def test_text_from_anywhere_agrees(layers, ending, tmp_path):
    data = TEXT.encode()
    for _ in range(layers):
        data = gzip.compress(data)
    path = tmp_path / f"star{ending}"
    path.write_bytes(data)
    star = read(path)
    assert same(star, read(io.StringIO(TEXT)))
    assert same(star, read(io.BytesIO(data)))
    assert same(star, read(io.BytesIO(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())))
    assert star.name == "star"


def test_a_name_may_be_given(layout):
    assert read(layout(), name="Vega").name == "Vega"
    assert read(layout()).meta["layout"].startswith(("SDSS", "LAMOST"))


# What must not happen on the way


def test_odd_headers_are_no_news_and_filters_come_back(tmp_path):
    """Headers that astropy warns about read without a warning (warnings are errors here)."""
    path = write(tmp_path / "odd.fits", sdss())
    data = path.read_bytes()
    card = data.index(b"FIBERID =")
    path.write_bytes(data[:card] + b"FIB RID = " + data[card + 10 :])
    before = list(warnings.filters)
    assert same(read(path), read(sdss()))
    assert warnings.filters == before


def test_a_keyword_that_is_not_legible_is_no_fact():
    data = to_bytes(lamost_dr1()).replace(
        b"Z       =              8.7E-05", b"Z       =                  NaN"
    )
    star = read(io.BytesIO(data))
    assert same(star, read(lamost_dr1()))
    assert "redshift" not in star.meta
    assert star.meta["class"] == "STAR"


def test_the_source_is_left_as_it_is(layout):
    hdus = layout()
    before = to_bytes(hdus)
    read(hdus)
    assert to_bytes(hdus) == before


def test_reading_needs_no_torch():
    code = "import sys, bayesspec; bayesspec.read; sys.exit('torch' in sys.modules)"
    root = Path(bayesspec.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# Errors


def gz(data):
    return gzip.compress(data)


def missing_from(hdus):
    for hdu in hdus:
        if hdu.data is not None and "ivar" in [name.lower() for name in getattr(hdu, "columns", hdu).names]:
            hdu.data["ivar"] = 0
    return hdus


FULL = to_bytes(sdss())
BAD_FILES = {
    "empty.fits": (b"", "is empty"),
    "empty.fits.gz": (gz(b""), "is empty"),
    "text.fits": (TEXT.encode(), "is not a FITS file"),
    "page.fits.gz": (b"<html>404</html>", "is not a FITS file"),
    "image.dat": (bytes(range(256)) * 20, "neither FITS nor text"),
    "cut.fits.gz": (gz(FULL)[:2000], "truncated or damaged gzip"),
    "crc.fits.gz": (gz(FULL)[:-8] + b"\0" * 8, "truncated or damaged gzip"),
    "flip.fits.gz": (gz(FULL)[:40] + b"\xff" * 99 + gz(FULL)[139:], "truncated or damaged gzip"),
    "cut.fits": (FULL[:9000], "truncated"),
    "header.fits": (FULL[:100], "damaged|truncated"),
    "nothing.fits": (to_bytes(fits.HDUList([fits.PrimaryHDU()])), "no table with columns flux and loglam"),
    "cube.fits": (to_bytes(fits.HDUList([fits.PrimaryHDU(np.ones((3, 3, 9)))])), "no LAMOST image"),
    "catalogue.fits": (to_bytes(fits.HDUList([fits.PrimaryHDU(), sdss()[2]])), "no table with columns"),
    "masked.fits": (to_bytes(missing_from(sdss(frames=()))), "no pixel is observed"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_give_one_error_with_file_and_cause(name, tmp_path):
    data, cause = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ReadError, match=f"{name}: .*({cause})") as caught:
        read(path)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(("name", "cause"), [("none.fits", "no such file"), (".", "is a directory")])
def test_what_is_no_file_gives_one_error(name, cause, tmp_path):
    with pytest.raises(ReadError, match=cause) as caught:
        read(tmp_path / name)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("source", [None, 3, np.ones(5), [1, 2]])
def test_what_is_no_source_gives_one_error(source):
    with pytest.raises(ReadError, match=f"{type(source).__name__}: neither a path"):
        read(source)


def test_hdus_of_a_closed_file_give_one_error(tmp_path):
    with fits.open(write(tmp_path / "star.fits", sdss())) as hdus:
        pass
    with pytest.raises(ReadError, match=r"star.fits: "):
        read(hdus)


@pytest.mark.parametrize("source", [lamost_table, lamost_dr1, lambda: io.StringIO(TEXT)])
def test_single_exposures_where_there_are_none_are_an_error(source):
    with pytest.raises(ReadError, match="no single exposures"):
        read(source(), exposures="individual")


def test_an_unknown_choice_of_exposures_is_an_error():
    with pytest.raises(ValueError, match='"coadd" or "individual"'):
        read(sdss(), exposures="both")


DATA = {name: to_bytes(make()) for name, make in LAYOUTS.items()} | {"text": TEXT.encode()}


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([*DATA]), st.booleans())
def test_damaged_contents_are_read_or_refused_and_no_nan_comes_out(data, name, compressed):
    """Bytes overwritten or cut off anywhere: an observation without NaN, or a ReadError."""
    content = bytearray(gz(DATA[name]) if compressed else DATA[name])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        junk = data.draw(st.binary(min_size=1, max_size=12))
        content[start : start + len(junk)] = junk
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(1, len(content))) :]
    try:
        star = read(io.BytesIO(bytes(content)))
    except ReadError:
        return
    assert isinstance(star, Observation)
    for exposure in star.exposures:
        assert np.isfinite(exposure.flux).all()
        assert exposure.ivar is None or np.isfinite(exposure.ivar).all()
        assert (np.diff(exposure.wavelength) > 0).all()
