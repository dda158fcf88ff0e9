"""Steps two and three: latents of the training stars, and one kernel density per class on them (eq. 5)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KernelDensity

from bayesspec.distributions import LatentPrior

from .library import StarLibrary

__all__ = ["PriorRecipe", "fit_prior"]

BANDWIDTHS = np.geomspace(0.02, 0.5, 20)
"""Candidates for isotropic kernels, in units of the per-pixel rms of spectra (G is an isometry). The smallest
is the 2 % of flux-calibration error, by which real spectra scatter but theoretical ones do not."""

THICKNESSES = np.geomspace(0.0075, 0.12, 13)
"""Candidates for the isotropic part of kernels with local covariance."""


@dataclass(frozen=True)
class PriorRecipe:
    """Class prior.

    Arguments:
        neighbours: Number of stars of its class that set a kernel's covariance; 0: all kernels are isotropic.
        stretch: Factor on the standard deviations of these stars.
    """

    neighbours: int = 0
    stretch: float = 0.6


class NeighbourDensity(BaseEstimator):
    """A kernel density of one class, with local covariances, as a scikit-learn estimator."""

    def __init__(self, bandwidth: float = 0.02, neighbours: int = 40, stretch: float = 0.6) -> None:
        self.bandwidth, self.neighbours, self.stretch = bandwidth, neighbours, stretch

    def fit(self, X: NDArray, y: None = None) -> Self:
        """Use latents, (N, L), as centres."""
        self.density_ = LatentPrior.from_classes(
            [X], [self.bandwidth], neighbours=self.neighbours, stretch=self.stretch
        )
        return self

    def score(self, X: NDArray, y: None = None) -> float:
        """Total log density of latents, (N, L)."""
        return float(self.density_.log_prob_all(torch.as_tensor(X, dtype=torch.float32)).sum())


def fit_prior(
    z: NDArray, stars: StarLibrary, n_class: int, model_vote: float = 1.0, recipe: PriorRecipe | None = None
) -> LatentPrior:
    """Fit p(z | C): scikit-learn chooses each class's bandwidth by cross-validation over its real stars.

    A star's spectra are held out together. Theoretical spectra are kernels too, but none is held out, because
    the spacing of a grid of models does not show how far a real star is from it.

    Arguments:
        z: Latents, (N, L).
        stars: The stars of these latents, with class, identity and kind.
        n_class: Number of classes; each needs at least two real stars.
        model_vote: Weight of a theoretical star's kernel, relative to that of a real star.
        recipe: Covariance of the kernels.

    Raises:
        ValueError: if a class has fewer than two real stars.
    """
    recipe = recipe or PriorRecipe()
    shape = asdict(recipe)
    density = NeighbourDensity(**shape) if recipe.neighbours else KernelDensity()
    candidates = {"bandwidth": THICKNESSES if recipe.neighbours else BANDWIDTHS}
    latents, bandwidths, weights = [], [], []
    for c in range(n_class):
        rows = np.flatnonzero(stars.klass == c)
        own = stars.select(rows)
        real = np.flatnonzero(own.kind != "model")
        count = len(np.unique(own.star[real]))
        if count < 2:
            raise ValueError(f"class {c} has {count} real training stars; a kernel density needs two")
        folds = GroupKFold(min(10, count)).split(real, groups=own.star[real])
        splits = [(np.setdiff1d(np.arange(len(own)), real[fold]), real[fold]) for _, fold in folds]
        search = GridSearchCV(density, candidates, cv=splits, error_score="raise")
        search.fit(z[rows])
        latents.append(z[rows])
        weights.append(own.votes(model_vote))
        bandwidths.append(search.best_params_["bandwidth"])
    return LatentPrior.from_classes(latents, bandwidths, weights, **shape)
