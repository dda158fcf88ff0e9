"""One star as a FITS file for `specutils.Spectrum.read` and `astropy.table.Table.read`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from astropy import units as u
from astropy.io import fits
from numpy.typing import NDArray

from bayesspec import __version__
from bayesspec.grid import WavelengthGrid

from .facts import FACTS
from .star import Star

__all__ = ["to_hdus"]


def to_hdus(star: Star) -> fits.HDUList:
    """The FITS file of one star: images, and a table SPECTRUM with all quantities per pixel.

    specutils identifies the columns of a table by their units: it would take the observed flux for the
    uncertainty, and ignore a flux without unit. So the clean spectrum, its standard deviation and its mask
    are also images, which it identifies by name. The star's keywords are in the header of the table and in
    that of the file, which specutils keeps.
    """
    observed, unit = star.observed, star.unit
    columns = {"WAVELENGTH": star.grid.wavelength * u.AA, "FLUX": star.flux * unit}
    if star.flux_std is not None:
        columns["FLUX_STD"] = star.flux_std * unit
    columns["OBSERVED"] = observed.flux * unit
    if observed.ivar.any():
        columns["OBSERVED_IVAR"] = observed.ivar * unit**-2
    table = fits.BinTableHDU.from_columns(
        [*(_column(*column) for column in columns.items()), fits.Column("MASK", "L", array=observed.mask)],
        name="SPECTRUM",
    )
    values, spelled = _in_fits(columns["FLUX"])
    images = [fits.PrimaryHDU(values)]
    images[0].header.extend([*_axis(star.grid), ("BUNIT", spelled, "unit of the flux")])
    if "FLUX_STD" in columns:
        images.append(fits.ImageHDU(_in_fits(columns["FLUX_STD"])[0], name="STD"))
    images.append(fits.ImageHDU(observed.mask.astype(np.uint8), name="MASK"))
    images[-1].header["BFORM"] = ("L", "0 and 1 are False and True")
    for hdu in (images[0], table):
        hdu.header.extend(_cards(star), end=True)
    return fits.HDUList([*images, table])


def _axis(grid: WavelengthGrid) -> list[tuple[str, Any, str]]:
    """FITS keywords of the wavelengths: w = CRVAL1 + CDELT1 * p, or CRVAL1 * exp(CDELT1 / CRVAL1 * p)."""
    step = (grid.stop - grid.start) / (grid.size - 1)
    if grid.log:
        step = grid.start * np.log(grid.stop / grid.start) / (grid.size - 1)
    return [
        ("CTYPE1", "WAVE-LOG" if grid.log else "WAVE", "in vacuum"),
        ("CUNIT1", "Angstrom", ""),
        ("CRPIX1", 1.0, ""),
        ("CRVAL1", grid.start, "wavelength of the first pixel"),
        ("CDELT1", step, "step at the first pixel"),
    ]


_BEYOND_THE_LIBRARY = (
    ("VELOFF", "velocity_offset", "[km/s] relative to library stars"),
    ("VELOFFE", "velocity_offset_err", "[km/s] standard deviation"),
    ("EBVEXC", "ebv_excess", "[mag] E(B-V) relative to library stars"),
    ("EBVEXCE", "ebv_excess_err", "[mag] standard deviation"),
)


def _cards(star: Star) -> list[tuple[str, Any, str]]:
    row = star.row
    cards = [
        ("OBJECT", _ascii(star.name), "star"),
        ("CREATOR", f"bayesspec {__version__}", "software"),
        ("MODEL", _ascii(star.model_name), "bundle"),
        ("MODELVER", _ascii(star.model_version), "version of the bundle"),
        ("METHOD", star.method, "inference"),
        ("CLASS", str(row["class"]), "best class"),
        ("CLASSP", float(row["probability"]), "probability of CLASS"),
        *(
            (f"P_{name.upper()}"[:8], float(p), f"probability of {name}")
            for name, p in zip(star.classes, star.class_probabilities, strict=True)
        ),
        *((f"Z{k}", float(z), "latent") for k, z in enumerate(star.z, start=1)),
        *((key, float(row[name]), comment) for key, name, comment in _BEYOND_THE_LIBRARY if name in row),
        *(
            (fact.card, _ascii(row[name]) if fact.kind is str else fact.kind(row[name]), fact.comment)
            for name, fact in FACTS.items()
            if name in row
        ),
        ("SCALE", float(row["scale"]), "mean |FLUX| over the grid"),
        ("NEXP", int(row["exposures"]), "exposures with an observed pixel"),
    ]
    cards += [
        *(
            (f"SCALE{k}", float(factor), f"flux of exposure {k} relative to FLUX")
            for k, factor in enumerate(star.scale, start=1)
        ),
        ("CHI2", float(row["chi2"]), "mean square of whitened noise, 1 = as modelled"),
        ("OUTLIER", float(row["outlier_score"]), "probability to be as unusual; small = outlier"),
        ("OBSFRAC", float(row["observed_fraction"]), "fraction of the grid observed"),
        ("USEDFRAC", float(row["used_fraction"]), "fraction of likelihood terms used"),
        ("LOGDENS", float(row["log_density"]), "log p(y, z, C)"),
    ]
    cards.append(("FLAGS", int(row["flags"]), "warnings as bits, 0 = none"))
    cards += [(f"WARN{k}", _ascii(note), "") for k, note in enumerate(star.warnings, start=1)]
    # FITS keywords cannot be NaN or infinite; such values are left undefined.
    return [
        (key, None if isinstance(value, float) and not np.isfinite(value) else value, comment)
        for key, value, comment in cards
    ]


def _column(name: str, values: u.Quantity) -> fits.Column:
    numbers, spelled = _in_fits(values)
    return fits.Column(name, "D", unit=spelled, array=numbers)


def _in_fits(values: u.Quantity) -> tuple[NDArray[np.float64], str]:
    # FITS units only have powers of ten, so other factors go into the values; a few units FITS does not have.
    unit, spelled = values.unit, values.unit.to_string()
    for candidate in (unit, u.CompositeUnit(1, unit.bases, unit.powers)):
        with suppress(ValueError):
            unit, spelled = candidate, candidate.to_string("fits")
            break
    return values.to_value(unit).astype(float), spelled


def _ascii(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).encode("ascii", "replace").decode()
