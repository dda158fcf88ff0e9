"""One piece of a run: read, denoise, write. This is done by a worker, on this machine or another."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesspec.exceptions import BayesspecError
from bayesspec.observation import Gridded, printable

from .inputs import Input

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bayesspec.inference.denoise import Method
    from bayesspec.model import StellarModel
    from bayesspec.results.star import Star

    from .reading import Exposures

__all__ = ["Orders", "Task", "do"]

TOGETHER = 64
"""Stars that are read and denoised together, because the set-up of inference costs as much as a few stars."""


@dataclass(frozen=True)
class Orders:
    """The settings for every spectrum of a run.

    Arguments:
        model: Name or folder of the bundle.
        settings_sha256: Hash of the bundle; a different bundle of this name is refused.
        method: See `bayesspec.denoise`.
        exposures: See `bayesspec.read`.
        strict: See `bayesspec.read`.
        seed: Random seed.
        batch_size: Stars in one batch of inference.
        device: Device for the model.
        options: Options of the method.
        time_limit: Time limit in seconds for reading one input.
    """

    model: str
    settings_sha256: str
    method: Method
    exposures: Exposures = "coadd"
    strict: bool = False
    seed: int = 0
    batch_size: int = 16
    device: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)
    time_limit: float = 60.0

    @property
    def together(self) -> int:
        """Stars in one call of `denoise`."""
        return -(-TOGETHER // self.batch_size) * self.batch_size


@dataclass(frozen=True)
class Task:
    """A piece of a run.

    Arguments:
        orders: The settings.
        first: Position of its first input among all.
        inputs: The inputs.
        folders: Folders for the parts, for the rows of the catalogue, and for unfinished files; None: one
            file per star.
        root: Folder for one file per star.
        stems: Names for one file per star.
        figures: Whether each star gets a figure.
        given_up: Inputs that are skipped, by index, with the reason.
    """

    orders: Orders
    first: int
    inputs: tuple[Input, ...]
    root: Path
    folders: tuple[Path, Path, Path] | None = None
    stems: tuple[str, ...] = ()
    figures: bool = False
    given_up: dict[int, str] = field(default_factory=dict)


def do(task: Task) -> list[dict[str, Any]]:
    """Do a piece, and return a row of the catalogue for each input.

    Raises:
        BayesspecError: if the model cannot be loaded or a file cannot be written.
    """
    orders = task.orders
    model = load(orders)
    found: dict[int, Star | str] = dict(task.given_up)
    about: dict[str, tuple[str, str]] = {}
    for first in range(0, len(task.inputs), orders.together):
        last = min(first + orders.together, len(task.inputs))
        found |= _denoised(task, [n for n in range(first, last) if n not in found], model, about)
    rows = []
    for n, given in enumerate(task.inputs):
        row: dict[str, Any] = {"position": task.first + n, "status": "failed", "name": given.name}
        star = found[n]
        rows.append(
            row | ({"reason": printable(star)} if isinstance(star, str) else _star_row(task, n, star))
        )
    if task.folders is not None:
        stars = [star for _, star in sorted(found.items()) if not isinstance(star, str)]
        _write(task, task.folders, rows, stars, about)
    return rows


def _denoised(
    task: Task, indices: Sequence[int], model: StellarModel, about: dict[str, tuple[str, str]]
) -> dict[int, Star | str]:
    """The star of each of some inputs, or why there is none; and descriptions of columns."""
    from .reading import Reader, read_all

    orders = task.orders
    inputs = [task.inputs[n] for n in indices]
    stars = read_all(inputs, lambda: Reader(model.grid, orders.exposures, orders.strict), orders.time_limit)
    found: dict[int, Any] = dict(zip(indices, stars, strict=True))
    usable = {n: star for n, star in found.items() if isinstance(star, Gridded)}
    try:
        found |= zip(usable, _inferred(list(usable.values()), model, orders, about), strict=True)
    except BayesspecError:
        raise
    except Exception:  # caused by one of the stars, but by which is unknown
        for n, star in usable.items():
            try:
                (found[n],) = _inferred([star], model, orders, about)
            except Exception as error:
                found[n] = f"inference failed ({type(error).__name__}: {error})"
    return found


def _inferred(
    stars: list[Gridded], model: StellarModel, orders: Orders, about: dict[str, tuple[str, str]]
) -> list[Star]:
    from bayesspec.inference.denoise import denoise

    if not stars:
        return []
    own = {"batch_size": orders.batch_size, **orders.options}
    result = denoise(stars, model=model, method=orders.method, seed=orders.seed, **own)
    about |= {
        name: (str(column.unit or ""), column.description or "")
        for name, column in result.full_table.columns.items()
        if column.unit or column.description
    }
    return [result.star(n) for n in range(len(result))]


def _star_row(task: Task, n: int, star: Star) -> dict[str, Any]:
    from bayesspec.results.products import star_row, write_star

    if task.folders is None:
        return write_star(star, task.root, task.stems[n], figures=task.figures)
    return {"status": "ok", "star": star.name, **star_row(star)}


def _write(
    task: Task,
    folders: tuple[Path, Path, Path],
    rows: list[dict[str, Any]],
    stars: list[Star],
    about: dict[str, tuple[str, str]],
) -> None:
    """Write the part, and then its rows, which mark it as done."""
    from bayesspec import __version__

    from .catalogue import rows_name
    from .parts import part_name, put, to_parquet, to_part

    parts, catalogue, scratch = folders
    own = scratch / f"{socket.gethostname()}-{os.getpid()}-{task.first}"
    name = part_name(task.first, len(task.inputs))
    fine = [row for row in rows if row["status"] == "ok"]
    for k, row in enumerate(fine):
        row |= {"part": name, "row": k}
    with _full_disk(parts / name):
        if stars:
            facts = {
                "CREATOR": (f"bayesspec {__version__}", "software"),
                "MODEL": (stars[0].model_name, "bundle"),
                "MODELVER": (stars[0].model_version, "version of the bundle"),
                "METHOD": (task.orders.method, "inference"),
                "SEED": (task.orders.seed, "random seed"),
            }
            part = io.BytesIO()
            to_part(stars, fine, about, facts).writeto(part)
            put(part.getbuffer(), own, parts / name)
        table = to_parquet(rows, about)
        put(table, own, catalogue / rows_name(task.first, len(rows), len(rows) - len(fine)))


@contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BayesspecError(f"{path}: cannot be written ({error.strerror or error})") from error


_LOADED: dict[tuple[str, str, str], StellarModel] = {}


def load(orders: Orders) -> StellarModel:
    """The model of a run, loaded once per process.

    Raises:
        BayesspecError: if it cannot be loaded, or is not the bundle with which the run began.
    """
    from bayesspec.bundle import load_model

    key = orders.model, orders.settings_sha256, orders.device
    if key not in _LOADED:
        try:
            model = load_model(orders.model, device=orders.device)
        except (RuntimeError, AssertionError) as error:  # torch's errors if there is no such device
            cause = str(error).splitlines()[0]
            raise BayesspecError(f"device {orders.device!r} cannot be used ({cause})") from error
        if model.card["settings_sha256"] != orders.settings_sha256:
            raise BayesspecError(
                f"{orders.model}: not the bundle that the run began with, on {socket.gethostname()}"
            )
        _LOADED.clear()
        _LOADED[key] = model
    return _LOADED[key]
