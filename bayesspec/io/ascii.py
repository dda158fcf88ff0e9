"""Text with two or three columns: wavelength in Angstrom, flux, and if there is a third, its sigma.

Columns are separated by blanks, commas, semicolons or tabs; `#` starts a comment. A line of names above the
numbers (a comment or not) says which column is which: then there may be more of them, and the third may be an
ivar or a mask (0 = good).
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from bayesspec.exceptions import ReadError
from bayesspec.observation import Observation

from .columns import column_roles, to_ivar, to_vacuum

__all__ = ["read_ascii"]

_BLANK = {"", "--", "null", "none"}


def read_ascii(text: str, *, air: bool | None = None) -> Observation:
    """A spectrum from text; wavelengths count as vacuum unless `air`. Without a unit.

    Raises:
        ReadError: if there are no two columns of numbers, or a line that is none.
        ObservationError: if no pixel is observed.
    """
    names, numbers = _parse(text)
    roles = column_roles(names) if names else {}
    if not ("flux" in roles and ("wavelength" in roles or "loglam" in roles)):
        if numbers.shape[1] not in (2, 3):
            raise ReadError(
                f"{numbers.shape[1]} columns without names; expected wavelength, flux and perhaps sigma"
            )
        roles = dict(zip(("wavelength", "flux", "sigma"), range(numbers.shape[1]), strict=False))
    columns = {role: numbers[:, position] for role, position in roles.items()}
    if "loglam" in columns:
        columns["wavelength"] = 10 ** columns["loglam"]
    return Observation(
        to_vacuum(columns["wavelength"], air),
        columns["flux"],
        to_ivar(columns),
        columns["mask"] != 0 if "mask" in columns else None,
        meta={"layout": f"text, {numbers.shape[1]} columns", "exposures": ("text",)},
    )


def _parse(text: str) -> tuple[list[str], NDArray[np.float64]]:
    """Names of the columns, if any, and the numbers, (M, columns)."""
    names: list[str] = []
    rows: list[list[float]] = []
    titled = False
    for number, line in enumerate(text.splitlines(), start=1):
        content, _, comment = line.partition("#")
        if not content.strip():
            if not (rows or titled) and comment.strip():
                names = _cells(comment)
            continue
        cells = _cells(content)
        try:
            row = [_number(cell) for cell in cells]
        except ValueError:
            if rows or titled:
                raise ReadError(f"line {number} is not made of numbers: {line.strip()[:60]!r}") from None
            names, titled = cells, True
            continue
        if rows and len(row) != len(rows[0]):
            raise ReadError(f"line {number} has {len(row)} columns, those above have {len(rows[0])}")
        rows.append(row)
    if not rows:
        raise ReadError("no line of numbers")
    return (names if len(names) == len(rows[0]) else []), np.array(rows)


def _cells(line: str) -> list[str]:
    return re.split(r"\s*[,;]\s*|\s+", line.strip())


def _number(cell: str) -> float:
    return math.nan if cell.lower() in _BLANK else float(cell)
