"""The columns of a `Result`, from a mode or from draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.inference.density import MapEstimate
from bayesspec.inference.draws import Draws
from bayesspec.inference.target import Target
from bayesspec.model import StellarModel
from bayesspec.nn.passage import ARMS

from .diagnostics import Flag, PriorTail, doubts, features, notes, outlier_score, significance

__all__ = ["point_columns", "posterior_columns"]

ROWS = 512
"""Number of latents that are decoded at once."""

SOME, BLOCK = 400, 50
"""Draws of a star that are used for the mean and standard deviation of the flux, and how many at once."""


@torch.no_grad()
def point_columns(
    model: StellarModel, batch: ObservationBatch, estimate: MapEstimate, rarity: PriorTail
) -> dict[str, Any]:
    """Columns of a result whose method gives a point estimate."""
    columns = {
        "latents": estimate.z,
        "class_probabilities": model.log_joint_classes(estimate.z).softmax(-1),
        "best_class": estimate.klass,
        "log_density": estimate.log_density,
        "scale": estimate.log_scale.exp(),
        "outlier_score": rarity(estimate.z, estimate.klass),
    }
    spectrum = model.complete(estimate.z, estimate.log_scale, batch).mean
    promise = estimate.promise
    if promise.isnan().any():
        promise = torch.where(promise.isnan(), _promise(model, batch, estimate), promise)
    return _columns(model, batch, spectrum, columns, {"promise": promise.cpu().numpy()})


def _promise(model: StellarModel, batch: ObservationBatch, estimate: MapEstimate) -> Tensor:
    """Gain in log density, (N,), by one Newton step from where a first-order engine has stopped."""
    target = Target(model, batch, "joint")
    theta = target.join(estimate.z, estimate.log_scale)
    _, gradient = target.gradient(theta)
    return 0.5 * (gradient * torch.linalg.solve(target.metric(theta), gradient)).sum(-1)


@torch.no_grad()
def posterior_columns(
    model: StellarModel, batch: ObservationBatch, draws: Draws, rarity: PriorTail
) -> dict[str, Any]:
    """Columns of a result whose method gives draws: posterior means and standard deviations.

    The mean and standard deviation of the flux are those of spectrum times scale, because the data determine
    only this product.
    """
    count = draws.log_density[0].size
    latents = torch.as_tensor(draws.latents).reshape(len(draws), count, -1).to(batch.flux)
    log_scale = torch.as_tensor(draws.log_scale).reshape(len(draws), count, -1).to(batch.flux)
    log_density = torch.as_tensor(draws.log_density).reshape(len(draws), count).to(latents)
    # A draw may be so far out that its density overflows; this keeps the mean of all finite.
    log_density = log_density.clamp_min(torch.finfo(log_density.dtype).min / count)
    weight = torch.full_like(log_density, 1.0 / count)
    if draws.log_weight is not None:
        weight = torch.as_tensor(draws.log_weight).reshape(len(draws), count).exp().to(weight)

    centre = torch.einsum("ns,nsl->nl", weight, latents)
    _, away, _ = model.parts(latents - centre[:, None])
    x_std = torch.einsum("ns,nsp->np", weight, away.square()).sqrt()
    scale = torch.einsum("ns,nse->ne", weight, log_scale.exp())
    mean, std = _moments(model, batch, draws)

    by_class = model.log_joint_classes(latents).softmax(-1)
    probabilities = torch.einsum("ns,nsk->nk", weight, by_class)
    best = probabilities.argmax(-1)
    score = torch.stack([rarity(points, k.expand(count)) for points, k in zip(latents, best, strict=True)])
    columns = {
        "latents": centre,
        "class_probabilities": probabilities,
        "best_class": best,
        "log_density": (weight * log_density).sum(-1),
        "scale": scale,
        "outlier_score": (weight * score).sum(-1),
        "model_flux_std": std,
        "passage_std": x_std if model.passage is None else model.passage.physical(x_std),
    }
    return _columns(model, batch, mean, columns, draws.diagnostics)


def _moments(model: StellarModel, batch: ObservationBatch, draws: Draws) -> tuple[Tensor, Tensor]:
    """Means and standard deviations, (N, D), of the clean spectra, scale and e included.

    From `SOME` draws of equal weight. The distribution of e is known for each, so the law of total variance
    applies: the variance of the conditional means, plus the mean of the conditional variances.
    """
    if model.residual is None:
        return _weighted_moments(model, batch, draws)
    parts = draws.resample(min(SOME, draws.log_density[0].size))
    latents, log_scale = (torch.as_tensor(part).to(batch.flux) for part in parts)
    mean, std = [], []
    for n, (points, scales) in enumerate(zip(latents, log_scale, strict=True)):
        star = batch.select([n])
        unit = _unit_flux(star, scales.exp())
        unit = (unit / unit.mean()).to(points)
        flux, variance = [], []
        for s, a, u in zip(points.split(BLOCK), scales.split(BLOCK), unit.split(BLOCK), strict=True):
            clean = model.complete(s[:, None], a[:, None], star)
            flux.append(u[:, None] * clean.mean[:, 0])
            variance.append(u[:, None].square() * clean.variance[:, 0])
        every = torch.cat(flux)
        mean.append(every.mean(0))
        std.append((every.var(0, correction=0) + torch.cat(variance).mean(0)).sqrt())
    return torch.stack(mean), torch.stack(std)


def _weighted_moments(model: StellarModel, batch: ObservationBatch, draws: Draws) -> tuple[Tensor, Tensor]:
    """The same for a model without e, from all draws with their weights."""
    count, mean, std = draws.log_density[0].size, [], []
    latents, log_scale = (
        torch.as_tensor(part).reshape(len(draws), count, -1).to(batch.flux)
        for part in (draws.latents, draws.log_scale)
    )
    log_weight = np.zeros((len(draws), count)) if draws.log_weight is None else draws.log_weight
    weight = torch.as_tensor(log_weight).reshape(len(draws), count).softmax(-1).to(latents)
    for n, (points, scales, w) in enumerate(zip(latents, log_scale, weight, strict=True)):
        unit = _unit_flux(batch.select([n]), scales.exp())
        unit = (unit / (w.to(unit) @ unit)).to(w)
        offset = model.spectrum(w @ points)  # subtracted so that the squares lose no digits
        total = square = torch.zeros_like(offset)
        for s, u, part in zip(points.split(ROWS), unit.split(ROWS), w.split(ROWS), strict=True):
            away = model.spectrum(s) * u[:, None] - offset
            total, square = total + part @ away, square + part @ away.square()
        mean.append(offset + total)
        std.append((square - total.square()).clamp_min(0).sqrt())
    return torch.stack(mean), torch.stack(std)


def _unit_flux(batch: ObservationBatch, scale: Tensor) -> Tensor:
    """The flux that corresponds to 1, (N,), for scales (N, E): the mean over exposures, weighted by pixels.

    If some exposures have a known scale, only these are used.
    """
    weight = say((~batch.mask).sum(-1), batch.free_scale).double()
    return (weight * scale * batch.unit_flux).sum(-1) / weight.sum(-1)


def say(pixels: Tensor, free: Tensor) -> Tensor:
    """Weight of each exposure in the unit, (N, E), from numbers of pixels and whether scales are free."""
    known = torch.where(free, 0, pixels)
    return torch.where(known.any(-1, keepdim=True), known, pixels)


def _columns(
    model: StellarModel,
    batch: ObservationBatch,
    spectrum: Tensor,
    columns: dict[str, Tensor],
    diagnostics: dict[str, NDArray],
) -> dict[str, Any]:
    """Complete the columns with those that are the same for every method: observation, fit and warnings."""
    scale, latents = columns["scale"], columns.pop("latents")
    flow = model.likelihood(latents, model.spectrum(latents), scale, batch)
    used = flow.used
    xi = flow.whiten(batch.flux)
    z, x, w = model.parts(latents)
    tensors = {
        **columns,
        "z": z,
        "x": x,
        "passage": x if model.passage is None else model.passage.physical(x),
        "w": w,
        "model_flux": spectrum,
        "model_rest_flux": model.rest_spectrum(latents),
        "unit_flux": _unit_flux(batch, scale),
        "free_scale": batch.free_scale,
        "exposure_unit": batch.unit_flux,
        "observed_flux": batch.flux,
        "observed_ivar": batch.ivar,
        "observed_mask": batch.mask,
        "chi2": torch.where(used, xi, 0.0).square().sum((-2, -1)) / used.sum((-2, -1)).clamp_min(1),
        "used_fraction": used.to(scale.dtype).sum((-2, -1)) / (~batch.mask).any(-1).sum(-1) / used.shape[-1],
        "observed_fraction": batch.observed_fraction,
        "residual_share": _residual_share(model, batch, spectrum, latents, scale),
    }
    if model.residual is not None:  # in units of the noise that the pipeline states
        level = torch.where(batch.noise_known, model.noise_level(latents, batch), 0.0)
        tensors["chi2"] = tensors["chi2"] * (2 * level).exp()
    signal = significance(flow, batch)
    lacking = torch.full_like(signal, torch.nan)
    if model.residual is not None:
        strength, error = features(model, batch, flow, torch.cat([z, x], dim=-1))
        doubt = doubts(columns["outlier_score"], tensors["chi2"], signal, strength, error)
        tensors["outlier_score"] = outlier_score(doubt)
        lacking = torch.where(doubt.argmin(0) == len(doubt) - 1, strength, torch.nan)
    arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in tensors.items()}
    step = torch.zeros_like(signal)
    if model.passage is not None and ARMS in model.passage.names:
        step = model.passage.physical(x)[:, model.passage.names.index(ARMS)]
    doubtful = signal.tolist(), lacking.tolist(), step.tolist()
    told = zip(arrays["chi2"], arrays["outlier_score"], *doubtful, strict=True)
    said = [
        notes(*star, {name: values[n] for name, values in diagnostics.items()}) for n, star in enumerate(told)
    ]
    arrays["flags"] = np.array([sum(one, Flag(0)) for one in said], dtype=np.int64)
    arrays["warnings"] = [tuple(one.values()) for one in said]
    return arrays


def _residual_share(
    model: StellarModel, batch: ObservationBatch, spectrum: Tensor, latents: Tensor, scale: Tensor
) -> Tensor:
    """Fraction of the squared difference of observed flux and G(z) that is attributed to the star, (N,)."""
    if model.residual is None:
        return torch.zeros_like(scale[:, 0])
    z, x, _ = model.parts(latents)
    generated = model.generator(z) if model.passage is None else model.passage(model.generator(z), x)
    star = (spectrum - generated)[:, None]
    noise = batch.flux / scale[..., None] - spectrum[:, None]
    taken, left = (torch.where(batch.mask, 0.0, part).square().sum((-2, -1)) for part in (star, noise))
    return taken / (taken + left).clamp_min(1e-12)
