"""Laws of the probabilistic principal components."""

from __future__ import annotations

import numpy as np
import pytest

from bayesspec.benchmark.opponents.pairs import Pairs
from bayesspec.benchmark.opponents.pca import ProbabilisticPCA
from bayesspec.exceptions import BayesspecError
from tests.benchmark.opponents.conftest import GRID, basis, draw_noise, draw_stars


def in_span(n: int, seed: int = 9) -> np.ndarray:
    mean, components = basis()
    return mean + np.random.default_rng(seed).normal(0, 0.7, (n, 3)) @ components


def known(blend: float = 1.0, dof: float = 1e9) -> ProbabilisticPCA:
    """The true model, next to Gaussian, nothing unique to a pixel, a calibrated pipeline."""
    mean, components = basis()
    ones = np.ones(GRID.size)
    return ProbabilisticPCA(mean, components, 1e-12 * ones, ones, ones, blend=blend, dof=dof)


def test_the_span_comes_back():
    """Noise-free spectra in the span are returned, whole and with a third missing, in any unit."""
    truth = in_span(20)
    ivar = np.full(truth.shape, 1e8)
    mask = np.zeros(truth.shape, bool)
    np.testing.assert_allclose(known().denoise(truth, ivar, mask), truth, atol=2e-4)
    mask[:, 50:92] = True
    seen = np.where(mask, 0, 7 * truth)
    np.testing.assert_allclose(known().denoise(seen, ivar / 49, mask) / 7, truth, atol=5e-3)


def test_posterior_mean_is_that_of_the_dense_gaussian():
    """With Gaussian noise: conditioning a dense joint normal, scale included, on the observed pixels."""
    rng = np.random.default_rng(3)
    mean, components = basis()
    psi = rng.uniform(1e-3, 4e-3, GRID.size)
    sigma = rng.uniform(0.05, 0.2, (6, GRID.size))
    model = ProbabilisticPCA(mean, components, psi, 1 + 0 * psi, 1 + 0 * psi, dof=1e9)
    noisy = in_span(6) + np.sqrt(psi) * rng.standard_normal(sigma.shape)
    noisy += sigma * rng.standard_normal(sigma.shape)
    mask = rng.random(sigma.shape) < 0.1
    unit = (noisy * ~mask).sum(-1) / (~mask).sum(-1)

    clean = model.denoise(noisy, sigma**-2, mask)
    scale = 1.0
    for row, seen in enumerate(~mask):
        y, variance = noisy[row] / unit[row], (sigma[row] / unit[row]) ** 2
        for _ in range(20):  # the scale at which the coefficients' prior is as wide as the scale says
            prior = scale**2 * (components.T @ components + np.diag(psi)) + np.outer(mean, mean)
            gain = np.linalg.solve(prior[np.ix_(seen, seen)] + np.diag(variance[seen]), (y - mean)[seen])
            scale = 1 + mean[seen] @ gain
        np.testing.assert_allclose(clean[row], unit[row] * (mean + prior[:, seen] @ gain), atol=1e-6)


def test_fit_finds_the_span_through_gaps(noise):
    """Components of stars that lack a fifth of their pixels span what the stars were drawn from."""
    mean, components = basis()
    model = ProbabilisticPCA.fit(draw_stars(200, 0, missing=0.2), noise, components=3, seed=0)
    np.testing.assert_allclose(model.mean, mean, atol=0.06)
    _, _, found = np.linalg.svd(model.components, full_matrices=False)
    outside = components - components @ found.T @ found
    assert np.linalg.norm(outside) < 0.02 * np.linalg.norm(components)
    # The prior is as wide as the stars are: their variance, and 1e-3 of each pixel's own.
    drawn = draw_stars(2000, 1).flux.var(0)
    np.testing.assert_allclose((model.components**2).sum(0) + model.uniqueness, drawn, rtol=0.25, atol=1e-3)
    assert np.median(model.uniqueness) < 1e-5


def test_components_are_orthogonal_and_ordered(stars, noise):
    """Principal: no two overlap, the widest first."""
    model = ProbabilisticPCA.fit(stars, noise, components=3, seed=0)
    gram = model.components @ model.components.T
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-8 * gram.max())
    assert (np.diff(np.diag(gram)) < 0).all()


def test_same_seed_same_fit(stars, noise):
    first, second = (ProbabilisticPCA.fit(stars, noise, components=2, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.components, second.components)
    np.testing.assert_array_equal(first.uniqueness, second.uniqueness)


def test_more_components_fit_unseen_stars_better(stars, noise, pairs):
    scores = [
        pairs.score(ProbabilisticPCA.fit(stars, noise, components=k, seed=0).tune(pairs)) for k in (1, 2, 3)
    ]
    assert scores[0] > scores[1] > scores[2]


def test_a_cosmic_ray_costs_a_bounded_amount():
    """Under heavy tails a spike may grow without end; under a Gaussian it drags the spectrum along."""
    truth, mask = in_span(5), np.zeros((5, GRID.size), bool)
    ivar = np.full(truth.shape, 100.0)

    def moved(dof: float, height: float) -> float:
        spiked = truth.copy()
        spiked[:, 80] += height
        unit = spiked.mean(-1, keepdims=True)
        return float(np.abs(known(dof=dof).denoise(spiked, ivar, mask) / unit - truth).max())

    assert moved(4.0, 8.0) < 0.5 * moved(1e9, 8.0)


def test_without_ivar_the_amplitude_is_found():
    """A spectrum that comes without ivar is cleaned as well as one that brings the right one."""
    rng = np.random.default_rng(0)
    truth = in_span(200)
    for sigma in (0.03, 0.3):
        noisy = truth + sigma * rng.standard_normal(truth.shape)
        mask = np.zeros(truth.shape, bool)
        told = known().denoise(noisy, np.full(truth.shape, sigma**-2), mask)
        untold = known().denoise(noisy, 0 * truth, mask)
        losses = [((clean - truth) ** 2).mean() for clean in (told, untold)]
        assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_the_pipeline_is_used_where_it_is_told_to_be():
    """A pixel that the pipeline calls useless has no influence, but only if its word counts."""
    truth, mask = in_span(1), np.zeros((1, GRID.size), bool)
    spoiled = truth.copy()
    spoiled[:, 80:90] += 0.5
    spoiled[:, 30:40] -= 0.5  # the mean stays
    ivar = np.full(truth.shape, 1e4)
    ivar[:, 80:90] = ivar[:, 30:40] = 1e-4
    error = [np.abs(known(blend).denoise(spoiled, ivar, mask) - truth).max() for blend in (1.0, 0.0)]
    assert error[0] < 0.02 < error[1]


def test_tuning_never_loses(stars, noise, pairs):
    """On the pairs it is tuned on, the tuned model is no worse than the default."""
    plain = ProbabilisticPCA.fit(stars, noise, components=3, seed=0)
    assert pairs.score(plain.tune(pairs)) <= pairs.score(plain)


def test_uncalibrated_pipelines_are_calibrated(stars):
    """An ivar that is four times too large everywhere is noticed in the training exposures."""
    from dataclasses import replace

    noise = draw_noise(100, 5, outliers=0.0)
    wrong = replace(noise, ivar=noise.ivar * 4)
    model = ProbabilisticPCA.fit(stars, wrong, components=2, seed=0)
    np.testing.assert_allclose(model.factor, 2, rtol=0.3)
    unseen = draw_noise(30, 6, outliers=0.0)
    told, wrongly = (
        Pairs.draw(draw_stars(40, 7), n, per_class=20, seed=0)
        for n in (unseen, replace(unseen, ivar=unseen.ivar * 4))
    )
    right = ProbabilisticPCA.fit(stars, noise, components=2, seed=0)
    assert wrongly.score(model) == pytest.approx(told.score(right), rel=0.05)


def test_too_few_stars_are_refused(stars, noise):
    with pytest.raises(BayesspecError, match="20 components need more than 10 stars"):
        ProbabilisticPCA.fit(stars.select(np.arange(10)), noise, components=20, seed=0)
