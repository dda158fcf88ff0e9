"""Figures show what the result says, no more and no less, and leave everything as it was."""

from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure

import bayesspec
from bayesspec.exceptions import BayesspecError
from bayesspec.inference.draws import Draws
from bayesspec.results.classes import class_styles, plot_latents
from bayesspec.results.diagnostics import Flag
from bayesspec.results.plotting import WARNING

SHOWN = ("velocity_offset", "ebv_excess", "z2")


def text_of(ax):
    return [text.get_text() for text in ax.texts]


@pytest.fixture(scope="module")
def weighted(toy_stellar, toy_stellar_batch):
    """Two stars with 600 draws each, from a normal distribution, of unequal weights that matter."""
    rng = np.random.default_rng(4)
    wavelength, batch = toy_stellar.grid.wavelength, toy_stellar_batch
    stars = [
        bayesspec.Observation(
            wavelength, batch.flux[n, 0].numpy(), ivar=batch.ivar[n, 0].numpy(), name=f"s{n}"
        )
        for n in range(2)
    ]
    point = bayesspec.denoise(stars, model=toy_stellar, method="map", starts=1)
    shape = 2, 1, 600
    sizes = {"z": point.z, "x": point.x, "w": point.w}
    parts = {
        name: (at[:, None, None] + 0.1 * rng.standard_normal((*shape, at.shape[-1]))).astype(np.float32)
        for name, at in sizes.items()
    }
    log_weight = 5 * parts["x"][..., 0]  # moves the mean velocity by half a width
    log_weight -= np.log(np.exp(log_weight).sum(-1, keepdims=True))
    draws = Draws(
        log_scale=np.zeros((*shape, 1), np.float32), log_weight=log_weight.astype(float),
        log_density=np.zeros(shape), **parts,
    )  # fmt: skip
    weight = np.exp(log_weight)[:, 0]
    centre = np.einsum("ns,nsp->np", weight, parts["x"][:, 0])
    width = np.sqrt(np.einsum("ns,nsp->np", weight, (parts["x"][:, 0] - centre[:, None]) ** 2))
    units = toy_stellar.passage.widths.numpy()
    clean = {"warnings": ((), ()), "flags": np.zeros(2, np.int64)}
    return replace(
        point, method="importance", draws=draws, passage=centre * units, passage_std=width * units, **clean
    )


class TestCorner:
    def test_numbers_are_those_of_the_table(self, weighted):
        """Mean and standard deviation by the draws' weights, above each histogram."""
        for n in range(2):
            axes = weighted.plot_corner(n, SHOWN).axes
            for k, name in enumerate(SHOWN[:2]):
                told = axes[4 * k].get_title().replace("\N{MINUS SIGN}", "-").split(r" $\pm$ ")
                row = weighted.table[n]
                error = float(row[f"{name}_err"])
                assert float(told[0]) == pytest.approx(row[name], abs=0.06 * error)
                assert float(told[1]) == pytest.approx(error, rel=0.06)

    def test_histograms_count_draws_by_weight(self, weighted):
        ax = weighted.plot_corner(0, ["velocity_offset"]).axes[0]
        corners = ax.patches[0].get_xy()  # to the right along the tops, and back
        edges = np.unique(corners[:, 0])
        heights = corners[1 : 2 * len(edges) - 2 : 2, 1]
        draws = weighted.draws.x[0, 0, :, 0] * float(weighted.model.passage.widths[0])
        expected, _ = np.histogram(draws, edges, weights=np.exp(weighted.draws.log_weight[0, 0]))
        np.testing.assert_allclose(heights, expected, atol=1e-6)

    def test_equal_weights_are_no_weights(self, weighted):
        even = np.full_like(weighted.draws.log_weight, -np.log(600))
        pair = [
            replace(weighted, draws=replace(weighted.draws, log_weight=w)).plot_corner(0)
            for w in (even, None)
        ]
        for one, other in zip(*(figure.axes for figure in pair), strict=True):
            assert (one.get_title(), one.get_xlim()) == (other.get_title(), other.get_xlim())

    @pytest.mark.parametrize("away", [0.0, 3.0, 100.0, -1e4])
    def test_truths_are_in_the_frame(self, weighted, away):
        mean, error = weighted.passage[0, 0], weighted.passage_std[0, 0]
        value = float(mean + away * error)
        figure = weighted.plot_corner(0, SHOWN, truths={"velocity_offset": value})
        for ax in figure.axes[0:9:3]:
            low, high = ax.get_xlim()
            assert low < value < high
            assert any(np.allclose(line.get_xdata(), value) for line in ax.lines)
        assert not figure.axes[8].lines, "what has no truth has no line"

    def test_axes_have_names_and_units(self, weighted):
        panels = np.array(weighted.plot_corner(0, SHOWN).axes[:9]).reshape(3, 3)
        across, up = [ax.get_xlabel() for ax in panels[-1]], [ax.get_ylabel() for ax in panels[:, 0]]
        assert across == ["Velocity offset\n[km/s]", "E(B$-$V) excess\n[mag]", "$z_{2}$"]
        assert up == ["", *across[1:]]
        other = weighted.plot_corner(0, weighted.model.passage.names[2:]).axes
        assert all("[ln flux]" in ax.get_xlabel() for ax in other[2:4])

    def test_a_star_with_warnings_says_so(self, weighted):
        flags = np.array([0, Flag.NOT_A_STAR | Flag.LOW_SNR])
        doubtful = replace(weighted, warnings=((), ("no star",)), flags=flags)
        sure, unsure = (doubtful.plot_corner(n).get_suptitle() for n in range(2))
        assert (sure, unsure) == ("s0", "s1: low S/N, not a star")

    @pytest.mark.parametrize("size", [3.5, 12])
    def test_own_figure_is_the_one_returned(self, weighted, size):
        figure = Figure(figsize=(size, size))
        assert weighted.plot_corner(0, SHOWN, fig=figure) is figure
        with pytest.raises(BayesspecError, match="has axes already"):
            weighted.plot_corner(0, SHOWN, fig=figure)

    def test_draws_that_are_all_the_same(self, weighted):
        same = replace(weighted.draws, z=np.ones_like(weighted.draws.z))
        figure = replace(weighted, draws=same).plot_corner(0, ["z1", "z2"])
        figure.draw_without_rendering()
        assert figure.axes[0].get_title() == "1.000 $\\pm$ 0.000"

    @pytest.mark.parametrize(
        "given", [{"names": ["z9"]}, {"truths": {"velocity": 3.0}}, {"names": ["z0", "z1"]}]
    )
    def test_unknown_quantities(self, weighted, given):
        with pytest.raises(BayesspecError, match=r"s0: no quantity is called .*velocity_offset.*z1, z2"):
            weighted.plot_corner(0, **given)

    def test_too_few_draws_and_nothing_to_show(self, weighted):
        few = replace(
            weighted.draws, **{n: getattr(weighted.draws, n)[:, :, :2] for n in ("z", "x", "w", "log_weight")}
        )
        with pytest.raises(BayesspecError, match="2 draws cannot show 3 quantities"):
            replace(weighted, draws=few).plot_corner(0, SHOWN)
        with pytest.raises(BayesspecError, match="cannot show 0"):
            weighted.plot_corner(0, [])

    def test_a_point_has_no_corner(self, make_result):
        with pytest.raises(BayesspecError, match=r"'map' gives the point.*there is no corner plot"):
            make_result().plot_corner()


class TestClasses:
    @pytest.fixture
    def flagged(self, make_result):
        flags = np.array([0, Flag.OUTSIDE_MODEL, 0, 0])
        return make_result(stars=4, warnings=((), ("strange",), (), ("odd",)), flags=flags)

    def test_a_bar_for_each_star_is_as_its_probabilities(self, flagged):
        ax = flagged.plot_classes()
        drawn = np.array([[bar.get_width() for bar in bars] for bars in ax.containers]).T
        np.testing.assert_allclose(drawn, flagged.class_probabilities)
        ends = [bars[n].get_x() + bars[n].get_width() for n in range(4) for bars in ax.containers[-1:]]
        np.testing.assert_allclose(ends, 1.0)
        assert [label.get_text() for label in ax.get_yticklabels()] == list(flagged.names)

    def test_a_bar_for_each_class_is_its_probability(self, flagged):
        for n in range(4):
            bars = flagged.plot_classes(n).containers[-1]
            np.testing.assert_allclose([bar.get_width() for bar in bars], flagged.class_probabilities[n])

    def test_no_sure_class_stands_beside_a_flag(self, flagged):
        """A full bar, a name in it, and bold print are for stars without warnings."""
        ax = flagged.plot_classes()
        for n, star in enumerate(flagged):
            bars = [bars[n] for bars in ax.containers]
            row = {text.get_text() for text in ax.texts if round(text.get_position()[1]) == n}
            one = star.plot_classes(0)
            best = one.containers[-1][star.best_class[0]]
            bold = {text.get_text() for text in one.texts if text.get_fontweight() == "bold"}
            if star.warnings[0]:
                assert not row & set(star.classes)
                assert not bold
                assert all(
                    bar.get_hatch() and bar.get_facecolor() == to_rgba("white") for bar in (*bars, best)
                )
                assert to_hex(ax.get_yticklabels()[n].get_color()) == WARNING.lower()
                assert one.get_xlabel()
            else:
                assert row <= set(star.classes)
                assert bold
                assert not any(bar.get_hatch() for bar in (*bars, best))
                assert not one.get_xlabel()
        assert "outside model" in text_of(ax)
        assert "odd" in text_of(ax), "a warning without a flag is not lost"

    def test_axes_that_are_given(self, flagged):
        for i in (None, 2):
            ax = Figure().add_subplot()
            assert flagged.plot_classes(i, ax) is ax

    @pytest.mark.parametrize("stars", [0, 61])
    def test_too_many(self, make_result, stars):
        with pytest.raises(BayesspecError, match=f"1 to 60 stars, not of {stars}"):
            make_result(stars=max(stars, 1))[:stars].plot_classes()

    def test_classes_of_any_name_look_different(self):
        styles = class_styles(("O", "A", "WD", "$x", "mine", "yours"))
        looks = {(to_hex(style["color"]), style["marker"]) for style in styles.values()}
        assert len(looks) == len(styles)


class TestLatents:
    def test_training_stars_are_shown_class_by_class(self, toy_model):
        ax = plot_latents(toy_model, pairs=[(2, 1)]).axes[0]
        assert len(ax.collections) == len(toy_model.classes)
        for shown, centres in zip(ax.collections, toy_model.prior.centres.numpy(), strict=True):
            np.testing.assert_allclose(shown.get_offsets(), centres[:, [1, 0]])

    def test_padded_centres_are_no_stars(self):
        """Of a class with fewer training stars than another."""
        model = bayesspec.load_model("kang2021")
        real = (model.prior.log_weights > -np.inf).sum(-1).tolist()
        assert len(set(real)) > 1
        for ax in plot_latents(model).axes:
            assert [len(shown.get_offsets()) for shown in ax.collections] == real

    @pytest.mark.parametrize(("size", "pairs"), [("toy_model", ["12"]), ("kang2021", ["12", "23"])])
    def test_every_latent_has_a_panel(self, request, size, pairs):
        model = request.getfixturevalue(size) if size == "toy_model" else bayesspec.load_model(size)
        axes = plot_latents(model).axes
        assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in axes] == [
            (f"$z_{{{i}}}$", f"$z_{{{j}}}$") for i, j in pairs
        ]

    def test_stars_are_at_their_latents_and_draws_around(self, weighted):
        ax = weighted.plot_latents().axes[0]
        classes = len(weighted.classes)
        clouds, marks = ax.collections[classes : classes + 2], ax.collections[classes + 2 :]
        expected, _ = weighted.draws.resample(200)
        for n in range(2):
            np.testing.assert_allclose(clouds[n].get_offsets(), expected[n, :, :2], rtol=1e-6)
            np.testing.assert_allclose(marks[n].get_offsets()[0], weighted.z[n], rtol=1e-6)
        assert text_of(ax) == list(weighted.names)

    def test_a_point_has_no_cloud_and_a_warning_is_red(self, weighted):
        point = replace(weighted, draws=None, warnings=(("strange",), ()))
        *_, first, second = point.plot_latents().axes[0].collections
        assert len(first.get_offsets()) == len(second.get_offsets()) == 1
        assert to_hex(first.get_edgecolor()[0]) == WARNING.lower() != to_hex(second.get_edgecolor()[0])

    def test_what_cannot_be_drawn(self, weighted, toy_model, make_result):
        with pytest.raises(BayesspecError, match="toy has the latents 1 to 2, and no latent 0"):
            plot_latents(toy_model, pairs=[(1, 2), (0, 1)])
        figure = Figure()
        assert plot_latents(toy_model, fig=figure) is figure
        with pytest.raises(BayesspecError, match="has axes already"):
            weighted.plot_latents(fig=figure)
        with pytest.raises(BayesspecError, match="has no model"):
            make_result().plot_latents()


FIGURES = {
    "corner": lambda res, i: res.plot_corner(i),
    "classes": lambda res, i: res.plot_classes(i),
    "star": lambda res, i: res.plot(i),
}


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
@pytest.mark.parametrize("i", [2, -3, 10**6])
def test_a_star_that_is_not_there(weighted, figure, i):
    with pytest.raises(BayesspecError, match=rf"no star {i}: the result has 2, counted from 0"):
        figure(weighted, i)


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
@pytest.mark.parametrize("i", [[0, 1], slice(2), 0.0, "s0"])
def test_a_figure_of_one_star_is_of_one(weighted, figure, i):
    with pytest.raises(TypeError):
        figure(weighted, i)


def test_a_notebook_shows_the_value_of_a_cell(weighted):
    """Also where pyplot, which teaches it to show figures, has not drawn any."""
    figures = weighted.plot(), weighted.plot_corner(), weighted.plot_classes().figure, weighted.plot_latents()
    for figure in figures:
        assert figure._repr_png_().startswith(b"\x89PNG")


def test_settings_of_matplotlib_are_as_they_were(weighted):
    from matplotlib import _pylab_helpers

    before, figures = dict(mpl.rcParams), list(_pylab_helpers.Gcf.figs)
    weighted.plot_corner(0)
    weighted.plot_classes()
    weighted.plot_classes(1)
    weighted.plot_latents()
    assert dict(mpl.rcParams) == before
    assert list(_pylab_helpers.Gcf.figs) == figures, "no figure is left behind"
