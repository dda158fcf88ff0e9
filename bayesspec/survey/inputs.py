"""What a run is given: files, folders, patterns, lists and tables of spectra, written down as one list.

The list is a file, a line for each file of the input, so that a million names are nowhere in memory; it is
what a run goes by when it goes on.
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
"""Of files that are taken from a folder; a file that is named is taken whatever it is called."""


class Input(NamedTuple):
    """One spectrum: a file, or a row of a file of many (row None: the whole file)."""

    path: str
    row: int | None = None

    @property
    def name(self) -> str:
        """What to call it in tables and messages."""
        return printable(self.path if self.row is None else f"{self.path}[{self.row}]")

    @property
    def stem(self) -> str:
        """A name for its products."""
        return self.path if self.row is None else f"{stem(self.path)}-{self.row}"


class Listed(NamedTuple):
    """What a list holds: how many spectra, and the hash of all names."""

    total: int
    sha256: str


def expand(given: Iterable[str | Path], *, without: Path | None = None) -> Iterator[tuple[str, int | None]]:
    """All files of the input in order, each with the number of its spectra; None where it is one star.

    Files that one argument finds are alike: the first one says whether they are stars, or tables and images
    of many. So a folder of a million stars is not opened file by file.

    Arguments:
        given: Files; folders, which are searched through; patterns (`**` for any depth); `@FILE` for a list
            of files, one a line.
        without: A folder whose files do not count, the run's own.

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
            raise BayesspecError(f"{printable(argument)}: is the output folder, and cannot be the input, too")
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
    """Files in order of their names, folders after files; hidden ones are left out."""
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
    """Whether a link leads to a folder that it is in: a search that would never end."""
    return os.path.islink(folder) and os.path.realpath(os.path.dirname(folder)).startswith(
        os.path.realpath(folder)
    )


def write_list(given: Iterable[str | Path], path: Path, *, without: Path | None = None) -> Listed:
    """Write the list of the input, a JSON pair (file, number of spectra or null) a line.

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
    """The inputs of each piece (first, last + 1) of a list, pieces in order; None: all, in one."""
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
