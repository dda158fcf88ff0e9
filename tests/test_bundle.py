"""Laws of bundles: what was saved is loaded, and what is damaged is refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from bayesspec.bundle import load_model, read_card, save_model, shipped
from bayesspec.exceptions import BundleError


def test_round_trip(toy_model, toy_batch, tmp_path):
    """Card, weights and densities come back to the last bit."""
    from bayesspec.inference.map import log_joint

    save_model(toy_model, tmp_path / "toy", card={"name": "toy", "metrics": {"loss": 0.1}})
    back = load_model(tmp_path / "toy")
    assert back.classes == toy_model.classes
    assert back.grid == toy_model.grid
    assert back.card["metrics"] == {"loss": 0.1}
    state = back.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in toy_model.state_dict().items())
    z, log_scale = torch.zeros(len(toy_batch), 2), torch.zeros(toy_batch.flux.shape[:2])
    for a, b in zip(*(log_joint(m, toy_batch, z, log_scale) for m in (toy_model, back)), strict=True):
        assert torch.equal(a, b)


def test_what_half_precision_holds_takes_half_the_room(toy_model, tmp_path):
    """And comes back to the last bit, in single precision."""
    rounded = copy.deepcopy(toy_model)
    weight = rounded.generator.features.weight
    weight.copy_(weight.half())
    sizes = []
    for name, model in (("whole", toy_model), ("rounded", rounded)):
        path = save_model(model, tmp_path / name, card={})
        sizes.append((path / "model.safetensors").stat().st_size)
        back = load_model(path).generator.features.weight
        assert back.dtype == torch.float32
        assert torch.equal(back, model.generator.features.weight)
    assert sizes[0] - sizes[1] == pytest.approx(2 * weight.numel(), abs=64)


def test_a_path_is_never_taken_for_a_name(toy_model, tmp_path, monkeypatch):
    """A folder that is called like a shipped bundle, given as a path, is that folder."""
    save_model(toy_model, tmp_path / "kang2021", card={"name": "mine"})
    monkeypatch.chdir(tmp_path)
    for path in ("./kang2021", tmp_path / "kang2021"):
        assert read_card(path)["name"] == load_model(path).card["name"] == "mine"
    assert read_card("kang2021")["name"] == load_model("kang2021").card["name"] == "kang2021"


def test_files_are_json_and_safetensors_only(toy_model, tmp_path):
    """Nothing in a bundle can run code."""
    path = save_model(toy_model, tmp_path / "toy", card={})
    assert sorted(file.name for file in path.iterdir()) == ["model.json", "model.safetensors"]
    assert json.loads((path / "model.json").read_text())["sha256"] == read_card(path)["sha256"]


def test_a_bundle_is_not_overwritten_unasked(toy_model, tmp_path):
    """Only with overwrite=True."""
    save_model(toy_model, tmp_path, card={})
    with pytest.raises(BundleError, match="there is a bundle already"):
        save_model(toy_model, tmp_path, card={})
    save_model(toy_model, tmp_path, card={"name": "second"}, overwrite=True)
    assert read_card(tmp_path)["name"] == "second"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "model.safetensors").write_bytes(b"x"), "damaged"),
        (lambda p: (p / "model.safetensors").unlink(), "cannot be read"),
        (lambda p: (p / "model.json").write_text("{"), "cannot be read"),
        (lambda p: (p / "model.json").write_text("{}"), "lacks architecture"),
        (lambda p: edit(p, format=99), "newer than this package"),
        (lambda p: edit(p, architecture={}), "do not make a model"),
        (lambda p: (p / "model.json").unlink(), "nor a bundle's folder"),
    ],
)
def test_damage_is_refused_and_named(toy_model, tmp_path, damage, message):
    """One error that names the folder and the cause."""
    path = save_model(toy_model, tmp_path / "broken", card={})
    damage(path)
    with pytest.raises(BundleError, match=f"broken.*{message}"):
        load_model(path)


def edit(path, **changes):
    card = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps({**card, **changes}))


def test_shipped_bundles_load_and_are_small():
    """Each shipped bundle loads, says what it is, and is a few MB."""
    assert "kang2021" in shipped()
    for name, path in shipped().items():
        model = load_model(name)
        assert model.name == name
        assert {"recipe", "provenance", "metrics"} <= set(model.card)
        assert sum(file.stat().st_size for file in path.iterdir()) < 8e6


def test_shipped_kang2021_is_the_paper_s_model():
    """L = 3, K = 5, ten classes, 2048 pixels from 4000 to 9000 Angstrom."""
    model = load_model("kang2021")
    assert (model.latent_dim, model.noise.kernel, len(model.classes)) == (3, 5, 10)
    assert model.grid.to_dict() == {"start": 4000.0, "stop": 9000.0, "size": 2048, "log": False}
