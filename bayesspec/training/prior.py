"""Steps two and three: latents of the training stars, and one kernel density per class on them (eq. 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KernelDensity

from bayesspec.distributions import LatentPrior

__all__ = ["fit_prior"]

BANDWIDTHS = np.geomspace(0.02, 0.5, 20)
"""Candidates; the unit is the per-pixel rms of spectra, since G is an isometry. Real spectra scatter by the
2 % of a flux calibration, which grids of models do not know: hence the least."""


def fit_prior(z: NDArray, klass: NDArray[np.int64], star: NDArray[np.str_], n_class: int) -> LatentPrior:
    """Fit p(z | C): scikit-learn chooses each class's bandwidth by cross-validation over its stars.

    A star's spectra share one vote, and are held out together.

    Arguments:
        z: Latents, (N, L).
        klass: Class of each, (N,).
        star: Identity of each, (N,).
        n_class: Number of classes; each needs at least two stars.

    Raises:
        ValueError: if a class has fewer than two stars.
    """
    latents, bandwidths, weights = [], [], []
    for c in range(n_class):
        rows = klass == c
        _, group, count = np.unique(star[rows], return_inverse=True, return_counts=True)
        if len(count) < 2:
            raise ValueError(f"class {c} has {len(count)} training stars; a kernel density needs two")
        vote = 1.0 / count[group]
        search = GridSearchCV(
            KernelDensity(),
            {"bandwidth": BANDWIDTHS},
            cv=GroupKFold(min(10, len(count))),
            error_score="raise",
        )
        search.fit(z[rows], groups=group)
        latents.append(z[rows])
        weights.append(vote)
        bandwidths.append(search.best_params_["bandwidth"])
    return LatentPrior.from_classes(latents, bandwidths, weights)
