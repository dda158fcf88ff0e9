"""Columns of a result's tables: what files say, velocity and reddening, widths of lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from astropy import units as u
from astropy.table import Column, MaskedColumn
from numpy.typing import NDArray

from bayesspec.grid import WavelengthGrid
from bayesspec.physics.doppler import SPEED_OF_LIGHT

from .facts import FACTS
from .lines import LINES, equivalent_width

__all__ = ["fact_columns", "line_columns", "passage_columns"]

FORMATS = {
    **dict.fromkeys(("ra", "dec", "survey_redshift"), ".5f"),
    **dict.fromkeys(("probability", "ebv_excess", "ebv_excess_err"), ".3f"),
    **dict.fromkeys(("snr", "velocity_offset", "velocity_offset_err"), ".1f"),
}
"""How numbers of a table to read are shown."""

OBSERVED = 0.9
"""Share of a line and its continuum that has to be observed."""


def fact_columns(stars: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """Columns of the facts that at least one of N stars has; masked where a star has none.

    Arguments:
        stars: The facts of each, see `known_facts`.
    """
    columns: dict[str, Column] = {}
    for name, fact in FACTS.items():
        lacking = [name not in facts for facts in stars]
        if all(lacking):
            continue
        values: NDArray[Any] = np.array([facts.get(name, fact.kind()) for facts in stars], dtype=fact.kind)
        about = {"unit": fact.unit, "description": fact.comment}
        columns[name] = (
            MaskedColumn(values, mask=lacking, **about) if any(lacking) else Column(values, **about)
        )
    return columns


def passage_columns(passage: NDArray | None, std: NDArray | None) -> dict[str, Column]:
    """Velocity and reddening beyond those of the library's stars, and their errors.

    Arguments:
        passage: See `Result`, (N, P), or None.
        std: Its standard deviations, or None.
    """
    if passage is None or not passage.shape[-1]:
        return {}
    columns = {}
    for k, (name, unit) in enumerate((("velocity_offset", u.km / u.s), ("ebv_excess", u.mag))):
        columns[name] = Column(passage[:, k], unit=unit)
        if std is not None:
            columns[f"{name}_err"] = Column(std[:, k], unit=unit)
    return columns


def line_columns(
    grid: WavelengthGrid, spectra: Sequence[NDArray], seen: NDArray[np.bool_], velocity: NDArray
) -> dict[str, MaskedColumn]:
    """A column for each line, such as ew_h_alpha, and where there are draws their standard deviations.

    Arguments:
        grid: Wavelength grid.
        spectra: Of each of N stars the clean spectrum, (1, D), or draws of it, (S, D).
        seen: Where it may be measured, (N, D); masked where that is less than `OBSERVED` of a line.
        velocity: Of each star, km/s.
    """
    columns: dict[str, MaskedColumn] = {}
    drawn = any(len(one) > 1 for one in spectra)
    nothing = np.zeros(grid.size, dtype=bool)
    for name, line in LINES.items():
        column = f"ew_{name.lower().replace(' ', '_')}"
        mean, std = np.zeros((2, len(spectra)))
        lacking = np.ones(len(spectra), dtype=bool)
        for i, (one, v) in enumerate(zip(spectra, velocity, strict=True)):
            rest = grid.wavelength / (1 + v / SPEED_OF_LIGHT)
            whole = (rest > line.blue[0]) & (rest < line.red[1])
            width, measured = equivalent_width(grid, one, nothing, line, float(v))
            if measured.all() and seen[i, whole].mean() >= OBSERVED:
                mean[i], std[i], lacking[i] = width.mean(), width.std(), False
        about = {"unit": u.AA, "description": f"equivalent width of {name}, at rest"}
        columns[column] = MaskedColumn(mean, mask=lacking, **about)
        if drawn:
            about["description"] = f"standard deviation of {column}"
            columns[f"{column}_err"] = MaskedColumn(std, mask=lacking, **about)
    return columns
