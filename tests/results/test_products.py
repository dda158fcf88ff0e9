"""What is on disk is what the result holds, and nothing is overwritten unasked."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from hypothesis import example, given, settings
from hypothesis import strategies as st
from specutils import Spectrum

from bayesspec.exceptions import BayesspecError
from bayesspec.grid import WavelengthGrid
from bayesspec.observation import printable
from bayesspec.results import products
from bayesspec.results.products import SUMMARY, ProductWriter, unique_stems, written

UNITS = ("", "adu", "Jy", "W / (m2 um)", "1e-17 erg / (s cm2 Angstrom)", "3 ct")


def star_tables(folder) -> list[Table]:
    return [Table.read(path) for path in sorted(folder.glob("*.denoised.fits"))]


@pytest.mark.parametrize("ivar", [True, False])
@pytest.mark.parametrize("std", [True, False])
def test_star_tables_hold_the_result(make_result, tmp_path, ivar, std):
    res = make_result(ivar=ivar, model_flux_std=np.full((3, 64), 0.1) if std else None)
    res.write(tmp_path)
    for n, table in enumerate(star_tables(tmp_path)):
        unit, observed = res.units[n], res.observed
        np.testing.assert_array_equal(table["WAVELENGTH"].quantity.to_value(u.AA), res.wavelength)
        np.testing.assert_allclose(table["FLUX"].quantity.to_value(unit), res.flux[n])
        np.testing.assert_array_equal(table["MASK"], observed.mask[n])
        np.testing.assert_allclose(table["OBSERVED"].quantity.to_value(unit), observed.flux[n])
        assert ("OBSERVED_IVAR" in table.colnames) == ivar
        assert ("FLUX_STD" in table.colnames) == std
        if ivar:
            np.testing.assert_allclose(table["OBSERVED_IVAR"].quantity.to_value(unit**-2), observed.ivar[n])
        assert table.meta["CLASS"] == res.table["class"][n]
        assert table.meta["CLASSP"] == pytest.approx(res.table["probability"][n])
        assert all(np.isfinite(table[name]).all() for name in table.colnames)


@pytest.mark.parametrize("unit", UNITS)
def test_any_flux_unit_comes_back(make_result, tmp_path, unit):
    res = make_result(stars=1, units=(u.Unit(unit),))
    res.write(tmp_path)
    flux = star_tables(tmp_path)[0]["FLUX"].quantity
    np.testing.assert_allclose(flux.to_value(u.Unit(unit)), res.flux[0])


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("std", [True, False])
@pytest.mark.parametrize("unit", [*UNITS, "electron"])
def test_specutils_reads_what_to_spectrum_gives(make_result, tmp_path, unit, std, log):
    """Of every method and unit, without being told the format, and without a warning."""
    res = make_result(
        stars=1,
        units=(u.Unit(unit),),
        grid=WavelengthGrid(size=64, log=log),
        model_flux_std=np.full((1, 64), 0.1) if std else None,
        flags=np.array([5]),
        warnings=(("not as it seems",),),
    )
    res.write(tmp_path)
    read, given = Spectrum.read(tmp_path / "star_0.denoised.fits"), res.to_spectrum()
    np.testing.assert_allclose(read.spectral_axis.to_value(u.AA), given.spectral_axis.to_value(u.AA))
    np.testing.assert_allclose(read.flux.to_value(given.flux.unit), given.flux.value)
    np.testing.assert_array_equal(read.mask, given.mask)
    assert given.mask.any()
    if std:
        assert read.uncertainty.uncertainty_type == given.uncertainty.uncertainty_type == "std"
        np.testing.assert_allclose(read.uncertainty.quantity.to_value(given.flux.unit), res.flux_std[0])
    else:
        assert read.uncertainty is given.uncertainty is None
    assert read.meta["header"]["CLASS"] == given.meta["class"]
    assert read.meta["header"]["WARN1"] == given.meta["warnings"] == "not as it seems"
    assert read.meta["header"]["FLAGS"] == given.meta["flags"] == res.flags[0] == 5
    assert Table.read(tmp_path / SUMMARY)["flags"][0] == 5


@pytest.mark.parametrize("power", [-37, -18, 0, 20, 37])
def test_products_of_any_scale(make_result, tmp_path, power):
    """In whatever unit the flux comes, S/N is what it is."""
    scale = 10.0**power
    usual, res = (make_result(stars=1, unit_flux=np.array([s], np.float32)) for s in (1.0, scale))
    table = star_tables(res.write(tmp_path))[0]
    snr = table["OBSERVED"].value * np.sqrt(table["OBSERVED_IVAR"].value)
    np.testing.assert_allclose(snr, (usual.observed.flux * np.sqrt(usual.observed.ivar))[0], rtol=1e-6)
    np.testing.assert_allclose(table["FLUX"].value, usual.flux[0] * scale, rtol=1e-6)


def test_numbers_that_fits_has_not(make_result, tmp_path):
    res = make_result(stars=1, chi2=np.array([np.inf]), log_density=np.array([np.nan]))
    res.write(tmp_path)
    header = fits.getheader(tmp_path / "star_0.denoised.fits")
    assert header["CHI2"] is header["LOGDENS"] is None


def _interrupted(path, error):
    with written(path) as part:
        part.write_text("hal")
        raise error


def test_a_file_is_whole_or_not_there(tmp_path):
    """What fails while it is written leaves the file that was there, and nothing beside it."""
    (path := tmp_path / "file").write_text("before")
    for error, seen in (
        (OSError(28, "No space left"), BayesspecError),
        (KeyboardInterrupt, KeyboardInterrupt),
    ):
        with pytest.raises(seen):
            _interrupted(path, error)
        assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


def test_summary_has_a_row_per_input_in_the_order_of_the_input(make_result, tmp_path):
    res = make_result(failures=((0, "broken", "no such file"), (3, "empty", "is empty")))
    table = Table.read(res.write(tmp_path) / SUMMARY)
    assert list(table["name"]) == ["broken", "star 0", "star 1", "empty", "star 2"]
    assert list(table["status"]) == ["failed", "ok", "ok", "failed", "ok"]
    assert list(table["reason"][[0, 3]]) == ["no such file", "is empty"]
    assert list(table["class"].mask) == [True, False, False, True, False]
    good = table[table["status"] == "ok"]
    for name in ("probability", "scale", "chi2", "outlier_score", "observed_fraction", "log_density"):
        np.testing.assert_allclose(good[name], res.full_table[name])
    for k, name in enumerate(res.classes):
        np.testing.assert_allclose(good[f"p_{name}"], res.class_probabilities[:, k])
    assert all((tmp_path / file).exists() for file in good["file"])


def test_summary_of_nothing_but_failures_can_be_read(make_result, tmp_path):
    res = make_result()[:0]
    table = Table.read(
        type(res)(**{**vars(res), "failures": ((0, "a", "bad"), (1, "b", "worse"))}).write(tmp_path) / SUMMARY
    )
    assert list(table["reason"]) == ["bad", "worse"]


def test_overwriting_needs_to_be_asked_for(make_result, tmp_path):
    first, second = make_result(seed=1), make_result(seed=2)
    first.write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(BayesspecError, match="there already"):
        second.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    second.write(tmp_path, overwrite=True)
    np.testing.assert_allclose(star_tables(tmp_path)[0]["FLUX"].value, second.flux[0])


def test_the_whole_run_is_checked_before_anything_is_written(make_result, tmp_path):
    (tmp_path / "star_2.denoised.fits").write_text("mine")
    with pytest.raises(BayesspecError, match=r"star_2\.denoised\.fits"):
        make_result().write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["star_2.denoised.fits"]


def test_output_folder_that_is_a_file(make_result, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(BayesspecError, match="cannot be the output folder"):
        make_result().write(tmp_path / "out")


def test_same_result_writes_the_same_bytes(make_result, tmp_path):
    for name in "ab":
        make_result().write(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_names_that_FITS_cannot_spell(make_result, tmp_path):
    res = make_result(stars=1, names=("é Cen\nB",), warnings=((200 * "ülong",),))
    res.write(tmp_path)
    with fits.open(next(tmp_path.glob("*.fits"))) as hdus:
        hdus.verify("exception")
        for header in (hdus[0].header, hdus["SPECTRUM"].header):
            assert header["WARN1"].endswith("long")


def test_unreached_inputs_are_in_the_summary(make_result, tmp_path):
    writer = ProductWriter(tmp_path, ["a", "b"])
    writer.add(1, make_result(stars=1).star())
    table = Table.read(writer.write_summary())
    assert list(table["status"]) == ["not reached", "ok"]


@given(st.lists(st.text(max_size=12), max_size=20))
def test_file_names_are_unique_and_harmless(names):
    stems = unique_stems(names)
    assert len({stem.lower() for stem in stems}) == len(names)
    assert all(stem and not set(stem) & set("/\\ :*?\"'\n\0") and stem[0] not in ".-" for stem in stems)


@settings(max_examples=50)
@example(["#1", "# %ECSV", '"', "a,b"])
@given(st.lists(st.text(max_size=12), min_size=1, max_size=6))
def test_any_name_leaves_a_summary_that_can_be_read(tmp_path_factory, names):
    writer = ProductWriter(tmp_path_factory.mktemp("names"), names)
    for position, name in enumerate(names):
        writer.fail(position, f"{name}: {name}")
    table = Table.read(writer.write_summary())
    assert list(table["status"]) == ["failed"] * len(names)
    read = ["" if name is np.ma.masked else str(name) for name in table["name"]]
    assert read == [printable(name).strip(" ") for name in names]


def test_failures_take_the_place_of_earlier_products(make_result, tmp_path):
    res = make_result(stars=2)
    res.write(tmp_path)
    failed = type(res)(**{**vars(res[:1]), "failures": ((1, "star 1", "unreadable"),)})
    failed.write(tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {SUMMARY, "star_0.denoised.fits"}


@pytest.mark.parametrize(("cost", "writes"), [(0.01, 1000), (2.0, 50)])
def test_a_summary_that_takes_long_is_not_written_all_the_time(tmp_path, monkeypatch, cost, writes):
    """At most a tenth of the time; what is quick is written whenever there is news."""
    clock, count = 0.0, 0

    class Writer(ProductWriter):
        def summary(self):
            nonlocal clock, count
            clock, count = clock + cost, count + 1
            return super().summary()

    monkeypatch.setattr(products.time, "monotonic", lambda: clock)
    writer = Writer(tmp_path, ["a"])
    for _ in range(1000):
        clock += 1.0
        writer.update_summary()
    assert count == pytest.approx(writes, rel=0.05)
