"""Laws of the last step of training: how large residuals are where nothing is seen."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from bayesspec.exceptions import BayesspecError
from bayesspec.runtime import seeded
from bayesspec.training.unseen import TYPICAL, Errors, fit_unseen_sizes, most_probable_sizes

STARS = 24


@pytest.fixture(scope="module")
def rigid(toy_stellar):
    """The toy model, sure of the size of residuals: what is seen of a star does not tell it."""
    model = copy.deepcopy(toy_stellar)
    model.residual.spread.fill_(1e-3)
    return model


@pytest.fixture(scope="module")
def survey(rigid, validation_survey):
    """Stars of two classes; residuals of the second are four times as large as the model thinks."""
    size = rigid.grid.size
    with seeded(0):
        klass = torch.arange(STARS) % 2
        z = rigid.prior(klass).sample()
        hw = torch.randn(len(z), rigid.residual_dim)
        hw[:, 1:] *= torch.where(klass == 1, 4.0, 1.0)[:, None]
        width = torch.where(klass == 1, 4.0, 1.0)[:, None] * rigid.residual.discrepancy(z, hw)
        latents = torch.cat([z, torch.zeros(len(z), rigid.passage.dim), hw], -1)
        flux = (rigid.spectrum(latents) + width * torch.randn(len(z), size)).numpy()
    return validation_survey(flux, klass.numpy(), 0.05)


@pytest.fixture(scope="module")
def sizes(rigid, survey):
    return fit_unseen_sizes(rigid, *survey, seed=0)


def test_a_class_whose_errors_are_larger_has_a_larger_size(rigid, sizes):
    """Where they are as the model thinks there is little to mend; classes of no star are as all others."""
    assert sizes.shape == rigid.residual.unseen_size.shape
    assert abs(float(sizes[0, 0])) < 0.35
    assert 0.5 < float(sizes[1, 0]) < 1.5
    assert sizes[0, 0] < sizes[2, 0] < sizes[1, 0]
    assert (sizes[2:] == sizes[2]).all()


def test_seeds_repeat_and_what_was_there_before_does_not_matter(rigid, survey, sizes):
    """Nor does the order of the stars."""
    stars, noise = survey
    used = copy.deepcopy(rigid)
    used.residual.unseen_size.fill_(0.7)
    order = np.random.default_rng(0).permutation(len(stars))
    torch.testing.assert_close(
        fit_unseen_sizes(used, stars.select(order), noise, seed=0), sizes, rtol=0, atol=0.06
    )


def drawn(count: int, mean: float, spread: float, seed: int, pixels: int = 300) -> list[Errors]:
    """Errors whose log size is drawn for each star, in full where a pixel is remote."""
    rng = torch.Generator().manual_seed(seed)
    remote = torch.linspace(0, 1, pixels)
    log_size = mean + spread * torch.randn(count, 1, generator=rng)
    square = ((remote * log_size).exp() * torch.randn(count, pixels, generator=rng)).square()
    return [Errors(one, remote) for one in square]


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 0.0), (0.8, 0.0), (-0.3, 0.5), (0.5, 0.4)])
def test_sizes_are_found(mean, spread):
    found = most_probable_sizes(
        drawn(200, mean, spread, 0), np.zeros(200, int), np.arange(200).astype(str), 1
    )
    assert abs(float(found[0, 0]) - mean) < 0.1
    assert abs(float(found[0, 1]) - spread) < 0.12


def test_few_stars_are_drawn_to_all_others():
    """One star of a class says less of it than its many pixels would; twenty spectra of it say no more."""
    many, one = drawn(100, 0.0, 0.1, 1), drawn(1, 1.2, 0.0, 2)
    klass = np.r_[np.zeros(100, int), 1]
    alone = most_probable_sizes(many + one, klass, np.arange(101).astype(str), 3)
    assert abs(float(alone[0, 0])) < 0.1
    assert 0.1 < float(alone[1, 0]) < 1.15
    again = most_probable_sizes(
        many + 20 * one, np.r_[klass, np.ones(19, int)], np.r_[np.arange(101), [100] * 19].astype(str), 3
    )
    torch.testing.assert_close(again, alone)
    assert TYPICAL > 1


def test_pixels_that_are_seen_say_nothing():
    """Of no remoteness: any size is as probable there."""
    errors = drawn(50, 0.5, 0.0, 3)
    with_seen = [
        Errors(torch.cat([e.square, torch.full((300,), 9.0)]), torch.cat([e.remote, torch.zeros(300)]))
        for e in errors
    ]
    klass, star = np.zeros(50, int), np.arange(50).astype(str)
    found = [most_probable_sizes(some, klass, star, 1) for some in (with_seen, errors)]
    torch.testing.assert_close(*found, rtol=0, atol=0.051)  # the next of those tried, where two are even


def test_without_a_star_of_the_validation_side_it_says_so(rigid, survey):
    stars, noise = survey
    elsewhere = stars.select(np.array([], int))
    with pytest.raises(BayesspecError, match="no star with S/N above 60 is on the validation side"):
        fit_unseen_sizes(rigid, elsewhere, noise, seed=0)
