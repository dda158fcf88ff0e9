"""Repeat visits: coverage of one visit's data by predictions from another visit of the same star."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from astropy import units as u
from astropy.coordinates import SkyCoord
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.benchmark.measures.coverage import pixel_coverage
from bayesspec.distributions import RobustNoiseFlow
from bayesspec.inference.denoise import denoise
from bayesspec.model import StellarModel
from bayesspec.nn import RobustNoiseNetwork
from bayesspec.observation import Observation
from bayesspec.runtime import seeded

__all__ = ["VisitScores", "predict_visits", "same_star"]

CLOSE = 5.0
"""Arcseconds within which two positions are the same star."""

DRAWS = 400
"""Number of predicted visits, whose percentiles are the ends of the intervals."""

ROBUST = 6
"""Iterations of the robust calibration fit, each with weights from the residuals of the one before."""


class VisitScores(NamedTuple):
    """How well each of N visits was predicted from another visit of the same star."""

    coverage: NDArray[np.float64]
    """Fraction of the later visit's pixels inside the predictive intervals at `LEVELS`, (N, levels)."""
    chi2: NDArray[np.float64]
    """Mean square of its deviation from the prediction, in units of the predicted variance, (N,)."""
    input_chi2: NDArray[np.float64]
    """The same if the first visit itself, with its own errors, is the prediction, (N,)."""


def same_star(visits: Sequence[Observation]) -> list[tuple[int, int]]:
    """Pairs of visits, (earlier, later) by position in the list, of stars that were observed several times.

    Arguments:
        visits: Observations with `ra` and `dec` in their meta, in degrees.

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
    model: StellarModel,
    pairs: Sequence[tuple[Observation, Observation]],
    *,
    degree: int = 12,
    between: tuple[float, float] = (0.0, np.inf),
    seed: int = 0,
    **options: Any,
) -> VisitScores:
    """Predict every second visit from the first: draws of the clean spectrum, with new noise on each.

    The flux calibration of single visits is only accurate to several per cent, and less at the ends. So the
    ratio of the visits is fitted as a polynomial of the wavelength and treated as known. The second visit's
    noise is that of the model, given the visit's own inverse variance.

    Arguments:
        model: A model with a residual term, whose noise model uses the inverse variance.
        pairs: (first visit, second visit), each one exposure with an inverse variance.
        degree: Degree of the polynomial; 0: a constant.
        between: Wavelength range, Angstrom, of the pixels that are scored; the polynomial is fitted to all.
        seed: Seed of all draws.
        **options: Options of `denoise`.

    Raises:
        ValueError: if the model's noise does not use the inverse variance.
    """
    if not isinstance(model.noise, RobustNoiseNetwork):
        raise ValueError(f"{model.name}: its noise model does not use a visit's inverse variance")
    result = denoise([first for first, _ in pairs], model=model, method="importance", seed=seed, **options)
    scored = torch.as_tensor((model.grid.wavelength >= between[0]) & (model.grid.wavelength <= between[1]))
    rows = []
    for n, (first, second) in enumerate(pairs):
        batch = ObservationBatch.from_observations([first, second], model.grid, dtype=torch.float32)
        ours, theirs = (batch.select([k]) for k in range(2))
        good = (~(ours.mask | theirs.mask))[0, 0]
        draws = torch.as_tensor(result.flux_draws(DRAWS, n, seed=seed) / float(ours.unit_flux)).float()
        scale = _calibrated(draws.mean(0), theirs, good, degree)
        again = _calibrated(ours.flux[0, 0], theirs, good, degree)
        good &= scored
        predicted = _visit(model.noise, draws, theirs, scale, seed)[:, good].numpy()
        seen = theirs.flux[0, 0, good].numpy()
        inside, _ = pixel_coverage(predicted, seen)
        chi2 = np.mean((seen - predicted.mean(0)) ** 2 / predicted.var(0))

        again = again[good]
        variance = 1 / theirs.ivar[0, 0, good] + again.square() / ours.ivar[0, 0, good]
        raw = ((theirs.flux[0, 0, good] - again * ours.flux[0, 0, good]).square() / variance).mean()
        rows.append((inside.mean(-1), chi2, float(raw)))
    return VisitScores(*(np.array(column) for column in zip(*rows, strict=True)))


def _calibrated(spectrum: Tensor, visit: ObservationBatch, good: Tensor, degree: int) -> Tensor:
    """The factor from a spectrum (D,) to a visit, as a polynomial of the pixel, (D,).

    By iteratively reweighted least squares with the weights of a Student-t, so that cosmic rays are ignored.
    """
    powers = torch.as_tensor(chebvander(np.linspace(-1, 1, spectrum.shape[-1]), degree))
    root = torch.where(good, visit.ivar[0, 0], 0.0).sqrt().double()
    columns, wanted, say = powers * (root * spectrum)[:, None], root * visit.flux[0, 0], torch.ones_like(root)
    for _ in range(ROBUST):
        found = torch.linalg.lstsq(say[:, None] * columns, (say * wanted)[:, None], driver="gelsd").solution
        left = wanted - (columns @ found)[:, 0]
        say = (1 + (left / left[good].abs().median().clamp_min(1e-9)).square() / 4).rsqrt()
    return (powers @ found)[:, 0].to(spectrum)


@torch.no_grad()
def _visit(
    noise: RobustNoiseNetwork, spectra: Tensor, visit: ObservationBatch, scale: Tensor, seed: int
) -> Tensor:
    """Spectra (S, D) times a scale (D,) as observed by the visit, with noise according to its ivar."""
    observed = ~visit.mask[0, 0]
    noise_std = torch.where(observed, visit.ivar[0, 0], 1.0).rsqrt()
    flow = RobustNoiseFlow(spectra * scale, noise, noise_std, observed=observed)
    with seeded(seed):
        return flow.sample()
