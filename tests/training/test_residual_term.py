"""Laws of the residual term's training, on a small library whose truth is known."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bayesspec.nn import RobustNoiseNetwork
from bayesspec.nn.residual import WIDTHS
from bayesspec.training.clean import (
    Residuals,
    filled_classes,
    fit_latents,
    less_noise_of_the_clean,
    without_junk,
)
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.inflation import _ratio, bulk, size_spreads, to_bulk
from bayesspec.training.library import StarLibrary
from bayesspec.training.metrics import robust_noise_metrics
from bayesspec.training.recipe import Recipe
from bayesspec.training.residual import ResidualRecipe, fit_residual
from bayesspec.training.shares import most_probable_shares

D = 128
SMALL = ResidualRecipe(patterns=3, components=2, anchors=2, neighbours=100.0, bands=4)
SIZES = np.array([[0.6, 0.3], [2.4, 1.2]])
"""How large the two patterns are in the two classes."""
TAU, NOISE = 0.02, 0.01
"""Standard deviations of e and of the stars' own noise."""
REFERENCE = torch.ones(D)


class LinearGenerator(nn.Module):
    """1 + a straight line of z."""

    latent_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slope", torch.linspace(-1, 1, D)[None])

    def forward(self, z: Tensor) -> Tensor:
        return 1 + z @ self.slope

    def jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self(z), self.slope.T.expand(*z.shape[:-1], -1, -1)


class RoughEncoder(nn.Module):
    """A guess that is some way off."""

    def __init__(self, generator: LinearGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, flux: Tensor, mask: Tensor) -> Tensor:
        slope = self.generator.slope[0]
        return 0.8 * (torch.where(mask, 0.0, flux - 1) @ slope / slope.square().sum())[:, None] + 0.05


def patterns() -> np.ndarray:
    """Two orthonormal patterns that no straight line is like, (2, D)."""
    x = np.linspace(0, 1, D)
    raw = np.stack([np.sin(4 * np.pi * x) ** 2, np.cos(7 * np.pi * x), np.ones(D), x])
    return np.linalg.qr(raw[::-1].T)[0].T[2:]


def library(seed: int, stars: int = 240, larger: float = 1.0) -> StarLibrary:
    """Stars of two classes, apart in z, whose residuals differ in size; `larger` times as large as said."""
    rng = np.random.default_rng(seed)
    klass = np.arange(stars) % 2
    z = np.where(klass, 0.3, -0.3)[:, None] + 0.05 * rng.standard_normal((stars, 1))
    w = SIZES[klass] * rng.standard_normal((stars, 2))
    residual = w @ patterns() + TAU * rng.standard_normal((stars, D))
    flux = 1 + z * np.linspace(-1, 1, D) + larger * residual + NOISE * rng.standard_normal((stars, D))
    names = np.array([f"star {seed}-{n}" for n in range(stars)])
    label, mask = np.full(stars, "observed"), np.zeros((stars, D), bool)
    ivar = np.full((stars, D), NOISE**-2, np.float32)
    snr = np.full(stars, 1 / NOISE, np.float32)
    return StarLibrary(flux.astype(np.float32), ivar, mask, klass, names, label, label, snr)


def fitted(train: StarLibrary, unseen: StarLibrary, recipe: ResidualRecipe = SMALL):
    generator = LinearGenerator()
    encoder = RoughEncoder(generator)
    return fit_residual(generator, encoder, train, unseen, recipe, reference=REFERENCE, seed=0)


@pytest.fixture(scope="module")
def term():
    """Fitted to stars whose unseen fellows are as they are; and the latents of the training stars."""
    return fitted(library(0), library(1, 80))


def sizes(term) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square of the term, and of e, along the spectrum, in the two classes: each (2,)."""
    z, usual = torch.tensor([[-0.3], [0.3]]), torch.zeros(2, term.dim)
    power = (term.local_factor(z).mT @ term.basis.float()).square().sum(1)
    return power.mean(-1).sqrt().numpy(), term.discrepancy(z, usual).square().mean(-1).sqrt().numpy()


def test_patterns_are_found(term):
    """B spans what the residuals of the stars have in common."""
    found = np.linalg.qr(term[0].basis.float().numpy().T)[0]
    cosines = np.linalg.svd(patterns() @ found)[1]
    assert (cosines > 0.98).all()


def test_sizes_are_those_of_the_classes(term):
    """Of the patterns in each class, and of e, within a fifth: four times as large in one as in the other."""
    of_w, of_e = sizes(term[0])
    np.testing.assert_allclose(of_w, np.sqrt((SIZES**2).sum(-1) / D), rtol=0.2)
    np.testing.assert_allclose(of_e, TAU, rtol=0.2)
    for spread in (term[0].spread, term[0].local_spread):  # the least: stars of a class are all of one size
        assert spread == pytest.approx(0.2)
    assert not any(parameter.requires_grad for parameter in term[0].parameters())


def test_mean_follows_the_latent():
    """Residuals that grow with z in a straight line are in the mean, not in the covariance."""
    stars = library(0)
    z = (stars.flux - 1) @ np.linspace(-1, 1, D) / (np.linspace(-1, 1, D) ** 2).sum()
    middle = np.where(stars.klass, 0.3, -0.3)
    grown = stars.flux + (10 * (z - middle))[:, None] * patterns()[0]
    plain, found = (fitted(part, part)[0] for part in (stars, replace(stars, flux=grown.astype(np.float32))))
    at = torch.tensor([[-0.3], [0.3]])
    ahead, behind = (found.local_offset(at + step) @ found.basis.float() for step in (0.02, -0.02))
    slope = ((ahead - behind) / 0.04) @ torch.as_tensor(patterns()[0]).float()
    np.testing.assert_allclose(slope, 10, rtol=0.35)
    np.testing.assert_allclose(sizes(found)[0], sizes(plain)[0], rtol=0.2)


def test_latents_are_those_that_fit_best(term):
    """Gauss-Newton ends at the least squares of a linear generator, wherever it began."""
    generator, stars = LinearGenerator(), library(0)
    left = torch.as_tensor(stars.flux) - 1
    best = left @ generator.slope[0] / generator.slope.square().sum()
    torch.testing.assert_close(term[1][:, 0], best, rtol=0, atol=2e-3)


def test_unseen_stars_inflate(term):
    """Of unseen stars twice as large: sizes grow; half as large: that of the patterns does not shrink."""
    usual = np.array(sizes(term[0]))
    larger = np.array(sizes(fitted(library(0), library(1, 80, larger=2.0))[0]))
    smaller = np.array(sizes(fitted(library(0), library(1, 80, larger=0.5))[0]))
    np.testing.assert_allclose(larger / usual, 2, rtol=0.25)
    np.testing.assert_allclose(smaller[0] / usual[0], 1, rtol=0.2)
    assert (smaller[1] < usual[1]).all()


def drawn(term, log_size: Tensor, widths: Tensor) -> Residuals:
    """Residuals (N, D) of stars at an anchor whose sizes are known, with an e as wide as `widths` (N, D)."""
    rng = torch.Generator().manual_seed(5)
    z = term.anchors[:1].expand(len(log_size), -1)
    w = torch.randn(len(z), term.components, generator=rng)
    e = widths * torch.randn(widths.shape, generator=rng) * term.discrepancy(z, torch.zeros(1, term.dim))
    patterns = (term.local_factor(z) @ w[..., None])[..., 0] @ term.basis.float()
    flux = term.local_offset(z) @ term.basis.float() + (
        log_size if log_size.dim() > 1 else log_size[:, None]
    ).exp() * (patterns + e)
    return Residuals(z, flux, torch.zeros_like(flux), torch.zeros_like(flux, dtype=torch.bool))


def test_spreads_are_those_of_all_stars(term):
    """The root mean square of their log sizes, a twentieth that is seven times as large as usual included."""
    rng = torch.Generator().manual_seed(4)
    log_size = 0.4 * torch.randn(400, generator=rng)
    spread = [0.0, 0.0]
    for n in range(2):
        spread[n], local = map(float, size_spreads(term[0], drawn(term[0], log_size, torch.ones(400, D))))
        assert local < 0.3  # none, but what is found around a knot is not exact
        log_size[:20] = 2.0
    assert spread[0] == pytest.approx(0.4, rel=0.2)
    assert spread[1] == pytest.approx((0.95 * 0.4**2 + 0.05 * 2.0**2) ** 0.5, rel=0.2)


def test_local_spread_is_that_of_the_knots(term):
    """Of stars that are of the usual size on average, and larger here and smaller there."""
    rng = torch.Generator().manual_seed(4)
    local = 0.6 * torch.randn(400, len(term[0].between), generator=rng) @ term[0].between
    of_stars, of_knots = map(float, size_spreads(term[0], drawn(term[0], local, torch.ones(400, D))))
    assert of_knots == pytest.approx(0.6, rel=0.25)
    assert of_stars < 0.35


@pytest.mark.parametrize("truth", [[0, 1.0, 0, 0, 0], [0.5, 0.4, 0.09, 0.01, 0]])
def test_tau_and_shares_say_how_e_is_spread(term, truth):
    """As many pixels are within any multiple of what tau was as tau and shares say; tau is of most of e."""
    rng, truth, widths = torch.Generator().manual_seed(3), torch.tensor(truth), torch.tensor(WIDTHS)
    chosen = torch.multinomial(truth, 400 * D, replacement=True, generator=rng).reshape(400, D)
    residuals = drawn(term[0], torch.zeros(400), widths[chosen])
    changed = copy.deepcopy(term[0])
    to_bulk(changed, residuals)
    left, size = bulk(changed, residuals)
    share = most_probable_shares((left / size).square(), torch.ones(400, D))
    torch.testing.assert_close(share.sum(0), torch.ones(D))
    unit = (changed.log_discrepancy - term[0].log_discrepancy).exp().mean()
    assert (unit < 0.9) == (truth[0] > 0)
    for multiple in (0.3, 1.0, 3.0):
        expected = (truth * torch.erf(multiple / widths / 2**0.5)).sum()
        found = (share.mean(1) * torch.erf(multiple / (unit * widths) / 2**0.5)).sum()
        assert float(found) == pytest.approx(float(expected), abs=0.04)


def test_shares_are_drawn_to_what_is_expected():
    """Of no spectra they are that; of many, what these say; masked pixels say nothing, and none is zero."""
    square = 25 * torch.randn(60, D, generator=torch.Generator().manual_seed(1)).square()
    expected = torch.tensor([0.1, 0.7, 0.1, 0.05, 0.05])[:, None].expand(-1, D)
    observed = torch.ones(60, D)
    by_count = [most_probable_shares(square, observed, expected, n)[3].mean() for n in (1e6, 60.0, 1.0)]
    assert float(by_count[0]) == pytest.approx(0.05, abs=1e-3)
    assert by_count[0] < by_count[1] < by_count[2]
    assert by_count[2] > 0.7

    observed[:, 40:80] = 0
    some = most_probable_shares(square, observed, expected, 3.0)
    torch.testing.assert_close(some[:, 50:70], expected[:, 50:70])
    torch.testing.assert_close(
        some, most_probable_shares(torch.where(observed > 0, square, 1e9), observed, expected, 3.0)
    )
    assert (most_probable_shares(square, observed) > 0).all()


def test_inflation_is_never_below_one():
    """Of any class, seen or not among the unseen; a class of few is drawn to the ratio of all."""
    rng = np.random.default_rng(0)
    klass = np.arange(90) % 3
    seen = rng.gamma(5, 0.2, 90)
    unseen, of = rng.gamma(5, 0.2, 62) * np.r_[np.full(60, 3.0), 0.01, 0.01], np.r_[np.zeros(60, int), 1, 1]
    ratios = _ratio(unseen, seen, of, klass)
    assert ratios.shape == (3,)
    assert (ratios >= 1).all()
    assert ratios[0] == pytest.approx(3, rel=0.2)
    assert ratios[1] < ratios[2] < ratios[0] * 1.01
    assert (_ratio(0.1 * seen, seen, klass, klass) == 1).all()


def test_junk_is_masked():
    """A pixel of a clean spectrum that is far off is left out; almost none of the others is."""
    generator, stars = LinearGenerator(), library(0)
    flux = stars.flux.copy()
    flux[::3, 40] += 3.0
    residuals = fit_latents(generator, RoughEncoder(generator), replace(stars, flux=flux), REFERENCE)
    clean = without_junk(residuals, torch.as_tensor(patterns()).float())
    assert clean.mask[::3, 40].all()
    assert (clean.flux[clean.mask] == 0).all()
    clean.mask[::3, 40] = False
    assert clean.mask.float().mean() < 0.02


def test_a_pixel_of_hardly_any_light_says_nothing_of_e():
    """One star whose noise in a few pixels dwarfs all stars' e does not make it vanish there."""
    stars, unseen = library(0), library(1, 80)
    snr, ivar = stars.snr.copy(), stars.ivar.copy()
    snr[0], ivar[0, 60:70] = 40.0, 1e-4
    usual, spoilt = (
        fitted(replace(stars, snr=snr, ivar=values), unseen)[0].log_discrepancy
        for values in (stars.ivar, ivar)
    )
    assert (spoilt - usual)[60:70].abs().max() < 0.2


def test_masked_library_pixels_have_no_influence():
    """Garbage under the mask changes nothing; seeds repeat."""
    stars, unseen, few = library(0, 60), library(1, 20), replace(SMALL, neighbours=20.0)
    mask = np.random.default_rng(0).random(stars.flux.shape) < 0.05
    states = []
    for junk in (0.0, 1e6, 0.0):
        spoiled = replace(stars, mask=mask, flux=np.where(mask, np.float32(junk), stars.flux))
        states.append(fitted(spoiled, unseen, few)[0].state_dict())
    for other in states[1:]:
        for name, value in other.items():  # sums of BLAS end in other last digits
            torch.testing.assert_close(value, states[0][name], rtol=1e-5, atol=1e-6)


def test_fitting_leaves_the_random_state():
    """Of the caller."""
    before = torch.random.get_rng_state()
    fitted(library(0, 40), library(1, 20), replace(SMALL, neighbours=10.0))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.fixture(scope="module")
def noise() -> NoiseLibrary:
    """Correlated noise of known width, in 60 exposures of 12 epochs; a fiftieth of the pixels is missing."""
    rng = np.random.default_rng(1)
    t = rng.standard_normal((60, D))
    for d in range(1, D):
        t[:, d] = 0.6 * t[:, d - 1] + 0.8 * t[:, d]
    width = rng.uniform(0.05, 0.2, (60, 1)) * np.linspace(0.5, 2, D)
    mask = rng.random(t.shape) < 0.02
    residual, ivar = np.where(mask, 0, t * width), np.where(mask, 0, width**-2)
    epoch = np.repeat([f"7000-{n}" for n in range(12)], 5)
    return NoiseLibrary(residual.astype(np.float32), ivar.astype(np.float32), mask, epoch)


def test_noise_metrics_compare_what_is_comparable(noise):
    """Finite, JSON, over the observed pixels; a flow that is the pipeline's Gaussian scores as that."""
    network = RobustNoiseNetwork(D, kernel=3, channels=8, hidden=4, components=1).requires_grad_(False)
    network.log_scales.zero_()
    train, test = noise.split("train"), noise.split("test")
    metrics = robust_noise_metrics(network, train, test)
    density = metrics["log_density_per_pixel"]
    assert set(density) == {"flow", "pipeline_gaussian", "student_t", "ar3_gaussian"}
    assert np.isfinite(list(density.values())).all()
    assert density["flow"] == pytest.approx(density["pipeline_gaussian"], abs=1e-5)
    assert density["ar3_gaussian"] > density["pipeline_gaussian"] + 0.15  # what AR(1) of 0.6 is worth: 0.22
    assert metrics["terms_used"] == pytest.approx((~test.mask).mean())
    assert set(metrics["epochs"]).isdisjoint(train.epoch)
    assert json.loads(json.dumps(metrics)) == metrics


def test_noise_metrics_leave_out_what_has_no_ivar(noise):
    """Exposures without a pipeline variance are not scored, nor fitted to."""
    network = RobustNoiseNetwork(D, kernel=3, channels=8, hidden=4).requires_grad_(False)
    train, test = noise.split("train"), noise.split("test")
    metrics = robust_noise_metrics(network, train, test)
    blind = replace(test, ivar=0 * test.ivar, residual=100 * test.residual)
    parts = zip(vars(test).values(), vars(blind).values(), strict=True)
    both = NoiseLibrary(*(np.concatenate(pair) for pair in parts))
    assert robust_noise_metrics(network, train, both) == metrics


@pytest.mark.parametrize("name", ["stellar", "kang2021"])
def test_recipes_come_back_from_json(name):
    """Nothing is lost on the way; only one has a residual term."""
    recipe = Recipe.named(name)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.residual == (name == "stellar")
    changed = replace(recipe, residual_term=replace(recipe.residual_term, components=7))
    assert Recipe.from_dict(changed.to_dict()) == changed != recipe


def test_noise_of_clean_spectra_is_the_stars():
    """Above S/N 60, and in classes with few such stars; of others in proportion to what is beyond that."""
    stars = replace(library(0), snr=np.where(np.arange(240) < 120, 120.0, 30.0).astype(np.float32))
    generator = LinearGenerator()
    residuals = fit_latents(generator, RoughEncoder(generator), stars, REFERENCE)
    filled = filled_classes(stars)
    assert not filled.any()
    few = less_noise_of_the_clean(residuals, stars, filled)
    assert (few.variance == 0).all()
    many = less_noise_of_the_clean(residuals, stars, np.ones_like(filled))
    assert (many.variance[:120] == 0).all()
    torch.testing.assert_close(many.variance[120:], 0.75 * residuals.variance[120:])
