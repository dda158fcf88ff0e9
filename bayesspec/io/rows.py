"""One row of a file of many spectra as a star: the part that all formats have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from bayesspec.exceptions import BayesspecError, ReadError
from bayesspec.observation import Observation, printable

from .bits import bad_pixels, survey_by
from .columns import to_ivar, to_vacuum, with_units
from .lamost import padding
from .source import quiet, stem

__all__ = ["FACTS", "NAMES", "SpectraFile", "label_of", "text_of", "to_star"]

NAMES = ("NAME", "ID", "TARGETID", "OBSID", "OBJID", "SPECOBJID", "OBJECT", "STAR")
"""Columns that may have the name of a spectrum; the first one found is used."""

FACTS = {
    "survey": ("SURVEY",),
    "plate": ("PLATE", "PLATEID"),
    "mjd": ("MJD", "LMJD"),
    "fiber": ("FIBERID", "FIBER"),
    "obsid": ("OBSID",),
    "target_id": ("TARGETID",),
    "gaia_id": ("GAIA_ID", "GAIA_SOURCE_ID", "GAIA_DR3_SOURCE_ID", "GAIA_DR2_SOURCE_ID"),
    "class": ("CLASS",),
    "subclass": ("SUBCLASS",),
    "redshift": ("Z", "REDSHIFT"),
    "ra": ("RA", "PLUG_RA", "TARGET_RA"),
    "dec": ("DEC", "PLUG_DEC", "TARGET_DEC"),
}
"""Survey information about a star, and the columns that may have it."""


class SpectraFile(ABC):
    """A file of many spectra: `len(file)` is their number, `file.read(k)` reads one.

    A row that cannot be read raises an error of this package, in all formats.
    """

    path: str | Path
    _file: Any

    @abstractmethod
    def __len__(self) -> int:
        """Number of spectra."""

    def read(self, row: int, *, strict: bool = False) -> Observation:
        """The star of a row."""
        if not 0 <= row < len(self):
            raise ReadError(f"{printable(str(self.path))}: no spectrum {row}, there are {len(self)}")
        try:
            with quiet():
                return self._read(row, strict)
        except BayesspecError:
            raise
        except Exception as error:  # damaged files can fail anywhere, with any exception
            cause = f"{type(error).__name__}: {printable(str(error))}"
            raise ReadError(f"{printable(str(self.path))}[{row}]: damaged ({cause})") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @abstractmethod
    def _read(self, row: int, strict: bool) -> Observation:
        """The star of an existing row."""


def to_star(
    columns: dict[str, NDArray],
    units: Mapping[str, str | None],
    shared: Any | None,
    headers: Sequence[fits.Header],
    name: str,
    strict: bool,
) -> Observation:
    """One row, with the same result as `read` for a table of that row alone."""
    try:
        found = with_units(columns, units)
        if "wavelength" not in found:
            if shared is None:
                raise ReadError("no wavelengths, neither in the row, nor the header, nor a separate HDU")
            found["wavelength"] = shared
        flux = found["flux"]
        bad = padding(np.asarray(flux))
        if "andmask" in found:
            bad |= bad_pixels(found["andmask"], survey=survey_by(columns), strict=strict)
        if "mask" in found:
            bad |= found["mask"] != 0
        wavelength = to_vacuum(found["wavelength"], None, *headers)
        return Observation(wavelength, flux, to_ivar(found), bad, name=name)
    except ReadError as error:
        raise ReadError(f"{name}: {error}") from error
    except BayesspecError:
        raise
    except Exception as error:
        raise ReadError(f"{name}: {printable(str(error))}") from error


def label_of(path: str | Path, row: int, value: Any) -> str:
    """The name of a row's star: the text of its cell, or else the file's name and the row."""
    return (text_of(value) or "").strip() or f"{stem(str(path))}[{row}]"


def text_of(value: Any) -> str | None:
    """The text of a cell, whatever its type; None if there is none."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if value is None else str(value)
