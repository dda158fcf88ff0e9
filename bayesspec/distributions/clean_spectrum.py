"""The clean spectrum given the data and the latents."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["CleanSpectrum"]


class CleanSpectrum(NamedTuple):
    """Clean spectra given the data and the latents: s, and of e its conditional distribution."""

    s: Tensor
    """Without e, (..., D)."""
    e: Any
    """What has a `mean`, a `variance` and draws, `sample()`, each (..., D); None of a model without e."""

    @property
    def mean(self) -> Tensor:
        """(..., D)."""
        return self.s if self.e is None else self.s + self.e.mean

    @property
    def variance(self) -> Tensor:
        """(..., D); 0 of a model without e."""
        return torch.zeros_like(self.s) if self.e is None else self.e.variance.expand(self.s.shape)

    def sample(self) -> Tensor:
        """One draw of each, (..., D)."""
        return self.s if self.e is None else self.s + self.e.sample()
