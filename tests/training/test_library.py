"""Laws of star libraries."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from bayesspec.exceptions import ReadError
from bayesspec.grid import WavelengthGrid
from bayesspec.training.library import CLASSES, StarLibrary

GRID = WavelengthGrid(size=256)


def table(**changes):
    """Six stars of a log-lambda table, 3800-9300 Angstrom."""
    coeff0, coeff1 = np.log10(3800), 4e-4
    wavelength = 10 ** (coeff0 + coeff1 * np.arange(972))
    slope = np.linspace(-3, 2, 6)[:, None]
    columns = {
        "class": ["O", "B", "A", "F", "M", "QSO"],
        "Star": ["a", "b", "c", "d", "e", "f"],
        "flux": 5 * (wavelength / 6000) ** slope,
        "IVAR": np.ones((6, 972)),
        "SNR": [100.0, 50, 70, 20, 10, 99],
    }
    result = Table({**columns, **changes})
    result.meta.update(COEFF0=coeff0, COEFF1=coeff1)
    return result


@pytest.fixture
def write(tmp_path):
    def to_file(content, name="stars.fits"):
        content.write(tmp_path / name, overwrite=True)
        return tmp_path / name

    return to_file


def test_spectra_come_at_unit_mean_flux(write):
    """Mean |flux| = 1 over the observed pixels, whatever the table's unit; other classes are left out."""
    library = StarLibrary.read(write(table()), GRID)
    assert [CLASSES[k] for k in library.klass] == ["O", "B", "A", "F", "M"]
    observed = ~library.mask
    np.testing.assert_allclose((library.flux * observed).sum(-1) / observed.sum(-1), 1, rtol=1e-5)
    scaled = StarLibrary.read(write(table(flux=1e-17 * table()["flux"], IVAR=1e34 * table()["IVAR"])), GRID)
    np.testing.assert_allclose(scaled.flux, library.flux, rtol=1e-5)
    np.testing.assert_allclose(scaled.ivar, library.ivar, rtol=1e-5)


def test_masked_pixels_have_no_influence(write):
    """NaN flux, or anything at ivar = 0, is not data; a star mostly unobserved is left out."""
    clean, ivar = table(), np.ones((6, 972))
    ivar[:, 300:340] = 0
    ivar[4, :700] = 0
    spoiled = np.array(clean["flux"])
    spoiled[:, 300:340] = np.nan
    libraries = [StarLibrary.read(write(table(flux=f, IVAR=ivar)), GRID) for f in (clean["flux"], spoiled)]
    assert len(libraries[0]) == 4
    np.testing.assert_array_equal(libraries[0].flux, libraries[1].flux)


def test_weights_balance_classes_and_stars(write):
    """Balance 1: every class has the same chance. A star's spectra share one vote."""
    library = StarLibrary.read(write(table(**{"class": ["A"] * 4 + ["M"] * 2, "Star": list("aabcde")})), GRID)
    weight = library.sampling_weights(1.0)
    is_a = np.array([CLASSES[k] == "A" for k in library.klass])
    assert weight[is_a].sum() == pytest.approx(0.5)
    assert weight[library.star == "a"].sum() == pytest.approx(weight[library.star == "b"].sum())
    even = library.sampling_weights(0.0)
    assert even[library.star == "a"].sum() == pytest.approx(0.2)


def test_clean_keeps_what_thin_classes_have(write):
    """Below the S/N only classes that would be empty otherwise keep spectra."""
    library = StarLibrary.read(write(table()), GRID)
    assert [CLASSES[k] for k in library.clean(60, thin=1).klass] == ["O", "B", "A", "F", "M"]
    assert [CLASSES[k] for k in library.clean(60, thin=0).klass] == ["O", "A"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"remove": "FLUX"}, "column FLUX"),
        ({"meta": "COEFF0"}, "COEFF0"),
        ({"class": ["QSO"] * 6}, "no row is of one of the classes"),
    ],
)
def test_what_a_table_lacks_is_said(write, change, message):
    """One error, with the file's name and the cause."""
    content = table(**{k: v for k, v in change.items() if k == "class"})
    if "remove" in change:
        content.remove_column("flux")
    if "meta" in change:
        del content.meta["COEFF0"]
    file = write(content, "bad.fits")
    with pytest.raises(ReadError, match=rf"bad\.fits: .*{message}"):
        StarLibrary.read(file, GRID)


def test_real_library(shared_data):
    """The development spectra: all ten classes on each side of the split, no star on two sides."""
    library = StarLibrary.read(shared_data / "stars.fits.gz", WavelengthGrid())
    assert len(library) > 3500
    for side in ("train", "test"):
        assert set(library.split(side).klass) == set(range(10))
    assert not set(library.split("train").star) & set(library.split("test").star)
    assert np.isfinite(library.flux).all()
