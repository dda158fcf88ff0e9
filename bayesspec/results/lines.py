"""Equivalent widths of strong lines, in the rest frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayesspec.grid import WavelengthGrid
from bayesspec.physics.doppler import SPEED_OF_LIGHT

__all__ = ["LINES", "Line", "equivalent_width"]

Band = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """The bands of a line and its continuum, in vacuum Angstrom.

    Arguments:
        feature: Bands over which the line is integrated.
        blue: Continuum on the blue side.
        red: Continuum on the red side.
    """

    feature: tuple[Band, ...]
    blue: Band
    red: Band


LINES = {
    "H alpha": Line(((6549.8, 6579.8),), (6421.8, 6456.8), (6601.8, 6641.8)),
    "H delta": Line(((4084.7, 4123.4),), (4042.7, 4082.7), (4129.7, 4162.2)),
    "H gamma": Line(((4321.0, 4364.7),), (4284.7, 4321.0), (4368.5, 4421.0)),
    "H beta": Line(((4849.2, 4878.0),), (4829.2, 4849.2), (4878.0, 4893.0)),
    "Ca II triplet": Line(
        ((8486.3, 8515.3), (8524.3, 8564.3), (8644.4, 8684.4)), (8476.3, 8486.3), (8702.4, 8727.4)
    ),
    "Mg b": Line(((5161.6, 5194.1),), (5144.1, 5162.8), (5192.8, 5207.8)),
    "Na D": Line(((5878.5, 5911.0),), (5862.2, 5877.3), (5923.7, 5949.7)),
    "TiO": Line(((6191.3, 6273.8),), (6068.3, 6143.3), (6374.4, 6416.9)),
}
"""Lick bands (Worthey et al. 1994, ApJS 94, 687; TiO is TiO2; H gamma and H delta are the wide ones of
Worthey & Ottaviani 1997, ApJS 111, 377), those of Cenarro et al. 2001 (MNRAS 326, 959) for Ca II, and bands
of similar width for H alpha; converted from air to vacuum."""


def equivalent_width(
    grid: WavelengthGrid, flux: NDArray, mask: NDArray, line: Line, velocity: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Equivalent width of a line in Angstrom, positive in absorption, and whether it was measured, (...,).

    The continuum is the straight line through the mean fluxes of the two sides, as for the Lick indices. The
    width cannot be measured if a pixel of its bands is missing, the continuum is not positive, or the pixels
    are wider than a band; it is then 0.

    Arguments:
        grid: Wavelength grid.
        flux: (..., D), any unit: the width does not depend on it.
        mask: True = bad, (..., D).
        line: One of `LINES`.
        velocity: Velocity of the star, km/s: the bands are shifted by it, and the width is that at rest.

    Example:
        >>> grid = WavelengthGrid()
        >>> spectrum = 2 - np.exp(-0.5 * ((grid.wavelength - 6564.6) / 4) ** 2)
        >>> width, measured = equivalent_width(grid, spectrum, spectrum < -9, LINES["H alpha"])
        >>> round(float(width), 1), bool(measured)  # half of the continuum deep: 0.5 * 4 * sqrt(2 pi)
        (5.0, True)
    """
    doppler = 1 + velocity / SPEED_OF_LIGHT
    edges, wavelength = grid.edges / doppler, grid.wavelength / doppler
    length = np.diff(edges)

    def share(bands: tuple[Band, ...]) -> NDArray[np.float64]:
        """Length of each pixel inside the bands, (D,)."""
        inside = [np.minimum(edges[1:], high) - np.maximum(edges[:-1], low) for low, high in bands]
        return sum(np.clip(part, 0, length) for part in inside)

    feature, sides = share(line.feature), [share((band,)) for band in (line.blue, line.red)]
    narrow = [b - a for a, b in (line.blue, line.red)]
    beyond = any(part.sum() < 0.9 * wide for part, wide in zip(sides, narrow, strict=True))
    if beyond or length[sides[0] + sides[1] > 0].max() > min(narrow):
        nowhere = np.zeros(np.shape(flux)[:-1])
        return nowhere, nowhere.astype(bool)

    seen = ~np.asarray(mask, dtype=bool)
    flux = np.where(seen, flux, 0.0).astype(float)
    used = (feature > 0) | (sides[0] > 0) | (sides[1] > 0)
    level = [flux @ part / part.sum() for part in sides]
    centre = [(wavelength @ part) / part.sum() for part in sides]
    slope = (level[1] - level[0]) / (centre[1] - centre[0])
    continuum = level[0][..., None] + slope[..., None] * (wavelength - centre[0])

    measured = np.all((seen | ~used) & (np.where(feature > 0, continuum, 1.0) > 0), -1)
    safe = np.where(measured[..., None] & (feature > 0), continuum, 1.0)
    width = ((1 - np.where(feature > 0, flux, 1.0) / safe) * feature).sum(-1)
    return np.where(measured, width, 0.0), measured
