"""Simulation-based calibration and Geweke's joint test: a correct posterior has to pass both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from scipy.stats import ks_1samp, ks_2samp, uniform
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.inference.draws import Draws
from bayesspec.model import StellarModel
from bayesspec.nn import NoiseNetwork, RobustNoiseNetwork
from bayesspec.runtime import seeded

__all__ = ["Calibration", "Engine", "Truth", "calibrate", "geweke", "simulate"]

TYPICAL_NOISE = 0.1
"""Noise of simulated stars in units of the mean flux, for models that need errors."""

PATTERNS = 8
"""Number of patterns of a residual term that are tested."""

Engine = Callable[[StellarModel, ObservationBatch, int], Draws]
"""The engine to test: it takes a model, a batch and a seed, and returns draws of the posterior."""


class Truth(NamedTuple):
    """The parameters of simulated stars."""

    z: Tensor
    """(N, L + P + R): z, then x and w if the model has them."""
    log_scale: Tensor
    """(N, E), 0 where known."""
    flux: Tensor
    """The clean spectrum, e included, (N, D)."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of the truth among posterior draws, in (0, 1): uniform for a correct posterior.

    Arguments:
        ranks: Ranks by the name of the quantity, each (N,).
    """

    ranks: dict[str, NDArray[np.float64]]

    def p_values(self) -> dict[str, float]:
        """Kolmogorov-Smirnov p value of each quantity's ranks against the uniform distribution."""
        return {name: float(ks_1samp(rank, uniform.cdf).pvalue) for name, rank in self.ranks.items()}

    def passes(self, level: float = 0.01) -> bool:
        """Whether no p value is below the level, after Bonferroni correction for their number."""
        p = self.p_values()
        return min(p.values()) * len(p) > level


def simulate(
    model: StellarModel,
    mask: NDArray[np.bool_],
    *,
    seed: int,
    truth: Truth | None = None,
    stated: bool = True,
) -> tuple[ObservationBatch, Truth]:
    """Run the program forwards: class, latents, free scales, clean spectrum and noise.

    Arguments:
        model: The model.
        mask: Unobserved pixels, (N, E, D), True = bad; exposures that lack pixels have free scales.
        seed: Seed of all draws.
        truth: Draw only the noise, and e, given these latents and scales.
        stated: Whether the pipeline states the noise; else its level is unknown.

    Returns:
        The stars, and their parameters.
    """
    free = np.any(mask, -1) & ~np.all(mask, -1)
    ones = np.ones(mask.shape[:2])
    noise = model.noise
    ivar = np.zeros(mask.shape) + (0.0 if isinstance(noise, NoiseNetwork) else _typical_ivar(noise))
    device = model.class_logits.device
    batch = ObservationBatch.from_arrays(0 * ivar, ivar, mask, ones, free, device=device)
    batch = replace(batch, noise_known=batch.noise_known & stated)
    program = poutine.uncondition(model.with_flux)
    if truth is not None:
        program = poutine.condition(program, model.sites(truth.z, truth.log_scale, batch))
    with seeded(seed), torch.no_grad():
        nodes = poutine.trace(program).get_trace(batch).nodes
    sites: dict[str, Any] = {name: node["value"] for name, node in nodes.items() if node["type"] == "sample"}
    log_scale = torch.zeros_like(batch.unit_flux)
    if "log_scale" in sites:
        log_scale = log_scale.index_put(tuple(batch.free_index), sites["log_scale"])
    flux = torch.where(batch.mask, 0.0, sites["y"])
    return replace(batch, flux=flux), Truth(model.of_sites(sites), log_scale, sites["flux"])


def _typical_ivar(noise: RobustNoiseNetwork) -> NDArray[np.float64]:
    """Inverse variance of noise with the usual wavelength dependence, a tenth of the mean flux, (D,)."""
    return (TYPICAL_NOISE * noise.reference.double().cpu().numpy()) ** -2


def calibrate(
    model: StellarModel,
    batch: ObservationBatch,
    truth: Truth,
    draws: Draws,
    *,
    wavelengths: int = 10,
    seed: int = 0,
) -> Calibration:
    """Rank the truth among the draws: each latent, the log-likelihood, and the clean flux in some pixels.

    Draws may be weighted: the rank is the weight of those below the truth, plus a random fraction of ties.

    References:
        | Talts, Betancourt, Simpson, Vehtari & Gelman 2018, arXiv:1804.06788
        | Modrak et al. 2023, arXiv:2211.02383: the log-likelihood detects errors that parameters do not

    Arguments:
        model: The model.
        batch: N simulated stars.
        truth: Their parameters.
        draws: The posterior that is tested.
        wavelengths: Number of equidistant pixels whose flux is ranked.
        seed: Seed of the fractions of ties.
    """
    n, latent = truth.z.shape
    weight = np.ones(draws.log_density.shape) if draws.log_weight is None else np.exp(draws.log_weight)
    weight = weight.reshape(n, -1)
    z = torch.as_tensor(draws.latents.reshape(n, -1, latent)).to(truth.z)
    log_scale = torch.as_tensor(draws.log_scale.reshape(n, z.shape[1], -1)).to(truth.z)
    pixels = np.linspace(0, model.grid.size - 1, wavelengths + 2).astype(int)[1:-1]

    every, true = [], []
    with seeded(seed):
        for k in range(n):
            star = batch.select([k])
            flux = model.complete(z[k][:, None], log_scale[k][:, None], star).sample()[:, 0]
            every.append(_quantities(model, star, z[k], log_scale[k], flux, pixels))
            own = Truth(*(part[[k]] for part in truth))
            true.append(_quantities(model, star, *own, pixels))
    share = np.random.default_rng(seed).random(n)
    return Calibration(
        {
            name: np.array([_rank(every[k][name], true[k][name][0], weight[k], share[k]) for k in range(n)])
            for name in true[0]
        }
    )


def geweke(
    model: StellarModel, mask: NDArray[np.bool_], engine: Engine, *, sweeps: int = 3, seed: int = 0
) -> dict[str, float]:
    """Geweke's joint test: p values of each latent, the log prior, and each free scale, after some sweeps.

    Stars are drawn from the model. Then the latents are drawn from the posterior, and a spectrum from the
    noise, in turn. If the posterior is that of the model, the latents are still draws from the prior after
    any number of sweeps. An error is repeated in each sweep, and accumulates.

    References:
        | Geweke 2004, JASA 99, 799

    Arguments:
        model: The model.
        mask: Unobserved pixels, (N, E, D), see `simulate`: one chain for each of the N stars.
        engine: The posterior that is tested.
        sweeps: Number of sweeps.
        seed: Random seed.
    """
    batch, truth = simulate(model, mask, seed=seed)
    for sweep in range(1, sweeps + 1):
        z, log_scale = engine(model, batch, seed + sweep).resample(1, seed=seed + sweep)
        truth = truth._replace(
            z=torch.as_tensor(z[:, 0]).to(truth.z),
            log_scale=torch.where(batch.free_scale, torch.as_tensor(log_scale[:, 0]).to(truth.z), 0.0),
        )
        batch, truth = simulate(model, mask, seed=seed + 1000 * sweep, truth=truth)
    # The reference distribution, from four times as many stars from the prior.
    _, prior = simulate(model, np.repeat(mask, 4, axis=0), seed=seed + 1)
    here, there = _marginals(model, truth), _marginals(model, prior)
    return {name: float(ks_2samp(here[name], there[name]).pvalue) for name in here}


@torch.no_grad()
def _quantities(
    model: StellarModel,
    star: ObservationBatch,
    z: Tensor,
    log_scale: Tensor,
    flux: Tensor,
    pixels: NDArray[np.int64],
) -> dict[str, NDArray]:
    values = _by_name(model, z)
    values["log_likelihood"] = model.log_likelihood(star, z[:, None], log_scale[:, None])[:, 0]
    values |= {f"flux at {model.grid.wavelength[p]:.0f}": flux[:, p] for p in pixels}
    return {name: value.cpu().numpy() for name, value in values.items()}


def _by_name(model: StellarModel, latents: Tensor) -> dict[str, Tensor]:
    """All latents by name; of the residual term the noise level, the amplitudes and the first patterns."""
    names = [f"z{d + 1}" for d in range(model.latent_dim)]
    names += [] if model.passage is None else model.passage.names
    if model.residual is not None:
        knots = model.residual.sizes - 2
        names += ["noise level", *(f"h{k + 1}" for k in range(knots)), "h"]
        names += [f"w{k + 1}" for k in range(PATTERNS)]
    return dict(zip(names, latents.unbind(-1), strict=False))


def _rank(draws: NDArray, true: float, weight: NDArray, share: float) -> float:
    below, equal = weight[draws < true].sum(), weight[draws == true].sum()
    return float((below + share * equal) / weight.sum())


@torch.no_grad()
def _marginals(model: StellarModel, truth: Truth) -> dict[str, NDArray]:
    values = _by_name(model, truth.z)
    values["log_prior"] = model.log_joint_classes(truth.z).logsumexp(-1)
    free = truth.log_scale.abs().sum(0) > 0
    values |= {f"log_scale{e + 1}": truth.log_scale[:, e] for e in free.nonzero()[:, 0].tolist()}
    return {name: value.cpu().numpy() for name, value in values.items()}
