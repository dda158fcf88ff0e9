"""Step two and a half: what the generator leaves of clean spectra, as patterns, sizes and a discrepancy."""

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
"""Vote of a star of another class beside that of one of the anchor's own."""

WIDER, MOST = 4, 4.0
"""An anchor's variances are drawn to those of so many times as many neighbours, though never to more than so
many times as large ones; its covariances to zero."""

RIDGE = 3.0
"""Neighbours that the slopes of an anchor's mean count for nothing against."""

CLOSE = 0.5
"""Anchors share a star between them up to this share, squared, of an anchor's reach."""

SMOOTH, SMOOTH_ALL = 41, 9
"""Pixels over which an anchor's discrepancy is averaged, and that of all stars."""

NOISY = 0.1
"""Noise of a pixel, in mean flux, above which it has no say in the discrepancy."""

LEAST_VARIANCE = 1e-6
"""Of the discrepancy: a thousandth of the mean flux."""


@dataclass(frozen=True)
class ResidualRecipe:
    """Residual term.

    Arguments:
        patterns: P.
        components: R.
        anchors: J.
        neighbours: Stars, in effect, that speak for an anchor.
        shrinkage: Neighbours that an anchor's covariances count for nothing against.
        bands: Knots of an anchor's discrepancy along the spectrum.
        balance: 1 lets every class speak equally, 0 every star.
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

    B has the principal components of the residuals, each star brought to about the same size. Anchors are the
    centres of clusters of latents. Around each, the mean of the patterns' coefficients is a linear function
    of z, and their covariance is of what it leaves, both of its neighbours, nearer ones weighing more. What
    the R largest directions leave is in tau. G has seen
    its training stars, so it leaves less of them than of others: residuals are inflated, class by class, by
    what the `unseen` stars of the validation side ask for, and fitted again.

    Arguments:
        generator: G, trained.
        encoder: E, trained; where latents begin.
        train: Clean training stars.
        unseen: Clean stars of the validation side.
        recipe: Sizes.
        reference: How noise goes with wavelength where a spectrum has no errors, (D,).
        seed: Of the anchors.
        model_vote: Vote of a theoretical star beside that of a real one.
        passage: What happens to the light of these stars, too, on its way; none of it is a residual.

    Returns:
        The residual term, and the latents of the training stars that fit best, (N, L).

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
    """Orthonormal patterns, (R, D), of residuals brought to about one size, and how large each is at most."""
    size = residuals.flux.square().mean(-1, keepdim=True).sqrt()
    even = (residuals.flux / (size + FLOOR / 3)).numpy() * np.sqrt(weights * len(weights))[:, None]
    found = TruncatedSVD(count, n_iter=7, random_state=seed).fit(even)
    basis = torch.as_tensor(np.ascontiguousarray(found.components_), dtype=torch.float32)
    coefficients = residuals.flux @ basis.T
    return basis, (torch.as_tensor(weights)[:, None] * coefficients.square()).sum(0).sqrt().float()


def anchor_counts(stars: StarLibrary, recipe: ResidualRecipe, model_vote: float = 1.0) -> dict[int, int]:
    """How many anchors each class has, by its share: two or more.

    Raises:
        BayesspecError: if stars are too few for so many anchors or patterns, or anchors for the classes.
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
    """Places of the anchors, (J, L), and their classes, (J,)."""
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
    """Give the term's anchors what the residuals around them have: mean, covariance, discrepancy."""
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

    # What no pattern has, and what the R largest directions leave of the patterns. The noise of a pixel that
    # has hardly any light would outweigh what all other stars say of e there.
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
    """What coefficients (N, P) are around an anchor: mean there, (P,), slopes, (L, P), covariance, (P, P).

    Arguments:
        away: Where the stars are, as the term sees it, (N, L).
        say: How much each has to say, (N,), of sum 1.
        far: The same of more distant ones too.
        trust: Share of the covariances, and of the variances, that is not from there.
        ridge: Of the slopes, relative to the scatter of the neighbours.
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
    """What each star has of the patterns, (N, P): least squares, a little ridged for what is masked."""
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
    """The say of each star for each anchor, (J, N), rows of sum 1; its effective number; its squared reach.

    Gaussian in the distance, as wide for each anchor as so many stars need.
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
    """Factors (J, P, R) turned to be as alike as they can: what lies between two is then between them."""
    share = covariances / covariances.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    values, vectors = torch.linalg.eigh(share.mean(0))
    common = (vectors * values.clamp_min(0).sqrt())[:, -factors.shape[-1] :]
    left, _, right = torch.linalg.svd(factors.mT @ common)
    return factors @ (left @ right)
