"""From the star to the observed spectrum: Doppler shift, extinction and flux calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesspec.grid import WavelengthGrid
from bayesspec.physics.doppler import Shift

__all__ = ["Passage"]

VELOCITY, DUST, ARMS = "velocity_offset", "ebv_excess", "arm_step"
"""Names of the first latents: velocity (km/s) and E(B-V) (mag), both relative to the library stars; log ratio
of the red arm's flux scale to the blue arm's."""


TAIL = 5.0
"""Degrees of freedom of the priors: values of ten widths are possible, and the variance is finite."""


class Passage(nn.Module):
    r"""From a spectrum at rest to the observed one: :math:`s = e^{K q}\,\mathrm{shift}_v(s_0)`.

    The P latents x are the radial velocity v and E(B-V), both relative to the library stars, a step between
    the arms of the spectrograph, and coefficients of smooth modes of flux-calibration error. Each is small
    for most stars and large for a few, so the priors are Student-t with 5 degrees of freedom,

    .. math:: v = \varsigma_v x_1, \quad q_k = \varsigma_k x_{k+1}, \quad x \sim t_5(0, 1).

    Arguments:
        size: D, pixels of the grid.
        modes: Q, the number of factors: the extinction curve, the step between the arms, calibration modes.
        widths: Widths of the priors, P = Q + 1 numbers, in km/s, magnitudes and log flux. The latents are in
            these units.
        grid: Arguments of the wavelength grid, for the shift.

    Example:
        >>> passage = Passage(2048, 1, (40.0, 0.1), WavelengthGrid().to_dict())
        >>> rest, x = torch.rand(3, 2048), torch.zeros(3, 2)
        >>> torch.equal(passage(rest, x), rest)
        True
    """

    curves: Tensor
    widths: Tensor

    def __init__(self, size: int, modes: int, widths: Sequence[float], grid: dict[str, Any]) -> None:
        super().__init__()
        if len(widths) != modes + 1:
            raise ValueError(f"a passage of {modes} modes needs {modes + 1} widths, not {len(widths)}")
        self.config: dict[str, Any] = {"size": size, "modes": modes, "widths": list(widths), "grid": grid}
        self.grid = WavelengthGrid(**grid)
        self.register_buffer("curves", torch.zeros(modes, size))
        self.register_buffer("widths", torch.tensor(list(widths), dtype=torch.float32), persistent=False)

    @property
    def dim(self) -> int:
        """P, the number of latents."""
        return len(self.widths)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the P latents."""
        return (VELOCITY, DUST, ARMS, *(f"calibration {k}" for k in range(1, self.dim)))[: self.dim]

    def forward(self, rest: Tensor, x: Tensor) -> Tensor:
        """Observed-frame spectra (..., D) of spectra at rest (..., D) and latents (..., P)."""
        return self.throughput(x) * self.shift(x).apply(rest)

    def physical(self, x: Tensor) -> Tensor:
        """Velocity in km/s, E(B-V) in mag, and log factors, (..., P), of latents (..., P)."""
        return x * self.widths.to(x.dtype)

    def latents(self, v: Tensor, q: Tensor) -> Tensor:
        """The inverse: latents (..., P) of velocities (...) in km/s and log factors (..., P - 1)."""
        return torch.cat([v[..., None], q], dim=-1) / self.widths.to(v.dtype)

    def shift(self, x: Tensor) -> Shift:
        """The Doppler shift of latents (..., P)."""
        return Shift(self.physical(x)[..., 0], self.grid)

    def throughput(self, x: Tensor) -> Tensor:
        """The smooth factor on the flux, (..., D)."""
        return (self.physical(x)[..., 1:] @ self.curves.to(x.dtype)).exp()

    def jacobian(self, rest: Tensor, by_rest: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The spectrum, (N, D), and its derivatives with respect to x, (N, D, P), and y, (N, D, M).

        Arguments:
            rest: (N, D).
            by_rest: Derivatives of `rest` with respect to any M parameters y, (N, D, M).
            x: (N, P).
        """
        shift, factor = self.shift(x), self.throughput(x)
        spectrum = factor * shift.apply(rest)
        by_velocity = factor * shift.slope(rest)
        by_modes = spectrum[..., None] * self.curves.to(x.dtype).T
        by_x = torch.cat([by_velocity[..., None], by_modes], dim=-1) * self.widths.to(x.dtype)
        return spectrum, by_x, factor[..., None] * shift.apply_columns(by_rest)

    def velocity_prior(self) -> dist.StudentT:
        """Prior of v in km/s, batch shape ()."""
        return dist.StudentT(TAIL, torch.zeros_like(self.widths[0]), self.widths[0])

    def factor_prior(self) -> dist.StudentT:
        """Prior of q, magnitudes and log factors, batch shape (P - 1,)."""
        return dist.StudentT(TAIL, torch.zeros_like(self.widths[1:]), self.widths[1:])

    def log_prob(self, x: Tensor) -> Tensor:
        """Log prior density of latents (..., P), (...); -inf where they are not finite."""
        physical = self.physical(x)
        finite = physical.isfinite()
        real = torch.where(finite, physical, 0.0)  # optimisers try such values; distributions refuse NaN
        v, q = real[..., 0], real[..., 1:]
        found = self.velocity_prior().log_prob(v) + self.factor_prior().to_event(1).log_prob(q)
        return torch.where(finite.all(-1), found + self.widths.log().sum(), -torch.inf)
