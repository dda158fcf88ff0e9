"""A trained model on disk: `model.safetensors` and the card `model.json`, neither of which can run code."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .distributions import LatentPrior
from .exceptions import BundleError
from .grid import WavelengthGrid
from .model import StellarModel
from .nn import Encoder, Generator, NoiseNetwork, Passage, ResidualTerm, RobustNoiseNetwork
from .runtime import own_state

__all__ = ["load_model", "read_card", "save_model", "seal", "settings_hash", "shipped"]

FORMAT_VERSION = 2
WEIGHTS, CARD = "model.safetensors", "model.json"

_MOST_BYTES = {WEIGHTS: 4 << 30, CARD: 4 << 20}
"""Size limits, hundreds of times the sizes of the shipped bundles; larger files are refused unread."""

_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")
"""Endings of files that may run code when they are opened."""

_SETTINGS = ("format", "sha256", "grid", "classes", "architecture")
"""The parts of a card that define the model; the rest describes it."""


def shipped() -> dict[str, Path]:
    """The bundles that come with the package, by name."""
    folder = Path(str(resources.files("bayesspec"))) / "pretrained"
    return {card.parent.name: card.parent for card in sorted(folder.glob(f"*/{CARD}"))}


@own_state()
def load_model(name: str | Path, *, device: torch.device | str = "cpu") -> StellarModel:
    """Load a shipped model by its name, or any bundle by its path.

    Arguments:
        name: `stellar`, `kang2021`, or the folder of a bundle.
        device: The device for its tensors.

    Raises:
        BundleError: if there is no such bundle, a file is missing or damaged, the settings that define the
            model were changed after it was saved, or the format is not supported. No memory is allocated for
            a card that does not fit its weights.

    Example:
        >>> model = load_model("kang2021")
        >>> model.latent_dim, model.classes[:3]
        (3, ('O', 'B', 'A'))
    """
    path = _locate(name)
    card = _checked(_read_json(path), path)
    return _model(card, _read(path, WEIGHTS), path).to(device)


def read_card(name: str | Path) -> dict[str, Any]:
    """The card of a bundle: architecture, grid, classes, provenance, recipe, metrics, version, hashes.

    Raises:
        BundleError: as `load_model`; the weights are not read.
    """
    path = _locate(name)
    return _checked(_read_json(path), path)


def settings_hash(card: Mapping[str, Any]) -> str:
    """SHA-256 of the parts of a card that define the model.

    These are format, hash of the weights, grid, classes and architecture. They are hashed as JSON with sorted
    keys, no white space, and whole numbers without a decimal point, so the order and layout of a card do not
    matter.
    """

    def canonical(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: canonical(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [canonical(item) for item in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    settings = canonical({key: card[key] for key in _SETTINGS})
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(path: str | Path) -> Path:
    """Convert a bundle of format 1 to format 2, which has a hash. Use it only if nobody changed the card.

    Raises:
        BundleError: if it is not of format 1, or card and weights do not make a model.
    """
    path = Path(path)
    card = _read_json(path)
    if card.get("format") != 1:
        raise BundleError(f"{path}: {CARD} is not of format 1")
    return _write(path, {**card, "format": FORMAT_VERSION}, _read(path, WEIGHTS))


@own_state()
def save_model(
    model: StellarModel, path: str | Path, *, card: Mapping[str, Any], overwrite: bool = False
) -> Path:
    """Write a bundle. Tensors that half precision represents exactly are written in half precision.

    An existing bundle is replaced only when the new one is complete and has been loaded successfully.

    Arguments:
        model: The model.
        path: Folder of the bundle, created if necessary.
        card: Name, provenance, recipe, metrics: anything that JSON can represent. The rest of the card is
            added.
        overwrite: Replace an existing bundle.

    Raises:
        BundleError: if there is a bundle already and `overwrite` is False, the card is not JSON, the
            model would not load, or the folder cannot be written.
    """
    from . import __version__

    path = Path(path)
    if (path / CARD).exists() and not overwrite:
        raise BundleError(f"{path}: there is a bundle already")
    weights = save({name: _compact(tensor.cpu()).contiguous() for name, tensor in model.state_dict().items()})
    parts = {"encoder": model.encoder, "generator": model.generator, "noise": model.noise}
    parts |= {} if model.residual is None else {"residual": model.residual}
    parts |= {"prior": model.prior} if model.prior.config["neighbours"] else {}
    parts |= {} if model.passage is None else {"passage": model.passage}
    full = {
        "name": path.name,
        **card,
        "format": FORMAT_VERSION,
        "bayesspec": __version__,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "grid": model.grid.to_dict(),
        "classes": list(model.classes),
        "architecture": {name: part.config for name, part in parts.items()},
    }
    return _write(path, full, weights)


def _write(path: Path, card: dict[str, Any], weights: bytes) -> Path:
    """Move both files into place after checking that they make a model."""
    try:
        text = json.dumps({**card, "settings_sha256": settings_hash(card)}, indent=1, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: this card cannot be written as JSON ({error})") from error
    _model(_checked(json.loads(text), path), weights, path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=path) as folder:
            (Path(folder) / WEIGHTS).write_bytes(weights)
            (Path(folder) / CARD).write_text(text + "\n")
            for file in (WEIGHTS, CARD):
                os.replace(Path(folder) / file, path / file)
    except OSError as error:
        raise BundleError(f"{path}: the bundle cannot be written ({error.strerror})") from error
    return path


def _read(path: Path, name: str) -> bytes:
    try:
        if not (path / name).is_file():  # a pipe, say, which may never end
            raise BundleError(f"{path}: {name} cannot be read (there is no such file)")
        if (size := (path / name).stat().st_size) > _MOST_BYTES[name]:
            raise BundleError(f"{path}: {name} has {size} bytes, more than any bundle's")
        return (path / name).read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {name} cannot be read ({error.strerror})") from error


def _read_json(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        card = json.loads(_read(path, CARD), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path}: {CARD} cannot be read ({error})") from error
    if not isinstance(card, dict):
        raise BundleError(f"{path}: {CARD} is not a card but {type(card).__name__}")
    return card


def _checked(card: dict[str, Any], path: Path) -> dict[str, Any]:
    """The card, if it is complete and the parts that define the model are unchanged."""
    if missing := {"name", *_SETTINGS} - set(card):
        raise BundleError(f"{path}: {CARD} lacks {', '.join(sorted(missing))}")
    found = card["format"]
    if found == 1:
        raise BundleError(
            f"{path}: format 1 has no hash of grid, classes and architecture; if nobody has changed {CARD}, "
            f"bayesspec.bundle.seal({str(path)!r}) adds it"
        )
    if found != FORMAT_VERSION:
        newer = isinstance(found, int) and found > FORMAT_VERSION
        raise BundleError(
            f"{path}: format {found!r} is {'newer than this package reads' if newer else 'not known'}"
        )
    try:
        unchanged = card.get("settings_sha256") == settings_hash(card)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {CARD} cannot be read ({error})") from error
    if not unchanged:
        raise BundleError(
            f"{path}: format, grid, classes or architecture in {CARD} are not those that were saved "
            "(settings_sha256 differs)"
        )
    return card


def _model(card: dict[str, Any], weights: bytes, path: Path) -> StellarModel:
    """The model that a card and its weights make, on the CPU."""
    if hashlib.sha256(weights).hexdigest() != card["sha256"]:
        raise BundleError(f"{path}: {WEIGHTS} is damaged, its SHA-256 is not the card's")
    classes = card["classes"]
    try:
        if not (
            isinstance(classes, list) and classes and all(name and isinstance(name, str) for name in classes)
        ):
            raise ValueError("classes must be a list of names")
        if len(set(classes)) < len(classes):
            raise ValueError("two classes have the same name")
        tensors = load(weights)
        with torch.device("meta"):  # sizes without memory
            sizes = _networks(card)
        _fit(WavelengthGrid(**card["grid"]), len(classes), sizes, tensors)
        networks = _networks(card)
        model = StellarModel(
            WavelengthGrid(**card["grid"]),
            classes,
            networks["encoder"],
            networks["generator"],
            LatentPrior(
                tensors["prior.centres"].float(),
                tensors["prior.log_weights"].float(),
                tensors["prior.bandwidth"].float(),
                **card["architecture"].get("prior", {}),  # the default is isotropic kernels
            ),
            networks["noise"],
            card,
            networks.get("residual"),
            networks.get("passage"),
        )
        model.load_state_dict(tensors)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        SafetensorError,
    ) as error:
        cause = " ".join(str(error).split())
        raise BundleError(f"{path}: card and weights do not make a model ({cause})") from error
    return model.eval()


def _networks(card: dict[str, Any]) -> dict[str, Any]:
    """The networks of a card, untrained."""
    architecture = card["architecture"]
    makers: dict[str, Any] = {"encoder": Encoder, "generator": Generator, "noise": NoiseNetwork}
    if architecture.get("residual") is not None:
        makers |= {"noise": RobustNoiseNetwork, "residual": ResidualTerm}
    if architecture.get("passage") is not None:
        makers |= {"passage": Passage}
    return {name: make(**architecture[name]) for name, make in makers.items()}


def _fit(grid: WavelengthGrid, classes: int, networks: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuse what does not fit together: grid, classes, sizes of networks, and the tensors of the file."""
    expected = {
        f"{part}.{name}": tuple(tensor.shape)
        for part, network in networks.items()
        for name, tensor in network.state_dict().items()
    }
    prior = {f"prior.{name}" for name in ("centres", "log_weights", "bandwidth")}
    if wrong := sorted((expected.keys() | prior) ^ tensors.keys()):
        raise ValueError(f"{wrong[0]} is in only one of them")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)}, not {shape}")
    whole = {
        f"{part}.{name}"
        for part, network in networks.items()
        for name, tensor in network.state_dict().items()
        if not tensor.is_floating_point()
    }
    for name, tensor in tensors.items():
        if tensor.is_floating_point() == (name in whole) or tensor.is_complex():
            raise ValueError(f"{name} has the wrong type, {tensor.dtype}")
    buffers = sum(math.prod(buffer.shape) for network in networks.values() for buffer in network.buffers())
    if buffers > 10**7 + 10 * sum(tensor.numel() for tensor in tensors.values()):
        raise ValueError(f"the card asks for {buffers} numbers, far more than the weights have")

    sizes = {
        name: network.config.get("size", network.config.get("pixels")) for name, network in networks.items()
    }
    for name, size in sizes.items():
        if size not in (None, grid.size):
            raise ValueError(f"the grid has {grid.size} pixels, the {name} {size}")
    if not np.isfinite(grid.edges).all():
        raise ValueError(f"{grid} has wavelengths that are not finite")
    centres = tensors["prior.centres"]
    for name, network in networks.items():
        if network.config.get("latent_dim") not in (None, centres.shape[-1]):
            raise ValueError(f"the prior has {centres.shape[-1]} latents, the {name} a different number")
    if len(centres) != classes:
        raise ValueError(f"{classes} classes are named, the prior has {len(centres)}")
    for name, tensor in tensors.items():
        sound = (
            tensor.isfinite() | (tensor == -torch.inf) if name == "prior.log_weights" else tensor.isfinite()
        )
        if not sound.all():
            raise ValueError(f"{name} has numbers that are NaN or infinite")


def _compact(tensor: Tensor) -> Tensor:
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def _locate(name: str | Path) -> Path:
    known = shipped()
    if str(name) in known:
        return known[str(name)]
    try:
        path = Path(name)
        if (path / CARD).exists():
            return path
    except (OSError, TypeError, ValueError):  # not a valid file name, or a folder without read permission
        pass
    bundle = f"a bundle is a folder of {CARD} and {WEIGHTS}, as save_model writes it"
    if str(name).lower().endswith(_PICKLES):
        raise BundleError(f"{name}: pickles can run code and are never opened; {bundle}")
    if str(name).endswith((CARD, WEIGHTS)):
        raise BundleError(f"{name}: {bundle}: give the folder")
    raise BundleError(f"{name}: neither a shipped model ({', '.join(known) or 'none'}) nor a bundle's folder")
