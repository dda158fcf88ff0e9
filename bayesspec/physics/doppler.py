"""The Doppler shift of spectra on the model's grid, by interpolation with exact derivatives."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bayesspec.grid import WavelengthGrid

__all__ = ["SPEED_OF_LIGHT", "Shift"]

SPEED_OF_LIGHT = 299_792.458
"""km / s."""


class Shift:
    """Rest-frame positions and interpolation weights of the pixels of N observed spectra.

    A pixel at observed wavelength :math:`\\lambda` has the rest wavelength :math:`\\lambda / (1 + v / c)`.
    The rest-frame spectrum is interpolated there by cubic convolution over four pixels, which is continuous
    with its derivative. Beyond the ends of the grid it is constant.

    References:
        | Keys 1981, Cubic convolution interpolation, IEEE Trans. ASSP 29, 1153

    Arguments:
        velocity: Radial velocity in km/s, positive for recession, (...,).
        grid: Wavelength grid of both frames, D pixels.

    Example:
        >>> grid = WavelengthGrid(size=2048)
        >>> line = 1 - torch.exp(-0.5 * ((torch.as_tensor(grid.wavelength) - 6564.6) / 8) ** 2)
        >>> moved = Shift(torch.tensor(300.0, dtype=torch.float64), grid).apply(line)
        >>> round(float(grid.wavelength[moved.argmin()] - 6564.6))
        7
    """

    def __init__(self, velocity: Tensor, grid: WavelengthGrid) -> None:
        pixel = torch.arange(grid.size, dtype=velocity.dtype, device=velocity.device)
        ratio = 1 + velocity[..., None] / SPEED_OF_LIGHT
        if grid.log:
            step = torch.log(torch.tensor(grid.stop / grid.start, dtype=torch.float64)) / (grid.size - 1)
            offset = -torch.log(ratio) / step
            self._slope = -1 / (SPEED_OF_LIGHT * ratio * step)
        else:
            # pixel * step + start = (rest pixel * step + start) * ratio
            position = pixel + grid.start * (grid.size - 1) / (grid.stop - grid.start)
            offset = position * (1 / ratio - 1)
            self._slope = -position / (SPEED_OF_LIGHT * ratio.square())
        whole = torch.floor(offset)
        self._fraction = offset - whole
        self._first = (pixel + whole).detach().long().expand(*velocity.shape, grid.size) - 1
        self._last = grid.size - 1

    def apply(self, spectrum: Tensor) -> Tensor:
        """Observed-frame spectra (..., D) of rest-frame spectra (..., D)."""
        return self._sum(spectrum, self._weights())

    def slope(self, spectrum: Tensor) -> Tensor:
        """Derivatives of the observed-frame spectra with respect to velocity, per km/s, (..., D)."""
        return self._sum(spectrum, self._weight_slopes()) * self._slope

    def apply_columns(self, columns: Tensor) -> Tensor:
        """Observed-frame columns (N, D, P) of rest-frame columns (N, D, P)."""
        row = torch.arange(len(columns), device=columns.device)[:, None]
        parts = zip(self._weights(), self._places(), strict=True)
        return functools.reduce(
            torch.add, (weight[..., None] * columns[row, place] for weight, place in parts)
        )

    def lacks(self, mask: Tensor) -> Tensor:
        """True where one of the four pixels is masked, `mask` (..., D), or beyond the grid, (..., D)."""
        beyond = (self._first < 0) | (self._first + 3 > self._last)
        return beyond | (self._sum(mask.to(self._fraction.dtype), (torch.ones_like(self._fraction),) * 4) > 0)

    def _sum(self, spectrum: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        shape = torch.broadcast_shapes(spectrum.shape, self._first.shape)
        whole, parts = spectrum.expand(shape), zip(weights, self._places(), strict=True)
        return functools.reduce(torch.add, (w * whole.gather(-1, place.expand(shape)) for w, place in parts))

    def _places(self) -> list[Tensor]:
        return [(self._first + k).clamp(0, self._last) for k in range(4)]

    def _weights(self) -> tuple[Tensor, ...]:
        t = self._fraction
        return (
            ((-0.5 * t + 1.0) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1.0,
            ((-1.5 * t + 2.0) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        )

    def _weight_slopes(self) -> tuple[Tensor, ...]:
        t = self._fraction
        return (
            (-1.5 * t + 2.0) * t - 0.5,
            (4.5 * t - 5.0) * t,
            (-4.5 * t + 4.0) * t + 0.5,
            (1.5 * t - 1.0) * t,
        )
