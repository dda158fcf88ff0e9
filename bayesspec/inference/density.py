"""The posterior density of points, one for every star: what all engines climb, draw from or weigh."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.model import SCALE_WIDTH, StellarModel

__all__ = ["MapEstimate", "log_joint"]


class MapEstimate(NamedTuple):
    """The mode of every star's posterior."""

    z: Tensor
    """(N, L + R): z, and after it w if the model has a residual term."""
    log_scale: Tensor
    """(N, E); 0 where the scale is known."""
    klass: Tensor
    """(N,): the class of eq. (7), or the most probable one at z."""
    log_density: Tensor
    """(N,): log p(y, z, C), or log p(y, z) with the class summed out."""
    promise: Tensor
    """(N,): gain in log density that one more Newton step promises, small at a maximum; NaN: unknown."""


def log_joint(
    model: StellarModel,
    batch: ObservationBatch,
    z: Tensor,
    log_scale: Tensor,
    classes: Literal["joint", "marginal"] = "joint",
) -> tuple[Tensor, Tensor]:
    """The logarithm of eq. (7)'s numerator for every star, (..., N), and the class it is for, (..., N).

    Arguments:
        model: The model.
        batch: N stars.
        z: Latents, (..., N, L + R): any number of points for every star.
        log_scale: Log scales, (..., N, E), 0 where known.
        classes: `joint`: log p(y, z, C) of the best C. `marginal`: log p(y, z), C summed out.
    """
    by_class = model.log_joint_classes(z)
    best, klass = by_class.max(-1)
    prior = best if classes == "joint" else by_class.logsumexp(-1)
    scale_prior = torch.distributions.Normal(torch.zeros_like(log_scale), SCALE_WIDTH).log_prob(log_scale)
    scale_prior = torch.where(batch.free_scale, scale_prior, 0.0).sum(-1)
    return prior + scale_prior + model.log_likelihood(batch, z, log_scale), klass
