"""Laws of the measures: DER_SNR, losses, coverage, equivalent widths, wins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from bayesspec.benchmark.measures.compare import accuracy, confusion, log_score, mean, median, share, wins
from bayesspec.benchmark.measures.coverage import LEVELS, interval_coverage
from bayesspec.benchmark.measures.der_snr import der_snr
from bayesspec.benchmark.measures.losses import clean_variance, squared_loss
from bayesspec.benchmark.report.figures import plot_coverage
from bayesspec.exceptions import BayesspecError
from bayesspec.grid import WavelengthGrid
from bayesspec.results.lines import LINES, equivalent_width

GRID = WavelengthGrid()
NOTHING = np.zeros(GRID.size, bool)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# -- DER_SNR ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.5])
def test_der_snr_of_white_noise_is_its_own(rng, sigma):
    flux = 1 + sigma * rng.standard_normal((50, 2048))
    assert np.median(der_snr(flux, np.zeros(flux.shape, bool))) == pytest.approx(1 / sigma, rel=0.02)


@given(st.floats(1e-20, 1e20), st.integers(0, 100))
def test_der_snr_does_not_depend_on_the_unit(unit, seed):
    flux = 1 + 0.1 * np.random.default_rng(seed).standard_normal(300)
    nothing = np.zeros(300, bool)
    assert der_snr(unit * flux, nothing) == pytest.approx(der_snr(flux, nothing), rel=1e-6)


def test_der_snr_sees_no_masked_pixel_and_no_slope(rng):
    """What stands under the mask is not looked at; a straight line is no noise."""
    flux, mask = 1 + 0.1 * rng.standard_normal((3, 500)), rng.random((3, 500)) < 0.1
    spoiled = np.where(mask, np.nan, flux)
    np.testing.assert_array_equal(der_snr(flux, mask), der_snr(spoiled, mask))
    slope = np.linspace(-1, 1, 500)
    np.testing.assert_allclose(der_snr(flux + slope, mask), der_snr(flux, mask), rtol=0.1)


def test_der_snr_of_nothing_is_0_and_of_no_noise_infinite():
    flux = np.ones((2, 50))
    mask = np.array([[True] * 50, [False] * 50])
    assert der_snr(flux, mask).tolist() == [0.0, np.inf]


# -- losses -----------------------------------------------------------------------------------------------


def test_loss_of_the_truth_is_0_and_of_noise_its_variance(rng):
    truth, mask = rng.uniform(0.5, 2, (20, 2048)), rng.random((20, 2048)) < 0.1
    noisy = truth + 0.1 * rng.standard_normal(truth.shape)
    assert not squared_loss(truth, truth, mask).any()
    np.testing.assert_allclose(squared_loss(noisy, truth, mask), 0.01, rtol=0.2)


def test_masked_pixels_do_not_count(rng):
    truth, mask = np.ones((3, 100)), rng.random((3, 100)) < 0.3
    estimate = truth + 0.1
    spoiled = np.where(mask, 1e9, estimate)
    np.testing.assert_allclose(squared_loss(spoiled, truth, mask), 0.01)
    among = rng.random((3, 100)) < 0.5
    whole = squared_loss(estimate, truth, mask)
    parts = [squared_loss(estimate, truth, mask, part) for part in (among, ~among)]
    np.testing.assert_allclose(whole, parts[0])
    np.testing.assert_allclose(whole, parts[1])


def test_loss_less_the_truths_noise_is_the_loss_against_the_star(rng):
    """Of an estimate that does not know the truth's noise."""
    star, sigma = np.ones((200, 2048)), 0.05
    truth = star + sigma * rng.standard_normal(star.shape)
    estimate = star + 0.03 * rng.standard_normal(star.shape)
    nothing = np.zeros(star.shape, bool)
    own = clean_variance(np.full(star.shape, sigma**-2), nothing)
    corrected = squared_loss(estimate, truth, nothing) - own
    assert corrected.mean() == pytest.approx(squared_loss(estimate, star, nothing).mean(), rel=0.05)
    assert not clean_variance(np.zeros(star.shape), nothing).any()


# -- coverage ---------------------------------------------------------------------------------------------


def test_a_right_posterior_covers_and_others_do_not(rng):
    """One too narrow covers too little, one too wide too much, a biased one too little."""
    truth, draws = rng.normal(0, 1, 2048), rng.normal(0, 1, (1000, 2048))
    right = interval_coverage(draws, truth, NOTHING)
    np.testing.assert_allclose(right.share, LEVELS, atol=0.03)
    np.testing.assert_allclose(right.width[1], 2 * 0.9945, rtol=0.02)
    for posterior, sign in ((draws / 2, -1), (draws * 2, 1), (draws + 2, -1)):
        found = interval_coverage(posterior, truth, NOTHING)
        assert (sign * (found.share - LEVELS) > 0.03).all()


def test_a_coverage_curve_is_what_was_found():
    """On axes that are given or its own; a calibrated posterior lies on the diagonal."""
    shares = {"right": LEVELS, "too narrow": 0.5 * np.array(LEVELS)}
    ax = Figure().add_subplot()
    assert plot_coverage(shares, ax=ax) is ax
    for axes in (ax, plot_coverage(shares)):
        drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
        for name, expected in shares.items():
            np.testing.assert_allclose(drawn[name], np.column_stack([(0, *LEVELS), (0, *expected)]))
    with pytest.raises(BayesspecError, match=r"odd: shares \(2,\) for levels \(4,\)"):
        plot_coverage({"odd": [0.1, 0.2]})


def test_coverage_can_allow_for_the_truths_noise(rng):
    """Right draws of the star cover a noisy truth too little, unless its noise is told."""
    sigma = 1.5
    star = rng.normal(0, 1, 2048)
    truth, draws = star + sigma * rng.standard_normal(2048), rng.normal(0, 1, (1000, 2048))
    plain = interval_coverage(draws, truth, NOTHING)
    allowed = interval_coverage(draws, truth, NOTHING, variance=np.full(2048, sigma**2))
    assert (plain.share < np.array(LEVELS) - 0.1).all()
    np.testing.assert_allclose(allowed.share, LEVELS, atol=0.03)


def test_coverage_sees_no_masked_pixel(rng):
    truth, draws, mask = rng.normal(0, 1, 500), rng.normal(0, 1, (300, 500)), rng.random(500) < 0.3
    spoiled = interval_coverage(np.where(mask, 1e9, draws), np.where(mask, -1e9, truth), mask)
    for a, b in zip(spoiled, interval_coverage(draws, truth, mask), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not interval_coverage(draws, truth, ~mask & mask | True).share.any()


# -- lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LINES)
def test_a_gaussian_line_has_its_area(name):
    """In whatever unit, on whatever slope, in emission with the other sign."""
    line = LINES[name]
    low, high = line.feature[0]
    sigma = (high - low) / 10
    profile = np.exp(-0.5 * ((GRID.wavelength - (low + high) / 2) / sigma) ** 2)
    area = 0.3 * sigma * np.sqrt(2 * np.pi)
    slope = 1 + (GRID.wavelength - 6000) / 1e4
    for unit, sign in ((1.0, 1), (3e-17, 1), (5.0, -1)):
        width, measured = equivalent_width(GRID, unit * slope * (1 - sign * 0.3 * profile), NOTHING, line)
        assert measured
        assert width == pytest.approx(sign * area, rel=0.03)


def test_a_line_with_a_missing_pixel_is_not_measured(rng):
    flux, inside = np.ones((2, 2048)), np.zeros((2, 2048), bool)
    inside[0, np.searchsorted(GRID.wavelength, 6560)] = True
    inside[1, np.searchsorted(GRID.wavelength, 5000)] = True
    width, measured = equivalent_width(GRID, np.where(inside, np.nan, flux), inside, LINES["H alpha"])
    assert measured.tolist() == [False, True]
    assert np.isfinite(width).all()
    blue = WavelengthGrid(4000, 6000, 500)
    assert not equivalent_width(blue, np.ones(500), np.zeros(500, bool), LINES["H alpha"])[1].any()


# -- comparisons ------------------------------------------------------------------------------------------


def test_wins_against_itself_are_a_half_and_turned_round_the_rest(rng):
    ours, theirs = rng.random(40), rng.random(40)
    assert wins(ours, ours).value == 0.5
    assert wins(ours, theirs).value == pytest.approx(1 - wins(theirs, ours).value)
    assert wins(ours, ours + 1)[:3:2] == (1.0, 1.0)


def test_intervals_of_shares_hold_the_truth(rng):
    """About 95 of 100 times."""
    inside = [low <= 0.8 <= high for _, low, high, _ in (share(rng.random(30) < 0.8) for _ in range(2000))]
    assert 0.92 < np.mean(inside) < 0.98


@pytest.mark.parametrize("measure", [mean, median])
def test_medians_and_means_have_errors_that_shrink(rng, measure):
    few, many = measure(rng.normal(5, 1, 20)), measure(rng.normal(5, 1, 2000))
    for found in (few, many):
        assert found.low <= found.value <= found.high
    assert many.high - many.low < (few.high - few.low) / 4
    assert measure(np.array([3.0]))[:3] == (3.0, 3.0, 3.0)
    assert measure(np.full(5, np.inf))[:3] == (np.inf, np.inf, np.inf)


@pytest.mark.parametrize("measure", [share, median, mean])
def test_nothing_has_no_share_and_no_median(measure):
    with pytest.raises(ValueError, match="no "):
        measure(np.array([]))


def test_classes_are_counted(rng):
    klass = rng.integers(0, 4, 100)
    sure = np.eye(4)[klass]
    assert accuracy(sure, klass).value == 1
    assert log_score(sure, klass)[:3] == (0, 0, 0)
    assert log_score(np.full((100, 4), 0.25), klass).value == pytest.approx(np.log(0.25))
    np.testing.assert_array_equal(confusion(sure, klass), np.diag(np.bincount(klass, minlength=4)))
    assert np.isfinite(log_score(1 - sure, klass).value)
