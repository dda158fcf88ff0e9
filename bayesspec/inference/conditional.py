"""The many scores w of the residual term given the few numbers of the core: normal, very nearly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.distributions import SharedDiscrepancy
from bayesspec.model import StellarModel

from .metric import by_knots, innovation

__all__ = ["GivenCore"]

ROWS = 256
"""Cores in one pass."""


@dataclass(frozen=True)
class GivenCore:
    r"""Normal distributions of w given the core (z, x, log a, h), one for each of N stars.

    The spectrum is linear in w, :math:`s = s_0 + S V \Lambda(z) w`, with the patterns V as they reach us
    and the sizes S(h) along the spectrum. If the noise is Gaussian, of precision Q, then w, standard normal
    before the data, is normal after it, of precision and mean

    .. math::
        H = 1 + \Lambda^T V^T S Q S V \Lambda, \quad H^{-1} \Lambda^T V^T S Q\, (y / a - s_0)

    at *any* core: :math:`s_0` and :math:`\Lambda` are taken where the core is. Q and V are those at one
    point, such as the mode, and so is the score of the data, by which noise that is not Gaussian is replaced
    by the Gaussian that pulls as hard and bends as much there.

    References:
        | Rue, Martino & Chopin 2009, J. R. Stat. Soc. B 71, 319, on normal conditionals of many dimensions

    Arguments:
        model: A model with a residual term.
        batch: N stars.
        pull: V^T Q, (N, E, P, D); S, which is smooth, stands before or after Q.
        offset: What the pull on the patterns is beside that on y / a - s0, for a size of 1 at each of the T
            knots and 0 at the others, (N, T, P).
        precision: V^T S Q S V as a sum over products of sizes, see `by_knots`, (N, 2 T - 1, P, P).
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
        clean = model.spectrum(latents)
        flow = model.likelihood(latents, clean, log_scale.exp(), batch)
        observed, eps = flow.seen[..., None], flow.residual(batch.flux)
        curvature = SharedDiscrepancy(flow).curvature(batch.flux).clamp_min(0.0)  # in the tails it is none
        with torch.enable_grad():
            moving = batch.flux.clone().requires_grad_()
            density = model.exposures(latents, clean, log_scale.exp(), batch).log_prob(moving)
            (score,) = torch.autograd.grad(density.sum(), moving)
        score = -log_scale.exp()[..., None] * score  # of y it is that of s, but for the sign and the scale

        residual = model.residual_term
        patterns = residual.basis.T.to(clean.dtype).expand(len(batch), -1, -1)
        if model.passage is not None:
            _, x, _ = model.parts(latents)
            shifted = model.passage.shift(x).apply_columns(patterns)
            patterns = model.passage.throughput(x)[..., None] * shifted
        patterns = torch.where(observed, patterns[:, None], 0.0)

        with torch.enable_grad():  # the transpose of a linear map is what its gradient is made by
            moving = torch.cat([patterns, eps[..., None]], dim=-1).requires_grad_()
            new = innovation(flow, batch.flux)(moving)
            (weighed,) = torch.autograd.grad(new, moving, new.detach() * curvature[..., None])
        pull = torch.where(observed, weighed[..., :-1], 0.0).mT
        beside = score - torch.where(flow.seen, weighed[..., -1], 0.0)
        offset = torch.einsum("td,nedp,ned->ntp", residual.between.to(eps), patterns, beside)
        precision = by_knots(residual.between, new.detach()[..., :-1], curvature)
        return cls(model, batch, pull, offset, precision)

    @property
    def dim(self) -> int:
        """R, of w."""
        return self.model.residual_term.components

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
    def log_prob(self, core: Tensor, w: Tensor) -> Tensor:
        """Log density, (..., N), of w (..., N, R) at cores (..., N, d)."""
        flat = core.reshape(-1, *core.shape[-2:])
        found = []
        size = max(1, ROWS // len(self.offset))
        for part, values in zip(flat.split(size), w.reshape(*flat.shape[:-1], -1).split(size), strict=True):
            factor, pull = self._moments(part)
            normal = (factor.mT @ values[..., None])[..., 0] - _solve(factor, pull)
            found.append(_log_det(factor) - 0.5 * normal.square().sum(-1))
        constant = 0.5 * self.dim * math.log(2 * math.pi)
        return torch.cat(found).reshape(core.shape[:-1]) - constant

    def _moments(self, core: Tensor) -> tuple[Tensor, Tensor]:
        """Lower factor of the precision of w, (..., N, R, R), and precision times mean, (..., N, R)."""
        model, lead, own = self.model, self.model.lead_dim, self.model.residual_term
        z, h = core[..., : model.latent_dim], core[..., -own.sizes :]
        rest = model.generator(z) + own.local_offset(z) @ own.basis.to(z.dtype)
        clean = rest if model.passage is None else model.passage(rest, core[..., model.latent_dim : lead])
        seen = torch.where(self.batch.mask, 0.0, self.batch.flux)
        residual = seen / core[..., lead : -own.sizes, None].exp() - clean[..., None, :]
        sizes, along = own.log_sizes(h).exp(), own.size(h)[..., None, :]
        pull = torch.einsum("nepd,...ned->...np", self.pull, along * residual)
        pull = pull + torch.einsum("ntp,...nt->...np", self.offset, sizes)
        products = torch.cat([sizes.square(), sizes[..., 1:] * sizes[..., :-1]], dim=-1)
        factor = own.local_factor(z)
        precision = factor.mT @ (torch.einsum("...nf,nfpq->...npq", products, self.precision) @ factor)
        precision.diagonal(dim1=-2, dim2=-1).add_(1.0)
        return torch.linalg.cholesky(precision), (factor.mT @ pull[..., None])[..., 0]


def _solve(factor: Tensor, vector: Tensor, *, upper: bool = False) -> Tensor:
    return torch.linalg.solve_triangular(factor, vector[..., None], upper=upper)[..., 0]


def _log_det(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
