"""Posteriors for ArviZ, from plain arrays, for its versions 0.x and 1.x."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bayesspec.inference.convergence import import_arviz

if TYPE_CHECKING:
    from arviz import InferenceData
    from xarray import Dataset, DataTree

__all__ = ["ArvizInput", "to_arviz"]


_UNITS = {"velocity_offset": "km / s", "ebv_excess": "mag"}
"""Units of the passage effects; the others are logs of factors."""


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
        attrs: Information about the posterior: model, method, star.
        h: Noise level and log amplitudes of the residuals, (C, T, H), for a model with a residual term.
        w: Patterns of the residual term, (C, T, R), likewise.
        x: Velocity and throughput, (C, T, P), for a model with a passage.
        passage: Names of the columns of x.
    """

    z: NDArray
    log_scale: NDArray
    free: Sequence[int] | NDArray[np.int64]
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
    h: NDArray | None = None
    w: NDArray | None = None
    x: NDArray | None = None
    passage: Sequence[str] = ()


def to_arviz(star: ArvizInput) -> InferenceData | DataTree:
    """ArviZ's container: an `InferenceData` of ArviZ 0.x, an `xarray.DataTree` of ArviZ 1.x.

    Groups: `posterior` (z; passage, by the names of its effects; h and w, amplitudes and patterns of the
    residual term; log_scale of free exposures), `sample_stats` and `warmup_sample_stats` if the sampler has
    any, `log_likelihood`, `observed_data`, `posterior_predictive` of every `thin`-th draw, `predictions` from
    the same draws (class_probability, p(C | z), and flux, the clean spectrum with its gaps filled),
    `constant_data` (the exposures on the grid, and which pixels have a term in the likelihood).

    `y` has the dimension `pixel`: the pixels of all exposures that have a term in the likelihood, with
    their `wavelength` and `exposure` as coordinates. Unobserved pixels are left out, so that leave-one-out
    cross-validation has neither NaN nor terms without data.

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
    scales: dict[str, Any] = {}
    if star.x is not None and star.x.shape[-1]:
        posterior["passage"] = (("chain", "draw", "effect"), star.x)
        scales["effect"] = np.array(star.passage, dtype=str)
        scales["unit"] = "effect", np.array([_UNITS.get(name, "") for name in star.passage], dtype=str)
    if star.h is not None and star.h.shape[-1]:
        posterior["h"] = (("chain", "draw", "size"), star.h)
        scales["size"] = np.arange(star.h.shape[-1])
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
