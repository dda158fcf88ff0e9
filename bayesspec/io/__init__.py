"""Readers: files, tables and objects with a spectrum become an `Observation`."""

from __future__ import annotations

import gzip
import os
import zlib
from typing import TYPE_CHECKING, BinaryIO, Literal, TextIO, TypeAlias

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from astropy.utils.exceptions import AstropyWarning

from bayesspec.exceptions import BayesspecError, ReadError
from bayesspec.observation import Observation, printable

from .ascii import read_ascii, read_ecsv
from .columns import column_names, column_roles, is_spectrum, table_hdu
from .lamost import read_lamost
from .sdss import read_sdss
from .source import file_of, is_fits, open_fits, quiet, read_bytes, stem
from .spectrum import is_specutils, read_spectrum

if TYPE_CHECKING:
    from specutils import Spectrum

    Source: TypeAlias = str | os.PathLike[str] | BinaryIO | TextIO | fits.HDUList | Table | Spectrum

__all__ = ["read"]


def read(
    source: Source,
    *,
    exposures: Literal["coadd", "individual"] = "coadd",
    strict: bool = False,
    air: bool | None = None,
    name: str | None = None,
) -> Observation:
    """Read one star.

    A pixel is missing if its flux is not finite, its ivar not positive, or its mask is True or has one of the
    bits FULLREJECT, NOSKY, NODATA, COMBINEREJ (see `bayesspec.io.bits`). Stated units are used (see
    `Observation`). Anything ambiguous is an error; nothing is guessed. The observation's `meta` has what the
    file says about itself: file, survey, layout, exposures, and where known plate, mjd, fiber, class,
    subclass, redshift, ra, dec.

    Arguments:
        source: The path of a regular file, or an open file (FITS of SDSS, BOSS or LAMOST, or text with two or
            three columns: wavelength, flux, sigma; gzipped or not; up to 64 MiB), an HDUList, a Table with
            the columns of such a file, or a specutils spectrum.
        exposures: "coadd", or "individual" for the single exposures of an SDSS full file.
        strict: Also mask doubtful pixels (bright sky, near a bad pixel, stray light); for a bad fibre this
            may mask all.
        air: True if the wavelengths are in air, False if in vacuum; None: as the file says, or vacuum if it
            does not say.
        name: The star's name; by default the file's name without its extensions.

    Raises:
        ReadError: if the source cannot be read as a spectrum; it names the file and the cause.

    Example:
        >>> import io
        >>> text = "4000 1.0 0.1\\n4001 1.1 0.1\\n4002 nan 0.1\\n"
        >>> read(io.StringIO(text), name="three pixels")
        <Observation 'three pixels': 1 exposure, 4000-4002 Angstrom, 67% observed, S/N 10.5>
    """
    if exposures not in ("coadd", "individual"):
        raise ValueError(f'exposures must be "coadd" or "individual", got {exposures!r}')
    # A string, even "vacuum", would count as True.
    if air is not None and not isinstance(air, bool | np.bool_):
        raise ValueError(f"air must be True, False or None, got {air!r}")
    if not isinstance(strict, bool | np.bool_):
        raise ValueError(f"strict must be True or False, got {strict!r}")
    file = file_of(source)
    label = printable(file or type(source).__name__)
    try:
        with quiet():
            star = _read(source, file, exposures == "individual", strict, air)
    except Exception as error:
        # Damaged files can fail anywhere in astropy, with any exception.
        raise ReadError(f"{label}: {printable(_cause(error))}") from error
    star.name = printable(name) if name is not None else stem(label)
    star.meta = {"file": None if file is None else label, **star.meta}
    return star


def _read(source: Source, file: str | None, individual: bool, strict: bool, air: bool | None) -> Observation:
    if is_specutils(source):
        return _single(read_spectrum(source, air=air), individual)
    if isinstance(source, fits.HDUList):
        return _read_hdus(source, individual, strict, air)
    if isinstance(source, Table):
        hdus = fits.HDUList([fits.PrimaryHDU(), table_hdu(source)])
        return _read_hdus(hdus, individual, strict, air)

    data = read_bytes(source)
    if is_fits(data, file):
        with open_fits(data) as hdus:
            return _read_hdus(hdus, individual, strict, air)
    text = data.decode("utf-8-sig")
    if text.startswith("# %ECSV"):
        # Its header states units, and masked cells are marked.
        return _read(read_ecsv(text), file, individual, strict, air)
    return _single(read_ascii(text, air=air), individual)


def _read_hdus(hdus: fits.HDUList, individual: bool, strict: bool, air: bool | None) -> Observation:
    table = next(filter(is_spectrum, hdus), None)
    if table is not None and "loglam" in column_roles(column_names(table)):
        return read_sdss(hdus, individual=individual, strict=strict, air=air)
    return _single(read_lamost(hdus, strict=strict, air=air), individual)


def _single(star: Observation, individual: bool) -> Observation:
    if individual and len(star) == 1:
        raise ReadError('no single exposures: read it with exposures="coadd"')
    return star


def _cause(error: Exception) -> str:
    match error:
        case BayesspecError():
            return str(error)
        case FileNotFoundError():
            return "no such file"
        case PermissionError():
            return "no permission to read it"
        case u.UnitsError():
            return str(error)
        case IsADirectoryError():
            return "is a directory"
        case EOFError() | gzip.BadGzipFile() | zlib.error():
            return f"truncated or damaged gzip ({error})"
        case AstropyWarning():
            return f"truncated ({error})"
        case UnicodeDecodeError():
            return "is neither FITS nor text"
        case _:
            return f"damaged, or not a spectrum ({type(error).__name__}: {error})"
