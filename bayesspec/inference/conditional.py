"""The many scores w of the residual term given the few numbers of the core: normal, very nearly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.model import StellarModel

from .metric import innovation

__all__ = ["GivenCore"]

ROWS = 256
"""Cores in one pass."""


@dataclass(frozen=True)
class GivenCore:
    r"""Normal distributions of w given the core (z, x, log a, h), one for each of N stars.

    The spectrum is linear in w, :math:`s = s_0 + V g \Lambda(z) w`, with the patterns V as they reach us
    and the size :math:`g = e^{f(h)}`. If the noise is Gaussian, of precision Q, then w, standard normal
    before the data, is normal after it, of precision and mean

    .. math::
        H = 1 + g^2 \Lambda^T V^T Q V \Lambda, \quad H^{-1} g \Lambda^T V^T Q\, (y / a - s_0)

    at *any* core: :math:`s_0` and :math:`\Lambda` are taken where the core is. Q and V are those at one
    point, such as the mode, and so is the score of the data, by which noise that is not Gaussian is replaced
    by the Gaussian that pulls as hard and bends as much there.

    References:
        | Rue, Martino & Chopin 2009, J. R. Stat. Soc. B 71, 319, on normal conditionals of many dimensions

    Arguments:
        model: A model with a residual term.
        batch: N stars.
        pull: V^T Q, (N, E, P, D).
        offset: What the pull on the patterns is beside that on y / a - s0, (N, P).
        precision: V^T Q V, (N, P, P).
    """

    model: StellarModel
    batch: ObservationBatch
    pull: Tensor
    offset: Tensor
    precision: Tensor

    @classmethod
    @torch.no_grad()
    def at(
        cls, model: StellarModel, batch: ObservationBatch, latents: Tensor, log_scale: Tensor
    ) -> GivenCore:
        """With the noise and the patterns as they are at latents (N, L + P + R), log scales (N, E)."""
        clean = model.spectrum(latents)[:, None].expand_as(batch.flux)
        flow = model.likelihood(latents[:, None], clean, log_scale.exp(), batch)
        observed, eps = flow.observed[..., None], flow.residual(batch.flux)
        with torch.enable_grad():
            moving = clean.clone().requires_grad_()
            density = model.likelihood(latents[:, None], moving, log_scale.exp(), batch)
            (score,) = torch.autograd.grad(density.log_prob(batch.flux).sum(), moving)

        patterns = model.residual.basis.T.to(clean.dtype).expand(len(batch), -1, -1)
        if model.passage is not None:
            _, x, _ = model.parts(latents)
            shifted = model.passage.shift(x).apply_columns(patterns)
            patterns = model.passage.throughput(x)[..., None] * shifted
        patterns = torch.where(observed, patterns[:, None], 0.0)

        with torch.enable_grad():  # the transpose of a linear map is what its gradient is made by
            moving = patterns.clone().requires_grad_()
            new = innovation(flow, batch.flux)(moving)
            weighted = new.detach() * flow.curvature(batch.flux)[..., None]
            (pull,) = torch.autograd.grad(new, moving, weighted)
        pull = torch.where(observed, pull, 0.0).mT
        offset = torch.einsum("nedp,ned->np", patterns, score) - torch.einsum("nepd,ned->np", pull, eps)
        # In the tails the noise bends the other way: what is not positive in all is none.
        values, vectors = torch.linalg.eigh((new.detach().mT @ weighted).sum(1))
        precision = (vectors * values.clamp_min(0.0)[:, None]) @ vectors.mT
        return cls(model, batch, pull, offset, precision)

    @property
    def dim(self) -> int:
        """R, of w."""
        return self.model.residual.components

    def select(self, rows: NDArray | Tensor) -> GivenCore:
        """Those of these stars."""
        parts = (part[rows] for part in (self.pull, self.offset, self.precision))
        return GivenCore(self.model, self.batch.select(rows), *parts)

    @torch.no_grad()
    def draw(self, core: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """w, (S, N, R), of cores (S, N, d) from standard normal numbers (S, N, R), and its log density."""
        w, log_volume = [], []
        size = max(1, ROWS // len(self.offset))
        for part, numbers in zip(core.split(size), normal.split(size), strict=True):
            factor, pull = self._moments(part)
            w.append(_solve(factor.mT, _solve(factor, pull) + numbers, upper=True))
            log_volume.append(-_log_det(factor))
        constant = self.dim * math.log(2 * math.pi)
        return torch.cat(w), -torch.cat(log_volume) - 0.5 * (normal.square().sum(-1) + constant)

    @torch.no_grad()
    def moved(self, core: Tensor, w: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """What w (N, R) is at other cores, (N, d), by the same normal numbers; and log |dw' / dw|, (N,)."""
        factor, pull = self._moments(torch.stack([core, new]))
        white = _solve(factor, pull)
        normal = (factor[0].mT @ w[..., None])[..., 0] - white[0]
        log_det = _log_det(factor)
        return _solve(factor[1].mT, white[1] + normal, upper=True), log_det[0] - log_det[1]

    def _moments(self, core: Tensor) -> tuple[Tensor, Tensor]:
        """Lower factor of the precision of w, (..., N, R, R), and precision times mean, (..., N, R)."""
        model, lead = self.model, self.model.lead_dim
        z, h = core[..., : model.latent_dim], core[..., -1:]
        rest = model.generator(z) + model.residual.local_offset(z) @ model.residual.basis.to(z.dtype)
        clean = rest if model.passage is None else model.passage(rest, core[..., model.latent_dim : lead])
        seen = torch.where(self.batch.mask, 0.0, self.batch.flux)
        residual = seen / core[..., lead:-1, None].exp() - clean[..., None, :]
        pull = self.offset + torch.einsum("nepd,...ned->...np", self.pull, residual)
        factor = model.residual.local_factor(z) * model.residual.log_size(h).exp()[..., None]
        precision = factor.mT @ (self.precision @ factor)
        precision.diagonal(dim1=-2, dim2=-1).add_(1.0)
        return torch.linalg.cholesky(precision), (factor.mT @ pull[..., None])[..., 0]


def _solve(factor: Tensor, vector: Tensor, *, upper: bool = False) -> Tensor:
    return torch.linalg.solve_triangular(factor, vector[..., None], upper=upper)[..., 0]


def _log_det(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
