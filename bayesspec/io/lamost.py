"""LAMOST low-resolution spectra in the three layouts of its data releases.

* recent ones (DR9, DR10): HDU 1 is a table of one row of vectors, FLUX, IVAR, WAVELENGTH, ANDMASK, ORMASK;
* earlier ones: the primary HDU is an image whose rows are flux, ivar, wavelength, and-mask, or-mask;
* DR1: the same image, but its row 2 is the flux minus its continuum, and the wavelengths are
  10**(COEFF0 + COEFF1 * pixel) with keywords of the header.

Fluxes are relative, as the survey says, and so have no unit unless the file states one. A table from
elsewhere with these columns is read in the same way, except that any mask value other than 0 is bad.
"""

from __future__ import annotations

import numpy as np
from astropy import units as u
from astropy.io import fits
from numpy.typing import NDArray

from bayesspec.exceptions import ReadError
from bayesspec.observation import Observation

from .bits import bad_pixels
from .columns import MOST_PIXELS, is_spectrum, read_columns, read_facts, to_ivar, to_vacuum, with_units

__all__ = ["padding", "read_lamost"]

_ROWS = 5

_FACTS = {
    "release": ("DATA_V",),
    "obsid": ("OBSID",),
    "plan": ("PLANID",),
    "spectrograph": ("SPID",),
    "fiber": ("FIBERID",),
    "mjd": ("LMJD", "MJD"),
    "class": ("CLASS",),
    "subclass": ("SUBCLASS",),
    "redshift": ("Z",),
    "ra": ("RA",),
    "dec": ("DEC",),
}


def read_lamost(hdus: fits.HDUList, *, strict: bool = False, air: bool | None = None) -> Observation:
    """The spectrum, a coadd of all exposures.

    The pipeline pads the ends with fluxes of exactly 0 and a positive ivar (in most files, up to 31 pixels).
    These pixels count as missing.

    Arguments:
        hdus: The open file.
        strict: Also mask doubtful pixels (see `bayesspec.io.bits`).
        air: Whether wavelengths are in air; None: as the header says.

    Raises:
        ReadError: if the layout is none of these.
        ObservationError: if no pixel is observed.
    """
    header = hdus[0].header
    tables = [hdu for hdu in hdus if is_spectrum(hdu)]
    if len(tables) > 1:
        raise ReadError(f"{len(tables)} tables with flux and wavelength: give one of them")
    headers = [header]
    if tables:
        headers.append(tables[0].header)
        layout, columns = "LAMOST table" if _is_named(header) else "table", read_columns(tables[0])
    else:
        layout, columns = _read_image(hdus)
    flux = columns["flux"]
    bad = np.zeros(flux.shape, bool)
    if "andmask" in columns:
        bad |= bad_pixels(columns["andmask"], survey="LAMOST", strict=strict)
    if "mask" in columns:
        bad |= columns["mask"] != 0
    star = Observation(
        to_vacuum(columns["wavelength"], air, *headers),
        flux,
        to_ivar(columns),
        bad | padding(np.asarray(flux)),
    )
    facts = read_facts(_FACTS, None, header)
    star.meta |= {"layout": layout, "exposures": ("coadd",), **facts}
    if layout != "table":
        star.meta["survey"] = "LAMOST"
    return star


def _read_image(hdus: fits.HDUList) -> tuple[str, dict[str, NDArray[np.float64] | u.Quantity]]:
    image = next((hdu for hdu in hdus if hdu.is_image and len(hdu.shape) == 2), None)
    if image is None or str(hdus[0].header.get("TELESCOP", "")).startswith("SDSS"):
        raise ReadError("no table with columns flux and loglam or wavelength, and no LAMOST image")
    count, size = image.shape
    if count != _ROWS or size > MOST_PIXELS:
        raise ReadError(f"no LAMOST image: it has {count} rows of {size} pixels, LAMOST's have {_ROWS}")
    rows = np.array(image.data, dtype=float)
    if (rows[1] < 0).any():
        raise ReadError("no LAMOST image: row 1 has negative values, so it is not an inverse variance")
    columns = {"flux": rows[0], "ivar": rows[1], "andmask": rows[3]}
    units = {"flux": image.header.get("BUNIT")}

    if _is_wavelength(rows[2]):
        return "LAMOST image", with_units({**columns, "wavelength": rows[2]}, units)
    start, step = (image.header.get(key) for key in ("COEFF0", "COEFF1"))
    if start is None or step is None:
        raise ReadError("row 2 of the image is not wavelength, and the header has no COEFF0 and COEFF1")
    # Many surveys have these keywords, but different rows.
    if not _is_named(image.header):
        raise ReadError("no LAMOST image: row 2 is not wavelength, and the header does not name LAMOST")
    loglam = start + step * np.arange(size)
    return "LAMOST image with wavelengths in the header", with_units({**columns, "loglam": loglam}, units)


def _is_named(header: fits.Header) -> bool:
    return any("LAMOST" in str(header.get(key, "")) for key in ("TELESCOP", "DATA_V"))


def _is_wavelength(row: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(row).all() and row[0] > 1000 and (np.diff(row) > 0).all())


def padding(flux: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True in the runs of exact zeros at both ends."""
    filled = np.flatnonzero(flux)
    if filled.size == 0:
        return np.ones(flux.shape, bool)
    position = np.arange(flux.size)
    return (position < filled[0]) | (position > filled[-1])
