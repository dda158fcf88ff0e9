"""The whole posterior by importance sampling: Laplace's approximation at every mode, mended by weights."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from bayesspec.batch import ObservationBatch
from bayesspec.model import StellarModel

from .convergence import pareto_smooth
from .draws import Draws
from .newton import Modes, find_modes
from .proposal import SizedNormal, StudentMixture
from .scan import LatentScan
from .target import Target

__all__ = ["importance_draws", "laplace_mixture"]

TRUSTED = 0.7
"""Pareto k above which weights are not to be trusted (Vehtari et al. 2024)."""

NEGLIGIBLE = 1e-4
"""Share of the posterior below which a mode is not worth a component."""


def importance_draws(
    model: StellarModel,
    batch: ObservationBatch,
    *,
    draws: int = 1024,
    starts: int = 4,
    rounds: int = 20,
    seed: int = 0,
    scan: LatentScan | None = None,
) -> Draws:
    r"""Draw from :math:`p(z, a \,|\, y)`, the class summed out, with importance weights.

    Climbs from several classes and places find the modes. Laplace's approximation at each, widened to a
    Student-t distribution, makes a mixture to draw from; the weights :math:`p(y, z, a) / q(z, a)`, the
    largest of them smoothed by a generalised Pareto fit, make the draws exact. Where the fit's k is above 0.7
    the mixture is fitted to the weighted draws and drawn from anew, up to `rounds` times; the best round
    counts. A star whose k stays above 0.7 needs NUTS.

    Every star is given the same random numbers: its draws depend on the seed, not on its neighbours.

    References:
        | Vehtari, Simpson, Gelman, Yao & Gabry 2024, Pareto smoothed importance sampling, JMLR 25, 72
        | https://arxiv.org/abs/1507.02646

    Arguments:
        model: The model.
        batch: N stars.
        draws: S, for each star and round; a power of 2 spends the random numbers best.
        starts: Classes whose best training latent is a start, and further starts that are far apart.
        rounds: Most refinements.
        seed: Of the random numbers.
        scan: `LatentScan(model)`, where it is at hand already.

    Returns:
        Draws, one chain of S; diagnostics `pareto_k` and `ess_bulk`, the effective number of draws; with
        `log_evidence`.

    Example:
        >>> import numpy as np
        >>> from bayesspec import Observation, load_model
        >>> model = load_model("kang2021")
        >>> star = Observation(model.grid.wavelength, np.ones(2048))
        >>> batch = ObservationBatch.from_observations([star], model.grid)
        >>> found = importance_draws(model, batch, draws=200, rounds=1)
        >>> found.z.shape, found.log_evidence.shape
        ((1, 1, 200, 3), (1,))
    """
    target = Target(model, batch)
    modes = find_modes(model, batch, classes="marginal", starts=starts, scan=scan)
    mixture = laplace_mixture(target, modes)
    best = _Round.draw(target, mixture, draws, seed)
    latest, rows = best, np.arange(len(batch))
    for number in range(1, rounds + 1):
        doubtful = latest.pareto_k > TRUSTED
        if not doubtful.any():
            break
        rows, latest, mixture = rows[doubtful], latest.select(doubtful), mixture.select(doubtful)
        weight = torch.as_tensor(np.exp(latest.log_weight).T.copy()).to(latest.theta)
        mixture = mixture.adapted(latest.theta, weight)
        latest = _Round.draw(target.select(rows), mixture, draws, seed + number)
        best.improve(rows, latest)
    return best.to_draws(target)


def laplace_mixture(target: Target, modes: Modes) -> StudentMixture:
    """A component for every mode worth its mass, found once or several times."""
    stars, starts, _ = modes.theta.shape
    density = modes.log_density
    order = density.argsort(-1, descending=True)
    star = torch.arange(stars, device=density.device)[:, None]
    theta, density, curvature = modes.theta[star, order], density[star, order], modes.curvature[star, order]

    # From the highest down: an end within a standard deviation of one that is kept is the same mode.
    offset = theta[:, :, None] - theta[:, None]
    near = torch.einsum("nijd,njde,nije->nij", offset, curvature, offset) < 1
    keep = density > density[:, :1] + np.log(NEGLIGIBLE) - 3
    for start in range(1, starts):
        repeated = (near[:, start, :start] & keep[:, :start]).any(-1)
        keep[:, start] &= ~repeated

    row, column = (index.cpu().numpy() for index in keep.nonzero(as_tuple=True))
    found = theta[row, column]
    factor = target.select(row).laplace(found)
    log_mass = density[row, column] + log_volume(target, factor)

    identity = torch.eye(target.dim, dtype=theta.dtype, device=theta.device)
    factors = identity.expand(stars, starts, -1, -1).clone()
    masses = torch.full_like(density, -torch.inf)
    factors[row, column], masses[row, column] = factor, log_mass
    share = masses.softmax(-1)
    share = torch.where(share > NEGLIGIBLE, share.clamp_min(0.05), 0.0)
    log_share = (share / share.sum(-1, keepdim=True)).log()

    # The core comes first, so that the corner of a lower factor is the factor of the core's covariance.
    core, given = slice(0, target.core), None
    if target.core < target.dim:
        w, precision = theta[..., target.core :], torch.cholesky_inverse(factors)
        given = SizedNormal.at_mode(theta[..., core], w, precision, target.model.residual.log_size)
    return StudentMixture(theta[..., core], factors[..., core, core], log_share, target.free[:, core], given)


def log_volume(target: Target, factor: torch.Tensor) -> torch.Tensor:
    """Log volume of a mode, (...), from the factors of its covariance; w is summed out of its density."""
    return factor.diagonal(dim1=-2, dim2=-1)[..., : target.core].log().sum(-1)


class _Round:
    """Draws of N stars from one mixture each, and what they are worth."""

    def __init__(
        self,
        theta: torch.Tensor,
        log_density: NDArray[np.float64],
        log_weight: NDArray[np.float64],
        log_evidence: NDArray[np.float64],
        pareto_k: NDArray[np.float64],
    ) -> None:
        self.theta, self.log_density, self.log_weight = theta, log_density, log_weight
        self.log_evidence, self.pareto_k = log_evidence, pareto_k

    @classmethod
    def draw(cls, target: Target, mixture: StudentMixture, draws: int, seed: int) -> _Round:
        theta = mixture.sample(draws, seed)
        log_density = target.log_density(theta).T.double()
        log_ratio = (log_density - mixture.log_prob(theta).T).cpu().numpy()
        log_weight, k = pareto_smooth(log_ratio)
        evidence = np.logaddexp.reduce(log_ratio, axis=-1) - np.log(draws)
        return cls(theta, log_density.cpu().numpy(), log_weight, evidence, k)

    def select(self, rows: NDArray) -> _Round:
        at = torch.as_tensor(np.flatnonzero(rows), device=self.theta.device)
        return _Round(
            self.theta[:, at],
            self.log_density[rows],
            self.log_weight[rows],
            self.log_evidence[rows],
            self.pareto_k[rows],
        )

    def improve(self, rows: NDArray, other: _Round) -> None:
        """Take the other round's draws of the stars at `rows` where its k is lower."""
        better = other.pareto_k < self.pareto_k[rows]
        rows, other = rows[better], other.select(better)
        self.theta[:, torch.as_tensor(rows, device=self.theta.device)] = other.theta
        for name in ("log_density", "log_weight", "log_evidence", "pareto_k"):
            getattr(self, name)[rows] = getattr(other, name)

    def to_draws(self, target: Target) -> Draws:
        latents, log_scale = (
            part.transpose(0, 1)[:, None].cpu().numpy() for part in target.split(self.theta)
        )
        z, x, w = np.split(latents, [target.model.latent_dim, target.latent_dim], axis=-1)
        ess = 1 / np.exp(2 * self.log_weight).sum(-1)
        return Draws(
            z=z,
            x=x,
            w=w,
            log_scale=log_scale,
            log_weight=self.log_weight[:, None],
            log_density=self.log_density[:, None],
            log_evidence=self.log_evidence,
            diagnostics={"pareto_k": self.pareto_k, "ess_bulk": ess},
        )
