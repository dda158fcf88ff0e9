"""Priors of velocity, dust and flux calibration. Nothing here is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bayesspec.grid import WavelengthGrid
from bayesspec.nn import Passage
from bayesspec.physics.throughput import arm_mode, calibration_modes, extinction_mode

__all__ = ["PassageRecipe", "make_passage"]


@dataclass(frozen=True)
class PassageRecipe:
    """Velocity, dust and calibration: scales of the Student-t priors with five degrees of freedom.

    Arguments:
        velocity: km/s, relative to the library stars.
        dust: E(B-V) relative to the library stars, magnitudes.
        arms: Log ratio of the red arm's flux scale to the blue arm's.
        calibration: Log flux of each calibration mode.
        modes: Number of Legendre polynomials of the wavelength, from degree 1.
    """

    velocity: float = 40.0
    dust: float = 0.1
    arms: float = 0.015
    calibration: float = 0.03
    modes: int = 4


def make_passage(grid: WavelengthGrid, recipe: PassageRecipe) -> Passage:
    """The `Passage` on a grid."""
    widths = recipe.velocity, recipe.dust, recipe.arms, *[recipe.calibration] * recipe.modes
    passage = Passage(grid.size, len(widths) - 1, widths, grid.to_dict())
    curves = extinction_mode(grid), arm_mode(grid), *calibration_modes(grid, recipe.modes)
    passage.curves.copy_(torch.as_tensor(np.stack(curves)))
    return passage
