"""The remaining pieces of a run, and the repeated attempts at a piece whose worker died."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from .inputs import Input, read_list

__all__ = ["OpenPiece", "Queue", "runs_of"]


@dataclass
class OpenPiece:
    """Inputs for one task of a worker; the first of them is at position `first`."""

    first: int
    inputs: list[Input]
    deaths: int = 0
    given_up: dict[int, str] = field(default_factory=dict)


class Queue:
    """Pieces to do, from the list on disk; those whose worker died come first."""

    def __init__(self, inputs: Path, pieces: list[tuple[int, int]], together: int) -> None:
        self._fresh = zip(pieces, read_list(inputs, pieces), strict=True)
        self._left, self._together = len(pieces), together
        self._again: list[OpenPiece] = []

    def __bool__(self) -> bool:
        return bool(self._left or self._again)

    def next(self) -> OpenPiece:
        """The next piece."""
        if self._again:
            return self._again.pop()
        self._left -= 1
        (first, _), inputs = next(self._fresh)
        return OpenPiece(first, inputs)

    def again(self, piece: OpenPiece) -> None:
        """Try a piece again, once unchanged, then in halves, down to the single input that kills workers.

        Halves are split between batches of inference, so that the results stay the same.
        """
        deaths, count = piece.deaths + 1, len(piece.inputs)
        if deaths == 1:
            self._again.append(replace(piece, deaths=deaths))
        elif count == 1:
            reason = "the worker died each time that it had this input (out of memory?)"
            self._again.append(replace(piece, given_up={0: reason}, deaths=0))
        else:
            unit = self._together if count > self._together else 1
            half = max(unit, count // 2 // unit * unit)
            self._again.append(OpenPiece(piece.first + half, piece.inputs[half:], deaths=1))
            self._again.append(OpenPiece(piece.first, piece.inputs[:half], deaths=1))


def runs_of(positions: Iterable[int], size: int) -> Iterator[tuple[int, int]]:
    """Pieces of consecutive positions, none longer than a batch, none across the border of a batch."""
    begin: int | None = None
    end = 0
    for position in positions:
        if begin is not None and position == end and position % size:
            end += 1
            continue
        if begin is not None:
            yield begin, end
        begin, end = position, position + 1
    if begin is not None:
        yield begin, end
