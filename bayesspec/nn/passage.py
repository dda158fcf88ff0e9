"""The passage of a star's light to us: it is shifted by the star's velocity and dimmed by smooth factors."""

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
"""What its first latents stand for: velocity, km/s, and E(B-V), magnitudes, beyond those of library stars;
log ratio of the red arm's flux scale to the blue one's."""


TAIL = 5.0
"""Degrees of freedom: stars of ten widths are possible, and where data say nothing there is a variance."""


class Passage(nn.Module):
    r"""From a spectrum at rest to the one that reaches us: :math:`s = e^{K q}\,\mathrm{shift}_v(s_0)`.

    The P latents x are the radial velocity v and E(B-V), each beyond what the library's stars have, a step
    between the arms of the spectrograph, and coefficients of smooth modes of flux calibration. Most stars
    have next to none of each, a few have much: priors are Student-t of 5 degrees of freedom,

    .. math:: v = \varsigma_v x_1, \quad q_k = \varsigma_k x_{k+1}, \quad x \sim t_5(0, 1).

    Arguments:
        size: D, pixels of the grid.
        modes: Q, factors: the extinction curve, the step between the arms, modes of flux calibration.
        widths: Of the priors, P = Q + 1 numbers: km/s, magnitudes, log flux; the units of the latents.
        grid: Arguments of the wavelength grid, which the shift needs.

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
        """P."""
        return len(self.widths)

    @property
    def names(self) -> tuple[str, ...]:
        """Of what the latents stand for."""
        return (VELOCITY, DUST, ARMS, *(f"calibration {k}" for k in range(1, self.dim)))[: self.dim]

    def forward(self, rest: Tensor, x: Tensor) -> Tensor:
        """Spectra (..., D) as they reach us, of spectra at rest (..., D) and latents (..., P)."""
        return self.throughput(x) * self.shift(x).apply(rest)

    def physical(self, x: Tensor) -> Tensor:
        """Velocity, km/s, E(B-V), magnitudes, and log factors, (..., P), of latents (..., P)."""
        return x * self.widths.to(x.dtype)

    def latents(self, v: Tensor, q: Tensor) -> Tensor:
        """The inverse: latents (..., P) of velocities (...), km/s, and log factors (..., P - 1)."""
        return torch.cat([v[..., None], q], dim=-1) / self.widths.to(v.dtype)

    def shift(self, x: Tensor) -> Shift:
        """The Doppler shift of latents (..., P)."""
        return Shift(self.physical(x)[..., 0], self.grid)

    def throughput(self, x: Tensor) -> Tensor:
        """The smooth factor, (..., D)."""
        return (self.physical(x)[..., 1:] @ self.curves.to(x.dtype)).exp()

    def jacobian(self, rest: Tensor, by_rest: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Spectrum, (N, D), its derivatives by x, (N, D, P), and by what the spectrum at rest goes with.

        Arguments:
            rest: (N, D).
            by_rest: Derivatives of `rest` by something, (N, D, M).
            x: (N, P).
        """
        shift, factor = self.shift(x), self.throughput(x)
        spectrum = factor * shift.apply(rest)
        by_velocity = factor * shift.slope(rest)
        by_modes = spectrum[..., None] * self.curves.to(x.dtype).T
        by_x = torch.cat([by_velocity[..., None], by_modes], dim=-1) * self.widths.to(x.dtype)
        return spectrum, by_x, factor[..., None] * shift.apply_columns(by_rest)

    def velocity_prior(self) -> dist.StudentT:
        """Of v, km/s, batch shape ()."""
        return dist.StudentT(TAIL, torch.zeros_like(self.widths[0]), self.widths[0])

    def factor_prior(self) -> dist.StudentT:
        """Of q, magnitudes and log factors, batch shape (P - 1,)."""
        return dist.StudentT(TAIL, torch.zeros_like(self.widths[1:]), self.widths[1:])

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of latents (..., P), (...), by the two priors; of what is not finite, -inf."""
        physical = self.physical(x)
        finite = physical.isfinite()
        real = torch.where(finite, physical, 0.0)  # a climb may be anywhere, and distributions refuse NaN
        v, q = real[..., 0], real[..., 1:]
        found = self.velocity_prior().log_prob(v) + self.factor_prior().to_event(1).log_prob(q)
        return torch.where(finite.all(-1), found + self.widths.log().sum(), -torch.inf)
