"""Files of many spectra: every row is what `read` makes of that row alone."""

from __future__ import annotations

import gzip
import shutil

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from bayesspec import read
from bayesspec.exceptions import ReadError
from bayesspec.io.tables import BLOCK, count_spectra, open_spectra

ROWS, PIXELS = 150, 300


@pytest.fixture(scope="module")
def spectra():
    rng = np.random.default_rng(1)
    loglam = 3.6 + 0.0011 * np.arange(PIXELS)
    flux = rng.uniform(1, 2, (ROWS, PIXELS))
    ivar = rng.uniform(50, 100, (ROWS, PIXELS))
    ivar[:, :20][rng.random((ROWS, 20)) < 0.3] = 0
    flux[3, 7] = np.nan
    mask = rng.random((ROWS, PIXELS)) < 0.1
    return loglam, flux, ivar, mask


def written(kind, folder, spectra):
    loglam, flux, ivar, mask = spectra
    columns = {"ID": [f"s{n}" for n in range(ROWS)], "FLUX": flux, "IVAR": ivar, "MASK": mask}
    facts = {"TARGET_RA": 0.5 + np.arange(ROWS), "MJD": 50_000 + np.arange(ROWS)}
    columns |= facts
    path = folder / f"{kind}.fits"
    if kind == "header":
        Table(columns, meta={"COEFF0": loglam[0], "COEFF1": 0.0011}).write(path)
    elif kind == "rows":
        Table({**columns, "LOGLAM": np.tile(loglam, (ROWS, 1))}).write(path)
    elif kind == "packed":
        with open(written("header", folder, spectra), "rb") as plain, gzip.open(f"{path}.gz", "wb") as packed:
            shutil.copyfileobj(plain, packed)
        path = f"{path}.gz"
    elif kind == "hdu":
        table = fits.table_to_hdu(Table(columns))
        wavelength = fits.table_to_hdu(Table({"WAVELENGTH": 10**loglam}))
        wavelength.name = "WAVELENGTH"
        fits.HDUList([fits.PrimaryHDU(), table, wavelength]).writeto(path)
    elif kind == "images":
        images = {"WAVELENGTH": 10**loglam, "FLUX": flux, "IVAR": ivar, "MASK": mask.astype(np.int32)}
        hdus = [fits.ImageHDU(values, name=name) for name, values in images.items()]
        targets = fits.table_to_hdu(Table({"TARGETID": np.arange(ROWS) + 10**12, **facts}))
        targets.name = "FIBERMAP"
        fits.HDUList([fits.PrimaryHDU(), *hdus, targets]).writeto(path)
    else:
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        path = folder / "table.parquet"
        lists = {key: list(values) for key, values in columns.items()}
        table = pa.table(lists).replace_schema_metadata({"COEFF0": str(loglam[0]), "COEFF1": "0.0011"})
        parquet.write_table(table, path, row_group_size=40)
    return path


@pytest.mark.parametrize("kind", ["header", "rows", "packed", "hdu", "images", "parquet"])
def test_a_row_is_the_spectrum_of_that_row(kind, tmp_path, spectra):
    loglam, flux, ivar, mask = spectra
    path = written(kind, tmp_path, spectra)
    assert count_spectra(path) == ROWS
    file = open_spectra(path)
    assert len(file) == ROWS
    for n in (0, 3, 149, 64, 63, 7):
        alone = Table({"LOGLAM": loglam, "FLUX": flux[n], "IVAR": ivar[n], "MASK": mask[n]})
        expected, found = read(alone).exposures[0], file.read(n).exposures[0]
        np.testing.assert_allclose(found.wavelength, expected.wavelength, rtol=1e-12)
        np.testing.assert_array_equal(found.mask, expected.mask)
        np.testing.assert_array_equal(found.flux, expected.flux)
        np.testing.assert_array_equal(found.ivar, expected.ivar)
        assert file.read(n).name == (str(10**12 + n) if kind == "images" else f"s{n}")
        assert [file.read(n).meta[fact] for fact in ("ra", "mjd")] == [0.5 + n, 50_000 + n]
    file.close()


def test_units_count(tmp_path, spectra):
    loglam, flux, ivar, _ = spectra
    table = Table({"FLUX": flux, "IVAR": ivar}, meta={"COEFF0": loglam[0], "COEFF1": 0.0011})
    table["FLUX"].unit = "1e-17 erg / (s cm2 Angstrom)"
    table.write(tmp_path / "t.fits")
    file = open_spectra(tmp_path / "t.fits")
    assert "erg" in file.read(5).unit.to_string()
    assert file.read(5).name == "t[5]"
    file.close()


def test_arms_are_joined(tmp_path):
    """As DESI writes them: three arms that overlap become one exposure."""
    rng = np.random.default_rng(2)
    hdus = [fits.PrimaryHDU()]
    for arm, low, high in (("B", 3600, 5800), ("R", 5760, 7620), ("Z", 7520, 9824)):
        wavelength = np.arange(low, high, 8.0)
        flux = 5 + 0.1 * rng.standard_normal((4, len(wavelength)))
        for name, values in (("WAVELENGTH", wavelength), ("FLUX", flux), ("IVAR", np.full_like(flux, 100))):
            hdus.append(fits.ImageHDU(values, name=f"{arm}_{name}"))
    fits.HDUList(hdus).writeto(tmp_path / "coadd.fits")
    file = open_spectra(tmp_path / "coadd.fits")
    star = file.read(2)
    file.close()
    assert (len(file), len(star)) == (4, 1)
    (exposure,) = star.exposures
    assert (exposure.wavelength[0], exposure.wavelength[-1]) == (3600, 9816)
    assert (np.diff(exposure.wavelength) > 0).all()
    assert exposure.flux.mean() == pytest.approx(5, abs=0.1)


def test_what_holds_one_star_is_none_of_these(tmp_path, spectra):
    loglam, flux, ivar, _ = spectra
    Table({"loglam": loglam, "flux": flux[0], "ivar": ivar[0]}).write(tmp_path / "sdss.fits")
    row = {"WAVELENGTH": 10 ** loglam[None], "FLUX": flux[:1], "IVAR": ivar[:1]}
    Table(row).write(tmp_path / "lamost.fits")
    (tmp_path / "text.txt").write_text("4000 1\n4001 1\n")
    for name in ("sdss.fits", "lamost.fits", "text.txt", "missing.fits"):
        assert count_spectra(tmp_path / name) is None


def test_a_table_that_is_cut_off(tmp_path, spectra):
    path = written("header", tmp_path, spectra)
    path.write_bytes(path.read_bytes()[:200_000])
    assert count_spectra(path) is None
    with pytest.raises(ReadError, match="truncated"):
        read(path)


def test_real_files(shared_data):
    assert count_spectra(shared_data / "thin.fits.gz") == 72
    file = open_spectra(shared_data / "thin.fits.gz")
    assert {len(file.read(n)) for n in range(72)} == {1}
    file.close()
    for pattern in ("raw/**/*.fits*", "boss_epochs/*"):
        for path in sorted(shared_data.glob(pattern))[:12]:
            assert count_spectra(path) is None


@pytest.mark.parametrize("turn", [1, -1], ids=["forwards", "backwards"])
def test_each_row_is_its_own_across_blocks(tmp_path, turn):
    """In whatever order rows are read, more of them than are read together."""
    count = BLOCK + 2
    flux = 1.0 + np.arange(count)[:, None] + np.zeros(30)
    table = Table({"FLUX": flux}, meta={"COEFF0": 3.6, "COEFF1": 1e-3})
    table.write(tmp_path / "many.fits")
    file = open_spectra(tmp_path / "many.fits")
    for row in range(count)[::turn]:
        np.testing.assert_array_equal(file.read(row).exposures[0].flux, flux[row])
    file.close()
