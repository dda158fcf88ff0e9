"""Smooth factors on a star's flux: extinction by dust, and flux-calibration error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bayesspec.grid import WavelengthGrid

__all__ = ["arm_mode", "calibration_modes", "extinction_mode"]

BORDER = 6000.0
"""Wavelength in Angstrom where the blue and red arms of BOSS and LAMOST join, to within 300 Angstrom."""


def extinction_mode(grid: WavelengthGrid, r_v: float = 3.1) -> NDArray[np.float64]:
    r"""Derivative of log flux with respect to E(B-V), (D,), up to a constant, which the scale absorbs.

    The curve of Fitzpatrick 1999, from `dust_extinction`, minus its mean over the grid.

    References:
        | Fitzpatrick 1999, PASP 111, 63

    Arguments:
        grid: Wavelengths, vacuum.
        r_v: Ratio of total to selective extinction.
    """
    from astropy import units as u
    from dust_extinction.parameter_averages import F99

    magnitudes = r_v * F99(Rv=r_v)(grid.wavelength * u.AA)  # A(lambda) of E(B-V) = 1
    mode = -0.4 * np.log(10.0) * np.asarray(magnitudes)
    return mode - mode.mean()


def arm_mode(grid: WavelengthGrid) -> NDArray[np.float64]:
    """Derivative of log flux with respect to the log ratio of red to blue arm, (D,), minus its mean."""
    mode = (grid.wavelength > BORDER).astype(float)
    return mode - mode.mean()


def calibration_modes(grid: WavelengthGrid, count: int) -> NDArray[np.float64]:
    """Legendre polynomials of degree 1 to `count` along the grid, (count, D)."""
    x = np.linspace(-1.0, 1.0, grid.size)
    return np.stack([np.polynomial.legendre.Legendre.basis(k)(x) for k in range(1, count + 1)])
