"""Arms that do not join: a spectrum whose red half is on another scale than its blue half."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.model import StellarModel
from bayesspec.observation import ObservationBatch

from .importance import log_volume
from .newton import find_modes, newton_estimate
from .scan import LatentScan
from .target import Target

__all__ = ["BORDER", "with_arms_apart"]

BORDER = 6000.0
"""Angstrom; where the blue arm of BOSS and of LAMOST hands over to the red one, within 300 Angstrom."""

WORTH_A_TRY = 8.0
"""Gain in log density that a step along the scale of one arm has to promise before it is tried."""

PRIOR_ODDS = float(np.log(1e9))
"""Log odds beforehand that arms join: what a model cannot express of a bright star is evidence of nothing,
and amounts to this much; a jump of 5 % at S/N 10 amounts to more."""

SMALLEST, LARGEST = 0.02, 0.5
"""Log ratio of arms below which it does not matter, and beyond which something else is wrong."""

LEAST_SHARE = 0.1
"""Share of the grid that an arm must have to be told apart."""


def with_arms_apart(
    model: StellarModel, batch: ObservationBatch, scan: LatentScan | None = None
) -> ObservationBatch:
    """The batch with stars whose arms do not join taken as two exposures, each of its own scale.

    A model without residual term, such as the paper's, takes every spectrum as it is.

    Of stars of one exposure that has both arms: where the density at the mode says that another scale of one
    arm would pay, the star is fitted so, and the more probable is kept, by Laplace's evidence and odds of 1e9
    to 1 for arms that join. Where the user states the star's scale, one arm has that and the other a free
    one: both choices are tried.

    Arguments:
        model: The model.
        batch: N stars.
        scan: `LatentScan(model)`, where it is at hand already.
    """
    if model.residual is None:
        return batch
    red = torch.as_tensor(model.grid.wavelength > BORDER).to(batch.mask.device)
    observed = ~batch.mask
    single = observed.any(-1).sum(-1) == 1
    both = ((observed & red).any(1).float().mean(-1) > LEAST_SHARE) & (
        (observed & ~red).any(1).float().mean(-1) > LEAST_SHARE
    )
    rows = (single & both).nonzero()[:, 0].cpu().numpy()
    if not len(rows):
        return batch
    joined = _first_exposure(batch.select(rows))
    doubtful = _promise(model, joined, red, scan) > WORTH_A_TRY
    rows, joined = rows[doubtful], joined.select(np.flatnonzero(doubtful))
    if not len(rows):
        return batch

    choices = [joined, *(_apart(joined, red, free_arm=arm) for arm in (1, 0))]
    evidence = torch.full((3, len(rows)), -torch.inf, device=joined.flux.device)
    evidence[0] = _evidence(model, joined, scan) + PRIOR_ODDS
    evidence[1] = _evidence(model, choices[1], scan)
    known = (~joined.free_scale[:, 0]).nonzero()[:, 0]
    if len(known):  # where both scales are free, the third choice is the second
        evidence[2, known] = _evidence(model, choices[2].select(known.cpu().numpy()), scan)
    best = evidence.argmax(0).cpu().numpy()
    for arm in (1, 2):
        chosen = best == arm
        if chosen.any():
            batch = _put(batch, rows[chosen], choices[arm].select(np.flatnonzero(chosen)))
    return batch


def _first_exposure(batch: ObservationBatch) -> ObservationBatch:
    """Stars of one exposure, wherever among the places of a batch it stands, in one place."""
    at = (~batch.mask).any(-1).to(torch.int8).argmax(-1)
    star = torch.arange(len(batch), device=at.device)

    def pick(array: Tensor) -> Tensor:
        return array[star, at][:, None]

    return _batch(batch, *(pick(getattr(batch, name)) for name in _ARRAYS))


def _apart(batch: ObservationBatch, red: Tensor, free_arm: int) -> ObservationBatch:
    """The blue and the red arm of stars of one exposure as two, in one unit; a known scale is that of one."""
    flux, ivar, mask, unit, free = (getattr(batch, name) for name in _ARRAYS)
    arms = torch.stack([mask[:, 0] | red, mask[:, 0] | ~red], dim=1)
    free = free.expand(-1, 2).clone()
    free[:, free_arm] = True
    return _batch(batch, flux.expand(-1, 2, -1), ivar.expand(-1, 2, -1), arms, unit.expand(-1, 2), free)


_ARRAYS = ("flux", "ivar", "mask", "unit_flux", "free_scale")


def _batch(
    like: ObservationBatch, flux: Tensor, ivar: Tensor, mask: Tensor, unit: Tensor, free: Tensor
) -> ObservationBatch:
    return like.with_tensors(
        flux=torch.where(mask, 0.0, flux),
        ivar=torch.where(mask, 0.0, ivar),
        mask=mask,
        unit_flux=unit,
        free_scale=free,
    )


def _promise(
    model: StellarModel, joined: ObservationBatch, red: Tensor, scan: LatentScan | None
) -> NDArray[np.float64]:
    """Gain in log density of a whole step from the joined mode when one arm's scale is free, (N,)."""
    found = newton_estimate(model, joined, classes="marginal", scan=scan)
    apart = _apart(joined, red, free_arm=1)
    target = Target(model, apart)
    theta = target.join(found.z, found.log_scale.expand(-1, 2))
    target, metric = target.summed(theta)
    _, gradient = target.gradient(theta)
    factor = torch.linalg.cholesky(metric)
    step = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
    return (0.5 * (gradient * step).sum(-1)).cpu().numpy()


def _evidence(model: StellarModel, batch: ObservationBatch, scan: LatentScan | None) -> Tensor:
    """Log evidence by Laplace's method at the best mode, (N,), up to what the fits have in common."""
    modes = find_modes(model, batch, scan=scan)
    star = torch.arange(len(batch), device=modes.theta.device)
    best = modes.log_density.argmax(-1)
    target = Target(model, batch)
    factor = target.laplace(modes.theta[star, best])
    # A free scale brings a dimension, and with it a factor; a ratio of the arms beyond reason is none.
    free = batch.free_scale.sum(-1) * 0.5 * np.log(2 * np.pi)
    _, log_scale = target.split(modes.theta[star, best])
    evidence = modes.log_density[star, best] + log_volume(target, factor) + free
    if log_scale.shape[-1] == 1:
        return evidence
    ratio = (log_scale[:, 1] - log_scale[:, 0]).abs()
    return torch.where((ratio > SMALLEST) & (ratio < LARGEST), evidence, -torch.inf)


def _put(batch: ObservationBatch, rows: NDArray[np.int64], part: ObservationBatch) -> ObservationBatch:
    """The batch with some stars replaced by others of two exposures."""
    missing = max(0, 2 - batch.flux.shape[1])
    empty = {"mask": True, "unit_flux": 1.0}
    arrays = []
    for name in _ARRAYS:
        whole, new = getattr(batch, name), getattr(part, name)
        value = empty.get(name, 0)
        more = whole.new_full((len(batch), missing, *whole.shape[2:]), value)
        whole = torch.cat([whole, more], dim=1)
        whole[rows] = value
        whole[rows, :2] = new
        arrays.append(whole)
    return _batch(batch, *arrays)
