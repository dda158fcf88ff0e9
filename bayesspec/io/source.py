"""Where spectra come from: what a source is called, and its bytes."""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from bayesspec.exceptions import ReadError

__all__ = ["file_of", "is_fits", "open_fits", "quiet", "read_bytes", "stem"]

_GZIP = b"\x1f\x8b"
_GZIP_LAYERS = 3
"""Some archives compress twice; a stream may also be made to unpack to itself for ever."""

_MOST_BYTES = 64 << 20
"""Unpacked or not: twenty times the largest spectrum of the surveys. A few KB of gzip can hold any size."""

_ENDLESS = [re.compile(key + rb" *\+?\d{4,}") for key in (b"NAXIS   =", b"ZNAXIS  =", b"TFIELDS =")]
_FITS_SUFFIXES = (".fits", ".fit", ".fts")


def file_of(source: Any) -> str | None:
    """The path that a source has or remembers; None for objects in memory."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    name = source.filename() if isinstance(source, fits.HDUList) else getattr(source, "name", None)
    return os.fsdecode(name) if isinstance(name, str | bytes) else None


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
        ReadError: if it is no regular file (a pipe may never end, or never begin), there is nothing to read,
            or it is far larger than a spectrum.
        OSError, EOFError, zlib.error: as Python finds the file or its gzip stream missing or damaged.
    """
    if isinstance(source, str | os.PathLike):
        mode = os.stat(source).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(source)
        if not stat.S_ISREG(mode):
            raise ReadError("is not a regular file")
        with open(source, "rb") as file:
            data = _read(file)
    elif hasattr(source, "read"):
        data = _read(source)
    else:
        raise ReadError("neither a path, an open file, an HDUList, a Table nor a specutils spectrum")

    for _ in range(_GZIP_LAYERS):
        if data[:2] == _GZIP:
            with gzip.open(io.BytesIO(data)) as file:
                data = _read(file)
    if data[:2] == _GZIP:
        raise ReadError(f"is gzipped more than {_GZIP_LAYERS} times")
    if not data.strip():
        raise ReadError("is empty")
    return data


def _read(file: Any) -> bytes:
    """What is left in an open file, which may hand out less than is asked for."""
    parts: list[bytes] = []
    size = 0
    while part := file.read(1 << 20):
        parts.append(part.encode() if isinstance(part, str) else part)
        size += len(parts[-1])
        if size > _MOST_BYTES:
            raise ReadError(f"holds more than {_MOST_BYTES >> 20} MiB, which no single spectrum does")
    return b"".join(parts)


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
    """HDUs of a FITS file in memory.

    Raises:
        ReadError: if a header claims more axes or columns than FITS has: astropy would go through them all.
    """
    for card in chain.from_iterable(pattern.finditer(data) for pattern in _ENDLESS):
        if card.start() % 80 == 0:
            raise ReadError(f"damaged header: {card[0].decode()}, of which FITS has 999 at most")
    with fits.open(io.BytesIO(data), memmap=False) as hdus:
        yield hdus


@contextmanager
def quiet() -> Iterator[None]:
    """Odd headers and junk in masked pixels are no news, but a truncated file is an error."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.filterwarnings("error", "File may have been truncated", AstropyWarning)
        yield
