"""The noise level of exposures without errors, estimated from the exposures themselves."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .batch import ObservationBatch

__all__ = ["LEAST", "NORMAL_MEDIAN", "fill_ivar", "robust_level"]

LEAST = 1e-3
"""Minimum noise of a spectrum without errors, in units of its mean flux (a straight line has no scatter)."""

NORMAL_MEDIAN = 1.482602
"""Standard deviation of a normal distribution in units of its median absolute value."""


def fill_ivar(batch: ObservationBatch, reference: Tensor) -> ObservationBatch:
    """Give exposures without inverse variances one with the wavelength dependence of a reference.

    Its level is estimated from the exposure. If only some pixels of an exposure lack an inverse variance, all
    are estimated.

    Arguments:
        batch: N stars.
        reference: Dependence of the noise on wavelength: standard deviations in any unit, (D,).
    """
    observed = ~batch.mask
    known = (batch.mask | (batch.ivar > 0)).all(-1, keepdim=True)
    level = robust_level(batch.flux, batch.mask, reference)[..., None]
    guess = (reference * level.clamp_min(LEAST)).square().reciprocal()
    return replace(batch, ivar=torch.where(observed, torch.where(known, batch.ivar, guess), 0.0))


def robust_level(flux: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    """Noise of spectra (..., D) in units of a reference (D,), (...), from the median of second differences.

    Second differences of pixels two apart are insensitive to the continuum and to the correlation of
    neighbours by rebinning. Their median is insensitive to lines and cosmic rays.

    References:
        | Stoehr et al. 2008, DER_SNR (the same differences, for white noise)
    """
    left, here, right = flux[..., :-4], flux[..., 2:-2], flux[..., 4:]
    spread = (reference[:-4].square() + 4 * reference[2:-2].square() + reference[4:].square()).sqrt()
    whole = ~(mask[..., :-4] | mask[..., 2:-2] | mask[..., 4:])
    size = torch.where(whole, (2 * here - left - right).abs() / spread, torch.nan)
    return NORMAL_MEDIAN * size.nanmedian(-1).values.nan_to_num(1.0)
