"""One exposure from its blue and its red frame.

Both arms keep their native pixels: to resample both onto a common grid would correlate the noise of every
pixel with its neighbours', and the rebinning to the model's grid would do it once more. Only where the arms
overlap (5800-6350 Angstrom in SDSS) is the blue frame, whose pixels are the finer ones, rebinned onto the red
pixels and averaged with them by inverse variance. So the noise is independent from pixel to pixel but for
that overlap, where neighbours share the blue pixels that lie across their border.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from bayesspec.grid import NativePixels, overlap_matrix, rebin
from bayesspec.observation import Exposure

__all__ = ["Frame", "join_arms", "pair_frames"]

SPLIT = 6000.0
"""Angstrom; a camera whose middle is bluer is the blue one."""


@dataclass(frozen=True, eq=False)
class Frame:
    """What one camera saw in one exposure.

    Arguments:
        name: What the file calls it.
        key: What its partner in the other arm has in common with it (spectrograph and exposure number),
            or None if the file does not say.
        exposure: The pixels, in order of wavelength.
    """

    name: str
    key: tuple[int, int] | None
    exposure: Exposure

    @property
    def blue(self) -> bool:
        """Whether it is the blue camera's."""
        wavelength = self.exposure.wavelength
        return bool((wavelength[0] + wavelength[-1]) / 2 < SPLIT)


def pair_frames(frames: Iterable[Frame]) -> list[tuple[Frame, ...]]:
    """Frames of one exposure together: (blue, red), or a frame alone that has no partner.

    Partners have the same key. Where frames have none (headers stripped), the k-th blue one belongs to the
    k-th red one, which is the order in which SDSS writes them.
    """
    groups: dict[tuple[int, int] | None, tuple[list[Frame], list[Frame]]] = {}
    for frame in frames:
        groups.setdefault(frame.key, ([], []))[0 if frame.blue else 1].append(frame)
    pairs = (pair for group in groups.values() for pair in zip_longest(*group))
    return [tuple(frame for frame in pair if frame is not None) for pair in pairs]


def join_arms(blue: Exposure, red: Exposure) -> Exposure:
    """Blue pixels, then red pixels, with what blue adds to them in the overlap; both need an ivar."""
    # Dead pixels at the blue end of the red arm would only cost resolution.
    first = int(np.argmin(red.mask))
    wavelength, flux, ivar, mask = (part[first:] for part in _arrays(red))
    pixels, edges = NativePixels(wavelength), NativePixels(blue.wavelength).edges
    overlap = overlap_matrix(blue.wavelength, pixels)
    blue_wavelength, blue_flux, blue_ivar, blue_mask = _arrays(blue)
    other = rebin(blue_wavelength, blue_flux, blue_ivar, blue_mask, pixels, overlap=overlap)

    # A blue pixel shares its ivar out by length: given whole to both of two red pixels, it would count twice
    # as soon as they are averaged.
    shared = np.where(other.mask, 0.0, overlap @ (blue_ivar / np.diff(edges)))
    total = ivar + shared
    share = np.divide(shared, total, out=np.zeros_like(total), where=total > 0)
    mean = flux + share * (other.flux - flux)

    # Blue pixels that reach into the first red one are in it already.
    before = edges[1:] <= pixels.edges[0]
    joined = (wavelength, mean, total, mask & other.mask)
    parts = zip(_arrays(blue), joined, strict=True)
    return Exposure(*(np.concatenate([left[before], right]) for left, right in parts))


def _arrays(exposure: Exposure) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    if exposure.ivar is None:
        raise ValueError("arms are joined by their inverse variances, and one has none")
    return exposure.wavelength, exposure.flux, exposure.ivar, exposure.mask
