"""SDSS and BOSS files."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal

from bayesspec import read
from bayesspec.exceptions import ReadError
from bayesspec.grid import air_to_vacuum
from bayesspec.io.bits import DOUBTFUL, MISSING, SPPIXMASK
from bayesspec.io.sdss import FLUX_UNIT
from tests.io.conftest import ARMS, COADD_LOGLAM, EXPOSURES, same, sdss, truth

SIZE = len(COADD_LOGLAM)


def test_the_coadd_is_what_was_written():
    star = read(sdss())
    (exposure,) = star.exposures
    assert star.unit == FLUX_UNIT
    assert_allclose(exposure.wavelength, 10**COADD_LOGLAM, rtol=2e-6)
    assert_array_equal(exposure.mask, np.arange(SIZE) % 50 == 7)
    chi = ((exposure.flux - truth(exposure.wavelength)) * np.sqrt(exposure.ivar))[~exposure.mask]
    assert abs(chi.std() - 1) < 0.15


def test_facts_come_from_the_catalogue_or_the_header():
    meta = read(sdss()).meta
    expected = {"survey": "SDSS", "class": "STAR", "subclass": "K3", "plate": 352, "mjd": 51694, "fiber": 30}
    assert {key: meta[key] for key in expected} == expected
    assert meta["redshift"] == pytest.approx(1e-4)
    assert all(type(value) in (str, int, float, tuple, type(None)) for value in meta.values())


def test_each_exposure_joins_its_two_arms():
    star = read(sdss(), exposures="individual")
    assert len(star) == len(EXPOSURES)
    assert star.meta["exposures"] == tuple(f"B1-{n:08d}+R1-{n:08d}" for n in EXPOSURES)
    for exposure in star.exposures:
        assert exposure.wavelength[0] < 3900
        assert exposure.wavelength[-1] > 9100
        chi = ((exposure.flux - truth(exposure.wavelength)) * np.sqrt(exposure.ivar))[~exposure.mask]
        assert abs(chi.std() - 1) < 0.15


@pytest.mark.parametrize("individual", [False, True])
@pytest.mark.parametrize(
    "change", [{"case": str.upper}, {"case": str.title}, {"stripped": True}, {"descending": False}]
)
def test_case_names_and_order_of_pixels_do_not_matter(change, individual):
    exposures = "individual" if individual else "coadd"
    assert same(read(sdss(), exposures=exposures), read(sdss(**change), exposures=exposures))


def test_names_count_for_more_than_positions():
    """Shuffled frames find their partners again; the exposures come in the order of the frames."""
    hdus = sdss()
    shuffled = fits.HDUList([*hdus[:3], hdus[5], hdus[8], hdus[3], hdus[7], hdus[6], hdus[4]])
    straight, other = (read(h, exposures="individual") for h in (hdus, shuffled))
    order = [other.meta["exposures"].index(name) for name in straight.meta["exposures"]]
    for left, k in zip(straight.exposures, order, strict=True):
        assert_array_equal(left.flux, other.exposures[k].flux)


def test_cameras_keywords_name_a_frame_whose_own_name_is_gone():
    hdus = sdss(stripped=True)
    for hdu, camera, n in zip(hdus[3:], ["b1"] * 3 + ["r1"] * 3, EXPOSURES * 2, strict=True):
        hdu.header.update({"CAMERAS": camera, "EXPOSURE": n})
    shuffled = fits.HDUList([*hdus[:6], hdus[8], hdus[7], hdus[6]])
    assert same(read(shuffled, exposures="individual"), read(sdss(), exposures="individual"))


@pytest.mark.parametrize(("gone", "covers"), [("B1-4167", "R"), ("R1-4167", "B")])
def test_a_frame_without_a_partner_stays(gone, covers):
    whole = read(sdss(), exposures="individual")
    part = read(sdss(without={gone}), exposures="individual")
    assert len(part) == 3
    assert f"{covers}1-00004167" in part.meta["exposures"]
    half = part.exposures[part.meta["exposures"].index(f"{covers}1-00004167")]
    assert len(half.wavelength) == len(ARMS[covers])
    for name in ("B1-00004166+R1-00004166", "B1-00004168+R1-00004168"):
        left, right = (star.exposures[star.meta["exposures"].index(name)] for star in (whole, part))
        assert_array_equal(left.flux, right.flux)


def test_a_frame_that_saw_nothing_is_left_out_and_named():
    hdus = sdss()
    hdus[4].data["ivar"] = 0
    star = read(hdus, exposures="individual")
    assert list(star.meta["left_out"]) == ["B1-00004167"]
    assert "R1-00004167" in star.meta["exposures"]
    for hdu in hdus[3:]:
        hdu.data["ivar"] = 0
    with pytest.raises(ReadError, match="no exposure has an observed pixel"):
        read(hdus, exposures="individual")


@pytest.mark.parametrize("strict", [False, True])
def test_the_and_mask_masks_by_the_policy_and_the_or_mask_never(strict):
    """Pixel b has bit b in the and-mask; the or-mask of these files is full of random bits."""
    bits = np.zeros(SIZE, np.int32)
    bits[: len(SPPIXMASK)] = [1 << bit for bit in SPPIXMASK.values()]
    (exposure,) = read(sdss(bits=bits), strict=strict).exposures
    listed = {*MISSING, *DOUBTFUL} if strict else {*MISSING}
    expected = np.arange(SIZE) % 50 == 7
    expected[: len(SPPIXMASK)] |= [name in listed for name in SPPIXMASK]
    assert_array_equal(exposure.mask, expected)


def test_the_mask_of_a_frame_masks_the_frame():
    hdus = sdss()
    hdus[3].data["mask"][100] = 1 << SPPIXMASK["COMBINEREJ"]
    hdus[3].data["mask"][101] = 1 << SPPIXMASK["BRIGHTSKY"]
    hdus[3].data["mask"][:] |= 1 << SPPIXMASK["WHOPPER"]
    lost = 10.0 ** hdus[3].data["loglam"][100]
    first = read(hdus, exposures="individual").exposures[0]
    before = read(sdss(), exposures="individual").exposures[0]
    changed = first.mask != before.mask
    assert changed.sum() == 1
    assert_allclose(first.wavelength[changed], lost, rtol=1e-6)
    assert read(hdus, exposures="individual").meta["flags"] == ("WHOPPER",)


def test_a_coadd_without_and_mask_is_the_first_table():
    hdus = sdss()
    hdus[1].columns.del_col("and_mask")
    assert "and_mask" not in hdus[1].header.values()
    assert same(read(hdus), read(sdss()))
    assert len(read(hdus, exposures="individual")) == 3


def test_wavelengths_in_air_are_converted_if_the_header_or_the_caller_says_so():
    hdus = sdss()
    vacuum = read(hdus).exposures[0].wavelength
    assert_allclose(read(hdus, air=True).exposures[0].wavelength, air_to_vacuum(vacuum))
    hdus[0].header["VACUUM"] = False
    assert_allclose(read(hdus).exposures[0].wavelength, air_to_vacuum(vacuum))
    assert_array_equal(read(hdus, air=False).exposures[0].wavelength, vacuum)


@pytest.mark.parametrize(
    ("change", "exposures", "cause"),
    [
        (lambda h: h[:3], "individual", "no single exposures"),
        (lambda h: fits.HDUList([h[0], *h[3:]]), "coadd", "only single frames"),
        (lambda h: [h[3].columns.del_col("ivar"), h][1], "individual", "B1-00004166: no inverse variance"),
    ],
)
def test_what_a_file_does_not_have_is_an_error(change, exposures, cause):
    hdus = sdss()
    with pytest.raises(ReadError, match=cause):
        read(change(hdus), exposures=exposures)


@pytest.mark.parametrize("exposures", ["coadd", "individual"])
def test_units_in_the_header_count(exposures):
    """As later surveys spell them; a flux per frequency gives the same S/N, and mixed units are refused."""
    plain, hdus = read(sdss(), exposures=exposures), sdss()
    for hdu in (hdus[1], *hdus[3:]):
        hdu.header["TUNIT1"], hdu.header["TUNIT2"] = "10^-17 ergs/s/cm^2/Angs", "log10(Angs)"
        hdu.header["TUNIT3"] = "1 / (10^-17 ergs/s/cm^2/Angs)^2"
    assert same(read(hdus, exposures=exposures), plain)
    for hdu in (hdus[1], *hdus[3:]):
        hdu.header["TUNIT1"] = hdu.header["TUNIT3"] = "mJy"
        hdu.header["TUNIT3"] = "1 / mJy2"
    star = read(hdus, exposures=exposures)
    assert star.unit == u.Unit("erg / (s cm2 Angstrom)")
    assert_allclose(star.snr, plain.snr, rtol=0.05)
    hdus[5].header["TUNIT1"], hdus[5].header["TUNIT3"] = "ct", "ct-2"
    with pytest.raises(ReadError, match="its flux is in ct"):
        read(hdus, exposures="individual")


@pytest.mark.parametrize("kind", [bool, np.uint8])
@pytest.mark.parametrize("name", ["mask", "and_mask"])
def test_a_mask_without_room_for_bits_says_bad_or_good(kind, name):
    bad = np.arange(SIZE) % 3 == 0
    columns = Table({"loglam": COADD_LOGLAM, "flux": truth(10**COADD_LOGLAM), name: bad.astype(kind)})
    assert_array_equal(read(columns).exposures[0].mask, bad)
