"""Where to start: every training latent tried on every spectrum, by matrix products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bayesspec.model import SCALE_WIDTH, StellarModel
from bayesspec.observation import ObservationBatch

__all__ = ["LatentScan", "Starts"]


APART = 0.15
"""Distance, in per-pixel rms, from which on two latents are different places to start from."""


MISFIT = 0.05
"""What separates a star from the nearest training star, in mean flux: no pixel is known better than that."""


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
        score, log_scale = self._fit(batch)
        n, classes = len(batch), len(self.model.classes)
        best = score.new_full((n, classes), -torch.inf).scatter_reduce(
            1, self.klass.expand(n, -1), score, reduce="amax"
        )
        klass = best.topk(min(count, classes), dim=-1).indices
        own = torch.where(self.klass == klass[..., None], score[:, None], -torch.inf)
        row = own.argmax(-1)
        return Starts(
            self.z[row], log_scale.transpose(1, 2)[torch.arange(n, device=row.device)[:, None], row], klass
        )

    @torch.no_grad()
    def spread(self, batch: ObservationBatch, count: int) -> Starts:
        """The best latents of any class that are `APART` from each other, with the scales that fit them.

        Where one arm is all there is, spectra far apart may fit it: their modes may be of one class.
        """
        score, log_scale = self._fit(batch)
        star = torch.arange(len(batch), device=score.device)
        rows = []
        for _ in range(count):
            rows.append(score.argmax(-1))
            near = (self.z - self.z[rows[-1]][:, None]).square().sum(-1) < APART**2
            score = torch.where(near, -torch.inf, score)
        row = torch.stack(rows, dim=-1)
        return Starts(self.z[row], log_scale.transpose(1, 2)[star[:, None], row], self.klass[row])

    def _fit(self, batch: ObservationBatch) -> tuple[Tensor, Tensor]:
        """Approximate log posterior of every latent, (N, M), and its log scales, (N, E, M)."""
        observed = (~batch.mask).to(batch.flux.dtype)
        count = observed.sum(-1, keepdim=True)
        if self.model.residual is not None:
            observed = observed * _relative_weight(batch, count)
        flux = torch.where(batch.mask, 0.0, batch.flux)
        power = observed @ self.templates.square().T
        cross = (observed * flux) @ self.templates.T
        square = (observed * flux.square()).sum(-1, keepdim=True)

        # The scale that fits best where it is free: from sums of squares, as y = a (s + noise).
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
