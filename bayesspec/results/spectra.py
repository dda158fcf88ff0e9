"""From the draws of a result to what they stand for: clean spectra, and plain arrays for ArviZ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.distributions import NoiseFlow, RobustNoiseFlow
from bayesspec.inference.discrepancy import discrepancy_posterior
from bayesspec.inference.unseen import unseen_posterior
from bayesspec.model import StellarModel
from bayesspec.runtime import own_state, seeded

from .arviz import ArvizInput
from .result import Result
from .summary import ROWS, say

__all__ = ["arviz_input", "flux_draws"]

CHAINS = 4
"""Chains into which weighted draws are dealt: of one alone ArviZ has no R-hat."""


@own_state()
@torch.no_grad()
def flux_draws(star: Result, count: int, seed: int = 0) -> NDArray[np.float64]:
    """Equally probable clean spectra of a result of one star, (count, D), in its input's flux unit."""
    model, draws = star.model, star.draws
    latents, log_scale = (torch.as_tensor(part[0]) for part in draws.resample(count, seed=seed))
    pixels, free = (~star.observed_mask).sum(-1), star.scale != 1  # of a free scale the mean is never 1
    weight = say(torch.as_tensor(pixels), torch.as_tensor(free))[0].to(log_scale)
    exposure_unit = torch.as_tensor(star.exposure_unit[0] / float(star.unit_flux[0])).to(log_scale)
    unit = (weight * log_scale.exp() * exposure_unit).sum(-1) / weight.sum()
    spectra = (
        np.concatenate([part.cpu().numpy() for part in _decoded(model, latents)]) * unit.numpy()[:, None]
    )
    return _beyond_latents(star, spectra, seed) * np.float64(star.unit_flux[0])


def _beyond_latents(star: Result, spectra: NDArray, seed: int) -> NDArray:
    """Spectra (S, D) of a star's posterior with what latents do not say, if the model says it.

    A draw of e is added to each, and where nothing was seen each is as far from the mean as stars are there.
    """
    model, device = star.model, star.model.class_logits.device
    centre, scale = (torch.as_tensor(part).to(device) for part in (star.latents, star.scale))
    batch = _batch(star, device)
    found, remote = discrepancy_posterior(model, batch, centre, scale), unseen_posterior(model, batch, centre)
    if found is None or remote is None:
        return spectra
    drawn = torch.as_tensor(spectra).to(device)[:, None]
    rng = np.random.default_rng(seed)
    uniform = torch.as_tensor(rng.random(drawn.shape, dtype=np.float32)).to(device)
    normal = torch.as_tensor(rng.standard_normal(drawn.shape, dtype=np.float32)).to(device)
    drawn = drawn + found.sample(drawn - model.spectrum(centre), uniform, normal)
    mean = torch.as_tensor(star.model_flux).to(drawn)
    common = torch.as_tensor(rng.standard_normal((len(drawn), 1, 1), dtype=np.float32)).to(drawn)
    return (mean + remote.sample(drawn - mean, common))[:, 0].cpu().numpy()


def _batch(star: Result, device: torch.device) -> ObservationBatch:
    """What was observed of a result, as the model saw it."""
    free = np.zeros(star.scale.shape, dtype=bool)
    parts = star.observed_flux, star.observed_ivar, star.observed_mask, star.exposure_unit, free
    return ObservationBatch.from_arrays(*parts, names=star.names, device=device, dtype=torch.float32)


def _decoded(model: StellarModel, latents: Tensor) -> Iterator[Tensor]:
    for part in latents.split(ROWS):
        yield model.spectrum(part.to(model.class_logits.device))


@own_state()
@torch.no_grad()
def arviz_input(star: Result, *, replicates: int = 400, seed: int = 0) -> ArvizInput:
    """The posterior of a result of one star as plain arrays.

    Weighted draws are resampled to as many of equal weight, in four chains: their order is kept, so that each
    chain comes from other draws, and chains that disagree show weights that are not to be trusted.

    Arguments:
        star: A result of one star whose method gives draws.
        replicates: About as many draws have spectra of the posterior predictive.
        seed: Of these and of the resampling.
    """
    model, draws = star.model, star.draws
    chains, length = draws.log_density.shape[1:]
    if draws.log_weight is not None:
        chains, length, stats, warmup = CHAINS, max(1, chains * length // CHAINS), {}, {}
        latents, log_scale = (
            part.reshape(len(part), chains, length, -1) for part in draws.resample(chains * length, seed=seed)
        )
    else:
        latents, log_scale = draws.latents, draws.log_scale
        stats, warmup = draws.sample_stats, draws.warmup_stats

    # The exposures of this star, where others of the batch had more.
    depth = int(np.flatnonzero((~star.observed_mask[0]).any(-1))[-1]) + 1
    flux = star.observed_flux[0, :depth]
    latents, log_scale = latents[0], log_scale[0, ..., :depth]
    free = np.flatnonzero((log_scale != 0).any((0, 1)))
    thin = max(1, chains * length // replicates)

    device = model.class_logits.device
    batch = _batch(star, device)
    y = batch.flux[0, :depth]

    def flows(points: NDArray, scales: NDArray) -> Iterator[tuple[Tensor, NoiseFlow | RobustNoiseFlow]]:
        every = torch.as_tensor(points.reshape(-1, points.shape[-1])).to(device)
        a = torch.as_tensor(scales.reshape(-1, depth)).exp()
        rows = max(1, ROWS // depth)
        for part, scale in zip(every.split(rows), a.to(device).split(rows), strict=True):
            clean = model.spectrum(part)
            one = replace(batch, flux=y[None], ivar=batch.ivar[:, :depth], mask=batch.mask[:, :depth])
            yield clean, model.likelihood(part[:, None], clean[:, None], scale, one)

    terms = [flow.log_prob_terms(y).cpu().numpy() for _, flow in flows(latents, log_scale)]
    with seeded(seed):
        some = [
            (c.cpu().numpy(), flow.sample().cpu().numpy())
            for c, flow in flows(latents[:, ::thin], log_scale[:, ::thin])
        ]
    clean, replicated = (np.concatenate(part) for part in zip(*some, strict=True))
    by_class = model.log_joint_classes(torch.as_tensor(latents).to(device))
    used = next(flows(latents[:1, :1], log_scale[:1, :1]))[1].used[0].cpu().numpy()
    z, x, w = np.split(latents, [model.latent_dim, model.lead_dim], axis=-1)
    return ArvizInput(
        z=z,
        x=x if model.passage is None else x * model.passage.widths.cpu().numpy(),
        passage=() if model.passage is None else model.passage.names,
        w=w,
        log_scale=log_scale[..., free],
        free=free,
        class_probability=by_class.softmax(-1).cpu().numpy(),
        classes=star.classes,
        wavelength=star.wavelength,
        flux=flux,
        used=used,
        log_likelihood=np.concatenate(terms).reshape(chains, length, *flux.shape),
        replicated=replicated.reshape(chains, -1, *flux.shape),
        clean=_beyond_latents(star, clean, seed).reshape(chains, -1, clean.shape[-1]),
        thin=thin,
        sample_stats={name: values[0] for name, values in stats.items()},
        warmup_stats={name: values[0] for name, values in warmup.items()},
        attrs={
            "star": star.names[0],
            "method": star.method,
            "model": star.model_name,
            "model_version": star.model_version,
            "draws": "equally probable" if draws.log_weight is None else "resampled by importance weight",
        },
    )
