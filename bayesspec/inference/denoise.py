"""`bayesspec.denoise`: observations in, a `Result` out, whatever the engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bayesspec.batch import ObservationBatch
from bayesspec.bundle import load_model
from bayesspec.exceptions import BayesspecError, ObservationError
from bayesspec.model import StellarModel
from bayesspec.observation import Gridded, Observation
from bayesspec.results.diagnostics import PriorTail
from bayesspec.results.facts import known_facts
from bayesspec.results.result import Result
from bayesspec.results.star import Failure
from bayesspec.results.summary import point_columns, posterior_columns
from bayesspec.runtime import own_state, progress_bar

from .arguments import LARGEST_SEED, check_options, check_whole, read_stars
from .density import MapEstimate
from .draws import Draws
from .handover import importance_or_nuts
from .importance import importance_draws
from .laplace import laplace_draws
from .map import map_estimate
from .newton import newton_estimate
from .nuts import nuts_draws
from .once import once_a_model
from .scan import LatentScan

if TYPE_CHECKING:
    from bayesspec.io import Source

__all__ = ["METHODS", "Method", "choose_method", "denoise"]

Method = Literal["map", "laplace", "importance", "nuts"]

ENGINES: dict[str, Callable[..., MapEstimate]] = {"newton": newton_estimate, "autodelta": map_estimate}
"""What finds the mode: one optimum, the second engine many times slower."""

METHODS: dict[Method, Callable[..., Any]] = {
    "map": newton_estimate,
    "laplace": laplace_draws,
    "importance": importance_or_nuts,
    "nuts": nuts_draws,
}
"""What `method` may be."""


@own_state()
def denoise(
    observations: Observation | Gridded | Source | Iterable[Observation | Gridded | Source],
    *,
    model: StellarModel | str | Path = "stellar",
    method: Literal["map", "laplace", "importance", "nuts"] | None = None,
    uncertainty: bool = False,
    engine: Literal["newton", "autodelta"] | None = None,
    class_weights: Mapping[str, float] | Sequence[float] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = False,
    **options: Any,
) -> Result:
    """Infer the clean spectrum and the class of every star.

    Arguments:
        observations: One star or many: observations, what is on the model's grid already (see
            `Observation.on_grid`), or what `read` takes, such as the path of a file, a spectrum of specutils
            or a `SpectrumList`.
        model: A model, the name of a shipped one, or the folder of a bundle.
        method: `map`: the mode of the posterior, eq. (7). `laplace`: means, standard deviations and
            intervals from normal distributions at the modes, at two to three times the price of `map`; a star
            that these do not describe says so. `importance`: means, standard deviations and
            intervals from weighted draws, in a few seconds a star; a star whose weights are not to be
            trusted says so. `nuts`: the same from draws by NUTS; seconds to a minute a star.
            None: `importance` where uncertainty is asked, else `map`.
        uncertainty: Means, standard deviations and intervals, not the mode alone; `map` has none.
        engine: Of `map`: `newton`, second-order steps, the default; or `autodelta`, Pyro's, the reference.
        class_weights: Relative prior weights of the classes: a number for each of the model's classes, or
            `{name: weight}`, where a class that is not named weighs 1; None: all alike, eq. (6).
        seed: Of everything random; from 0 to 2**32 - 1.
        batch_size: Stars in memory at once.
        on_error: What to do with a star that cannot be used (a file that cannot be read, no observed pixel on
            the grid): raise, or leave it out and list it in the result's `failures`.
        progress: Show a bar on stderr.
        **options: For the method, see `newton_estimate`, `map_estimate`, `laplace_draws`, `importance_draws`,
            `nuts_draws`;
            `handover=True` with `importance` gives stars whose weights are not to be trusted to NUTS, which
            takes minutes a star of `stellar`.

    Returns:
        A `Result` with a row for every usable star, in the order of the input.

    Raises:
        ReadError: if a star cannot be read and `on_error` is "raise".
        ObservationError: if a star cannot be used and `on_error` is "raise", or none can.
        BayesspecError: if the method, the engine or an option is not known or of the wrong kind, uncertainty
            is asked of `map`, an engine of another method, or class weights are not weights. All of this is
            found before any work is done.

    Example:
        >>> import numpy as np
        >>> wavelength = np.linspace(3900, 9100, 4000)
        >>> star = Observation(wavelength, 5e-17 * (wavelength / 6000) ** -2, name="hot")
        >>> res = denoise(star, model="kang2021", method="map")
        >>> res.flux.shape, res.classes[res.best_class[0]] in ("O", "B", "A", "WD", "CV")
        ((1, 2048), True)
        >>> res = denoise(star, model="kang2021", uncertainty=True)
        >>> res.method, res.flux_std.shape
        ('importance', (1, 2048))
    """
    method = choose_method(method, uncertainty)
    if engine is not None and method != "map":
        raise BayesspecError(
            f"engine={engine!r} is one of method='map'; {method} has no engines to choose from"
        )
    engine = "newton" if engine is None else engine
    if engine not in tuple(ENGINES):
        raise BayesspecError(f"no engine is called {engine!r}; there is {', '.join(sorted(ENGINES))}")
    if on_error not in ("raise", "skip"):
        raise BayesspecError(f"on_error is 'raise' or 'skip', not {on_error!r}")
    seed = check_whole("seed", seed, 0, LARGEST_SEED)
    batch_size = check_whole("batch_size", batch_size)
    check_options(f"method={method!r}", _keywords_of(method, engine), options)
    if not isinstance(model, StellarModel | str | os.PathLike):
        raise BayesspecError(f"model is a model, its name or the folder of a bundle, not {model!r}")
    stars = read_stars(observations, on_error)
    network = model if isinstance(model, StellarModel) else load_model(model)
    if class_weights is not None:
        network = network.with_class_weights(class_weights)
    usable, failures = _usable(stars, network)
    if failures and (on_error == "raise" or not usable):
        raise ObservationError("; ".join(failure.reason for failure in failures))
    if not usable:
        raise ObservationError("no observation was given")
    # Stars of as many exposures share a batch: of one exposure all is in closed form.
    order = sorted(range(len(usable)), key=lambda n: len(usable[n].flux))
    usable = [usable[n] for n in order]
    chunks = [
        chunk
        for _, same in groupby(usable, key=lambda star: len(star.flux))
        for chunk in _batched(list(same), batch_size)
    ]

    logits = network.class_logits
    scan, rarity = once_a_model(LatentScan, network), once_a_model(PriorTail, network, seed)
    parts, draws = [], []
    slow = method == "nuts"  # and shows its own bar, draw by draw
    options |= {"progress": progress} if slow else {}
    with progress_bar(f"denoise ({method})", len(usable), enabled=progress and not slow) as report:
        done = 0
        for chunk in chunks:
            batch = ObservationBatch.from_gridded(chunk, device=logits.device, dtype=logits.dtype)
            batch = network.with_noise_level(batch)
            if method == "map":
                estimate = ENGINES[engine](network, batch, scan=scan, **options)
                parts.append(point_columns(network, batch, estimate, rarity))
            else:
                draws.append(METHODS[method](network, batch, seed=seed, scan=scan, **options))
                parts.append(posterior_columns(network, batch, draws[-1], rarity))
            done += len(chunk)
            report(done, len(chunk))

    result = Result(
        method=method,
        model_name=network.name,
        model_version=network.version,
        grid=network.grid,
        classes=network.classes,
        names=tuple(star.name for star in usable),
        units=tuple(star.unit for star in usable),
        facts=tuple(known_facts(star.meta) for star in usable),
        warnings=tuple(note for part in parts for note in part.pop("warnings")),
        model=network,
        draws=Draws.concatenate(draws) if draws else None,
        **_stack(parts),
    )
    return replace(result[np.argsort(order)], failures=tuple(failures))


def choose_method(method: str | None = None, uncertainty: bool = False) -> Method:
    """The name of a method: the one that is given, or the default for what is asked.

    Arguments:
        method: See `denoise`.
        uncertainty: See `denoise`.

    Raises:
        BayesspecError: if there is no such method, or uncertainty is asked of `map`.

    Example:
        >>> choose_method(), choose_method(uncertainty=True), choose_method("nuts")
        ('map', 'importance', 'nuts')
    """
    if not isinstance(uncertainty, bool | np.bool_):
        raise BayesspecError(f"uncertainty is True or False, not {uncertainty!r}")
    if method is None:
        return "importance" if uncertainty else "map"
    chosen = next((name for name in METHODS if name == method), None)
    if chosen is None:
        raise BayesspecError(f"no method is called {method!r}; there is {', '.join(sorted(METHODS))}")
    if uncertainty and chosen == "map":
        raise BayesspecError(
            "map is a point and has no uncertainty; leave the method out, or choose laplace, importance "
            "or nuts"
        )
    return chosen


def _keywords_of(method: Method, engine: str) -> tuple[Any, ...]:
    """The functions whose keywords are the options of a method."""
    if method == "map":
        return (ENGINES[engine],)
    return (METHODS[method], importance_draws) if method == "importance" else (METHODS[method],)


def _usable(
    stars: list[Observation | Gridded | Failure], model: StellarModel
) -> tuple[list[Gridded], list[Failure]]:
    """The stars on the model's grid, and those that cannot be brought there."""
    usable, failures = [], []
    for position, star in enumerate(stars):
        if isinstance(star, Gridded) and star.grid != model.grid:
            raise ObservationError(f"{star.name or 'star'}: on another grid than that of {model.name}")
        if isinstance(star, Failure):
            failures.append(star)
            continue
        try:
            usable.append(star if isinstance(star, Gridded) else star.on_grid(model.grid))
        except ObservationError as error:
            failures.append(Failure(position, star.name, str(error)))
    return usable, failures


def _batched(stars: list[Gridded], size: int) -> Iterator[list[Gridded]]:
    """So many at once, in order."""
    for first in range(0, len(stars), size):
        yield stars[first : first + size]


def _stack(parts: list[dict[str, Any]]) -> dict[str, Any]:
    depth = max(part["scale"].shape[1] for part in parts)

    def pad(name: str, array: np.ndarray) -> np.ndarray:
        """Stars of several batches may have different numbers of exposures."""
        if name not in (
            "scale",
            "free_scale",
            "exposure_unit",
            "observed_flux",
            "observed_ivar",
            "observed_mask",
        ):
            return array
        missing = [(0, 0), (0, depth - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
        empty = {"observed_mask": True, "scale": 1.0, "exposure_unit": 1.0}.get(name, 0)
        return np.pad(array, missing, constant_values=empty)

    return {name: np.concatenate([pad(name, part[name]) for part in parts]) for name in parts[0]}
