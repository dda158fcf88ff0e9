"""Posteriors for ArviZ, from plain arrays: its diagnostics, and its container of either generation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from arviz import InferenceData
    from xarray import Dataset, DataTree

__all__ = ["ArvizInput", "chain_diagnostics", "import_arviz", "pareto_smooth", "to_arviz"]


def import_arviz() -> ModuleType:
    """ArviZ, without what its last 0.x release says about the next one on import."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
        import arviz
    return arviz


def chain_diagnostics(values: ArrayLike) -> dict[str, float]:
    """Rank-normalised R-hat, and effective sample sizes of bulk and tails, each of the worst quantity.

    Arguments:
        values: (chains, draws) or (chains, draws, P), P quantities.

    Returns:
        `r_hat`, `ess_bulk`, `ess_tail`; an R-hat that does not exist (less than eight draws, or chains that
        do not move) is infinite, so is not taken for a good one, and its effective sample sizes are 0. One
        chain alone is taken for two, its halves.

    References:
        | Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, Bayesian Analysis 16, 667
        | https://arxiv.org/abs/1903.08008

    Example:
        >>> found = chain_diagnostics(np.random.default_rng(0).standard_normal((4, 300, 3)))
        >>> found["r_hat"] < 1.01, found["ess_bulk"] > 900, found["ess_tail"] > 900
        (True, True, True)
    """
    arviz = import_arviz()
    values = np.asarray(values, dtype=float)
    if len(values) == 1:
        half = values.shape[1] // 2
        values = np.stack([values[0, :half], values[0, half : 2 * half]])
    columns = values.reshape(*values.shape[:2], -1).transpose(2, 0, 1)
    found = {"r_hat": 1.0, "ess_bulk": np.inf, "ess_tail": np.inf}
    for column in columns:
        if column.shape[1] < 4 or not (np.ptp(column, axis=1) > 0).all():
            return {"r_hat": np.inf, "ess_bulk": 0.0, "ess_tail": 0.0}
        found["r_hat"] = max(float(arviz.rhat(column)), found["r_hat"])
        found["ess_bulk"] = min(found["ess_bulk"], float(arviz.ess(column, method="bulk")))
        tail = arviz.ess(column, method="tail", prob=(0.05, 0.95))
        found["ess_tail"] = min(found["ess_tail"], float(tail))
    return found


def pareto_smooth(log_ratio: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Normalised Pareto-smoothed log weights, (N, S), and Pareto's k, (N,), of log importance ratios (N, S).

    A k that cannot be fitted is infinite.

    References:
        | Vehtari, Simpson, Gelman, Yao & Gabry 2024, JMLR 25, 72 (https://arxiv.org/abs/1507.02646)

    Example:
        >>> log_weight, k = pareto_smooth(np.random.default_rng(0).normal(0, 0.3, (2, 1000)))
        >>> np.exp(log_weight).sum(-1).round(6), bool((k < 0.7).all())
        (array([1., 1.]), True)
    """
    try:
        from arviz_stats.base import array_stats
    except ModuleNotFoundError:
        psislw, sign = import_arviz().psislw, 1.0
    else:
        psislw, sign = array_stats.psislw, -1.0  # ArviZ 1.x asks for log likelihoods to leave out
    smoothed, k = log_ratio - log_ratio.max(-1, keepdims=True), np.full(len(log_ratio), np.inf)
    for n, row in enumerate(smoothed.copy()):
        with suppress(ValueError):  # raised where all weights in the tail are the same
            smoothed[n], k[n] = psislw(sign * row)
    smoothed -= np.logaddexp.reduce(smoothed, axis=-1, keepdims=True)
    return smoothed, np.where(np.isnan(k), np.inf, k)


@dataclass(frozen=True, eq=False)
class ArvizInput:
    """The posterior of one star as plain arrays; C chains of T draws, E exposures, D pixels.

    Arguments:
        z: Latents, (C, T, L).
        log_scale: Log scales of the exposures whose scale is free, (C, T, F).
        free: Their positions among the exposures, (F,).
        class_probability: p(C | z) of each draw, (C, T, K).
        classes: Names of the K classes.
        wavelength: (D,), Angstrom.
        flux: Exposures, (E, D).
        used: True where a pixel has a term in the likelihood, (E, D).
        log_likelihood: Log density of every pixel given those before it, (C, T, E, D).
        replicated: Exposures drawn from the posterior predictive for every `thin`-th draw, (C, T', E, D).
        clean: Clean spectra of the same draws, (C, T', D).
        thin: See `replicated`.
        sample_stats: Statistics of the sampler, each (C, T), by ArviZ's names.
        warmup_stats: The same of its warm-up, each (C, W).
        attrs: What to know about the posterior: model, method, star.
        w: Latents of the residual term, (C, T, R), of a model that has one.
        x: Velocity and throughput, (C, T, P), of a model that has a passage.
        passage: Their names.
    """

    z: NDArray
    log_scale: NDArray
    free: Sequence[int]
    class_probability: NDArray
    classes: Sequence[str]
    wavelength: NDArray
    flux: NDArray
    used: NDArray[np.bool_]
    log_likelihood: NDArray
    replicated: NDArray
    clean: NDArray
    thin: int = 1
    sample_stats: Mapping[str, NDArray] = field(default_factory=dict)
    warmup_stats: Mapping[str, NDArray] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    w: NDArray | None = None
    x: NDArray | None = None
    passage: Sequence[str] = ()


def to_arviz(star: ArvizInput) -> InferenceData | DataTree:
    """ArviZ's container: an `InferenceData` of ArviZ 0.x, an `xarray.DataTree` of ArviZ 1.x.

    Groups: `posterior` (z, passage, w of a residual term, log_scale of free exposures), `sample_stats` and
    `warmup_sample_stats` where the sampler has any, `log_likelihood`, `observed_data`,
    `posterior_predictive` of every `thin`-th draw, `predictions` from the same draws (class_probability,
    p(C | z), and flux, the clean spectrum with its gaps filled), `constant_data` (the exposures on the grid,
    and which pixels have a term in the likelihood).

    `y` has the dimension `pixel`: the pixels of all exposures that have a term in the likelihood, with
    their `wavelength` and `exposure` as coordinates. Pixels that were not observed are not there, so that
    leave-one-out cross-validation has neither NaN nor terms without data.

    Arguments:
        star: The posterior of one star.
    """
    import xarray

    c, t, latents = star.z.shape
    chains, draws = np.arange(c), np.arange(t)
    thinned = draws[:: star.thin]
    exposure, column = np.nonzero(star.used)
    pixels = {
        "pixel": np.arange(len(column)),
        "wavelength": ("pixel", np.asarray(star.wavelength)[column], {"units": "Angstrom"}),
        "exposure": ("pixel", exposure),
    }
    grid = ("wavelength", np.asarray(star.wavelength), {"units": "Angstrom"})
    every, some = {"chain": chains, "draw": draws}, {"chain": chains, "draw": thinned}

    posterior = {"z": (("chain", "draw", "latent"), star.z)}
    scales = {}
    if star.x is not None and star.x.shape[-1]:
        posterior["passage"] = (("chain", "draw", "effect"), star.x)
        scales["effect"] = np.array(star.passage, dtype=str)
    if star.w is not None and star.w.shape[-1]:
        posterior["w"] = (("chain", "draw", "component"), star.w)
        scales["component"] = np.arange(star.w.shape[-1])
    if len(star.free):
        posterior["log_scale"] = (("chain", "draw", "exposure"), star.log_scale)
        scales["exposure"] = np.asarray(star.free)
    groups = {
        "posterior": xarray.Dataset(posterior, {**every, "latent": np.arange(latents), **scales}),
        "log_likelihood": xarray.Dataset(
            {"y": (("chain", "draw", "pixel"), star.log_likelihood[..., star.used])}, {**every, **pixels}
        ),
        "posterior_predictive": xarray.Dataset(
            {"y": (("chain", "draw", "pixel"), star.replicated[..., star.used])}, {**some, **pixels}
        ),
        "observed_data": xarray.Dataset({"y": ("pixel", star.flux[star.used])}, pixels),
        "predictions": xarray.Dataset(
            {
                "class_probability": (("chain", "draw", "class"), star.class_probability[:, :: star.thin]),
                "flux": (("chain", "draw", "wavelength"), star.clean),
            },
            {**some, "class": np.array(star.classes, dtype=str), "wavelength": grid},
        ),
        "constant_data": xarray.Dataset(
            {
                "flux": (("exposure", "wavelength"), star.flux),
                "used": (("exposure", "wavelength"), star.used),
            },
            {"exposure": np.arange(len(star.flux)), "wavelength": grid},
        ),
    }
    if star.sample_stats:
        groups["sample_stats"] = _statistics(star.sample_stats)
    if star.warmup_stats:
        groups["warmup_sample_stats"] = _statistics(star.warmup_stats)
    for group in groups.values():
        group.attrs.update(star.attrs)
    return _container(groups, dict(star.attrs))


def _statistics(stats: Mapping[str, NDArray]) -> Dataset:
    import xarray

    chains, draws = next(iter(stats.values())).shape
    return xarray.Dataset(
        {name: (("chain", "draw"), values) for name, values in stats.items()},
        {"chain": np.arange(chains), "draw": np.arange(draws)},
    )


def _container(groups: dict[str, Dataset], attrs: dict[str, Any]) -> InferenceData | DataTree:
    arviz = import_arviz()
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(attrs=attrs, save_warmup=True, **groups)
    import xarray

    tree = xarray.DataTree.from_dict(groups)
    tree.attrs.update(attrs)
    return tree
