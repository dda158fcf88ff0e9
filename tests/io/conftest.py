"""Small synthetic files in every layout of the surveys, and what readers must find in them."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from tests.conftest import shared_files

COADD_LOGLAM = 3.58 + 1e-3 * np.arange(380)
LAMOST_LOGLAM = 3.5682 + 1e-3 * np.arange(390)
ARMS = {"B": np.arange(3800.0, 6300.0, 11.0), "R": np.arange(5850.0, 9200.0, 14.0)}
EXPOSURES = (4166, 4167, 4168)


def truth(wavelength):
    return 20 + 5 * np.sin(wavelength / 300)


def draw(wavelength, seed, sigma=0.5):
    """Flux, ivar of one noisy look at the truth; one pixel in 50 has no data."""
    rng = np.random.default_rng(seed)
    ivar = np.where(np.arange(len(wavelength)) % 50 == 7, 0, sigma**-2)
    return truth(wavelength) + sigma * rng.normal(size=len(wavelength)), ivar


def table(columns, name="", case=str.lower, **keywords):
    hdu = fits.BinTableHDU.from_columns(
        [
            fits.Column(case(key), "J" if np.asarray(values).dtype.kind == "i" else "E", array=values)
            for key, values in columns.items()
        ]
    )
    if name:
        hdu.name = name
    hdu.header.update(keywords)
    return hdu


def sdss(
    frames=("B1", "R1"), *, case=str.lower, stripped=False, descending=True, seed=0, bits=None, without=()
):
    """An SDSS file; `without` are names of frames like B1-4167, `bits` mask bits by pixel of the coadd."""
    rng = np.random.default_rng(seed)
    flux, ivar = draw(10**COADD_LOGLAM, seed)
    zero = np.zeros(len(flux), np.int32)
    columns = {
        "flux": flux,
        "loglam": COADD_LOGLAM,
        "ivar": ivar,
        "and_mask": zero if bits is None else bits,
        "or_mask": rng.integers(0, 2**28, len(flux)).astype(np.int32),
        "model": flux,
    }
    row = fits.BinTableHDU.from_columns(
        [
            fits.Column("CLASS", "6A", array=["STAR"]),
            fits.Column("SUBCLASS", "6A", array=["K3"]),
            fits.Column("Z", "E", array=[1e-4]),
            fits.Column("PLATE", "J", array=[352]),
        ],
        name="" if stripped else "SPECOBJ",
    )
    hdus = [fits.PrimaryHDU(), table(columns, "" if stripped else "COADD", case), row]
    hdus[0].header.update({"FIBERID": 30, "MJD": 51694, "TELESCOP": "SDSS 2.5-M"})
    for camera in frames:
        for number in EXPOSURES:
            if f"{camera}-{number}" in without:
                continue
            wavelength = ARMS[camera[0]] + 0.01 * (number - EXPOSURES[0])
            flux, ivar = draw(wavelength, [seed, number, ord(camera[0])])
            order = slice(None, None, -1 if descending and camera[0] == "B" else 1)
            columns = {
                "flux": flux[order],
                "loglam": np.log10(wavelength[order]),
                "ivar": ivar[order],
                "mask": np.zeros(len(flux), np.int32),
                "sky": flux[order],
            }
            name = "" if stripped else f"{camera}-{number:08d}-00004163-00004164"
            hdus.append(table(columns, name, case))
    return fits.HDUList(hdus)


def lamost_rows(seed=0):
    """Flux with padding at its red end, ivar, wavelength, and-mask, or-mask."""
    wavelength = 10**LAMOST_LOGLAM
    flux, ivar = draw(wavelength, seed)
    flux[-12:] = 0
    ivar[-12:] = 0.17
    zero = np.zeros(len(flux))
    return np.array([flux, ivar, wavelength, zero, zero + 1], dtype=np.float32)


def _lamost_header(hdus):
    hdus[0].header.update(
        {"TELESCOP": "LAMOST", "OBSID": 101008, "CLASS": "STAR", "SUBCLASS": "F9", "Z": 8.7e-5}
    )
    return fits.HDUList(hdus)


def lamost_table(*, case=str.upper, seed=0):
    rows = lamost_rows(seed)
    names = ("flux", "ivar", "wavelength", "andmask", "ormask")
    columns = [
        fits.Column(case(name), f"{len(row)}E", array=row[None])
        for name, row in zip(names, rows, strict=True)
    ]
    return _lamost_header([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="COADD")])


def lamost_image(*, seed=0):
    return _lamost_header([fits.PrimaryHDU(lamost_rows(seed))])


def lamost_dr1(*, seed=0):
    rows = lamost_rows(seed)
    rows[2] = rows[0] - truth(rows[2])
    hdus = _lamost_header([fits.PrimaryHDU(rows)])
    hdus[0].header.update({"COEFF0": LAMOST_LOGLAM[0], "COEFF1": 1e-3})
    return hdus


LAYOUTS = {
    "SDSS lite": lambda: sdss(frames=()),
    "SDSS full": sdss,
    "LAMOST table": lamost_table,
    "LAMOST image": lamost_image,
    "LAMOST DR1": lamost_dr1,
}


def to_bytes(hdus, layers=0):
    """The file, gzipped so many times."""
    buffer = io.BytesIO()
    hdus.writeto(buffer)
    data = buffer.getvalue()
    for _ in range(layers):
        data = gzip.compress(data)
    return data


def write(path: Path, hdus, layers=0) -> Path:
    path.write_bytes(to_bytes(hdus, layers))
    return path


def same(left, right):
    """Whether two observations have exactly the same exposures and unit."""
    fields = ("wavelength", "flux", "ivar", "mask")
    return (
        left.unit == right.unit
        and len(left) == len(right)
        and all(
            np.array_equal(getattr(a, field), getattr(b, field))
            for a, b in zip(left.exposures, right.exposures, strict=True)
            for field in fields
        )
    )


FEW, EVERY = 20, 6
"""Of a folder of more files than a few the normal run takes every sixth, the slow one the others."""


def shared_params(*patterns):
    """Development spectra as parameters with short names; one that skips where there are none."""
    found = []
    for pattern in patterns:
        of_folder = {}
        for path in shared_files(pattern):
            of_folder.setdefault(path.parent, []).append(path)
        for paths in of_folder.values():
            for n, path in enumerate(paths):
                marks = [pytest.mark.slow] if len(paths) > FEW and n % EVERY else []
                found.append(pytest.param(path, id=f"{path.parent.name}/{path.name}", marks=marks))
    reason = "needs the development spectra (set BAYESSPEC_DATA to their folder)"
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
