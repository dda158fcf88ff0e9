"""Laws of the pairs that opponents are tuned on, of the search, and of noise scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bayesspec.benchmark.measures.der_snr import der_noise
from bayesspec.benchmark.opponents.pairs import Pairs, search
from bayesspec.benchmark.opponents.scales import noise_scale, pipeline_factor
from bayesspec.exceptions import BayesspecError
from tests.benchmark.opponents.conftest import GRID, draw_noise, draw_stars


class Given:
    """A denoiser that returns what it was made with."""

    name = "given"

    def __init__(self, spectra: np.ndarray) -> None:
        self.spectra = spectra

    def denoise(self, flux, ivar, mask):
        return self.spectra


def test_pairs_are_stars_and_noise():
    """The same number of every class; what is observed is star plus noise; half have an interval missing."""
    stars, noise = draw_stars(30, 0, missing=0.05), draw_noise(10, 1)
    stars = replace(stars, klass=np.where(np.arange(30) < 3, 7, 2))
    pairs = Pairs.draw(stars, noise, per_class=200, seed=0)
    assert np.bincount(pairs.klass).tolist() == [0, 0, 200, 0, 0, 0, 0, 200]

    difference = pairs.flux - pairs.clean
    seen = ~pairs.mask
    assert np.isin(np.round(difference[seen], 3), np.round(noise.residual[~noise.mask], 3)).mean() > 0.9
    assert (pairs.known | pairs.mask).all()
    assert not pairs.flux[pairs.mask].any()
    assert not pairs.ivar[pairs.mask].any()
    assert 0.35 < np.mean(pairs.mask.mean(-1) > 0.15) < 0.5

    assert np.array_equal(pairs.flux, Pairs.draw(stars, noise, per_class=200, seed=0).flux)
    assert not np.array_equal(pairs.flux, Pairs.draw(stars, noise, per_class=200, seed=1).flux)


def test_nothing_to_pair_is_refused():
    stars, noise = draw_stars(4, 0), draw_noise(2, 1)
    with pytest.raises(BayesspecError, match="got 0 and 2"):
        Pairs.draw(stars.select(np.zeros(4, bool)), noise, per_class=1, seed=0)


def test_score_is_zero_for_the_truth_and_counts_classes_alike():
    """Twice the error, four times the score; an outlier that is no median does not count."""
    pairs = Pairs.draw(draw_stars(30, 0), draw_noise(10, 1), per_class=11, seed=0)
    assert pairs.score(Given(pairs.clean)) < 1e-29
    assert pairs.score(Given(pairs.clean + 0.1)) == pytest.approx(0.01, rel=1e-4)
    assert pairs.score(Given(pairs.clean + 0.2)) == pytest.approx(0.04, rel=1e-4)
    spoiled = pairs.clean + 0.1
    spoiled[0] += 1e3
    assert pairs.score(Given(spoiled)) == pytest.approx(0.01, rel=1e-4)


def test_pixels_of_the_truth_that_are_not_known_do_not_count():
    pairs = Pairs.draw(draw_stars(30, 0, missing=0.2), draw_noise(10, 1), per_class=5, seed=0)
    np.testing.assert_allclose(pairs.losses(Given(np.where(pairs.known, pairs.clean, 1e9))), 0)


def test_search_finds_the_best_of_settings_that_do_not_interact():
    """And of two that do, one that no change of a single setting makes better."""
    pairs = Pairs.draw(draw_stars(10, 0), draw_noise(4, 1), per_class=3, seed=0)

    def build(a: float, b: float) -> Given:
        return Given(pairs.clean + 1 + (a - 3) ** 2 + (b - 2) ** 2)

    assert search(build, {"a": range(6), "b": range(5)}, pairs) == {"a": 3, "b": 2}
    assert search(build, {"a": [5], "b": [0]}, pairs) == {"a": 5, "b": 0}


def test_scales_are_those_of_the_noise():
    """By wavelength, with cosmic rays and masked pixels among it, and amplitudes that differ by exposure."""
    noise = draw_noise(400, 0, outliers=0.02)
    scale = noise_scale(noise)
    expected = np.geomspace(0.2, 0.04, GRID.size)
    np.testing.assert_allclose(scale / scale.mean(), expected / expected.mean(), rtol=0.15)
    np.testing.assert_allclose(pipeline_factor(noise), 1, rtol=0.15)
    np.testing.assert_allclose(pipeline_factor(replace(noise, ivar=4 * noise.ivar)), 2, rtol=0.15)
    np.testing.assert_array_equal(pipeline_factor(replace(noise, ivar=0 * noise.ivar)), 1)


def test_noise_level_is_blind_to_slopes_and_masked_pixels():
    rng = np.random.default_rng(0)
    flux = np.linspace(0, 50, 4096) + 0.3 * rng.standard_normal((5, 4096))
    mask = rng.random(flux.shape) < 0.1
    np.testing.assert_allclose(der_noise(np.where(mask, 1e9, flux), mask)[0], 0.3, rtol=0.1)
    np.testing.assert_array_equal(der_noise(flux, mask | True)[0], 0)
