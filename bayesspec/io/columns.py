"""The meaning of table columns, in FITS and text, with names in any case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray

from bayesspec.exceptions import ReadError
from bayesspec.grid import air_to_vacuum
from bayesspec.units import parse_unit, to_angstrom

from .bits import SPPIXMASK

__all__ = [
    "MOST_PIXELS",
    "ROLES",
    "column_names",
    "column_roles",
    "filled",
    "is_spectrum",
    "null_of",
    "one_of_each",
    "read_columns",
    "read_facts",
    "table_hdu",
    "to_ivar",
    "to_vacuum",
    "with_units",
]

ROLES = {
    "loglam": ("loglam", "loglambda", "logwave", "logwavelength"),
    "wavelength": ("wavelength", "wave", "lambda", "lam", "angstrom", "angstroms"),
    "flux": ("flux",),
    "ivar": ("ivar", "fluxivar", "inversevariance", "invvar"),
    "variance": ("variance", "var", "fluxvar", "fluxvariance"),
    "sigma": ("sigma", "error", "err", "fluxerr", "fluxerror", "eflux", "uncertainty", "unc", "std", "noise"),
    "mask": ("mask",),
    "andmask": ("andmask",),
}
"""Names of the columns of each role, without case, blanks and underscores."""

MOST_PIXELS = 1_000_000
"""Limit on the pixels of a single spectrum; a few KB of compressed data can claim any number."""

_MOST_COLUMNS = 999
"""The FITS standard's limit; a damaged header may claim any number."""

_VACUUM_KEYS = ("VACUUM", "AIRORVAC")
"""Keywords that say whether wavelengths are in air."""

_AIR = {"air": True, "vac": False, "vacuum": False}
_NO_VACUUM = {
    **dict.fromkeys(("false", "f", "0", "no"), True),
    **dict.fromkeys(("true", "t", "1", "yes"), False),
}

_LOGARITHM = re.compile(r"(?:log(?:10)?|dex) ?[(\[]?(.*?)[)\]]?", re.IGNORECASE)

_ROLE_OF = {spelling: role for role, spellings in ROLES.items() for spelling in spellings}


def column_roles(names: Iterable[str]) -> dict[str, int]:
    """Position of the first column of each role.

    Example:
        >>> column_roles(["FLUX", "LogLam", "AND_MASK", "sky"])
        {'flux': 0, 'loglam': 1, 'andmask': 2}
    """
    roles: dict[str, int] = {}
    for position, name in enumerate(names):
        role = _ROLE_OF.get(name.lower().translate(str.maketrans("", "", "_- ")))
        if role is not None:
            roles.setdefault(role, position)
    return roles


def one_of_each(names: Sequence[str]) -> dict[str, int]:
    """Position of the column of each role.

    Raises:
        ReadError: if two columns may have the same role.

    Example:
        >>> one_of_each(["wavelength", "flux", "FLUX"])
        Traceback (most recent call last):
        ...
        bayesspec.exceptions.ReadError: both flux and FLUX may be the flux: remove one of them
    """
    roles = column_roles(names)
    for position, name in enumerate(names):
        for role in column_roles([name]):
            if roles[role] != position:
                raise ReadError(f"both {names[roles[role]]} and {name} may be the {role}: remove one of them")
    return roles


def column_names(hdu: Any) -> list[str]:
    """Names of a table's columns; empty if the HDU is not a table.

    From the header, because astropy takes longer for the 200 columns of a catalogue than for the rest of a
    file.
    """
    if not isinstance(hdu, fits.BinTableHDU):
        return []
    count = hdu.header["TFIELDS"]
    if count > _MOST_COLUMNS:
        raise ReadError(f"damaged header: a table of {count} columns")
    return [str(hdu.header.get(f"TTYPE{n}", "")) for n in range(1, count + 1)]


def is_spectrum(hdu: Any) -> bool:
    """Whether an HDU is a table of fluxes with their wavelengths."""
    roles = column_roles(column_names(hdu))
    return "flux" in roles and ("loglam" in roles or "wavelength" in roles)


def read_columns(hdu: fits.BinTableHDU) -> dict[str, NDArray | u.Quantity]:
    """Columns by role, (M,) each, of a table of M rows or of one row of vectors; loglam as wavelength.

    Columns with a unit in the header are quantities; boolean masks stay boolean.

    Raises:
        ReadError: if the table has several spectra, or its columns are not numbers, or their units unknown.
    """
    names = column_names(hdu)
    columns, units = {}, {}
    for role, position in one_of_each(names).items():
        values = hdu.data.field(position)
        if values.dtype == object and len(values) == 1:
            values = values[0]
        values = np.squeeze(values)
        if values.ndim != 1 or values.dtype == object:
            raise ReadError(
                f"not one spectrum: {len(hdu.data)} rows, with shape {np.shape(values)} in column "
                f"{names[position]}; expected one row of vectors, or a row for each pixel"
            )
        null = null_of(hdu.header, position)
        columns[role] = filled(role, values, False if null is None else values == null)
        units[role] = hdu.header.get(f"TUNIT{position + 1}")
    return with_units(columns, units)


def table_hdu(table: Table) -> fits.BinTableHDU:
    """A table's spectrum as an HDU, with masked cells as missing values, and with all its units."""
    names = [str(name) for name in table.colnames]
    columns = {names[n]: (role, table.columns[n]) for role, n in one_of_each(names).items()}
    plain = {
        name: filled(role, np.asarray(getattr(column, "unmasked", column)), getattr(column, "mask", False))
        for name, (role, column) in columns.items()
    }
    hdu = fits.table_to_hdu(Table(plain))
    # Astropy would drop units that FITS does not have.
    for n, (_, column) in enumerate(columns.values(), start=1):
        if getattr(column, "unit", None) is not None:
            hdu.header[f"TUNIT{n}"] = str(column.unit)
    for key, value in table.meta.items():
        if str(key).upper() in _VACUUM_KEYS:
            hdu.header[str(key).upper()] = value
    return hdu


def null_of(header: fits.Header, position: int) -> float | None:
    """The value of missing cells in a table's column, scaled as astropy scales the column; None if unset."""
    null = header.get(f"TNULL{position + 1}")
    if null is None:
        return None
    # TNULL refers to the unscaled numbers in the file.
    return null * header.get(f"TSCAL{position + 1}", 1) + header.get(f"TZERO{position + 1}", 0)


def filled(role: str, values: NDArray, missing: NDArray[np.bool_] | bool) -> NDArray:
    """Values with missing ones replaced: numbers by NaN, booleans by True, mask bits by NODATA."""
    if values.dtype.kind not in "biuf":
        raise ReadError(f"the column of {role} does not have numbers")
    if role in ("mask", "andmask"):
        return np.where(missing, values.dtype == bool or 1 << SPPIXMASK["NODATA"], values)
    return np.where(missing, np.nan, values.astype(float))


def with_units(
    columns: Mapping[str, NDArray], units: Mapping[str, str | None]
) -> dict[str, NDArray | u.Quantity]:
    """Columns by role in their stated units, and loglam as wavelength.

    Raises:
        ReadError: if a unit is not understood, or wavelength and loglam contradict each other.
    """
    found: dict[str, NDArray | u.Quantity] = {}
    for role, values in columns.items():
        text = None if role in ("mask", "andmask") else units.get(role)
        if role == "loglam":
            # "log10(Angstrom)"; some files state only the unit of the wavelength itself.
            inner = _LOGARITHM.fullmatch((text or "").strip())
            role, values, text = "wavelength", 10**values, inner[1] if inner else text
        unit = parse_unit(text)
        other = found.get(role)
        found[role] = values if unit is None else values << unit
        if other is not None and not _are_same(other, found[role]):
            raise ReadError("wavelength and loglam are not the same wavelengths: remove one of them")
    return found


def _are_same(one: NDArray | u.Quantity, other: NDArray | u.Quantity) -> bool:
    """Whether wavelengths are equal except for rounding of logarithms; air and vacuum differ by 3e-4."""
    one, other = to_angstrom(one), to_angstrom(other)
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-5, equal_nan=True)


def to_ivar(columns: Mapping[str, NDArray | u.Quantity]) -> NDArray | u.Quantity | None:
    """Inverse variance from the column ivar, else from variance or sigma; None if there is no such column.

    0 where variance or sigma is not a positive number.
    """
    if "ivar" in columns:
        return columns["ivar"]
    role, power = ("variance", -1) if "variance" in columns else ("sigma", -2)
    if role not in columns:
        return None
    unit = getattr(columns[role], "unit", None)
    values = np.asarray(columns[role])
    known = np.isfinite(values) & (values > 0)
    ivar = np.where(known, np.where(known, values, 1) ** float(power), 0.0)
    return ivar if unit is None else ivar << unit**power


def to_vacuum(
    wavelength: NDArray | u.Quantity, air: bool | None, *headers: fits.Header
) -> NDArray[np.float64]:
    """Vacuum wavelengths in Angstrom; if `air` is None the headers decide, and the default is vacuum.

    Raises:
        ReadError: if the headers contradict each other, or are not understood.
        UnitsError: if the unit is not one of a wavelength, frequency or energy.
    """
    if air is None:
        said = {is_air for header in headers for is_air in _says_air(header)}
        if len(said) == 2:
            raise ReadError("its headers say both air and vacuum: say air=True or air=False")
        air = True in said
    wavelength = to_angstrom(wavelength)
    return air_to_vacuum(wavelength) if air else wavelength


def _says_air(header: fits.Header) -> Iterator[bool]:
    """True for air and False for vacuum, for each keyword of the header that says which."""
    for key in _VACUUM_KEYS:
        value = _card(header, key)
        text = str(value).strip().lower()
        if value is None or not text:
            continue
        words = _AIR if key == "AIRORVAC" else _NO_VACUUM
        if text not in words:
            raise ReadError(f"{key} = {value!r} in the header is not understood: say air=True or air=False")
        yield words[text]
    # The spectral axis of the FITS standard (Greisen et al. 2006, table 1).
    axis = str(_card(header, "CTYPE1") or "").upper()
    if axis.startswith(("AWAV", "WAVE")):
        yield axis.startswith("AWAV")


def read_facts(
    keys: Mapping[str, Sequence[str]], row: fits.FITS_record | None, header: fits.Header
) -> dict[str, Any]:
    """Values of these keywords from a catalogue row, or else from the header, as plain Python values."""
    names = {} if row is None else {name.upper(): name for name in row.array.names}
    facts: dict[str, Any] = {}
    for fact, spellings in keys.items():
        values = [_cell(row, names[key]) for key in spellings if key in names]
        values += [_card(header, key) for key in spellings]
        value = next((value for value in values if value is not None), None)
        if value is not None:
            value = value.item() if isinstance(value, np.generic) else value
            facts[fact] = value.strip() if isinstance(value, str) else value
    return facts


def _cell(row: fits.FITS_record, name: str) -> Any:
    """A number or text of a row; None if it is a vector or unreadable (bytes that are not ASCII)."""
    try:
        value = row[name]
    except UnicodeDecodeError:
        return None
    return value if np.ndim(value) == 0 else None


def _card(header: fits.Header, key: str) -> Any:
    """A keyword's value; None if it is missing, blank or unreadable (e.g. a bare NaN)."""
    try:
        value = header.get(key)
    except fits.VerifyError:
        return None
    return None if isinstance(value, fits.card.Undefined) else value
