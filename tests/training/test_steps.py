"""Laws of the four steps, on small libraries whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from bayesspec.exceptions import BayesspecError
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.generator import GeneratorRecipe, encode, train_generator
from bayesspec.training.library import CLASSES, StarLibrary
from bayesspec.training.metrics import generator_metrics, noise_metrics
from bayesspec.training.noise import NoiseRecipe, train_noise
from bayesspec.training.prior import fit_prior
from bayesspec.training.recipe import Recipe

SMALL = GeneratorRecipe(
    latent_dim=2,
    hidden=32,
    channels=(16, 8),
    strides=(4, 4),
    encoder_channels=(8, 16),
    steps=700,
    batch_size=64,
)


@pytest.fixture(scope="module")
def library():
    """400 spectra on a curved surface of two dimensions, ten classes along it, a fifth with a gap."""
    rng = np.random.default_rng(0)
    u = rng.uniform(-0.5, 0.5, (400, 2))
    x = np.linspace(0, 1, 128)
    flux = 1 + 0.7 * u[:, :1] * np.sin(2 * np.pi * (x + 0.3 * u[:, 1:])) + 0.7 * u[:, 1:] * np.cos(6 * x)
    mask = np.zeros(flux.shape, bool)
    mask[::5, 80:] = True
    flux /= np.where(mask, 0, np.abs(flux)).sum(-1, keepdims=True) / (~mask).sum(-1, keepdims=True)
    names = np.array([f"star {n}" for n in range(400)])
    label = np.full(400, "made up")
    klass = np.clip(((u[:, 0] + 0.5) * 10).astype(int), 0, 9)
    flux = np.where(mask, 0, flux).astype(np.float32)
    return StarLibrary(flux, 0 * flux, mask, klass, names, label, label, np.full(400, 100.0, np.float32))


@pytest.fixture(scope="module")
def noise():
    """AR(1) noise of standard deviation 0.1 in 60 exposures of 12 epochs, a tenth of the pixels missing."""
    rng = np.random.default_rng(1)
    eps = np.zeros((60, 256))
    draw = 0.1 * rng.standard_normal(eps.shape)
    for d in range(256):
        eps[:, d] = 0.6 * eps[:, d - 1] * (d > 0) + draw[:, d] * (0.8 if d else 1.0)
    mask = rng.random(eps.shape) < 0.02
    epoch = np.repeat([f"7000-{n}" for n in range(12)], 5)
    return NoiseLibrary(np.where(mask, 0, eps).astype(np.float32), 0 * draw, mask, epoch)


def test_generator_reconstructs_and_keeps_distances(library):
    """On stars that were not trained on, losses are small and the singular values of dG/dz near 1."""
    train, test = library.split("train"), library.split("test")
    encoder, generator = train_generator(train, SMALL, seed=0)
    metrics = generator_metrics(encoder, generator, test)
    assert max(metrics["median_loss"]["real"].values()) < 2e-3  # the spectra's own variance is 0.06
    assert metrics["singular_values_within_0.8_1.25"] > 0.8
    assert encode(encoder, test).shape == (len(test), 2)

    again, _ = train_generator(train, GeneratorRecipe(**{**vars(SMALL), "steps": 3}), seed=0)
    once, _ = train_generator(train, GeneratorRecipe(**{**vars(SMALL), "steps": 3}), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), once.parameters(), strict=True))


def test_masked_library_pixels_have_no_influence(library):
    """Garbage under the mask changes no weight."""
    few = GeneratorRecipe(**{**vars(SMALL), "steps": 5})
    spoiled = StarLibrary(**{**vars(library), "flux": np.where(library.mask, np.float32(1e6), library.flux)})
    clean, dirty = (train_generator(stars, few, seed=0)[1] for stars in (library, spoiled))
    assert all(torch.equal(a, b) for a, b in zip(clean.parameters(), dirty.parameters(), strict=True))


def made_up(klass, star, kind="observed"):
    """A library of which only class, identity and kind matter."""
    n = len(klass)
    flux, label = np.ones((n, 4), np.float32), np.full(n, "made up")
    kinds = np.broadcast_to(kind, n).astype("U9")
    return StarLibrary(flux, 0 * flux, flux < 0, klass, np.asarray(star), kinds, label, flux[:, 0])


def test_prior_finds_the_density_of_its_class():
    """A Gaussian class: its kernel density is close to it, in log, where its stars are."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 0.1, (400, 2))
    klass = np.repeat([0, 1], 200)
    z[klass == 1] += 1
    prior = fit_prior(z, made_up(klass, [f"s{n}" for n in range(400)]), 2)
    test = rng.normal(0, 0.1, (200, 2))
    found = prior.log_prob_all(torch.as_tensor(test, dtype=torch.float32)).numpy()
    truth = norm.logpdf(test, 0, 0.1).sum(-1)
    assert abs((found[:, 0] - truth).mean()) < 0.15
    assert (found[:, 0] > found[:, 1]).all()


def test_a_star_s_spectra_share_its_vote():
    """Observing one star a hundred times does not make the prior believe in it a hundred times."""
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(0, 0.1, (20, 1)), np.full((100, 1), 2.0) + rng.normal(0, 0.01, (100, 1))])
    star = [f"s{n}" for n in range(20)] + ["the same"] * 100
    prior = fit_prior(z, made_up(np.zeros(120, int), star), 1)
    weights = prior.log_weights.exp()[0].numpy()
    assert weights[z[:, 0] > 1].sum() == pytest.approx(1 / 21, rel=1e-4)


def test_bandwidths_are_those_of_real_stars():
    """A dense grid of models beside scattered real stars does not make the bandwidth small."""
    rng = np.random.default_rng(0)
    real, grid = rng.normal(0, 0.3, (60, 2)), rng.normal(0, 0.01, (500, 2))
    kind = np.repeat(["observed", "model"], [60, 500])
    star = [f"s{n}" for n in range(560)]
    alone = fit_prior(real, made_up(np.zeros(60, int), star[:60]), 1).bandwidth
    both = fit_prior(np.concatenate([real, grid]), made_up(np.zeros(560, int), star, kind), 1).bandwidth
    assert both > 0.7 * alone


def test_a_class_needs_two_stars():
    """One star has no cross-validation."""
    with pytest.raises(ValueError, match="class 1 has 1 real training stars"):
        fit_prior(np.zeros((3, 1)), made_up(np.array([0, 0, 1]), ["a", "b", "c"]), 2)


def test_noise_flow_learns_the_correlation(noise):
    """On unseen epochs of AR noise the flow beats the independent Gaussian and matches the AR fit."""
    train, test = noise.split("train"), noise.split("test")
    network = train_noise(
        train, NoiseRecipe(kernel=3, channels=8, hidden=4, steps=600, batch_size=16), seed=0
    )
    density = noise_metrics(network, train, test)["log_density_per_pixel"]
    assert density["flow"] > density["gaussian"] + 0.15
    assert density["flow"] == pytest.approx(density["ar3_gaussian"], abs=0.01)


def test_recipes_travel(tmp_path):
    """A recipe comes back from TOML and JSON; unknown keys and names are errors that say which."""
    file = tmp_path / "recipe.toml"
    file.write_text('name = "mine"\n[generator]\nlatent_dim = 6\nchannels = [32, 16]\n')
    recipe = Recipe.read(file)
    assert (recipe.name, recipe.generator.latent_dim, recipe.generator.channels) == ("mine", 6, (32, 16))
    assert recipe.noise == Recipe().noise
    file.write_text("[generator]\nlayers = 3\n")
    with pytest.raises(BayesspecError, match=r"recipe.toml: .*unknown layers"):
        Recipe.read(file)
    with pytest.raises(BayesspecError, match="no recipe is called 'nova'"):
        Recipe.named("nova")


def test_class_names_are_the_paper_s():
    """Eq. (6) has ten classes."""
    assert len(CLASSES) == 10
