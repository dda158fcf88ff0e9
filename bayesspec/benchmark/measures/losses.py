"""The distance of a denoised spectrum from the truth, and the part of it that is the truth's own noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["clean_variance", "squared_loss"]


def squared_loss(
    estimate: NDArray, truth: NDArray, mask: NDArray, among: NDArray | None = None
) -> NDArray[np.float64]:
    """Mean squared difference from the truth over its good pixels, (...,), at mean |flux| = 1.

    References:
        | Kang, He & Zhang 2021, RAA 21, 169, section 4: the reconstruction loss

    Arguments:
        estimate: (..., D), in the truth's unit.
        truth: (..., D).
        mask: Pixels where the truth is missing, True = bad, (..., D).
        among: Use only these pixels, (..., D), e.g. the observed ones.

    Returns:
        The loss; 0 if no pixel is left.

    Example:
        >>> truth, nothing = np.ones(100), np.zeros(100, bool)
        >>> float(squared_loss(truth, truth, nothing)), float(squared_loss(truth + 0.5, truth, nothing))
        (0.0, 0.25)
    """
    good = ~np.asarray(mask, dtype=bool)
    if among is not None:
        good = good & among
    square = np.where(good, np.asarray(estimate, float) - truth, 0.0) ** 2
    return square.sum(-1) / np.maximum(good.sum(-1), 1)


def clean_variance(ivar: NDArray, mask: NDArray) -> NDArray[np.float64]:
    r"""Mean variance of the truth's own noise over its good pixels, (...,); 0 if unknown.

    The truth is a measurement :math:`t = s + e` of a star s. A denoised spectrum :math:`\hat s` that hardly
    depends on the noise e of a single pixel, as for all methods here, has
    :math:`\langle (\hat s - t)^2 \rangle = \langle (\hat s - s)^2 \rangle + \sigma_e^2`. So the loss against
    the star is the loss minus this variance. (A method that copies its input also copies e; then the
    correction does not apply, and its loss is used as it is.)

    Arguments:
        ivar: Inverse variance of the truth, (..., D), 0 where masked or unknown.
        mask: True = bad, (..., D).

    Example:
        >>> float(clean_variance(np.full(10, 4.0), np.zeros(10, bool)))
        0.25
    """
    good = ~np.asarray(mask, dtype=bool) & (ivar > 0)
    variance = np.divide(1.0, ivar, out=np.zeros(np.shape(ivar)), where=good)
    return variance.sum(-1) / np.maximum(good.sum(-1), 1)
