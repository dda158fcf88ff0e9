"""What `denoise` is given, looked at before the work begins: stars in any form, numbers, options."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from astropy.io import fits
from astropy.table import Table

from bayesspec.exceptions import BayesspecError, ReadError
from bayesspec.io import read
from bayesspec.io.source import file_of
from bayesspec.io.spectrum import is_specutils
from bayesspec.observation import Gridded, Observation, printable
from bayesspec.results.star import Failure

__all__ = ["LARGEST_SEED", "check_options", "check_whole", "read_stars"]

LARGEST_SEED = 2**32 - 1
"""What numpy, and Pyro with it, takes."""

_OWN = ("seed", "scan", "progress")
"""What `denoise` gives to the engines itself."""

_LEAST = {"rounds": 0, "draws": 4}
_CHOICES = {"classes": ("joint", "marginal")}


def read_stars(given: Any, on_error: Literal["raise", "skip"]) -> list[Observation | Gridded | Failure]:
    """The stars of what is given: observations, anything that `read` takes, or several of either.

    Raises:
        ReadError: if one cannot be read and `on_error` is "raise"; with "skip" a `Failure` takes its place.
        BayesspecError: if it is nothing that holds a star.
    """
    if _is_one(given):
        given = [given]
    stars: list[Observation | Gridded | Failure] = []
    for position, star in enumerate(given if isinstance(given, Iterable) else [given]):
        if not _is_one(star):
            raise BayesspecError(
                f"a {type(star).__name__} is no star: give an Observation, a path, an open file, an HDUList, "
                "a Table, a spectrum of specutils, or a list of these"
            )
        try:
            stars.append(star if isinstance(star, Observation | Gridded) else read(star))
        except ReadError as error:
            if on_error == "raise":
                raise
            name = printable(file_of(star) or type(star).__name__)
            stars.append(Failure(position, name, str(error)))
    return stars


def _is_one(given: Any) -> bool:
    if isinstance(given, Observation | Gridded | str | os.PathLike | fits.HDUList | Table) or is_specutils(
        given
    ):
        return True
    return hasattr(given, "read") and not isinstance(given, list)  # a SpectrumList can read, and is many


def check_whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number within bounds.

    Raises:
        BayesspecError: if it is none.
    """
    bounds = f"{least} or more" if most is None else f"from {least} to {most}"
    whole = isinstance(value, Integral) and not isinstance(value, bool | np.bool_)
    if not whole or value < least or (most is not None and value > most):
        raise BayesspecError(f"{name} must be a whole number, {bounds}, not {value!r}")
    return int(value)


def check_options(label: str, engines: Sequence[Callable[..., Any]], options: Mapping[str, Any]) -> None:
    """Whether all options are keywords of one of the engines, and of the kind that these declare.

    Arguments:
        label: What the engines are called.
        engines: Functions whose keywords count.
        options: By name.

    Raises:
        BayesspecError: if there is no such option, which names those that there are, or its value is wrong.
    """
    known = {
        name: str(parameter.annotation)
        for engine in engines
        for name, parameter in inspect.signature(engine).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in _OWN
    }
    if unknown := [name for name in options if name not in known]:
        raise BayesspecError(f"{label} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    for name, value in options.items():
        kind, *optional = known[name].split(" | ")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise BayesspecError(f"{name} must be one of {', '.join(_CHOICES[name])}, not {value!r}")
        if kind == "bool" and not isinstance(value, bool | np.bool_):
            raise BayesspecError(f"{name} must be True or False, not {value!r}")
        if kind == "int" and not (value is None and "None" in optional):
            check_whole(name, value, _LEAST.get(name, 1))
        if kind == "float" and not (isinstance(value, Real) and value < np.inf and not value <= 0):
            raise BayesspecError(f"{name} must be a positive number, not {value!r}")
    if not 0 < options.get("target_accept", 0.5) < 1:
        raise BayesspecError(f"target_accept must be between 0 and 1, not {options['target_accept']!r}")
