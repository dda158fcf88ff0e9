"""The residuals of unseen stars are larger than those of training stars: correction factors for this."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.nn import ResidualTerm
from bayesspec.noise_level import NORMAL_MEDIAN

from .clean import Residuals

__all__ = ["inflated", "size_spreads", "to_bulk"]

SPREAD = 0.2, 1.0
"""Limits on the standard deviation of log residual amplitudes around the usual one of their kind."""

LEAST_SEEN = 0.3
"""Minimum fraction of observed pixels around a knot to measure the amplitude there."""

SIZES = -1.8, 2.4, 22
"""Grid of log amplitudes: from, to, number."""

SHRINKAGE = 4.0
"""Prior weight of the inflation of all classes against that of one class, in stars."""


def log_likelihood(term: ResidualTerm, residuals: Residuals, h: Tensor) -> Tensor:
    """log p(x - G(z) | h), (N,), marginalised over w and e: a Gaussian of diagonal plus low rank."""
    found = posterior(term, residuals, h)
    log_variance = torch.where(residuals.mask, 0.0, found.variance.log()).sum(-1)
    return -0.5 * (found.log_det + found.square + log_variance)


class Posterior(NamedTuple):
    """The posterior of w given N residuals."""

    mean: Tensor
    """(N, R)."""
    covariance: Tensor
    """(N, R, R)."""
    log_det: Tensor
    """Log determinant of the precision, (N,)."""
    square: Tensor
    """Squared Mahalanobis length of the residuals, (N,)."""
    tau_square: Tensor
    """Variance of e, (N, D)."""
    variance: Tensor
    """Variance of e plus the star's own noise, (N, D)."""
    usual: Tensor
    """B m(z), (N, D)."""
    patterns: Tensor
    """S B Lambda(z) w at the mean of w, (N, D)."""


def posterior(term: ResidualTerm, residuals: Residuals, h: Tensor | None = None) -> Posterior:
    """The posterior of w given residuals, at amplitudes h, (N, T + 2), or at the usual ones."""
    h = residuals.z.new_zeros(len(residuals.z), term.sizes) if h is None else h
    size, hw = term.size(h), torch.cat([h, h.new_zeros(len(h), term.components)], dim=-1)
    tau_square = term.discrepancy(residuals.z, hw).square()
    variance = tau_square + residuals.variance
    weight = torch.where(residuals.mask, 0.0, 1 / variance)
    basis = term.basis.float()
    usual = term.local_offset(residuals.z) @ basis
    flux = torch.where(residuals.mask, 0.0, residuals.flux - usual)
    factor = term.local_factor(residuals.z)
    seen = (weight > 0).any(0)
    gram = torch.stack([(basis[:, seen] * w) @ basis[:, seen].T for w in (weight * size.square())[:, seen]])
    precision = factor.mT @ gram @ factor + torch.eye(term.components)
    root = torch.linalg.cholesky(precision)
    pull = (((flux * weight * size) @ basis.T)[:, None] @ factor)[:, 0]
    mean = torch.cholesky_solve(pull[..., None], root)[..., 0]
    return Posterior(
        mean,
        torch.cholesky_inverse(root),
        2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1),
        (weight * flux.square()).sum(-1) - (pull * mean).sum(-1),
        tau_square,
        variance,
        usual,
        size * ((factor @ mean[..., None])[..., 0] @ basis),
    )


def inflated(
    term: ResidualTerm, seen: Residuals, seen_klass: NDArray, unseen: Residuals, unseen_klass: NDArray
) -> Residuals:
    """Training residuals, scaled up to match those of unseen stars of the same class."""
    own, others = (_excess(term, part) for part in (seen, unseen))
    factors = [_ratio(b, a, unseen_klass, seen_klass) for a, b in zip(own, others, strict=True)]
    of_w, of_e = (
        torch.as_tensor(factor[seen_klass], dtype=torch.float32).sqrt()[:, None] for factor in factors
    )
    found = posterior(term, seen)
    beneath = seen.flux - found.usual - found.patterns
    flux = found.usual + of_w * found.patterns + of_e * beneath
    return replace(seen, flux=torch.where(seen.mask, 0.0, flux))


def log_sizes(term: ResidualTerm, residuals: Residuals) -> Tensor:
    """Maximum-likelihood log amplitude of each star's residuals, on the grid `SIZES`, (N,)."""
    h, sizes = residuals.z.new_zeros(len(residuals.z), term.sizes), torch.linspace(*SIZES)
    by_size = []
    for size in sizes:
        h[:, -1] = size / term.spread
        by_size.append(log_likelihood(term, residuals, h))
    return sizes[torch.stack(by_size).argmax(0)]


def size_spreads(term: ResidualTerm, unseen: Residuals) -> tuple[Tensor, Tensor]:
    """Standard deviation of the log amplitude between unseen stars, and between the knots of a star, limited.

    Amplitudes are measured in the pixels around each knot. Their variance within a star is that of the knots.
    The mean square over stars of their means, minus the part of the knots, is that of the stars.
    """
    knots = len(term.between)
    position = torch.linspace(0, knots - 1, unseen.flux.shape[-1]).round()
    found = []
    for t in range(knots):
        mask = unseen.mask | (position != t)
        size = log_sizes(term, replace(unseen, flux=torch.where(mask, 0.0, unseen.flux), mask=mask))
        seen = (~mask).sum(-1) >= LEAST_SEEN * (position == t).sum()
        found.append(torch.where(seen, size, torch.nan))
    sizes = torch.stack(found, dim=-1)
    sizes = sizes[sizes.isfinite().all(-1)]
    local = sizes.var(-1).mean()
    of_stars = sizes.mean(-1).square().mean() - local / sizes.shape[-1]
    whole, each = (v.clamp_min(0).sqrt().clamp(*SPREAD) for v in (of_stars, local))
    return whole, each


def _excess(term: ResidualTerm, residuals: Residuals) -> tuple[NDArray, NDArray]:
    """Mean square of w, and of e / tau, in each star: 1 on average if the scales are right."""
    found = posterior(term, residuals)
    w_square = found.mean.square() + found.covariance.diagonal(dim1=-2, dim2=-1)
    share = found.tau_square / found.variance
    left = residuals.flux - found.usual - found.patterns
    e_square = (share * left).square() / found.tau_square + 1 - share
    observed = (~residuals.mask).float()
    e = (e_square * observed).sum(-1) / observed.sum(-1)
    return w_square.mean(-1).numpy(), e.numpy()


def _ratio(unseen: NDArray, seen: NDArray, unseen_klass: NDArray, seen_klass: NDArray) -> NDArray[np.float64]:
    """Ratio of the squares of unseen and seen stars in every class, shrunk towards that of all classes."""
    classes = 1 + max(unseen_klass.max(), seen_klass.max())

    def typical(values: NDArray) -> float:
        return float(np.exp(np.log(values).mean()))

    whole = max(1.0, typical(unseen) / typical(seen))
    ratios = np.full(classes, whole)
    for c in range(classes):
        a, b = unseen[unseen_klass == c], seen[seen_klass == c]
        if len(a) and len(b):
            own, count = np.log(typical(a) / typical(b)), len(a)
            ratios[c] = np.exp((count * own + SHRINKAGE * np.log(whole)) / (count + SHRINKAGE))
    return ratios.clip(1.0, 30.0)


def bulk(term: ResidualTerm, residuals: Residuals) -> tuple[Tensor, Tensor]:
    """Residuals after the patterns in units of tau, (N, D), and their robust scale in each star, (N, 1)."""
    found = posterior(term, residuals)
    left = (residuals.flux - found.usual - found.patterns) / found.tau_square.sqrt()
    middle = torch.where(residuals.mask, torch.nan, left.abs()).nanmedian(-1, keepdim=True).values
    return left, (NORMAL_MEDIAN * middle).clamp_min(1e-3)


def to_bulk(term: ResidualTerm, unseen: Residuals) -> None:
    """Set tau to the robust scale of e in a typical unseen star; `fit_discrepancy` models the tails.

    At high S/N the likelihood finds this scale by itself, because it takes far outliers for noise. If tau
    were the root mean square, intervals would be too wide at low S/N.
    """
    term.log_discrepancy += bulk(term, unseen)[1].log().mean()
