"""Text with two or three columns: wavelength in Angstrom, flux, and possibly its sigma.

Columns are separated by blanks, commas, semicolons or tabs; `#` starts a comment. A line of names above the
numbers (a comment or not) says which column is which. Then there may be more columns, and the third may be an
ivar or a mask (0 = good). Units are in brackets after the names, or in a separate comment. A line that seems
to name columns but is not understood is an error, because an ivar must not be taken for a sigma.
"""

from __future__ import annotations

import io
import math
import re
from collections import deque
from collections.abc import Iterator

import numpy as np
from astropy import units as u
from astropy.table import Table
from numpy.typing import NDArray

from bayesspec.exceptions import ReadError
from bayesspec.observation import Observation
from bayesspec.units import parse_unit

from .bits import bad_pixels, survey_by
from .columns import MOST_PIXELS, column_roles, one_of_each, to_ivar, to_vacuum, with_units

__all__ = ["read_ascii", "read_ecsv"]

_LONGEST_NAMES, _MOST_COMMENTS = 10_000, 1000
"""Characters of a line, and comments, above the numbers that are searched for names of columns."""

_LONGEST_LINE = 100_000

_LONGEST_HEADER, _MOST_PARTS = 1 << 18, 5000
"""Limits on the characters, and on the lists and mappings, of the header of an ECSV file.

They are ten times those of a table of 200 columns. The time to read a YAML header grows with the square of
its depth.
"""

_WORDS = {"": math.nan, "--": math.nan, "null": math.nan, "none": math.nan, "true": 1.0, "false": 0.0}

# Neither splits text in brackets: "flux (erg / s)" is one label.
_SEPARATORS = (re.compile(r"\s*[,;\t]\s*(?![^\[(]*[\])])"), re.compile(r"\s+(?![^\[(]*[\])])"))
_SEPARATOR = re.compile(r"\s*[,;]\s*|\s+")
_DECIMAL_COMMA = re.compile(r"\d,\d")
"""May be one number, unless commas separate all columns."""

_LABEL = re.compile(r"(.*?)\s*(?:[\[(](.*)[\])]|\sin\s(.+))?")

_NOT_SIGMA = re.compile(r"ivar|inv\w*[ _.-]*var|varianc|weight|mask", re.IGNORECASE)
"""Words in a comment that mean that the third column may not be a sigma."""

_AIR, _VACUUM = (
    re.compile(r"\bin air\b|\bair[ _-]wave|_air\b", re.IGNORECASE),
    re.compile("vac", re.IGNORECASE),
)

_OTHER_UNIT = re.compile(
    r"\b(?:nm|nanomet\w+|um|micron\w*|[kMGT]?Hz|[km]?eV|[munM]?Jy|jansky|in (?:AB )?mag\w*)\b|\(mag",
    re.IGNORECASE,
)
"""Words in a comment about wavelength or flux that mean that they may not have the default units."""


def read_ascii(text: str, *, air: bool | None = None) -> Observation:
    """A spectrum from text. The flux has no unit unless one is stated.

    With `air` None the comments decide whether wavelengths are in air, and the default is vacuum.

    Raises:
        ReadError: if there are not at least two columns of numbers, a line has other things than numbers, or
            names or units of columns are not understood.
        ObservationError: if no pixel is observed.
    """
    title, comments, numbers = _parse(text)
    roles, units = _roles(title, comments, numbers.shape[1])
    columns = with_units({role: numbers[:, position] for role, position in roles.items()}, units)
    mask = np.zeros(len(numbers), bool)
    if "mask" in columns:
        mask |= columns["mask"] != 0
    if "andmask" in columns:
        mask |= bad_pixels(columns["andmask"], survey=survey_by(roles))
    return Observation(
        to_vacuum(columns["wavelength"], _is_air([title or "", *comments]) if air is None else air),
        columns["flux"],
        to_ivar(columns),
        mask,
        meta={"layout": f"text, {numbers.shape[1]} columns", "exposures": ("text",)},
    )


def read_ecsv(text: str) -> Table:
    """The table of an ECSV file.

    Raises:
        ReadError: if it is larger than any spectrum.
        Exception: any exception of astropy, if it is damaged.
    """
    characters = parts = 0
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if number > MOST_PIXELS:
            raise ReadError(f"more than {MOST_PIXELS} lines, which no single spectrum has")
        if line.startswith("#"):
            characters += len(line)
            parts += sum(map(line.count, "[{-?"))
        if characters > _LONGEST_HEADER or parts > _MOST_PARTS:
            raise ReadError("an ECSV header larger than that of any spectrum")
    return Table.read(text, format="ascii.ecsv")


def _parse(text: str) -> tuple[str | None, list[str], NDArray[np.float64]]:
    """The line of names above the numbers, if any, all comments above the numbers, and the numbers."""
    title: str | None = None
    comments: deque[str] = deque(maxlen=_MOST_COMMENTS)
    rows: list[list[float]] = []
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if number > MOST_PIXELS:
            raise ReadError(f"more than {MOST_PIXELS} lines, which no single spectrum has")
        if len(line) > _LONGEST_LINE:
            raise ReadError(f"line {number} has {len(line)} characters, which no row of numbers has")
        content, _, comment = line.partition("#")
        if not content.strip():
            if not rows and comment.strip():
                comments.append(comment.strip()[:_LONGEST_NAMES])
            continue
        cells = content.strip()
        try:
            row = [_number(cell) for cell in _SEPARATOR.split(cells)]
        except ValueError:
            if rows or title is not None:
                raise ReadError(f"line {number} is not a row of numbers: {line.strip()[:60]!r}") from None
            title = content.strip()[:_LONGEST_NAMES]
            continue
        if _DECIMAL_COMMA.search(cells) and {part.strip() for part in _SEPARATOR.findall(cells)} != {","}:
            raise ReadError(
                f"line {number} has commas beside other separators, or as decimal points: {cells[:60]!r}"
            )
        if rows and len(row) != len(rows[0]):
            raise ReadError(f"line {number} has {len(row)} columns, the lines above have {len(rows[0])}")
        rows.append(row)
    if not rows:
        raise ReadError("no rows of numbers")
    return title, list(comments), np.array(rows)


def _number(cell: str) -> float:
    cell = cell.strip("\"'").lower()
    return _WORDS[cell] if cell in _WORDS else float(cell)


def _roles(
    title: str | None, comments: list[str], count: int
) -> tuple[dict[str, int], dict[str, str | None]]:
    """Position of each role among the columns, and the stated units."""
    lines = comments[::-1] if title is None else [title, *comments[::-1]]
    named = next((labels for line in lines for labels in _labels(line, count) if _are_names(labels)), None)
    if named is None and title is not None:
        raise _not_understood(title)
    if named is None:
        for comment in comments:
            if _seems_to_name(comment, count):
                raise _not_understood(comment)
        if count not in (2, 3):
            raise ReadError(f"{count} columns without names; expected wavelength, flux and perhaps sigma")
        named = [(name, None) for name in ("wavelength", "flux", "sigma")[:count]]
    if all(unit is None for _, unit in named):
        stated = next((units for line in comments for units in _units(line, count)), None)
        if stated is None:
            for comment in comments:
                if _words(comment).keys() & {"wavelength", "flux"} and _OTHER_UNIT.search(comment):
                    raise _not_understood(comment)
        else:
            named = [(name, unit) for (name, _), unit in zip(named, stated, strict=True)]
    roles = one_of_each([name for name, _ in named])
    return roles, {role: named[position][1] for role, position in roles.items()}


def _is_air(lines: list[str]) -> bool:
    """Whether a line above the numbers says that the wavelengths are in air."""
    said = " ".join(line for line in lines if _AIR.search(line))
    if said and _VACUUM.search(said):
        raise ReadError(f"are the wavelengths in air ({said[:60]!r})? say air=True or air=False")
    return bool(said)


def _labels(line: str, count: int) -> Iterator[list[tuple[str, str | None]]]:
    """Name and unit of each column, for every way to split a line into this many columns."""
    # A unit belongs to the name before it: "wavelength (A)".
    line = re.sub(r"\s+(?=[\[(])", "", re.sub(r"[\"']", "", line))
    for separator in _SEPARATORS:
        cells = separator.split(line)
        if len(cells) == count:
            matches = [_LABEL.fullmatch(cell) for cell in cells]
            yield [(match[1], match[2] or match[3]) for match in matches if match]


def _are_names(labels: list[tuple[str, str | None]]) -> bool:
    roles = column_roles(name for name, _ in labels)
    return "flux" in roles and ("wavelength" in roles or "loglam" in roles)


def _units(line: str, count: int) -> Iterator[list[str]]:
    """The cells of a comment that has only units, the first of them one of wavelength."""
    for separator in _SEPARATORS:
        cells = separator.split(line)
        try:
            units = [parse_unit(cell) for cell in cells]
        except ReadError:
            continue
        if len(cells) == count and units[0] is not None and units[0].is_equivalent(u.AA, u.spectral()):
            yield cells


def _words(comment: str) -> dict[str, int]:
    """Roles that the words of a comment name."""
    return column_roles(re.split(r"[^\w]+", comment))


def _seems_to_name(comment: str, count: int) -> bool:
    """Whether a comment that was not understood seems to describe the columns."""
    if count > 2 and _NOT_SIGMA.search(comment):
        return True
    roles = _words(comment).keys()
    as_many = any(len(separator.split(comment)) == count for separator in _SEPARATORS)
    return as_many and bool(roles) and (len(roles) > 1 or "flux" not in roles)


def _not_understood(line: str) -> ReadError:
    return ReadError(
        f"names or units of columns not understood: {line[:60]!r}; write names like '# wavelength flux ivar' "
        "above the numbers, with units, if any, in brackets"
    )
