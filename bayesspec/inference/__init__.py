"""From observations to posteriors: one function, several engines on one log density."""

from __future__ import annotations

from .denoise import denoise

__all__ = ["denoise"]
