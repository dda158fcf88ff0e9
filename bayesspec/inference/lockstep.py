"""Many samplers in one thread, whose densities are evaluated together: no fork, no pool, no hang."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from greenlet import greenlet

from bayesspec.runtime import own_random_state

__all__ = ["run_together"]

Task = Callable[[Callable[[Any], Any]], Any]
"""A function of `ask`, with which it puts one question after another."""


def run_together(
    tasks: Sequence[Task], answer: Callable[[list[int], list[Any]], Sequence[Any]], seeds: Sequence[int]
) -> list[Any]:
    """Run tasks that each ask for one number after another, so that their questions are answered in batches.

    Only one task runs at any time, in a fixed order, each with a random state of its own: a task's result
    does not depend on its company. Greenlets are coroutines for code, such as Pyro's kernels, that calls a
    function where it would have to yield. Errors of a task are raised here, and end the others.

    Arguments:
        tasks: Each is called with `ask`; `ask(question)` returns the answer.
        answer: Called with the positions of the tasks that wait and their questions; returns their answers.
        seeds: Of torch's random numbers in each task.

    Returns:
        What the tasks returned.

    Example:
        >>> def climb(ask):
        ...     x = 0
        ...     while ask(x) < 10:
        ...         x += 1
        ...     return x
        >>> run_together([climb, climb], lambda who, xs: [x**2 * (w + 1) for w, x in zip(who, xs)], [0, 1])
        [4, 3]
    """
    runners = [_Runner(task, seed) for task, seed in zip(tasks, seeds, strict=True)]
    try:
        with own_random_state():
            for runner in runners:
                runner.resume(None)
            while waiting := [position for position, runner in enumerate(runners) if not runner.done]:
                answers = answer(waiting, [runners[position].question for position in waiting])
                for position, value in zip(waiting, answers, strict=True):
                    runners[position].resume(value)
    finally:
        for runner in runners:
            runner.cancel()
    return [runner.result for runner in runners]


class _Runner:
    """One task, with its own of what torch has one of: random numbers, and whether gradients are on."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task = task
        self.random_state = torch.Generator().manual_seed(seed).get_state()
        self.gradients = True
        self.question = self.result = None
        self.coroutine = greenlet(self._run)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.coroutine.dead

    def resume(self, value: Any) -> None:
        """Let the task run until it asks again or ends."""
        torch.random.set_rng_state(self.random_state)
        with torch.set_grad_enabled(self.gradients):
            self.question = self.coroutine.switch(value)
            self.gradients = torch.is_grad_enabled()
        self.random_state = torch.random.get_rng_state()

    def cancel(self) -> None:
        """End the task, wherever it is; nothing happens to one that has ended or never began."""
        if self.coroutine:
            self.coroutine.throw()

    def _run(self, _: None) -> None:
        self.result = self.task(self._ask)

    def _ask(self, question: Any) -> Any:
        return self.coroutine.parent.switch(question)
