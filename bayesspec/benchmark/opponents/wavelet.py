"""Wavelet shrinkage with scikit-image, on spectra whitened by their noise."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from bayesspec.exceptions import BayesspecError
from bayesspec.training.exposures import NoiseLibrary

from .base import Array, Baseline, Mask, fill_gaps
from .pairs import Pairs, search
from .scales import noise_scale

__all__ = ["Wavelet"]

CHOICES = {
    "wavelet": ("sym4", "sym8", "coif2", "db2", "db3"),
    "smoothing": (51, 0, 25, 101, 201, 401),
    "reject": (2.0, 1.5, 3.0, 0.0),
    "strength": (1.0, 0.35, 0.5, 0.7, 0.85, 1.2, 1.5),
    "mode": ("soft", "hard"),
    "levels": (5, 4, 6, 7),
    "spins": (1, 4),
}
PAD = 64
"""Pixels by which a spectrum is mirrored at its ends."""


def _libraries() -> tuple[ModuleType, ModuleType]:
    try:
        import pywt
        from skimage import restoration
    except ImportError as error:
        raise BayesspecError(
            f'wavelet shrinkage needs {error.name}: pip install "bayesspec-stars[baselines]"'
        ) from error
    return restoration, pywt


class Wavelet(Baseline):
    """`skimage.restoration.denoise_wavelet` on whitened spectra with interpolated gaps.

    Spectra are divided by the pipeline's noise before shrinkage, and multiplied by it afterwards. The noise
    is smoothed first, because division by the noise of every sky line would make a spectrum less smooth.
    Pixels much noisier than those around them count as gaps. A spectrum without ivar is whitened by the noise
    of training exposures at each wavelength, and scikit-image finds the amplitude.

    Arguments:
        method: BayesShrink or VisuShrink.
        scale: Noise by wavelength for spectra without ivar, (D,), any unit.
        wavelet: Name of the wavelet.
        smoothing: Pixels of the running median over the noise; 0: one noise level for the whole spectrum.
        reject: Noise above which a pixel is a gap, in units of the smoothed noise; 0 rejects nothing.
        strength: Factor on the noise level for the threshold.
        mode: Soft or hard threshold.
        levels: Number of scales that are shrunk, limited by the length of the spectrum.
        spins: Number of shifts of the spectrum over which results are averaged.

    Raises:
        BayesspecError: if scikit-image or PyWavelets is not installed.
    """

    def __init__(
        self,
        method: Literal["BayesShrink", "VisuShrink"],
        scale: Array,
        *,
        wavelet: str = "sym4",
        smoothing: int = 51,
        reject: float = 2.0,
        strength: float = 1.0,
        mode: str = "soft",
        levels: int = 5,
        spins: int = 1,
    ) -> None:
        self._restoration, self._pywt = _libraries()
        self.method, self.scale = method, np.asarray(scale, float)
        self.wavelet, self.smoothing, self.reject = wavelet, smoothing, reject
        self.strength, self.mode, self.levels, self.spins = strength, mode, levels, spins
        self.name, self.size = f"wavelet-{method.removesuffix('Shrink').lower()}", len(self.scale)

    @classmethod
    def tune(
        cls, method: Literal["BayesShrink", "VisuShrink"], noise: NoiseLibrary, validation: Pairs
    ) -> Self:
        """Noise by wavelength from training exposures; the rest from validation pairs."""
        scale = noise_scale(noise)
        return cls(method, scale, **search(lambda **kw: cls(method, scale, **kw), CHOICES, validation))

    def _denoise(self, flux: Array, ivar: Array, mask: Mask) -> Array:
        known = ivar > 0
        has_ivar = np.any(known, -1)
        sigma = fill_gaps(np.where(known, 1 / np.sqrt(np.where(known, ivar, 1.0)), 0.0), ~known)
        sigma[~has_ivar] = self.scale

        smooth = median_filter(sigma, size=(1, self.smoothing or 51), mode="nearest")
        if self.reject:
            worse = mask | (sigma > self.reject * smooth)
            mask = np.where(worse.all(-1, keepdims=True), mask, worse)
        filled = fill_gaps(flux, mask)
        if not self.smoothing:
            # One level for the whole spectrum.
            smooth = np.broadcast_to(np.median(sigma, axis=-1, keepdims=True), sigma.shape)

        white = np.pad(filled / smooth, [(0, 0), (PAD, PAD)], mode="reflect")
        shrunk = [
            self._shrink(row, self.strength if known_noise else None)
            for row, known_noise in zip(white, has_ivar, strict=True)
        ]
        return np.stack(shrunk)[:, PAD:-PAD] * smooth

    def _shrink(self, row: Array, sigma: float | None) -> Array:
        if sigma is None:
            sigma = self.strength * float(self._restoration.estimate_sigma(row))
        if not sigma > 0:  # nothing to remove: a spectrum without noise, or almost entirely a gap
            return row
        total, levels = np.zeros_like(row), self._pywt.dwt_max_level(len(row), self.wavelet)
        for spin in range(self.spins):
            shrunk = self._restoration.denoise_wavelet(
                np.roll(row, spin),
                sigma=sigma,
                wavelet=self.wavelet,
                method=self.method,
                mode=self.mode,
                wavelet_levels=min(self.levels, levels),
            )
            total += np.roll(shrunk, -spin)
        return total / self.spins

    def _state(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        settings = {name: getattr(self, name) for name in CHOICES}
        return {"scale": self.scale}, {"method": self.method, **settings}

    @classmethod
    def _from_state(cls, arrays: Mapping[str, NDArray], config: Mapping[str, Any]) -> Self:
        settings = dict(config)
        return cls(settings.pop("method"), arrays["scale"], **settings)
