"""Robust reading: a file that cannot be read, or takes too long, is one failure and the run continues."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

from bayesspec.exceptions import BayesspecError
from bayesspec.grid import WavelengthGrid
from bayesspec.io import read
from bayesspec.io.rows import SpectraFile
from bayesspec.io.tables import count_spectra, open_spectra
from bayesspec.observation import Gridded

from .inputs import Input

__all__ = ["Exposures", "Reader", "read_all"]

Exposures = Literal["coadd", "individual"]

OPEN = 4
"""Files of many spectra that stay open."""


class Reader:
    """Reads inputs and rebins them to the grid.

    Arguments:
        grid: The model's grid.
        exposures: "coadd" or "individual", see `bayesspec.read`.
        strict: Also mask doubtful pixels.
    """

    def __init__(self, grid: WavelengthGrid, exposures: Exposures = "coadd", strict: bool = False) -> None:
        self.grid, self.exposures, self.strict = grid, exposures, strict
        self._open: dict[str, SpectraFile] = {}

    def __call__(self, given: Input) -> Gridded | str:
        """The star, or the reason why there is none."""
        try:
            if given.row is None:
                star = read(given.path, exposures=self.exposures, strict=self.strict)
            else:
                star = self._file(given.path).read(given.row, strict=self.strict)
            return star.on_grid(self.grid)
        except BayesspecError as error:
            reason = str(error)
            if given.row is None and (count := _many(given.path)):
                reason = f"a file of {count} spectra among files of one: give it as a separate argument"
            name = given.name if given.row is None else star_name(error)
            return " ".join(reason.removeprefix(f"{name}: ").split())
        except Exception as error:  # readers of damaged files can raise any exception
            return " ".join(f"damaged ({type(error).__name__}: {error})".split())

    def _file(self, path: str) -> SpectraFile:
        if path not in self._open:
            while len(self._open) >= OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[path] = open_spectra(path)
        return self._open[path]

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1].close()


def star_name(error: BayesspecError) -> str:
    """The star's name in an error message."""
    return str(error).partition(": ")[0]


@lru_cache(maxsize=1024)
def _many(path: str) -> int | None:
    try:
        return count_spectra(path)
    except BayesspecError:
        return None


def read_all(inputs: Sequence[Input], make_reader: Callable[[], Reader], limit: float) -> list[Gridded | str]:
    """The star of each input, or the reason why there is none.

    A thread reads while this one waits, so that only one of them changes Python's state at a time. If an
    input takes more than `limit` seconds, it is abandoned together with its thread, and a new thread
    continues with the next input.
    """
    found: list[Gridded | str] = []
    with warnings.catch_warnings():  # restores the filters that an abandoned thread has changed
        while len(found) < len(inputs):
            found += _read_until_stuck(inputs[len(found) :], make_reader(), limit)
    return found


def _read_until_stuck(inputs: Sequence[Input], reader: Reader, limit: float) -> list[Gridded | str]:
    found: list[Gridded | str] = []
    begun = [time.monotonic()]
    abandoned = threading.Event()

    def work() -> None:
        try:
            for given in inputs:
                begun[0] = time.monotonic()
                star = reader(given)
                if abandoned.is_set():
                    return
                found.append(star)
        finally:
            reader.close()

    thread = threading.Thread(target=work, name="bayesspec-reader", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(max(0.01, begun[0] + limit - time.monotonic()))
        if thread.is_alive() and time.monotonic() - begun[0] > limit:
            abandoned.set()
            done = len(found)
            return [*found[:done], f"reading took more than {limit:g} s, given up"]
    return found if len(found) == len(inputs) else [*found, "reading broke off"]
