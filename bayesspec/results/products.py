"""Products of a run on disk: a FITS table per star and one summary with a row per input."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import MaskedColumn, Row, Table

from bayesspec.exceptions import BayesspecError
from bayesspec.io.source import stem
from bayesspec.observation import printable

from .hdus import to_hdus
from .star import Failure, Star

__all__ = [
    "NOT_REACHED",
    "SUMMARY",
    "ProductWriter",
    "star_row",
    "unique_stems",
    "write_products",
    "write_star",
    "written",
]

SUMMARY = "summary.ecsv"
"""Name of the table of the run."""

QUICK = 0.5
"""A summary that takes less than this many seconds to write is written after every batch."""

NOT_REACHED = "not reached"
"""Status of an input that is not processed yet."""

SHARE = 0.1
"""Maximum fraction of a run's time for rewriting the summary, which takes seconds for 10,000 rows."""

TABLE, FIGURE = ".denoised.fits", ".png"


def write_products(rows: Sequence[Star | Failure], folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write stars into a folder: a FITS table for each, and `summary.ecsv` with a row per input.

    Arguments:
        rows: A star for each input, or the reason why there is none.
        folder: Output folder, created if necessary.
        overwrite: Replace files of an earlier run.

    Raises:
        BayesspecError: if one of these files exists and `overwrite` is False, or it cannot be written.

    Returns:
        The folder.
    """
    writer = ProductWriter(folder, [row.name for row in rows], overwrite=overwrite)
    for position, row in enumerate(rows):
        if isinstance(row, Failure):
            writer.fail(position, row.reason)
        else:
            writer.add(position, row)
    writer.write_summary()
    return writer.folder


class ProductWriter:
    """Writes the products of a run star by star, so that only one star is in memory.

    The names of all files are fixed before the first is written, so an existing output is an error at once,
    not after hours. Each file is written under a temporary name and then moved into place, so that none is
    ever incomplete, whatever ends the run.

    The summary of a run without products is replaced without asking.

    Arguments:
        folder: Output folder, created if necessary.
        names: Names of all inputs, in order: star names or file names. Two inputs with the same name get two
            files.
        stems: Names of the files, if not those of the inputs.
        figures: Save a figure of every star beside its table.
        overwrite: Replace files of an earlier run, and remove those of inputs that now fail.

    Raises:
        BayesspecError: if a product exists already and `overwrite` is False, a folder has its name, or the
            output folder cannot be made.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str],
        *,
        stems: Sequence[str] | None = None,
        figures: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.folder, self.figures = Path(folder), figures
        self.names = tuple(map(printable, names))
        self.stems = unique_stems(names if stems is None else stems)
        self._rows: list[dict[str, Any] | None] = [None] * len(self.names)
        self._next_summary = 0.0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            there = {path.name: path.is_dir() for path in self.folder.iterdir()}
        except OSError as error:
            raise BayesspecError(f"{self.folder}: cannot be the output folder ({error.strerror})") from error
        products = [f"{stem}{suffix}" for stem in self.stems for suffix in self._suffixes]
        taken = [name for name in (SUMMARY, *products) if name in there]
        if blocked := [name for name in taken if there[name]]:
            raise BayesspecError(f"{self.folder / blocked[0]}: is a folder with the name of a product")
        if taken[:1] == [SUMMARY] and _made_nothing(self.folder / SUMMARY):
            taken = taken[1:]
        if taken and not overwrite:
            more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
            raise BayesspecError(
                f"{self.folder / taken[0]}{more}: there already; --overwrite (overwrite=True) replaces it"
            )
        self._earlier = {stem for stem in self.stems if f"{stem}{TABLE}" in there}

    def add(self, position: int, star: Star) -> Path:
        """Write the table, and the figure, of one star: the input at this position.

        Raises:
            BayesspecError: if a file cannot be written.
        """
        self.note(position, write_star(star, self.folder, self.stems[position], figures=self.figures))
        return self.folder / f"{self.stems[position]}{TABLE}"

    def note(self, position: int, row: dict[str, Any]) -> None:
        """Note the row of an input whose products `write_star` has written.

        Raises:
            BayesspecError: if the figure of an earlier run cannot be removed.
        """
        if not self.figures:
            self._remove_earlier(position, FIGURE)
        self._rows[position] = row

    def resume(self) -> list[int]:
        """Load the summary of a stopped run, and return the positions that are still to do.

        Raises:
            BayesspecError: if the summary is for other inputs.
        """
        path = self.folder / SUMMARY
        try:
            table = Table.read(path, format="ascii.ecsv")
        except FileNotFoundError:
            return list(range(len(self.names)))
        except Exception as error:  # astropy's readers can raise any exception
            raise BayesspecError(f"{path}: not the summary of a run ({printable(str(error))})") from error
        if list(table["name"]) != list(self.names):
            raise BayesspecError(f"{path}: this is the summary of other inputs")
        for position, row in enumerate(table):
            if row["status"] != NOT_REACHED:
                self._rows[position] = _known(row)
        return [position for position, row in enumerate(self._rows) if row is None]

    def fail(self, position: int, reason: str) -> None:
        """Note that the input at this position has no result.

        Raises:
            BayesspecError: if the product of an earlier run cannot be removed.
        """
        self._remove_earlier(position, TABLE, FIGURE)
        self._rows[position] = {"status": "failed", "reason": printable(reason)}

    def write_summary(self) -> Path:
        """Write the current summary: a row per input, in input order.

        Raises:
            BayesspecError: if it cannot be written.
        """
        begin = time.monotonic()
        with written(path := self.folder / SUMMARY) as part:
            self.summary().write(part, format="ascii.ecsv", overwrite=True)
        end = time.monotonic()
        self._next_summary = end + ((end - begin) / SHARE if end - begin > QUICK else 0.0)
        return path

    def update_summary(self) -> None:
        """Write the summary, unless that would take more than `SHARE` of the time."""
        if time.monotonic() >= self._next_summary:
            self.write_summary()

    def summary(self) -> Table:
        """The table of the run; missing values are masked."""
        rows = [row or {"status": NOT_REACHED, "reason": "not processed yet"} for row in self._rows]
        columns = dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row)
        # The status is the first column, because a line that begins with a name like "#1" would be a comment.
        status = np.array([row["status"] for row in rows], dtype=str)
        table = Table({"status": status, "name": np.array(self.names, dtype=str)})
        for key in columns:
            missing = [key not in row for row in rows]
            values = [row[key] for row in rows if key in row]
            filler = type(values[0])()
            column = [row.get(key, filler) for row in rows]
            table[key] = MaskedColumn(column, mask=missing) if any(missing) else column
        return table

    @property
    def failed(self) -> int:
        """Number of inputs that failed so far."""
        return sum(row is not None and row["status"] == "failed" for row in self._rows)

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return (TABLE, FIGURE) if self.figures else (TABLE,)

    def _remove_earlier(self, position: int, *suffixes: str) -> None:
        """Remove the products of an earlier run for this input."""
        if (stem := self.stems[position]) not in self._earlier:
            return
        for path in (self.folder / f"{stem}{suffix}" for suffix in suffixes):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise BayesspecError(f"{path}: cannot be removed ({error.strerror})") from error


def write_star(star: Star, folder: Path, stem: str, *, figures: bool = False) -> dict[str, Any]:
    """Write the table, and the figure, of one star, and return its row of the summary.

    Raises:
        BayesspecError: if a file cannot be written.
    """
    with written(path := folder / f"{stem}{TABLE}") as part:
        to_hdus(star).writeto(part, overwrite=True)
    if figures:
        from .plotting import plot_star, save_figure

        with written(folder / f"{stem}{FIGURE}") as part:
            save_figure(plot_star(star), part)
    return {**star_row(star), "file": path.name}


def star_row(star: Star) -> dict[str, Any]:
    """The row of one star in the summary: the columns of its tables, class probabilities, latents."""
    probabilities = zip(star.classes, star.class_probabilities, strict=True)
    return {
        "status": "ok",
        "reason": "",
        **{name: value for name, value in star.row.items() if name != "name"},
        **star.lines,
        "warnings": printable(star.row["warnings"]),
        **{f"p_{name}": float(p) for name, p in probabilities},
        **{f"z{k}": float(z) for k, z in enumerate(star.z, start=1)},
    }


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary file, which is moved into place when the block ends, or removed if it fails.

    Raises:
        BayesspecError: if the file cannot be written, such as on a full disk.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise BayesspecError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _known(row: Row) -> dict[str, Any]:
    """The values of a row of a summary. ECSV reads empty texts as missing; for a star they are restored."""
    if row["status"] != "ok":
        return {key: str(row[key]) for key in ("status", "reason")}
    known = {}
    for key, column in row.columns.items():
        if column.dtype.kind == "U":
            known[key] = "" if np.ma.is_masked(row[key]) else str(row[key])
        elif not np.ma.is_masked(row[key]):
            known[key] = row[key]
    return {key: value for key, value in known.items() if key != "name"}


def _made_nothing(summary: Path) -> bool:
    """Whether it is the summary of a run without products; False if it cannot be read as a summary."""
    try:
        return "ok" not in set(Table.read(summary, format="ascii.ecsv")["status"])
    except Exception:  # astropy's readers can raise any exception
        return False


def unique_stems(names: Sequence[str]) -> tuple[str, ...]:
    """A file name without suffix for each name; all are different, even if case is ignored.

    Example:
        >>> unique_stems(["a/spec-1.fits", "b/spec-1.fits.gz", "HD 1", ""])
        ('spec-1', 'spec-1-2', 'HD_1', 'star')
    """
    stems: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", stem(name)).strip("._-")[:120] or "star"
        candidate, number = plain, 1
        while candidate.lower() in taken:
            number += 1
            candidate = f"{plain}-{number}"
        taken.add(candidate.lower())
        stems.append(candidate)
    return tuple(stems)
