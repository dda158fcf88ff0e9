"""Benchmark sets: unseen stars with known truth, the noise of unseen epochs, and further perturbations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bayesspec.grid import WavelengthGrid
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.library import CLASSES, StarLibrary
from bayesspec.training.simulation import (
    Noisy,
    NoisyStars,
    choose_sides,
    high_snr,
    interval,
    one_arm,
    simulate,
)

from . import corruption

__all__ = ["SETS", "BenchmarkRecipe", "build_sets"]


@dataclass(frozen=True)
class BenchmarkRecipe:
    """The size of the benchmark.

    Arguments:
        per_class: Maximum number of stars of a class.
        sweep_per_class: The same in sets with several conditions per star.
        gap_widths: Pixels removed at each end and in the middle, of 2048; on other grids the same fraction.
        random_gap: Minimum and maximum pixels of a random interval, likewise.
        levels: DER_SNR values of the noisy input.
        high_snr: S/N values of the set that tests whether good spectra are made worse.
        velocities: Velocities of moving stars, km/s.
        ebv: E(B-V) of stars behind dust, magnitudes.
        calibration: Rms of smooth flux-calibration errors, in log flux.
        hits: Heights of a single pixel, in units of the star's mean |flux|; 0 means no hit.
        seed: Random seed.

    Example:
        >>> BenchmarkRecipe.quick().per_class < BenchmarkRecipe().per_class
        True
    """

    per_class: int = 300
    sweep_per_class: int = 12
    gap_widths: tuple[int, ...] = tuple(range(100, 1001, 100))
    random_gap: tuple[int, int] = (100, 1000)
    levels: tuple[float, ...] = (2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0)
    high_snr: tuple[float, ...] = (30.0, 60.0, 100.0)
    velocities: tuple[float, ...] = (0.0, 150.0, -300.0, 500.0)
    ebv: tuple[float, ...] = (0.0, 0.3, 1.0)
    calibration: tuple[float, ...] = (0.0, 0.05, 0.15)
    hits: tuple[float, ...] = (0.0, 10.0, 1e2, 1e3, 1e4, 1e5)
    seed: int = 2021

    @classmethod
    def quick(cls, seed: int = 2021) -> BenchmarkRecipe:
        """A size that takes minutes."""
        levels, hits = (2.0, 3.0, 7.0, 20.0), (0.0, 10.0, 1e3, 1e5)
        return cls(6, 2, (200, 500, 800), levels=levels, hits=hits, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return json.loads(json.dumps(asdict(self)))


class Kind(NamedTuple):
    """How a set is made.

    Arguments:
        corrupt: Perturbs each star.
        setting: Keywords of `corrupt`, and the fields of the recipe with their values.
        sweep: Whether each star is used under several conditions.
        tell_scale: False if methods are not told the scale of the truth, because it would not be known.
    """

    corrupt: Callable[..., Iterator[Noisy]]
    setting: dict[str, str]
    sweep: bool = False
    tell_scale: bool = True


SETS = {
    "plain": Kind(corruption.plain, {}),
    "interval": Kind(interval, {"widths": "random_gap"}),
    "gaps": Kind(corruption.gaps, {"widths": "gap_widths"}, sweep=True),
    "der_snr": Kind(corruption.noisy, {"levels": "levels"}, sweep=True),
    "sky": Kind(corruption.sky, {}),
    "hits": Kind(corruption.hits, {"heights": "hits"}, sweep=True, tell_scale=False),
    "arms": Kind(corruption.arms, {}, tell_scale=False),
    "moving": Kind(corruption.moving, {"velocities": "velocities"}, sweep=True, tell_scale=False),
    "dust": Kind(corruption.dust, {"reddenings": "ebv"}, sweep=True, tell_scale=False),
    "calibration": Kind(corruption.calibration, {"levels": "calibration"}, sweep=True, tell_scale=False),
    "visits": Kind(corruption.visits, {}),
    "high_snr": Kind(high_snr, {"levels": "high_snr"}, sweep=True),
    "one_arm": Kind(one_arm, {}, sweep=True, tell_scale=False),
}
"""The sets by name."""


def build_sets(
    library: StarLibrary,
    noise: NoiseLibrary,
    grid: WavelengthGrid,
    recipe: BenchmarkRecipe,
    names: tuple[str, ...] | None = None,
) -> Iterator[NoisyStars]:
    """Every set, in the order of `SETS`, from the test side of a star library and of a noise library.

    The random numbers of a spectrum depend only on the seed, the set and the star, not on other stars in the
    library or on other sets.

    Arguments:
        library: Stars on the grid, of all sides of the split.
        noise: Noise on the grid, of all sides of the split.
        grid: Grid of both.
        recipe: Size of the benchmark.
        names: The sets to build; None: all.

    Raises:
        BayesspecError: if no star or no epoch is on the test side.
    """
    stars, exposures = choose_sides(library, noise, recipe.per_class, "test")
    few = [np.flatnonzero(stars.klass == c)[: recipe.sweep_per_class] for c in range(len(CLASSES))]
    some = stars.select(np.concatenate(few))
    for name in SETS if names is None else names:
        kind = SETS[name]
        corrupt = partial(
            kind.corrupt, **{key: getattr(recipe, value) for key, value in kind.setting.items()}
        )
        yield simulate(
            name,
            corrupt,
            some if kind.sweep else stars,
            exposures,
            grid,
            seed=recipe.seed,
            tell_scale=kind.tell_scale,
        )
