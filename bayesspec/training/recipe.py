"""Training of a bundle from tables and survey files: the recipe, and the paper's four steps in order."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

from bayesspec.bundle import load_model, save_model
from bayesspec.exceptions import BayesspecError
from bayesspec.grid import WavelengthGrid
from bayesspec.model import StellarModel
from bayesspec.nn import Encoder, Generator, NoiseNetwork, RobustNoiseNetwork
from bayesspec.runtime import own_state

from .exposures import NoiseLibrary
from .generator import GeneratorRecipe, encode, train_generator
from .library import CLASSES, StarLibrary
from .metrics import generator_metrics, noise_metrics, robust_noise_metrics
from .noise import NoiseRecipe, train_noise
from .passage import PassageRecipe, make_passage
from .prior import PriorRecipe, fit_prior
from .residual import ResidualRecipe, anchor_counts, fit_residual
from .robust_noise import RobustNoiseRecipe, train_robust_noise
from .shares import fit_discrepancy

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Recipe", "train"]

T = TypeVar("T", bound="DataclassInstance")

NOTE = "recipe.json"
ANEW = "--restart (resume=False) starts again, or choose another folder"


@dataclass(frozen=True)
class Recipe:
    """One training, from tables and survey files to a bundle.

    Arguments:
        name: Name of the bundle.
        grid: Wavelength grid.
        min_snr: S/N of training spectra, in classes that have enough of them.
        model_vote: Weight of a theoretical star, relative to a real one, in training and in the class prior
            (grids of models are also dense where there are no stars).
        generator: Encoder and generator.
        noise: Noise flow of the paper, for a model without residual term.
        prior: Class prior.
        residual: Whether the model has a residual term, and with it the robust noise flow.
        residual_term: The residual term.
        robust_noise: The robust noise flow.
        passage: Velocity, dust and flux calibration, of a model with a residual term.
        seed: Random seed.
        start: A bundle, by name or folder, whose encoder and generator are trained further, to adapt a model
            to another survey or to continue a training. Sizes have to be the same.

    Example:
        >>> recipe = Recipe.named("kang2021")
        >>> recipe.generator.latent_dim, recipe.residual, Recipe.named("stellar").residual
        (3, False, True)
        >>> Recipe.from_dict(recipe.to_dict()) == recipe
        True
    """

    name: str = "kang2021"
    grid: WavelengthGrid = field(default_factory=WavelengthGrid)
    min_snr: float = 30.0
    model_vote: float = 0.5
    generator: GeneratorRecipe = field(default_factory=GeneratorRecipe)
    noise: NoiseRecipe = field(default_factory=NoiseRecipe)
    prior: PriorRecipe = field(default_factory=PriorRecipe)
    residual: bool = False
    residual_term: ResidualRecipe = field(default_factory=ResidualRecipe)
    robust_noise: RobustNoiseRecipe = field(default_factory=RobustNoiseRecipe)
    passage: PassageRecipe = field(default_factory=PassageRecipe)
    seed: int = 2021
    start: str = ""

    @classmethod
    def named(cls, name: str) -> Recipe:
        """The recipe of a shipped bundle.

        Raises:
            BayesspecError: if there is no recipe of this name.
        """
        if name == "kang2021":
            return cls()
        if name == "stellar":
            generator = GeneratorRecipe(latent_dim=6, steps=32_000, tolerance=0.03)
            return cls(name="stellar", generator=generator, prior=PriorRecipe(neighbours=40), residual=True)
        raise BayesspecError(
            f"no recipe is called {name!r}; there are 'stellar' and 'kang2021', or give a TOML or JSON file"
        )

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read a recipe from a TOML or JSON file; missing values keep their defaults.

        Raises:
            BayesspecError: if the file cannot be read, has an unknown key, or a value of the wrong type.
        """
        path = Path(path)
        try:
            text = path.read_text()
            return cls.from_dict(json.loads(text) if path.suffix == ".json" else tomllib.loads(text))
        except (OSError, ValueError, TypeError) as error:
            raise BayesspecError(f"{path}: not a recipe ({error})") from error

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`; missing values keep their defaults."""
        return _build(cls(), values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the card of a bundle."""
        return json.loads(json.dumps(asdict(self)))

    def check(self) -> None:
        """Check the recipe before any data are read.

        Raises:
            BayesspecError: if a number is not finite or too small, or sizes are inconsistent.
        """
        try:
            for name, value in _leaves(self.to_dict()):
                if isinstance(value, bool | str):
                    continue
                least = 0 if name in ("seed", "prior.neighbours") or isinstance(value, float) else 1
                if not (math.isfinite(value) and value >= least):
                    raise ValueError(f"{name} is {value}")
            if self.seed >= 2**31:
                raise ValueError(f"seed is {self.seed}, not below 2**31")
            with torch.device("meta"):
                self.networks()
                if self.residual:
                    of, size = self.robust_noise, self.grid.size
                    RobustNoiseNetwork(size, of.kernel, of.channels, of.hidden, of.components, reach=of.reach)
                else:
                    NoiseNetwork(
                        self.noise.kernel, self.noise.channels, self.noise.hidden, reach=self.noise.reach
                    )
            if self.residual and not (
                self.residual_term.components <= self.residual_term.patterns <= self.grid.size
            ):
                raise ValueError("residual_term.components must not exceed patterns, nor patterns the pixels")
        except (ValueError, RuntimeError) as error:
            raise BayesspecError(f"recipe {self.name}: {error}") from error

    def networks(self) -> tuple[Encoder, Generator]:
        """Encoder and generator of these sizes, untrained."""
        of, size = self.generator, self.grid.size
        return (
            Encoder(of.latent_dim, size, of.encoder_hidden, of.encoder_channels),
            Generator(of.latent_dim, size, of.hidden, of.channels, of.strides),
        )


@own_state()
def train(
    library: Sequence[str | Path],
    noise: Sequence[str | Path],
    out: str | Path,
    recipe: Recipe,
    *,
    resume: bool = True,
    progress: bool = False,
) -> Path:
    """Train a model on star libraries and the noise of real exposures, and save its bundle.

    The four steps of the paper are: encoder and generator; latents of the training stars; a kernel density of
    these latents for each class; the noise flow. A model with a residual term has the robust noise flow. Then
    the residuals of the training stars from the generator are fitted, and finally the scales of the residual
    term and of the discrepancy are calibrated on validation stars. Stars and epochs are split by hash. The
    card's metrics are for test stars and epochs, which no step uses. Networks in training are checkpointed in
    `out`/checkpoints.

    Arguments:
        library: Tables of clean spectra, see `StarLibrary.read`.
        noise: Spec files with individual exposures, see `NoiseLibrary.from_files`.
        out: Folder of the bundle.
        recipe: The recipe.
        resume: Continue from the checkpoints of a stopped run of the same recipe; else start again.
        progress: Show bars on stderr.

    Returns:
        The bundle's folder.

    Raises:
        BayesspecError: if the recipe's sizes are inconsistent, `out` has a finished bundle or checkpoints of
            another recipe or other files, or there are too few stars or nights.
        ReadError: if a table or file cannot be read.
    """
    out = Path(out)
    if (out / "model.json").exists():
        raise BayesspecError(f"{out}: there is a finished bundle already")
    recipe.check()
    note = {"recipe": recipe.to_dict(), "tables": _sizes(library), "noise_files": _sizes(noise)}
    checkpoints = out / "checkpoints"
    if resume:
        _refuse_others(checkpoints, note)
    begin = load_model(recipe.start) if recipe.start else None
    if begin is not None:
        _refuse_other_sizes(begin, recipe)
    stars = StarLibrary.read(library, recipe.grid).clean(recipe.min_snr)
    exposures = NoiseLibrary.from_files(noise, recipe.grid)
    train_stars, train_exposures = stars.split("train"), exposures.split("train")
    test_stars, test_exposures = stars.clean(60.0).split("test"), exposures.split("test")
    needed: dict[str, Sized] = {"test star": test_stars, "training night": train_exposures}
    needed["test night"] = test_exposures
    if recipe.residual:
        needed["validation star"] = stars.clean(60.0).split("validation")
        needed["validation night"] = exposures.split("validation")
    for what, part in needed.items():
        if not len(part):
            raise BayesspecError(f"no {what} is among {len(stars)} spectra and {len(exposures)} exposures")
    if recipe.residual:
        anchor_counts(train_stars, recipe.residual_term, recipe.model_vote)
    _begin(checkpoints, note, resume)
    encoder, generator = train_generator(
        train_stars,
        recipe.generator,
        model_vote=recipe.model_vote,
        seed=recipe.seed,
        start=None if begin is None else (begin.encoder, begin.generator),
        checkpoint=checkpoints / "generator.safetensors",
        progress=progress,
    )
    network, term = _train_noise(train_exposures, recipe, checkpoints, progress), None
    passage = make_passage(recipe.grid, recipe.passage) if recipe.residual else None
    metrics: Callable[[NoiseLibrary, NoiseLibrary], dict[str, Any]]
    if isinstance(network, RobustNoiseNetwork):
        _round(encoder, generator)
        term, latents = fit_residual(
            generator,
            encoder,
            train_stars,
            stars.split("validation"),
            recipe.residual_term,
            reference=network.reference,
            seed=recipe.seed + 2,
            model_vote=recipe.model_vote,
            passage=passage,
        )
        z, metrics = latents.numpy(), partial(robust_noise_metrics, network)
    else:
        z, metrics = encode(encoder, train_stars), partial(noise_metrics, network)
    prior = fit_prior(z, train_stars, len(CLASSES), recipe.model_vote, recipe.prior)

    sources, spectra = np.unique(train_stars.source, return_counts=True)
    parts = encoder, generator, prior, network
    model = StellarModel(recipe.grid, CLASSES, *parts, residual=term, passage=passage)
    if term is not None:
        fit_discrepancy(model, stars, exposures, seed=recipe.seed, progress=progress)
    card = {
        "name": recipe.name,
        "recipe": recipe.to_dict(),
        "provenance": {
            "tables": [Path(path).name for path in library],
            "noise_files": [Path(path).name for path in noise],
            "training_spectra": train_stars.counts(),
            "training_sources": dict(zip(sources.tolist(), spectra.tolist(), strict=True)),
            "training_exposures": len(train_exposures),
            "training_epochs": sorted({str(epoch) for epoch in train_exposures.epoch}),
            "bandwidths": dict(zip(CLASSES, prior.bandwidth.tolist(), strict=True)),
            "start": None if begin is None else _origin(begin.card),
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        },
        "metrics": {
            "generator": generator_metrics(encoder, generator, test_stars),
            "noise": metrics(train_exposures, test_exposures),
        },
    }
    return save_model(model, out, card=card)


def _train_noise(
    exposures: NoiseLibrary, recipe: Recipe, checkpoints: Path, progress: bool
) -> NoiseNetwork | RobustNoiseNetwork:
    options: dict[str, Any] = {"seed": recipe.seed + 1, "progress": progress}
    options["checkpoint"] = checkpoints / "noise.safetensors"
    if recipe.residual:
        return train_robust_noise(exposures, recipe.robust_noise, **options)
    return train_noise(exposures, recipe.noise, **options)


def _round(*networks: nn.Module) -> None:
    """Round weights to half precision: three digits are enough, and the bundle is half as large."""
    with torch.no_grad():
        for parameter in (parameter for network in networks for parameter in network.parameters()):
            parameter.copy_(parameter.half())


def _origin(card: dict[str, Any]) -> dict[str, Any]:
    """The bundle from which a training started, and that bundle's own training."""
    origin = {key: card.get(key) for key in ("name", "sha256", "recipe")}
    return {**origin, "start": card.get("provenance", {}).get("start")}


def _refuse_other_sizes(begin: StellarModel, recipe: Recipe) -> None:
    with torch.device("meta"):
        wanted = recipe.networks()
    same = all(
        old.config == new.config for old, new in zip((begin.encoder, begin.generator), wanted, strict=True)
    )
    if not same or begin.grid != recipe.grid:
        raise BayesspecError(f"{recipe.start}: grid, encoder or generator differ in size from the recipe's")


def _sizes(paths: Sequence[str | Path]) -> dict[str, int]:
    """Size of each file in bytes, by name; missing files cause an error when they are read."""
    return {Path(path).name: Path(path).stat().st_size for path in paths if Path(path).is_file()}


def _refuse_others(folder: Path, note: dict[str, Any]) -> None:
    """Refuse checkpoints that were made with another recipe or other files."""
    if not any(folder.glob("*.safetensors")):
        return  # a run that ended before its first checkpoint
    try:
        old = dict(_leaves(json.loads((folder / NOTE).read_text())))
    except (OSError, ValueError) as error:
        raise BayesspecError(f"{folder}: {NOTE} cannot be read; {ANEW}") from error
    new = dict(_leaves(note))
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            was, now = (part.get(name, "not there") for part in (old, new))
            raise BayesspecError(
                f"{folder}: checkpoints of another recipe or other files ({name} was {was}, is {now}); {ANEW}"
            )


def _begin(folder: Path, note: dict[str, Any], resume: bool) -> None:
    """Make the folder of the checkpoints, with a note of recipe and files."""
    try:
        if not resume and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{NOTE}.tmp"
        fresh.write_text(json.dumps(note, indent=1))
        os.replace(fresh, folder / NOTE)
    except OSError as error:
        raise BayesspecError(f"{folder}: cannot be written ({error.strerror})") from error


def _leaves(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested values, by their path: `generator.channels.0`."""
    if isinstance(values, Mapping | list):
        items = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in items:
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, values


def _build(default: T, values: dict[str, Any]) -> T:
    if not isinstance(values, Mapping):
        raise ValueError(f"{values!r} where a table is expected")
    known = {f.name for f in fields(default)}
    if unknown := values.keys() - known:
        raise ValueError(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
    changes: dict[str, Any] = {}
    for name, value in values.items():
        current = getattr(default, name)
        if is_dataclass(current) and not isinstance(current, type):
            changes[name] = _build(current, value)
        elif isinstance(current, tuple):
            several = value if isinstance(value, list | tuple) else [value]
            changes[name] = tuple(_like(current[0], item, name) for item in several)
        else:
            changes[name] = _like(current, value, name)
    return type(default)(**{**{f.name: getattr(default, f.name) for f in fields(default)}, **changes})


def _like(default: Any, value: Any, name: str) -> Any:
    """The value, if it has the type of the default; integers count as numbers, booleans do not."""
    kind = type(default)
    if type(value) is int and kind is float:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} must be of type {kind.__name__}, not {value!r}")
    return value
