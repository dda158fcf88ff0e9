"""A result keeps what it was given, in the units of the input, whichever way it is looked at."""

from __future__ import annotations

import copy
import dataclasses
import io

import numpy as np
import pytest
from astropy import units as u
from matplotlib.figure import Figure

from bayesspec.exceptions import BayesspecError
from bayesspec.observation import Observation
from bayesspec.results.plotting import save_figure

ARRAYS = ("flux", "z", "class_probabilities", "chi2", "outlier_score", "scale")


def test_flux_is_in_the_unit_of_the_input(make_result):
    res = make_result()
    np.testing.assert_allclose(res.flux, res.model_flux * res.unit_flux[:, None])
    spectrum = res.to_spectrum(1)
    np.testing.assert_allclose(spectrum.flux.to_value(res.units[1]), res.flux[1])
    np.testing.assert_allclose(spectrum.spectral_axis.to_value(u.AA), res.wavelength)
    assert spectrum.flux.unit == res.units[1]


def test_standard_deviation_follows_the_unit(make_result):
    res = make_result(model_flux_std=np.full((3, 64), 0.1))
    np.testing.assert_allclose(res.flux_std / res.flux, 0.1 / res.model_flux)
    np.testing.assert_allclose(res.to_spectrum(2).uncertainty.array, res.flux_std[2])
    np.testing.assert_array_equal(res[1:].flux_std, res.flux_std[1:])


def test_a_point_estimate_has_no_interval(make_result):
    res = make_result()
    assert res.flux_std is None
    with pytest.raises(BayesspecError, match=r"map.*no 90% interval"):
        res.interval(0.9)


@pytest.mark.parametrize("level", [-0.5, 0, 1, 90, np.nan, np.inf, "0.9", None, True])
def test_levels_that_are_none(make_result, level):
    with pytest.raises(BayesspecError, match="between 0 and 1"):
        make_result().interval(level)


@pytest.mark.parametrize("power", [-37, -18, 0, 20, 37])
def test_the_unit_of_the_flux_is_only_a_unit(make_result, power):
    """Whatever the scale, nothing overflows, and everything is that many times what it was."""
    std, scale = np.full((3, 64), 0.1, np.float32), 10.0**power
    usual, res = (make_result(model_flux_std=std, unit_flux=np.full(3, s, np.float32)) for s in (1.0, scale))
    np.testing.assert_allclose(res.flux, usual.flux * scale, rtol=1e-6)
    np.testing.assert_allclose(res.flux_std, usual.flux_std * scale, rtol=1e-6)
    np.testing.assert_allclose(res.observed.flux, usual.observed.flux * scale, rtol=1e-6)
    np.testing.assert_allclose(res.observed.ivar * scale, usual.observed.ivar / scale, rtol=1e-6)
    np.testing.assert_allclose(res.full_table["scale"], usual.full_table["scale"] * scale, rtol=1e-6)


@pytest.mark.parametrize(
    "index", [0, -1, slice(1, None), slice(None, None, -1), np.array([2, 0]), [True, False, True]]
)
def test_indexing_selects_stars_and_nothing_else(make_result, index):
    res = make_result(warnings=(("first",), (), ("third", "also")))
    part, rows = res[index], np.atleast_1d(np.arange(3)[index])
    assert len(part) == len(rows)
    assert part.names == tuple(res.names[n] for n in rows)
    assert part.warnings == tuple(res.warnings[n] for n in rows)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(part, name), getattr(res, name)[rows])
    for got, expected in zip(part.observed, res.observed, strict=True):
        np.testing.assert_array_equal(got, expected[rows])
    assert part.grid is res.grid


def test_iteration_ends_and_gives_every_star(make_result):
    res = make_result(stars=4)
    assert [star.names[0] for star in res] == list(res.names)
    with pytest.raises(IndexError):
        res[4]


@pytest.mark.parametrize("name", ["z", "warnings", "observed_mask"])
def test_rows_must_fit_the_stars(make_result, name):
    res = make_result(warnings=((),) * 3)
    with pytest.raises(ValueError, match=f"{name} has 2 rows for 3 stars"):
        dataclasses.replace(res, **{name: getattr(res, name)[:2]})


def test_table_has_a_row_per_star(make_result):
    res = make_result(warnings=((), ("a", "b"), ()))
    table = res.full_table
    assert list(table["name"]) == list(res.names)
    assert list(table["class"]) == [res.classes[k] for k in res.best_class]
    np.testing.assert_allclose(table["probability"], res.class_probabilities.max(-1))
    np.testing.assert_allclose(table["scale"], np.abs(res.flux).mean(-1))
    assert list(table["warnings"]) == ["", "a; b", ""]


class TestTable:
    """The short table is the beginning of the full one, and says which stars are doubtful."""

    SHORT = ("name", "ra", "obsid", "snr", "class", "probability", "velocity_offset", "velocity_offset_err",
             "ebv_excess", "ebv_excess_err", "quality")  # fmt: skip

    @pytest.fixture
    def res(self, make_result):
        numbers = np.array([[12.345678, 0.0123456], [-180.0, 0.3], [0.0, -0.1]])
        facts = ({"ra": 10.123456789, "obsid": 7}, {}, {"ra": 2.0})
        return make_result(
            passage=numbers, passage_std=0.1 * np.abs(numbers), facts=facts, flags=np.array([0, 3, 4]),
            warnings=((), ("no star",), ("odd",)), residual_share=np.full(3, 0.2),
        )  # fmt: skip

    def test_has_what_an_astronomer_asks_for_and_no_more(self, res):
        assert tuple(res.table.colnames) == self.SHORT
        assert set(self.SHORT) < set(res.full_table.colnames)
        assert {"chi2", "outlier_score", "log_density", "flags", "warnings"} <= set(res.full_table.colnames)

    def test_says_the_same_as_the_full_one(self, res):
        """Number for number, whatever digits are shown."""
        assert res.table.meta == res.full_table.meta
        for name in self.SHORT:
            np.testing.assert_array_equal(np.ma.asarray(res.table[name]), np.ma.asarray(res.full_table[name]))
            assert res.table[name].unit == res.full_table[name].unit
        assert res.table.pformat(max_width=-1)[-3].split()[2:4] == ["10.12346", "7"]

    def test_quality_is_ok_without_flags_alone(self, res):
        assert list(res.table["quality"]) == ["ok", "low S/N, not a star", "outside class"]
        assert [word == "ok" for word in res.table["quality"]] == [not flags for flags in res.flags]

    def test_snr_is_the_median_of_the_observed_pixels(self, res):
        for n, snr in enumerate(res.table["snr"]):
            flux, ivar, mask = (part[n] for part in res.observed)
            assert snr == pytest.approx(np.median((flux * np.sqrt(ivar))[~mask]))

    def test_unknown_noise_has_no_snr(self, make_result):
        assert not make_result(ivar=False).table["snr"].any()


def test_no_star_is_a_result_too(make_result):
    empty = make_result(failures=((0, "bad", "why"),))[:0]
    assert len(empty) == len(empty.table) == len(list(empty)) == 0
    assert empty.flux.shape == (0, 64)


class TestObserved:
    """Exposures on one scale: the best estimate that uses no model of the star."""

    def test_noiseless_exposures_give_the_star_whatever_their_scales(self, make_result):
        res = make_result(exposures=4)
        exact = np.where(res.observed_mask, 0, res.scale[..., None] * res.model_flux[:, None])
        observed = dataclasses.replace(res, observed_flux=exact).observed
        np.testing.assert_allclose(observed.flux, np.where(observed.mask, 0, res.flux))

    def test_one_exposure_is_itself(self, make_result):
        res = make_result(exposures=1)
        observed, unit = res.observed, res.unit_flux[:, None] / res.scale
        np.testing.assert_array_equal(observed.mask, res.observed_mask[:, 0])
        np.testing.assert_allclose(observed.flux, res.observed_flux[:, 0] * unit)
        np.testing.assert_allclose(observed.ivar, res.observed_ivar[:, 0] / unit**2)

    def test_average_has_the_least_variance(self, make_result):
        res = make_result(exposures=3)
        seen, scale = ~res.observed_mask, res.scale[..., None]
        variance = np.where(seen, 1 / np.where(seen, res.observed_ivar, 1) / scale**2, np.inf)
        expected = (1 / variance).sum(1) / res.unit_flux[:, None] ** 2
        np.testing.assert_allclose(res.observed.ivar, expected)

    def test_unknown_ivar_counts_exposures_alike(self, make_result):
        res = make_result(ivar=False)
        seen = ~res.observed_mask
        count = np.maximum(seen.sum(1), 1)
        mean = np.where(seen, res.observed_flux / res.scale[..., None], 0).sum(1) / count
        np.testing.assert_allclose(res.observed.flux, mean * res.unit_flux[:, None])
        assert not res.observed.ivar.any()

    def test_masked_values_have_no_influence(self, make_result):
        res = make_result()
        junk = {
            name: np.where(res.observed_mask, np.nan, getattr(res, name))
            for name in ("observed_flux", "observed_ivar")
        }
        for got, expected in zip(dataclasses.replace(res, **junk).observed, res.observed, strict=True):
            np.testing.assert_array_equal(got, expected)
            assert np.isfinite(got).all()


def test_plot_leaves_matplotlib_as_it_was(make_result):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    res = make_result()
    assert isinstance(res.plot(1), Figure)
    assert dict(mpl.rcParams) == before
    ax = Figure().add_subplot()
    assert res.plot(0, ax=ax) is ax.figure
    assert {line.get_label() for line in ax.lines} >= {"denoised"}
    part = Figure().subfigures()
    assert res.plot(0, ax=part.add_subplot()) is part.figure, "a part of a figure cannot be saved"


def test_representation_names_the_stars(make_result):
    assert "star 2" in repr(make_result())
    assert repr(make_result(stars=30)).count("\n") < 15


class TestWarnings:
    """Wherever a class is shown, its warnings are beside it."""

    @pytest.fixture
    def flagged(self, make_result):
        return make_result(warnings=((), ("outside the model",), ("chains disagree", "no $tar")))

    def test_representation(self, flagged):
        rows = repr(flagged).splitlines()[1:]
        assert rows[1].endswith("; outside the model")
        assert rows[2].endswith("; chains disagree; no $tar>")

    def test_representation_of_many(self, make_result):
        many = make_result(stars=12, warnings=((),) * 10 + (("odd",), ()))
        assert repr(many).endswith("... 2 more, 1 of them with warnings>")

    def test_spectrum(self, flagged):
        assert [flagged.to_spectrum(n).meta["warnings"] for n in range(3)] == list(
            flagged.full_table["warnings"]
        )

    def test_figure(self, flagged):
        for star in flagged:
            figure = star.plot()
            save_figure(figure, io.BytesIO())
            shown = [text.get_text() for text in figure.texts]
            assert set(star.warnings[0]) <= set(shown)


FIGURES = {
    **{
        f"scale {power}": {"unit_flux": np.array([10.0**power])}
        for power in (-300, -200, -37, -18, 20, 38, 200)
    },
    "constant": {"model_flux": np.ones((1, 64)), "observed_flux": np.ones((1, 2, 64))},
    "nothing": {"model_flux": np.zeros((1, 64)), "observed_flux": np.zeros((1, 2, 64))},
    "not finite": {"model_flux": np.full((1, 64), np.nan)},
    "infinite": {"unit_flux": np.array([np.inf])},
    "name": {"names": ("$\\frac \\udce9 \n 天",)},
    "names of classes": {"classes": ("$\\frac$", *"OBAFGKMCW"), "model_name": "$x_"},
}


@pytest.mark.parametrize("change", FIGURES.values(), ids=FIGURES)
@pytest.mark.parametrize("ivar", [True, False])
def test_no_star_is_without_a_figure(make_result, change, ivar):
    """Of any scale and with any name, finite or not."""
    with np.errstate(all="ignore"):
        figure = make_result(stars=1, ivar=ivar, **change).plot()
        save_figure(figure, buffer := io.BytesIO())
    assert buffer.getvalue().startswith(b"\x89PNG")
    assert all(np.isfinite(ax.get_ylim()).all() for ax in figure.axes)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_copies_are_of_the_same_stars(make_result, how):
    """Of a result, of one of its stars, and of what was observed."""
    res = make_result(warnings=(("first",), (), ()))
    assert res.observed.flux.shape == (3, 64)  # what is computed once is copied or computed anew
    back = how(res)
    assert repr(back) == repr(res)
    for name in (*ARRAYS, "wavelength"):
        np.testing.assert_array_equal(getattr(back, name), getattr(res, name))
    np.testing.assert_array_equal(how(res.star(1)).flux, res.flux[1])
    exposure = Observation(res.wavelength, res.flux[0], name="one")
    assert repr(how(exposure)) == repr(exposure)
    np.testing.assert_array_equal(how(exposure).on_grid(res.grid).flux, exposure.on_grid(res.grid).flux)
    assert how(exposure.on_grid(res.grid)).grid == res.grid
