"""The clean spectrum given the data and the latents."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["CleanSpectrum"]


class CleanSpectrum(NamedTuple):
    """Clean spectra given the data and the latents: s, and the conditional distribution of e."""

    s: Tensor
    """The spectrum without e, (..., D)."""
    e: Any
    """Distribution of e with `mean`, `variance` and `sample()`, each (..., D); None for a model without e."""

    @property
    def mean(self) -> Tensor:
        """Mean, (..., D)."""
        return self.s if self.e is None else self.s + self.e.mean

    @property
    def variance(self) -> Tensor:
        """Variance, (..., D); 0 for a model without e."""
        return torch.zeros_like(self.s) if self.e is None else self.e.variance.expand(self.s.shape)

    def sample(self) -> Tensor:
        """One draw, (..., D)."""
        return self.s if self.e is None else self.s + self.e.sample()
