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
from bayesspec.exceptions import BayesspecError
from bayesspec.training import recipe as module
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.library import CLASSES, StarLibrary
from bayesspec.training.recipe import Recipe, train
from bayesspec.training.residual import ResidualRecipe, anchor_counts
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


CHANGES = [
    ({"grid": {"size": 1000}}, r"strides \(4, 4\).* cannot make 1000 pixels"),
    ({"grid": {"size": 8}, "generator": {"strides": [2, 4]}}, "8 pixels cannot go through 2 convolutions"),
    ({"generator": {"strides": [3, 4]}}, "must be even|cannot make"),
    ({"generator": {"strides": [0, 4]}}, "generator.strides.0 is 0"),
    ({"generator": {"channels": [8]}}, "cannot make"),
    ({"generator": {"encoder_channels": []}}, "0 convolutions"),
    ({"generator": {"steps": 0}}, "generator.steps is 0"),
    ({"generator": {"latent_dim": -1}}, "generator.latent_dim is -1"),
    ({"generator": {"learning_rate": float("nan")}}, "generator.learning_rate is nan"),
    ({"noise": {"batch_size": 0}}, "noise.batch_size is 0"),
    ({"noise": {"reach": 0}}, "reach must be positive"),
    ({"residual": True, "robust_noise": {"components": 0}}, "robust_noise.components is 0"),
    ({"residual": True, "residual_term": {"patterns": 5, "components": 6}}, "must not exceed"),
    ({"residual": True, "residual_term": {"patterns": 500, "components": 6}}, "must not exceed"),
    ({"seed": 2**31}, "seed"),
    ({"seed": -1}, "seed is -1"),
]


def changed(recipe, changes):
    values = recipe.to_dict()
    for name, value in changes.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return Recipe.from_dict(values)


@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_sizes_are_checked_before_anything_is_read(tmp_path, changes, message):
    """One line, at once, and no folder: the files need not even be there."""
    with pytest.raises(BayesspecError, match=f"recipe tiny: .*{message}") as error:
        train([tmp_path / "none.fits"], [tmp_path / "none"], tmp_path / "out", changed(TINY, changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "[1]",
        '{"steps": 5}',
        '{"generator": 5}',
        '{"generator": {"steps": 1e3}}',
        '{"generator": {"steps": "many"}}',
        '{"generator": {"strides": ["a"]}}',
        '{"residual": 1}',
        '{"grid": {"start": 9000, "stop": 4000}}',
        "{",
    ],
)
def test_what_is_no_recipe_is_named(tmp_path, text):
    """Other values, other kinds, other files: one line that names the file."""
    file = tmp_path / "recipe.json"
    file.write_text(text)
    with pytest.raises(BayesspecError, match=r"recipe\.json: not a recipe") as error:
        Recipe.read(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["kang2021", "stellar"])
def test_shipped_recipes_can_be_trained(name):
    """With every number as it is, and as files give them back."""
    recipe = Recipe.named(name)
    recipe.check()
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_more_anchors_or_patterns_than_spectra_are_refused_before_training(survey, tmp_path, monkeypatch):
    """Else they would be found out hours later."""
    monkeypatch.setattr(module, "train_generator", lambda *args, **options: pytest.fail("it trains"))
    for kind in (StarLibrary, NoiseLibrary):  # this survey has too few for three sides
        monkeypatch.setattr(kind, "split", lambda self, side: self)
    for term, message in (
        ({"anchors": 9, "patterns": 20, "components": 4}, "anchors are too few for 10 classes"),
        ({"anchors": 300, "patterns": 20, "components": 4}, "too few for its"),
    ):
        recipe = changed(TINY, {"residual": True, "residual_term": term})
        with pytest.raises(BayesspecError, match=message):
            train([survey / "stars.fits"], files(survey), tmp_path / "out", recipe)
        assert not (tmp_path / "out").exists()
    few = StarLibrary.read(survey / "stars.fits", TINY.grid).select(np.arange(0, 200, 5))
    with pytest.raises(BayesspecError, match="40 training spectra are too few for 64 patterns"):
        anchor_counts(few, ResidualRecipe(patterns=64, components=4, anchors=20))


def test_a_run_that_failed_does_not_block_its_folder(survey, bundle, tmp_path, monkeypatch):
    """Before or after its first checkpoint; another recipe or other files are told apart, in one line."""
    stars, out = [survey / "stars.fits"], tmp_path / "out"
    with pytest.raises(BayesspecError, match=r"none\.fits"):
        train([tmp_path / "none.fits"], files(survey), out, TINY)
    other = changed(TINY, {"seed": 7})
    with monkeypatch.context() as patch:  # within training, before there is a checkpoint
        patch.setattr(
            module, "train_generator", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            train(stars, files(survey), out, other)
    with monkeypatch.context() as patch:  # after the checkpoint of the generator
        patch.setattr(module, "_train_noise", lambda *args: (_ for _ in ()).throw(EOFError))
        with pytest.raises(EOFError):
            train(stars, files(survey), out, TINY)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    for command, message in (
        ((stars, files(survey), out, other), "seed was 2021, is 7"),
        ((stars, files(survey)[:-1], out, TINY), "noise_files.* was .* is not there"),
    ):
        with pytest.raises(
            BayesspecError, match=f"another recipe or other files .*{message}.*--restart"
        ) as error:
            train(*command)
        assert "\n" not in str(error.value)
    # A restart that cannot begin destroys nothing.
    with pytest.raises(BayesspecError, match="cannot make"):
        train(stars, files(survey), out, changed(TINY, {"grid": {"size": 1000}}), resume=False)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before

    done = train(stars, files(survey), out, TINY)
    weights = [(path / "model.safetensors").read_bytes() for path in (bundle, done)]
    assert weights[0] == weights[1]


def test_a_note_that_cannot_be_read_is_said(survey, bundle, tmp_path):
    """Whatever the checkpoints are of: they are not gone on from, until asked to begin anew."""
    shutil.copytree(bundle / "checkpoints", tmp_path / "out" / "checkpoints")
    (tmp_path / "out" / "checkpoints" / "recipe.json").write_text("{")
    with pytest.raises(BayesspecError, match=r"recipe\.json cannot be read; --restart"):
        train([survey / "stars.fits"], files(survey), tmp_path / "out", TINY)


def test_a_start_of_other_sizes_is_refused(bundle, tmp_path):
    """Before anything is read."""
    recipe = changed(TINY, {"start": str(bundle), "generator": {"hidden": 17}})
    with pytest.raises(BayesspecError, match="differ in size from the recipe's"):
        train([tmp_path / "none.fits"], [tmp_path / "none"], tmp_path / "out", recipe)


def test_training_does_not_depend_on_the_caller_s_default_type(survey, bundle, tmp_path):
    """Under float64, the same weights to the last bit."""
    torch.set_default_dtype(torch.float64)
    try:
        again = train([survey / "stars.fits"], files(survey), tmp_path / "out", TINY)
    finally:
        torch.set_default_dtype(torch.float32)
    weights = [(path / "model.safetensors").read_bytes() for path in (bundle, again)]
    assert weights[0] == weights[1]


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
