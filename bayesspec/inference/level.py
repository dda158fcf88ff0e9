"""The noise level of exposures whose pipeline does not state it: inferred with the star, not assumed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.model import StellarModel
from bayesspec.noise_level import LEAST, NORMAL_MEDIAN

from .newton import newton_estimate
from .scan import LatentScan

__all__ = ["infer_noise_level"]

ROUNDS = 3
"""Fits of a star between which its noise level is corrected."""

STEP = (0.25, 2.0)
"""Least and most factor of a correction."""


def infer_noise_level(
    model: StellarModel, batch: ObservationBatch, scan: LatentScan | None = None
) -> ObservationBatch:
    """The batch with an inverse variance wherever the model needs one and the pipeline gave none.

    Noise as it usually goes with wavelength, times a level for each exposure: first the one of differences
    of neighbouring pixels, in which the lines of a bright star count as noise; then, a few times, what the
    most probable spectrum leaves.

    Arguments:
        model: The model.
        batch: N stars.
        scan: `LatentScan(model)`, where it is at hand already.
    """
    filled = model.with_noise_level(batch)
    lacking = (~batch.mask & (batch.ivar <= 0)).any(-1)
    rows = lacking.any(-1).nonzero()[:, 0]
    if model.residual is None or not len(rows):
        return filled
    ivar = filled.ivar.clone()
    for _ in range(ROUNDS):
        part = replace(filled, ivar=ivar).select(rows.cpu().numpy())
        factor = _misjudged(model, part, scan).clamp(*STEP)
        factor = torch.where(lacking[rows], factor, 1.0)
        ivar[rows] = (ivar[rows] / factor.square()[..., None]).clamp_max(LEAST**-2)
    return replace(filled, ivar=ivar)


@torch.no_grad()
def _misjudged(model: StellarModel, batch: ObservationBatch, scan: LatentScan | None) -> Tensor:
    """How many times as large as stated the noise of each exposure is, (N, E)."""
    found = newton_estimate(model, batch, starts=2, scan=scan)
    latents = found.z[:, None]
    flow = model.likelihood(latents, model.spectrum(latents), found.log_scale.exp(), batch)
    size = torch.where(batch.mask, torch.nan, flow.whiten(batch.flux).abs())
    return NORMAL_MEDIAN * size.nanmedian(-1).values.nan_to_num(1.0)
