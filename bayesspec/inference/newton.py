"""The most probable latent and class, eq. (7), by a batched second-order optimiser: the fast MAP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.model import StellarModel

from .density import MapEstimate, log_joint
from .scan import LatentScan
from .target import Target

__all__ = ["Modes", "climb", "find_modes", "newton_estimate"]

CONVERGED = 1e-3
"""Gain in log density that a further step promises, below which a climb ends."""

HOPELESS = 15.0
"""A climb ends early if, with all that its step promises, it would end by this much below the star's best."""

LONGEST = 2.0
"""Most that a step may change the size h: two of its standard deviations, beyond which no quadratic holds."""

ROWS = 256
"""Spectra times starts in one pass: what the generator runs fastest at."""


@dataclass(frozen=True)
class Modes:
    """Where S climbs of each of N stars ended."""

    theta: Tensor
    """(N, S, d)."""
    log_density: Tensor
    """(N, S); -inf where a climb was given up."""
    curvature: Tensor
    """(N, S, d, d): positive definite, as the climbs learned it."""
    promise: Tensor
    """(N, S): gain in log density that one more step promises, small where a climb has ended."""


def newton_estimate(
    model: StellarModel,
    batch: ObservationBatch,
    *,
    classes: Literal["joint", "marginal"] = "joint",
    starts: int = 4,
    iterations: int = 40,
    scan: LatentScan | None = None,
) -> MapEstimate:
    r"""Maximise :math:`\log p(y | z) + \log p(z | C) + \log p(C)`, eq. (7), for a batch of stars.

    The optimum of `map_estimate` or a higher one, many times faster: every star is followed from the best
    training latents of several classes, and from others far apart, by damped quasi-Newton steps that begin
    with the Fisher metric.

    References:
        | Kang, He & Zhang 2021, RAA 21, 169, eq. (7), whose last term is log p(C)

    Arguments:
        model: The model.
        batch: N stars.
        classes: Maximise over C, or sum over it.
        starts: Classes whose best training latent is a start, and further starts that are far apart.
        iterations: Most steps of a climb; few take more than a dozen.
        scan: `LatentScan(model)`, where it is at hand already.

    Example:
        >>> import numpy as np
        >>> from bayesspec import Observation, load_model
        >>> model = load_model("kang2021")
        >>> star = Observation(model.grid.wavelength, np.ones(2048))
        >>> batch = ObservationBatch.from_observations([star], model.grid)
        >>> newton_estimate(model, batch).z.shape
        torch.Size([1, 3])
    """
    modes = find_modes(model, batch, classes=classes, starts=starts, iterations=iterations, scan=scan)
    best = modes.log_density.argmax(-1)
    theta = modes.theta[torch.arange(len(batch), device=best.device), best]
    z, log_scale = Target(model, batch, classes).split(theta)
    with torch.no_grad():
        density, klass = log_joint(model, batch, z, log_scale, classes)
    promise = modes.promise[torch.arange(len(batch), device=best.device), best]
    return MapEstimate(z, log_scale, klass, density, promise)


def find_modes(
    model: StellarModel,
    batch: ObservationBatch,
    *,
    classes: Literal["joint", "marginal"] = "marginal",
    starts: int = 4,
    iterations: int = 40,
    scan: LatentScan | None = None,
) -> Modes:
    """Climb from the best training latents of `starts` classes, and from as many more that are far apart.

    Several climbs may end at one mode.
    """
    scan = LatentScan(model) if scan is None else scan
    by_class = min(starts, len(model.classes))
    total = by_class + starts
    per = max(1, ROWS // total)
    parts = []
    for first in range(0, len(batch), per):
        part = batch.select(np.arange(first, min(first + per, len(batch))))
        z, log_scale, _ = scan.starts_and_spread(part, by_class, starts)
        star = np.repeat(np.arange(len(part)), total)
        target = Target(model, part.select(star), classes)
        begin = target.join(z.flatten(0, 1), log_scale.flatten(0, 1))
        ends = _climb_all(target, begin, star, iterations)
        parts.append([end.unflatten(0, (-1, total)) for end in ends])
    return Modes(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _climb_all(
    target: Target, theta: Tensor, star: NDArray[np.int64], iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Follow every row uphill; with a residual term twice: what the data say of w is known at the end."""
    if target.core == target.dim:
        return climb(target, theta, star, iterations)
    summed, metric = target.summed(theta)
    end, density, curvature, promise = climb(summed, theta, star, iterations, metric)
    rows = (density > -torch.inf).nonzero()[:, 0]
    index = rows.cpu().numpy()
    summed, metric = target.select(index).summed(end[rows])
    _, order = np.unique(star[index], return_inverse=True)
    parts = end, density, curvature, promise
    for part, found in zip(parts, climb(summed, end[rows], order, iterations, metric), strict=True):
        part[rows] = found
    return parts


@dataclass
class _Climb:
    """State of R climbs, one row each."""

    theta: Tensor
    value: Tensor
    gradient: Tensor
    curvature: Tensor
    damping: Tensor

    def select(self, rows: Tensor) -> _Climb:
        return _Climb(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def proposal(self, size: slice) -> tuple[Tensor, Tensor]:
        """The damped step, (R, d), and the gain in log density that it promises, (R,).

        Where its change of the size h, at `size`, would be too long, all of it is made shorter.
        """
        diagonal = torch.diag_embed(self.curvature.diagonal(dim1=-2, dim2=-1) * self.damping[:, None])
        factor = torch.linalg.cholesky(self.curvature + diagonal)
        step = torch.cholesky_solve(self.gradient[..., None], factor)[..., 0]
        reach = torch.linalg.vector_norm(step[:, size], dim=-1, keepdim=True)
        step = step * (LONGEST / reach.clamp_min(LONGEST))
        return step, self._promise(step)

    def promise(self) -> Tensor:
        """The gain that a whole, undamped step promises, (R,): not less than none, whatever rounding says."""
        factor = torch.linalg.cholesky(self.curvature)
        whole = torch.cholesky_solve(self.gradient[..., None], factor)[..., 0]
        return self._promise(whole).clamp_min(0)

    def _promise(self, step: Tensor) -> Tensor:
        bend = torch.einsum("nd,nde,ne->n", step, self.curvature, step)
        return (self.gradient * step).sum(-1) - 0.5 * bend

    def advance(self, step: Tensor, promised: Tensor, value: Tensor, gradient: Tensor) -> None:
        """Take or refuse a step whose end has this density and gradient; learn from it either way."""
        self.curvature = _updated(self.curvature, step, self.gradient - gradient)
        ratio = (value - self.value) / promised.clamp_min(1e-12)
        accepted = value > self.value
        grow = torch.where(ratio > 0.5, 0.2, torch.where(accepted, 1.0, 6.0))
        self.damping = (self.damping * grow).clamp(1e-4, 1e8)
        self.theta = torch.where(accepted[:, None], self.theta + step, self.theta)
        self.gradient = torch.where(accepted[:, None], gradient, self.gradient)
        self.value = torch.where(accepted, value, self.value)


def climb(
    target: Target,
    theta: Tensor,
    star: NDArray[np.int64],
    iterations: int,
    metric: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Follow R rows uphill: ends, (R, d), log densities, (R,), curvatures, (R, d, d), and promises, (R,).

    Levenberg-Marquardt steps. The curvature begins as the Fisher metric and follows the gradients from there
    (BFGS). A row ends when a whole step promises less than `CONVERGED`, or when the row has no hope; one that
    neither has happened to after all `iterations` still promises more.

    Arguments:
        target: The density of R rows, several of which may be one star.
        theta: Starts, (R, d).
        star: The star of each row, (R,).
        iterations: Most steps.
        metric: `target.metric(theta)`, where it is at hand already.
    """
    value, gradient = target.gradient(theta)
    metric = target.metric(theta) if metric is None else metric
    state = _Climb(theta, value, gradient, metric, torch.full_like(value, 1e-2))
    end, density, curvature = theta.clone(), value.clone(), state.curvature.clone()
    promised_at_end = torch.full_like(value, torch.inf)
    rows = np.arange(len(theta))
    group = torch.as_tensor(star).to(theta.device)
    best = torch.full((int(star.max()) + 1,), -torch.inf, dtype=value.dtype, device=theta.device)
    for _ in range(iterations):
        step, promised = state.proposal(slice(target.end, target.core))
        state.advance(step, promised, *target.gradient(state.theta + step))
        at = torch.as_tensor(rows).to(theta.device)
        end[at], density[at], curvature[at] = state.theta, state.value, state.curvature
        best = best.scatter_reduce(0, group[at], state.value, reduce="amax")

        promise = promised_at_end[at] = state.promise()
        hopeless = state.value + 2 * promise + HOPELESS < best[group[at]]
        density[at[hopeless]] = -torch.inf
        alive = ((promise > CONVERGED) & (state.damping < 1e7) & ~hopeless).nonzero()[:, 0]
        if not len(alive):
            break
        if len(alive) < len(rows):
            rows, state = rows[alive.cpu().numpy()], state.select(alive)
            target = target.select(alive.cpu().numpy())
    return end, density, curvature, promised_at_end


def _updated(curvature: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """BFGS update of positive definite matrices, (R, d, d), damped after Powell so that they remain so."""
    bent = (curvature @ step[..., None])[..., 0]
    old = (step * bent).sum(-1, keepdim=True).clamp_min(1e-12)
    new = (step * change).sum(-1, keepdim=True)
    blend = torch.where(new < 0.2 * old, 0.8 * old / (old - new), 1.0)
    change = blend * change + (1 - blend) * bent
    new = (step * change).sum(-1, keepdim=True)
    update = change[..., None] * change[..., None, :] / new[..., None]
    update = update - bent[..., None] * bent[..., None, :] / old[..., None]
    update = torch.where((old > 1e-10)[..., None], update, 0.0)

    # A step to where the density is not finite teaches nothing, nor does one that rounding has spoilt.
    updated = curvature + update
    sound = updated.isfinite().all(-1).all(-1)[:, None, None]
    updated = torch.where(sound, updated, curvature)
    positive = torch.linalg.cholesky_ex(updated).info == 0
    return torch.where(positive[:, None, None], updated, curvature)
