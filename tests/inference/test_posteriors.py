"""Laws of `denoise` with a method that draws: one posterior, in the units of the input."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

import bayesspec
from bayesspec.distributions import NoiseFlow
from bayesspec.exceptions import BayesspecError
from bayesspec.inference.draws import Draws
from bayesspec.runtime import seeded


@pytest.fixture(scope="module")
def stars(toy_model):
    """A complete spectrum, one with a gap, and one of two exposures with units of their own."""
    size = toy_model.grid.size
    with seeded(2):
        clean = toy_model.generator(toy_model.prior(torch.tensor([0, 1, 2])).sample())
        noisy = NoiseFlow(clean[:, None].expand(-1, 2, -1), toy_model.noise).sample().numpy()
    wavelength = toy_model.grid.wavelength
    gap = np.zeros(size, bool)
    gap[30:50] = True
    halves = [
        bayesspec.Observation(wavelength[:48], 5 * noisy[2, 0, :48]),
        bayesspec.Observation(wavelength[40:], 9 * noisy[2, 1, 40:]),
    ]
    return [
        bayesspec.Observation(wavelength, 20 * noisy[0, 0], name="complete"),
        bayesspec.Observation(wavelength, 20 * noisy[1, 0], mask=gap, name="gap"),
        bayesspec.Observation.from_exposures(halves, name="halves"),
    ]


@pytest.fixture(scope="module")
def result(toy_model, stars):
    return bayesspec.denoise(stars, model=toy_model, method="importance", draws=2048, starts=3)


def flux_by_hand(result, n):
    """Every draw's spectrum in the unit of the input, and the draws' weights."""
    star = result[n]
    with torch.no_grad():
        spectra = result.model.generator(torch.as_tensor(star.draws.z[0, 0])).numpy()
    pixels = (~star.observed_mask[0]).sum(-1)
    unit = np.exp(star.draws.log_scale[0, 0]) @ (pixels * star.exposure_unit[0]) / pixels.sum()
    return spectra * unit[:, None], np.exp(star.draws.log_weight[0, 0])


def test_flux_is_the_mean_of_the_draws_and_has_their_width(result):
    """In the unit of the input, with the uncertainty of the scale where it is free."""
    for n in range(3):
        flux, weight = flux_by_hand(result, n)
        mean = weight @ flux
        np.testing.assert_allclose(result.flux[n], mean, rtol=1e-3, atol=1e-3)
        std = np.sqrt(weight @ (flux - mean) ** 2)
        np.testing.assert_allclose(result.flux_std[n], std, rtol=0.01, atol=1e-3)


def test_classes_are_those_of_all_draws(result):
    """p(C | y) = E[p(C | z)], and the best class is its largest."""
    for n in range(3):
        by_class = result.model.log_joint_classes(torch.as_tensor(result.draws.z[n, 0])).softmax(-1).numpy()
        expected = np.exp(result.draws.log_weight[n, 0]) @ by_class
        np.testing.assert_allclose(result.class_probabilities[n], expected, atol=1e-5)
    assert (result.best_class == result.class_probabilities.argmax(-1)).all()


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_hold_their_share_of_the_draws(result, level):
    """The weight of the draws between lower and upper end is the level, at every pixel."""
    lower, upper = result.interval(level)
    for n in range(3):
        flux, weight = flux_by_hand(result, n)
        inside = weight @ ((flux >= lower[n]) & (flux <= upper[n]))
        np.testing.assert_allclose(inside, level, atol=0.05)


def test_a_slice_is_the_result_of_its_stars(result):
    """Draws, intervals and diagnostics go with the star."""
    np.testing.assert_array_equal(result[1:].draws.z, result.draws.z[1:])
    np.testing.assert_allclose(result[2].interval()[0][0], result.interval()[0][2], rtol=1e-5)
    for name in ("pareto_k", "ess_bulk"):
        np.testing.assert_array_equal(result[1].full_table[name], result.full_table[name][1:2])


def test_products_hold_the_standard_deviation(result, tmp_path):
    """A column FLUX_STD in every star's file."""
    from astropy.table import Table

    folder = result.write(tmp_path)
    table = Table.read(folder / "gap.denoised.fits", hdu="SPECTRUM")
    np.testing.assert_allclose(table["FLUX_STD"], result.flux_std[1], rtol=1e-5)
    summary = Table.read(folder / "summary.ecsv")
    assert {"pareto_k", "ess_bulk"} <= set(summary.colnames)


def test_both_engines_of_the_mode_agree(toy_model, stars):
    """Second-order steps and AutoDelta end at one optimum."""
    fast = bayesspec.denoise(stars, model=toy_model, starts=3)
    slow = bayesspec.denoise(stars, model=toy_model, engine="autodelta", starts=3, steps=200)
    np.testing.assert_array_less(slow.log_density - 0.05, fast.log_density)
    with pytest.raises(BayesspecError, match="no engine is called 'magic'"):
        bayesspec.denoise(stars, model=toy_model, engine="magic")


@pytest.mark.parametrize("method", ["map", "importance"])
def test_class_weights_are_the_prior(toy_model, stars, method):
    """A class of weight 0 has probability 0; multiplying all weights changes nothing."""
    options = {} if method == "map" else {"draws": 256}
    uniform = bayesspec.denoise(stars, model=toy_model, method=method, **options)
    tripled = bayesspec.denoise(stars, model=toy_model, method=method, class_weights=[3, 3, 3], **options)
    np.testing.assert_allclose(tripled.class_probabilities, uniform.class_probabilities, atol=1e-4)
    without = bayesspec.denoise(stars, model=toy_model, method=method, class_weights={"warm": 0}, **options)
    assert (without.class_probabilities[:, 1] == 0).all()
    assert (without.best_class != 1).all()
    assert np.isfinite(without.flux).all()
    assert (toy_model.class_logits == 0).all()


def test_class_weights_follow_bayes(toy_model, stars, result):
    """Posterior odds and evidence under other weights follow from those under equal ones."""
    weights = np.array([1.0, 5.0, 0.2])
    other = bayesspec.denoise(
        stars, model=toy_model, method="importance", draws=2048, starts=3, class_weights=weights
    )
    expected = result.class_probabilities * weights
    total = expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(other.class_probabilities, expected / total, atol=0.02)
    change = other.draws.log_evidence - result.draws.log_evidence
    np.testing.assert_allclose(change, np.log(total[:, 0] / weights.mean()), atol=0.05)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"Carbon": 1}, "no class Carbon"),
        ([1, 1], "3 weights needed, 2 given"),
        ([1, -1, 1], "positive or zero"),
        ([0, 0, 0], "positive or zero"),
        ([1, np.nan, 1], "positive or zero"),
    ],
)
def test_class_weights_that_are_none_are_refused(toy_model, stars, weights, message):
    """With an error that says why."""
    with pytest.raises(BayesspecError, match=message):
        bayesspec.denoise(stars, model=toy_model, class_weights=weights)


@pytest.mark.parametrize("weighted", [False, True])
def test_resampling_takes_whole_draws(weighted):
    """Latents and scales stay together, and each draw comes as often as its weight says, to one."""
    n, chains, draws, count = 2, 3, 5, 40
    number = np.arange(n * chains * draws, dtype=np.float32).reshape(n, chains, draws, 1)
    weight = (
        np.random.default_rng(0).gamma(1.0, size=(n, chains, draws))
        if weighted
        else np.ones(number.shape[:3])
    )
    weight /= weight.sum((1, 2), keepdims=True)
    log_weight = np.log(weight) if weighted else None
    none = number[..., :0]
    every = Draws(number, -number, none, none, log_weight, np.zeros(number.shape[:3]))
    latents, log_scale = every.resample(count, seed=1)
    assert latents.shape == log_scale.shape == (n, count, 1)
    assert (latents == -log_scale).all()
    for star in range(n):
        times = (latents[star] == number[star].reshape(1, -1)).sum(0)
        assert (np.abs(times - count * weight[star].ravel()) < 1 + 1e-9).all()


def test_a_star_s_draws_are_its_own_in_every_column():
    """What is selected is of these stars, and stars apart are what they were together."""

    def of_star(*shape):
        return np.arange(3.0).reshape(3, *[1] * len(shape)) * np.ones((3, *shape))

    sampled, each = (of_star(2, 4, size) for size in (3, 2, 1, 5)), of_star(2, 4)
    known = {"log_evidence": of_star(), "diagnostics": {"r_hat": of_star()}}
    statistics = {"sample_stats": {"energy": each}, "warmup_stats": {"energy": of_star(2, 7)}}
    every = Draws(*sampled, each, each, **known, **statistics)

    def numbers(draws):
        columns = [getattr(draws, field.name) for field in fields(draws)]
        return [a for column in columns for a in (column.values() if isinstance(column, dict) else [column])]

    for star in range(3):
        assert all((column == star).all() for column in numbers(every.select(np.array([star]))))
    again = Draws.concatenate([every.select(np.array(rows)) for rows in ([0], [1, 2])])
    for one, other in zip(numbers(again), numbers(every), strict=True):
        np.testing.assert_array_equal(one, other)
