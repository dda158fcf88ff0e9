"""The most probable latent and class, eq. (7), by Pyro's AutoDelta from several starts at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.initialization import init_to_mean
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.model import StellarModel
from bayesspec.runtime import own_random_state

from .density import MapEstimate, log_joint
from .scan import LatentScan
from .target import Target, inverse_factor
from .whiten import Whitened

__all__ = ["map_estimate"]

ROWS = 256
"""Spectra times starts in one pass: what the generator runs fastest at."""


def map_estimate(
    model: StellarModel,
    batch: ObservationBatch,
    *,
    classes: Literal["joint", "marginal"] = "joint",
    starts: int = 4,
    steps: int = 150,
    learning_rate: float = 0.1,
    scan: LatentScan | None = None,
) -> MapEstimate:
    r"""Maximise :math:`\log p(y | z) + \log p(z | C) + \log p(C)`, eq. (7), for a batch of stars.

    Every star is followed from the best training latents of several classes, in coordinates that the metric
    at the start makes white (`Whitened`). With `joint` each start keeps
    its class until the end, where the class that fits its latent best takes over and is followed in turn,
    until none does better. With `marginal` the class is enumerated and summed out.

    The caller's parameter store and random state are left as they were.

    References:
        | Kang, He & Zhang 2021, RAA 21, 169, eq. (7), whose last term is log p(C)

    Arguments:
        model: The model.
        batch: N stars.
        classes: Maximise over C, or sum over it.
        starts: Starts for each star, cut to the number of classes.
        steps: Adam updates.
        learning_rate: The largest, in standard deviations; falls to a hundredth of it.
        scan: `LatentScan(model)`, where it is at hand already.
    """
    scan = LatentScan(model) if scan is None else scan
    starts = min(starts, len(model.classes))
    per = max(1, ROWS // starts)
    chunks = [range(first, min(first + per, len(batch))) for first in range(0, len(batch), per)]
    parts = [
        _map_rows(model, batch.select(chunk), scan, classes, starts, steps, learning_rate) for chunk in chunks
    ]
    return MapEstimate(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _map_rows(
    model: StellarModel,
    batch: ObservationBatch,
    scan: LatentScan,
    classes: Literal["joint", "marginal"],
    starts: int,
    steps: int,
    learning_rate: float,
) -> MapEstimate:
    n = len(batch)
    begin = scan.starts(batch, starts)
    rows = batch.select([star for star in range(n) for _ in range(starts)])
    z, log_scale, klass = (part.reshape(n * starts, *part.shape[2:]) for part in begin)
    found = _follow(model, rows, z, log_scale, klass, classes, steps, learning_rate)
    if model.residual is not None:  # what the data say of w is known at the end
        found = _follow(model, rows, *found[:3], classes, steps, learning_rate / 4)
    best = found.log_density.reshape(n, starts).argmax(-1) + starts * torch.arange(n, device=z.device)
    found = MapEstimate(*(part[best] for part in found))

    # The class that fits a latent best may not be the one it was followed in: then follow that one.
    for _ in range(len(model.classes) if classes == "joint" else 0):
        again = _follow(
            model, batch, found.z, found.log_scale, found.klass, classes, steps // 2, learning_rate / 4
        )
        better = again.log_density > found.log_density + 1e-3
        found = MapEstimate(*(_where(better, a, b) for a, b in zip(again, found, strict=True)))
        if not bool((better & (again.klass != found.klass)).any()):
            break
    with torch.no_grad():
        density, _ = log_joint(model, batch, found.z, found.log_scale, classes)
    return found._replace(log_density=density)


def _follow(
    model: StellarModel,
    rows: ObservationBatch,
    z: Tensor,
    log_scale: Tensor,
    klass: Tensor,
    classes: Literal["joint", "marginal"],
    steps: int,
    learning_rate: float,
) -> MapEstimate:
    """Follow every row uphill from where it is, with its class fixed or summed out, and w summed out."""
    target = Target(model, rows, classes)
    log_scale = torch.where(rows.free_scale, log_scale, 0.0)
    theta = target.join(z, log_scale)
    program: Callable[[ObservationBatch], Any] = model
    if model.residual is not None:
        target, metric = target.summed(theta)
    else:
        metric = target.metric(theta)
    if target.told is not None:
        program = partial(model.with_w_summed, told=target.told)
    if classes == "joint":
        program = poutine.condition(program, {"C": klass})
    white = Whitened(model, rows, (z, log_scale), inverse_factor(metric))
    program = poutine.reparam(program, white)
    with _isolated():
        guide = AutoDelta(poutine.block(program, hide=["C"]), init_loc_fn=init_to_mean)
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        elbo.differentiable_loss(program, guide, rows)  # makes the guide's parameters
        optimiser = torch.optim.Adam(guide.parameters(), lr=learning_rate, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, gamma=0.01 ** (1 / max(1, steps)))
        for _ in range(steps):
            optimiser.zero_grad()
            elbo.differentiable_loss(program, guide, rows).backward()
            optimiser.step()
            schedule.step()
        values = poutine.trace(poutine.condition(program, guide.median(rows))).get_trace(rows).nodes

    with torch.no_grad():
        sites: dict[str, Any] = {name: values[name]["value"] for name in white.columns if name in values}
        end, scale = model.of_sites(sites), log_scale
        if "log_scale" in sites:
            scale = log_scale.index_put(tuple(rows.free_index), sites["log_scale"])
        density, best = log_joint(model, rows, end, scale, classes)
        if target.told is not None:
            h, _ = model.residual_term.split(model.split(end)[1])
            density = density - model.residual_term.log_volume(h, target.told)
    return MapEstimate(end, scale, best, density, torch.full_like(density, torch.nan))


@contextmanager
def _isolated() -> Iterator[None]:
    """Leave no trace in the caller's parameter store, nor in torch's random state."""
    with pyro.get_param_store().scope(), own_random_state():
        yield


def _where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.reshape(-1, *[1] * (yes.dim() - 1)), yes, no)
