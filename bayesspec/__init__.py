"""Calibrated posteriors of clean stellar spectra and stellar classes from noisy spectra."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Loaded on first use, so that parts without torch (readers, the ArviZ converter) load quickly.
_PUBLIC = {
    "Observation": "bayesspec.observation",
    "Result": "bayesspec.results.result",
    "WavelengthGrid": "bayesspec.grid",
    "denoise": "bayesspec.inference.denoise",
    "denoise_survey": "bayesspec.survey.runner",
    "load_model": "bayesspec.bundle",
    "read": "bayesspec.io",
}

__all__ = [*sorted(_PUBLIC), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bayesspec' has no attribute {name!r}")
    with warnings.catch_warnings():  # libraries add filters when they are loaded; the caller's stay unchanged
        value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
