"""Checks of each star: how unusual it is, how well the model describes it, and warnings in words."""

from __future__ import annotations

from enum import IntFlag
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.distributions import NoiseFlow, RobustNoiseFlow
from bayesspec.model import StellarModel
from bayesspec.runtime import seeded

__all__ = ["Flag", "PriorTail", "doubts", "features", "notes", "outlier_score", "quality", "significance"]

RARE = 1e-2
"""Outlier score below which there is a warning that the star is outside its class."""

LEAST = 1e-30
"""Smallest outlier score that a warning reports as a number."""

EXCESS_NOISE = 4.0
"""Mean square of the whitened noise above which there is a warning of a bad fit."""

R_HAT, ESS, PARETO_K = 1.01, 400.0, 0.7
"""Limits for reliable chains and weights (Vehtari et al. 2021, 2024)."""

APART = 0.03
"""Log ratio of the arms above which there is a warning that they do not join."""

UNFINISHED = 0.1
"""Predicted gain in log density by one more step, above which there is a warning of non-convergence."""

MISFIT_SPREAD = 0.12
"""Scatter of `chi2` around 1 among unseen stars with known noise."""

CURVES = 8
"""Number of polynomials of the wavelength, from a constant, in a smooth curve without lines or bands."""

FEATURES_SPREAD = 0.12
"""Scatter around 1 of the strength of lines and bands in unseen stars, in addition to its error."""

FAINT, FAINT_SPREAD = 50.0, 10.0
"""Significance of a whole spectrum below which there may be no star in it: S/N 1 in each of 2500 pixels."""


class Flag(IntFlag):
    """The warnings of a star as bits; each bit that is set has a text in the star's warnings.

    The bits keep their meaning in later versions.

    Example:
        >>> [flag.name for flag in Flag(36)], Flag.NOT_A_STAR in Flag(36)
        (['OUTSIDE_CLASS', 'UNFINISHED'], False)
    """

    LOW_SNR = 1
    """Very weak signal: the spectrum as a whole is not much larger than its error."""
    NOT_A_STAR = 2
    """Lines and bands of its class are missing or too weak, as in a galaxy, a quasar or a straight line."""
    OUTSIDE_CLASS = 4
    """Stars of its class are hardly ever this unusual, see `outlier_score`."""
    OUTSIDE_MODEL = 8
    """The residuals are much larger than expected: the model does not describe the star, or its noise."""
    ARMS_DO_NOT_JOIN = 16
    """The flux scales of the red and the blue arm differ."""
    UNFINISHED = 32
    """The optimiser has not converged."""
    BUDGET_SPENT = 64
    """NUTS has used up its budget of steps, and the rest of the chain mixes slowly."""
    CHAINS_DISAGREE = 128
    """The R-hat of the chains is too large."""
    FEW_DRAWS = 256
    """NUTS has too few effective draws, in the bulk or in the tails."""
    DIVERGENCES = 512
    """Some NUTS trajectories diverged."""
    BAD_WEIGHTS = 1024
    """Pareto k is too large, so the weighted draws are unreliable."""
    BAD_LAPLACE = 2048
    """The posterior is not normal around its modes: `laplace`'s standard deviations may be off by 10 %."""

    @classmethod
    def _missing_(cls, value: Any) -> Flag:
        return super()._missing_(index(value))  # for several bits in a numpy integer, which is not an int


def quality(flags: int) -> str:
    """What the flags of a star say, in a few words.

    Example:
        >>> quality(0), quality(3)
        ('ok', 'low S/N, not a star')
    """
    words = ", ".join(str(flag.name) for flag in Flag(flags)) or "ok"
    return words.lower().replace("_", " ").replace("snr", "S/N")


class PriorTail:
    """How unusual a star is in its class: the fraction of prior draws of the class that are less probable.

    With a residual term, unusually large residuals count too: the density of z is multiplied by that of the
    mean amplitude, if it is above the usual one.
    """

    @torch.no_grad()
    def __init__(self, model: StellarModel, seed: int, draws: int = 4096) -> None:
        self.prior = prior = model.prior
        self.latent_dim, self.lead_dim, self.residual = model.latent_dim, model.lead_dim, model.residual
        with seeded(seed):
            every = torch.arange(len(model.classes), device=model.class_logits.device)
            drawn = prior(every).sample((draws,)).unbind(1)
            size = torch.randn(draws, min(1, model.residual_dim), device=every.device)
        # One class at a time, because the joint distribution would compute all densities for all draws.
        density = [prior.of_class(k, Size([draws])) for k in range(len(drawn))]
        self.sorted = torch.stack(
            [(own.log_prob(z) + _log_size(size)).sort().values for own, z in zip(density, drawn, strict=True)]
        )

    def __call__(self, z: Tensor, klass: Tensor) -> Tensor:
        """The score of latents (N, L + P + R) in classes (N,)."""
        z, _, w = z.tensor_split((self.latent_dim, self.lead_dim), dim=-1)
        density = self.prior(klass).log_prob(z) + _log_size(self._mean_size(w))
        below = torch.searchsorted(self.sorted[klass], density[:, None]).squeeze(-1)
        return (below + 1) / (self.sorted.shape[-1] + 1)

    def _mean_size(self, w: Tensor) -> Tensor:
        """Mean amplitude of the residuals, standard normal, (..., 1); (..., 0) without a residual term."""
        if self.residual is None:
            return w[..., :0]
        return self.residual.mean_size(self.residual.split(w)[0])[..., None]


def _log_size(h: Tensor) -> Tensor:
    """Log density of amplitudes (..., 1) if above the usual, (...), up to a constant; 0 for (..., 0)."""
    return -0.5 * h.clamp_min(0.0).square().sum(-1)


def significance(flow: NoiseFlow | RobustNoiseFlow, batch: ObservationBatch) -> Tensor:
    """The spectrum's amplitude in units of its error, (N,), if only the amplitude were free."""
    weight = flow.precision(batch.flux)  # near 0 for a cosmic ray
    power = (weight * flow.loc.square()).sum((-2, -1))
    seen = torch.where(batch.mask, 0.0, batch.flux) / flow.scale[..., None]
    return (weight * flow.loc * seen).sum((-2, -1)) / power.clamp_min(1e-12).sqrt()


def features(
    model: StellarModel, batch: ObservationBatch, flow: NoiseFlow | RobustNoiseFlow, zx: Tensor
) -> tuple[Tensor, Tensor]:
    """Strength of the lines and bands of a spectrum relative to its kind, (N,), and its error, (N,).

    Least squares of the mean spectrum for z and x plus a free smooth curve: a typical star has 1. A straight
    line, a step or a galaxy can be fitted well too, but only with a w that removes these lines.
    """
    usual = model.spectrum(torch.cat([zx, zx.new_zeros(len(zx), model.residual_dim)], dim=-1))
    precision = flow.precision(batch.flux)  # near 0 for a cosmic ray
    total = precision.sum(-2)
    seen = torch.where(batch.mask, 0.0, batch.flux) / flow.scale[..., None]
    seen = (precision * seen).sum(-2) / total.clamp_min(1e-12)

    # Chebyshev polynomials.
    angle = torch.linspace(-1, 1, model.grid.size, device=zx.device, dtype=zx.dtype).acos()
    curves = (angle[:, None] * torch.arange(CURVES, device=zx.device)).cos()
    if model.passage is not None:  # a step between the arms is also free
        curves = torch.cat([curves, model.passage.curves.to(zx.dtype).T[:, 1:2]], dim=-1)
    smooth = torch.linalg.qr(total.sqrt()[..., None] * curves).Q

    def beside(spectrum: Tensor) -> Tensor:
        weighted = (total.sqrt() * spectrum)[..., None]
        return (weighted - smooth @ (smooth.mT @ weighted))[..., 0]

    pattern = beside(usual)
    power = pattern.square().sum(-1).clamp_min(1e-12)
    return (pattern * beside(seen)).sum(-1) / power, power.rsqrt()


def doubts(rarity: Tensor, chi2: Tensor, signal: Tensor, features: Tensor, error: Tensor) -> Tensor:
    """Probability that a star of its class is more unusual than this one, in each of four ways, (4, N).

    They are: rare latents; bad fit; weak signal; weak lines and bands. The third has no natural probability,
    so it is a smooth step from 1 to 0 around `FAINT`.
    """
    return torch.stack(
        [
            rarity,
            torch.special.ndtr((1 - chi2) / MISFIT_SPREAD),
            torch.special.ndtr((signal - FAINT) / FAINT_SPREAD),
            torch.special.ndtr((features - 1) / (error.square() + FEATURES_SPREAD**2).sqrt()),
        ]
    )


def outlier_score(doubts: Tensor) -> Tensor:
    """The probability that the smallest of M independent probabilities is as small as in (M, N), (N,)."""
    return -torch.expm1(len(doubts) * torch.log1p(-doubts.amin(0)))  # accurate if tiny


def notes(
    chi2: float, outlier: float, signal: float, lacking: float, step: float, diagnostics: dict[str, float]
) -> dict[Flag, str]:
    """The warnings of a star; `lacking` is the strength of its lines if that is the reason, else NaN."""
    said: dict[Flag, str] = {}
    if signal < FAINT:
        said[Flag.LOW_SNR] = f"very weak signal: {max(signal, 0.0):.0f} times its error over all pixels"
    elif outlier < RARE and not np.isnan(lacking):
        said[Flag.NOT_A_STAR] = (
            f"outside its class: its lines and bands have {lacking:.2f} of the strength usual for its class"
        )
    elif outlier < RARE:
        probability = f"probability {outlier:.1g}" if outlier > LEAST else f"probability below {LEAST:.0e}"
        said[Flag.OUTSIDE_CLASS] = f"outside its class: a star this unusual has {probability}"
    if chi2 > EXCESS_NOISE:
        said[Flag.OUTSIDE_MODEL] = (
            f"outside the model: the noise is {np.sqrt(chi2):.1f} times as large as expected"
        )
    if abs(step) > APART:
        said[Flag.ARMS_DO_NOT_JOIN] = (
            f"arms do not join: the red arm is {np.exp(step):.2f} times as bright as the blue arm implies"
        )
    if (gain := diagnostics.get("promise", 0.0)) > UNFINISHED:
        said[Flag.UNFINISHED] = f"not converged: one more step would gain about {gain:.1g} in log density"
    if diagnostics.get("budget_spent", False):
        said[Flag.BUDGET_SPENT] = "NUTS has used up its budget of steps"
    if diagnostics.get("r_hat", 1.0) >= R_HAT:
        said[Flag.CHAINS_DISAGREE] = f"chains disagree: R-hat {diagnostics['r_hat']:.3f}"
    by_chains = diagnostics.get("handed_over", "r_hat" in diagnostics)
    if by_chains and (ess := min(diagnostics["ess_bulk"], diagnostics["ess_tail"])) <= ESS:
        said[Flag.FEW_DRAWS] = f"few effective draws: {ess:.0f}"
    if diagnostics.get("divergences", 0):
        said[Flag.DIVERGENCES] = f"{diagnostics['divergences']:.0f} divergences"
    if diagnostics.get("pareto_k", 0.0) > PARETO_K:
        instead = ": drawn by NUTS instead" if diagnostics.get("handed_over") else ""
        said[Flag.BAD_WEIGHTS] = (
            f"unreliable importance weights: Pareto k {diagnostics['pareto_k']:.2f}{instead}"
        )
    if (k := diagnostics.get("laplace_k", 0.0)) > PARETO_K:
        said[Flag.BAD_LAPLACE] = f"the posterior is not normal: Pareto k {k:.2f}; use importance sampling"
    return said
