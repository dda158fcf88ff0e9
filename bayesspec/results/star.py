"""The result of one input: a star in the units of its input, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from astropy import units as u
from numpy.typing import NDArray

from bayesspec.grid import Rebinned, WavelengthGrid

__all__ = ["Failure", "Star", "median_snr"]

Array = NDArray[np.floating[Any]]


class Failure(NamedTuple):
    """An input without a result: its position in the input, its name, and the reason."""

    position: int
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Star:
    """One star of a result as plain arrays, in the unit of its input, as in files and figures.

    Arguments:
        name: Its name.
        unit: Unit of its flux.
        grid: Wavelength grid of the model.
        flux: Clean spectrum, (D,).
        flux_std: Its standard deviation, (D,), or None.
        observed: Mean exposure: flux, ivar and mask (True = no exposure observed the pixel), each (D,).
        scale: Flux of each exposure that has an observed pixel, relative to `flux`, (E,).
        z: Latents, (L,).
        classes: Names of the K classes.
        class_probabilities: (K,).
        row: The star's row of `Result.full_table`, by column.
        lines: Its row of `Result.equivalent_widths`, by column, without the name and masked values.
        warnings: Its warnings in words.
        method: Name of the inference method.
        model_name: Name of the model's bundle.
        model_version: Its version.
    """

    name: str
    unit: u.UnitBase
    grid: WavelengthGrid
    flux: Array
    flux_std: Array | None
    observed: Rebinned
    scale: Array
    z: Array
    classes: tuple[str, ...]
    class_probabilities: Array
    row: dict[str, Any]
    lines: dict[str, float]
    warnings: tuple[str, ...]
    method: str
    model_name: str
    model_version: str


def median_snr(flux: NDArray, ivar: NDArray, mask: NDArray[np.bool_]) -> float:
    """Median flux / sigma of the observed pixels, each (D,), mask True = bad; 0 if no sigma is known.

    Example:
        >>> median_snr(np.array([1.0, 3.0, 9.0]), np.full(3, 4.0), np.array([False, False, True]))
        4.0
    """
    known = ~mask & (ivar > 0)
    return float(np.median(flux[known] * np.sqrt(ivar[known]))) if known.any() else 0.0
