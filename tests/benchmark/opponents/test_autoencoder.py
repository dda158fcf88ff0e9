"""Laws of the denoising autoencoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bayesspec.benchmark.opponents.autoencoder import Autoencoder
from bayesspec.training import loop
from tests.benchmark.opponents.conftest import TINY, draw_noise, draw_stars

SHORT = replace(TINY, steps=12)


def weights(model: Autoencoder) -> list[torch.Tensor]:
    return list(model.network.state_dict().values())


def same(first: Autoencoder, second: Autoencoder) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_training_makes_the_loss_small(stars, noise, pairs):
    """On unseen stars and noise, whole and with gaps, and far below that of the mean spectrum."""
    untrained, trained = (
        pairs.score(Autoencoder.fit(stars, noise, replace(TINY, steps=steps), seed=0)) for steps in (1, 300)
    )
    assert trained < 0.5 * untrained


def test_same_seed_same_weights(stars, noise):
    """Seeds decide everything; torch's own random state is not used and not changed."""
    state = torch.random.get_rng_state()
    first, second, other = (Autoencoder.fit(stars, noise, SHORT, seed=seed) for seed in (1, 1, 2))
    assert same(first, second)
    assert not same(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_stopped_training_goes_on(stars, noise, tmp_path, monkeypatch):
    """Killed and resumed from its checkpoint: the weights of a training that was not."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    file = tmp_path / "net.safetensors"
    save = loop._save

    class Stop(Exception):
        pass

    def save_and_stop(path, *rest):
        save(path, *rest)
        if rest[-2] == 5:
            raise Stop

    monkeypatch.setattr(loop, "_save", save_and_stop)
    with pytest.raises(Stop):
        Autoencoder.fit(stars, noise, SHORT, seed=1, checkpoint=file)
    monkeypatch.setattr(loop, "_save", save)
    resumed = Autoencoder.fit(stars, noise, SHORT, seed=1, checkpoint=file)
    assert same(resumed, Autoencoder.fit(stars, noise, SHORT, seed=1))


def test_the_bottleneck_is_the_one_that_does_best(stars, noise, pairs, tmp_path):
    """Of widths tried for a share of the steps, and nothing else of the recipe changes."""
    recipe = replace(TINY, steps=160)
    best = Autoencoder.tune(
        stars, noise, pairs, recipe, latent_dims=(1, 4), share=0.5, seed=0, checkpoints=tmp_path
    )
    scores = {
        width: pairs.score(Autoencoder.fit(stars, noise, replace(TINY, steps=80, latent_dim=width), seed=0))
        for width in (1, 4)
    }
    assert best == replace(recipe, latent_dim=min(scores, key=scores.__getitem__))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_stars_and_exposures_lack_is_not_learned_from():
    """Whatever stands under their masks, the weights are the same."""
    stars, noise = draw_stars(40, 0, missing=0.3), draw_noise(10, 1)
    spoiled = replace(stars, flux=np.where(stars.mask, 9, stars.flux).astype(np.float32))
    loud = replace(noise, residual=np.where(noise.mask, 9, noise.residual).astype(np.float32))
    assert same(Autoencoder.fit(stars, noise, SHORT, seed=0), Autoencoder.fit(spoiled, loud, SHORT, seed=0))
