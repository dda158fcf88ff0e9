"""The noise level of exposures whose pipeline does not state it, from the exposures themselves."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .batch import ObservationBatch

__all__ = ["LEAST", "NORMAL_MEDIAN", "fill_ivar", "robust_level"]

LEAST = 1e-3
"""Least noise that a spectrum without errors is given, in units of its mean flux: a flat line has none."""

NORMAL_MEDIAN = 1.482602
"""Standard deviation of a normal distribution in units of its median absolute value."""


def fill_ivar(batch: ObservationBatch, reference: Tensor) -> ObservationBatch:
    """Give every exposure that lacks an inverse variance one of the reference's shape and its own level.

    An exposure that has some pixels with and others without is treated as lacking it throughout.

    Arguments:
        batch: N stars.
        reference: How noise goes with wavelength, a standard deviation in any unit, (D,).
    """
    observed = ~batch.mask
    known = (batch.mask | (batch.ivar > 0)).all(-1, keepdim=True)
    level = robust_level(batch.flux, batch.mask, reference)[..., None]
    guess = (reference * level.clamp_min(LEAST)).square().reciprocal()
    return replace(batch, ivar=torch.where(observed, torch.where(known, batch.ivar, guess), 0.0))


def robust_level(flux: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    """Noise in units of a reference (D,), (...), of spectra (..., D): the median of third differences.

    Differences of pixels two apart see neither the continuum nor the correlation of neighbours that rebinning
    makes; a median does not see lines and cosmic rays.

    References:
        | Stoehr et al. 2008, DER_SNR (the same differences, for white noise)
    """
    left, here, right = flux[..., :-4], flux[..., 2:-2], flux[..., 4:]
    spread = (reference[:-4].square() + 4 * reference[2:-2].square() + reference[4:].square()).sqrt()
    whole = ~(mask[..., :-4] | mask[..., 2:-2] | mask[..., 4:])
    size = torch.where(whole, (2 * here - left - right).abs() / spread, torch.nan)
    return NORMAL_MEDIAN * size.nanmedian(-1).values.nan_to_num(1.0)
