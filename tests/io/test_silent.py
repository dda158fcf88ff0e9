"""What was once silently wrong, or without bounds, in what is read: each of these has a law here."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal

import bayesspec
from bayesspec import Observation, read
from bayesspec.exceptions import ObservationError, ReadError
from bayesspec.grid import air_to_vacuum
from bayesspec.io import tables
from bayesspec.io.tables import count_spectra, open_spectra
from tests.io.conftest import LAYOUTS, lamost_table, sdss, to_bytes
from tests.io.hostile import Values, desi, files_of_many, library

WAVE = np.linspace(4000.0, 9000.0, 50)
FLUX = np.linspace(1.0, 2.0, 50)


def one_table(columns=None, header=None, **keywords):
    """A FITS file of one table, with these keywords in the table's header, others in the file's."""
    hdu = fits.table_to_hdu(Table(columns or {"wavelength": WAVE, "flux": FLUX}))
    hdu.header.update(keywords)
    hdus = fits.HDUList([fits.PrimaryHDU(), hdu])
    hdus[0].header.update(header or {})
    return io.BytesIO(to_bytes(hdus))


# Air or vacuum


@pytest.mark.parametrize("place", ["file", "table"])
@pytest.mark.parametrize(
    "said", [{"VACUUM": False}, {"VACUUM": 0}, {"VACUUM": "F"}, {"AIRORVAC": "air"}, {"CTYPE1": "AWAV-LOG"}]
)
def test_a_header_that_says_air_is_believed_wherever_it_is(place, said):
    source = one_table(**said) if place == "table" else one_table(header=said)
    assert_allclose(read(source).exposures[0].wavelength, air_to_vacuum(WAVE), rtol=1e-12)


@pytest.mark.parametrize(
    "said", [{"VACUUM": True}, {"VACUUM": 1}, {"AIRORVAC": "vac"}, {"CTYPE1": "WAVE"}, {}]
)
def test_and_one_that_says_vacuum(said):
    assert_array_equal(read(one_table(**said)).exposures[0].wavelength, WAVE)


@pytest.mark.parametrize(
    ("header", "said", "cause"),
    [
        ({"VACUUM": True}, {"AIRORVAC": "air"}, "air and vacuum"),
        ({}, {"VACUUM": "perhaps"}, "VACUUM = 'perhaps' in the header is not understood"),
    ],
)
def test_headers_that_contradict_each_other_are_an_error_unless_the_caller_knows(header, said, cause):
    with pytest.raises(ReadError, match=cause):
        read(one_table(header=header, **said))
    assert_array_equal(read(one_table(header=header, **said), air=False).exposures[0].wavelength, WAVE)


def test_air_in_the_comments_of_text_is_believed_or_an_error():
    rows = "".join(f"{x} 1\n" for x in WAVE)
    for head in (
        "# wavelengths in air\n",
        "# air wavelengths\n",
        "# wave_air flux\n# wavelength flux\n",
    ):
        star = read(io.StringIO(head + rows))
        assert_allclose(star.exposures[0].wavelength, air_to_vacuum(WAVE), rtol=1e-12)
    for head in ("", "# airmass 1.2\n", "# a fair star, in airy words\n"):
        assert_array_equal(read(io.StringIO(head + rows)).exposures[0].wavelength, WAVE)
    both = "# air wavelengths, converted to vacuum\n" + rows
    with pytest.raises(ReadError, match="are the wavelengths in air"):
        read(io.StringIO(both))
    assert_array_equal(read(io.StringIO(both), air=False).exposures[0].wavelength, WAVE)


def test_the_formula_is_that_of_specutils():
    """Below 2000 Angstrom nobody gives wavelengths in air: padding with zeros stays what it is."""
    from specutils.utils.wcs_utils import air_to_vac

    air = np.linspace(2000, 25_000, 5000)
    assert_allclose(air_to_vacuum(air), air_to_vac(air * u.AA, method="Morton2000").value, rtol=1e-12)
    assert_array_equal(air_to_vacuum([np.nan, 0, -5, 1500]), [np.nan, 0, -5, 1500])


@pytest.mark.parametrize("option", [{"air": "vacuum"}, {"air": 1}, {"strict": "no"}, {"strict": None}])
def test_a_word_is_no_yes(option):
    """Any text counts as True in Python, "vacuum" and "no" too."""
    with pytest.raises(ValueError, match="must be True"):
        read(one_table(), **option)


# Columns


@pytest.mark.parametrize("names", [("flux", "Flux"), ("ivar", "FLUX_IVAR"), ("wave", "lambda")])
def test_two_columns_of_one_meaning_are_an_error(names):
    """Which of them comes first says nothing."""
    columns = {"wavelength": WAVE, "flux": FLUX} | dict.fromkeys(names, FLUX)
    if "wave" in names:
        del columns["wavelength"]
    rows = "".join(f"{x}" + " 1" * (len(columns) - 1) + "\n" for x in WAVE)
    for source in (Table(columns), one_table(columns), io.StringIO(" ".join(columns) + "\n" + rows)):
        with pytest.raises(ReadError, match=r"both .* and .* may be the"):
            read(source)


def test_wavelength_and_loglam_must_agree():
    columns = {"loglam": np.log10(WAVE), "wavelength": WAVE.astype(np.float32), "flux": FLUX}
    assert_allclose(read(Table(columns)).exposures[0].wavelength, WAVE, rtol=1e-6)
    for wrong in (air_to_vacuum(WAVE), WAVE[::-1]):
        with pytest.raises(ReadError, match="wavelength and loglam are not the same"):
            read(Table(columns | {"wavelength": wrong}))


@pytest.mark.parametrize("kind", [np.int32, np.float32, np.float64])
@pytest.mark.parametrize("name", ["mask", "and_mask"])
@pytest.mark.parametrize("axis", ["wavelength", "loglam"])
def test_a_masked_cell_of_a_mask_is_missing_whatever_its_type(kind, name, axis):
    bad = np.arange(50) % 5 == 2
    x = WAVE if axis == "wavelength" else np.log10(WAVE)
    table = Table({axis: x, "flux": FLUX, name: np.ma.MaskedArray(np.zeros(50, kind), bad)}, masked=True)
    assert_array_equal(read(table).exposures[0].mask, bad)


def test_a_null_is_of_the_numbers_in_the_file():
    """TNULL counts before TSCAL and TZERO, as the standard has it."""
    flux = fits.Column("flux", "I", array=np.arange(50) + 40000.0, bzero=32768, null=-32768 + 40010)
    hdu = fits.BinTableHDU.from_columns([fits.Column("wavelength", "D", array=WAVE), flux])
    hdu.header["TNULL2"] = 40010 - 32768
    (exposure,) = read(io.BytesIO(to_bytes(fits.HDUList([fits.PrimaryHDU(), hdu])))).exposures
    assert_array_equal(exposure.mask, np.arange(50) == 10)


@pytest.mark.parametrize(
    "rows", ["4000 1,5\n4001 1,6\n", "4000;1,5\n4001;1,6\n", "4000\t1,5\n4001\t1,6\n", "4000,1.5 0.1\n" * 2]
)
def test_decimal_commas_are_not_a_third_column(rows):
    with pytest.raises(ReadError, match="line 1 has commas beside other separators"):
        read(io.StringIO(rows))


# What a file may cost


def claims(content, keyword, value, after=0):
    at = content.index(keyword.ljust(8).encode() + b"=", after)
    return content[: at + 10] + str(value).rjust(20).encode() + content[at + 30 :]


@pytest.mark.parametrize("keyword", ["PCOUNT", "NAXIS1", "NAXIS2", "GCOUNT"])
@pytest.mark.parametrize("many", [False, True])
def test_a_size_below_zero_is_refused(keyword, many, tmp_path):
    """Astropy went back in the file and read the same header again, until memory ended."""
    content = library([Values()] * 3) if many else to_bytes(lamost_table())
    path = tmp_path / "loop.fits"
    path.write_bytes(claims(content, keyword, -20000, 2880))
    begin = time.process_time()
    assert count_spectra(path) is None
    for opens in (read, open_spectra):
        with pytest.raises(ReadError, match=r"loop.fits: damaged header of HDU 1"):
            opens(path)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("keyword", "value"), [("TFIELDS", 10**9), ("NAXIS", 10**9), ("TFORM3", "'2000000000D'")]
)
def test_headers_of_files_of_many_are_not_believed_either(keyword, value, tmp_path):
    path = tmp_path / "claims.fits"
    path.write_bytes(claims(library([Values()] * 3), keyword, value, 2880))
    begin = time.process_time()
    tracemalloc.start()
    assert count_spectra(path) is None
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert time.process_time() - begin < 2


def test_a_compressed_row_is_not_larger_than_its_file(tmp_path):
    """The table of a compressed image says how many bytes a row has: here a billion, in a file of 40 KB."""
    content = bytearray(files_of_many()["compressed"])
    path = tmp_path / "compressed.fits"
    with fits.open(io.BytesIO(content), disable_image_compression=True) as hdus:
        place = hdus["FLUX"].fileinfo()["datLoc"] + hdus["FLUX"].header["NAXIS1"]
    content[place : place + 4] = (10**9).to_bytes(4, "big")
    path.write_bytes(content)
    file = open_spectra(path)
    tracemalloc.start()
    with pytest.raises(ReadError, match=r"compressed.fits\[1\]: damaged"):
        file.read(1)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert file.read(2).exposures[0].flux.size
    file.close()


def test_a_file_of_many_headers_or_of_one_without_end_is_refused():
    first, more = (kind().header.tostring().encode() for kind in (fits.PrimaryHDU, fits.ImageHDU))
    card = b"A       =                    1".ljust(80)
    for content, cause in (
        (first + 2000 * more, "more than 1000 HDUs"),
        (first[: 2880 - 80] + card * 72_000, "no end"),
    ):
        begin = time.process_time()
        with pytest.raises(ReadError, match=cause):
            read(io.BytesIO(content))
        assert time.process_time() - begin < 4


def test_gzip_of_a_file_of_many_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_MOST_UNPACKED", 1 << 20)
    path = tmp_path / "bomb.fits.gz"
    path.write_bytes(gzip.compress(library([Values()] * 3) + bytes(64 << 20), 1))
    tracemalloc.start()
    with pytest.raises(ReadError, match=r"bomb.fits.gz: holds more than 1 MiB: unpack it first"):
        open_spectra(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["pipe.fits", "pipe.parquet"])
def test_a_pipe_among_the_inputs_is_not_waited_for(name, tmp_path):
    pytest.importorskip("pyarrow")
    os.mkfifo(tmp_path / name)
    assert count_spectra(tmp_path / name) is None
    with pytest.raises(ReadError, match="is not a regular file"):
        open_spectra(tmp_path / name)


HEAD = "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: wavelength, datatype: float64}\n"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (HEAD + "wavelength\n" + "1\n" * 1_000_001, "more than 1000000 lines"),
        (HEAD + "# meta: " + "[" * 100_000 + "\nwavelength\n1\n", "ECSV header larger"),
        (HEAD + "# meta: " + "a" * 300_000 + "\nwavelength\n1\n", "ECSV header larger"),
    ],
)
def test_ecsv_has_the_bounds_of_text(content, cause):
    begin = time.process_time()
    with pytest.raises(ReadError, match=cause):
        read(io.StringIO(content))
    assert time.process_time() - begin < 4


# Arms


def changed(content, change):
    with fits.open(io.BytesIO(content)) as hdus:
        change(hdus)
        return to_bytes(hdus)


def arms_of(content, tmp_path):
    (tmp_path / "coadd.fits").write_bytes(content)
    file = open_spectra(tmp_path / "coadd.fits")
    try:
        return file.read(1)
    finally:
        file.close()


def test_an_arm_that_saw_nothing_does_not_cost_the_others(tmp_path):
    def dead(hdus):
        hdus["B_IVAR"].data[1] = 0

    whole, half = (arms_of(content, tmp_path) for content in (desi(), changed(desi(), dead)))
    red = whole.exposures[0].wavelength > half.exposures[0].wavelength[0] + 500
    assert_array_equal(half.exposures[0].flux[-red.sum() :], whole.exposures[0].flux[red])

    def all_dead(hdus):
        hdus["B_IVAR"].data[1] = hdus["R_IVAR"].data[1] = 0

    with pytest.raises(ObservationError, match="no pixel is observed"):
        arms_of(changed(desi(), all_dead), tmp_path)


def test_units_of_images_count(tmp_path):
    def nanometres(hdus):
        for arm in "BR":
            hdus[f"{arm}_WAVELENGTH"].data /= 10
            hdus[f"{arm}_WAVELENGTH"].header["BUNIT"] = "nm"

    def mixed(hdus):
        hdus["B_FLUX"].header["BUNIT"] = "1e-17 erg / (s cm2 Angstrom)"
        hdus["R_FLUX"].header["BUNIT"] = "Jy"

    plain, nm = arms_of(desi(), tmp_path), arms_of(changed(desi(), nanometres), tmp_path)
    assert_allclose(nm.exposures[0].wavelength, plain.exposures[0].wavelength, rtol=1e-12)
    with pytest.raises(ReadError, match="different units"):
        arms_of(changed(desi(), mixed), tmp_path)


@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_that_there_is_not_is_an_error(row, tmp_path):
    (tmp_path / "three.fits").write_bytes(library([Values()] * 3))
    file = open_spectra(tmp_path / "three.fits")
    with pytest.raises(ReadError, match=f"three.fits: no spectrum {row}, there are 3"):
        file.read(row)
    file.close()


# Arrays


def test_numbers_that_no_float_holds_and_tensors_that_are_no_arrays_are_refused_by_name():
    torch = pytest.importorskip("torch")
    for flux in ([10**400] * 50, torch.ones(50, requires_grad=True), [object()] * 50, [None] * 50):
        with pytest.raises(ObservationError, match="Vega: "):
            Observation(WAVE, flux, name="Vega")
    assert Observation(WAVE, torch.ones(50), name="Vega").snr == 0


@pytest.mark.parametrize(
    "parts", [5, [5], [None], Observation(WAVE, FLUX), "star", [Observation(WAVE, FLUX), 3]]
)
def test_exposures_are_observations(parts):
    if isinstance(parts, Observation):
        assert len(Observation.from_exposures([parts])) == 1
    else:
        with pytest.raises(ObservationError, match="from_exposures needs"):
            Observation.from_exposures(parts)


# What reading must not do

FORBIDDEN = """
import io, json, pickle, socket, sys
def no(*args, **kwargs): raise AssertionError("not on any way of reading")
pickle.load = pickle.loads = pickle.Unpickler = no
socket.socket.connect = socket.getaddrinfo = socket.create_connection = no
from bayesspec import read
from bayesspec.io.tables import open_spectra
for path in sys.argv[1:]:
    if "many" in path:
        file = open_spectra(path)
        file.read(0)
        file.close()
    else:
        read(path)
        read(path, air=True)
unwanted = ("fitsio", "torch", "specutils", "gwcs")
print(json.dumps([name for name in sys.modules
                  if name.split(".")[0] in unwanted or name.startswith("astropy.wcs")]))
"""


def test_reading_needs_no_wcslib_no_cfitsio_no_pickle_and_no_network(tmp_path):
    """In a new process, for every format, in air too."""
    contents = {f"{n}.fits": to_bytes(make()) for n, make in enumerate(LAYOUTS.values())}
    contents |= {
        "many1.fits": library([Values()] * 3),
        "many2.fits": desi(),
        "a.fits.gz": gzip.compress(to_bytes(sdss())),
    }
    contents["a.txt"] = "".join(f"{x} 1 0.1\n" for x in WAVE).encode()
    buffer = io.StringIO()
    Table({"wavelength": WAVE, "flux": FLUX}).write(buffer, format="ascii.ecsv")
    contents["a.ecsv"] = buffer.getvalue().encode()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", FORBIDDEN, *(str(tmp_path / name) for name in contents)]
    root = Path(bayesspec.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
