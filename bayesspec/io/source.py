"""Sources of spectra: their names and their bytes."""

from __future__ import annotations

import gzip
import io
import math
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from bayesspec.exceptions import ReadError

__all__ = [
    "check_headers",
    "file_of",
    "is_fits",
    "open_fits",
    "open_regular",
    "quiet",
    "read_bytes",
    "stem",
    "unpacked",
]

_GZIP = b"\x1f\x8b"
_GZIP_LAYERS = 3
"""Some archives compress twice; a malicious stream may unpack to itself forever."""

_MOST_BYTES = 64 << 20
"""Limit, unpacked: twenty times the largest survey spectrum. A few KB of gzip can unpack to any size."""

_COUNTS = ("NAXIS", "ZNAXIS", "TFIELDS")
"""Keywords with the number of axes or columns; astropy loops over all of them, whether they exist or not."""

_RECORD = 2880
_MOST_COUNTED, _MOST_HDUS, _LONGEST_HEADER = 999, 1000, 1000 * _RECORD
"""Limits: axes or columns, by the standard; HDUs and bytes of a header, some ten times those of surveys."""

_FITS_SUFFIXES = (".fits", ".fit", ".fts")


def file_of(source: Any) -> str | None:
    """The path of a source, or of the file it was read from; None for objects in memory."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    name = source.filename() if isinstance(source, fits.HDUList) else getattr(source, "name", None)
    return os.fsdecode(name) if isinstance(name, str | bytes) else None


def stem(file: str) -> str:
    """Name of a file without folder and extensions.

    Example:
        >>> stem("data/spec-2942-54521-0124.fits.gz")
        'spec-2942-54521-0124'
    """
    name = Path(file).name
    for suffix in (".gz", *_FITS_SUFFIXES, ".dat", ".txt", ".csv", ".ascii"):
        name = name.removesuffix(suffix)
    return name


def read_bytes(source: Any) -> bytes:
    """Contents of a path or an open file, with all layers of gzip removed; no file stays open.

    Raises:
        ReadError: if it is not a regular file (a pipe may block forever), is empty, or is far larger than a
            spectrum.
        OSError, EOFError, zlib.error: if the file is missing, or it or its gzip stream is damaged.
    """
    if isinstance(source, str | os.PathLike):
        with open_regular(source) as file:
            data = _read(file)
    elif hasattr(source, "read"):
        data = _read(source)
    else:
        raise ReadError("neither a path, an open file, an HDUList, a Table nor a specutils spectrum")

    for _ in range(_GZIP_LAYERS):
        if data[:2] == _GZIP:
            with gzip.open(io.BytesIO(data)) as packed:
                data = _read(packed)
    if data[:2] == _GZIP:
        raise ReadError(f"is gzipped more than {_GZIP_LAYERS} times")
    if not data.strip():
        raise ReadError("is empty")
    return data


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, open for reading.

    Raises:
        ReadError: if it is something else, such as a pipe, which may block forever.
        OSError: if it is a folder, does not exist, or may not be read.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(path)
    if not stat.S_ISREG(mode):
        raise ReadError("is not a regular file")
    return open(path, "rb")


def unpacked(file: BinaryIO, most: int) -> io.BufferedIOBase:
    """A file at its first byte, or its unpacked contents in memory if it is gzipped.

    A read never allocates more than the file has.

    Raises:
        ReadError: if the unpacked contents are larger than `most` bytes.
    """
    packed = file.read(2) == _GZIP
    file.seek(0)
    if not packed:
        return _NoMore(file)
    with file, gzip.open(file) as content:
        whole = io.BytesIO()
        while part := content.read(1 << 20):
            whole.write(part)
            if whole.tell() > most:
                raise ReadError(f"holds more than {most >> 20} MiB: unpack it first (gunzip)")
    whole.seek(0)
    return whole


class _NoMore(io.BufferedIOBase):
    """A file that allocates no more bytes than it has: a damaged table may ask for any number of them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._size - self._file.tell(), 0)
        return self._file.read(left if size is None or size < 0 else min(size, left))

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def _read(file: Any) -> bytes:
    """The rest of an open file, which may return fewer bytes per read than requested."""
    parts: list[bytes] = []
    size = 0
    while part := file.read(1 << 20):
        parts.append(part.encode() if isinstance(part, str) else part)
        size += len(parts[-1])
        if size > _MOST_BYTES:
            raise ReadError(f"holds more than {_MOST_BYTES >> 20} MiB, which no single spectrum does")
    return b"".join(parts)


def is_fits(data: bytes, file: str | None) -> bool:
    """Whether the contents are FITS.

    Raises:
        ReadError: if the file's name says that they are, but they are not.
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
        ReadError: as `check_headers`.
    """
    file = io.BytesIO(data)
    check_headers(file)
    with fits.open(file, memmap=False) as hdus:
        yield hdus


def check_headers(file: io.BufferedIOBase) -> None:
    """Check the headers of a FITS file of any size, and return to its beginning.

    Astropy trusts them: a negative size makes it read one header forever.

    Raises:
        ReadError: if a header has more axes or columns than FITS allows, or a negative size, or does not end.
    """
    place = 0
    for number in range(_MOST_HDUS + 1):
        file.seek(place)
        chunk = io.BytesIO(file.read(_LONGEST_HEADER))
        try:
            header = fits.Header.fromfile(chunk)
        except (EOFError, OSError):  # the end of the file, or junk after the last HDU
            if len(chunk.getbuffer()) == _LONGEST_HEADER:
                raise ReadError(f"damaged: no header, and no end, in {_LONGEST_HEADER >> 20} MiB") from None
            break
        for key in _COUNTS:
            if header.get(key, 0) > _MOST_COUNTED:
                raise ReadError(f"damaged header: {key} = {header[key]}, of which FITS has 999 at most")
        axes = [header[f"NAXIS{n}"] for n in range(1, header.get("NAXIS", 0) + 1)]
        extra, groups = header.get("PCOUNT", 0), header.get("GCOUNT", 1)
        if min([*axes, extra, groups]) < 0:
            raise ReadError(
                f"damaged header of HDU {number}: axes of {axes} pixels, {groups} times, and {extra}"
            )
        if header.get("GROUPS") is True:
            raise ReadError("holds random groups, and no spectrum")
        size = abs(header["BITPIX"]) * groups * (extra + math.prod(axes)) // 8 if axes else 0
        place += chunk.tell() + -(-size // _RECORD) * _RECORD
    else:
        raise ReadError(f"has more than {_MOST_HDUS} HDUs, which no file of spectra has")
    file.seek(0)


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings about odd headers and junk in masked pixels; make a truncated file an error."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.filterwarnings("error", "File may have been truncated", AstropyWarning)
        yield
