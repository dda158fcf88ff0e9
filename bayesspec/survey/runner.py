"""`bayesspec.denoise_survey`: from any number of inputs to parts and a catalogue, or to one file per star."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from bayesspec.exceptions import BayesspecError
from bayesspec.inference.arguments import LARGEST_SEED, check_whole
from bayesspec.results.products import ProductWriter

from .catalogue import finished, missing, write_catalogue
from .folder import Folder, changes, read_json, write_json
from .inputs import read_list, write_list
from .parts import need_pyarrow
from .pool import Cluster, Here, Pool, Processes, WorkerDied, cores
from .progress import Progress
from .queue import OpenPiece, Queue, runs_of
from .work import Orders, Task

__all__ = ["Survey", "denoise_survey"]

FEW = 1000
"""Runs of fewer inputs write one file per star by default."""

PIECE = 256
"""Inputs of a part: minutes of work, ten to twenty MB."""


def denoise_survey(
    inputs: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    model: str | Path = "stellar",
    method: Literal["map", "laplace", "importance", "nuts"] | None = None,
    uncertainty: bool = False,
    exposures: Literal["coadd", "individual"] = "coadd",
    strict: bool = False,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int | None = None,
    per_star: bool | None = None,
    figures: bool = False,
    piece_size: int = PIECE,
    time_limit: float = 60.0,
    workers: int | None = None,
    scheduler: str | None = None,
    part: tuple[int, int] | None = None,
    overwrite: bool = False,
    take_over: bool = False,
    progress: bool = False,
    **options: Any,
) -> Survey:
    """Denoise any number of spectra into a folder; the same call continues a run that was stopped.

    Wrong arguments are an error at once; the work is done as the result is iterated over. An input that
    cannot be used gets a row with the reason, and the run continues. A script that uses processes must have
    its own code under `if __name__ == "__main__":`.

    Arguments:
        inputs: Files, folders, patterns, `@FILE` for a list of files; a file may have many spectra, see
            `bayesspec.io.tables`.
        out: The folder.
        model: Name of a shipped model, or the folder of a bundle; workers load it themselves.
        method: See `denoise`.
        uncertainty: See `denoise`.
        exposures: See `read`.
        strict: See `read`.
        seed: Random seed.
        device: cpu, or a GPU.
        batch_size: Stars in one batch of inference; 16 by default, or 64 on a GPU.
        per_star: True: one file per star and `summary.ecsv`, as `Result.write` makes them; False: parts and a
            catalogue; None: the former for fewer than a thousand inputs.
        figures: Also make a figure of each star, with one file per star.
        piece_size: Inputs of a part; a killed run loses at most one part per worker.
        time_limit: Seconds after which an input that is still being read is abandoned.
        workers: Number of processes, each with one thread; 0: this process; None: this process for one file
            per star or on a GPU, else one process per core.
        scheduler: Address of the scheduler of a Dask cluster whose workers see the same files.
        part: (k, n) for job k of an array of n, which does every n-th piece; k from 1.
        overwrite: Start from the beginning, and replace the results of an earlier run.
        take_over: Continue a run of another machine that did not report its end.
        progress: Show the progress on stderr.
        **options: Options of the method, see `denoise`.

    Returns:
        A `Survey`: iterate over it for the catalogue rows, dictionaries, of the inputs that this run does, in
        the order in which they are done.

    Raises:
        BayesspecError: if an argument is wrong, the folder has another run, or another process works in it;
            during the iteration, if a file cannot be written.

    Example:
        >>> import tempfile, numpy as np
        >>> folder = tempfile.mkdtemp()
        >>> wavelength = np.linspace(3900, 9100, 3000)
        >>> np.savetxt(f"{folder}/hot.txt", np.column_stack([wavelength, (wavelength / 6000) ** -2]))
        >>> survey = denoise_survey(f"{folder}/*.txt", f"{folder}/out", model="kang2021")
        >>> [(row["name"].endswith("hot.txt"), row["status"]) for row in survey]
        [(True, 'ok')]
    """
    from bayesspec.bundle import read_card
    from bayesspec.inference.denoise import choose_method

    method = choose_method(method, uncertainty)
    seed = check_whole("seed", seed, 0, LARGEST_SEED)
    batch_size = check_whole(
        "batch_size", (16 if device == "cpu" else 64) if batch_size is None else batch_size
    )
    piece_size = check_whole("piece_size", piece_size)
    if workers is not None:
        workers = check_whole("workers", workers, 0)
    if part is not None and not 1 <= part[0] <= part[1]:
        raise BayesspecError(f"part is (k, n) with k from 1 to n, such as 3/64, not {part[0]}/{part[1]}")
    if not time_limit > 0:
        raise BayesspecError(f"time_limit is a number of seconds above 0, not {time_limit!r}")
    if overwrite and part is not None:
        raise BayesspecError("a job of an array cannot overwrite the run: remove the folder, or give another")
    if scheduler is not None and (part is not None or workers is not None):
        raise BayesspecError("a scheduler has its own workers: give neither a number of workers nor a part")
    card = read_card(model)
    orders = Orders(
        model=str(Path(model).resolve()) if Path(model).is_dir() else str(model),
        settings_sha256=card["settings_sha256"],
        method=method,
        exposures=exposures,
        strict=strict,
        seed=seed,
        batch_size=batch_size,
        device=device,
        options=options,
        time_limit=float(time_limit),
    )
    given = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    return Survey(
        given,
        Folder(out, part),
        orders,
        per_star=per_star,
        figures=figures,
        piece_size=piece_size,
        workers=workers,
        scheduler=scheduler,
        overwrite=overwrite,
        take_over=take_over,
        progress=progress,
    )


class Survey:
    """A run, made by `denoise_survey`. Iterate over it once to do the work.

    Attributes:
        total: Number of inputs.
        done: Number of inputs that are done; at the start, those of earlier runs.
        share: Number of inputs of this job, for an array of jobs; otherwise all.
        failed: Number of done inputs without a result.
        per_star: Whether it writes one file per star.
    """

    def __init__(
        self,
        inputs: list[str | Path],
        folder: Folder,
        orders: Orders,
        *,
        per_star: bool | None,
        figures: bool,
        piece_size: int,
        workers: int | None,
        scheduler: str | None,
        overwrite: bool,
        take_over: bool,
        progress: bool,
    ) -> None:
        self.folder, self.orders, self._show = folder, orders, progress
        self._workers, self._scheduler, self._figures = workers, scheduler, figures
        self._writer: ProductWriter | None = None
        fresh = not folder.state.exists()
        with ExitStack() as stack:
            self.remark = stack.enter_context(folder.claimed(take_over=take_over))
            if fresh:
                failed = stack.enter_context(ExitStack())
                failed.callback(folder.remove_state)
            with folder.set_up():
                self._plan(inputs, per_star, piece_size, overwrite)
            if fresh:
                failed.pop_all()
            self._claim = stack.pop_all()
        self._rows = self._run()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._rows

    def close(self) -> None:
        """Drop unfinished work, write the catalogue so far, and unlock the folder."""
        self._rows.close()
        self._leave()

    def summary(self) -> Any:
        """The table of `summary.ecsv`, for a run with one file per star."""
        if self._writer is None:
            raise BayesspecError(f"{self.folder.root}: the run has a catalogue of its parts, not a summary")
        return self._writer.summary()

    def _plan(
        self, inputs: list[str | Path], per_star: bool | None, piece_size: int, overwrite: bool
    ) -> None:
        """Plan the work, and check that it matches the run in the folder."""
        folder = self.folder
        before = None if overwrite else read_json(folder.settings)
        if overwrite and folder.part is None:
            folder.clear()
        listed = folder.state / f"inputs{folder.suffix}.new"
        self.total, digest = write_list(inputs, listed, without=folder.root)
        if not self.total:
            raise BayesspecError("no spectrum was given")
        if per_star is None:
            per_star = self.total < FEW and folder.part is None and self._scheduler is None
        self.per_star = per_star
        if self._figures and not per_star:
            raise BayesspecError("figures need one file per star: use --per-star, or see bayesspec report")
        if per_star and (folder.part is not None or self._scheduler is not None):
            raise BayesspecError(
                "one file per star needs one machine: leave out --per-star, or --part and --scheduler"
            )
        self._size = self.orders.batch_size if per_star else piece_size
        settings = self._settings(digest, piece_size)
        if before and (changed := changes(before, settings)) and folder.has_begun(before):
            raise BayesspecError(
                f"{folder.root} has a run with other settings: {'; '.join(changed)}. The command of that run "
                "continues it; --overwrite starts from the beginning"
            )
        going_on = bool(before) and not changed
        listed.replace(folder.inputs)
        if per_star:
            each = read_list(folder.inputs, [(n, n + 1) for n in range(self.total)])
            names, stems = zip(*((given.name, given.stem) for (given,) in each), strict=True)
            self._writer = ProductWriter(
                folder.root, names, stems=stems, figures=self._figures, overwrite=overwrite or going_on
            )
            todo = self._writer.resume() if going_on else range(self.total)
            self._pieces = list(runs_of(todo, self._size))
            self.done, self.failed = self.total - len(todo), self._writer.failed
            self.share = self.total
        else:
            need_pyarrow()
            folder.make(folder.parts, folder.rows)
            pieces = finished(folder.rows)
            self._pieces = self._own(missing(pieces, self.total, self._size))
            own = self._own((piece.first, piece.last) for piece in pieces)
            failed = {(piece.first, piece.last): piece.failed for piece in pieces}
            self.done = sum(last - first for first, last in own)
            self.failed = sum(failed[piece] for piece in own)
            self.share = self.done + sum(last - first for first, last in self._pieces)
        write_json(folder.settings, settings)
        folder.sweep()

    def _own(self, pieces: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """The pieces of this job of an array."""
        if self.folder.part is None:
            return list(pieces)
        k, n = self.folder.part
        return [piece for piece in pieces if piece[0] // self._size % n == k - 1]

    def _settings(self, digest: str, piece_size: int) -> dict[str, Any]:
        from bayesspec import __version__

        own = asdict(self.orders)
        del own["time_limit"], own["model"]
        return {
            "model": Path(self.orders.model).name,
            **own,
            "device": self.orders.device.partition(":")[0],
            "per_star": self.per_star,
            "figures": self._figures,
            "piece_size": piece_size,
            "bayesspec": __version__,
            "inputs_sha256": digest,
            "total": self.total,
        }

    def _run(self) -> Generator[dict[str, Any], None, None]:
        folder = self.folder
        state = "stopped"
        progress = Progress(folder.progress, self.share, self.done, self.failed, show=self._show)
        pool: Pool | None = None
        try:
            if self._show and self.remark:
                progress.say(self.remark)
            if self._show and self.done:
                progress.say(f"continuing: {self.done} of {self.share} are done")
            progress.note("running")
            if self._writer is not None:
                self._writer.write_summary()
            if self._pieces:
                pool = self._make_pool()
                yield from self._work(pool, progress)
            state = "complete"
        except BaseException:
            with suppress(BayesspecError):  # the first error is reported
                self._end(pool, progress, state)
            raise
        self._end(pool, progress, state)

    def _end(self, pool: Pool | None, progress: Progress, state: str) -> None:
        """Drop unfinished work, write the summary or the catalogue, and unlock the folder."""
        if pool is not None:
            pool.close()
        progress.close()
        try:
            self._gather()
        finally:
            progress.note(state)
            self._leave()
        if state == "complete" and self._writer is not None:
            self.folder.remove_state()

    def _make_pool(self) -> Pool:
        if self._scheduler is not None:
            return Cluster(self._scheduler)
        workers = self._workers
        if workers is None:
            workers = 0 if self.per_star or self.orders.device != "cpu" else min(cores(), len(self._pieces))
        return Processes(workers) if workers else Here()

    def _work(self, pool: Pool, progress: Progress) -> Iterator[dict[str, Any]]:
        queue = Queue(self.folder.inputs, self._pieces, self.orders.together)
        pending: dict[Future, OpenPiece] = {}
        while queue or pending:
            while len(pending) < pool.capacity and queue:
                piece = queue.next()
                pending[pool.submit(self._task(piece))] = piece
            done, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: pending[future].first):
                piece = pending.pop(future)
                try:
                    rows = pool.result(future)
                except WorkerDied:
                    queue.again(piece)
                    continue
                failed = sum(row["status"] != "ok" for row in rows)
                self.done, self.failed = self.done + len(rows), self.failed + failed
                self._note(rows)
                progress.add(len(rows), failed)
                for row in rows:
                    if self._show and row["status"] != "ok":
                        progress.say(f"{row['name']}: {row['reason']}")
                    yield row
            progress.tick()
            pool.check()

    def _task(self, piece: OpenPiece) -> Task:
        folder = self.folder
        first, last = piece.first, piece.first + len(piece.inputs)
        root = folder.root.resolve()
        task = Task(self.orders, first, tuple(piece.inputs), root, given_up=piece.given_up)
        if self._writer is not None:
            return replace(task, stems=self._writer.stems[first:last], figures=self._figures)
        return replace(
            task, folders=(folder.parts.resolve(), folder.rows.resolve(), folder.scratch.resolve())
        )

    def _note(self, rows: list[dict[str, Any]]) -> None:
        if self._writer is None:
            return
        for row in rows:
            if row["status"] == "ok":
                own = {key: value for key, value in row.items() if key not in ("position", "name")}
                self._writer.note(row["position"], own)
            else:
                self._writer.fail(row["position"], row["reason"])
        self._writer.update_summary()

    def _gather(self) -> None:
        """Write the summary or the catalogue so far."""
        if self._writer is not None:
            self._writer.write_summary()
        elif self.folder.part is None or not list(
            missing(finished(self.folder.rows), self.total, self._size)
        ):
            write_catalogue(self.folder.rows, self.folder.root, self.folder.scratch)

    def _leave(self) -> None:
        self._claim.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self._leave()
