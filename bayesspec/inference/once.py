"""What is made of a model before any star is looked at, and is the same for every star: made once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from bayesspec.model import StellarModel

__all__ = ["once_a_model"]

Made = TypeVar("Made")


class _Kept(NamedTuple):
    arguments: tuple[Hashable, ...]
    parts: tuple[Any, ...]
    state: list[tuple[weakref.ref[Tensor], int, int]] | None
    made: Any


_KEPT: WeakKeyDictionary[nn.Module, dict[Callable, _Kept]] = WeakKeyDictionary()
"""By generator, which models share that differ in their class weights alone; it goes when that goes."""


def once_a_model(make: Callable[..., Made], model: StellarModel, *arguments: Hashable) -> Made:
    """`make(model, *arguments)`, made anew only if the model or an argument is another than last time.

    Another model is one whose generator, prior or passage is another, was moved to another device, or has
    other numbers, or whose residual term is another one: what is made may keep it, but none of its numbers.
    What is made must keep neither the model nor its generator, nor depend on class weights.
    """
    kept = _KEPT.setdefault(model.generator, {})
    parts, tensors = (model.prior, model.passage, model.residual), _tensors(model)
    last = kept.get(make)
    if last is None or last.arguments != arguments or not _same(last, parts, tensors):
        last = kept[make] = _Kept(arguments, parts, _state(tensors), make(model, *arguments))
    return last.made


def _tensors(model: StellarModel) -> list[Tensor]:
    modules = [part for part in (model.generator, model.prior, model.passage) if isinstance(part, nn.Module)]
    return [tensor for part in modules for tensor in (*part.parameters(), *part.buffers())]


def _state(tensors: list[Tensor]) -> list[tuple[weakref.ref[Tensor], int, int]] | None:
    """Which tensors, where, and how often changed; None where torch does not count that."""
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return [(weakref.ref(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors]


def _same(last: _Kept, parts: tuple[Any, ...], tensors: list[Tensor]) -> bool:
    now = _state(tensors)
    return (
        now is not None
        and last.state is not None
        and len(now) == len(last.state)
        and all(a is b for a, b in zip(parts, last.parts, strict=True))
        and all(was[0]() is is_[0]() and was[1:] == is_[1:] for was, is_ in zip(last.state, now, strict=True))
    )
