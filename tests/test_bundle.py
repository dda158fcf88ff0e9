"""Laws of bundles: what was saved is loaded, and what is damaged is refused."""

from __future__ import annotations

import copy
import json
import os
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bayesspec.bundle as module
from bayesspec import Observation, denoise
from bayesspec.bundle import load_model, read_card, save_model, seal, settings_hash, shipped
from bayesspec.exceptions import BundleError


def test_round_trip(toy_model, toy_batch, tmp_path):
    """Card, weights and densities come back to the last bit."""
    from bayesspec.inference.density import log_joint

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


def test_the_version_is_of_all_that_makes_the_model(toy_model, toy_batch, tmp_path):
    """Weights on another grid are another version, a note on the card is none; a result says which it is."""
    other = copy.copy(toy_model)
    other.grid = replace(toy_model.grid, log=True)
    saved = (toy_model, {}), (other, {}), (toy_model, {"note": "mine"})
    one, shifted, noted = (
        load_model(save_model(model, tmp_path / str(n), card=card)) for n, (model, card) in enumerate(saved)
    )
    assert one.card["sha256"] == shifted.card["sha256"]
    assert one.version == noted.version != shifted.version
    star = Observation(one.grid.wavelength, toy_batch.flux[0, 0].numpy(), mask=toy_batch.mask[0, 0].numpy())
    for model in (one, shifted):
        assert denoise(star, model=model).star().model_version == model.version


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
        (lambda p: (p / "model.json").write_text("5"), "not a card but int"),
        (lambda p: (p / "model.json").write_text("[" * 10**5), "cannot be read"),
        (lambda p: (p / "model.json").write_bytes(b"\xff"), "cannot be read"),
        (lambda p: (p / "model.json").write_text('{"format": NaN}'), "NaN is not JSON"),
        (lambda p: pipe(p / "model.json"), "no such file"),
        (lambda p: pipe(p / "model.safetensors"), "no such file"),
        (lambda p: edit(p, format=99), "newer than this package"),
        (lambda p: edit(p, format="two"), "format 'two' is not known"),
        (lambda p: edit(p, architecture={}), "not those that were saved"),
        (lambda p: edit(p, settings_sha256=5), "not those that were saved"),
        (lambda p: (p / "model.json").unlink(), "nor a bundle's folder"),
    ],
)
def test_damage_is_refused_and_named(toy_model, tmp_path, damage, message):
    """One error that names the folder and the cause."""
    path = save_model(toy_model, tmp_path / "broken", card={})
    damage(path)
    with pytest.raises(BundleError, match=f"broken.*{message}") as error:
        load_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["no such model", 5, None, "a" * 5000, "a\0b", ""])
def test_what_is_no_bundle_is_refused(name):
    """Whatever it is instead of a name or a folder."""
    for reads in (load_model, read_card):
        with pytest.raises(BundleError, match="neither a shipped model"):
            reads(name)


@pytest.mark.parametrize(
    "name", ["model.pt", "a/model.PTH", "x.pkl", "x.pickle", "last.ckpt", "pytorch_model.bin"]
)
def test_pickles_are_never_opened(name, tmp_path, monkeypatch):
    """Whether they are there or not; the error says what a bundle is."""
    monkeypatch.chdir(tmp_path)
    if "/" not in name:
        torch.save({"a": torch.zeros(1)}, name)
    for reads in (load_model, read_card):
        with pytest.raises(BundleError, match=f"{name}: pickles can run code.* a folder of model.json and"):
            reads(name)


@pytest.mark.parametrize("file", ["model.json", "model.safetensors"])
def test_a_file_of_a_bundle_is_not_its_folder(toy_model, tmp_path, file):
    path = save_model(toy_model, tmp_path / "toy", card={})
    with pytest.raises(BundleError, match=f"{file}: a bundle is a folder .*give the folder"):
        load_model(path / file)


@pytest.mark.parametrize("file", ["model.json", "model.safetensors"])
def test_a_file_far_too_large_is_not_read(toy_model, tmp_path, file):
    """Files with holes take no room on the disk."""
    path = save_model(toy_model, tmp_path / "toy", card={})
    with open(path / file, "ab") as grown:
        grown.truncate(5 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=f"toy: {file} has 5368709120 bytes"):
            load_model(path)
        assert tracemalloc.get_traced_memory()[1] < 5e7
    finally:
        tracemalloc.stop()


def edit(path, **changes):
    card = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps({**card, **changes}))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def leaves(value, keys=()):
    """Where the numbers and names of a card are."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*keys, key))
    else:
        yield keys


def test_whatever_makes_the_model_is_hashed_and_nothing_else(toy_stellar, tmp_path):
    """Every number and name of the card, one by one; two classes exchanged, a part more, a part less."""
    path = save_model(toy_stellar, tmp_path / "toy", card={"metrics": {"loss": 0.1}})
    text = (path / "model.json").read_text()
    whole = json.loads(text)
    makes = ("format", "sha256", "grid", "classes", "architecture")
    assert set(whole) == {*makes, "name", "metrics", "bayesspec", "settings_sha256"}
    for keys in leaves(whole):
        card = json.loads(text)
        at = card
        for key in keys[:-1]:
            at = at[key]
        old = at[keys[-1]]
        at[keys[-1]] = f"{old}x" if isinstance(old, str) else not old if isinstance(old, bool) else old + 1
        (path / "model.json").write_text(json.dumps(card))
        if keys[0] in (*makes, "settings_sha256"):
            with pytest.raises(BundleError, match="toy"):
                load_model(path)
        else:
            assert load_model(path).classes == toy_stellar.classes

    for change in (
        {"classes": whole["classes"][::-1]},
        {"architecture": {**whole["architecture"], "more": {}}},
        {"architecture": {k: v for k, v in whole["architecture"].items() if k != "residual"}},
    ):
        (path / "model.json").write_text(json.dumps({**whole, **change}))
        for reads in (load_model, read_card):
            with pytest.raises(BundleError, match="not those that were saved"):
                reads(path)


def test_the_layout_of_a_card_does_not_matter(toy_model, tmp_path):
    """Another order, other white space, whole numbers without a point: the same card."""
    path = save_model(toy_model, tmp_path / "toy", card={})
    card = read_card(path)
    turned = {key: card[key] for key in reversed(card)}
    turned["grid"] = {"log": False, "size": 96, "stop": 9000, "start": 4000}
    (path / "model.json").write_text(json.dumps(turned))
    assert settings_hash(turned) == settings_hash(card)
    assert load_model(path).grid == toy_model.grid


def resealed(path, tensors=None, **changes):
    """What somebody writes who knows the format, and makes all hashes right."""
    if tensors is not None:
        save_file(tensors, path / "model.safetensors")
        changes["sha256"] = module.hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    edit(path, **changes)
    card = json.loads((path / "model.json").read_text())
    edit(path, settings_sha256=settings_hash(card))


def architecture(path, part, **changes):
    whole = json.loads((path / "model.json").read_text())["architecture"]
    resealed(path, architecture={**whole, part: {**whole[part], **changes}})


def weights(path, **changes):
    tensors = load_file(path / "model.safetensors")
    for name, change in changes.items():
        tensors[name.replace("__", ".")] = change
    resealed(path, {name: tensor for name, tensor in tensors.items() if tensor is not None})


NAN, GRID = torch.tensor(torch.nan), {"start": 4000.0, "stop": 9000.0, "size": 96, "log": False}


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda p: resealed(p, classes=[]), "list of names"),
        (lambda p: resealed(p, classes="hwc"), "list of names"),
        (lambda p: resealed(p, classes=["hot", "hot", "cool"]), "the same name"),
        (lambda p: resealed(p, classes=["hot", "warm", ""]), "list of names"),
        (lambda p: resealed(p, classes=["hot", "warm"]), "2 classes are named, the prior has 3"),
        (lambda p: resealed(p, grid={**GRID, "size": 10**12}), "the grid has 1000000000000 pixels"),
        (lambda p: resealed(p, grid={**GRID, "size": 95}), "the grid has 95 pixels"),
        (lambda p: resealed(p, grid={**GRID, "stop": 10**400}), "do not make a model"),
        (lambda p: resealed(p, grid={**GRID, "start": "4000"}), "not supported"),
        (lambda p: resealed(p, grid=[4000, 9000, 96]), "mapping"),
        (lambda p: architecture(p, "generator", hidden=10**9), "generator.dense.weight is"),
        (lambda p: architecture(p, "encoder", hidden=10**9), "encoder.layers"),
        (lambda p: architecture(p, "generator", hidden=10**30), "do not make a model"),
        (lambda p: architecture(p, "generator", hidden=-5), "do not make a model"),
        (lambda p: architecture(p, "generator", hidden="16"), "do not make a model"),
        (lambda p: architecture(p, "generator", size=10**12), "generator.*is"),
        (lambda p: architecture(p, "generator", strides=[0, 4]), "do not make a model"),
        (lambda p: architecture(p, "generator", channels=[10**9, 4]), "generator.*is"),
        (lambda p: architecture(p, "encoder", channels=[]), "do not make a model"),
        (lambda p: architecture(p, "residual", bands=10**9), "residual.log_bands is"),
        (lambda p: architecture(p, "residual", patterns=10**9), "residual.basis is"),
        (lambda p: architecture(p, "noise", pixels=10**12), "noise.reference is"),
        (lambda p: architecture(p, "noise", kernel=10**9), "noise.convolution.weight is"),
        (lambda p: architecture(p, "noise", reach=0), "positive"),
        (lambda p: resealed(p, architecture=5), "do not make a model"),
        (lambda p: weights(p, generator__dense__bias=NAN.repeat(16)), "generator.dense.bias has numbers"),
        (lambda p: weights(p, prior__centres=NAN.repeat(3, 12, 2)), "prior.centres has numbers"),
        (lambda p: weights(p, prior__log_weights=-NAN.repeat(3, 12)), "prior.log_weights has numbers"),
        (lambda p: weights(p, residual__width=torch.tensor(torch.inf)), "residual.width has numbers"),
        (lambda p: weights(p, generator__dense__bias=None), "generator.dense.bias is in only one of them"),
        (lambda p: weights(p, more=torch.zeros(3)), "more is in only one of them"),
        (lambda p: weights(p, generator__dense__bias=torch.zeros(16, dtype=torch.int64)), "type, torch.int"),
        (
            lambda p: weights(p, prior__centres=torch.zeros(3, 12, 2).bool()),
            "prior.centres .* type, torch.bool",
        ),
        (lambda p: weights(p, residual__width=torch.tensor(1j)), "residual.width .* type, torch.complex64"),
        (lambda p: weights(p, prior__centres=torch.zeros(3, 12, 5)), "the prior has 5 latents"),
    ],
)
def test_forged_bundles_are_refused_at_once(toy_stellar, tmp_path, forge, message):
    """With all hashes right: what does not make a model is refused in a second, before memory is taken."""
    path = save_model(toy_stellar, tmp_path / "forged", card={})
    forge(path)
    begin = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=f"forged.*{message}") as error:
            load_model(path)
        assert tracemalloc.get_traced_memory()[1] < 5e7
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - begin < 1
    assert "\n" not in str(error.value)


def test_a_bundle_of_format_1_is_refused_until_it_is_sealed(toy_model, tmp_path):
    """The error says how; sealing adds the hash, touches nothing else, and does not seal what is no model."""
    path = save_model(toy_model, tmp_path / "old", card={"metrics": {"loss": 0.1}})
    new = read_card(path)
    weights = (path / "model.safetensors").read_bytes()
    old = {key: value for key, value in new.items() if key != "settings_sha256"} | {"format": 1}
    (path / "model.json").write_text(json.dumps({**old, "classes": ["hot"]}))
    with pytest.raises(BundleError, match="old: card and weights do not make a model"):
        seal(path)
    (path / "model.json").write_text(json.dumps(old))
    for reads in (load_model, read_card):
        with pytest.raises(BundleError, match=r"old: format 1.*bayesspec.bundle.seal\('"):
            reads(path)
    seal(path)
    assert read_card(path) == new
    assert (path / "model.safetensors").read_bytes() == weights
    with pytest.raises(BundleError, match="not of format 1"):
        seal(path)


def broken(model):
    twin = copy.deepcopy(model)
    twin.generator.mean[3] = torch.nan
    return twin


@pytest.mark.parametrize(
    ("change", "card"),
    [
        (None, {"metrics": float("nan")}),
        (None, {"metrics": {1, 2}}),
        (None, {"metrics": torch.zeros(3)}),
        (broken, {}),
    ],
)
def test_a_bundle_is_replaced_by_one_that_loads_or_not_at_all(toy_model, tmp_path, change, card):
    """Whatever is wrong with the new one: the old one is as it was, and nothing else is in the folder."""
    path = save_model(toy_model, tmp_path / "toy", card={"name": "old"})
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    model = toy_model if change is None else change(toy_model)
    with pytest.raises(BundleError, match="toy: "):
        save_model(model, path, card=card, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    with pytest.raises(BundleError, match="new: "):
        save_model(model, tmp_path / "new", card=card)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_the_old_bundle(toy_model, tmp_path, monkeypatch):
    """And a folder that cannot be made is an error of one line."""
    path = save_model(toy_model, tmp_path / "toy", card={"name": "old"})
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(BundleError, match="toy: the bundle cannot be written"):
            save_model(toy_model, path, card={}, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="file: the bundle cannot be written"):
        save_model(toy_model, tmp_path / "file", card={})


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
