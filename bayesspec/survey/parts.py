"""Products of a run of many spectra: parts, i.e. FITS tables of some hundred stars, and catalogue rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import Column, Table
from numpy.typing import NDArray

from bayesspec.exceptions import BayesspecError
from bayesspec.observation import printable
from bayesspec.results.star import Star

__all__ = ["need_pyarrow", "part_name", "put", "to_parquet", "to_part"]


def part_name(first: int, count: int) -> str:
    """File of the part with `count` inputs, the first at position `first`, counted from 0.

    Example:
        >>> part_name(512, 256)
        'part-000000512-256.fits'
    """
    return f"part-{first:09d}-{count}.fits"


def to_part(
    stars: Sequence[Star],
    rows: Sequence[Mapping[str, Any]],
    about: Mapping[str, tuple[str, str]],
    facts: Mapping[str, tuple[Any, str]],
) -> fits.HDUList:
    """The FITS file of a part: a table SPECTRA with one row per star, and its WAVELENGTH.

    Columns: POSITION and NAME of the input; STAR, the star's name; vectors FLUX, FLUX_STD if the method gives
    one, OBSERVED and its standard deviation OBSERVED_STD (0 where it is unknown or nothing was observed) and
    MASK, all on the model's grid, in single precision; CLASS_PROBABILITIES and Z; and the columns of
    `Result.full_table`.

    Arguments:
        stars: The stars in order.
        rows: Rows of the catalogue for these stars.
        about: Unit and description of columns of `Result.full_table` by name.
        facts: Header keywords about the run, with value and comment.
    """
    columns: dict[str, Any] = {
        "POSITION": np.array([row["position"] for row in rows], dtype=np.int64),
        "NAME": _text(row["name"] for row in rows),
        "STAR": _text(star.name for star in stars),
    }
    vectors: dict[str, Any] = {"FLUX": [star.flux for star in stars]}
    if all(star.flux_std is not None for star in stars):
        vectors["FLUX_STD"] = [star.flux_std for star in stars]
    vectors["OBSERVED"] = [star.observed.flux for star in stars]
    ivar = np.stack([star.observed.ivar for star in stars])
    vectors["OBSERVED_STD"] = np.divide(1, np.sqrt(ivar), out=np.zeros_like(ivar), where=ivar > 0)
    units = {star.unit for star in stars}
    unit = _spelled(units.pop()) if len(units) == 1 else None  # else see the column UNIT
    for name, values in vectors.items():
        columns[name] = Column(np.asarray(values, dtype=np.float32), unit=unit)
    columns["MASK"] = np.stack([star.observed.mask for star in stars])
    columns["CLASS_PROBABILITIES"] = np.stack([star.class_probabilities for star in stars]).astype(np.float32)
    columns["Z"] = np.stack([star.z for star in stars]).astype(np.float32)
    for name in stars[0].row:
        cells = [star.row[name] for star in stars if name in star.row]
        if name != "name" and len(cells) == len(stars):  # else only in the catalogue
            unit, description = about.get(name, ("", ""))
            told = _text(cells) if isinstance(cells[0], str) else np.array(cells)
            columns[name.upper()] = Column(told, unit=unit or None, description=description or None)

    table = _hdu(columns, "SPECTRA")
    wavelength = Column(stars[0].grid.wavelength, unit=u.AA, description="vacuum")
    hdus = fits.HDUList([fits.PrimaryHDU(), table, _hdu({"WAVELENGTH": wavelength}, "WAVELENGTH")])
    facts = {**facts, "CLASSES": (",".join(stars[0].classes), "of CLASS_PROBABILITIES")}
    for key, (value, comment) in facts.items():
        for hdu in hdus[:2]:
            hdu.header[key] = (_ascii(value) if isinstance(value, str) else value, comment)
    return hdus


def _hdu(columns: Mapping[str, Any], name: str) -> fits.BinTableHDU:
    hdu = fits.table_to_hdu(Table(dict(columns)))
    hdu.name = name
    for n, column in enumerate(columns.values(), start=1):
        if about := getattr(column, "description", None):
            hdu.header[f"TCOMM{n}"] = _ascii(about)
    return hdu


def to_parquet(rows: Sequence[Mapping[str, Any]], about: Mapping[str, tuple[str, str]]) -> memoryview:
    """Rows of the catalogue as a Parquet file; units and descriptions are in the fields' metadata.

    Missing values are null.

    Arguments:
        rows: Rows of the inputs of one piece, failures included.
        about: Unit and description of columns by name.
    """
    import pyarrow as pa
    from pyarrow import parquet

    longest = max(rows, key=len)
    names = dict.fromkeys(key for row in (longest, *rows) for key in row)
    arrays, fields = [], []
    for name in names:
        known = [row[name] for row in rows if name in row]
        dtype = np.asarray(known).dtype
        missing = np.array([name not in row for row in rows])
        filler = "" if dtype.kind == "U" else np.zeros((), dtype).item()
        values = [row.get(name, filler) for row in rows]
        if dtype.kind == "U":
            array = pa.array([str(value) for value in values], pa.string(), mask=missing)
        else:
            array = pa.array(np.array(values, dtype=dtype), mask=missing)
        unit, description = about.get(name, ("", ""))
        meta = {key: text for key, text in (("unit", unit), ("description", description)) if text}
        arrays.append(array)
        fields.append(pa.field(name, array.type, metadata=meta or None))
    file = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), file)
    return memoryview(file.getvalue())


def need_pyarrow() -> None:
    """Check that Parquet can be written.

    Raises:
        BayesspecError: if pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise BayesspecError(
            'a catalogue needs pyarrow: pip install "bayesspec-stars[scale]"; or use --per-star'
        ) from error


def put(data: memoryview, scratch: Path, path: Path) -> None:
    """Write a file elsewhere and move it when complete, so that a power failure leaves no partial file."""
    with open(scratch, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def _spelled(unit: u.UnitBase | None) -> str | None:
    """A unit as FITS spells it, or else as astropy does; None if there is no common unit."""
    if unit is None:
        return None
    try:
        return unit.to_string("fits")
    except ValueError:
        return unit.to_string()


def _text(values: Iterable[str]) -> NDArray[np.str_]:
    return np.array([_ascii(value) for value in values], dtype=str)


def _ascii(text: str) -> str:
    return printable(text).encode("ascii", "replace").decode()
