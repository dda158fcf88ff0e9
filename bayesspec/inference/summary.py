"""From a mode or from draws to the columns of a `Result`, and from draws to ArviZ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Size, Tensor

from bayesspec.distributions import NoiseFlow, RobustNoiseFlow
from bayesspec.model import StellarModel
from bayesspec.nn.passage import ARMS
from bayesspec.observation import ObservationBatch
from bayesspec.runtime import own_state, seeded

from .arviz import ArvizInput
from .discrepancy import discrepancy_posterior
from .draws import Draws
from .map import MapEstimate
from .result import Result
from .target import Target
from .unseen import unseen_posterior

__all__ = ["PriorTail", "arviz_input", "flux_draws", "point_columns", "posterior_columns"]

RARE = 1e-3
"""Outlier score below which a star is said to be outside its class."""

EXCESS_NOISE = 4.0
"""Mean square of the whitened noise above which it is said that the model does not describe the data."""

R_HAT, ESS, PARETO_K = 1.01, 400.0, 0.7
"""What chains, and weights, must keep to be trusted (Vehtari et al. 2021, 2024)."""

APART = 0.03
"""Log ratio of the arms above which it is said that they do not join."""

UNFINISHED = 0.1
"""Gain in log density that one more step promises, above which a maximum is said not to be one."""

MISFIT_SPREAD = 0.12
"""Scatter of `chi2` about 1 among unseen stars, where the model knows the noise."""

CURVES = 8
"""Polynomials of the wavelength, from a constant on, that make a smooth curve: no line, no band."""

FEATURES_SPREAD = 0.12
"""Scatter about 1 of how strong lines and bands of their kind are in unseen stars, beside its error."""

FAINT, FAINT_SPREAD = 50.0, 10.0
"""Significance of a whole spectrum below which there may be no star in it: S/N 1 in each of 2500 pixels."""

CHAINS = 4
"""Chains into which weighted draws are dealt: of one alone ArviZ has no R-hat."""

_ROWS = 512
"""Latents that are decoded at once."""


class PriorTail:
    """How rare a star is in its class: the share of the class's own draws that are less probable.

    With a residual term a star is rarer the larger its residuals are for its kind, too: beside the density of
    z counts that of the size h, where it is above the usual.
    """

    @torch.no_grad()
    def __init__(self, model: StellarModel, seed: int, draws: int = 4096) -> None:
        self.model, self.prior = model, model.prior
        prior = model.prior
        with seeded(seed):
            every = torch.arange(len(model.classes), device=model.class_logits.device)
            drawn = prior(every).sample((draws,)).unbind(1)
            size = torch.randn(draws, min(1, model.residual_dim), device=every.device)
        # Each class by itself: the density of all classes at once would be asked for every class's draws.
        density = [prior.of_class(k, Size([draws])) for k in range(len(drawn))]
        self.sorted = torch.stack(
            [(own.log_prob(z) + _log_size(size)).sort().values for own, z in zip(density, drawn, strict=True)]
        )

    def __call__(self, z: Tensor, klass: Tensor) -> Tensor:
        """The score of latents (N, L + P + R) in classes (N,)."""
        z, _, w = self.model.parts(z)
        density = self.prior(klass).log_prob(z) + _log_size(w[..., :1])
        below = torch.searchsorted(self.sorted[klass], density[:, None]).squeeze(-1)
        return (below + 1) / (self.sorted.shape[-1] + 1)


def _log_size(h: Tensor) -> Tensor:
    """Log density of sizes (..., 1) above the usual, (...), up to a constant; 0 of none, (..., 0)."""
    return -0.5 * h.clamp_min(0.0).square().sum(-1)


@torch.no_grad()
def point_columns(
    model: StellarModel, batch: ObservationBatch, estimate: MapEstimate, rarity: PriorTail
) -> dict[str, Any]:
    """Columns of a result whose method gives one point of the posterior."""
    columns = {
        "latents": estimate.z,
        "class_probabilities": model.log_joint_classes(estimate.z).softmax(-1),
        "best_class": estimate.klass,
        "log_density": estimate.log_density,
        "scale": estimate.log_scale.exp(),
        "outlier_score": rarity(estimate.z, estimate.klass),
    }
    spectrum = model.spectrum(estimate.z)
    found = discrepancy_posterior(model, batch, estimate.z, columns["scale"])
    if found is not None:
        spectrum = spectrum + found.mean
    promise = estimate.promise
    if promise.isnan().any():
        promise = torch.where(promise.isnan(), _promise(model, batch, estimate), promise)
    return _columns(model, batch, spectrum, columns, {"promise": promise.cpu().numpy()})


def _promise(model: StellarModel, batch: ObservationBatch, estimate: MapEstimate) -> Tensor:
    """Gain in log density, (N,), of one step of Newton's from where a first-order engine has stopped."""
    target = Target(model, batch, "joint")
    theta = target.join(estimate.z, estimate.log_scale)
    _, gradient = target.gradient(theta)
    return 0.5 * (gradient * torch.linalg.solve(target.metric(theta), gradient)).sum(-1)


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
    latents = torch.as_tensor(draws.latents).reshape(len(draws), count, -1).to(device)
    log_scale = torch.as_tensor(draws.log_scale).reshape(len(draws), count, -1).to(device)
    log_density = torch.as_tensor(draws.log_density).reshape(len(draws), count).to(latents)
    weight = torch.full((len(draws), count), 1.0 / count, device=device)
    if draws.log_weight is not None:
        weight = torch.as_tensor(draws.log_weight).reshape(len(draws), count).exp().to(weight)

    centre = torch.einsum("ns,nsl->nl", weight, latents)
    _, away, _ = model.parts(latents - centre[:, None])
    x_std = torch.einsum("ns,nsp->np", weight, away.square()).sqrt()
    scale = torch.einsum("ns,nse->ne", weight, log_scale.exp())
    beneath = discrepancy_posterior(model, batch, centre, scale)
    # Properties, each of all stars: asked once.
    e_mean, e_share, e_std = (None,) * 3 if beneath is None else (beneath.mean, beneath.share, beneath.std)
    mean, std = [], []
    for n, (points, scales, w) in enumerate(zip(latents, log_scale, weight, strict=True)):
        unit = _unit_flux(batch.select([n]), scales.exp())
        unit = (unit / (w.to(unit) @ unit)).to(w)
        total = square = 0.0
        offset = model.spectrum(centre[n])  # of the squares, which cost digits without it
        for s, u, part in zip(points.split(_ROWS), unit.split(_ROWS), w.split(_ROWS), strict=True):
            away = model.spectrum(s) * u[:, None] - offset
            total, square = total + part @ away, square + part @ away.square()
        variance = (square - total.square()).clamp_min(0)
        if beneath is not None:
            rest = 1 - e_share[n]
            total, variance = e_mean[n] + rest * total, rest.square() * variance + e_std[n].square()
        mean.append(offset + total)
        std.append(variance.sqrt())

    remote = unseen_posterior(model, batch, centre)
    widths = torch.stack(std) if remote is None else remote.factor * torch.stack(std)

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
        "model_flux_std": widths,
        "passage_std": x_std if model.passage is None else model.passage.physical(x_std),
    }
    return _columns(model, batch, torch.stack(mean), columns, draws.diagnostics)


def _unit_flux(batch: ObservationBatch, scale: Tensor) -> Tensor:
    """The flux that 1 stands for, (N,), for scales (N, E): the exposures', by the pixels that they have.

    Where the scale of an exposure is known, those whose scale is not have no say.
    """
    weight = _say((~batch.mask).sum(-1), batch.free_scale).double()
    return (weight * scale * batch.unit_flux).sum(-1) / weight.sum(-1)


def _say(pixels: Tensor, free: Tensor) -> Tensor:
    """How much each exposure says of the unit, (N, E), of pixels and whether scales are free."""
    known = torch.where(free, 0, pixels)
    return torch.where(known.any(-1, keepdim=True), known, pixels)


def _columns(
    model: StellarModel,
    batch: ObservationBatch,
    spectrum: Tensor,
    columns: dict[str, Tensor],
    diagnostics: dict[str, NDArray],
) -> dict[str, Any]:
    """What every method says of the observation and of the fit, beside what it says of the star."""
    scale, latents = columns["scale"], columns.pop("latents")
    flow = model.likelihood(latents[:, None], model.spectrum(latents)[:, None], scale, batch)
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
        "exposure_unit": batch.unit_flux,
        "observed_flux": batch.flux,
        "observed_ivar": batch.ivar,
        "observed_mask": batch.mask,
        "chi2": torch.where(used, xi, 0.0).square().sum((-2, -1)) / used.sum((-2, -1)).clamp_min(1),
        "used_fraction": used.to(scale.dtype).sum((-2, -1)) / (~batch.mask).any(-1).sum(-1) / used.shape[-1],
        "observed_fraction": batch.observed_fraction,
        "residual_share": _residual_share(model, batch, spectrum, latents, scale),
    }
    signal = _significance(flow, batch)
    lacking = torch.full_like(signal, torch.nan)
    if model.residual is not None:
        features, error = _features(model, batch, flow, torch.cat([z, x], dim=-1))
        doubts = _doubts(columns["outlier_score"], tensors["chi2"], signal, features, error)
        # The probability that the least of so many independent ones is as small.
        tensors["outlier_score"] = 1 - (1 - doubts.amin(0)) ** len(doubts)
        lacking = torch.where(doubts.argmin(0) == len(doubts) - 1, features, torch.nan)
    arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in tensors.items()}
    step = torch.zeros_like(signal)
    if model.passage is not None and ARMS in model.passage.names:
        step = model.passage.physical(x)[:, model.passage.names.index(ARMS)]
    doubtful = (part.tolist() for part in (signal, lacking, step))
    told = zip(arrays["chi2"], arrays["outlier_score"], *doubtful, strict=True)
    arrays["warnings"] = [
        _notes(*star, {name: values[n] for name, values in diagnostics.items()})
        for n, star in enumerate(told)
    ]
    return arrays


def _residual_share(
    model: StellarModel, batch: ObservationBatch, spectrum: Tensor, latents: Tensor, scale: Tensor
) -> Tensor:
    """Of what G(z) leaves of the observed flux, squared: the share that is taken for the star's, (N,)."""
    if model.residual is None:
        return torch.zeros_like(scale[:, 0])
    z, x, _ = model.parts(latents)
    generated = model.generator(z) if model.passage is None else model.passage(model.generator(z), x)
    star = (spectrum - generated)[:, None]
    noise = batch.flux / scale[..., None] - spectrum[:, None]
    powers = [torch.where(batch.mask, 0.0, part).square().sum((-2, -1)) for part in (star, noise)]
    return powers[0] / sum(powers).clamp_min(1e-12)


def _significance(flow: NoiseFlow | RobustNoiseFlow, batch: ObservationBatch) -> Tensor:
    """The spectrum's amplitude in units of its error, (N,), if nothing but the amplitude were free."""
    weight = flow.precision(batch.flux)  # a cosmic ray has none
    power = (weight * flow.loc.square()).sum((-2, -1))
    seen = torch.where(batch.mask, 0.0, batch.flux) / flow.scale[..., None]
    return (weight * flow.loc * seen).sum((-2, -1)) / power.clamp_min(1e-12).sqrt()


def _features(
    model: StellarModel, batch: ObservationBatch, flow: NoiseFlow | RobustNoiseFlow, zx: Tensor
) -> tuple[Tensor, Tensor]:
    """How strong the lines and bands of its kind are in a spectrum, (N,), and the error of that, (N,).

    By least squares, beside a smooth curve, which may be anything: what stars like it have on average, given
    z and x, counts 1 in a star. A straight line, a step or a galaxy can be fitted well, but by a w that takes
    these lines away.
    """
    usual = model.spectrum(torch.cat([zx, zx.new_zeros(len(zx), model.residual_dim)], dim=-1))
    precision = flow.precision(batch.flux)  # a cosmic ray has none
    total = precision.sum(-2)
    seen = torch.where(batch.mask, 0.0, batch.flux) / flow.scale[..., None]
    seen = (precision * seen).sum(-2) / total.clamp_min(1e-12)

    # Chebyshev's polynomials.
    angle = torch.linspace(-1, 1, model.grid.size, device=zx.device, dtype=zx.dtype).acos()
    curves = (angle[:, None] * torch.arange(CURVES, device=zx.device)).cos()
    if model.passage is not None:  # a step between the arms is no line either
        curves = torch.cat([curves, model.passage.curves.to(zx.dtype).T[:, 1:2]], dim=-1)
    smooth = torch.linalg.qr(total.sqrt()[..., None] * curves).Q

    def beside(spectrum: Tensor) -> Tensor:
        weighted = (total.sqrt() * spectrum)[..., None]
        return (weighted - smooth @ (smooth.mT @ weighted))[..., 0]

    pattern = beside(usual)
    power = pattern.square().sum(-1).clamp_min(1e-12)
    return (pattern * beside(seen)).sum(-1) / power, power.rsqrt()


def _doubts(rarity: Tensor, chi2: Tensor, signal: Tensor, features: Tensor, error: Tensor) -> Tensor:
    """How probable it is, (4, N), that a star of its class is stranger than this one in each of four ways.

    Rare for its class; not described by the model; hardly there at all; without the lines of its kind.
    """
    return torch.stack(
        [
            rarity,
            torch.special.ndtr((1 - chi2) / MISFIT_SPREAD),
            torch.special.ndtr((signal - FAINT) / FAINT_SPREAD),
            torch.special.ndtr((features - 1) / (error.square() + FEATURES_SPREAD**2).sqrt()),
        ]
    )


def _notes(
    chi2: float, outlier: float, signal: float, lacking: float, step: float, diagnostics: dict[str, float]
) -> tuple[str, ...]:
    """What there is to say; `lacking` is how strong the lines are where that is the reason, else NaN."""
    notes = []
    if signal < FAINT:
        notes.append(f"hardly a signal: {max(signal, 0.0):.0f} times its error, all pixels together")
    elif outlier < RARE and not np.isnan(lacking):
        notes.append(f"outside its class: lines and bands of its kind have {lacking:.2f} of their strength")
    elif outlier < RARE:
        notes.append(f"outside its class: stars rarer than this have probability {outlier:.1g}")
    if chi2 > EXCESS_NOISE:
        notes.append(f"outside the model: the noise is {np.sqrt(chi2):.1f} times as large as the model's")
    if abs(step) > APART:
        notes.append(
            f"arms do not join: beside the blue one the red one is {np.exp(step):.2f} times what it should be"
        )
    if (gain := diagnostics.get("promise", 0.0)) > UNFINISHED:
        notes.append(f"the climb has not ended: one more step promises {gain:.1g} in log density")
    if diagnostics.get("budget_spent", False):
        notes.append("NUTS has spent its budget of densities")
    if diagnostics.get("r_hat", 1.0) >= R_HAT:
        notes.append(f"chains disagree: R-hat {diagnostics['r_hat']:.3f}")
    by_chains = diagnostics.get("handed_over", "r_hat" in diagnostics)
    if by_chains and (ess := min(diagnostics["ess_bulk"], diagnostics["ess_tail"])) <= ESS:
        notes.append(f"few effective draws: {ess:.0f}")
    if diagnostics.get("divergences", 0):
        notes.append(f"{diagnostics['divergences']:.0f} divergences")
    if diagnostics.get("pareto_k", 0.0) > PARETO_K:
        instead = ": drawn by NUTS instead" if diagnostics.get("handed_over") else ""
        notes.append(f"weights not to be trusted, Pareto k {diagnostics['pareto_k']:.2f}{instead}")
    return tuple(notes)


@own_state()
@torch.no_grad()
def flux_draws(star: Result, count: int, seed: int = 0) -> NDArray[np.float64]:
    """Equally probable clean spectra of a result of one star, (count, D), in its input's flux unit."""
    model, draws = star.model, star.draws
    latents, log_scale = (torch.as_tensor(part[0]) for part in draws.resample(count, seed=seed))
    pixels, free = (~star.observed_mask).sum(-1), star.scale != 1  # of a free scale the mean is never 1
    weight = _say(torch.as_tensor(pixels), torch.as_tensor(free))[0].to(log_scale)
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
    for part in latents.split(_ROWS):
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
        rows = max(1, _ROWS // depth)
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
