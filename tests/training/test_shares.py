"""Laws of the last step of training: how e is spread, on stars and nights whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bayesspec.exceptions import BayesspecError
from bayesspec.nn.residual import WIDTHS
from bayesspec.runtime import seeded
from bayesspec.training import clean
from bayesspec.training.shares import fit_shares

STARS = 16
LINE = slice(40, 60)


@pytest.fixture(scope="module", autouse=True)
def no_edge():
    """A grid of 96 pixels would be nothing but edge, where what sticks out is junk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean, "EDGE", 0)
        yield


@pytest.fixture(scope="module")
def survey(toy_stellar, validation_survey):
    """Stars of two classes whose e is as wide as tau, or twice as wide, and forty times in a line."""
    model, size = toy_stellar, toy_stellar.grid.size
    with seeded(0):
        klass = torch.arange(2 * STARS) % 2
        z = model.prior(klass).sample()
        hw = torch.randn(len(z), model.residual_dim)
        hw[:, 0] = 0
        latents = torch.cat([z, torch.zeros(len(z), model.passage.dim), hw], -1)
        width = torch.where(klass == 1, 2.0, 1.0)[:, None].repeat(1, size)
        width[klass == 1, LINE] = 40.0
        e = width * model.residual.discrepancy(z, hw) * torch.randn(len(z), size)
        flux = (model.spectrum(latents) + e).numpy()
    return validation_survey(flux, klass.numpy(), 0.1)


@pytest.fixture(scope="module")
def shares(toy_stellar, survey):
    return fit_shares(toy_stellar, *survey, seed=0)


def test_shares_are_as_e_is(toy_stellar, shares):
    """Wide where the stars of a class have lines, of which other classes hear little; a size is left to h."""
    assert shares.shape == toy_stellar.residual.share.shape
    torch.testing.assert_close(shares.sum(1), torch.ones(len(shares), toy_stellar.grid.size))
    width = (shares[:2] * torch.tensor(WIDTHS)[:, None].log()).sum(1).exp()
    inner, outer = slice(44, 56), torch.cat([width[:, :36], width[:, 64:]], -1).mean(-1)
    assert ((outer > 0.7) & (outer < 1.4)).all()
    assert width[1, inner].min() > 2.5
    assert width[0, inner].max() < 1.7
    torch.testing.assert_close(shares[2], shares[3])  # of no stars: what all have
    assert not torch.allclose(shares[2], shares[0])


def test_seeds_repeat_and_order_does_not_matter(toy_stellar, survey, shares):
    """The noise of a star is its own."""
    stars, noise = survey
    order = np.random.default_rng(0).permutation(len(stars))
    torch.testing.assert_close(fit_shares(toy_stellar, stars.select(order), noise, seed=0), shares)


def test_without_a_star_of_the_validation_side_it_says_so(toy_stellar, survey, named):
    """Those that the networks were trained on do not count."""
    stars, noise = survey
    elsewhere = replace(stars, star=named("train", len(stars)))
    with pytest.raises(BayesspecError, match="no star with S/N above 60 is on the validation side"):
        fit_shares(toy_stellar, elsewhere, noise, seed=0)
