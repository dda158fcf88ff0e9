"""Laws of a whole training: files in, a bundle out, the same after a kill."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.table import Table

import bayesspec
from bayesspec.bundle import load_model
from bayesspec.data.library import CLASSES
from bayesspec.exceptions import BayesspecError
from bayesspec.training import recipe as module
from bayesspec.training.recipe import Recipe, train
from tests.io.conftest import sdss

TINY = Recipe.from_dict(
    {
        "name": "tiny",
        "grid": {"size": 128},
        "generator": {
            "latent_dim": 2,
            "hidden": 16,
            "channels": [8, 4],
            "strides": [4, 4],
            "encoder_channels": [4, 8],
            "steps": 40,
            "batch_size": 32,
        },
        "noise": {"kernel": 2, "channels": 4, "hidden": 2, "steps": 40, "batch_size": 8},
    }
)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A table of twenty stars for each class, and twelve nights of three exposures, as surveys ship them."""
    folder = tmp_path_factory.mktemp("survey")
    rng = np.random.default_rng(0)
    klass = np.repeat(CLASSES, 20)
    loglam = np.log10(3900) + 4e-4 * np.arange(930)
    slope = np.repeat(np.linspace(-2, 2, 10), 20) + rng.normal(0, 0.1, 200)
    flux = (10**loglam / 6000) ** slope[:, None] * (1 + 0.01 * rng.normal(size=(200, 930)))
    table = Table(
        {"CLASS": klass, "STAR": [f"s{n}" for n in range(200)], "FLUX": flux, "SNR": np.full(200, 100.0)}
    )
    table.meta.update(COEFF0=np.log10(3900), COEFF1=4e-4)
    table.write(folder / "stars.fits")
    for night in range(12):
        sdss(seed=night).writeto(folder / f"spec-0352-{51000 + night}-0030.fits")
    return folder


@pytest.fixture(scope="module")
def bundle(survey, tmp_path_factory):
    return train([survey / "stars.fits"], files(survey), tmp_path_factory.mktemp("run") / "tiny", TINY)


def files(survey):
    return sorted(survey.glob("spec-*.fits"))


def test_bundle_denoises(survey, bundle):
    """What training writes is a model: it loads and runs, and its card says what it was made of."""
    model = load_model(bundle)
    res = bayesspec.denoise(bayesspec.read(files(survey)[0]), model=model)
    assert res.flux.shape == (1, 128)
    card = model.card
    assert Recipe.from_dict(card["recipe"]) == TINY
    assert set(card["metrics"]["noise"]["epochs"]).isdisjoint(card["provenance"]["training_epochs"])
    assert sum(sum(kinds.values()) for kinds in card["provenance"]["training_spectra"].values()) < 200
    assert str(survey) not in json.dumps(card)


@pytest.mark.parametrize("step", ["fit_prior", "noise_metrics"])
def test_a_killed_training_goes_on_where_it_was(survey, bundle, tmp_path, monkeypatch, step):
    """Killed between the steps and started again: the same weights to the last bit."""
    killed = tmp_path / "tiny"
    with monkeypatch.context() as patch:
        patch.setattr(module, step, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train([survey / "stars.fits"], files(survey), killed, TINY)
    assert not (killed / "model.json").exists()
    resumed = train([survey / "stars.fits"], files(survey), killed, TINY)
    weights = [(path / "model.safetensors").read_bytes() for path in (bundle, resumed)]
    assert weights[0] == weights[1]


def test_finished_and_foreign_runs_are_not_touched(survey, bundle, tmp_path):
    """A finished bundle is not trained over; checkpoints of another recipe are not mixed in, unless asked."""
    stars = [survey / "stars.fits"]
    with pytest.raises(BayesspecError, match="there is a finished bundle already"):
        train(stars, files(survey), bundle, TINY)
    shutil.copytree(bundle / "checkpoints", tmp_path / "other" / "checkpoints")
    other = Recipe.from_dict({**TINY.to_dict(), "seed": 7})
    with pytest.raises(BayesspecError, match="checkpoints of another recipe"):
        train(stars, files(survey), tmp_path / "other", other)
    assert train(stars, files(survey), tmp_path / "other", other, resume=False).exists()


def test_too_little_to_test_on_is_said(survey, tmp_path):
    """One night cannot be split into training and test."""
    with pytest.raises(BayesspecError, match=r"no (training|test) night is among"):
        train([survey / "stars.fits"], files(survey)[:1], tmp_path / "out", TINY)


def test_training_goes_on_from_a_bundle(survey, bundle, tmp_path):
    """No step from a start gives the start's networks; the card says what it was."""
    still = Recipe.from_dict({**TINY.to_dict(), "start": str(bundle)})
    still = replace(still, generator=replace(still.generator, steps=1, learning_rate=0.0))
    further = load_model(train([survey / "stars.fits"], files(survey), tmp_path / "further", still))
    begin = load_model(bundle)
    for part in ("encoder", "generator"):
        state = getattr(begin, part).state_dict()
        assert all(torch.equal(v, state[k]) for k, v in getattr(further, part).state_dict().items())
    origin = further.card["provenance"]["start"]
    assert origin["sha256"] == begin.card["sha256"]
    assert origin["start"] is None
    third = replace(still, start=str(tmp_path / "further"))
    card = load_model(train([survey / "stars.fits"], files(survey), tmp_path / "third", third)).card
    assert card["provenance"]["start"] == {
        "name": further.card["name"],
        "sha256": further.card["sha256"],
        "recipe": still.to_dict(),
        "start": origin,
    }
