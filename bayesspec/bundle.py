"""A trained model on disk: `model.safetensors` and the card `model.json`, and nothing that could run code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from .distributions import LatentPrior
from .exceptions import BundleError
from .grid import WavelengthGrid
from .model import StellarModel
from .nn import Encoder, Generator, NoiseNetwork, ResidualTerm, RobustNoiseNetwork
from .runtime import own_state

__all__ = ["load_model", "read_card", "save_model", "shipped"]

FORMAT_VERSION = 1
WEIGHTS, CARD = "model.safetensors", "model.json"


def shipped() -> dict[str, Path]:
    """The bundles that come with the package, by name."""
    folder = Path(str(resources.files("bayesspec"))) / "pretrained"
    return {card.parent.name: card.parent for card in sorted(folder.glob(f"*/{CARD}"))}


@own_state()
def load_model(name: str | Path, *, device: torch.device | str = "cpu") -> StellarModel:
    """Load a shipped model by its name, or any bundle by its path.

    Arguments:
        name: `stellar`, `kang2021`, or the folder of a bundle.
        device: Where its tensors go.

    Raises:
        BundleError: if there is none, a file is missing or damaged, or its format is newer than this package.

    Example:
        >>> model = load_model("kang2021")
        >>> model.latent_dim, model.classes[:3]
        (3, ('O', 'B', 'A'))
    """
    path = _locate(name)
    card = _read_card(path)
    try:
        weights = (path / WEIGHTS).read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {WEIGHTS} cannot be read ({error.strerror})") from error
    if hashlib.sha256(weights).hexdigest() != card["sha256"]:
        raise BundleError(f"{path}: {WEIGHTS} is damaged, its SHA-256 is not the card's")

    try:
        tensors = load(weights)
        architecture = card["architecture"]
        residual = architecture.get("residual")
        noise = NoiseNetwork if residual is None else RobustNoiseNetwork
        model = StellarModel(
            WavelengthGrid(**card["grid"]),
            card["classes"],
            Encoder(**architecture["encoder"]),
            Generator(**architecture["generator"]),
            LatentPrior(
                *(tensors[f"prior.{part}"].float() for part in ("centres", "log_weights", "bandwidth")),
                **architecture.get("prior", {}),  # a card that does not say has round kernels
            ),
            noise(**architecture["noise"]),
            card,
            None if residual is None else ResidualTerm(**residual),
        )
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"{path}: card and weights do not make a model ({error})") from error
    return model.to(device).eval()


def read_card(name: str | Path) -> dict[str, Any]:
    """The card of a bundle: architecture, grid, classes, provenance, recipe, metrics, version, sha256.

    Raises:
        BundleError: as `load_model`.
    """
    return _read_card(_locate(name))


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads((path / CARD).read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {CARD} cannot be read ({error})") from error
    missing = {"name", "format", "sha256", "grid", "classes", "architecture"} - set(card)
    if missing:
        raise BundleError(f"{path}: {CARD} lacks {', '.join(sorted(missing))}")
    if card["format"] > FORMAT_VERSION:
        raise BundleError(
            f"{path}: format {card['format']} is newer than this package reads ({FORMAT_VERSION})"
        )
    return card


def save_model(
    model: StellarModel, path: str | Path, *, card: Mapping[str, Any], overwrite: bool = False
) -> Path:
    """Write a bundle. Tensors that half precision holds to the last bit are written in it.

    Arguments:
        model: What to save.
        path: Its folder, made if need be.
        card: Name, provenance, recipe, metrics: anything JSON holds. The rest of the card is added.
        overwrite: Replace a bundle that is there.

    Raises:
        BundleError: if there is a bundle already and it is not to be replaced.
    """
    from . import __version__

    path = Path(path)
    if (path / CARD).exists() and not overwrite:
        raise BundleError(f"{path}: there is a bundle already")
    path.mkdir(parents=True, exist_ok=True)
    weights = save({name: _compact(tensor.cpu()).contiguous() for name, tensor in model.state_dict().items()})
    parts = {"encoder": model.encoder, "generator": model.generator, "noise": model.noise}
    parts |= {} if model.residual is None else {"residual": model.residual}
    parts |= {"prior": model.prior} if model.prior.config["neighbours"] else {}
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
    (path / WEIGHTS).write_bytes(weights)
    (path / CARD).write_text(json.dumps(full, indent=1, allow_nan=False) + "\n")
    return path


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def _locate(name: str | Path) -> Path:
    known = shipped()
    if str(name) in known:
        return known[str(name)]
    path = Path(name)
    if not (path / CARD).exists():
        raise BundleError(
            f"{name}: neither a shipped model ({', '.join(known) or 'none'}) nor a bundle's folder"
        )
    return path
