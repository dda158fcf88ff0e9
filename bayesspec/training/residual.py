"""Between steps two and three: fit patterns, covariances and discrepancy to residuals of clean spectra."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from torch import Tensor

from bayesspec.exceptions import BayesspecError
from bayesspec.nn import Encoder, Generator, Passage, ResidualTerm

from .clean import (
    FLOOR,
    Residuals,
    filled_classes,
    fit_latents,
    less_noise_of_the_clean,
    smooth,
    without_junk,
)
from .inflation import inflated, size_spreads, to_bulk
from .library import CLASSES, StarLibrary

__all__ = ["ResidualRecipe", "fit_residual"]

OTHERS = 0.1
"""Weight of a star of another class than the anchor's, relative to one of the same class."""

WIDER, MOST = 4, 4.0
"""Shrinkage at an anchor: its covariances are shrunk towards zero, its variances towards their mean with
those of WIDER times as many neighbours, but at most towards MOST times their own value."""

RIDGE = 3.0
"""Ridge on the slopes of an anchor's mean, as a number of neighbours."""

CLOSE = 0.5
"""Squared width of the interpolation weights, in units of the median squared width of the neighbourhoods."""

SMOOTH, SMOOTH_ALL = 41, 9
"""Pixels over which the discrepancy is averaged, for an anchor and for all stars."""

NOISY = 0.1
"""Noise of a pixel, in mean flux, above which it is not used to measure the discrepancy."""

LEAST_VARIANCE = 1e-6
"""Minimum variance of the discrepancy: (a thousandth of the mean flux) squared."""


@dataclass(frozen=True)
class ResidualRecipe:
    """Residual term.

    Arguments:
        patterns: P.
        components: R.
        anchors: J.
        neighbours: Effective number of stars to which an anchor is fitted.
        shrinkage: Strength of the shrinkage of an anchor's covariances, as a number of neighbours.
        bands: Knots of an anchor's discrepancy along the spectrum.
        balance: 1 gives every class the same weight, 0 every star.
    """

    patterns: int = 192
    components: int = 80
    anchors: int = 80
    neighbours: float = 60.0
    shrinkage: float = 10.0
    bands: int = 64
    balance: float = 0.6


@torch.no_grad()
def fit_residual(
    generator: Generator,
    encoder: Encoder,
    train: StarLibrary,
    unseen: StarLibrary,
    recipe: ResidualRecipe,
    *,
    reference: Tensor,
    seed: int,
    model_vote: float = 1.0,
    passage: Passage | None = None,
) -> tuple[ResidualTerm, Tensor]:
    """Fit B, m(z), Lambda(z) and tau(z) to the residuals of training stars.

    B has the principal components of the residuals, with all stars scaled to about the same amplitude.
    Anchors are the centres of clusters of latents. At each anchor the coefficients of the patterns are
    regressed linearly on z over its neighbours, with larger weights for nearer ones; their covariance is that
    of the regression residuals. The variance beyond its R largest directions goes into tau. G was fitted to
    its training stars, so their residuals are smaller than those of other stars. They are scaled up, class by
    class, to match the `unseen` validation stars, and the anchors are fitted again.

    Arguments:
        generator: G, trained.
        encoder: E, trained, for first guesses of the latents.
        train: Clean training stars.
        unseen: Clean validation stars.
        recipe: Sizes.
        reference: Dependence of the noise on wavelength for spectra without errors, (D,).
        seed: Seed of the patterns and anchors.
        model_vote: Weight of a theoretical star; a real one has weight 1.
        passage: Velocity, dust and calibration, fitted for each star so that they are not in the residuals.

    Returns:
        The residual term, and the best-fitting latents of the training stars, (N, L).

    Raises:
        BayesspecError: as `anchor_counts`.
    """
    weights = torch.as_tensor(train.sampling_weights(recipe.balance, model_vote)).float()
    counts = anchor_counts(train, recipe, model_vote)
    filled = filled_classes(train)
    seen = fit_latents(generator, encoder, train, reference, passage)
    basis, sizes = _patterns(seen, weights.numpy(), recipe.patterns, seed)
    seen = less_noise_of_the_clean(without_junk(seen, basis), train, filled)
    others = without_junk(fit_latents(generator, encoder, unseen, reference, passage), basis)
    others = less_noise_of_the_clean(others, unseen, filled)

    term = ResidualTerm(
        generator.latent_dim,
        seen.flux.shape[1],
        recipe.patterns,
        recipe.components,
        recipe.anchors,
        recipe.bands,
        len(CLASSES),
    )
    term.basis.copy_(basis)
    anchors, whose = _anchors(seen.z, train.klass, weights, counts, seed)
    term.anchors.copy_(anchors)
    term.kind.copy_(whose)
    of_own_kind = torch.where(torch.as_tensor(train.klass) == whose[:, None], 1.0, OTHERS) * weights
    _fit_anchors(term, seen, sizes, of_own_kind, recipe)
    larger = inflated(term, seen, train.klass, others, unseen.klass)
    _fit_anchors(term, larger, sizes, of_own_kind, recipe)
    to_bulk(term, others)
    for buffer, spread in zip((term.spread, term.local_spread), size_spreads(term, others), strict=True):
        buffer.copy_(spread)
    return term.requires_grad_(False), seen.z


def _patterns(residuals: Residuals, weights: NDArray, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Orthonormal patterns, (P, D), of residuals scaled to similar amplitude; rms coefficients, (P,)."""
    size = residuals.flux.square().mean(-1, keepdim=True).sqrt()
    even = (residuals.flux / (size + FLOOR / 3)).numpy() * np.sqrt(weights * len(weights))[:, None]
    found = TruncatedSVD(count, n_iter=7, random_state=seed).fit(even)
    basis = torch.as_tensor(np.ascontiguousarray(found.components_), dtype=torch.float32)
    coefficients = residuals.flux @ basis.T
    return basis, (torch.as_tensor(weights)[:, None] * coefficients.square()).sum(0).sqrt().float()


def anchor_counts(stars: StarLibrary, recipe: ResidualRecipe, model_vote: float = 1.0) -> dict[int, int]:
    """Number of anchors of each class, by its weight: two or more if there are enough anchors.

    Raises:
        BayesspecError: if there are too few stars for the anchors or patterns, or too few anchors for the
            classes.
    """
    weights = torch.as_tensor(stars.sampling_weights(recipe.balance, model_vote)).float()
    classes, spectra = np.unique(stars.klass, return_counts=True)
    least = min(2, recipe.anchors // len(classes))
    if not least:
        raise BayesspecError(f"{recipe.anchors} anchors are too few for {len(classes)} classes")
    if recipe.patterns > len(stars):
        raise BayesspecError(f"{len(stars)} training spectra are too few for {recipe.patterns} patterns")
    share = np.sqrt([weights[torch.as_tensor(stars.klass == c)].sum() for c in classes]).cumsum()
    each = np.round((recipe.anchors - least * len(classes)) * share / share[-1])
    each = np.diff(each, prepend=0).astype(int) + least
    for c, count, have in zip(classes, each, spectra, strict=True):
        if count > have:
            raise BayesspecError(
                f"{have} training spectra of {CLASSES[c]} are too few for its {count} anchors"
            )
    return dict(zip(classes.tolist(), each.tolist(), strict=True))


def _anchors(
    z: Tensor, klass: NDArray, weights: Tensor, counts: dict[int, int], seed: int
) -> tuple[Tensor, Tensor]:
    """Positions of the anchors, (J, L), and their classes, (J,)."""
    places = []
    for c, clusters in counts.items():
        own = klass == c
        found = KMeans(clusters, n_init=2, random_state=seed)
        found.fit(z[own].numpy().astype(float), sample_weight=weights[torch.as_tensor(own)].numpy())
        places.append(torch.as_tensor(found.cluster_centers_, dtype=z.dtype))
    return torch.cat(places), torch.as_tensor(np.repeat(list(counts), list(counts.values())))


def _fit_anchors(
    term: ResidualTerm, residuals: Residuals, sizes: Tensor, weights: Tensor, recipe: ResidualRecipe
) -> None:
    """Fit mean, covariance and discrepancy at the anchors to the residuals around them."""
    basis = term.basis.float()
    coefficients = _coefficients(residuals, basis, sizes)
    say, count, reach = _neighbours(residuals.z, term.anchors, weights, recipe.neighbours)
    far, *_ = _neighbours(residuals.z, term.anchors, weights, WIDER * recipe.neighbours)
    trust = count / (count + recipe.shrinkage)
    term.width.copy_((CLOSE * reach.median()).sqrt())
    away = term.away(residuals.z).unbind(-2)
    parts = map(_local_moments, away, say, far, trust, RIDGE / count, repeat(coefficients))
    offset, slope, covariance = map(torch.stack, zip(*parts, strict=True))

    values, vectors = torch.linalg.eigh(covariance)
    values, rest = values.clamp_min(0), values.shape[-1] - term.components
    factor = vectors[..., rest:] * values[:, None, rest:].sqrt()
    left_out = torch.stack(
        [
            ((v[:, :rest].T @ basis).square() * p[:rest, None]).sum(0)
            for v, p in zip(vectors, values, strict=True)
        ]
    )
    term.offset.copy_(offset)
    term.slope.copy_(slope)
    term.factor.copy_(_aligned(factor, covariance))

    # The variance in no pattern, and that beyond the R largest directions of the patterns. A pixel with
    # hardly any light has so much noise that it would dominate the estimate of e there.
    observed = (~residuals.mask & (residuals.variance < NOISY**2)).float()
    beneath = torch.where(residuals.mask, 0.0, residuals.flux - coefficients @ basis)
    power = (beneath.square() - residuals.variance) * observed
    local = smooth((say @ power) / (say @ observed).clamp_min(1e-9), SMOOTH).clamp_min(0)
    local = (local + smooth(left_out, SMOOTH)).clamp_min(LEAST_VARIANCE)
    every = weights.mean(0)
    whole = (every @ power) / (every @ observed).clamp_min(1e-9) + left_out.mean(0)
    whole = smooth(whole[None], SMOOTH_ALL)[0].clamp_min(LEAST_VARIANCE)
    term.log_discrepancy.copy_(0.5 * whole.log())
    ratio = 0.5 * (local.log() - smooth(whole[None], SMOOTH).log())
    term.log_bands.copy_(torch.linalg.lstsq(term.interpolation.T, ratio.T).solution.T)


def _local_moments(
    away: Tensor, say: Tensor, far: Tensor, trust: Tensor, ridge: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (P,), slopes (L, P) and covariance (P, P) of coefficients around an anchor.

    Arguments:
        away: Offsets of the stars from the anchor, `ResidualTerm.away`, (N, L).
        say: Weights of the stars, (N,), with sum 1.
        far: The same for a wider neighbourhood.
        trust: Weight of the local covariance; the rest is the value to which it is shrunk.
        ridge: Ridge of the slopes, relative to the scatter of the neighbours.
        coefficients: (N, P).
    """
    middle, average = say @ away, say @ coefficients
    weighted = (say[:, None] * (away - middle)).T
    normal = weighted @ away
    normal = normal + ridge * normal.diagonal().mean() * torch.eye(len(normal))
    slope = torch.linalg.solve(normal, weighted @ coefficients)
    offset = average - middle @ slope
    left = coefficients - offset - away @ slope
    scatter = (say[:, None] * left).T @ left
    own = scatter.diagonal()
    usual = (0.5 * (own + far @ left.square())).minimum(MOST * own)
    covariance = trust * scatter + (1 - trust) * usual.diag()
    return offset, slope, 0.5 * (covariance + covariance.T)


def _coefficients(residuals: Residuals, basis: Tensor, sizes: Tensor) -> Tensor:
    """Coefficients of the patterns, (N, P), by least squares with a small ridge for masked pixels."""
    parts = []
    for flux, variance, mask in zip(
        *(part.split(64) for part in (residuals.flux, residuals.variance, residuals.mask)), strict=True
    ):
        weight = torch.where(mask, 0.0, 1 / (variance + (FLOOR / 3) ** 2))
        normal = (basis * weight[:, None]) @ basis.T + torch.diag(sizes.square().reciprocal())
        pull = (flux * weight) @ basis.T
        parts.append(torch.cholesky_solve(pull[..., None], torch.linalg.cholesky(normal))[..., 0])
    return torch.cat(parts)


def _neighbours(z: Tensor, anchors: Tensor, weights: Tensor, count: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the stars for each anchor, (J, N), with sum 1; effective numbers and squared widths, (J,).

    The weights are Gaussian in the distance, with the width at which `count` stars are effective.
    """
    square = (anchors[:, None] - z).square().sum(-1)
    nearest = square.amin(-1, keepdim=True)
    low, high = (torch.full((len(anchors),), end) for end in (-8.0, 2.0))
    for _ in range(40):
        middle = (low + high) / 2
        say = torch.exp(-0.5 * (square - nearest) / 10 ** middle[:, None]) * weights
        effective = say.sum(-1).square() / say.square().sum(-1)
        low, high = torch.where(effective < count, middle, low), torch.where(effective < count, high, middle)
    return say / say.sum(-1, keepdim=True), effective, 10**middle


def _aligned(factors: Tensor, covariances: Tensor) -> Tensor:
    """Factors (J, P, R), rotated to be as similar as possible, so that they can be interpolated."""
    share = covariances / covariances.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    values, vectors = torch.linalg.eigh(share.mean(0))
    common = (vectors * values.clamp_min(0).sqrt())[:, -factors.shape[-1] :]
    left, _, right = torch.linalg.svd(factors.mT @ common)
    return factors @ (left @ right)
