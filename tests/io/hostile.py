"""Broken spectra for `test_hostile.py`: how files are broken, what must come out, and what it may cost."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import resource
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import Column, Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bayesspec.demo import example_star
from bayesspec.exceptions import BayesspecError, ObservationError
from bayesspec.grid import WavelengthGrid
from bayesspec.io import read
from bayesspec.io.bits import SPPIXMASK
from bayesspec.io.tables import open_spectra
from bayesspec.observation import Observation
from tests.conftest import shared_files
from tests.io.conftest import LAYOUTS, to_bytes

GRID = WavelengthGrid()

MEMORY, SECONDS = 512 << 20, 5.0
"""What reading one file of at most 1.5 MB may add to the process, and how long it may compute."""


@contextlib.contextmanager
def bounded():
    """Memory above the bound is a MemoryError, which `outcome` finds; time above it is an error here."""
    load_readers()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    begin = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - begin < SECONDS


@functools.cache
def load_readers():
    """Read a file of each kind: what a first one imports and maps is not the cost of reading."""
    for content in [*map(to_bytes, (layout() for layout in LAYOUTS.values())), example_text().encode()]:
        read(io.BytesIO(content))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.fits"
        for content in files_of_many().values():
            path.write_bytes(content)
            file = open_spectra(path)
            file.read(0)
            file.close()


def outcome(reads, label):
    """What reading gives: an observation that keeps the laws, or None if it was refused as it should be."""
    try:
        with bounded():
            star = reads()
    except BayesspecError as error:
        text = str(error)
        assert text.startswith(label), text
        assert len(text) > len(label) + 5, "names no cause"
        assert text.isprintable(), text
        assert "MemoryError" not in text, text
        assert "Unable to allocate" not in text, text
        return None
    check(star)
    return star


def check(star):
    """The laws of what has been read, and of what a model is given of it."""
    assert isinstance(star, Observation)
    assert star.name.isprintable()
    assert np.isfinite(star.snr)
    for exposure in star.exposures:
        wavelength, flux, ivar, mask = exposure.wavelength, exposure.flux, exposure.ivar, exposure.mask
        assert wavelength.shape == flux.shape == mask.shape
        assert np.isfinite(wavelength).all()
        assert (wavelength > 0).all()
        assert (np.diff(wavelength) > 0).all()
        assert np.isfinite(flux).all()
        assert (flux[mask] == 0).all()
        if ivar is not None:
            assert np.isfinite(ivar).all()
            assert np.array_equal(ivar > 0, ~mask)
            assert (ivar >= 0).all()
    assert any(not exposure.mask.all() for exposure in star.exposures)
    try:
        gridded = star.on_grid(GRID)
    except ObservationError as refused:
        named = str(refused).startswith(f"{star.name or 'spectrum'}: ")
        gridded = None
    if gridded is None:
        assert named
        return
    assert all(np.isfinite(part).all() for part in (gridded.flux, gridded.ivar, gridded.unit_flux))
    assert (gridded.unit_flux > 0).all()
    assert not gridded.mask.all()


def each(case, examples):
    """Run a law on so many cases of a strategy; how many were read, and how many were refused."""

    def run(law):
        counts = {"read": 0, "refused": 0}

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,  # of sixty broken files, chance may leave none that reads
            print_blob=True,
            suppress_health_check=[*HealthCheck],
        )
        @given(case)
        def every(drawn):
            counts["refused" if law(drawn) is None else "read"] += 1

        every()
        print(f"{sum(counts.values())} cases: {counts}")
        return counts

    return run


# Real files, broken anywhere


class Case(NamedTuple):
    """A file that is broken."""

    name: str
    content: bytes

    def __repr__(self):
        return f"<{self.name}, {len(self.content)} bytes: {self.content[:80]!r}>"


def real_files():
    """Contents of files by name: made up ones in each layout, and real ones where the data are at hand."""
    found = {name: to_bytes(make()) for name, make in LAYOUTS.items()} | {"text": example_text().encode()}
    for folder in ("lamost-dr1", "lamost-dr10", "lamost-image", "sdss-ascii", "sdss-lite"):
        for path in shared_files(f"raw/{folder}/*")[:1]:
            data = path.read_bytes()
            found[folder] = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    return found


def example_text():
    flux = Values().flux
    rows = zip(Values().wavelength[::10], flux[::10], np.full(len(flux[::10]), 0.05), strict=True)
    return "# wavelength flux sigma\n" + "".join(f"{x:.3f} {y:.5f} {s}\n" for x, y, s in rows)


@st.composite
def bytes_changed(draw, contents):
    """A file with bytes overwritten, taken out, put in, doubled or cut off, half of them in its headers."""
    name = draw(st.sampled_from(sorted(contents)))
    content = bytearray(contents[name])
    if draw(st.sampled_from([False, False, False, True])):
        content = bytearray(gzip.compress(bytes(content), 1))
    for _ in range(draw(st.integers(1, 3))):
        reach = len(content) if draw(st.booleans()) else min(len(content), 8000)
        at = draw(st.integers(0, max(reach - 1, 0)))
        junk = draw(st.binary(min_size=1, max_size=8))
        length = draw(st.sampled_from([1, 4, 80, 2880]))
        match draw(st.sampled_from(["over", "over", "flip", "flip", "out", "in", "double"])):
            case "over":
                content[at : at + len(junk)] = junk
            case "out":
                del content[at : at + length]
            case "in":
                content[at:at] = junk
            case "double":
                content[at:at] = content[at : at + length]
            case "flip" if at < len(content):
                content[at] ^= 1 << draw(st.integers(0, 7))
    return Case(name, bytes(content))


@st.composite
def cut(draw, contents):
    """A file that ends too early, at any byte, or at the end of a record."""
    name = draw(st.sampled_from(sorted(contents)))
    content = contents[name]
    if draw(st.booleans()):
        content = gzip.compress(content, 1)
    at = draw(st.integers(0, len(content) - 1))
    return Case(name, content[: at // 2880 * 2880 if draw(st.booleans()) else at])


HOSTILE_VALUES = """
0 -1 1 2 3 5 7 8 999 1000 65536 2147483648 1000000000000 -32768 1E400 1.5 NaN T F '' 'E' '1E' '0E' '-1E'
'2000000000E' '99999999999999D' 'PD()' 'QE(9)' '1PE(99999999999)' '16X' 'J' '1000A' 'M' 'flux' 'FLUX'
'loglam' 'wavelength' 'ivar' 'sigma' 'mask' 'and_mask' '(5,5)' 'nm' 'Jy' 'mag' 'parsec' 'log10(nm)'
'air' 'AWAV' 'BINTABLE' 'IMAGE' 'RICE_1' 'LAMOST' 'SDSS' /
""".split()  # noqa: SIM905 - a list of words
EXTRA_KEYS = """
VACUUM AIRORVAC CTYPE1 COEFF0 COEFF1 TUNIT1 TUNIT2 TNULL1 TSCAL1 TZERO1 TSCAL2 TZERO3 TDIM1 TDISP1
BSCALE BZERO BLANK BUNIT THEAP PCOUNT GCOUNT GROUPS ZIMAGE ZBITPIX ZNAXIS ZNAXIS1 ZNAXIS2 ZTILE1
ZCMPTYPE TFIELDS EXTEND CONTINUE INHERIT EXTNAME TELESCOP DATA_V XTENSION CHECKSUM DATASUM
""".split()  # noqa: SIM905 - a list of words


@st.composite
def cards_changed(draw, contents):
    """A FITS file with values of keywords exchanged, keywords renamed, and others added."""
    name = draw(st.sampled_from([name for name in sorted(contents) if contents[name][:6] == b"SIMPLE"]))
    content = bytearray(contents[name])
    starts = cards_of(name, contents[name])
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(starts))
        key = bytes(content[at : at + 8])
        if draw(st.sampled_from([False, False, True])):
            key = draw(st.sampled_from(EXTRA_KEYS)).ljust(8).encode()
        value = draw(st.sampled_from(HOSTILE_VALUES))
        content[at : at + 80] = key + b"= " + value.rjust(20).encode().ljust(70)
    return Case(name, bytes(content))


_CARDS: dict[str, list[int]] = {}


def cards_of(name, content):
    """Where the structure is told: the keywords that FITS itself and the readers go by."""
    if name not in _CARDS:
        told = (
            b"SIMPLE",
            b"XTENSION",
            b"BITPIX",
            b"NAXIS",
            b"PCOUNT",
            b"GCOUNT",
            b"T",
            b"E",
            b"COEFF",
            b"B",
            b"VAC",
        )
        _CARDS[name] = [
            at
            for at in range(0, len(content) - 80, 80)
            if content[at + 8 : at + 10] == b"= " and content[at : at + 8].startswith(told)
        ]
    return _CARDS[name]


# Values that are known, written in every layout


def _example():
    exposure = example_star().exposures[0]
    return np.log10(exposure.wavelength[::9]), exposure.flux[::9]


@dataclass(frozen=True, eq=False)
class Values:
    """A spectrum, row by row, as files have it; by default that of the star that comes with the package."""

    loglam: np.ndarray = field(default_factory=lambda: _example()[0])
    flux: np.ndarray = field(default_factory=lambda: _example()[1])
    ivar: np.ndarray = field(default_factory=lambda: 400.0 + np.arange(len(_example()[0])) % 7)
    bits: np.ndarray = field(default_factory=lambda: np.zeros(len(_example()[0]), np.int32))

    @property
    def wavelength(self):
        with np.errstate(over="ignore"):
            return 10**self.loglam

    def rows(self, index):
        return Values(self.loglam[index], self.flux[index], self.ivar[index], self.bits[index])

    def missing(self, survey="SDSS"):
        """True where the bits say that there is no measurement; LAMOST has two bits of its own for it."""
        bits = [SPPIXMASK[name] for name in ("FULLREJECT", "NOSKY", "NODATA", "COMBINEREJ")]
        bits += [2, 5] if survey == "LAMOST" else []
        return self.bits & sum(1 << bit for bit in bits) != 0

    def expected(self, survey="SDSS"):
        """Wavelength, flux, ivar and mask that must come out, or None where it must be refused."""
        x = self.wavelength
        keep = np.flatnonzero((x > 0) & (x < 1e30))
        keep = keep[np.argsort(x[keep], kind="stable")]
        rows, x = self.rows(keep), x[keep]
        bad = ~np.isfinite(rows.flux) | ~np.isfinite(rows.ivar) | ~(rows.ivar > 0) | rows.missing(survey)
        if len(x) < 2 or (np.diff(x) <= 0).any() or bad.all():
            return None

        # What the documentation calls no measurement.
        level = np.median(np.abs(rows.flux[~bad]))
        with np.errstate(all="ignore"):
            bad |= np.abs(rows.flux) > 1e30 * level
            snr = level * np.sqrt(rows.ivar)
            bad |= ~((snr > 1e-18) & (snr < 1e8))
        if bad.all():
            return None
        return x, np.where(bad, 0, rows.flux), np.where(bad, 0, rows.ivar), bad


@st.composite
def damage(draw):
    """Values with one to three things wrong with them."""
    values = Values()
    for _ in range(draw(st.integers(1, 3))):
        size = len(values.loglam)
        if size < 2:
            break
        seed = draw(st.integers(0, 2**32 - 1))
        rng = np.random.default_rng(seed)
        some = rng.random(size) < draw(st.sampled_from([0.01, 0.3, 1.0]))
        some[rng.integers(size)] = True
        name = draw(st.sampled_from(["flux", "ivar", "bits", "order", "wavelength", "length", "size"]))
        if name == "flux":
            junk = draw(st.sampled_from([np.nan, np.inf, -np.inf, -3.0, 0.5, 1e6]))
            values = replace(values, flux=np.where(some, junk, values.flux))
        elif name == "ivar":
            junk = draw(st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 0.0, -0.0, 1e-6]))
            values = replace(values, ivar=np.where(some, junk, values.ivar))
        elif name == "bits":
            words = rng.integers(0, 2**31 - 1, size).astype(np.int32)
            values = replace(values, bits=np.where(some, words, values.bits).astype(np.int32))
        elif name == "order":
            order = draw(st.sampled_from([np.arange(size)[::-1], rng.permutation(size)]))
            values = values.rows(order)
        elif name == "wavelength":
            junk = draw(st.sampled_from([np.nan, np.inf, -np.inf, values.loglam[0], 5.0, 400.0]))
            values = replace(values, loglam=np.where(some, junk, values.loglam))
        elif name == "length":
            values = values.rows(slice(0, draw(st.integers(0, 5))))
        else:
            factor = 10.0 ** draw(st.integers(-25, 25))
            values = replace(values, flux=values.flux * factor, ivar=values.ivar / factor**2)
    return values


def named(values, axis):
    """Columns by name, in double precision."""
    return {
        axis: values.loglam if axis == "loglam" else values.wavelength,
        "flux": values.flux,
        "ivar": values.ivar,
        "and_mask": values.bits,
    }


def fits_table(columns, *, vectors=False, case=str.lower, order="big"):
    """A FITS table, a row a pixel or one row of vectors, from arrays of this byte order."""
    made = []
    for name, values in columns.items():
        values = np.asarray(values)
        if values.dtype.kind in "iuf":
            values = values.astype(values.dtype.newbyteorder(order))
        kind = {"f8": "D", "f4": "E", "i4": "J", "i2": "I", "u1": "B", "b1": "L"}.get(
            values.dtype.str[1:], "8A"
        )
        made.append(
            fits.Column(case(name), f"{len(values)}{kind}", array=values[None])
            if vectors
            else fits.Column(case(name), kind, array=values)
        )
    return fits.BinTableHDU.from_columns(made)


def write_table(values, axis, **options):
    return to_bytes(fits.HDUList([fits.PrimaryHDU(), fits_table(named(values, axis), **options)]))


def write_text(values, separator=" "):
    columns = (values.wavelength, values.flux, np.where(values.missing(), 0, values.ivar))
    head = separator.join(("wavelength", "flux", "ivar")) + "\n"
    return (
        head
        + "".join(separator.join(map(repr, map(float, row))) + "\n" for row in zip(*columns, strict=True))
    ).encode()


def write_ecsv(values):
    buffer = io.StringIO()
    Table(named(values, "wavelength")).write(buffer, format="ascii.ecsv")
    return buffer.getvalue().encode()


WRITERS = {
    "table of loglam": ("SDSS", lambda v: write_table(v, "loglam")),
    "table of wavelengths": ("LAMOST", lambda v: write_table(v, "wavelength")),
    "row of vectors": ("LAMOST", lambda v: write_table(v, "wavelength", vectors=True)),
    "text": ("SDSS", write_text),
    "csv": ("SDSS", lambda v: write_text(v, ",")),
    "ecsv": ("LAMOST", write_ecsv),
}
"""Layouts, each with the survey whose bits count in it."""


def agrees(exposure, expected, *, rtol=1e-12):
    """Whether an exposure is what was written."""
    x, flux, ivar, bad = expected
    np.testing.assert_allclose(exposure.wavelength, x, rtol=rtol)
    np.testing.assert_array_equal(exposure.mask, bad)
    np.testing.assert_allclose(exposure.flux, flux, rtol=rtol)
    np.testing.assert_allclose(exposure.ivar, ivar, rtol=rtol)


# Text, token by token

TOKENS = (
    "",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "1e999",
    "1,5",
    "0x10",
    "1d5",
    "--",
    "null",
    "None",
    "true",
    "x",
    "#",
    "-1",
    "0",
    "1e-30",
    "1e30",
    "4000",
    "\u0663",
    "\xbd",
    "\x00",
    "1 2",
    "1;2",
    "1, 2",
    "'1'",
    '"1"',
    "1e",
    "+-1",
    "1.2.3",
)
HEADS = (
    "# wavelength flux ivar",
    "# wavelength, flux, sigma",
    "wavelength (nm) flux sigma",
    "# in air",
    "flux wave err",
    "# air wavelengths, converted to vacuum",
    "# wavelength flux flux",
    "# loglam flux sigma",
    "wavelength flux mask",
    "# %ECSV 1.0",
    "# %ECSV 1.0\n# ---\n# datatype: []\nx y z",
    "<html>",
    "%PDF-1.4",
    "SIMPLE  =",
    "# A erg erg",
    "# wavelength[parsec of gold] flux sigma",
    "{",
    "# \u2028",
    "lambda;flux;fluxerr",
    "# Angstrom Jy Jy",
)


@st.composite
def tokens_changed(draw):
    """Lines of text with tokens, lines, separators, heads or the encoding changed."""
    rows = [line.split() for line in example_text().splitlines()[1:]]
    head = draw(st.lists(st.sampled_from(HEADS), max_size=2))
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.integers(0, len(rows) - 1))
        match draw(st.sampled_from(["token", "column", "line", "out", "double", "swap"])):
            case "token":
                column = draw(st.integers(0, 2))
                rows[row] = [*rows[row][:column], draw(st.sampled_from(TOKENS)), *rows[row][column + 1 :]]
            case "column":
                token = draw(st.sampled_from(TOKENS))
                column = draw(st.integers(0, 2))
                rows = [[*line[:column], token, *line[column + 1 :]] for line in rows]
            case "line":
                rows[row] = [draw(st.sampled_from(TOKENS))]
            case "out":
                del rows[row : row + draw(st.sampled_from([1, 10, 10000]))]
            case "double":
                rows.insert(row, rows[row])
            case "swap":
                rows[row], rows[0] = rows[0], rows[row]
        if not rows:
            break
    separator = draw(st.sampled_from([" ", " ", ",", ";", "\t", " , ", ", ", "|", "  "]))
    text = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])).join([*head, *map(separator.join, rows)])
    coding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    return Case("text", text.encode(coding, "replace"))


# What must not matter

UNIT = u.Unit("1e-17 erg / (s cm2 Angstrom)")


@st.composite
def dressed(draw):
    """A table of the example with what must not matter about it: (hdu, wavelengths in air)."""
    values = Values()
    axis = draw(st.sampled_from(["loglam", "wavelength"]))
    columns = {name: np.asarray(column) for name, column in named(values, axis).items()}
    axis_unit = None
    air = draw(st.sampled_from([None, None, "VACUUM", "AIRORVAC"]))
    x = to_air(values.wavelength) if air else values.wavelength
    if axis == "wavelength":
        axis_unit = draw(st.sampled_from([None, "Angstrom", "A", "nm", "um", "THz", "eV", "1 / cm"]))
        own = u.Unit("Angstrom" if axis_unit == "A" else axis_unit or "Angstrom")
        columns[axis] = (x * u.AA).to_value(own, u.spectral())
    else:
        axis_unit = draw(st.sampled_from([None, "log10(Angstrom)", "Angstrom", "log10(nm)"]))
        columns[axis] = np.log10(x) - (axis_unit == "log10(nm)")
    flux_unit = draw(
        st.sampled_from(
            ["1e-17 erg / (s cm2 Angstrom)", "10^-17 ergs/s/cm^2/A", "1e-19 erg/(s cm2 nm)", "W/m3"]
        )
    )
    factor = {"W/m3": 1e-10, "1e-19 erg/(s cm2 nm)": 1000.0}.get(flux_unit, 1.0)
    columns["flux"], columns["ivar"] = columns["flux"] * factor, columns["ivar"] / factor**2
    if draw(st.booleans()):
        columns["and_mask"] = columns["and_mask"].astype(draw(st.sampled_from(["i2", "f4", "f8", "u1"])))
    third = draw(st.sampled_from(["ivar", "sigma", "variance"]))
    power = {"ivar": 1, "sigma": -0.5, "variance": -1}[third]
    columns[third] = columns.pop("ivar") ** power
    spelling = {
        "loglam": ["loglam", "log_lambda"],
        "wavelength": ["wavelength", "lambda", "wave"],
        "sigma": ["sigma", "flux_err", "error"],
        "ivar": ["ivar", "flux_ivar", "inv_var"],
        "variance": ["variance", "var"],
    }
    columns = {draw(st.sampled_from(spelling.get(name, [name]))): column for name, column in columns.items()}
    size = len(x)
    for extra in draw(st.sets(st.sampled_from(["sky", "model", "wdisp", "or_mask", "text"]))):
        columns[extra] = np.array(["a"] * size) if extra == "text" else np.full(size, 7, np.int32)
    names = draw(st.permutations(sorted(columns)))
    case = draw(st.sampled_from([str.lower, str.upper, str.title]))
    vectors = draw(st.booleans()) and "text" not in columns
    hdu = fits_table(
        {name: columns[name] for name in names},
        vectors=vectors,
        case=case,
        order=draw(st.sampled_from(["big", "little"])),
    )
    for n, name in enumerate(names, start=1):
        if name in ("loglam", "log_lambda", *spelling["wavelength"]) and axis_unit:
            hdu.header[f"TUNIT{n}"] = axis_unit
        if name == "flux":
            hdu.header[f"TUNIT{n}"] = flux_unit
    if air:
        hdu.header[air] = False if air == "VACUUM" else "air"
    return hdu, flux_unit


def to_air(vacuum):
    """By going back and forth; the readers' formula is one way."""
    from bayesspec.grid import air_to_vacuum

    air = vacuum / 1.00028
    for _ in range(6):
        air = air * vacuum / air_to_vacuum(air)
    return air


def as_table(hdu):
    """The columns as a Table, in whatever byte order they have."""
    table = Table()
    for n, column in enumerate(hdu.columns, start=1):
        unit = u.Unit(hdu.header.get(f"TUNIT{n}", ""), parse_strict="silent")
        table[column.name] = Column(hdu.data[column.name], unit=unit if str(unit) else None)
    table.meta = {key: hdu.header[key] for key in ("VACUUM", "AIRORVAC") if key in hdu.header}
    return table


# Files of many spectra


def library(stars):
    """A table of a row a star, with wavelengths of its own."""
    columns = [
        fits.Column(
            name, f"{len(stars[0].loglam)}{kind}", array=np.array([getattr(star, key) for star in stars])
        )
        for name, key, kind in (
            ("LOGLAM", "loglam", "D"),
            ("FLUX", "flux", "D"),
            ("IVAR", "ivar", "D"),
            ("AND_MASK", "bits", "J"),
        )
    ]
    names = fits.Column("ID", "8A", array=[f"star {n}" for n in range(len(stars))])
    return to_bytes(fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([names, *columns])]))


MANY = {"library": library}


def desi(arms=("B", "R"), stars=4):
    """Images of two arms that overlap, as DESI writes them."""
    values = Values()
    hdus = [fits.PrimaryHDU()]
    half = len(values.loglam) // 2
    for arm, part in zip(arms, (slice(0, half + 20), slice(half - 20, None)), strict=False):
        one = values.rows(part)
        images = {"WAVELENGTH": one.wavelength, "FLUX": [one.flux] * stars, "IVAR": [one.ivar] * stars}
        images["MASK"] = [one.bits] * stars
        hdus += [fits.ImageHDU(np.array(image), name=f"{arm}_{name}") for name, image in images.items()]
    targets = fits.table_to_hdu(Table({"TARGETID": np.arange(stars) + 10**12}))
    targets.name = "FIBERMAP"
    return to_bytes(fits.HDUList([*hdus, targets]))


def files_of_many():
    """Contents of files of many spectra by name."""
    values = Values()
    shared = fits.BinTableHDU.from_columns(
        [fits.Column(name, f"{len(values.flux)}E", array=np.array([getattr(values, name.lower())] * 5))
         for name in ("FLUX", "IVAR")]
    )  # fmt: skip
    shared.header.update({"COEFF0": values.loglam[0], "COEFF1": 9e-4})
    compressed = [fits.PrimaryHDU(), fits.ImageHDU(values.wavelength, name="WAVELENGTH")]
    for name in ("FLUX", "IVAR"):
        image = np.array([getattr(values, name.lower())] * 5, dtype=np.float32)
        compressed.append(fits.CompImageHDU(image, name=name))
    return {
        "library": library([values] * 5),
        "shared": to_bytes(fits.HDUList([fits.PrimaryHDU(), shared])),
        "desi": desi(),
        "compressed": to_bytes(fits.HDUList(compressed)),
    }
