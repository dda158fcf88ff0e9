"""Where to start: every training latent tried on every spectrum, by matrix products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.model import SCALE_WIDTH, StellarModel
from bayesspec.nn import Passage
from bayesspec.noise_level import NORMAL_MEDIAN
from bayesspec.physics.doppler import SPEED_OF_LIGHT, Shift

__all__ = ["LatentScan", "Starts"]


APART = 0.15
"""Distance, in per-pixel rms, from which on two latents are different places to start from."""


MISFIT = 0.05
"""What separates a star from the nearest training star, in mean flux: no pixel is known better than that."""

BRIGHTEST = 10.0
"""Flux, in units of the spectrum's, that a pixel has at most in a first look, before its misfit is known."""

VELOCITIES = torch.arange(-600.0, 601.0, 60.0)
"""km/s; velocities that are tried first: a climb finds its way from half a step."""

DUST = torch.tensor([0.0, -0.25, 0.25, 0.5, 0.9, 1.4, 2.0])
"""E(B-V) that are tried first."""

CLOSER_VELOCITIES, CLOSER_DUST = torch.arange(-40.0, 41.0, 20.0), torch.tensor([-0.12, 0.0, 0.12])
"""What is tried about the best of these."""

SAMPLE = 16
"""Training latents of each class that these are tried with, as far from each other as can be."""

STICKS_OUT = 5.0
"""Misfit, in robust standard deviations, from which on a pixel has little say in where to start."""


class Starts(NamedTuple):
    """S starts for each of N spectra, the likeliest first."""

    z: Tensor
    """(N, S, L + P + R), w = 0."""
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
        # Of the model itself nothing is kept, so that a scan that is kept does not keep the model.
        self.passage, self.residual_dim = model.passage, model.residual_dim
        self.classes = len(model.classes)
        self.z = prior.centres[filled]
        self.klass = filled.nonzero()[:, 0]
        self.templates = torch.cat([model.generator(z) for z in self.z.split(512)])
        if model.passage is not None:
            sample = torch.cat([_far_apart(self.z, self.klass == k) for k in self.klass.unique()])
            self.sample = self.templates[sample]

    @torch.no_grad()
    def starts(self, batch: ObservationBatch, count: int) -> Starts:
        """The best latent of each of the most promising classes, with the scales that fit it.

        Arguments:
            batch: N stars.
            count: S, cut to the number of classes: starts are spread over the modes, not gathered in one.
        """
        return self._best_of_classes(self._fit(batch), count)

    @torch.no_grad()
    def spread(self, batch: ObservationBatch, count: int) -> Starts:
        """The best latents of any class that are `APART` from each other, with the scales that fit them.

        Where one arm is all there is, spectra far apart may fit it: their modes may be of one class.
        """
        return self._best_apart(self._fit(batch), count)

    @torch.no_grad()
    def starts_and_spread(self, batch: ObservationBatch, by_class: int, apart: int) -> Starts:
        """Those of `starts`, and after them those of `spread`."""
        found = self._fit(batch)
        parts = self._best_of_classes(found, by_class), self._best_apart(found, apart)
        return Starts(*(torch.cat(column, dim=1) for column in zip(*parts, strict=True)))

    def _best_of_classes(self, found: _Found, count: int) -> Starts:
        n, classes = len(found.score), self.classes
        klass = self.klass.repeat(found.copies)
        best = found.score.new_full((n, classes), -torch.inf).scatter_reduce(
            1, klass.expand(n, -1), found.score, reduce="amax"
        )
        chosen = best.topk(min(count, classes), dim=-1).indices
        own = torch.where(klass == chosen[..., None], found.score[:, None], -torch.inf)
        return self._at(own.argmax(-1), found)

    def _best_apart(self, found: _Found, count: int) -> Starts:
        rows, score, z = [], found.score, self.z.repeat(found.copies, 1)
        for _ in range(count):
            rows.append(score.argmax(-1))
            near = (z - z[rows[-1]][:, None]).square().sum(-1) < APART**2
            score = torch.where(near, -torch.inf, score)
        return self._at(torch.stack(rows, dim=-1), found)

    def _at(self, row: Tensor, found: _Found) -> Starts:
        star = torch.arange(len(row), device=row.device)[:, None]
        template = row % len(self.z)
        z = self.z[template]
        parts = [z, z.new_zeros(*row.shape, self.residual_dim)]
        if found.x is not None:
            parts.insert(1, found.x[star, row // len(self.z)])
        log_scale = found.log_scale.transpose(1, 2)[star, row]
        return Starts(torch.cat(parts, dim=-1), log_scale, self.klass[template])

    def _fit(self, batch: ObservationBatch) -> _Found:
        """How well every training latent fits, at rest without dust, and as the star may move and be red."""
        count = (~batch.mask).sum(-1, keepdim=True).to(batch.flux.dtype)
        weight = (~batch.mask).to(batch.flux.dtype)
        if self.residual_dim:
            weight = _relative_weight(batch, count)
        flux = torch.where(batch.mask, 0.0, batch.flux)
        here = self._fit_robustly(batch.free_scale, flux, weight, count)
        passage = self.passage
        if passage is None:
            return _Found(*here, None)
        x = self._passage(passage, batch, flux.clamp(-BRIGHTEST, BRIGHTEST), weight, count)
        back = _taken_back(passage, flux, weight, batch.mask, x)
        there = self._fit_robustly(batch.free_scale, *back, count)
        prior = passage.log_prob(torch.stack([torch.zeros_like(x), x]))
        score = torch.cat([here[0] + prior[0][:, None], there[0] + prior[1][:, None]], dim=-1)
        return _Found(
            score, torch.cat([here[1], there[1]], dim=-1), torch.stack([torch.zeros_like(x), x], dim=1)
        )

    def _passage(
        self, passage: Passage, batch: ObservationBatch, flux: Tensor, weight: Tensor, count: Tensor
    ) -> Tensor:
        """The velocity and the dust, (N, P), with which one of a sample of training stars fits best."""
        best = flux.new_full((len(flux),), -torch.inf)
        x = flux.new_zeros(len(flux), passage.dim)
        grids = (VELOCITIES, DUST), (CLOSER_VELOCITIES, CLOSER_DUST)
        for velocities, dust in grids:
            middle = x.clone()
            for velocity in velocities.to(flux):
                for ebv in dust.to(flux):
                    here = middle.clone()
                    here[:, 0] += velocity / passage.widths[0]
                    here[:, 1] += ebv / passage.widths[1]
                    taken = _taken_back(passage, flux, weight, batch.mask, here)
                    score, _ = self._compare(batch.free_scale, *taken, count, self.sample)
                    score = score.amax(-1) + passage.log_prob(here)
                    better = score > best
                    best, x = torch.where(better, score, best), torch.where(better[:, None], here, x)
        return x

    def _fit_robustly(
        self, free_scale: Tensor, flux: Tensor, weight: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Approximate log posterior of every latent, (N, M), and its log scales, (N, E, M).

        A cosmic ray must not say where to start: what sticks out of the best template is weighed down, and
        all are compared anew.
        """
        bounded = flux.clamp(-BRIGHTEST, BRIGHTEST)
        score, log_scale = self._compare(free_scale, bounded, weight, count, self.templates)
        best = score.argmax(-1)
        scale = log_scale[torch.arange(len(best), device=best.device), :, best].exp()[..., None]
        away = (flux / scale - self.templates[best][:, None]).abs() * weight.sqrt()
        usual = torch.where(weight > 0, away, torch.nan).nanmedian(-1, keepdim=True).values.nan_to_num(1.0)
        away = away / (STICKS_OUT * NORMAL_MEDIAN * usual.clamp_min(1e-6))
        return self._compare(free_scale, flux, weight / (1 + away.square()), count, self.templates)

    @staticmethod
    def _compare(
        free_scale: Tensor, flux: Tensor, weight: Tensor, count: Tensor, templates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same by weighted sums of squares; flux and weight (N, E, D), observed pixels (N, E, 1)."""
        power = weight @ templates.square().T
        cross = (weight * flux) @ templates.T
        square = (weight * flux.square()).sum(-1, keepdim=True)

        # The scale that fits best where it is free, as y = a (s + noise).
        free = free_scale[..., None]
        scale = torch.where(free & (cross > 0), cross / power.clamp_min(1e-12), 1.0)
        misfit = square / scale.square() - 2 * cross / scale + power
        log_scale = scale.log()
        penalty = torch.where(free, 0.5 * (log_scale / SCALE_WIDTH).square(), 0.0) + count * log_scale

        # White noise of the variance that fits best: a start must not depend on knowing the noise.
        pixels = count.sum(1)
        variance = (misfit * (count > 0)).sum(1).clamp_min(1e-12) / pixels
        return -0.5 * pixels * variance.log() - penalty.sum(1), log_scale


class _Found(NamedTuple):
    """Of C passages, one after the other, of M training latents each."""

    score: Tensor
    """Approximate log posterior, (N, C M)."""
    log_scale: Tensor
    """(N, E, C M)."""
    x: Tensor | None
    """The passages, (N, C, P); None for one without."""

    @property
    def copies(self) -> int:
        """C."""
        return 1 if self.x is None else self.x.shape[1]


def _taken_back(
    passage: Passage, flux: Tensor, weight: Tensor, mask: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Flux and weight (N, E, D) as they would be of the star at rest, without dust, for x (N, P)."""
    ratio = 1 + passage.physical(x)[:, None, 0] / SPEED_OF_LIGHT
    back = Shift(SPEED_OF_LIGHT * (1 / ratio - 1), passage.grid)
    factor = passage.throughput(x)[:, None]
    flux, weight = back.apply(flux / factor), back.apply(weight * factor.square())
    return flux, torch.where(back.lacks(mask), 0.0, weight.clamp_min(0.0))


def _far_apart(z: Tensor, among: Tensor) -> Tensor:
    """Positions of `SAMPLE` latents (M, L) `among` (M,) that are as far from each other as can be."""
    own = among.nonzero()[:, 0]
    chosen = [own[(z[own] - z[own].mean(0)).square().sum(-1).argmin()]]
    away = (z[own] - z[chosen[0]]).square().sum(-1)
    for _ in range(min(SAMPLE, len(own)) - 1):
        chosen.append(own[away.argmax()])
        away = torch.minimum(away, (z[own] - z[chosen[-1]]).square().sum(-1))
    return torch.stack(chosen)


def _relative_weight(batch: ObservationBatch, count: Tensor) -> Tensor:
    """Weights of the pixels, (N, E, D), of mean 1 over those observed: what the noise is beside `MISFIT`."""
    weight = torch.where(batch.mask, 0.0, batch.ivar / (1 + MISFIT**2 * batch.ivar))
    return weight * count / weight.sum(-1, keepdim=True).clamp_min(1e-12)
