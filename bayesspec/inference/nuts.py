"""Draws from the exact posterior by Pyro's NUTS on the Pyro model, all chains of all stars in step."""

from __future__ import annotations

import functools
import math
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.model import StellarModel
from bayesspec.runtime import progress_bar

from .chains import Question, Settings, run_chain
from .convergence import chain_diagnostics
from .draws import Draws
from .importance import Pool, effective, log_volume
from .jumps import Jumps
from .lockstep import run_together
from .newton import Modes, find_modes
from .scan import LatentScan
from .target import Target

__all__ = ["enumerated_log_density", "nuts_draws"]

WORTH = 0.01
"""Share of the posterior mass, by Laplace's approximation, from which on a mode has a chain of its own."""

ROUNDS, MORE_ROUNDS, JUMP_DRAWS, LEARNED = 5, 15, 1024, 2500
"""Of the importance sampling that finds where chains jump to: rounds for every star, and further ones until
each has so many effective draws. Chains of fewer draws altogether need no more than their number."""

JUMPS = 8
"""Jumps that a chain tries before each trajectory, where latents are many: one draw follows from another
no more, where importance sampling does well."""

_CPU_PIXELS, _PIXELS = 2**19, 2**24
"""Pixels of all chains in one pass."""

FEW = 10
"""Latents up to which the warm-up's draws are enough to adapt a mass matrix."""

WARMUP, LESS_WARMUP = 200, 60
"""Draws that adapt a mass matrix and the step size, and with more latents the step size alone."""

STARTS, MORE_STARTS = 10, 40
"""Of climbs to modes, with few latents and with more."""

DEPTH, LESS_DEPTH = 10, 2
"""Depth of a tree with few latents, and with more, where jumps go farther than three steps or a thousand."""


def nuts_draws(
    model: StellarModel,
    batch: ObservationBatch,
    *,
    chains: int = 4,
    warmup: int | None = None,
    draws: int = 600,
    target_accept: float = 0.8,
    max_tree_depth: int | None = None,
    budget: int = 20_000,
    starts: int | None = None,
    seed: int = 0,
    progress: bool = False,
    scan: LatentScan | None = None,
) -> Draws:
    r"""Sample :math:`p(z, \log a \,|\, y)`, the class summed out, with several chains for each star.

    The kernel is Pyro's. It moves in the coordinates u of :math:`\theta = \theta_m + L u`, where
    :math:`\theta_m` is the mode that the chain starts from and :math:`L L^T` Laplace's covariance there, so
    that its mass matrix is right from the first step. With few latents it adapts to what Laplace misses; in
    more, the draws of a warm-up say less of a covariance than Laplace does, and it stays; but then chains
    begin at draws of importance sampling, and before each trajectory they may jump to where it found the
    posterior to be (`Jumps`). Every mode with a share of the mass worth having gets a chain before any gets a
    second one. Chains that do not agree show
    in R-hat; a mode that no start leads to does not.

    All chains of all stars run in step in one process, and their densities are evaluated together, on the
    model's device. A star's random numbers are its own, whatever other stars the batch has.

    References:
        | Hoffman & Gelman 2014, JMLR 15, 1593 (https://arxiv.org/abs/1111.4246)
        | Betancourt 2017 (https://arxiv.org/abs/1701.02434)

    Arguments:
        model: The model.
        batch: N stars.
        chains: Chains for each star.
        warmup: Draws of each chain that adapt step size and mass matrix, and are not part of the posterior;
            None: 200, and 60 with more than 10 latents.
        draws: Draws of each chain after these.
        target_accept: Mean acceptance probability that the step size is adapted to.
        max_tree_depth: A trajectory has less than 2 ** max_tree_depth steps; None: 10, and 2 with more
            than 10 latents.
        budget: Steps that the trajectories of a chain may take. One that has spent them goes on by single
            steps, which are right but slow to mix; `budget_spent` says so.
        starts: Classes whose best training latents are followed to a mode, and further starts that are far
            apart; None: 10, and 40 with more than 10 latents: what jumps do not know of, chains are slow to
            enter and to leave.
        seed: Of everything random.
        progress: Show a bar on stderr.
        scan: `LatentScan(model)`, where it is at hand already.

    Returns:
        Equally probable draws with `diagnostics` r_hat, ess_bulk, ess_tail (the worst over latents, scales
        and log density), divergences and budget_spent, and the statistics of all draws, warm-up apart.

    Example:
        >>> import numpy as np
        >>> from bayesspec import Observation, load_model
        >>> model = load_model("kang2021")
        >>> star = Observation(model.grid.wavelength, np.linspace(1.5, 0.5, 2048), scale=1.0)
        >>> batch = ObservationBatch.from_observations([star], model.grid)
        >>> found = nuts_draws(model, batch, chains=2, warmup=30, draws=20)
        >>> found.z.shape, found.sample_stats["energy"].shape, found.warmup_stats["energy"].shape
        ((1, 2, 20, 3), (1, 2, 20), (1, 2, 30))
    """
    scan = LatentScan(model) if scan is None else scan
    few = model.lead_dim + model.residual_dim <= FEW
    warmup = (WARMUP if few else LESS_WARMUP) if warmup is None else warmup
    starts = (STARTS if few else MORE_STARTS) if starts is None else starts
    if max_tree_depth is None:
        max_tree_depth = DEPTH if few else LESS_DEPTH
    pixels = batch.flux[0].numel() * chains
    per = max(1, (_CPU_PIXELS if batch.flux.device.type == "cpu" else _PIXELS) // pixels)
    settings = Settings(warmup, draws, target_accept, max_tree_depth, budget, few, 0 if few else JUMPS)
    parts = []
    with progress_bar("NUTS", len(batch) * chains * (warmup + draws), enabled=progress) as report:
        for first in range(0, len(batch), per):
            group = batch.select(np.arange(first, min(first + per, len(batch))))
            done = first * chains * (warmup + draws)
            parts.append(_sample(model, group, scan, chains, starts, seed, settings, _Counter(report, done)))
    return _join(parts, Target(model, batch), warmup)


def enumerated_log_density(model: StellarModel, batch: ObservationBatch, theta: Tensor) -> Tensor:
    """log p(y, z, x, a, w) of every star, (N,), from a trace of the Pyro model, the class enumerated.

    The density is one of x, v and q in units of their priors' widths, as that of `Target` is.

    Arguments:
        model: The model.
        batch: N stars.
        theta: Latents and log scales as `Target` has them, (N, d); log scales that are not free are ignored.
    """
    latents, log_scale = Target(model, batch).split(theta)
    program = poutine.condition(model, model.sites(latents, log_scale, batch))
    program = poutine.enum(config_enumerate(program), first_available_dim=-2)
    trace = poutine.trace(program).get_trace(batch)
    trace.compute_log_prob()

    def term(site: str) -> Tensor:
        return trace.nodes[site]["log_prob"]

    # Classes are in dimension -2; z depends on the class, y given z does not.
    total = (term("C") + term("z")).logsumexp(-2) + term("y")
    for site in ("v", "q", "w"):
        if site in trace.nodes:
            total = total + term(site)
    if model.passage is not None:
        total = total + model.passage.widths.log().sum()
    if "log_scale" in trace.nodes:
        total = total.index_add(0, batch.free_index[0], term("log_scale"))
    return total


@dataclass
class _Counter:
    """Counts the draws of all chains for the bar."""

    report: Any
    done: int

    def __call__(self, accept: float) -> None:
        self.done += 1
        self.report(self.done, accept)


class _Starts(NamedTuple):
    """Of R = N * chains rows."""

    centre: Tensor
    """(R, d): the mode."""
    factor: Tensor
    """(R, d, d): lower Cholesky factor of Laplace's covariance, zero where a scale is not free."""

    def select(self, rows: list[int]) -> _Starts:
        """Those of these rows."""
        return _Starts(self.centre[rows], self.factor[rows])

    def theta(self, u: Tensor) -> Tensor:
        """Points, (R, d), in the coordinates of the density."""
        return self.centre + (self.factor @ u[..., None])[..., 0]

    def white(self, theta: Tensor) -> Tensor:
        """The inverse, (R, d), in double precision on the host; 0 where a scale is not free."""
        offset, factor = (part.cpu().double() for part in (theta - self.centre, self.factor))
        pinned = (factor.diagonal(dim1=-2, dim2=-1) == 0).double()
        factor = factor + torch.diag_embed(pinned)
        return torch.linalg.solve_triangular(factor, offset[..., None], upper=False)[..., 0] * (1 - pinned)


def _sample(
    model: StellarModel,
    batch: ObservationBatch,
    scan: LatentScan,
    chains: int,
    starts: int,
    seed: int,
    settings: Settings,
    count: _Counter,
) -> dict[str, NDArray]:
    """All chains of some stars: theta (N, chains, warmup + draws, d) and the statistics."""
    modes = find_modes(model, batch, starts=starts, scan=scan)
    frame = _starts(model, batch, modes, chains)
    star = np.repeat(np.arange(len(batch)), chains)
    free = Target(model, batch).free.cpu().numpy()[star]
    seeds = [_seed(batch, n, chain, seed) for n in range(len(batch)) for chain in range(chains)]
    rows: list[int] = []
    chosen, begin = batch.select(star), None
    jumps: Jumps | None = None
    if settings.jumps:
        jumps = _prepared(Target(model, batch), modes, star, seeds, settings, seed)
        begin = frame.white(jumps.begin(seed))

    def answer(waiting: list[int], questions: list[Question]) -> list[tuple[Tensor, Tensor]]:
        found: dict[int, tuple[Tensor, Tensor]] = {}
        moved = None if jumps is None else functools.partial(elsewhere, jumps)
        for reply, kind in ((density, False), (moved, True)):
            asking = [k for k, question in enumerate(questions) if (question.jump is not None) == kind]
            if asking and reply is not None:
                who = [waiting[k] for k in asking]
                found |= zip(who, reply(who, [questions[k] for k in asking]), strict=True)
        return [found[row] for row in waiting]

    def placed(who: list[int], questions: list[Question]) -> Tensor:
        u = torch.zeros(len(who), free.shape[-1], dtype=torch.float64)
        for position, row in enumerate(who):
            u[position, free[row]] = questions[position].u
        return u.to(frame.centre)

    @torch.no_grad()
    def elsewhere(jumps: Jumps, who: list[int], questions: list[Question]) -> list[tuple[Tensor, Tensor]]:
        own = frame.select(who)
        number, log_density = zip(*(question.jump for question in questions), strict=True)
        theta, accepted = jumps(who, number, own.theta(placed(who, questions)), torch.tensor(log_density))
        u = own.white(theta)
        return [(u[k, free[row]], accepted[k]) for k, row in enumerate(who)]

    @torch.enable_grad()
    def density(waiting: list[int], questions: list[Question]) -> list[tuple[Tensor, Tensor]]:
        nonlocal rows, chosen
        if waiting != rows:  # a chain has ended
            rows, chosen = waiting, batch.select(star[waiting])
        u = placed(rows, questions).requires_grad_()
        value = enumerated_log_density(model, chosen, frame.select(rows).theta(u))
        (gradient,) = torch.autograd.grad(value.sum(), u)
        value, gradient = value.detach().cpu().double(), gradient.cpu().double()
        return [(value[k], gradient[k, free[row]]) for k, row in enumerate(rows)]

    tasks = [
        functools.partial(
            run_chain, int(own.sum()), settings, count, None if begin is None else begin[row, own]
        )
        for row, own in enumerate(free)
    ]
    # Validation is off for all chains and the model alike: what is far out may overflow, and is rejected.
    with pyro.validation_enabled(False):
        found = run_together(tasks, answer, seeds)

    u = np.zeros((len(star), settings.warmup + settings.draws, free.shape[-1]))
    for row, chain in enumerate(found):
        u[row][:, free[row]] = np.stack(chain.u)
    centre, factor = (part.cpu().double().numpy() for part in frame)
    theta = centre[:, None] + np.einsum("rij,rtj->rti", factor, u)
    stats = {name: np.array([chain.stats[name] for chain in found]) for name in found[0].stats}
    stats["spent"] = np.array([chain.spent for chain in found])
    shape = len(batch), chains
    return {
        name: array.reshape(*shape, *array.shape[1:]) for name, array in {"theta": theta, **stats}.items()
    }


def _prepared(
    target: Target, modes: Modes, star: NDArray, seeds: list[int], settings: Settings, seed: int
) -> Jumps:
    """Proposals of jumps, from rounds of importance sampling, of each star as many as it takes."""
    enough = min(LEARNED, settings.draws * len(star) // len(target.batch))
    least = ROUNDS if enough == LEARNED else 1
    pool = Pool.of(target, modes)
    given, rows = pool.given, np.arange(len(target.batch))
    pools: dict[int, Pool] = {}
    for number in range(1, ROUNDS + MORE_ROUNDS + 1):
        pool.draw(JUMP_DRAWS, seed + number - 1)
        pool.adapt()
        learned = effective(pool.log_weight) >= enough
        done = (learned & (number >= least)) | (number == ROUNDS + MORE_ROUNDS)
        pools |= {int(rows[n]): pool.select(np.array([n])) for n in np.flatnonzero(done)}
        if done.all():
            break
        rows, pool = rows[~done], pool.select(np.flatnonzero(~done))
    each = [pools[n] for n in range(len(pools))]
    return Jumps(target, given, each, star, seeds, settings.warmup + settings.draws, settings.jumps)


def _starts(model: StellarModel, batch: ObservationBatch, modes: Modes, chains: int) -> _Starts:
    """A mode for every chain of every star, those of most mass first, with Laplace's covariance there."""
    n, s = modes.log_density.shape
    flat = modes.theta.flatten(0, 1)
    target = Target(model, batch.select(np.repeat(np.arange(n), s)))
    factor = target.laplace(flat).unflatten(0, (n, s))
    log_mass = modes.log_density + log_volume(target, factor)
    order = log_mass.argsort(-1, descending=True)

    chosen = [_spread(modes.theta[i], factor[i], log_mass[i], order[i].tolist(), chains) for i in range(n)]
    row, column = torch.arange(n, device=flat.device)[:, None], torch.tensor(chosen, device=flat.device)
    free = Target(model, batch).free[:, None]
    factor = torch.where(free[..., None], factor[row, column], 0.0)
    return _Starts(modes.theta[row, column].flatten(0, 1), factor.flatten(0, 1))


def _spread(theta: Tensor, factor: Tensor, log_mass: Tensor, order: list[int], chains: int) -> list[int]:
    """The mode of each chain of one star: distinct modes worth their mass take turns."""
    distinct: list[int] = []
    for k in order:
        if not log_mass[k] > log_mass[order[0]] + math.log(WORTH):
            break
        shift = theta[k] - theta[distinct]
        away = torch.linalg.solve_triangular(factor[distinct], shift[..., None], upper=False)
        if bool((away.square().sum((-2, -1)) > 1).all()):
            distinct.append(k)
    return [distinct[chain % len(distinct)] for chain in range(chains)]


def _seed(batch: ObservationBatch, star: int, chain: int, seed: int) -> int:
    """A seed of the star's own, whatever stands beside it in the batch."""
    flux = batch.flux[star][~batch.mask[star]].cpu().numpy()
    words = np.random.SeedSequence([seed, zlib.crc32(flux.tobytes()), chain]).generate_state(2)
    return int(words[0]) << 31 | int(words[1] >> 1)


def _join(parts: list[dict[str, NDArray]], target: Target, warmup: int) -> Draws:
    """Draws of all groups of stars, warm-up cut off, and how far they can be trusted."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    theta, spent = whole.pop("theta")[:, :, warmup:], whole.pop("spent")
    early = {name: array[:, :, :warmup] for name, array in whole.items()}
    late = {name: array[:, :, warmup:] for name, array in whole.items()}

    rows = []
    for star, sampled in enumerate(target.free.cpu().numpy()):
        rows.append(
            chain_diagnostics(np.concatenate([theta[star][..., sampled], late["lp"][star][..., None]], -1))
        )
    diagnostics = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    diagnostics["divergences"] = late["diverging"].sum((1, 2))
    diagnostics["budget_spent"] = np.any(spent, -1)
    return target.draws(
        theta.astype(np.float32),
        log_weight=None,
        log_density=late["lp"],
        diagnostics=diagnostics,
        sample_stats=late,
        warmup_stats=early,
    )
