"""From the draws of a result to clean spectra, and to plain arrays for ArviZ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.inference.draws import Draws
from bayesspec.model import StellarModel
from bayesspec.runtime import own_state, seeded

from .arviz import ArvizInput
from .summary import BLOCK, ROWS, say

__all__ = ["Posterior", "arviz_input", "flux_draws"]

CHAINS = 4
"""Number of chains into which weighted draws are split, because R-hat needs several."""


class Posterior(NamedTuple):
    """The posterior of one star: model, observation and draws; arrays as in a `Result`."""

    model: StellarModel
    batch: ObservationBatch
    draws: Draws
    latents: NDArray
    scale: NDArray
    model_flux: NDArray
    unit_flux: NDArray


@own_state()
@torch.no_grad()
def flux_draws(star: Posterior, count: int, seed: int = 0) -> NDArray[np.float64]:
    """Posterior draws of the clean spectrum of one star, with equal weight, (count, D), in its flux unit."""
    latents, log_scale = (torch.as_tensor(part[0]) for part in star.draws.resample(count, seed=seed))
    batch = star.batch.to("cpu")
    latents, log_scale = latents.to(batch.flux), log_scale.to(batch.flux)
    weight = say((~batch.mask).sum(-1), batch.free_scale)[0].to(log_scale)
    exposure_unit = (batch.unit_flux[0] / float(star.unit_flux[0])).to(log_scale)
    unit = (weight * log_scale.exp() * exposure_unit).sum(-1) / weight.sum()
    with seeded(seed):
        spectra = _clean(star, latents, log_scale)
    return spectra * unit.numpy()[:, None] * np.float64(star.unit_flux[0])


def _clean(star: Posterior, latents: Tensor, log_scale: Tensor) -> NDArray:
    """A draw of the clean spectrum, e included, for each of S draws of the latents, (S, D)."""
    device = star.batch.flux.device
    parts = []
    for s, a in zip(latents.split(BLOCK), log_scale.split(BLOCK), strict=True):
        clean = star.model.complete(s[:, None].to(device), a[:, None].to(device), star.batch)
        parts.append(clean.sample()[:, 0].cpu().numpy())
    return np.concatenate(parts)


@own_state()
@torch.no_grad()
def arviz_input(
    star: Posterior, *, replicates: int = 400, seed: int = 0, attrs: Mapping[str, str] | None = None
) -> ArvizInput:
    """The posterior of one star as plain arrays.

    Weighted draws are resampled to the same number of equal weight, in four chains. Their order is kept, so
    that the chains come from different draws and disagree if the weights are unreliable.

    Arguments:
        star: Its posterior.
        replicates: Approximate number of draws with a spectrum of the posterior predictive.
        seed: Seed of these spectra and of the resampling.
        attrs: Further information: method, model and its version.
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

    # The exposures of this star; others of the batch may have more.
    batch = star.batch
    depth = int((~batch.mask[0]).any(-1).nonzero()[-1]) + 1
    latents, log_scale = latents[0], log_scale[0, ..., :depth]
    free = batch.free_scale[0, :depth].nonzero()[:, 0].cpu().numpy()
    thin = max(1, chains * length // replicates)
    y = batch.flux[0, :depth]
    flux = y.cpu().numpy()

    one = replace(batch, flux=y[None], ivar=batch.ivar[:, :depth], mask=batch.mask[:, :depth])

    def blocks(points: NDArray, scales: NDArray) -> Iterator[tuple[Tensor, Tensor]]:
        """Latents (S, 1, L + P + R) and log scales (S, 1, E) of the draws, in blocks."""
        every = torch.as_tensor(points.reshape(-1, 1, points.shape[-1])).to(y)
        a = torch.as_tensor(scales.reshape(-1, 1, depth)).to(y)
        rows = max(1, ROWS // depth)
        yield from zip(every.split(rows), a.split(rows), strict=True)

    terms = [model.log_prob_terms(one, *block)[:, 0].cpu().numpy() for block in blocks(latents, log_scale)]
    some = latents[:, ::thin], log_scale[:, ::thin]
    with seeded(seed):
        replicated = np.concatenate(
            [
                model.exposures(s, model.spectrum(s), a.exp(), one).sample()[:, 0].cpu().numpy()
                for s, a in blocks(*some)
            ]
        )
        clean = _clean(star._replace(batch=one), *(torch.as_tensor(p).to(y).flatten(0, 1) for p in some))
    by_class = model.log_joint_classes(torch.as_tensor(latents).to(y))
    first, a = next(blocks(latents[:1, :1], log_scale[:1, :1]))
    used = model.likelihood(first, model.spectrum(first), a.exp(), one).used[0, 0].cpu().numpy()
    names = () if model.passage is None else model.passage.names
    sizes = 0 if model.residual is None else model.residual_dim - model.residual.components
    z, x, h, w = np.split(latents, np.cumsum([model.latent_dim, len(names), sizes]), axis=-1)
    return ArvizInput(
        z=z,
        x=x if model.passage is None else x * model.passage.widths.cpu().numpy(),
        passage=names,
        h=h,
        w=w,
        log_scale=log_scale[..., free],
        free=free,
        class_probability=by_class.softmax(-1).cpu().numpy(),
        classes=model.classes,
        wavelength=model.grid.wavelength,
        flux=flux,
        used=used,
        log_likelihood=np.concatenate(terms).reshape(chains, length, *flux.shape),
        replicated=replicated.reshape(chains, -1, *flux.shape),
        clean=clean.reshape(chains, -1, clean.shape[-1]),
        thin=thin,
        sample_stats={name: values[0] for name, values in stats.items()},
        warmup_stats={name: values[0] for name, values in warmup.items()},
        attrs={
            "star": batch.names[0],
            **(attrs or {}),
            "draws": "equally probable" if draws.log_weight is None else "resampled by importance weight",
        },
    )
