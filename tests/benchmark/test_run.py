"""Laws of a benchmark run: what is found does not depend on interruptions, and says what it should."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import uniform_filter1d

from bayesspec import load_model
from bayesspec.benchmark.report.report import draw_figures, provenance, write_report
from bayesspec.benchmark.report.tables import all_tables, condition_rows
from bayesspec.benchmark.run import INPUT, Bayes, Opponent, run_benchmark
from bayesspec.exceptions import BayesspecError
from bayesspec.training.library import CLASSES


class Smoother:
    """An opponent that costs nothing: a running mean."""

    def __init__(self, width):
        self.name, self.width = f"autoencoder {width}", width

    def denoise(self, flux, ivar, mask):
        seen = uniform_filter1d((~mask).astype(float), self.width, axis=-1)
        mean = uniform_filter1d(np.where(mask, 0.0, flux), self.width, axis=-1)
        return np.divide(mean, seen, out=np.ones_like(mean), where=seen > 1e-9)


class Perfect:
    """Knows the truth of a set."""

    name, key = "perfect", "perfect"

    def __call__(self, data):
        return data.truth.astype(float), None, {}


class Counting:
    """Fails after some parts, as a run that is killed."""

    def __init__(self, inner, allowed):
        self.inner, self.allowed = inner, allowed
        self.name, self.key = inner.name, inner.key

    def __call__(self, data):
        if not self.allowed:
            raise KeyboardInterrupt
        self.allowed -= 1
        return self.inner(data)


@pytest.fixture(scope="module")
def methods(small_bundle, small_sets):
    model = load_model(small_bundle)
    rivals = [Opponent(Smoother(width), f"autoencoder {width}", str(width)) for width in (3, 9)]
    sampled = ("plain",)
    return {
        data.name: [
            Bayes(model, "map", 0),
            *([Bayes(model, "importance", 0)] if data.name in sampled else []),
            *rivals,
            Perfect(),
        ]
        for data in small_sets
    }


@pytest.fixture(scope="module")
def found(small_sets, methods, tmp_path_factory):
    return run_benchmark(small_sets, methods, tmp_path_factory.mktemp("run"))


def same(one, other):
    for name in one:
        for method in one[name].scores:
            for key, value in one[name].scores[method].items():
                np.testing.assert_array_equal(value, other[name].scores[method][key], err_msg=f"{name} {key}")
        for method, flux in one[name].flux.items():
            np.testing.assert_array_equal(flux, other[name].flux[method])


def test_every_method_is_scored_on_every_spectrum(found, small_sets):
    for data in small_sets:
        scored = found[data.name]
        for scores in scored.scores.values():
            for name, value in scores.items():
                assert len(value) == len(data), name
                assert np.isfinite(value).all() or name == "der_snr"
        assert all(seconds > 0 for seconds in scored.seconds.values())
        assert set(scored.data.klass[scored.kept]) == set(data.klass)


def test_the_truth_has_no_loss_and_no_error(found):
    for scored in found.values():
        scores = scored.scores["perfect"]
        assert not scores["loss"].any()
        assert not any(scores[name].any() for name in scores if name.startswith("ew") and "meas" not in name)


def test_resumed_is_as_unbroken(found, small_sets, methods, tmp_path, monkeypatch):
    """Killed anywhere and begun again, in parts of any size: the same numbers, nothing done twice."""
    monkeypatch.setattr("bayesspec.benchmark.run.PART", 3)
    some = [data for data in small_sets if data.name in ("plain", "gaps")]
    budget = 5
    for _ in range(100):
        limited = {name: [Counting(m, budget) for m in methods[name][-3:]] for name in methods}
        try:
            again = run_benchmark(some, limited, tmp_path)
            break
        except KeyboardInterrupt:
            assert not list(tmp_path.glob("runs/*.tmp*"))
    same(again, {name: found[name] for name in again})
    none = {name: [Counting(m, 0) for m in methods[name][-3:]] for name in methods}
    same(run_benchmark(some, none, tmp_path), found)


def test_a_bundle_gives_the_same_in_parts(found, small_sets, methods, tmp_path):
    """Resumed after another set, with the same draws."""
    plain = [data for data in small_sets if data.name == "plain"]
    again = run_benchmark(plain, {"plain": methods["plain"][:2]}, tmp_path)
    for method, scores in again["plain"].scores.items():
        for name, value in scores.items():
            np.testing.assert_array_equal(value, found["plain"].scores[method][name])


def test_another_method_or_set_is_run_anew(small_sets, tmp_path):
    data = small_sets[0]
    first = run_benchmark([data], {data.name: [Opponent(Smoother(3), "rival", "a")]}, tmp_path)
    second = run_benchmark([data], {data.name: [Opponent(Smoother(9), "rival", "b")]}, tmp_path)
    assert (first[data.name].scores["rival"]["loss"] != second[data.name].scores["rival"]["loss"]).any()


def test_masked_pixels_have_no_influence(found, small_sets, methods, tmp_path):
    """What stands in a gap changes no score of any method."""
    data = next(data for data in small_sets if data.name == "interval")
    spoiled = replace(data, flux=np.where(data.mask, np.float32(77.0), data.flux))
    again = run_benchmark([spoiled], {"interval": methods["interval"][:-1]}, tmp_path)["interval"]
    for method, scores in again.scores.items():
        for name, value in scores.items():
            np.testing.assert_allclose(value, found["interval"].scores[method][name], rtol=1e-4, atol=1e-6)


def test_other_classes_are_refused(toy_model):
    with pytest.raises(BayesspecError, match="classes hot, warm, cool"):
        Bayes(toy_model, "map", 0)


def test_conditions_share_out_the_spectra(found):
    """Every spectrum is under one condition of its set."""
    for scored in found.values():
        total = sum(rows.astype(int) for _, rows in condition_rows(scored))
        assert (total == 1).all()
    assert len(list(condition_rows(found["gaps"]))) == 6


@pytest.fixture(scope="module")
def tables(found):
    return all_tables(found, "small map")


def test_tables_agree_with_the_scores(found, tables):
    losses = tables["losses"]
    row = losses[(losses["set"] == "plain") & (losses["class"] == "K") & (losses["method"] == "small map")][0]
    scored = found["plain"]
    own = scored.scores["small map"]["loss"][scored.data.klass == CLASSES.index("K")]
    assert row["loss"] == pytest.approx(np.median(own))
    assert row["spectra"] == len(own)
    perfect = losses[losses["method"] == "perfect"]
    assert not perfect["loss"].any()
    assert not perfect["harmed"].any()
    assert not losses[losses["method"] == INPUT]["harmed"].any()


def test_wins_are_over_all_and_never_against_oneself(tables):
    wins = tables["wins"]
    assert not (wins["method"] == wins["opponent"]).any()
    assert (wins["share"][wins["opponent"] == "perfect"] == 0).all()
    assert ((wins["share_low"] <= wins["share"]) & (wins["share"] <= wins["share_high"])).all()


def test_claims_name_their_numbers(tables):
    """In each class against each autoencoder, DER_SNR; the rest where its condition was run."""
    claims = tables["claims"]
    assert sum("in each class" in row["claim"] for row in claims) == 2
    assert sum("DER_SNR 3" in row["claim"] for row in claims) == 1
    assert sum("800 of 2048" in row["claim"] for row in claims) == 3
    assert all(row["paper"] and row["ours"] for row in claims)


def test_the_report_is_one_file_with_all(found, tables, small_bundle, tmp_path):
    """Nothing is fetched; every table and figure is beside it too."""
    model = load_model(small_bundle)
    figures = draw_figures(model, found, ("small map", "small importance"))
    assert {"latents", "examples", "examples-gap", "gaps", "noise", "calibration", "close-ups"} <= set(
        figures
    )
    for figure, caption in figures.values():
        assert caption
        assert all(ax.get_xlabel() or ax.get_title() or ax.get_title("left") for ax in figure.axes)
    facts = provenance(model, found, recipe="made up")
    report = write_report(tmp_path, tables, figures, facts, "small map")
    text = report.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert text.count("<img") == len(figures) == len(list((tmp_path / "figures").iterdir()))
    assert {path.stem for path in (tmp_path / "tables").iterdir()} == set(tables)
    words = re.sub(r'src="[^"]*"', "", text)
    assert not re.search(r"\b(nan|inf)\b", words, re.IGNORECASE)
    assert model.card["sha256"] in text
    for name in tables["losses"]["method"]:
        assert name in text
