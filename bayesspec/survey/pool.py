"""Who does the pieces: this process, processes of this machine, or a cluster of Dask."""

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
"""Pieces that a worker of a cluster holds: one in work, one that waits, so that it never does."""

ANSWER = 30.0
"""Seconds that a scheduler has to answer the first time."""

COUNT_EVERY = 2.0
"""Seconds between two looks at how many workers there are."""

GONE = 120.0
"""Seconds without its scheduler after which a cluster is given up."""


class WorkerDied(Exception):
    """The worker that had a piece is gone, and nobody knows whose fault it was."""


class Pool(Protocol):
    """Takes tasks; futures hold rows, or raise `WorkerDied`."""

    @property
    def capacity(self) -> int:
        """How many tasks it takes at a time."""

    def submit(self, task: Task) -> Future:
        """Hand a task over."""

    def result(self, future: Future) -> list[dict[str, Any]]:
        """Rows of a task that is done.

        Raises:
            WorkerDied: if its worker is gone.
            BayesspecError: as `do`.
        """

    def check(self) -> None:
        """Look whether there is anybody to wait for.

        Raises:
            BayesspecError: if there is not.
        """

    def close(self) -> None:
        """Drop what is in work."""


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Here:
    """This process: a task is done when it has been submitted."""

    capacity = 1

    def submit(self, task: Task) -> Future:
        """Hand a task over."""
        future: Future = Future()
        future.set_result(do(task))
        return future

    def result(self, future: Future) -> list[dict[str, Any]]:
        """Its rows."""
        return future.result()

    def check(self) -> None:
        """Nothing to look for."""

    def close(self) -> None:
        """Drop what is in work."""


class Processes:
    """N processes of this machine, each an executor of its own: if one dies, it is known what it did."""

    def __init__(self, count: int) -> None:
        self.capacity = count
        self._idle: list[ProcessPoolExecutor] = []
        self._busy: dict[Future, ProcessPoolExecutor] = {}

    def submit(self, task: Task) -> Future:
        """Hand a task over."""
        worker = self._idle.pop() if self._idle else _worker()
        try:
            future = worker.submit(do, task)
        except BrokenProcessPool:  # it died while it had nothing to do
            worker.shutdown(wait=False)
            worker = _worker()
            future = worker.submit(do, task)
        self._busy[future] = worker
        return future

    def result(self, future: Future) -> list[dict[str, Any]]:
        """Its rows."""
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
        """Nothing to look for."""

    def close(self) -> None:
        """Drop what is in work."""
        for worker in (*self._idle, *self._busy.values()):
            for process in list((worker._processes or {}).values()):
                process.kill()
            worker.shutdown(wait=True, cancel_futures=True)
        self._idle, self._busy = [], {}


def _worker() -> ProcessPoolExecutor:
    # A fork would take the threads of torch with it.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_begin)


def _begin() -> None:
    """A worker computes on one thread, leaves Ctrl-C to the process that it works for, and ends with it."""
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
    """Let torch compute on one thread; the cores belong to the other workers."""
    import torch

    torch.set_num_threads(1)


class Cluster:
    """Workers of a Dask cluster that runs already.

    Arguments:
        address: Of its scheduler, such as tcp://10.0.0.1:8786; or the path of its scheduler file.

    Raises:
        BayesspecError: if dask.distributed is not installed, or nobody answers.
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
        """As many as its workers hold, and they may come and go."""
        if time.monotonic() - self._counted > COUNT_EVERY:
            with contextlib.suppress(OSError, TimeoutError):  # `check` knows how long that may last
                self._threads = sum(self._client.nthreads().values())
                self._counted = time.monotonic()
        return max(1, AHEAD * self._threads)

    def submit(self, task: Task) -> Future:
        """Hand a task over."""
        return self._executor.submit(_do_there, task)

    def result(self, future: Future) -> list[dict[str, Any]]:
        """Its rows."""
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker as error:
            raise WorkerDied from error

    def check(self) -> None:
        """Whether the scheduler is there."""
        if self._client.status == "running":
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > GONE or self._client.status == "closed":
            raise BayesspecError(f"the scheduler at {self.address} is gone; the same command goes on")

    def close(self) -> None:
        """Drop what is in work."""
        self._executor.shutdown(wait=False)
        self._client.close(timeout=10)


def _do_there(task: Task) -> list[dict[str, Any]]:
    one_thread()
    return do(task)
