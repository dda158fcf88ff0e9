"""What a file says of its star comes through inference into tables, headers and catalogues as it was."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from bayesspec import Observation, denoise, denoise_survey
from bayesspec.results.facts import FACTS, known_facts
from bayesspec.results.table import fact_columns

TOLD = {
    "survey": "SDSS",
    "ra": 151.25,
    "dec": -2.5,
    "plate": 2942,
    "mjd": 54521,
    "fiber": 124,
    "gaia_id": 2**62 + 1,
    "class": "STAR",
    "redshift": 1.5e-4,
}
"""As readers say it: by the keys of an observation's `meta`."""


def _stars():
    wavelength = np.linspace(3950.0, 9050.0, 400)
    noise = 0.1 * np.random.default_rng(3).standard_normal((3, 400))
    tellings = [TOLD, {}, {"ra": 10.0, "obsid": 7}]
    return [
        Observation(wavelength, 1 + noise[n], np.full(400, 100.0), name=f"s{n}", meta=told)
        for n, told in enumerate(tellings)
    ]


def test_the_table_says_what_the_files_said(small_bundle):
    table = denoise(_stars(), model=small_bundle, method="map").table
    for name, fact in FACTS.items():
        if fact.key in TOLD:
            assert table[name][0] == TOLD[fact.key]
            assert np.ma.is_masked(table[name][1])
    assert (table["ra"][2], table["obsid"][2]) == (10.0, 7)
    assert str(table["ra"].unit) == "deg"
    assert not {"target_id", "survey_subclass"} & set(table.colnames)  # nobody said it


def test_the_order_of_stars_does_not_matter(small_bundle):
    stars = _stars()
    table = denoise(stars[::-1], model=small_bundle, method="map").table
    assert (table["plate"][2], table["obsid"][0]) == (TOLD["plate"], 7)


@pytest.mark.parametrize(
    "value", [None, "", "  ", "?", np.nan, np.inf, [1, 2], np.arange(3), True, 2**70, object()]
)
@pytest.mark.parametrize("key", ["ra", "plate"])
def test_what_is_no_number_is_left_out(key, value):
    assert key not in known_facts({key: value})


def test_nothing_known_gives_no_column():
    assert fact_columns([{}, {}]) == {}


def test_files_keep_it(small_bundle, tmp_path):
    res = denoise(_stars(), model=small_bundle, method="map")
    res.write(tmp_path)
    with fits.open(tmp_path / "s0.denoised.fits") as hdus:
        for header in (hdus[0].header, hdus["SPECTRUM"].header):
            for fact in FACTS.values():
                assert header.get(fact.card) == TOLD.get(fact.key)
    with fits.open(tmp_path / "s1.denoised.fits") as hdus:
        assert not {fact.card for fact in FACTS.values()} & set(hdus[0].header)
    summary = Table.read(tmp_path / "summary.ecsv")
    assert summary["gaia_id"][0] == TOLD["gaia_id"]
    assert list(np.ma.getmaskarray(summary["ra"])) == [False, True, False]


def test_a_catalogue_keeps_it(small_bundle, tmp_path):
    """From the columns of a table of stars to those of the catalogue, beside the part that has them."""
    pytest.importorskip("pyarrow")
    rng = np.random.default_rng(4)
    loglam = np.log10(3950.0) + 0.0018 * np.arange(200)
    columns = {"ID": ["a", "b"], "FLUX": 1 + 0.1 * rng.standard_normal((2, 200))}
    table = Table(columns, meta={"COEFF0": loglam[0], "COEFF1": 0.0018})
    table["RA"], table["GAIA_SOURCE_ID"], table["CLASS"] = [1.5, 2.5], [2**61, 2**61 + 1], ["STAR", "GALAXY"]
    table.write(tmp_path / "stars.fits")
    options = {"model": small_bundle, "per_star": False, "workers": 0}
    for _ in denoise_survey(tmp_path / "stars.fits", tmp_path / "out", **options):
        pass
    catalogue = Table.read(tmp_path / "out" / "catalogue.ecsv")
    part = Table.read(tmp_path / "out" / "parts" / catalogue["part"][0], hdu="SPECTRA")
    for found in (catalogue, Table({name.lower(): part[name] for name in part.colnames})):
        assert list(found["ra"]) == [1.5, 2.5]
        assert list(found["gaia_id"]) == [2**61, 2**61 + 1]
        assert list(found["survey_class"]) == ["STAR", "GALAXY"]
