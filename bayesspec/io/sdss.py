"""SDSS and BOSS spectra: files spec-PLATE-MJD-FIBER.fits, lite (the coadd) and full (with single frames).

Layout (https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html): HDU 1 the
coadd, 2 a row of the catalogue, 3 lines, 4 and later the frames of single cameras. Names of HDUs and columns
vary in case or are missing, so tables are identified by their columns and their order.
"""

from __future__ import annotations

import re

from astropy import units as u
from astropy.io import fits

from bayesspec.exceptions import ObservationError, ReadError
from bayesspec.observation import Observation

from .arms import Frame, join_arms, pair_frames
from .bits import bad_pixels, fibre_flags
from .columns import column_names, column_roles, is_spectrum, read_columns, read_facts, to_ivar, to_vacuum

__all__ = ["FLUX_UNIT", "read_sdss"]

FLUX_UNIT = u.Unit(1e-17 * u.erg / u.s / u.cm**2 / u.AA)

_FRAME_NAME = re.compile(r"[BR](\d)-(\d+)", re.IGNORECASE)
_CAMERA = re.compile(r"[BR](\d)", re.IGNORECASE)

_FACTS = {
    "plate": ("PLATE", "PLATEID"),
    "mjd": ("MJD",),
    "fiber": ("FIBERID",),
    "class": ("CLASS",),
    "subclass": ("SUBCLASS",),
    "redshift": ("Z",),
    "ra": ("PLUG_RA",),
    "dec": ("PLUG_DEC",),
}


def read_sdss(
    hdus: fits.HDUList, *, individual: bool = False, strict: bool = False, air: bool | None = None
) -> Observation:
    """The coadd, or the single exposures with both arms joined.

    A frame that cannot be used, e.g. with no observed pixel, is left out and listed in `meta["left_out"]`.

    Arguments:
        hdus: The open file.
        individual: Single exposures instead of the coadd.
        strict: Also mask doubtful pixels (see `bayesspec.io.bits`).
        air: Whether wavelengths are in air; None: as the header says.

    Raises:
        ReadError: if the file has no such spectrum.
        ObservationError: if no pixel is observed.
    """
    header = hdus[0].header
    coadd = _coadd(hdus)
    if individual:
        tables = {n: hdu for n, hdu in enumerate(hdus) if hdu is not coadd and is_spectrum(hdu)}
        star = _read_exposures(tables, header, strict, air)
    elif coadd is None:
        raise ReadError('no coadd, only single frames: read it with exposures="individual"')
    else:
        star = _read_table(coadd, header, strict, air)
        star.meta |= {"layout": "SDSS coadd", "exposures": ("coadd",)}

    # The catalogue row has precedence over the header.
    star.meta = {"survey": "SDSS", **star.meta, **read_facts(_FACTS, _catalogue_row(hdus), header)}
    return star


def _coadd(hdus: fits.HDUList) -> fits.BinTableHDU | None:
    """The table with an and-mask; if there is none, the first that is not named like a frame."""
    first = None
    for hdu in filter(is_spectrum, hdus):
        if "andmask" in column_roles(column_names(hdu)):
            return hdu
        if first is None and _frame_key(hdu) is None:
            first = hdu
    return first


def _catalogue_row(hdus: fits.HDUList) -> fits.FITS_record | None:
    for hdu in hdus:
        if "CLASS" in map(str.upper, column_names(hdu)) and hdu.header["NAXIS2"] == 1:
            return hdu.data[0]
    return None


def _read_exposures(
    tables: dict[int, fits.BinTableHDU], header: fits.Header, strict: bool, air: bool | None
) -> Observation:
    if not tables:
        raise ReadError('no single exposures (a lite file): read it with exposures="coadd"')
    frames: list[Frame] = []
    left_out: dict[str, str] = {}
    flags: dict[str, None] = {}
    unit: u.UnitBase | None = None
    for number, hdu in tables.items():
        named = _FRAME_NAME.match(hdu.name)
        name = named.group() if named else f"HDU {number}"
        try:
            part = _read_table(hdu, header, strict, air)
        except ObservationError as error:
            left_out[name] = str(error)
            continue
        if part.exposures[0].ivar is None:
            raise ReadError(f"{name}: no inverse variance, so its arms cannot be joined")
        unit = unit or part.unit
        if part.unit != unit:
            raise ReadError(f"{name}: its flux is in {part.unit}, that of others in {unit}")
        frames.append(Frame(name, _frame_key(hdu), part.exposures[0]))
        flags |= dict.fromkeys(part.meta["flags"])
    if not frames:
        raise ObservationError("no exposure has an observed pixel")

    pairs = pair_frames(frames)
    star = Observation.from_exposures(_join(pair, unit) for pair in pairs)
    names = tuple("+".join(frame.name for frame in pair) for pair in pairs)
    star.meta |= {"layout": "SDSS exposures", "exposures": names, "flags": tuple(flags), "left_out": left_out}
    return star


def _join(pair: tuple[Frame, ...], unit: u.UnitBase) -> Observation:
    parts = [frame.exposure for frame in pair]
    joined = join_arms(*parts) if len(parts) == 2 else parts[0]
    return Observation(joined.wavelength, joined.flux * unit, joined.ivar, joined.mask)


def _read_table(hdu: fits.BinTableHDU, header: fits.Header, strict: bool, air: bool | None) -> Observation:
    columns = read_columns(hdu)
    flux = columns["flux"]
    bits = columns.get("andmask", columns.get("mask"))
    if bits is not None and bits.dtype.itemsize == 1:
        bits = bits != 0  # a byte has no room for SDSS's pixel bits: it means good or bad
    return Observation(
        to_vacuum(columns["wavelength"], air, header, hdu.header),
        flux if isinstance(flux, u.Quantity) else flux * FLUX_UNIT,
        to_ivar(columns),
        None if bits is None else bad_pixels(bits, survey="SDSS", strict=strict),
        meta={"flags": () if bits is None else fibre_flags(bits)},
    )


def _frame_key(hdu: fits.BinTableHDU) -> tuple[int, int] | None:
    """Spectrograph and exposure number, from the HDU's name or from its camera's keywords."""
    if named := _FRAME_NAME.match(hdu.name):
        return int(named[1]), int(named[2])
    camera = _CAMERA.match(str(hdu.header.get("CAMERAS", "")))
    exposure = hdu.header.get("EXPOSURE")
    return (int(camera[1]), int(exposure)) if camera and exposure is not None else None
