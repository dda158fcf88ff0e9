"""Mask bits of the surveys. Only this module decides which of them make a pixel missing.

Almost every bit is a remark about the pixel or its fibre, and masking on any bit can mask a whole spectrum. A
pixel is missing if its bits say that there is no measurement. `strict` adds the bits for doubtful
measurements: bright or badly subtracted sky, bad neighbours on the chip, stray light. Bits about a whole
fibre (SDSS bits 0 to 15) never mask pixels; `fibre_flags` names them.

For a coadd the and-mask is used: a pixel that is missing in one exposure and measured in others is measured,
and its inverse variance takes this into account. (On real BOSS coadds the or-mask has NODATA for 10 % of the
pixels, the and-mask for none.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["DOUBTFUL", "LAMOST_MASK", "MISSING", "SPPIXMASK", "bad_pixels", "fibre_flags", "survey_by"]

SPPIXMASK = {
    "NOPLUG": 0,
    "BADTRACE": 1,
    "BADFLAT": 2,
    "BADARC": 3,
    "MANYBADCOLUMNS": 4,
    "MANYREJECTED": 5,
    "LARGESHIFT": 6,
    "BADSKYFIBER": 7,
    "NEARWHOPPER": 8,
    "WHOPPER": 9,
    "SMEARIMAGE": 10,
    "SMEARHIGHSN": 11,
    "SMEARMEDSN": 12,
    "NEARBADPIXEL": 16,
    "LOWFLAT": 17,
    "FULLREJECT": 18,
    "PARTIALREJECT": 19,
    "SCATTEREDLIGHT": 20,
    "CROSSTALK": 21,
    "NOSKY": 22,
    "BRIGHTSKY": 23,
    "NODATA": 24,
    "COMBINEREJ": 25,
    "BADFLUXFACTOR": 26,
    "BADSKYCHI": 27,
    "REDMONSTER": 28,
}
"""Bits of SDSS spectra (https://www.sdss3.org/dr10/algorithms/bitmask_sppixmask.php)."""

LAMOST_MASK = {"BADCCD": 0, "BADPROFILE": 1, "NOSKY": 2, "BRIGHTSKY": 3, "BADCENTER": 4, "NODATA": 5}
"""LAMOST's own six bits (data release notes, "andmask"); SDSS's pixel bits, above them, are used too."""

MISSING = ("FULLREJECT", "NOSKY", "NODATA", "COMBINEREJ")
"""No measurement: rejected in extraction or in the coadd, no sky level, no data."""

DOUBTFUL = (
    "BADCCD",
    "BADPROFILE",
    "BADCENTER",
    "NEARBADPIXEL",
    "LOWFLAT",
    "SCATTEREDLIGHT",
    "CROSSTALK",
    "BRIGHTSKY",
    "BADSKYCHI",
    "REDMONSTER",
)
"""Doubtful measurements, missing only if `strict`."""

_FIRST_PIXEL_BIT = 16

_PIXEL_BITS = {name: bit for name, bit in SPPIXMASK.items() if bit >= _FIRST_PIXEL_BIT}
_TABLES = {"SDSS": (_PIXEL_BITS,), "LAMOST": (LAMOST_MASK, _PIXEL_BITS)}


def bad_pixels(
    bits: ArrayLike, *, survey: Literal["SDSS", "LAMOST"] = "SDSS", strict: bool = False
) -> NDArray[np.bool_]:
    """True where the bits make a pixel missing, same shape; booleans are returned as they are.

    Example:
        >>> bad_pixels([0, 1 << SPPIXMASK["NODATA"], 1 << SPPIXMASK["BRIGHTSKY"], 1 << SPPIXMASK["BADFLAT"]])
        array([False,  True, False, False])
    """
    bits = np.asarray(bits)
    if bits.dtype == bool:
        return bits
    names = (*MISSING, *DOUBTFUL) if strict else MISSING
    wanted = 0
    for table in _TABLES[survey]:
        wanted |= sum(1 << bit for name, bit in table.items() if name in names)
    return (_integers(bits) & wanted) != 0


def survey_by(roles: Iterable[str]) -> Literal["SDSS", "LAMOST"]:
    """The survey of a table that does not name it: SDSS tables have a loglam, LAMOST tables a wavelength."""
    return "SDSS" if "loglam" in roles else "LAMOST"


def fibre_flags(bits: ArrayLike) -> tuple[str, ...]:
    """Names of the SDSS bits about the whole fibre that are set in any pixel."""
    bits = np.asarray(bits)
    together = 0 if bits.dtype == bool else int(np.bitwise_or.reduce(_integers(bits), axis=None))
    return tuple(name for name, bit in SPPIXMASK.items() if bit < _FIRST_PIXEL_BIT and together >> bit & 1)


def _integers(bits: NDArray) -> NDArray[np.int64]:
    # LAMOST stores its bits as floats.
    return np.nan_to_num(bits).astype(np.int64)
