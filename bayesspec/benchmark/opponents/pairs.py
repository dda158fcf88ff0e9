"""Pairs of noisy and clean spectra for tuning: real stars with the noise of real exposures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayesspec.benchmark.measures.losses import squared_loss
from bayesspec.exceptions import BayesspecError
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.library import StarLibrary

from .base import Array, Denoiser

__all__ = ["Pairs", "search"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Noisy spectra with known clean spectra.

    Arguments:
        clean: (N, D), at mean |flux| = 1.
        known: (N, D), True where the clean spectrum is known.
        flux: (N, D), with noise; 0 where masked.
        ivar: (N, D), the pipeline's of that noise; 0 where masked or unknown.
        mask: (N, D), True = bad.
        klass: (N,), index of the star's class.
    """

    clean: NDArray[np.float32]
    known: NDArray[np.bool_]
    flux: NDArray[np.float32]
    ivar: NDArray[np.float32]
    mask: NDArray[np.bool_]
    klass: NDArray[np.int64]

    @classmethod
    def draw(
        cls, stars: StarLibrary, noise: NoiseLibrary, *, per_class: int, seed: int, gaps: float = 0.5
    ) -> Pairs:
        """Draw the same number of pairs for each class; in small classes, stars repeat with other noise.

        Arguments:
            stars: Clean spectra.
            noise: Exposures whose noise is used.
            per_class: Pairs for each class among the stars.
            seed: Seed of the choice of stars, noise and gaps.
            gaps: Fraction of pairs from which one interval is removed, up to half of the grid.

        Raises:
            BayesspecError: if there is no star or no exposure.
        """
        if not (len(stars) and len(noise)):
            raise BayesspecError(f"pairs need stars and noise, got {len(stars)} and {len(noise)}")
        rng = np.random.default_rng(seed)
        chosen = np.concatenate(
            [
                np.resize(rng.permutation(np.flatnonzero(stars.klass == c)), per_class)
                for c in np.unique(stars.klass)
            ]
        )
        n, size = len(chosen), stars.flux.shape[1]
        exposure = rng.integers(len(noise), size=n)

        width = rng.uniform(0, size / 2, (n, 1)) * (rng.random((n, 1)) < gaps)
        start = rng.uniform(0, size - width)
        pixel = np.arange(size)
        gap = (pixel >= start) & (pixel < start + width)
        mask = stars.mask[chosen] | noise.mask[exposure] | gap
        return cls(
            stars.flux[chosen],
            ~stars.mask[chosen],
            np.where(mask, 0, stars.flux[chosen] + noise.residual[exposure]),
            np.where(mask, 0, noise.ivar[exposure]),
            mask,
            stars.klass[chosen],
        )

    def losses(self, denoiser: Denoiser) -> Array:
        """Mean squared difference from the clean spectrum over all pixels where it is known, (N,)."""
        return squared_loss(denoiser.denoise(self.flux, self.ivar, self.mask), self.clean, ~self.known)

    def score(self, denoiser: Denoiser) -> float:
        """Geometric mean over the classes of their median loss, which tuning minimises."""
        losses = self.losses(denoiser)
        medians = [np.median(losses[self.klass == c]) for c in np.unique(self.klass)]
        return float(np.exp(np.mean(np.log(np.maximum(medians, 1e-30)))))


def search(
    build: Callable[..., Denoiser], choices: Mapping[str, Sequence[Any]], pairs: Pairs
) -> dict[str, Any]:
    """Find the settings with the smallest score, one setting after the other, in two rounds.

    Arguments:
        build: Makes a denoiser from one value for each setting.
        choices: Values of each setting; the search starts from the first.
        pairs: Pairs for the score.
    """
    best = {name: values[0] for name, values in choices.items()}
    scores: dict[tuple[Any, ...], float] = {}

    def score(settings: Mapping[str, Any]) -> float:
        at = tuple(settings.values())
        if at not in scores:
            scores[at] = pairs.score(build(**settings))
        return scores[at]

    for _ in range(2):
        for name, values in choices.items():
            best = min(({**best, name: value} for value in values), key=score)
    return best
