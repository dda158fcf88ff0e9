"""The base of all opponents: their interface, their unit of flux, and their storage on disk."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bayesspec.exceptions import BundleError, ObservationError
from bayesspec.grid import flux_unit

__all__ = ["Array", "Baseline", "Denoiser", "Mask", "fill_gaps"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

ARRAYS, CONFIG = "fit.safetensors", "fit.json"
ROWS = 256
"""Spectra that are processed at once; this limits the memory and does not affect the results."""


class Denoiser(Protocol):
    """A method that denoises spectra on the model's grid."""

    name: str

    def denoise(self, flux: ArrayLike, ivar: ArrayLike, mask: ArrayLike) -> Array:
        """Clean spectra of noisy ones, (N, D); see `Baseline.denoise`."""


class Baseline(ABC):
    """An opponent. Subclasses define how a spectrum at mean flux 1 is denoised.

    Arguments:
        name: Its name in tables.
        size: D, if it was fitted for one grid size.
        key: Hash of the data and recipe with which it was fitted, once it is saved or loaded.
    """

    name: str
    size: int | None = None
    key: str = ""

    def denoise(self, flux: ArrayLike, ivar: ArrayLike, mask: ArrayLike) -> Array:
        """Clean spectra, gaps filled, in the unit of the flux: finite, and each row from that row alone.

        The result scales with the flux (if ivar scales with its inverse square). Masked values, NaN included,
        have no influence. Rows without observed pixels, or with only zeros, are returned as 0.

        Arguments:
            flux: Noisy spectra, (N, D).
            ivar: Inverse variance of their pixels, (N, D), 0 where unknown.
            mask: True = bad, (N, D).

        Raises:
            ObservationError: if the shapes differ, or are not those for which it was fitted.
        """
        flux, ivar, mask = np.asarray(flux, float), np.asarray(ivar, float), np.asarray(mask, bool)
        if flux.ndim != 2 or not flux.shape == ivar.shape == mask.shape:
            raise ObservationError(
                f"{self.name}: flux, ivar and mask need one shape (N, D), "
                f"not {flux.shape}, {ivar.shape}, {mask.shape}"
            )
        if self.size not in (None, flux.shape[1]):
            raise ObservationError(f"{self.name}: fitted for {self.size} pixels, not {flux.shape[1]}")
        bad = mask | ~np.isfinite(flux)
        known = ~bad & np.isfinite(ivar) & (ivar > 0)
        flux, ivar = np.where(bad, 0.0, flux), np.where(known, ivar, 0.0)
        unit = flux_unit(flux, bad)[:, None]

        clean = np.zeros_like(flux)
        alive = np.flatnonzero(unit[:, 0] > 0)
        for start in range(0, len(alive), ROWS):
            rows = alive[start : start + ROWS]
            own = unit[rows]
            clean[rows] = own * self._denoise(flux[rows] / own, ivar[rows] * own**2, bad[rows])
        return clean

    @abstractmethod
    def _denoise(self, flux: Array, ivar: Array, mask: Mask) -> Array:
        """Clean spectra at mean flux 1, (N, D); flux and ivar are 0 if masked, and some pixel is observed."""

    @abstractmethod
    def _state(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """The fitted quantities: arrays, and values for JSON."""

    @classmethod
    @abstractmethod
    def _from_state(cls, arrays: Mapping[str, NDArray], config: Mapping[str, Any]) -> Self:
        """The inverse of `_state`."""

    def save(self, folder: str | Path, *, key: str = "") -> Path:
        """Write the fitted quantities to a folder, as safetensors and JSON.

        Arguments:
            folder: Created if necessary.
            key: Hash of the data and recipe with which it was fitted.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)
        arrays, config = self._state()
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / ARRAYS)
        self.key = key
        # The card is written last, so a folder that has one is complete.
        card = {"name": self.name, "key": key, "config": config}
        (folder / CONFIG).write_text(json.dumps(card, indent=1, allow_nan=False) + "\n")
        return folder

    @staticmethod
    def stored_key(folder: str | Path) -> str | None:
        """The key that was passed to `save`; None if nothing is saved."""
        try:
            return str(json.loads((Path(folder) / CONFIG).read_text())["key"])
        except (OSError, KeyError, TypeError, ValueError):
            return None

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the folder that `save` wrote.

        Raises:
            BundleError: if the folder does not have it, or is damaged.
        """
        folder = Path(folder)
        try:
            card = json.loads((folder / CONFIG).read_text())
            fitted = cls._from_state(load_file(folder / ARRAYS), card["config"])
            fitted.key = card["key"]
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise BundleError(f"{folder}: not a fitted {cls.__name__} ({error})") from error
        return fitted


def fill_gaps(flux: Array, mask: Mask) -> Array:
    """Fill masked pixels by linear interpolation, constant beyond the ends, (N, D).

    Example:
        >>> fill_gaps(np.array([[0.0, 2.0, 0.0, 4.0]]), np.array([[True, False, True, False]]))
        array([[2., 2., 3., 4.]])
    """
    pixel = np.arange(flux.shape[1])
    filled = flux.copy()
    for row in np.flatnonzero(mask.any(-1) & ~mask.all(-1)):
        bad = mask[row]
        filled[row, bad] = np.interp(pixel[bad], pixel[~bad], flux[row, ~bad])
    return filled
