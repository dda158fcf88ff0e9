"""Workers for the pieces of a run: this process, processes on this machine, or a Dask cluster."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from bayesspec.exceptions import BayesspecError

from .work import Task, do

__all__ = ["Cluster", "Here", "Pool", "Processes", "WorkerDied", "cores"]

AHEAD = 2
"""Pieces per worker of a cluster: one in work and one waiting, so that the worker is never idle."""

ANSWER = 30.0
"""Timeout in seconds for the first answer of a scheduler."""

COUNT_EVERY = 2.0
"""Seconds between two counts of the workers."""

GONE = 120.0
"""Seconds without its scheduler after which a cluster counts as lost."""


class WorkerDied(Exception):
    """The worker of a piece has died, for an unknown reason."""


class Pool(Protocol):
    """Accepts tasks; their futures return rows, or raise `WorkerDied`."""

    @property
    def capacity(self) -> int:
        """Number of tasks that it accepts at a time."""

    def submit(self, task: Task) -> Future:
        """Submit a task."""

    def result(self, future: Future) -> list[dict[str, Any]]:
        """Rows of a finished task.

        Raises:
            WorkerDied: if its worker has died.
            BayesspecError: as `do`.
        """

    def check(self) -> None:
        """Check that the workers can still be reached.

        Raises:
            BayesspecError: if they cannot.
        """

    def close(self) -> None:
        """Drop unfinished work."""


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Here:
    """This process: `submit` does the task at once."""

    capacity = 1

    def submit(self, task: Task) -> Future:
        """Submit a task."""
        future: Future = Future()
        future.set_result(do(task))
        return future

    def result(self, future: Future) -> list[dict[str, Any]]:
        """Rows of a finished task."""
        return future.result()

    def check(self) -> None:
        """Nothing to check."""

    def close(self) -> None:
        """Drop unfinished work."""


class Processes:
    """N processes on this machine, each with its own executor, so that the task of a dead one is known."""

    def __init__(self, count: int) -> None:
        self.capacity = count
        self._idle: list[ProcessPoolExecutor] = []
        self._busy: dict[Future, ProcessPoolExecutor] = {}

    def submit(self, task: Task) -> Future:
        """Submit a task."""
        worker = self._idle.pop() if self._idle else _worker()
        try:
            future = worker.submit(do, task)
        except BrokenProcessPool:  # it died while idle
            worker.shutdown(wait=False)
            worker = _worker()
            future = worker.submit(do, task)
        self._busy[future] = worker
        return future

    def result(self, future: Future) -> list[dict[str, Any]]:
        """Rows of a finished task."""
        worker = self._busy.pop(future)
        try:
            rows = future.result()
        except BrokenProcessPool as error:
            worker.shutdown(wait=False)
            raise WorkerDied from error
        except BaseException:
            self._idle.append(worker)
            raise
        self._idle.append(worker)
        return rows

    def check(self) -> None:
        """Nothing to check."""

    def close(self) -> None:
        """Drop unfinished work."""
        for worker in (*self._idle, *self._busy.values()):
            for process in list((worker._processes or {}).values()):
                process.kill()
            worker.shutdown(wait=True, cancel_futures=True)
        self._idle, self._busy = [], {}


def _worker() -> ProcessPoolExecutor:
    # A fork is unsafe with the threads of torch.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_begin)


def _begin() -> None:
    """Set up a worker: one thread, Ctrl-C left to the parent process, and an end with that process."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def end(parent: multiprocessing.process.BaseProcess) -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=end, args=(parent,), daemon=True).start()
    one_thread()


def one_thread() -> None:
    """Let torch compute on one thread, because the other workers use the other cores."""
    import torch

    torch.set_num_threads(1)


class Cluster:
    """Workers of a running Dask cluster.

    Arguments:
        address: Address of its scheduler, such as tcp://10.0.0.1:8786, or the path of its scheduler file.

    Raises:
        BayesspecError: if dask.distributed is not installed, or the scheduler does not answer.
    """

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise BayesspecError(
                '--scheduler needs dask.distributed: pip install "bayesspec-stars[scale]"'
            ) from error
        self.address, self._seen = address, time.monotonic()
        where = {"scheduler_file": address} if os.path.isfile(address) else {"address": address}
        try:
            self._client = Client(**where, timeout=ANSWER, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise BayesspecError(f"no scheduler answers at {address} ({error})") from error
        self._executor = self._client.get_executor(pure=False, retries=0)
        self._threads, self._counted = 0, -math.inf

    @property
    def capacity(self) -> int:
        """`AHEAD` tasks for each current worker; workers may join and leave."""
        if time.monotonic() - self._counted > COUNT_EVERY:
            with contextlib.suppress(OSError, TimeoutError):  # `check` limits how long this may last
                self._threads = sum(self._client.nthreads().values())
                self._counted = time.monotonic()
        return max(1, AHEAD * self._threads)

    def submit(self, task: Task) -> Future:
        """Submit a task."""
        return self._executor.submit(_do_there, task)

    def result(self, future: Future) -> list[dict[str, Any]]:
        """Rows of a finished task."""
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker as error:
            raise WorkerDied from error

    def check(self) -> None:
        """Check that the scheduler can be reached."""
        if self._client.status == "running":
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > GONE or self._client.status == "closed":
            raise BayesspecError(f"the scheduler at {self.address} is gone; the same command continues")

    def close(self) -> None:
        """Drop unfinished work."""
        self._executor.shutdown(wait=False)
        self._client.close(timeout=10)


def _do_there(task: Task) -> list[dict[str, Any]]:
    one_thread()
    return do(task)
