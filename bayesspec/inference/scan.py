"""Where to start: every training latent tried on every spectrum, by matrix products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bayesspec.model import SCALE_WIDTH, StellarModel
from bayesspec.noise_level import NORMAL_MEDIAN
from bayesspec.observation import ObservationBatch

__all__ = ["LatentScan", "Starts"]


APART = 0.15
"""Distance, in per-pixel rms, from which on two latents are different places to start from."""


MISFIT = 0.05
"""What separates a star from the nearest training star, in mean flux: no pixel is known better than that."""

BRIGHTEST = 10.0
"""Flux, in units of the spectrum's, that a pixel has at most in a first look, before its misfit is known."""

STICKS_OUT = 5.0
"""Misfit, in robust standard deviations, from which on a pixel has little say in where to start."""


class Starts(NamedTuple):
    """S starts for each of N spectra, the likeliest first."""

    z: Tensor
    """(N, S, L + R), w = 0."""
    log_scale: Tensor
    """(N, S, E)."""
    klass: Tensor
    """(N, S)."""


class LatentScan:
    """The decoded training latents of a model, ready to be compared with observations.

    Arguments:
        model: Its class prior's centres are the training latents.

    Example:
        >>> import numpy as np
        >>> from bayesspec import Observation, load_model
        >>> model = load_model("kang2021")
        >>> star = Observation(model.grid.wavelength, np.ones(2048))
        >>> batch = ObservationBatch.from_observations([star], model.grid)
        >>> LatentScan(model).starts(batch, 4).z.shape
        torch.Size([1, 4, 3])
    """

    @torch.no_grad()
    def __init__(self, model: StellarModel) -> None:
        prior = model.prior
        filled = prior.log_weights > -torch.inf
        self.model = model
        centres = prior.centres[filled]
        self.z = torch.cat([centres, centres.new_zeros(len(centres), model.residual_dim)], dim=-1)
        self.klass = filled.nonzero()[:, 0]
        self.templates = torch.cat([model.generator(z) for z in centres.split(512)])

    @torch.no_grad()
    def starts(self, batch: ObservationBatch, count: int) -> Starts:
        """The best latent of each of the most promising classes, with the scales that fit it.

        Arguments:
            batch: N stars.
            count: S, cut to the number of classes: starts are spread over the modes, not gathered in one.
        """
        return self._best_of_classes(*self._fit(batch), count)

    @torch.no_grad()
    def spread(self, batch: ObservationBatch, count: int) -> Starts:
        """The best latents of any class that are `APART` from each other, with the scales that fit them.

        Where one arm is all there is, spectra far apart may fit it: their modes may be of one class.
        """
        return self._best_apart(*self._fit(batch), count)

    @torch.no_grad()
    def starts_and_spread(self, batch: ObservationBatch, by_class: int, apart: int) -> Starts:
        """Those of `starts`, and after them those of `spread`."""
        found = self._fit(batch)
        parts = self._best_of_classes(*found, by_class), self._best_apart(*found, apart)
        return Starts(*(torch.cat(column, dim=1) for column in zip(*parts, strict=True)))

    def _best_of_classes(self, score: Tensor, log_scale: Tensor, count: int) -> Starts:
        n, classes = len(score), len(self.model.classes)
        best = score.new_full((n, classes), -torch.inf).scatter_reduce(
            1, self.klass.expand(n, -1), score, reduce="amax"
        )
        klass = best.topk(min(count, classes), dim=-1).indices
        own = torch.where(self.klass == klass[..., None], score[:, None], -torch.inf)
        return self._at(own.argmax(-1), log_scale)

    def _best_apart(self, score: Tensor, log_scale: Tensor, count: int) -> Starts:
        rows = []
        for _ in range(count):
            rows.append(score.argmax(-1))
            near = (self.z - self.z[rows[-1]][:, None]).square().sum(-1) < APART**2
            score = torch.where(near, -torch.inf, score)
        return self._at(torch.stack(rows, dim=-1), log_scale)

    def _at(self, row: Tensor, log_scale: Tensor) -> Starts:
        star = torch.arange(len(row), device=row.device)[:, None]
        return Starts(self.z[row], log_scale.transpose(1, 2)[star, row], self.klass[row])

    def _fit(self, batch: ObservationBatch) -> tuple[Tensor, Tensor]:
        """Approximate log posterior of every latent, (N, M), and its log scales, (N, E, M).

        A cosmic ray must not say where to start: what sticks out of the best template is weighed down, and
        all are compared anew.
        """
        count = (~batch.mask).sum(-1, keepdim=True).to(batch.flux.dtype)
        weight = (~batch.mask).to(batch.flux.dtype)
        if self.model.residual is not None:
            weight = _relative_weight(batch, count)
        flux = torch.where(batch.mask, 0.0, batch.flux)
        score, log_scale = self._compare(batch, flux.clamp(-BRIGHTEST, BRIGHTEST), weight, count)
        best = score.argmax(-1)
        scale = log_scale[torch.arange(len(best), device=best.device), :, best].exp()[..., None]
        away = (flux / scale - self.templates[best][:, None]).abs() * weight.sqrt()
        usual = torch.where(batch.mask, torch.nan, away).nanmedian(-1, keepdim=True).values.nan_to_num(1.0)
        away = away / (STICKS_OUT * NORMAL_MEDIAN * usual.clamp_min(1e-6))
        return self._compare(batch, flux, weight / (1 + away.square()), count)

    def _compare(
        self, batch: ObservationBatch, flux: Tensor, weight: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`_fit` by weighted sums of squares; flux and weight (N, E, D), observed pixels (N, E, 1)."""
        power = weight @ self.templates.square().T
        cross = (weight * flux) @ self.templates.T
        square = (weight * flux.square()).sum(-1, keepdim=True)

        # The scale that fits best where it is free, as y = a (s + noise).
        free = batch.free_scale[..., None]
        scale = torch.where(free & (cross > 0), cross / power.clamp_min(1e-12), 1.0)
        misfit = square / scale.square() - 2 * cross / scale + power
        log_scale = scale.log()
        penalty = torch.where(free, 0.5 * (log_scale / SCALE_WIDTH).square(), 0.0) + count * log_scale

        # White noise of the variance that fits best: a start must not depend on knowing the noise.
        pixels = count.sum(1)
        variance = (misfit * (count > 0)).sum(1).clamp_min(1e-12) / pixels
        return -0.5 * pixels * variance.log() - penalty.sum(1), log_scale


def _relative_weight(batch: ObservationBatch, count: Tensor) -> Tensor:
    """Weights of the pixels, (N, E, D), of mean 1 over those observed: what the noise is beside `MISFIT`."""
    weight = torch.where(batch.mask, 0.0, batch.ivar / (1 + MISFIT**2 * batch.ivar))
    return weight * count / weight.sum(-1, keepdim=True).clamp_min(1e-12)
