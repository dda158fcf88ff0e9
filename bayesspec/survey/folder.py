"""The folder of a run: its contents, its lock, and the settings of its run."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bayesspec.exceptions import BayesspecError
from bayesspec.results.products import written

__all__ = ["Folder", "changes", "is_held", "read_json"]

STATE = ".bayesspec"
"""Folder with what a run needs to continue: its list of inputs, its settings, the rows of finished pieces."""

SET_UP = 120.0
"""Seconds that the jobs of an array wait for each other while they check the list of inputs."""


class Folder:
    """The output folder of a run, and the names of its files.

    Arguments:
        root: The output folder.
        part: (k, n) for job k of an array of n; None for a run of all inputs.
    """

    def __init__(self, root: str | Path, part: tuple[int, int] | None = None) -> None:
        self.root, self.part = Path(root), part
        self.suffix = "" if part is None else f"-{part[0]}-of-{part[1]}"
        self.state = self.root / STATE
        self.parts, self.rows = self.root / "parts", self.state / "rows"
        self.settings, self.inputs = self.state / "run.json", self.state / "inputs.jsonl"
        self.progress = self.state / f"progress{self.suffix}.json"
        self.scratch = self.state / f"scratch{self.suffix}"
        """Files are written here and then moved; leftovers of a killed run are removed."""

    def make(self, *folders: Path) -> None:
        """Make folders.

        Raises:
            BayesspecError: if one cannot be made.
        """
        for folder in (self.root, self.state, *folders):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise BayesspecError(f"{folder}: cannot be the output folder ({error.strerror})") from error

    def sweep(self) -> None:
        """Remove unfinished files of a killed run."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.make(self.scratch)

    def clear(self) -> None:
        """Remove everything that a run writes, and no other files."""
        for path in self.parts.glob("part-*.fits"):
            path.unlink()
        with suppress(OSError):
            self.parts.rmdir()
        for name in ("catalogue.parquet", "catalogue.ecsv"):
            (self.root / name).unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Remove what a run needs to continue."""
        for path in self.state.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif not path.name.startswith(("lock", "owner")):
                path.unlink(missing_ok=True)

    def remove_state(self) -> None:
        """Remove the state of a run that is complete."""
        shutil.rmtree(self.state, ignore_errors=True)

    @contextmanager
    def claimed(self, *, take_over: bool) -> Iterator[str]:
        """Lock the folder; yields a remark about an earlier run that was killed, or an empty text.

        The lock is that of the operating system and ends with its process, so on the same machine a killed
        run is no obstacle. The file system of a cluster may not support locks across machines. A run on
        another machine that did not report its end is therefore assumed to be alive, unless `take_over`.

        Raises:
            BayesspecError: if another run is, or may be, at work here; it names that run.
        """
        self.make()
        own = self.state / f"lock{self.suffix}"
        # A run of all inputs and jobs of an array exclude each other.
        others = self.state.glob("lock-*-of-*") if self.part is None else [self.state / "lock"]
        for other in filter(is_held, others):
            raise BayesspecError(f"{self.root}: {_owner(other)} is at work here")
        lock = FileLock(own)
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            raise BayesspecError(f"{self.root}: {_owner(own)} is at work here") from None
        except (OSError, NotImplementedError) as error:
            raise BayesspecError(f"{self.root}: cannot be locked ({error})") from error
        with lock:
            lock.release()  # it was acquired twice, here and above
            owner, remark = _owner_file(own), ""
            if before := read_json(owner):
                remark = f"{_owner(own)} ended unexpectedly; its run is taken over"
                if before.get("host") != socket.gethostname() and not take_over:
                    raise BayesspecError(
                        f"{self.root}: {_owner(own)} did not report its end; if it has ended, use "
                        "--take-over to continue its run"
                    )
            write_json(owner, _me())
            try:
                yield remark
            finally:
                owner.unlink(missing_ok=True)

    def has_begun(self, before: dict[str, Any]) -> bool:
        """Whether a run with these settings has left results that the current settings have to match."""
        facts = [read_json(path) for path in self.state.glob("progress*.json")]
        if before.get("per_star"):
            return any(job and job["done"] for job in facts)
        return self.rows.is_dir() and any(self.rows.iterdir())

    @contextmanager
    def set_up(self) -> Iterator[None]:
        """Let one job of an array at a time check the list of inputs."""
        if self.part is None:
            yield
            return
        with FileLock(self.state / "set-up", timeout=SET_UP):
            yield


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The settings of a run that have changed, in words."""
    said = []
    for key, value in now.items():
        if before.get(key) == value or (
            key == "total" and before.get("inputs_sha256") == now["inputs_sha256"]
        ):
            continue
        if key == "inputs_sha256":
            said.append("the list of inputs is different")
        elif key == "settings_sha256":
            said.append("the model of this name is different")
        else:
            said.append(f"{key} was {before.get(key)!r}, now {value!r}")
    return said


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock, on this machine or, if the file system supports it, another."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def read_json(path: Path) -> dict[str, Any] | None:
    """The contents of a JSON file; None if there is none, or it is not JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file that is either complete or absent.

    Raises:
        BayesspecError: if it cannot be written.
    """
    with written(path) as part:
        part.write_text(json.dumps(value, indent=1))


def _owner_file(lock: Path) -> Path:
    return lock.with_name(lock.name.replace("lock", "owner", 1) + ".json")


def _owner(lock: Path) -> str:
    who = read_json(_owner_file(lock))
    if not who:
        return "another run"
    return f"process {who.get('pid')} of {who.get('user')} on {who.get('host')}, since {who.get('since')},"


def _me() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": socket.gethostname(), "pid": os.getpid(), "user": user, "since": since}
