"""Laws of `read`, whatever the source and layout."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import socket
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable, Table
from astropy.utils.masked import Masked
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import bayesspec
from bayesspec import Observation, read
from bayesspec.exceptions import ReadError
from bayesspec.io import source as sources
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


# Tables of one's own

WAVE = np.linspace(3800.0, 9200.0, 60)
BAD = np.arange(60) % 7 == 3


def tables(**columns):
    """The columns as a Table, in a file, and as one row of vectors."""
    table = QTable(columns)
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.table_to_hdu(Table(table))]).writeto(buffer)
    row = QTable({name: values[None] for name, values in columns.items()})
    return table, io.BytesIO(buffer.getvalue()), row


@pytest.mark.parametrize("axis", ["wavelength", "loglam"])
@pytest.mark.parametrize("name", ["mask", "MASK", "and_mask"])
def test_a_boolean_mask_is_true_where_bad(axis, name):
    x = WAVE if axis == "wavelength" else np.log10(WAVE)
    for source in tables(**{axis: x, "flux": np.ones(60), name: BAD}):
        assert_array_equal(read(source).exposures[0].mask, BAD)
    for source in tables(**{axis: x, "flux": np.ones(60), name: BAD | True}):
        with pytest.raises(ReadError, match="no pixel is observed"):
            read(source)


@pytest.mark.parametrize("kind", [int, np.uint8, float])
def test_in_a_table_of_no_survey_what_is_not_0_is_bad(kind):
    for source in tables(wavelength=WAVE, flux=np.ones(60), mask=BAD.astype(kind)):
        star = read(source)
        assert_array_equal(star.exposures[0].mask, BAD)
        assert star.meta == {"file": None, "layout": "table", "exposures": ("coadd",)}


@pytest.mark.parametrize("axis", [u.AA, u.nm, u.um, u.GHz, u.eV])
@pytest.mark.parametrize("unit", ["Jy", "1e-17 erg / (s cm2 Angstrom)", "W / (m2 um)", "ct / s"])
def test_units_of_columns_count(axis, unit):
    x, flux, sigma = (
        (WAVE * u.AA).to(axis, u.spectral()),
        np.linspace(1, 2, 60) * u.Unit(unit),
        np.full(60, 0.1),
    )
    expected = Observation(x, flux, sigma**-2)
    for columns in ({"sigma": sigma * flux.unit}, {"ivar": sigma**-2 / flux.unit**2}):
        for source in tables(wavelength=x, flux=flux, **columns):
            star = read(source)
            (left,), (right,) = star.exposures, expected.exposures
            assert star.unit == expected.unit
            assert_allclose(left.wavelength, WAVE, rtol=1e-9)
            assert_allclose(left.flux, right.flux, rtol=1e-9)
            assert_allclose(left.ivar, right.ivar, rtol=1e-6)


def test_units_that_fits_cannot_spell_are_kept_or_refused():
    odd = u.Unit(3.7e-17 * u.erg / u.s / u.cm**2 / u.AA)
    star = read(QTable({"wavelength": WAVE, "flux": np.ones(60) * odd}))
    assert_allclose(star.unit.to(odd), 1)
    for unit in (u.mag, u.ABmag, u.K):
        with pytest.raises(ReadError, match="neither a flux density nor counts"):
            read(QTable({"wavelength": WAVE, "flux": np.ones(60) << unit}))
    hdu = fits.table_to_hdu(Table({"wavelength": WAVE, "flux": np.ones(60)}))
    hdu.header["TUNIT1"] = "furlong of old"
    with pytest.raises(ReadError, match="'furlong of old' is not understood"):
        read(fits.HDUList([fits.PrimaryHDU(), hdu]))


def test_masked_cells_are_missing():
    whole = {"wavelength": WAVE, "flux": np.ones(60), "mask": np.zeros(60, int), "sigma": np.ones(60)}
    for name in ("flux", "mask", "sigma"):
        for values in (whole[name], whole[name].astype(int)):
            masked = Table(whole | {name: np.ma.MaskedArray(values, BAD)}, masked=True)
            assert_array_equal(read(masked).exposures[0].mask, BAD)
    quantity = Masked(np.ones(60) * u.Jy, mask=BAD)
    assert_array_equal(read(QTable({"wavelength": WAVE, "flux": quantity})).exposures[0].mask, BAD)


@pytest.mark.parametrize("axis", ["wavelength", "loglam"])
@pytest.mark.parametrize("count", [2, 3, 40])
def test_several_stars_are_not_one(axis, count):
    x = (WAVE if axis == "wavelength" else np.log10(WAVE))[None] * (1 + 1e-6 * np.arange(count)[:, None])
    table = Table({axis: x, "flux": np.ones((count, 60)), "ivar": np.ones((count, 60))})
    for source in (table, fits.HDUList([fits.PrimaryHDU(), fits.table_to_hdu(table)])):
        with pytest.raises(ReadError, match=f"not one spectrum: {count} rows"):
            read(source)
    columns = Table({axis: x[0], "flux": np.ones((60, count))})
    with pytest.raises(ReadError, match="not one spectrum"):
        read(columns)
    pointers = [
        fits.Column(name, "PD()", array=np.array([*values, None], dtype=object)[:-1])
        for name, values in ((axis, list(x)), ("flux", [np.ones(60)] * count))
    ]
    with pytest.raises(ReadError, match="not one spectrum"):
        read(fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(pointers)]))


def test_one_row_of_vectors_of_any_length_is_one():
    columns = [
        fits.Column(name, "PD()", array=np.array([values, None], dtype=object)[:-1])
        for name, values in (("wavelength", WAVE), ("flux", np.ones(60)))
    ]
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)])
    assert same(read(hdus), Observation(WAVE, np.ones(60)))


def test_several_tables_are_not_one():
    hdu = fits.table_to_hdu(Table({"wavelength": WAVE, "flux": np.ones(60)}))
    with pytest.raises(ReadError, match="2 tables"):
        read(fits.HDUList([fits.PrimaryHDU(), hdu, hdu.copy()]))


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


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_only_regular_files_are_opened(kind, tmp_path):
    """A pipe that nobody writes into would be waited for, for ever."""
    path = tmp_path / "s"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(tmp_path):
            listener.bind("s")
    else:
        path = Path("/dev/zero")
    with pytest.raises(ReadError, match=f"{path}: is not a regular file"):
        read(path)


def test_files_far_larger_than_a_spectrum_are_refused_without_unpacking_them(monkeypatch, tmp_path):
    """However often they are gzipped, and from open files that never end."""
    monkeypatch.setattr(sources, "_MOST_BYTES", 1 << 20)
    bomb = gz(bytes(64 << 20))
    for name, content in {
        "a.fits": bytes(2 << 20),
        "b.gz": bomb,
        "c.gz": gz(bomb),
        "d.gz": gz(gz(bomb)),
    }.items():
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        with pytest.raises(ReadError, match=f"{name}: holds more than 1 MiB"):
            read(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()
    with open("/dev/zero", "rb") as file, pytest.raises(ReadError, match="holds more than"):
        read(file)


def test_layers_of_gzip_end():
    data = TEXT.encode()
    for _ in range(3):
        data = gz(data)
    assert same(read(io.BytesIO(data)), read(io.StringIO(TEXT)))
    with pytest.raises(ReadError, match="more than 3 times"):
        read(io.BytesIO(gz(data)))


def test_an_open_file_may_hand_out_less_than_it_is_asked_for():
    class Slow(io.RawIOBase):
        data = io.BytesIO(FULL)

        def read(self, size=-1):
            return self.data.read(min(size, 1000))

    assert same(read(Slow()), read(sdss()))


@pytest.mark.parametrize("content", [TEXT, "once upon a time"])
@pytest.mark.parametrize("name", [b"st\xffar.txt", b"st\nar.txt", b"st\x1b[31mar.txt"])
def test_any_file_name_gives_text_that_can_be_printed(content, name, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    try:
        path.write_text(content)
    except OSError:
        pytest.skip("this file system has no such names")
    with path.open("rb") as file:
        for given_as in (path, str(path), file):
            try:
                star = read(given_as)
                texts = [star.name, star.meta["file"], repr(star)]
            except ReadError as error:
                texts = [str(error)]
            assert all(text.isprintable() and text.encode() for text in texts)
            assert (content == TEXT) == (len(texts) == 3)


@pytest.mark.parametrize("keyword", ["TFIELDS", "NAXIS"])
def test_a_header_may_claim_any_number_of_columns_or_axes(keyword):
    """A thousand million in a file of a few KB: no minute passes."""
    card = FULL.index(keyword.ljust(8).encode() + b"= ", 2880)
    data = FULL[: card + 10] + b"1000000000".rjust(20) + FULL[card + 30 :]
    with pytest.raises(ReadError, match=f"damaged header: {keyword} *= *1000000000"):
        read(io.BytesIO(data))
    hdus = sdss()
    hdus[1].header["TFIELDS"] = 10**9
    with pytest.raises(ReadError, match="damaged header: a table of 1000000000 columns"):
        read(hdus)


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
