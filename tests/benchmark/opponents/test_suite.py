"""Laws of the suite: fitted once, kept, and never reused for anything else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bayesspec.benchmark.opponents import suite as module
from bayesspec.benchmark.opponents.autoencoder import Autoencoder
from bayesspec.benchmark.opponents.suite import SuiteRecipe, fit_baselines
from bayesspec.exceptions import BayesspecError
from bayesspec.training.split import split_by_hash
from tests.benchmark.opponents.conftest import GRID, TINY, draw_noise, draw_stars

RECIPE = SuiteRecipe(per_class=3, components=(2, 3), bottlenecks=(2, 4), autoencoder=replace(TINY, steps=10))


@pytest.fixture(scope="module", autouse=True)
def scikit_image():
    pytest.importorskip("skimage")
    pytest.importorskip("pywt")


def world(seed: int = 0):
    return draw_stars(120, seed), draw_noise(60, seed + 1)


def fit(out, stars, noise, **options):
    return fit_baselines(stars, noise, out=out, grid=GRID, **{"recipe": RECIPE, **options})


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    out = tmp_path_factory.mktemp("suite")
    return out, fit(out, *world())


def test_every_opponent_is_there(kept):
    """By the name it has itself, each with its key, and no checkpoints left."""
    out, suite = kept
    names = {"wavelet-bayes", "wavelet-visu", "savgol", "pca-2", "pca-3", "autoencoder"}
    assert names <= set(suite) <= names | {"xseer"}
    assert all(opponent.name == name and opponent.key for name, opponent in suite.items())
    files = {path.name for path in out.rglob("*") if path.is_file()}
    assert files == {"fit.json", "fit.safetensors"}


def test_what_is_kept_is_not_fitted_again(kept, monkeypatch):
    """Loaded, and the same to the last bit."""
    out, suite = kept

    def never(*_, **__):
        raise AssertionError("fitted again")

    for cls in (module.Wavelet, module.SavitzkyGolay, module.Xseer):
        monkeypatch.setattr(cls, "tune", never)
    for cls in (module.Autoencoder, module.ProbabilisticPCA):
        monkeypatch.setattr(cls, "fit", never)
    again = fit(out, *world())
    stars, noise = draw_stars(8, 9), draw_noise(8, 10)
    noisy = stars.flux + noise.residual, noise.ivar, noise.mask
    assert again.keys() == suite.keys()
    for name in suite:
        np.testing.assert_array_equal(again[name].denoise(*noisy), suite[name].denoise(*noisy))


def test_test_stars_and_epochs_are_not_read(kept):
    """Whatever is on the test sides, the keys are those of the kept fits."""
    out, suite = kept
    stars, noise = world()
    unseen = split_by_hash(stars.star) == "test"
    later = split_by_hash(noise.epoch, test=0.25) == "test"
    assert unseen.any()
    assert later.any()
    spoiled = replace(stars, flux=np.where(unseen[:, None], np.nan, stars.flux).astype(np.float32))
    loud = replace(noise, residual=np.where(later[:, None], np.nan, noise.residual).astype(np.float32))
    assert {n: o.key for n, o in fit(out, spoiled, loud).items()} == {n: o.key for n, o in suite.items()}


@pytest.mark.parametrize("change", ["seed", "stars", "noise", "recipe"])
def test_a_stale_fit_is_never_reused(kept, tmp_path, change):
    """Another seed, star, exposure or recipe: other keys, of what it concerns."""
    _, suite = kept
    stars, noise = world()
    options = {}
    if change == "seed":
        options["seed"] = 1
    elif change == "stars":
        stars = stars.select(np.flatnonzero(split_by_hash(stars.star) == "train")[0] != np.arange(len(stars)))
    elif change == "noise":
        noise = replace(noise, ivar=noise.ivar * np.float32(1.01))
    else:
        options["recipe"] = replace(RECIPE, autoencoder=replace(RECIPE.autoencoder, steps=11))
    fresh = fit(tmp_path, stars, noise, **options)
    changed = {name for name in suite if fresh[name].key != suite[name].key}
    assert changed == ({"autoencoder"} if change == "recipe" else set(suite))


def test_a_stopped_suite_goes_on(tmp_path, monkeypatch):
    """What was fitted before the stop is there, and the end is that of a run without one."""
    stars, noise = world(20)
    straight = fit(tmp_path / "straight", stars, noise)
    real = Autoencoder.fit

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Autoencoder, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "stopped", stars, noise)
    assert not (tmp_path / "stopped" / "autoencoder" / "fit.json").exists()
    monkeypatch.setattr(Autoencoder, "fit", real)
    monkeypatch.setattr(module.ProbabilisticPCA, "fit", stop)
    resumed = fit(tmp_path / "stopped", stars, noise)
    flux = stars.flux[:4]
    for name in straight:
        np.testing.assert_array_equal(
            *(s[name].denoise(flux, 0 * flux, flux < -9) for s in (straight, resumed))
        )


def test_a_side_without_stars_is_one_clear_error(tmp_path):
    stars, noise = world()
    only = stars.select(split_by_hash(stars.star) == "train")
    with pytest.raises(BayesspecError, match="pairs need stars and noise, got 0 and"):
        fit(tmp_path, only, noise)
