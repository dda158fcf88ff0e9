"""Steps two and three: latents of the training stars, and one kernel density per class on them (eq. 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KernelDensity

from bayesspec.data.library import StarLibrary
from bayesspec.distributions import LatentPrior

__all__ = ["fit_prior"]

BANDWIDTHS = np.geomspace(0.02, 0.5, 20)
"""Candidates; the unit is the per-pixel rms of spectra, since G is an isometry. Real spectra scatter by the
2 % of a flux calibration, which grids of models do not know: hence the least."""


def fit_prior(z: NDArray, stars: StarLibrary, n_class: int, model_vote: float = 1.0) -> LatentPrior:
    """Fit p(z | C): scikit-learn chooses each class's bandwidth by cross-validation over its real stars.

    A star's spectra are held out together. Theoretical spectra are kernels too, but none is held out: how
    dense a grid of models is says nothing about how far a real star is from it.

    Arguments:
        z: Latents, (N, L).
        stars: What they are latents of: class, identity and kind.
        n_class: Number of classes; each needs at least two real stars.
        model_vote: Weight of a theoretical star's kernel beside that of a real one's.

    Raises:
        ValueError: if a class has fewer than two real stars.
    """
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
        search = GridSearchCV(KernelDensity(), {"bandwidth": BANDWIDTHS}, cv=splits, error_score="raise")
        search.fit(z[rows])
        latents.append(z[rows])
        weights.append(own.votes(model_vote))
        bandwidths.append(search.best_params_["bandwidth"])
    return LatentPrior.from_classes(latents, bandwidths, weights)
