"""From a mode or from draws to the columns of a `Result`, and from draws to ArviZ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.distributions import ClassKDE, NoiseFlow
from bayesspec.model import StellarModel
from bayesspec.observation import ObservationBatch
from bayesspec.runtime import seeded

from .arviz import ArvizInput
from .draws import Draws
from .map import MapEstimate
from .result import Result

__all__ = ["PriorTail", "arviz_input", "flux_draws", "point_columns", "posterior_columns"]

RARE = 1e-3
"""Outlier score below which a star is said to be outside its class."""

EXCESS_NOISE = 4.0
"""Mean square of the whitened noise above which it is said that the model does not describe the data."""

R_HAT, ESS, PARETO_K = 1.01, 400.0, 0.7
"""What chains, and weights, must keep to be trusted (Vehtari et al. 2021, 2024)."""

_ROWS = 512
"""Latents that are decoded at once."""


class PriorTail:
    """How rare a latent is in a class: the share of the class's own draws that are less probable."""

    @torch.no_grad()
    def __init__(self, model: StellarModel, seed: int, draws: int = 4096) -> None:
        self.prior = prior = model.prior
        with seeded(seed):
            every = torch.arange(len(model.classes), device=model.class_logits.device)
            of_class = self.prior(every)
            drawn = of_class.sample((draws,)).unbind(1)
        # Each class by itself: the density of all classes at once would be asked for every class's draws.
        first = torch.zeros(draws, dtype=torch.long, device=every.device)
        density = [
            ClassKDE(
                first, *(part[k : k + 1] for part in (prior.centres, prior.log_weights, prior.bandwidth))
            )
            for k in range(len(drawn))
        ]
        self.sorted = torch.stack(
            [own.log_prob(z).sort().values for own, z in zip(density, drawn, strict=True)]
        )

    def __call__(self, z: Tensor, klass: Tensor) -> Tensor:
        """The score of latents (N, L) in classes (N,)."""
        density = self.prior(klass).log_prob(z)
        below = torch.searchsorted(self.sorted[klass], density[:, None]).squeeze(-1)
        return (below + 1) / (self.sorted.shape[-1] + 1)


@torch.no_grad()
def point_columns(
    model: StellarModel, batch: ObservationBatch, estimate: MapEstimate, rarity: PriorTail
) -> dict[str, Any]:
    """Columns of a result whose method gives one point of the posterior."""
    columns = {
        "z": estimate.z,
        "class_probabilities": model.log_joint_classes(estimate.z).softmax(-1),
        "best_class": estimate.klass,
        "log_density": estimate.log_density,
        "scale": estimate.log_scale.exp(),
        "outlier_score": rarity(estimate.z, estimate.klass),
    }
    return _columns(model, batch, model.generator(estimate.z), columns, {})


@torch.no_grad()
def posterior_columns(
    model: StellarModel, batch: ObservationBatch, draws: Draws, rarity: PriorTail
) -> dict[str, Any]:
    """Columns of a result whose method gives draws: posterior means and standard deviations.

    The mean and width of the flux are those of the product of spectrum and scale, which the data determine,
    not of the factors.
    """
    count = draws.log_density[0].size
    device = batch.flux.device
    z = torch.as_tensor(draws.z).reshape(len(draws), count, -1).to(device)
    log_scale = torch.as_tensor(draws.log_scale).reshape(len(draws), count, -1).to(device)
    log_density = torch.as_tensor(draws.log_density).reshape(len(draws), count).to(z)
    weight = torch.full((len(draws), count), 1.0 / count, device=device)
    if draws.log_weight is not None:
        weight = torch.as_tensor(draws.log_weight).reshape(len(draws), count).exp().to(weight)

    mean, std = [], []
    for n, (points, scales, w) in enumerate(zip(z, log_scale, weight, strict=True)):
        unit = _unit_flux(batch.select([n]), scales.exp())
        unit = unit / (w @ unit)
        total = square = 0.0
        offset = model.generator(w @ points)  # of the squares, which cost digits without it
        for s, u, part in zip(points.split(_ROWS), unit.split(_ROWS), w.split(_ROWS), strict=True):
            away = model.generator(s) * u[:, None] - offset
            total, square = total + part @ away, square + part @ away.square()
        mean.append(offset + total)
        std.append((square - total.square()).clamp_min(0).sqrt())

    by_class = model.log_joint_classes(z).softmax(-1)
    probabilities = torch.einsum("ns,nsk->nk", weight, by_class)
    best = probabilities.argmax(-1)
    score = torch.stack([rarity(points, k.expand(count)) for points, k in zip(z, best, strict=True)])
    columns = {
        "z": torch.einsum("ns,nsl->nl", weight, z),
        "class_probabilities": probabilities,
        "best_class": best,
        "log_density": (weight * log_density).sum(-1),
        "scale": torch.einsum("ns,nse->ne", weight, log_scale.exp()),
        "outlier_score": (weight * score).sum(-1),
        "model_flux_std": torch.stack(std),
    }
    return _columns(model, batch, torch.stack(mean), columns, draws.diagnostics)


def _unit_flux(batch: ObservationBatch, scale: Tensor) -> Tensor:
    """The flux that 1 stands for, (N,), for scales (N, E): the exposures', by the pixels that they have."""
    weight = (~batch.mask).sum(-1).to(scale.dtype)
    return (weight * scale * batch.unit_flux).sum(-1) / weight.sum(-1)


def _columns(
    model: StellarModel,
    batch: ObservationBatch,
    spectrum: Tensor,
    columns: dict[str, Tensor],
    diagnostics: dict[str, NDArray],
) -> dict[str, Any]:
    """What every method says of the observation and of the fit, beside what it says of the star."""
    scale = columns["scale"]
    flow = NoiseFlow(spectrum[:, None], model.noise, scale, ~batch.mask)
    used = flow.used
    xi = flow.xi(flow.residual(batch.flux))
    tensors = {
        **columns,
        "model_flux": spectrum,
        "unit_flux": _unit_flux(batch, scale),
        "exposure_unit": batch.unit_flux,
        "observed_flux": batch.flux,
        "observed_ivar": batch.ivar,
        "observed_mask": batch.mask,
        "chi2": torch.where(used, xi, 0.0).square().sum((-2, -1)) / used.sum((-2, -1)).clamp_min(1),
        "used_fraction": used.to(scale.dtype).sum((-2, -1)) / (~batch.mask).any(-1).sum(-1) / used.shape[-1],
        "observed_fraction": batch.observed_fraction,
    }
    arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in tensors.items()}
    arrays["warnings"] = [
        _notes(chi2, outlier, {name: values[n] for name, values in diagnostics.items()})
        for n, (chi2, outlier) in enumerate(zip(arrays["chi2"], arrays["outlier_score"], strict=True))
    ]
    return arrays


def _notes(chi2: float, outlier: float, diagnostics: dict[str, float]) -> tuple[str, ...]:
    notes = []
    if outlier < RARE:
        notes.append(f"outside its class: latents rarer than this have probability {outlier:.1g}")
    if chi2 > EXCESS_NOISE:
        notes.append(f"outside the model: the noise is {np.sqrt(chi2):.1f} times as large as the model's")
    if diagnostics.get("r_hat", 1.0) >= R_HAT:
        notes.append(f"chains disagree: R-hat {diagnostics['r_hat']:.3f}")
    by_chains = diagnostics.get("handed_over", "r_hat" in diagnostics)
    if by_chains and (ess := min(diagnostics["ess_bulk"], diagnostics["ess_tail"])) <= ESS:
        notes.append(f"few effective draws: {ess:.0f}")
    if diagnostics.get("divergences", 0):
        notes.append(f"{diagnostics['divergences']:.0f} divergences")
    if diagnostics.get("pareto_k", 0.0) > PARETO_K:
        notes.append(
            f"weights not to be trusted, Pareto k {diagnostics['pareto_k']:.2f}: drawn by NUTS instead"
        )
    return tuple(notes)


@torch.no_grad()
def flux_draws(star: Result, count: int, seed: int = 0) -> NDArray[np.float32]:
    """Equally probable clean spectra of a result of one star, (count, D), in its input's flux unit."""
    model, draws = star.model, star.draws
    z, log_scale = (torch.as_tensor(part[0]) for part in draws.resample(count, seed=seed))
    weight = torch.as_tensor((~star.observed_mask[0]).sum(-1)).to(log_scale)
    exposure_unit = torch.as_tensor(star.exposure_unit[0]).to(log_scale)
    unit = (weight * log_scale.exp() * exposure_unit).sum(-1) / weight.sum()
    return np.concatenate([part.cpu().numpy() for part in _decoded(model, z)]) * unit.numpy()[:, None]


def _decoded(model: StellarModel, z: Tensor) -> Iterator[Tensor]:
    for part in z.split(_ROWS):
        yield model.generator(part.to(model.class_logits.device))


@torch.no_grad()
def arviz_input(star: Result, *, replicates: int = 400, seed: int = 0) -> ArvizInput:
    """The posterior of a result of one star as plain arrays.

    Weighted draws are resampled to as many of equal weight, in one chain.

    Arguments:
        star: A result of one star whose method gives draws.
        replicates: About as many draws have spectra of the posterior predictive.
        seed: Of these and of the resampling.
    """
    model, draws = star.model, star.draws
    chains, length = draws.log_density.shape[1:]
    if draws.log_weight is not None:
        z, log_scale = (part[:, None] for part in draws.resample(chains * length, seed=seed))
        chains, length, stats, warmup = 1, chains * length, {}, {}
    else:
        z, log_scale, stats, warmup = draws.z, draws.log_scale, draws.sample_stats, draws.warmup_stats

    # The exposures of this star, where others of the batch had more.
    depth = int(np.flatnonzero((~star.observed_mask[0]).any(-1))[-1]) + 1
    flux, mask = star.observed_flux[0, :depth], star.observed_mask[0, :depth]
    z, log_scale = z[0], log_scale[0, ..., :depth]
    free = np.flatnonzero((log_scale != 0).any((0, 1)))
    thin = max(1, chains * length // replicates)

    device, dtype = model.class_logits.device, model.class_logits.dtype
    y, seen = torch.as_tensor(flux).to(device, dtype), torch.as_tensor(~mask).to(device)

    def flows(latents: NDArray, scales: NDArray) -> Iterator[tuple[Tensor, NoiseFlow]]:
        points, a = torch.as_tensor(latents.reshape(-1, latents.shape[-1])), torch.as_tensor(scales)
        rows = max(1, _ROWS // depth)
        for s, part in zip(points.split(rows), a.reshape(-1, depth).exp().split(rows), strict=True):
            clean = model.generator(s.to(device))
            yield clean, NoiseFlow(clean[:, None], model.noise, part.to(device), seen)

    terms = [flow.log_prob_terms(y).cpu().numpy() for _, flow in flows(z, log_scale)]
    with seeded(seed):
        some = [
            (c.cpu().numpy(), flow.sample().cpu().numpy())
            for c, flow in flows(z[:, ::thin], log_scale[:, ::thin])
        ]
    clean, replicated = (np.concatenate(part) for part in zip(*some, strict=True))
    probability = model.log_joint_classes(torch.as_tensor(z).to(device)).softmax(-1).cpu().numpy()
    used = next(flows(z[:1, :1], log_scale[:1, :1]))[1].used[0].cpu().numpy()
    return ArvizInput(
        z=z,
        log_scale=log_scale[..., free],
        free=free,
        class_probability=probability,
        classes=star.classes,
        wavelength=star.wavelength,
        flux=flux,
        used=used,
        log_likelihood=np.concatenate(terms).reshape(chains, length, *flux.shape),
        replicated=replicated.reshape(chains, -1, *flux.shape),
        clean=clean.reshape(chains, -1, clean.shape[-1]),
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
