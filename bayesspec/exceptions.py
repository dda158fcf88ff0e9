"""Errors of this package; each message names the file or star and the cause."""

from __future__ import annotations

__all__ = ["BayesspecError", "BundleError", "ObservationError", "ReadError", "StarError"]


class BayesspecError(Exception):
    """Base of every error that this package raises on purpose."""


class ReadError(BayesspecError, ValueError):
    """A file or object cannot be read as a spectrum."""


class ObservationError(BayesspecError, ValueError):
    """A spectrum was read but cannot be used: wrong shapes, or no observed pixel on the grid."""


class BundleError(BayesspecError, ValueError):
    """A model bundle is missing, damaged, or of an unknown version."""


class StarError(BayesspecError, IndexError):
    """A result has no such star."""
