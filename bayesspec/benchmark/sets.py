"""Benchmark sets: unseen stars with the noise of unseen epochs, the truth known, what was done to each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayesspec.batch import pad_exposures
from bayesspec.exceptions import BayesspecError
from bayesspec.grid import Rebinned, WavelengthGrid, flux_unit
from bayesspec.observation import FULL_COVERAGE, Observation
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.library import CLASSES, StarLibrary

from .corruption import SETS, UNKNOWN_SCALE, Exposures, Truth

__all__ = ["SETS", "BenchmarkRecipe", "BenchmarkSet", "build_sets", "choose_stars"]

CLEAN_SNR = 60.0
"""S/N of the spectra that are taken for the truth."""


@dataclass(frozen=True)
class BenchmarkRecipe:
    """How large the benchmark is.

    Arguments:
        per_class: Most stars of a class.
        sweep_per_class: The same in sets that take each star under several conditions.
        gap_widths: Pixels removed at each end and in the middle, of 2048; of other grids the same share.
        random_gap: Least and most pixels of a random interval, likewise.
        levels: DER_SNR to reach.
        high_snr: S/N of the set that asks whether good spectra are made worse.
        velocities: Of moving stars, km/s.
        ebv: Of stars behind dust, magnitudes.
        calibration: Root mean square of smooth flux-calibration errors, in log flux.
        hits: Heights of a single pixel, in units of the star's mean |flux|; 0 is the same without a hit.
        seed: Of everything random.

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
        """A size that ends in minutes."""
        levels, hits = (2.0, 3.0, 7.0, 20.0), (0.0, 10.0, 1e3, 1e5)
        return cls(6, 2, (200, 500, 800), levels=levels, hits=hits, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True, eq=False)
class BenchmarkSet:
    """N spectra whose truth is known, of up to E exposures each.

    Arguments:
        name: Which of `SETS`.
        grid: Wavelength grid.
        truth: Clean spectra at mean |flux| = 1 over their pixels, (N, D), 0 where masked.
        truth_ivar: Their own inverse variance, (N, D), 0 where masked or not to be believed.
        truth_mask: True = the clean spectrum has no such pixel, (N, D).
        klass: (N,), index into `CLASSES`.
        star: (N,), identity of the star.
        kind: (N,), observed, stack or model.
        flux: What is given to a method, (N, E, D), in the truth's unit, 0 where masked.
        ivar: (N, E, D), the pipeline's, 0 where masked or unknown.
        mask: (N, E, D), True = bad; throughout for exposures that a star does not have.
        epoch: (N, E), the night of each exposure's noise, "" where there is none.
        scale_known: (N,), whether a method may be told that the truth's mean |flux| is 1.
        condition: What was done to each spectrum, by name, each (N,).
    """

    name: str
    grid: WavelengthGrid
    truth: NDArray[np.float32]
    truth_ivar: NDArray[np.float32]
    truth_mask: NDArray[np.bool_]
    klass: NDArray[np.int64]
    star: NDArray[np.str_]
    kind: NDArray[np.str_]
    flux: NDArray[np.float32]
    ivar: NDArray[np.float32]
    mask: NDArray[np.bool_]
    epoch: NDArray[np.str_]
    scale_known: NDArray[np.bool_]
    condition: dict[str, NDArray]

    def __len__(self) -> int:
        return len(self.truth)

    def select(self, rows: NDArray | slice) -> BenchmarkSet:
        """The spectra at these positions."""
        arrays = {k: v[rows] for k, v in vars(self).items() if k not in ("name", "grid", "condition")}
        return replace(self, **arrays, condition={k: v[rows] for k, v in self.condition.items()})

    def observations(self) -> list[Observation]:
        """What `denoise` is given; the scale is told where it is known, as in the paper."""
        stars = []
        for n, (flux, ivar, mask) in enumerate(zip(self.flux, self.ivar, self.mask, strict=True)):
            real = ~mask.all(-1)
            known = (mask | (ivar > 0)).all()
            stars.append(
                Observation(
                    self.grid.wavelength,
                    flux[real],
                    ivar[real] if known else None,
                    mask[real],
                    name=f"{self.name} {n}: {self.star[n]}",
                    scale=1.0 if self.scale_known[n] else None,
                )
            )
        return stars

    def single(self) -> tuple[Rebinned, NDArray[np.float64]]:
        """One spectrum a star, for methods that take no exposures: flux, ivar, mask, each (N, D), and units.

        Exposures are averaged by inverse variance, or plainly where that is unknown. The flux is divided by
        the unit (N,): 1 where the scale is known, else the mean flux of the observed pixels.
        """
        seen = ~self.mask
        known = (self.mask | (self.ivar > 0)).all((-2, -1))[:, None, None]
        weight = np.where(known, self.ivar, seen).astype(float)
        total = weight.sum(-2)
        flux = np.divide((weight * self.flux).sum(-2), total, out=np.zeros_like(total), where=total > 0)
        mask = ~seen.any(-2)
        unit = np.where(self.scale_known, 1.0, flux_unit(flux, mask))
        unit = np.where(unit > 0, unit, 1.0)
        ivar = np.where(known, self.ivar, 0.0).sum(-2) * unit[:, None] ** 2
        return Rebinned(flux / unit[:, None], ivar, mask), unit

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the truth and the input: the same for the same library, noise, recipe and seed."""
        digest = hashlib.sha256(self.name.encode())
        for name in ("truth", "truth_ivar", "truth_mask", "klass", "flux", "ivar", "mask", "scale_known"):
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return digest.hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """Different stars by class and kind."""
        _, first = np.unique(self.star, return_index=True)
        return {
            name: {k: int((self.kind[first][self.klass[first] == c] == k).sum()) for k in KINDS}
            for c, name in enumerate(CLASSES)
        }


KINDS = ("observed", "stack", "model")


def choose_stars(library: StarLibrary, per_class: int, side: str = "test") -> StarLibrary:
    """Clean stars of a side of the split, one spectrum each and at most `per_class` of a class.

    Of a star's spectra it is the one that covers most; others would add spectra but no independent star. Real
    stars come before models, and complete spectra before others.
    """
    clean = library.clean(CLEAN_SNR).split(side)
    coverage = (~clean.mask).mean(-1)
    best = np.lexsort((-clean.snr, -coverage, clean.star))
    _, first = np.unique(clean.star[best], return_index=True)

    def rank(n: int) -> tuple:
        kind = clean.kind[n]
        return kind == "model", coverage[n] < FULL_COVERAGE, KINDS.index(kind), _hash(clean.star[n])

    rows = sorted(best[first], key=rank)
    kept = [n for c in range(len(CLASSES)) for n in [n for n in rows if clean.klass[n] == c][:per_class]]
    return clean.select(np.array(kept, dtype=np.int64))


def build_sets(
    library: StarLibrary,
    noise: NoiseLibrary,
    grid: WavelengthGrid,
    recipe: BenchmarkRecipe,
    names: tuple[str, ...] | None = None,
    *,
    side: str = "test",
) -> Iterator[BenchmarkSet]:
    """Every set, in the order of `SETS`, from one side of a star library and of a noise library.

    The random numbers of a spectrum depend on the seed, the set and the star alone: other stars in the
    library, and other sets, change nothing.

    Arguments:
        library: Stars on the grid, of all sides of the split.
        noise: Noise on the grid, of all sides of the split.
        grid: Of both.
        recipe: How large.
        names: The sets to build; None: all.
        side: Of the split; what is tuned to the validation side says nothing of the test side.

    Raises:
        BayesspecError: if no star or no epoch is on that side.
    """
    exposures = noise.split(side)
    stars = choose_stars(library, recipe.per_class, side)
    for what, part in (("star with S/N above 60", stars), ("epoch", exposures)):
        if not len(part):
            raise BayesspecError(f"no {what} is on the {side} side of the split")
    for name in SETS if names is None else names:
        yield _build(name, stars, exposures, grid, recipe)


def _build(
    name: str, stars: StarLibrary, noise: NoiseLibrary, grid: WavelengthGrid, recipe: BenchmarkRecipe
) -> BenchmarkSet:
    builder, sweep = SETS[name]
    if sweep:
        stars = stars.select(_first_of_class(stars, recipe.sweep_per_class))
    rows, parts, conditions = [], [], []
    for n, star in enumerate(stars.star):
        truth = Truth(stars.flux[n], stars.mask[n])
        rng = np.random.default_rng([recipe.seed, _hash(f"{name}|{star}")])

        def expose(count: int, truth: Truth = truth, rng: np.random.Generator = rng) -> Exposures:
            chosen = rng.choice(len(noise), count, replace=count > len(noise))
            mask = noise.mask[chosen] | truth.mask
            return Exposures(
                truth.flux + noise.residual[chosen], noise.ivar[chosen], mask, noise.epoch[chosen]
            )

        for part, condition in builder(truth, expose, rng, grid, recipe):
            if not part.mask.all():
                rows.append(n)
                parts.append(part)
                conditions.append(condition)

    depth = max(len(part.flux) for part in parts)

    def stacked(name: str, value: float | bool | str) -> NDArray:
        return np.stack([pad_exposures(getattr(part, name), depth, value) for part in parts])

    factor = np.stack([np.broadcast_to(part.factor, grid.size) for part in parts])
    truths = [part.truth or Truth(stars.flux[n], stars.mask[n]) for n, part in zip(rows, parts, strict=True)]
    truth_mask = np.stack([truth.mask for truth in truths])
    truth = np.where(truth_mask, 0.0, np.stack([truth.flux for truth in truths]))
    mask = stacked("mask", True)
    complete = (~stars.mask).mean(-1) >= FULL_COVERAGE
    return BenchmarkSet(
        name,
        grid,
        (truth * factor).astype(np.float32),
        (np.where(stars.believable[rows, None] & ~truth_mask, stars.ivar[rows], 0) / factor**2).astype(
            np.float32
        ),
        truth_mask,
        stars.klass[rows],
        stars.star[rows],
        stars.kind[rows],
        np.where(mask, 0, stacked("flux", 0.0)).astype(np.float32),
        np.where(mask, 0, stacked("ivar", 0.0)).astype(np.float32),
        mask,
        stacked("epoch", ""),
        complete[rows] & (name not in UNKNOWN_SCALE),
        {key: np.array([condition[key] for condition in conditions]) for key in conditions[0]},
    )


def _first_of_class(stars: StarLibrary, count: int) -> NDArray[np.int64]:
    rows = [np.flatnonzero(stars.klass == c)[:count] for c in range(len(CLASSES))]
    return np.concatenate(rows)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
