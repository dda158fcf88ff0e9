"""One exposure from its blue and its red frame.

Both arms keep their native pixels. Resampling both onto a common grid would correlate the noise of
neighbouring pixels, and the rebinning to the model's grid would do so again. Only where the arms overlap
(5800-6350 Angstrom in SDSS) is the blue frame, which has finer pixels, rebinned onto the red pixels and
averaged with them by inverse variance. The noise is therefore independent from pixel to pixel except in that
overlap, where neighbours share the blue pixels across their border.
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
"""Angstrom; a camera with a bluer centre is the blue one."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The spectrum of one camera in one exposure.

    Arguments:
        name: Its name in the file.
        key: Spectrograph and exposure number, which its partner in the other arm has too, or None if the file
            does not say.
        exposure: The pixels, in order of wavelength.
    """

    name: str
    key: tuple[int, int] | None
    exposure: Exposure

    @property
    def blue(self) -> bool:
        """Whether it is from the blue camera."""
        wavelength = self.exposure.wavelength
        return bool((wavelength[0] + wavelength[-1]) / 2 < SPLIT)


def pair_frames(frames: Iterable[Frame]) -> list[tuple[Frame, ...]]:
    """Pairs of frames of one exposure, (blue, red), or a frame alone if it has no partner.

    Partners have the same key. If frames have none (headers stripped), the k-th blue one belongs to the k-th
    red one, the order in which SDSS writes them.
    """
    groups: dict[tuple[int, int] | None, tuple[list[Frame], list[Frame]]] = {}
    for frame in frames:
        groups.setdefault(frame.key, ([], []))[0 if frame.blue else 1].append(frame)
    pairs = (pair for group in groups.values() for pair in zip_longest(*group))
    return [tuple(frame for frame in pair if frame is not None) for pair in pairs]


def join_arms(blue: Exposure, red: Exposure) -> Exposure:
    """Join two arms: blue pixels, then red ones, averaged with the blue in the overlap. Both need an ivar."""
    # Blue pixels keep their resolution where the blue end of the red arm is masked.
    first = int(np.argmin(red.mask))
    wavelength, flux, ivar, mask = (part[first:] for part in _arrays(red))
    pixels, edges = NativePixels(wavelength), NativePixels(blue.wavelength).edges
    overlap = overlap_matrix(blue.wavelength, pixels)
    blue_wavelength, blue_flux, blue_ivar, blue_mask = _arrays(blue)
    other = rebin(blue_wavelength, blue_flux, blue_ivar, blue_mask, pixels, overlap=overlap)

    # The ivar of a blue pixel is divided among red pixels by length. Two red pixels that both got all of it
    # would count it twice when they are averaged.
    shared = np.where(other.mask, 0.0, overlap @ (blue_ivar / np.diff(edges)))
    total = ivar + shared
    share = np.divide(shared, total, out=np.zeros_like(total), where=total > 0)
    mean = flux + share * (other.flux - flux)

    # Blue pixels that extend into the first red one are already included in it.
    before = edges[1:] <= pixels.edges[0]
    joined = (wavelength, mean, total, mask & other.mask)
    parts = zip(_arrays(blue), joined, strict=True)
    return Exposure(*(np.concatenate([left[before], right]) for left, right in parts))


def _arrays(exposure: Exposure) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    if exposure.ivar is None:
        raise ValueError("arms are joined by inverse variance, and one has none")
    return exposure.wavelength, exposure.flux, exposure.ivar, exposure.mask
