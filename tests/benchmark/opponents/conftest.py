"""A small world with the survey's shapes: stars of three components, exposures with noise by wavelength."""

from __future__ import annotations

import numpy as np
import pytest

from bayesspec.benchmark.opponents.autoencoder import Autoencoder, AutoencoderRecipe
from bayesspec.benchmark.opponents.base import Baseline
from bayesspec.benchmark.opponents.pairs import Pairs
from bayesspec.benchmark.opponents.pca import ProbabilisticPCA
from bayesspec.benchmark.opponents.savgol import SavitzkyGolay
from bayesspec.benchmark.opponents.wavelet import Wavelet
from bayesspec.benchmark.opponents.xseer import PIXELS, Xseer
from bayesspec.grid import WavelengthGrid, mean_absolute_flux
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.library import StarLibrary

GRID = WavelengthGrid(size=128)
TINY = AutoencoderRecipe(
    latent_dim=4,
    hidden=32,
    channels=(8, 4),
    strides=(4, 4),
    encoder_hidden=32,
    encoder_channels=(8, 16),
    steps=300,
    batch_size=32,
)
NAMES = ("pca-3", "savgol", "wavelet-bayes", "wavelet-visu", "autoencoder", "xseer")


def basis() -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and three components (3, D) of mean 0."""
    x = np.linspace(-1, 1, GRID.size)
    line = np.exp(-0.5 * ((x - 0.3) / 0.03) ** 2)
    components = np.stack([0.3 * x, 0.2 * (x**2 - np.mean(x**2)), 0.3 * (line.mean() - line)])
    return 1 + 0.1 * np.cos(5 * x) - np.mean(0.1 * np.cos(5 * x)), components


def draw_stars(n: int, seed: int, missing: float = 0.0) -> StarLibrary:
    """n stars of two classes in the span of the basis, all flux positive, mean 1."""
    rng = np.random.default_rng(seed)
    mean, components = basis()
    flux = mean + np.clip(rng.standard_normal((n, 3)), -2, 2) @ components
    flux += 1e-3 * rng.standard_normal(flux.shape)
    mask = rng.random(flux.shape) < missing
    flux /= mean_absolute_flux(flux, mask)[:, None]
    return StarLibrary(
        np.where(mask, 0, flux).astype(np.float32),
        np.where(mask, 0, 1e6).astype(np.float32),
        mask,
        np.arange(n) % 2,
        np.array([f"star {seed} {i}" for i in range(n)]),
        np.full(n, "observed"),
        np.full(n, "made up"),
        np.full(n, 1000, np.float32),
    )


def draw_noise(n: int, seed: int, outliers: float = 0.01) -> NoiseLibrary:
    """n exposures: five times noisier in the blue, some pixels masked, some hit by cosmic rays."""
    rng = np.random.default_rng(seed)
    sigma = np.geomspace(0.2, 0.04, GRID.size) * rng.uniform(0.7, 1.4, (n, 1))
    hit = rng.random((n, GRID.size)) < outliers
    residual = sigma * rng.standard_normal((n, GRID.size)) * np.where(hit, 15, 1)
    mask = rng.random(residual.shape) < 0.02
    return NoiseLibrary(
        np.where(mask, 0, residual).astype(np.float32),
        np.where(mask, 0, sigma**-2).astype(np.float32),
        mask,
        np.array([f"{seed}-{i // 2}" for i in range(n)]),
    )


@pytest.fixture(scope="session")
def stars() -> StarLibrary:
    return draw_stars(160, 0, missing=0.01)


@pytest.fixture(scope="session")
def noise() -> NoiseLibrary:
    return draw_noise(60, 1)


@pytest.fixture(scope="session")
def pairs() -> Pairs:
    """Unseen stars with unseen noise, half of them with a gap."""
    return Pairs.draw(draw_stars(40, 2), draw_noise(30, 3), per_class=12, seed=4)


@pytest.fixture(scope="session")
def fitted(stars, noise, pairs):
    """Every opponent by name, fitted once; those of scikit-image skip where it is absent."""
    made: dict[str, Baseline] = {}

    def make(name: str) -> Baseline:
        if name.startswith("wavelet"):
            pytest.importorskip("skimage")
            pytest.importorskip("pywt")
            method = {"wavelet-bayes": "BayesShrink", "wavelet-visu": "VisuShrink"}[name]
            return Wavelet.tune(method, noise, pairs)
        if name == "xseer":
            return Xseer(xseer_layers(), GRID)
        if name == "savgol":
            return SavitzkyGolay.tune(draw_stars(40, 5), noise, per_class=6, seed=0)
        if name == "autoencoder":
            return Autoencoder.fit(stars, noise, TINY, seed=0)
        return ProbabilisticPCA.fit(stars, noise, components=3, seed=0).tune(pairs)

    def get(name: str) -> Baseline:
        if name not in made:
            made[name] = make(name)
        return made[name]

    return get


def xseer_layers() -> list[tuple[np.ndarray, np.ndarray]]:
    """Layers of the published shapes that keep the first 400 Fourier components of the input."""
    pixel = (np.arange(PIXELS) + 0.5) / PIXELS
    waves = np.cos(np.pi * np.arange(400) * pixel[:, None]) * np.sqrt(2 / PIXELS)
    waves[:, 0] /= np.sqrt(2)
    lift = 1e4  # ELU is the identity for positive numbers
    return [
        (waves.astype(np.float64), np.full(400, lift)),
        (np.eye(400), np.zeros(400)),
        (waves.T.astype(np.float64), -lift * waves.sum(1)),
    ]
