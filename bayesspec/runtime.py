"""What every long run needs: random numbers of its own, and a bar on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["own_random_state", "progress_bar", "seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch inside the block; the caller's random state comes back as it was."""
    with own_random_state():
        torch.manual_seed(seed)
        yield


def own_random_state() -> AbstractContextManager[None]:
    """A block whose random numbers, on every device, are none of the caller's."""
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()))


@contextmanager
def progress_bar(
    label: str, total: int, done: int = 0, *, enabled: bool
) -> Iterator[Callable[[int, float], None]]:
    """A bar on stderr; yields what is to be called with (steps done, a number to show)."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[value]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not enabled,
    )
    with bar:
        task = bar.add_task(label, total=total, completed=done, value="")
        yield lambda step, value: bar.update(task, completed=step, value=f"{value:.5g}")
