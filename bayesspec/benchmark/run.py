"""Run a bundle and its opponents on the benchmark sets; a run that was stopped can continue."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from bayesspec import __version__
from bayesspec.benchmark.measures.scores import (
    Scores,
    class_scores,
    input_scores,
    interval_scores,
    spectrum_scores,
)
from bayesspec.exceptions import BayesspecError
from bayesspec.inference.denoise import Method as MethodName
from bayesspec.inference.denoise import denoise
from bayesspec.model import StellarModel
from bayesspec.runtime import progress_bar
from bayesspec.training.library import CLASSES
from bayesspec.training.simulation import NoisyStars

if TYPE_CHECKING:
    from bayesspec.benchmark.opponents.base import Denoiser

__all__ = ["INPUT", "Bayes", "Method", "Opponent", "Scored", "run_benchmark"]

INPUT = "input"
"""Name of the input itself, as if it were a method."""

PART = 256
"""Spectra per file; an interruption loses at most one file."""

KEPT = 2
"""Spectra of each class and set that are kept for figures; for the others only the scores are kept."""


class Method(Protocol):
    """A method that denoises the spectra of a set."""

    @property
    def name(self) -> str:
        """Its name in tables."""

    @property
    def key(self) -> str:
        """Identifies everything on which its results depend."""

    def __call__(self, data: NoisyStars) -> tuple[NDArray, NDArray | None, Scores]:
        """Clean spectra in the truth's unit, (N, D), their standard deviation if known, and more scores."""


class Bayes:
    """A bundle, run with `denoise`.

    Arguments:
        model: The bundle.
        method: Method of `denoise`.
        seed: Random seed.

    Raises:
        BayesspecError: if the model's classes are not those of the star library.
    """

    def __init__(self, model: StellarModel, method: MethodName, seed: int) -> None:
        if set(model.classes) != set(CLASSES):
            raise BayesspecError(
                f"{model.name}: its classes {', '.join(model.classes)} are not the benchmark's "
                f"{', '.join(CLASSES)}"
            )
        self.model, self.method, self.seed = model, method, seed
        self.name = f"{model.name} {method}"
        self.key = f"{model.version} {method} {seed}"

    def __call__(self, data: NoisyStars) -> tuple[NDArray, NDArray | None, Scores]:
        """See `Method`."""
        result = denoise(data.observations(), model=self.model, method=self.method, seed=self.seed)
        scores = class_scores(result)
        if result.draws is not None:
            scores |= interval_scores(data, result)
        return result.flux, result.flux_std, scores


@dataclass(frozen=True)
class Opponent:
    """A baseline: its input is one spectrum per star, with ivar and mask, at mean flux 1.

    Arguments:
        denoiser: Has `denoise(flux, ivar, mask)`, each (N, D).
        name: Its name in tables.
        key: Hash of what it was fitted with.
    """

    denoiser: Denoiser
    name: str
    key: str

    def __call__(self, data: NoisyStars) -> tuple[NDArray, NDArray | None, Scores]:
        """See `Method`."""
        single, unit = data.single()
        return self.denoiser.denoise(*single) * unit[:, None], None, {}


@dataclass(frozen=True, eq=False)
class Scored:
    """A set and its scores.

    Arguments:
        data: The set.
        scores: Scores by method, including `input`.
        seconds: Time per spectrum, by method.
        kept: Positions of the spectra that are kept, (K,).
        flux: Those spectra, by method, (K, D).
        std: Their standard deviations, if the method gives any, (K, D).
    """

    data: NoisyStars
    scores: dict[str, Scores]
    seconds: dict[str, float]
    kept: NDArray[np.int64]
    flux: dict[str, NDArray]
    std: dict[str, NDArray]


def run_benchmark(
    sets: Sequence[NoisyStars],
    methods: Mapping[str, Sequence[Method]],
    out: str | Path,
    *,
    progress: bool = False,
) -> dict[str, Scored]:
    """Score every method on its sets.

    For each set, method and 256 spectra there is a file under `out`/runs, named by a hash of the spectra, the
    method and this package's version. Existing files are not computed again.

    Arguments:
        sets: From `build_sets`.
        methods: The methods of each set, by its name.
        out: Folder.
        progress: Show a bar on stderr.

    Returns:
        The scored sets by name.
    """
    folder = Path(out) / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(len(data) * len(methods[data.name]) for data in sets)
    found, done = {}, 0
    with progress_bar("evaluate", total, enabled=progress) as report:
        for data in sets:
            kept, chunks = _kept(data), np.split(np.arange(len(data)), range(PART, len(data), PART))
            before = _joined([input_scores(data.select(rows)) for rows in chunks])
            scored = Scored(data, {INPUT: before}, {}, kept, {}, {})
            for method in methods[data.name]:
                parts = []
                for rows in chunks:
                    parts.append(_part(method, data.select(rows), np.isin(rows, kept), folder))
                    done += len(rows)
                    report(done, len(rows))
                joined = _joined(parts)
                scored.seconds[method.name] = float(joined.pop("seconds").sum() / len(data))
                scored.flux[method.name] = joined.pop("kept flux")
                if "kept std" in joined:
                    scored.std[method.name] = joined.pop("kept std")
                scored.scores[method.name] = joined
            found[data.name] = scored
    return found


def _part(method: Method, data: NoisyStars, kept: NDArray, folder: Path) -> Scores:
    what = f"{__version__} {data.fingerprint} {np.flatnonzero(kept).tolist()} {method.name} {method.key}"
    key = hashlib.sha256(what.encode()).hexdigest()
    file = folder / f"{data.name}-{key[:20]}.safetensors"
    if file.exists():
        return load_file(file)
    begin = time.perf_counter()
    estimate, std, scores = method(data)
    seconds = time.perf_counter() - begin
    scores = {**spectrum_scores(data, estimate), **scores, "kept flux": estimate[kept].astype(np.float32)}
    if std is not None:
        scores["kept std"] = std[kept].astype(np.float32)
    scores["seconds"] = np.array([seconds])

    # Written under a temporary name and moved, because a run may be killed at any moment.
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    save_file({name: np.ascontiguousarray(array) for name, array in scores.items()}, unfinished)
    unfinished.replace(file)
    return scores


def _joined(parts: Sequence[Scores]) -> Scores:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _kept(data: NoisyStars) -> NDArray[np.int64]:
    """The first spectra of each class, complete ones before others."""
    missing = data.truth_mask.mean(-1)
    rows = [
        np.sort(own[np.argsort(missing[own], kind="stable")][:KEPT])
        for own in (np.flatnonzero(data.klass == c) for c in range(len(CLASSES)))
    ]
    return np.sort(np.concatenate(rows))
