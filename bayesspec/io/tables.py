"""Files of many spectra: tables with one row each, and images like those of DESI, read a few rows at a time.

* FITS tables with a vector FLUX in each row, and possibly IVAR, MASK, ... (the spellings of `io.columns`).
  Wavelengths are also a vector in the row, an HDU WAVELENGTH or LOGLAM, or 10**(COEFF0 + COEFF1 * pixel) from
  the header. This is the format of star libraries.
* FITS images FLUX, IVAR, MASK with one spectrum per row, and WAVELENGTH, as from DESI. The names may begin
  with an arm (B_FLUX, R_FLUX, Z_FLUX; the arms are joined), and FIBERMAP has the TARGETID.
* Parquet tables with the columns of the first kind as lists; COEFF0 and COEFF1 are then in the metadata.
"""

from __future__ import annotations

import math
from functools import reduce
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from bayesspec.exceptions import BayesspecError, ObservationError, ReadError
from bayesspec.observation import Observation, printable

from .arms import join_arms
from .columns import (
    MOST_PIXELS,
    column_names,
    column_roles,
    filled,
    null_of,
    one_of_each,
    read_facts,
    with_units,
)
from .rows import FACTS, NAMES, SpectraFile, label_of, text_of, to_star
from .source import check_headers, open_regular, quiet, unpacked

__all__ = ["count_spectra", "open_spectra"]

BLOCK = 64
"""Rows that are read together."""

_MOST_UNPACKED = 2 << 30
"""Bytes of a gzipped file of many spectra: a few MB of gzip can hold any number."""


def count_spectra(path: str | Path) -> int | None:
    """Number of spectra in a file of many, by its headers; None if it is not such a file.

    Raises:
        BayesspecError: if it is a Parquet file and pyarrow is not installed.
    """
    try:
        file = open_spectra(path)
    except ImportError as error:
        raise BayesspecError(
            f'{printable(str(path))}: Parquet needs pyarrow, pip install "bayesspec-stars[scale]"'
        ) from error
    except ReadError:  # `read` is for it, and has better error messages
        return None
    count = len(file)
    file.close()
    return count


def open_spectra(path: str | Path) -> SpectraFile:
    """Open a file of many spectra; only its headers are read.

    Raises:
        ReadError: if it is not such a file.
    """
    try:
        with quiet():
            if str(path).lower().endswith(".parquet"):
                open_regular(path).close()
                return _Parquet(path)
            return _open_fits(path)
    except ImportError:
        raise
    except ReadError as error:
        raise ReadError(f"{printable(str(path))}: {error}") from error
    except Exception as error:
        raise ReadError(f"{printable(str(path))}: not a file of many spectra ({error})") from error


def _open_fits(path: str | Path) -> SpectraFile:
    file = unpacked(open_regular(path), _MOST_UNPACKED)
    try:
        check_headers(file)
        return _layout(path, file)
    except Exception:
        file.close()
        raise


def _layout(path: str | Path, file: BufferedIOBase) -> SpectraFile:
    hdus = fits.open(file, memmap=False)
    for hdu in hdus:
        names = column_names(hdu)
        flux = column_roles(names).get("flux")
        if flux is not None:
            repeat = fits.column._parse_tformat(hdu.header[f"TFORM{flux + 1}"])[0]
            _check_size(repeat)
            by_row = {"loglam", "wavelength"} & column_roles(names).keys()
            if repeat > 1 and (hdu.header["NAXIS2"] > 1 or not by_row):
                return _FitsTable(path, file, hdus, hdu, names)
    arms = [hdu.name.removesuffix("FLUX") for hdu in hdus if hdu.is_image and hdu.name.endswith("FLUX")]
    arms = [arm for arm in arms if f"{arm}WAVELENGTH" in hdus and len(hdus[f"{arm}FLUX"].shape) == 2]
    if not arms:
        raise ReadError("not a file of many spectra")
    for arm in arms:
        for role in ("FLUX", "IVAR", "MASK", "WAVELENGTH"):
            if f"{arm}{role}" in hdus:
                _check_image(hdus[f"{arm}{role}"])
    return _FitsImages(path, file, hdus, arms)


def _check_image(image: Any) -> None:
    """Refuse an image with too much memory per row: a compressed image of a few KB may claim any size."""
    _check_size(image.shape[-1] if image.shape else 0)
    _check_size(math.prod(getattr(image, "tile_shape", None) or [0]) // BLOCK)


def _check_size(pixels: int) -> None:
    if pixels > MOST_PIXELS:
        raise ReadError(f"a spectrum of {pixels} pixels, more than any has")


class _FitsTable(SpectraFile):
    """A FITS table, read in blocks of rows by position: a memory-mapped file would count as used memory."""

    def __init__(
        self,
        path: str | Path,
        file: BufferedIOBase,
        hdus: fits.HDUList,
        hdu: fits.BinTableHDU,
        names: list[str],
    ) -> None:
        self.path, self._file = path, file
        self._header, self._primary = hdu.header.copy(), hdus[0].header
        self._begin = hdu.fileinfo()["datLoc"]
        self._roles, self._names = one_of_each(names), names
        self._block, self._first = None, 0
        if hdu.header.get("PCOUNT", 0):
            raise ReadError("vectors of variable length are not read")
        self._shared = _shared_wavelength(hdus, hdu, self._roles)

    def __len__(self) -> int:
        return self._header["NAXIS2"]

    def _read(self, row: int, strict: bool) -> Observation:
        data = self._rows(row)
        k = row - self._first
        columns = {role: np.asarray(data.field(n)[k]) for role, n in self._roles.items()}
        units = {role: self._header.get(f"TUNIT{n + 1}") for role, n in self._roles.items()}
        nulls = {role: null_of(self._header, n) for role, n in self._roles.items()}
        columns = {
            role: filled(role, values, False if nulls[role] is None else values == nulls[role])
            for role, values in columns.items()
        }
        label = next((name for name in NAMES if name in map(str.upper, self._names)), None)
        name = label_of(self.path, row, None if label is None else data.field(label)[k])
        star = to_star(columns, units, self._shared, [self._primary, self._header], name, strict)
        star.meta |= read_facts(FACTS, data[k], fits.Header())
        return star

    def _rows(self, row: int) -> fits.FITS_rec:
        if self._block is None or not self._first <= row < self._first + len(self._block):
            count = min(BLOCK, len(self) - row)
            width = self._header["NAXIS1"]
            self._file.seek(self._begin + row * width)
            data = self._file.read(count * width)
            if len(data) < count * width:
                raise ReadError(f"{printable(str(self.path))}: truncated")
            header = self._header.copy()
            header["NAXIS2"] = count
            whole = header.tostring().encode() + data + bytes(-len(data) % 2880)
            self._block, self._first = fits.BinTableHDU.fromstring(whole).data, row
        return self._block


class _FitsImages(SpectraFile):
    """FITS images, read one row of each at a time."""

    def __init__(self, path: str | Path, file: BufferedIOBase, hdus: fits.HDUList, arms: list[str]) -> None:
        self.path, self._file, self._hdus, self._arms = path, file, hdus, arms
        self._wavelength = {arm: np.array(hdus[f"{arm}WAVELENGTH"].data, dtype=float) for arm in arms}
        self._targets = None
        if "FIBERMAP" in hdus and len(hdus["FIBERMAP"].data) == len(self):
            self._targets = hdus["FIBERMAP"].data

    def __len__(self) -> int:
        return self._hdus[f"{self._arms[0]}FLUX"].shape[0]

    def _read(self, row: int, strict: bool) -> Observation:
        facts = {} if self._targets is None else read_facts(FACTS, self._targets[row], fits.Header())
        name = label_of(self.path, row, facts.get("target_id"))
        stars, errors = [], []
        for arm in self._arms:
            try:
                stars.append(self._arm(arm, row, name, strict))
            except ObservationError as error:  # an arm without data; the others may have some
                errors.append(error)
        if not stars:
            raise errors[0]
        if any(star.unit != stars[0].unit for star in stars):
            raise ReadError(f"{name}: the fluxes of its arms have different units")
        stars.sort(key=lambda star: star.exposures[0].wavelength[0])
        one = stars[0]
        if all(star.exposures[0].ivar is not None for star in stars):
            one.exposures = (reduce(join_arms, (star.exposures[0] for star in stars)),)
        elif len(stars) > 1:
            one = Observation.from_exposures(stars, name=name)
        one.meta |= facts
        return one

    def _arm(self, arm: str, row: int, name: str, strict: bool) -> Observation:
        columns = {"wavelength": self._wavelength[arm]}
        units = {"wavelength": self._hdus[f"{arm}WAVELENGTH"].header.get("BUNIT")}
        for role in ("flux", "ivar", "mask"):
            if (key := f"{arm}{role.upper()}") in self._hdus:
                columns[role] = filled(role, np.asarray(self._hdus[key].section[row]), False)
                units[role] = self._hdus[key].header.get("BUNIT")
        headers = [self._hdus[0].header, self._hdus[f"{arm}WAVELENGTH"].header]
        return to_star(columns, units, None, headers, name, strict)


class _Parquet(SpectraFile):
    """A Parquet table, read in the row groups of the file."""

    def __init__(self, path: str | Path) -> None:
        from pyarrow import parquet

        self.path, self._file = path, parquet.ParquetFile(path)
        schema = self._file.schema_arrow
        self._roles = {role: schema.names[n] for role, n in one_of_each(schema.names).items()}
        if "flux" not in self._roles:
            raise ReadError("no column of fluxes")
        self._units = {role: text_of((schema.field(n).metadata or {}).get(b"unit")) for role, n in
                       self._roles.items()}  # fmt: skip
        upper = {name.upper(): name for name in schema.names}
        self._label = next((upper[name] for name in NAMES if name in upper), None)
        known = {fact: [upper[key] for key in keys if key in upper] for fact, keys in FACTS.items()}
        self._facts = {fact: names[0] for fact, names in known.items() if names}
        meta = {key.decode().upper(): value for key, value in (schema.metadata or {}).items()}
        self._coefficients = [float(meta[key]) for key in ("COEFF0", "COEFF1") if key in meta]
        sizes = [self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._group = -1
        self._rows: Any = None

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def _read(self, row: int, strict: bool) -> Observation:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group != self._group:
            names = [*self._roles.values(), *([self._label] if self._label else []), *self._facts.values()]
            whole = self._file.read_row_group(group, columns=list(dict.fromkeys(names)))
            self._group, self._rows = group, whole
        k = row - int(self._starts[group])
        columns = {}
        for role, column in self._roles.items():
            values = np.array(self._rows[column][k].as_py())
            columns[role] = filled(role, values.astype(float) if values.dtype == object else values, False)
        shared = None
        if len(self._coefficients) == 2:
            shared = 10 ** (self._coefficients[0] + self._coefficients[1] * np.arange(len(columns["flux"])))
        name = label_of(self.path, row, self._rows[self._label][k].as_py() if self._label else None)
        star = to_star(columns, self._units, shared, [], name, strict)
        star.meta |= {fact: self._rows[column][k].as_py() for fact, column in self._facts.items()}
        return star


def _shared_wavelength(hdus: fits.HDUList, hdu: fits.BinTableHDU, roles: dict[str, int]) -> Any | None:
    if {"loglam", "wavelength"} & roles.keys():
        return None
    for header in (hdu.header, hdus[0].header):
        if "COEFF0" in header and "COEFF1" in header:
            pixels = fits.column._parse_tformat(hdu.header[f"TFORM{roles['flux'] + 1}"])[0]
            return 10 ** (header["COEFF0"] + header["COEFF1"] * np.arange(pixels))
    for role in ("wavelength", "loglam"):
        if role.upper() in hdus:
            own = hdus[role.upper()]
            values = own.data if own.is_image else own.data.field(0)
            unit = own.header.get("BUNIT" if own.is_image else "TUNIT1")
            return with_units({role: np.asarray(values, dtype=float)}, {role: unit})["wavelength"]
    return None
