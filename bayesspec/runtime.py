"""For long runs: isolation from the caller's global state and random numbers, and a progress bar."""

from __future__ import annotations

import os
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import numpy as np
import torch

__all__ = ["own_random_state", "own_state", "progress_bar", "seeded"]

_TURN = threading.RLock()


@contextmanager
def own_state() -> Iterator[None]:
    """Isolate a block, or as a decorator a function, from the caller's global state and preserve that state.

    Inside, torch makes float32 tensors on the CPU and records gradients, without autocast, and numpy treats
    floating-point errors as it does by default, so results do not depend on the caller's settings. Random
    states (torch, numpy, Python), environment and warnings filters are restored, also after an error; the
    last two are changed by parts of torch that load on first use.

    Threads take turns, because Pyro's handlers, torch's random numbers and its default type are shared by
    all threads.
    """
    with ExitStack() as stack:
        stack.enter_context(_TURN)
        stack.callback(_restore_globals, dict(os.environ), list(warnings.filters))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 - the very state that is kept
        stack.enter_context(own_random_state())

        stack.enter_context(np.errstate(divide="warn", over="warn", invalid="warn", under="ignore"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # These two are also visible to other threads, so they are changed only if necessary.
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def _restore_globals(environment: dict[str, str], filters: list) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    if warnings.filters != filters:
        warnings.filters[:] = filters  # type: ignore[index]  # typeshed does not say that it is a list


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch inside the block; the caller's random state is restored."""
    with own_random_state():
        if torch.cuda.is_initialized():
            torch.manual_seed(seed)
        else:  # manual_seed would also seed GPUs that are not in use yet
            torch.default_generator.manual_seed(seed)
        yield


def own_random_state() -> AbstractContextManager[None]:
    """A block that leaves the caller's random state unchanged, on every device in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return torch.random.fork_rng(devices=devices)


@contextmanager
def progress_bar(
    label: str, total: int, done: int = 0, *, enabled: bool
) -> Iterator[Callable[[int, float], None]]:
    """A progress bar on stderr; yields a function of (steps done, a number to show)."""
    if not enabled:
        yield lambda step, value: None
        return

    # Imported here, because the import draws from Python's random numbers.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[value]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(label, total=total, completed=done, value="")
        yield lambda step, value: bar.update(task, completed=step, value=f"{value:.5g}")
