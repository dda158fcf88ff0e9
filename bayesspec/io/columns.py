"""What the columns of tables mean, whatever the case they are written in: FITS and text alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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
"""Spellings of each role, without case, blanks and underscores."""

MOST_PIXELS = 1_000_000
"""No single spectrum has more; compressed, a few KB can claim any number."""

_MOST_COLUMNS = 999
"""The FITS standard's limit; a damaged header may claim any number."""

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


def column_names(hdu: Any) -> list[str]:
    """Names of a table's columns; of no table, none.

    From the header: astropy takes longer over the 200 columns of a catalogue than over all else in a file.
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
    """Columns by role, (M,) each: of a table of M rows, or of one row of vectors; loglam as wavelength.

    Columns whose unit the header states are quantities; masks stay booleans where they are.

    Raises:
        ReadError: if the table holds several spectra, or its columns are no numbers of known units.
    """
    names = column_names(hdu)
    columns, units = {}, {}
    for role, position in column_roles(names).items():
        values = hdu.data.field(position)
        if values.dtype == object and len(values) == 1:
            values = values[0]
        values = np.squeeze(values)
        if values.ndim != 1 or values.dtype == object:
            raise ReadError(
                f"not one spectrum: {len(hdu.data)} rows, with shape {np.shape(values)} in column "
                f"{names[position]}; expected one row of vectors, or a row for each pixel"
            )
        null = hdu.header.get(f"TNULL{position + 1}")
        columns[role] = filled(role, values, False if null is None else values == null)
        units[role] = hdu.header.get(f"TUNIT{position + 1}")
    return with_units(columns, units)


def table_hdu(table: Table) -> fits.BinTableHDU:
    """A table's spectrum as an HDU of a file, with masked cells missing, and with all its units."""
    names = [str(name) for name in table.colnames]
    columns = {names[n]: (role, table.columns[n]) for role, n in column_roles(names).items()}
    plain = {
        name: filled(role, np.asarray(getattr(column, "unmasked", column)), getattr(column, "mask", False))
        for name, (role, column) in columns.items()
    }
    hdu = fits.table_to_hdu(Table(plain))
    # Units that FITS cannot spell would get lost.
    for n, (_, column) in enumerate(columns.values(), start=1):
        if getattr(column, "unit", None) is not None:
            hdu.header[f"TUNIT{n}"] = str(column.unit)
    return hdu


def filled(role: str, values: NDArray, missing: NDArray[np.bool_] | bool) -> NDArray:
    """Numbers with NaN where they are missing; booleans and bits of masks with True and NODATA."""
    if values.dtype.kind not in "biuf":
        raise ReadError(f"the column of {role} does not hold numbers")
    if role in ("mask", "andmask") and values.dtype.kind != "f":
        return np.where(missing, values.dtype == bool or 1 << SPPIXMASK["NODATA"], values)
    return np.where(missing, np.nan, values.astype(float))


def with_units(
    columns: Mapping[str, NDArray], units: Mapping[str, str | None]
) -> dict[str, NDArray | u.Quantity]:
    """Columns by role in the units that are stated for them, and loglam as wavelength.

    Raises:
        ReadError: if a unit is not understood, or the flux is a magnitude.
    """
    found: dict[str, NDArray | u.Quantity] = {}
    for role, values in columns.items():
        text = None if role in ("mask", "andmask") else units.get(role)
        if role == "loglam":
            # "log10(Angstrom)"; the unit of the wavelength itself is the same thing said carelessly.
            inner = _LOGARITHM.fullmatch((text or "").strip())
            role, values, text = "wavelength", 10**values, inner[1] if inner else text
        unit = parse_unit(text)
        found[role] = values if unit is None else values << unit
    return found


def to_ivar(columns: Mapping[str, NDArray | u.Quantity]) -> NDArray | u.Quantity | None:
    """Inverse variance from the column ivar, else from variance or sigma; None if there is none of them.

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
    wavelength: NDArray | u.Quantity, air: bool | None, header: fits.Header | None = None
) -> NDArray[np.float64]:
    """Vacuum wavelengths in Angstrom; `air` None asks the header's VACUUM, and believes in vacuum otherwise.

    Raises:
        UnitsError: if the unit is that of no wavelength, frequency or energy.
    """
    if air is None:
        air = header is not None and header.get("VACUUM", True) is False
    wavelength = to_angstrom(wavelength)
    return air_to_vacuum(wavelength) if air else wavelength


def read_facts(
    keys: Mapping[str, Sequence[str]], row: fits.FITS_record | None, header: fits.Header
) -> dict[str, Any]:
    """What a catalogue's row, or else the header, says under any of these keywords, as plain values."""
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
    """A number or text of a row; None if it is a vector or not legible (bytes that are not ASCII)."""
    try:
        value = row[name]
    except UnicodeDecodeError:
        return None
    return value if np.ndim(value) == 0 else None


def _card(header: fits.Header, key: str) -> Any:
    """A keyword's value; None if it is missing, blank or not legible (e.g. a bare NaN)."""
    try:
        value = header.get(key)
    except fits.VerifyError:
        return None
    return None if isinstance(value, fits.card.Undefined) else value
