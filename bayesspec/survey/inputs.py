"""The input of a run: files, folders, patterns, lists and tables of spectra, written as one list.

The list is a file with one line per input file, so that a million names need not be in memory. A run that
continues uses the same list.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from bayesspec.exceptions import BayesspecError
from bayesspec.io.source import stem
from bayesspec.io.tables import count_spectra
from bayesspec.observation import printable

__all__ = ["Input", "Listed", "expand", "read_list", "write_list"]

ENDINGS = (
    ".fits",
    ".fit",
    ".fts",
    ".fits.gz",
    ".fit.gz",
    ".fz",
    ".parquet",
    ".txt",
    ".dat",
    ".csv",
    ".ascii",
)
"""Extensions of files that are taken from a folder; a file given by name may have any extension."""


class Input(NamedTuple):
    """One spectrum: a file, or a row of a file of many (row None: the whole file)."""

    path: str
    row: int | None = None

    @property
    def name(self) -> str:
        """Its name in tables and messages."""
        return printable(self.path if self.row is None else f"{self.path}[{self.row}]")

    @property
    def stem(self) -> str:
        """The name of its products."""
        return self.path if self.row is None else f"{stem(self.path)}-{self.row}"


class Listed(NamedTuple):
    """The number of spectra in a list, and the hash of all names."""

    total: int
    sha256: str


def expand(given: Iterable[str | Path], *, without: Path | None = None) -> Iterator[tuple[str, int | None]]:
    """All input files in order, each with the number of its spectra; None for a file with one star.

    All files of one argument are of one kind: the first one decides whether they are single stars, or tables
    and images of many. So a folder of a million stars need not be opened file by file.

    Arguments:
        given: Files; folders, which are searched with their subfolders; patterns (`**` for any depth);
            `@FILE` for a list of files, one per line.
        without: A folder whose files are ignored, that of the run itself.

    Raises:
        BayesspecError: if a folder or pattern finds nothing, or a list cannot be read.
    """
    for argument in map(os.fsdecode, given):
        paths = _paths(argument, without)
        first = next(paths, None)
        if first is None:
            raise BayesspecError(f"{printable(argument)}: no spectra there")
        many = count_spectra(first) is not None
        for path in chain([first], paths):
            yield path, count_spectra(path) if many else None


def _paths(argument: str, without: Path | None) -> Iterator[str]:
    if argument.startswith("@"):
        return _listed(argument[1:])
    if os.path.isdir(argument):
        if without is not None and os.path.realpath(argument) == os.path.realpath(without):
            raise BayesspecError(f"{printable(argument)}: is the output folder, so it cannot be an input")
        return _walk(argument, without)
    if glob.has_magic(argument) and not os.path.lexists(argument):
        found = sorted(glob.iglob(argument, recursive=True))
        return chain.from_iterable(_walk(p, without) if os.path.isdir(p) else iter((p,)) for p in found)
    return iter((argument,))


def _listed(path: str) -> Iterator[str]:
    try:
        with open(path, errors="surrogateescape") as lines:
            for line in lines:
                if (name := line.strip()) and not name.startswith("#"):
                    yield name
    except OSError as error:
        raise BayesspecError(f"{printable(path)}: the list cannot be read ({error.strerror})") from error


def _walk(folder: str, without: Path | None) -> Iterator[str]:
    """Files in order of their names, folders after files, without hidden ones."""
    own = None if without is None else os.path.realpath(without)
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(ENDINGS):
                    files.append(entry.name)
    except OSError as error:
        raise BayesspecError(f"{printable(folder)}: cannot be searched ({error.strerror})") from error
    for name in sorted(files):
        yield os.path.join(folder, name)
    for name in sorted(folders):
        inner = os.path.join(folder, name)
        if os.path.realpath(inner) != own and not _is_above(inner):
            yield from _walk(inner, without)


def _is_above(folder: str) -> bool:
    """Whether a link leads to a folder that contains it, where a search would never end."""
    return os.path.islink(folder) and os.path.realpath(os.path.dirname(folder)).startswith(
        os.path.realpath(folder)
    )


def write_list(given: Iterable[str | Path], path: Path, *, without: Path | None = None) -> Listed:
    """Write the list of inputs, with one JSON pair (file, number of spectra or null) per line.

    Raises:
        BayesspecError: as `expand`.
    """
    total, digest = 0, hashlib.sha256()
    with open(path, "w", encoding="ascii") as file:
        for name, count in expand(given, without=without):
            line = json.dumps([name, count]) + "\n"
            file.write(line)
            digest.update(line.encode())
            total += 1 if count is None else count
    return Listed(total, digest.hexdigest())


def read_list(path: Path, pieces: Sequence[tuple[int, int]] | None = None) -> Iterator[list[Input]]:
    """The inputs of each piece (first, last + 1) of a list, in order; None: all inputs as one piece."""
    todo = iter([(0, 1 << 62)] if pieces is None else pieces)
    begin, end = next(todo, (0, 0))
    found: list[Input] = []
    position = 0
    with open(path, encoding="ascii") as lines:
        for line in lines:
            name, count = json.loads(line)
            size = 1 if count is None else count
            while begin < position + size and begin < end:
                last = min(end, position + size)
                rows = range(max(begin, position) - position, last - position)
                found += [Input(name)] if count is None else [Input(name, row) for row in rows]
                if last < end:
                    break
                yield found
                found = []
                begin, end = next(todo, (0, 0))
            position += size
            if begin >= end:
                return
    if found:
        yield found
