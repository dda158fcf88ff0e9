"""The whole posterior by importance sampling: Laplace's approximation at every mode, mended by weights."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.model import StellarModel

from .conditional import GivenCore
from .convergence import pareto_smooth
from .draws import Draws
from .newton import Modes, find_modes
from .proposal import DOF, StudentMixture
from .scan import LatentScan
from .target import Target

__all__ = ["importance_draws", "laplace_mixture"]

TRUSTED = 0.7
"""Pareto k above which weights are not to be trusted (Vehtari et al. 2024)."""

ENOUGH, ROUNDS = 0.25, 3
"""Effective share of one round's draws below which a star is refined, so many times at most."""

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
    the mixture is fitted to all weighted draws so far and drawn from anew, up to `rounds` times; so it is, up
    to three times, where draws are effectively a quarter of their number or less. All rounds count together.
    A star whose k stays above 0.7 needs NUTS.

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
    pool = Pool.of(target, modes)
    found: dict[int, Draws] = {}
    rows = np.arange(len(batch))
    for number in range(rounds + 1):
        pool.draw(draws, seed + number)
        doubtful = pool.doubtful(number < ROUNDS) if number < rounds else np.zeros(len(rows), bool)
        for n in np.flatnonzero(~doubtful).tolist():
            found[int(rows[n])] = pool.star(n, draws, seed)
        if not doubtful.any():
            break
        rows, pool = rows[doubtful], pool.select(np.flatnonzero(doubtful))
        pool.adapt()
    return Draws.concatenate([found[n] for n in range(len(batch))])


def laplace_mixture(target: Target, modes: Modes, *, normal: bool = False) -> StudentMixture:
    """A component for every mode worth its mass, found once or several times.

    Arguments:
        target: The density.
        modes: Its modes.
        normal: Laplace's approximation as it is; else what to draw from: with heavy tails, and no component
            of next to no draws.
    """
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
    share = torch.where(share > NEGLIGIBLE, share.clamp_min(0.0 if normal else 0.05), 0.0)
    log_share = (share / share.sum(-1, keepdim=True)).log()

    # No star has more components than these; the others of most stars are none at all.
    first = torch.isinf(log_share).sort(dim=-1, stable=True).indices
    first = first[:, : int((~torch.isinf(log_share)).sum(-1).max())]
    theta, factors, log_share = theta[star, first], factors[star, first], log_share[star, first]

    # The core comes first, so that the corner of a lower factor is the factor of the core's covariance.
    core = slice(0, target.core)
    parts = theta[..., core], factors[..., core, core], log_share, target.free[:, core]
    return StudentMixture(*parts, math.inf if normal else DOF)


def log_volume(target: Target, factor: Tensor) -> Tensor:
    """Log volume of a mode, (...), from the factors of its covariance; w is summed out of its density."""
    return factor.diagonal(dim1=-2, dim2=-1)[..., : target.core].log().sum(-1)


class Pool:
    """Draws of N stars from several mixtures each, and what all of them together are worth.

    A draw is weighed by the mean density of all mixtures that were drawn from, whichever it is from: a poor
    one among them costs its draws, and does no harm.

    References:
        | Cornuet, Marin, Mira & Robert 2012, Adaptive multiple importance sampling, Scand. J. Stat. 39, 798
        | https://arxiv.org/abs/0907.1254

    Arguments:
        target: The density of N stars.
        mixtures: Of the core: those drawn from, and last the one to draw from next.
        given: The scores w given the core, or None where there are none.
    """

    def __init__(self, target: Target, mixtures: list[StudentMixture], given: GivenCore | None) -> None:
        self.target, self.mixtures, self.given = target, mixtures, given
        self.theta = torch.empty(0, len(target.batch), target.dim, device=target.free.device)
        self.log_density = self.log_given = self.log_mixtures = self.theta[..., 0].double()

    @classmethod
    def of(cls, target: Target, modes: Modes, *, normal: bool = False) -> Pool:
        """Laplace's approximation at every mode, to begin with; `normal` as in `laplace_mixture`."""
        given = None
        if target.core < target.dim:
            star = torch.arange(len(modes.theta), device=modes.theta.device)
            best = modes.theta[star, modes.log_density.argmax(-1)]
            given = GivenCore.at(target.model, target.batch, *target.split(best))
        return cls(target, [laplace_mixture(target, modes, normal=normal)], given)

    def select(self, rows: NDArray) -> Pool:
        """Those of these stars."""
        at = torch.as_tensor(rows, device=self.theta.device)
        given = None if self.given is None else self.given.select(at)
        part = Pool(self.target.select(rows), [mixture.select(at) for mixture in self.mixtures], given)
        part.theta, part.log_density, part.log_given, part.log_mixtures = (
            self.theta[:, at],
            self.log_density[:, at],
            self.log_given[:, at],
            self.log_mixtures[:, at],
        )
        part.log_ratio, part.log_weight, part.pareto_k = (
            self.log_ratio[rows],
            self.log_weight[rows],
            self.pareto_k[rows],
        )
        return part

    def draw(self, count: int, seed: int) -> None:
        """Draw from the last mixture, which is new, and weigh all draws anew."""
        core = self.target.core
        drawn = self.mixtures[-1].sample(count, seed, self.target.dim - core)
        theta, log_given = with_w(drawn, core, self.given)
        before = self.mixtures[-1].log_prob(self.theta[..., :core]).double()
        now = torch.stack([mixture.log_prob(theta[..., :core]).double() for mixture in self.mixtures])
        self.log_mixtures = torch.cat([torch.logaddexp(self.log_mixtures, before), now.logsumexp(0)])
        self.theta = torch.cat([self.theta, theta])
        self.log_given = torch.cat([self.log_given, log_given.double()])
        self.log_density = torch.cat([self.log_density, self.target.log_density(theta).double()])

        log_proposal = self.log_mixtures - np.log(len(self.mixtures)) + self.log_given
        self.log_ratio = (self.log_density - log_proposal).T.cpu().numpy()
        self.log_weight, self.pareto_k = pareto_smooth(self.log_ratio)

    def doubtful(self, few: bool) -> NDArray[np.bool_]:
        """Stars whose weights are not to be trusted yet and, with `few`, those that few draws have."""
        untrusted = self.pareto_k > TRUSTED
        draws = len(self.theta) // len(self.mixtures)
        return untrusted | (few & (effective(self.log_weight) < ENOUGH * draws))

    def adapt(self) -> None:
        """Fit the next mixture to all draws."""
        weight = torch.as_tensor(np.exp(self.log_weight).T.copy()).to(self.theta)
        self.mixtures.append(self.mixtures[-1].adapted(self.theta[..., : self.target.core], weight))

    def star(self, n: int, count: int, seed: int) -> Draws:
        """`count` draws of one star."""
        rows, log_weight = thin(self.log_weight[n], count, seed)
        target, theta = self.target, self.theta[rows, n]
        return target.draws(
            theta.cpu().numpy()[None, None],
            log_weight=log_weight[None, None],
            log_density=self.log_density[rows, n].cpu().numpy()[None, None],
            log_evidence=np.logaddexp.reduce(self.log_ratio[n : n + 1], axis=-1) - np.log(len(self.theta)),
            diagnostics={"pareto_k": self.pareto_k[n : n + 1], "ess_bulk": effective(log_weight[None])},
        )


def with_w(drawn: Tensor, core: int, given: GivenCore | None) -> tuple[Tensor, Tensor]:
    """Thetas, (S, N, d), of cores and what is drawn beside them, and the log density of w, (S, N).

    Arguments:
        drawn: Cores, and standard normal numbers of which w is made, (S, N, d).
        core: Dimensions of the core.
        given: The scores w given the core, or None where there are none: then the density is 1.
    """
    if given is None:
        return drawn, torch.zeros_like(drawn[..., 0])
    cores, normal = drawn.tensor_split((core,), dim=-1)
    w, log_given = given.draw(cores, normal)
    return torch.cat([cores, w], dim=-1), log_given


def effective(log_weight: NDArray) -> NDArray:
    """Effective number of draws, (...), of normalised log weights (..., S)."""
    return 1 / np.exp(2 * log_weight).sum(-1)


def thin(log_weight: NDArray, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`count` of more draws, with new weights: heavy ones keep theirs, of the others some stand for all.

    Means stay what they were on average, and vary as little as can be.

    References:
        | Fearnhead & Clifford 2003, On-line inference for hidden Markov models via particle filters,
        | J. R. Stat. Soc. B 65, 887, section 3.2

    Arguments:
        log_weight: Normalised, (S,).
        count: At most S.
        seed: Of the random number.

    Returns:
        Positions, (count,), ascending, and their normalised log weights.
    """
    if len(log_weight) <= count:
        return np.arange(len(log_weight)), log_weight
    weight = np.exp(log_weight)
    rising = np.sort(weight)
    # The least weight c with sum(min(weight / c, 1)) = count.
    below, heavier = rising.cumsum(), np.arange(len(rising))[::-1]
    enough = heavier < count
    level = np.where(enough, below / np.where(enough, count - heavier, 1), np.inf)
    fits = enough & (level >= rising) & (np.append(rising[1:], np.inf) >= level)
    least = level[np.flatnonzero(fits)[0]]

    heavy = weight >= least
    expected = np.where(heavy, 0.0, weight / least)
    start = np.random.default_rng(seed).random()
    steps = np.floor(expected.cumsum() - start)
    rows = np.flatnonzero(heavy | (np.diff(steps, prepend=np.floor(-start)) > 0))
    kept = np.where(heavy, weight, least)[rows]
    return rows, np.log(kept / kept.sum())
