"""Progress of a run: a bar on a terminal, a line per minute elsewhere, and a file for `bayesspec status`."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bayesspec.exceptions import BayesspecError
from bayesspec.observation import printable

from .folder import STATE, is_held, read_json, write_json

__all__ = ["Progress", "status"]

EVERY = 2.0
"""Seconds between two updates of the file."""

LINE = 60.0
"""Seconds between two lines if there is no terminal."""

SILENCE = 120.0
"""Seconds without an update after which a run on another machine counts as stopped."""


class Progress:
    """The progress of a run.

    Arguments:
        path: The file for `status`.
        total: Inputs of the run.
        done: Inputs done by earlier runs.
        failed: Those of them that failed.
        show: Show the progress on stderr.
    """

    def __init__(self, path: Path, total: int, done: int, failed: int, *, show: bool) -> None:
        self.path, self.total, self.before = path, total, done
        self.done, self.failed, self.begun = done, failed, time.time()
        self._noted = self._said = time.monotonic()
        self._bar = _bar(total, done) if show and sys.stderr.isatty() else None
        self._lines = show and self._bar is None

    def add(self, done: int, failed: int) -> None:
        """Add inputs that are done, and how many of them failed."""
        self.done += done
        self.failed += failed
        if self._bar is not None:
            rate = (self.done - self.before) / max(time.time() - self.begun, 1e-9)
            self._bar.update(self._bar.task_ids[0], completed=self.done, failed=self.failed, rate=rate)

    def tick(self) -> None:
        """Show and write the progress, if it is time to."""
        now = time.monotonic()
        if self._lines and now - self._said >= LINE:
            self._said = now
            print(_line(self._facts("running")), file=sys.stderr, flush=True)
        if now - self._noted >= EVERY:
            self.note("running")

    def note(self, state: str) -> None:
        """Write the progress for `status`; a full disk is not an error here."""
        self._noted = time.monotonic()
        with suppress(BayesspecError, OSError):
            write_json(self.path, self._facts(state))

    def say(self, message: str) -> None:
        """One line on stderr, above the bar if there is one."""
        if self._bar is None:
            print(message, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def _facts(self, state: str) -> dict[str, Any]:
        now = time.time()
        return {
            "state": state,
            "total": self.total,
            "done": self.done,
            "failed": self.failed,
            "before": self.before,
            "begun": self.begun,
            "updated": now,
            "seconds": now - self.begun,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }


def status(out: str | Path) -> dict[str, Any]:
    """Progress of the run in a folder, running or not; for an array of jobs, of all jobs together.

    Returns:
        `state` ("running", "stopped" or "complete"), `total`, `done`, `failed`, `rate` (inputs per second of
        the running jobs), `left` (seconds, None if nothing runs), `updated` (seconds ago) and `where`.

    Raises:
        BayesspecError: if there is no run.
    """
    root = Path(out)
    state = root / STATE
    settings = read_json(state / "run.json")
    if settings is None:
        return _of_summary(root)
    told = [(path, read_json(path)) for path in sorted(state.glob("progress*.json"))]
    jobs = [(path, facts) for path, facts in told if facts]
    now = time.time()
    running = [facts for path, facts in jobs if _runs(path, facts, now)]
    done, failed = _counts(root, settings, [facts for _, facts in jobs])
    rates = [(facts["done"] - facts["before"]) / max(facts["seconds"], 1e-9) for facts in running]
    rate, left = sum(rates), settings["total"] - done
    return {
        "state": "running" if running else "stopped" if left > 0 else "complete",
        "total": settings["total"],
        "done": done,
        "failed": failed,
        "rate": rate,
        "left": left / rate if rate else None,
        "updated": now - max((facts["updated"] for _, facts in jobs), default=now),
        "where": ", ".join(f"process {facts['pid']} on {facts['host']}" for facts in running),
    }


def _runs(path: Path, facts: dict[str, Any], now: float) -> bool:
    if facts["state"] != "running":
        return False
    if facts["host"] == socket.gethostname():
        return is_held(path.with_name(path.name.replace("progress", "lock", 1).removesuffix(".json")))
    return now - facts["updated"] < SILENCE


def _counts(root: Path, settings: dict[str, Any], jobs: list[dict[str, Any]]) -> tuple[int, int]:
    """Numbers done and failed: from the finished pieces on disk, or else from the progress files."""
    if settings["per_star"]:
        return max((job["done"] for job in jobs), default=0), max((job["failed"] for job in jobs), default=0)
    from .catalogue import finished

    rows = root / STATE / "rows"
    pieces = finished(rows) if rows.is_dir() else []
    return sum(piece.last - piece.first for piece in pieces), sum(piece.failed for piece in pieces)


def _of_summary(root: Path) -> dict[str, Any]:
    """The status from the summary, which is all that a complete run with one file per star leaves."""
    from astropy.table import Table

    from bayesspec.results.products import NOT_REACHED, SUMMARY

    path = root / SUMMARY
    if not path.is_file():
        raise BayesspecError(f"{printable(str(root))}: there is no run of bayesspec denoise here")
    states = list(Table.read(path, format="ascii.ecsv")["status"])
    done = len(states) - states.count(NOT_REACHED)
    return {
        "state": "complete" if done == len(states) else "stopped",
        "total": len(states),
        "done": done,
        "failed": states.count("failed"),
        "rate": 0.0,
        "left": None,
        "updated": time.time() - path.stat().st_mtime,
        "where": "",
    }


def _line(facts: dict[str, Any]) -> str:
    rate = (facts["done"] - facts["before"]) / max(facts["seconds"], 1e-9)
    left = f", {duration((facts['total'] - facts['done']) / rate)} left" if rate else ""
    return f"{facts['done']} of {facts['total']} done, {facts['failed']} failed, {rate:.2f} per second{left}"


def duration(seconds: float) -> str:
    """A duration in readable form.

    Example:
        >>> duration(42), duration(4000), duration(200_000)
        ('42 s', '1 h 06 min', '2 d 07 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24:02d} h"


def _bar(total: int, done: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("denoise"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} done, {task.fields[failed]} failed"),
        TextColumn("{task.fields[rate]:.2f} per second"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("denoise", total=total, completed=done, failed=0, rate=0.0)
    bar.start()
    return bar
