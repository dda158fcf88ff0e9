"""The measures for each spectrum of a benchmark set, for any method."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bayesspec.results.lines import LINES, equivalent_width
from bayesspec.results.result import Result
from bayesspec.training.library import CLASSES
from bayesspec.training.simulation import NoisyStars

from .coverage import interval_coverage, pixel_coverage
from .der_snr import der_snr
from .losses import clean_variance, squared_loss

__all__ = ["Scores", "class_scores", "input_scores", "interval_scores", "spectrum_scores"]

Scores = dict[str, NDArray]
"""Measures by name, each (N, ...)."""

DRAWS = 500
"""Number of posterior spectra whose percentiles are the ends of intervals."""


def input_scores(data: NoisyStars) -> Scores:
    """Scores of the input itself, exposures averaged: its loss where it is observed, and DER_SNR.

    Also `clean_variance`, of the truth's own noise, and the fraction of pixels observed.
    """
    single, unit = data.single()
    flux = single.flux * unit[:, None]
    seen = ~single.mask
    return {
        "loss_observed": squared_loss(flux, data.truth, data.truth_mask, seen),
        "der_snr": der_snr(flux, single.mask),
        "clean_variance": clean_variance(data.truth_ivar, data.truth_mask),
        "observed": (seen & ~data.truth_mask).sum(-1) / (~data.truth_mask).sum(-1),
        **_line_scores(data, flux, single.mask),
    }


def spectrum_scores(data: NoisyStars, estimate: NDArray) -> Scores:
    """Scores of denoised spectra, (N, D), in the truth's unit: losses, DER_SNR, errors of equivalent widths.

    `loss` is over all pixels of the truth, `loss_observed` over those that an exposure has, and
    `loss_missing` over the others.
    """
    seen = np.any(~data.mask, -2)
    return {
        "loss": squared_loss(estimate, data.truth, data.truth_mask),
        "loss_observed": squared_loss(estimate, data.truth, data.truth_mask, seen),
        "loss_missing": squared_loss(estimate, data.truth, data.truth_mask, ~seen),
        "der_snr": der_snr(estimate, data.truth_mask),
        **_line_scores(data, estimate, data.truth_mask),
    }


def class_scores(result: Result) -> Scores:
    """Class probabilities in the order of `CLASSES`, the class of the joint mode, latents, outlier score."""
    order = [result.classes.index(name) for name in CLASSES]
    return {
        "class_probabilities": result.class_probabilities[:, order],
        "best_class": np.array([CLASSES.index(result.classes[k]) for k in result.best_class]),
        "z": result.z,
        "outlier_score": result.outlier_score,
        "chi2": result.chi2,
    }


def interval_scores(data: NoisyStars, result: Result) -> Scores:
    """Coverage and width of posterior intervals at `LEVELS`, each (N, levels).

    `coverage` is for the star, with the truth's own noise counted against it; `coverage_missing` is for the
    pixels that no exposure has, 0 if there are none; `coverage_measured` is for the truth as measured, see
    `interval_coverage`.
    """
    names = "coverage", "coverage_missing", "width", "coverage_measured"
    seen, rows = np.any(~data.mask, -2), []
    told = {} if result.draws is None else result.draws.diagnostics
    for n, star in enumerate(result):
        draws, ivar, good = star.flux_draws(DRAWS), data.truth_ivar[n], ~data.truth_mask[n]
        inside, width = pixel_coverage(draws, data.truth[n])
        missing = good & ~seen[n]
        hidden = inside[:, missing].mean(-1) if missing.any() else np.zeros(len(inside))
        variance = np.divide(1.0, ivar, out=np.zeros(ivar.shape), where=ivar > 0)
        measured = interval_coverage(draws, data.truth[n], data.truth_mask[n], variance=variance).share
        rows.append((inside[:, good].mean(-1), hidden, width[:, good].mean(-1), measured))
    return {
        **{name: np.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)},
        **{k: v for k, v in told.items() if k in ("pareto_k", "ess_bulk")},
    }


def _line_scores(data: NoisyStars, estimate: NDArray, mask: NDArray) -> Scores:
    """Error of each equivalent width, (N,), Angstrom, and where the truth and the estimate have one."""
    scores: Scores = {}
    for name, line in LINES.items():
        true, has = equivalent_width(data.grid, data.truth, data.truth_mask, line)
        found, measured = equivalent_width(data.grid, estimate, mask, line)
        scores[f"ew {name}"] = np.where(has & measured, found - true, 0.0)
        scores[f"ew {name} measured"] = has & measured
    return scores
