"""Where spectra come from: what a source is called, and its bytes."""

from __future__ import annotations

import gzip
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from bayesspec.exceptions import ReadError

__all__ = ["file_of", "is_fits", "open_fits", "quiet", "read_bytes", "stem"]

_GZIP = b"\x1f\x8b"
_FITS_SUFFIXES = (".fits", ".fit", ".fts")


def file_of(source: Any) -> str | None:
    """The path that a source has or remembers; None for objects in memory."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = source.filename() if isinstance(source, fits.HDUList) else getattr(source, "name", None)
    return name if isinstance(name, str) else None


def stem(file: str) -> str:
    """Name of a file without folder and endings.

    Example:
        >>> stem("data/spec-2942-54521-0124.fits.gz")
        'spec-2942-54521-0124'
    """
    name = Path(file).name
    for suffix in (".gz", *_FITS_SUFFIXES, ".dat", ".txt", ".csv", ".ascii"):
        name = name.removesuffix(suffix)
    return name


def read_bytes(source: Any) -> bytes:
    """Contents of a path or an open file, with every layer of gzip taken off; nothing stays open.

    Raises:
        ReadError: if there is nothing to read.
        OSError, EOFError, zlib.error: as Python finds the file or its gzip stream missing or damaged.
    """
    if isinstance(source, str | os.PathLike):
        data = Path(source).read_bytes()
    elif hasattr(source, "read"):
        data = source.read()
    else:
        raise ReadError("neither a path, an open file, an HDUList, a Table nor a specutils spectrum")
    data = data.encode() if isinstance(data, str) else data

    # Some archives compress twice.
    while data[:2] == _GZIP:
        data = gzip.decompress(data)
    if not data.strip():
        raise ReadError("is empty")
    return data


def is_fits(data: bytes, file: str | None) -> bool:
    """Whether contents are FITS.

    Raises:
        ReadError: if the file's name says so and the contents do not.
    """
    if data.startswith(b"SIMPLE  ="):
        return True
    if file is not None and file.lower().removesuffix(".gz").endswith(_FITS_SUFFIXES):
        raise ReadError("is not a FITS file, though its name says so")
    return False


@contextmanager
def open_fits(data: bytes) -> Iterator[fits.HDUList]:
    """HDUs of a FITS file in memory."""
    with fits.open(io.BytesIO(data), memmap=False) as hdus:
        yield hdus


@contextmanager
def quiet() -> Iterator[None]:
    """Odd headers and junk in masked pixels are no news, but a truncated file is an error."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.filterwarnings("error", "File may have been truncated", AstropyWarning)
        yield
