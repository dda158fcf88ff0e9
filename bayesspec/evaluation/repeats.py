"""Second visits: whether what one visit predicts holds what another one found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from astropy import units as u
from astropy.coordinates import SkyCoord
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.distributions import RobustNoiseFlow
from bayesspec.inference.denoise import denoise
from bayesspec.inference.summary import flux_draws
from bayesspec.model import StellarModel
from bayesspec.observation import Observation, ObservationBatch
from bayesspec.runtime import seeded

from .coverage import pixel_coverage

__all__ = ["VisitScores", "predict_visits", "same_star"]

CLOSE = 5.0
"""Arcseconds within which two positions are one star."""

DRAWS = 400


class VisitScores(NamedTuple):
    """How well each of N visits was predicted from another one of its star."""

    coverage: NDArray[np.float64]
    """Share of the later visit's pixels inside the predictive intervals at `LEVELS`, (N, levels)."""
    chi2: NDArray[np.float64]
    """Mean square of its deviation from the prediction, in units of the predicted variance, (N,)."""
    input_chi2: NDArray[np.float64]
    """The same where the first visit itself, with its own errors, is the prediction, (N,)."""


def same_star(visits: Sequence[Observation]) -> list[tuple[int, int]]:
    """Pairs of visits, (earlier, later) by position in the list, of stars that were observed several times.

    Arguments:
        visits: With `ra` and `dec` in their meta, in degrees.

    Example:
        >>> at = [(10.0, 5.0), (80.0, 5.0), (10.0002, 5.0)]
        >>> flat = np.linspace(3900, 9100, 50), np.ones(50)
        >>> same_star([Observation(*flat, meta={"ra": ra, "dec": dec}) for ra, dec in at])
        [(0, 2)]
    """
    at = SkyCoord(*([visit.meta[name] for visit in visits] for name in ("ra", "dec")), unit=u.deg)
    first, second, *_ = at.search_around_sky(at, CLOSE * u.arcsec)
    return sorted((int(a), int(b)) for a, b in zip(first, second, strict=True) if a < b)


def predict_visits(
    model: StellarModel, pairs: Sequence[tuple[Observation, Observation]], *, seed: int = 0, **options: object
) -> VisitScores:
    """Predict every second visit from the first: draws of the clean spectrum, and new noise on each.

    The second visit's scale is fitted, since fibres lose what they will; its noise is the model's, given the
    second visit's own inverse variance.

    Arguments:
        model: One with a residual term, whose noise knows the inverse variance.
        pairs: (first visit, second visit), each one exposure with an inverse variance.
        seed: Of all draws.
        **options: Of `denoise`.

    Raises:
        ValueError: if the model's noise does not know the inverse variance.
    """
    if model.residual is None:
        raise ValueError(f"{model.name}: its noise does not know a visit's inverse variance")
    result = denoise([first for first, _ in pairs], model=model, method="importance", seed=seed, **options)
    rows = []
    for n, (first, second) in enumerate(pairs):
        batch = ObservationBatch.from_observations([first, second], model.grid, dtype=torch.float32)
        ours, theirs = (batch.select([k]) for k in range(2))
        good = (~(ours.mask | theirs.mask))[0, 0]
        draws = torch.as_tensor(flux_draws(result[n], DRAWS, seed)) / float(ours.unit_flux)
        scale = _scale(draws.mean(0), theirs, good)
        predicted = _visit(model, draws, theirs, scale, seed)[:, good].numpy()
        seen = theirs.flux[0, 0, good].numpy()
        inside, _ = pixel_coverage(predicted, seen)
        chi2 = np.mean((seen - predicted.mean(0)) ** 2 / predicted.var(0))

        again = _scale(ours.flux[0, 0], theirs, good)
        variance = 1 / theirs.ivar[0, 0, good] + again**2 / ours.ivar[0, 0, good]
        raw = ((theirs.flux - again * ours.flux)[0, 0, good].square() / variance).mean()
        rows.append((inside.mean(-1), chi2, float(raw)))
    return VisitScores(*(np.array(column) for column in zip(*rows, strict=True)))


def _scale(spectrum: Tensor, visit: ObservationBatch, good: Tensor) -> float:
    """What a spectrum (D,) has to be multiplied by to be the visit's, by least squares."""
    weight = torch.where(good, visit.ivar[0, 0], 0.0)
    return float((weight * spectrum * visit.flux[0, 0]).sum() / (weight * spectrum.square()).sum())


@torch.no_grad()
def _visit(model: StellarModel, spectra: Tensor, visit: ObservationBatch, scale: float, seed: int) -> Tensor:
    """Spectra (S, D) as the visit would have seen them, with noise of its inverse variance."""
    observed = ~visit.mask[0, 0]
    noise_std = torch.where(observed, visit.ivar[0, 0], 1.0).rsqrt()
    flow = RobustNoiseFlow(spectra, model.noise, noise_std, torch.tensor(scale), observed=observed)
    with seeded(seed):
        return flow.sample()


