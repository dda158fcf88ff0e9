"""What the columns of tables mean, whatever the case they are written in: FITS and text alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from bayesspec.grid import air_to_vacuum

__all__ = [
    "ROLES",
    "column_names",
    "column_roles",
    "is_spectrum",
    "read_columns",
    "read_facts",
    "to_ivar",
    "to_vacuum",
]

ROLES = {
    "loglam": ("loglam",),
    "wavelength": ("wavelength", "wave", "lambda", "lam"),
    "flux": ("flux",),
    "ivar": ("ivar",),
    "sigma": ("sigma", "error", "err", "fluxerr", "fluxerror", "uncertainty", "std"),
    "mask": ("mask",),
    "andmask": ("andmask",),
}
"""Spellings of each role, without case, blanks and underscores."""

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
    return [str(hdu.header.get(f"TTYPE{n}", "")) for n in range(1, hdu.header["TFIELDS"] + 1)]


def is_spectrum(hdu: Any) -> bool:
    """Whether an HDU is a table of fluxes with their wavelengths."""
    roles = column_roles(column_names(hdu))
    return "flux" in roles and ("loglam" in roles or "wavelength" in roles)


def read_columns(hdu: fits.BinTableHDU) -> dict[str, NDArray[np.float64]]:
    """Columns by role, (M,) each: of a table of M rows, or of one row of vectors; loglam as wavelength."""
    columns = {
        role: np.array(hdu.data.field(position), dtype=float).ravel()
        for role, position in column_roles(column_names(hdu)).items()
    }
    if "loglam" in columns:
        columns["wavelength"] = 10 ** columns.pop("loglam")
    return columns


def to_ivar(columns: dict[str, NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """Inverse variance from the column ivar, else from sigma; None if there is neither.

    0 where sigma is not a positive number.
    """
    if "ivar" in columns:
        return columns["ivar"]
    if "sigma" not in columns:
        return None
    sigma = columns["sigma"]
    known = np.isfinite(sigma) & (sigma > 0)
    return np.where(known, 1 / np.where(known, sigma, 1) ** 2, 0.0)


def to_vacuum(
    wavelength: NDArray[np.float64], air: bool | None, header: fits.Header | None = None
) -> NDArray[np.float64]:
    """Vacuum wavelengths; `air` None asks the header's VACUUM, and believes in vacuum where it is silent."""
    if air is None:
        air = header is not None and header.get("VACUUM", True) is False
    return air_to_vacuum(wavelength) if air else wavelength


def read_facts(
    keys: Mapping[str, Sequence[str]], row: fits.FITS_record | None, header: fits.Header
) -> dict[str, Any]:
    """What a catalogue's row, or else the header, says under any of these keywords, as plain values."""
    names = {} if row is None else {name.upper(): name for name in row.array.names}
    facts: dict[str, Any] = {}
    for fact, spellings in keys.items():
        values = [row[names[key]] for key in spellings if key in names]
        values += [_card(header, key) for key in spellings]
        value = next((value for value in values if value is not None), None)
        if value is not None:
            value = value.item() if isinstance(value, np.generic) else value
            facts[fact] = value.strip() if isinstance(value, str) else value
    return facts


def _card(header: fits.Header, key: str) -> Any:
    """A keyword's value; None if it is missing, blank or not legible (e.g. a bare NaN)."""
    try:
        value = header.get(key)
    except fits.VerifyError:
        return None
    return None if isinstance(value, fits.card.Undefined) else value
