"""Stars with known truth, with the noise of real exposures and other perturbations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bayesspec.batch import pad_exposures
from bayesspec.exceptions import BayesspecError
from bayesspec.grid import Rebinned, WavelengthGrid, flux_unit, mean_exposure
from bayesspec.observation import FULL_COVERAGE, Observation
from bayesspec.physics.throughput import BORDER

from .exposures import NoiseLibrary
from .library import CLASSES, StarLibrary

__all__ = ["Exposures", "NoisyStars", "Truth", "choose_sides", "choose_stars", "simulate"]

CLEAN_SNR = 60.0
"""Minimum S/N of the spectra that are used as the truth."""

PAPER_SIZE = 2048
"""Pixels of the paper's grid, in which widths of gaps are given."""

KINDS = ("observed", "stack", "model")
"""Kinds of star in order of preference."""


class Truth(NamedTuple):
    """One clean spectrum, (D,)."""

    flux: NDArray
    mask: NDArray


class Exposures(NamedTuple):
    """E noisy exposures of it: flux, ivar and mask, each (E, D), and the E nights of their noise.

    `truth` is the star if it differs from the library's, because it moves. `factor`, (D,), is the effect of
    dust and flux calibration: the spectrum to recover is the star times this factor.
    """

    flux: NDArray
    ivar: NDArray
    mask: NDArray
    epoch: NDArray
    truth: Truth | None = None
    factor: NDArray | float = 1.0

    def without(self, removed: NDArray) -> Exposures:
        """The same with pixels (D,) removed."""
        return self._replace(mask=self.mask | removed)


Condition = dict[str, float | str]
Expose = Callable[[int], Exposures]
Noisy = tuple[Exposures, Condition]
Corrupt = Callable[[Truth, Expose, np.random.Generator, WavelengthGrid], Iterator[Noisy]]
"""Takes a star and a function that exposes it; yields the observations for each condition in turn."""


@dataclass(frozen=True, eq=False)
class NoisyStars:
    """N spectra with known truth, with up to E exposures each.

    Arguments:
        name: Name of the set, for what was done to the stars.
        grid: Wavelength grid.
        truth: Clean spectra at mean |flux| = 1 over their pixels, (N, D), 0 where masked.
        truth_ivar: Their own inverse variance, (N, D), 0 where masked or not plausible.
        truth_mask: True where the clean spectrum has no data, (N, D).
        klass: (N,), index into `CLASSES`.
        star: (N,), identity of the star.
        kind: (N,), observed, stack or model.
        flux: Input of the methods, (N, E, D), in the truth's unit, 0 where masked.
        ivar: (N, E, D), the pipeline's, 0 where masked or unknown.
        mask: (N, E, D), True = bad; all True for exposures that a star does not have.
        epoch: (N, E), the night of each exposure's noise, "" where there is none.
        scale_known: (N,), whether methods are told that the truth's mean |flux| is 1.
        condition: Conditions of each spectrum by name, each (N,).
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

    def select(self, rows: NDArray | slice) -> NoisyStars:
        """The spectra at these positions."""
        arrays = {k: v[rows] for k, v in vars(self).items() if k not in ("name", "grid", "condition")}
        return replace(self, **arrays, condition={k: v[rows] for k, v in self.condition.items()})

    def observations(self) -> list[Observation]:
        """The input of `denoise`; it has the scale where that is known, as in the paper."""
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
        """One spectrum per star, for methods that take only one: flux, ivar, mask, each (N, D), and units.

        Exposures are averaged by inverse variance, or with equal weights if it is unknown. The flux is
        divided by the unit (N,): 1 if the scale is known, else the mean flux of the observed pixels.
        """
        flux, ivar, mask = mean_exposure(self.flux.astype(float), self.ivar.astype(float), self.mask)
        unit = np.where(self.scale_known, 1.0, flux_unit(flux, mask))
        unit = np.where(unit > 0, unit, 1.0)
        return Rebinned(flux / unit[:, None], ivar * unit[:, None] ** 2, mask), unit

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the truth and the input: the same for the same library, noise, recipe and seed."""
        digest = hashlib.sha256(self.name.encode())
        for name in ("truth", "truth_ivar", "truth_mask", "klass", "flux", "ivar", "mask", "scale_known"):
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return digest.hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of different stars by class and kind."""
        _, first = np.unique(self.star, return_index=True)
        return {
            name: {k: int((self.kind[first][self.klass[first] == c] == k).sum()) for k in KINDS}
            for c, name in enumerate(CLASSES)
        }


def choose_stars(library: StarLibrary, per_class: int, side: str = "test") -> StarLibrary:
    """Clean stars of a side of the split, with one spectrum each and at most `per_class` of a class.

    The spectrum of a star is the one that covers most of the grid; more would not add independent stars. Real
    stars are chosen before models, and complete spectra before others.
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


def choose_sides(
    library: StarLibrary, noise: NoiseLibrary, per_class: int, side: str
) -> tuple[StarLibrary, NoiseLibrary]:
    """The stars and the exposures of one side of the split, see `choose_stars`.

    Raises:
        BayesspecError: if there is no star or no epoch.
    """
    stars, exposures = choose_stars(library, per_class, side), noise.split(side)
    for what, part in (("star with S/N above 60", stars), ("epoch", exposures)):
        if not len(part):
            raise BayesspecError(f"no {what} is on the {side} side of the split")
    return stars, exposures


def simulate(
    name: str,
    corrupt: Corrupt,
    stars: StarLibrary,
    noise: NoiseLibrary,
    grid: WavelengthGrid,
    *,
    seed: int,
    tell_scale: bool = True,
) -> NoisyStars:
    """Add the noise of exposures to clean stars, and the perturbations of `corrupt`.

    The random numbers of a spectrum depend only on the seed, the name and the star, not on the other stars.

    Arguments:
        name: Name of the set.
        corrupt: Perturbs each star.
        stars: Clean stars on the grid.
        noise: Noise on the grid.
        grid: Grid of both.
        seed: Random seed.
        tell_scale: Whether methods are told the scale of complete spectra, as in the paper.
    """
    rows, parts, conditions = [], [], []
    for n, star in enumerate(stars.star):
        truth = Truth(stars.flux[n], stars.mask[n])
        rng = np.random.default_rng([seed, _hash(f"{name}|{star}")])

        def expose(count: int, truth: Truth = truth, rng: np.random.Generator = rng) -> Exposures:
            chosen = rng.choice(len(noise), count, replace=count > len(noise))
            mask = noise.mask[chosen] | truth.mask
            return Exposures(
                truth.flux + noise.residual[chosen], noise.ivar[chosen], mask, noise.epoch[chosen]
            )

        for part, condition in corrupt(truth, expose, rng, grid):
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
    clean = np.where(truth_mask, 0.0, np.stack([truth.flux for truth in truths]))
    mask = stacked("mask", True)
    complete = (~stars.mask).mean(-1) >= FULL_COVERAGE
    return NoisyStars(
        name,
        grid,
        (clean * factor).astype(np.float32),
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
        complete[rows] & tell_scale,
        {key: np.array([condition[key] for condition in conditions]) for key in conditions[0]},
    )


def interval(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, widths: tuple[int, int]
) -> Iterator[Noisy]:
    """Remove an interval with a random width between two limits, in pixels of the paper's grid."""
    exposure = expose(1)
    low, high = (in_pixels(width, grid) for width in widths)
    width = int(rng.integers(low, high + 1))
    first = int(rng.integers(0, grid.size - width + 1))
    yield exposure.without(between(grid, first, first + width)), {"gap_width": width, "gap_start": first}


def high_snr(
    truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid, levels: tuple[float, ...]
) -> Iterator[Noisy]:
    """Scale the noise down to each S/N in turn."""
    exposure = expose(1)
    now = 1 / np.median(sigma(exposure, truth)[~exposure.mask[0]])
    for target in levels:
        share = now / target
        noise = exposure.flux - truth.flux
        yield (
            exposure._replace(flux=truth.flux + share * noise, ivar=exposure.ivar / share**2),
            {"snr": target, "noise_share": float(share)},
        )


def one_arm(truth: Truth, expose: Expose, rng: np.random.Generator, grid: WavelengthGrid) -> Iterator[Noisy]:
    """Remove the red arm, and then the blue one instead."""
    exposure = expose(1)
    blue = grid.wavelength <= BORDER
    for arm, removed in (("blue", ~blue), ("red", blue)):
        yield exposure.without(removed), {"arm": arm}


def sigma(exposure: Exposures, truth: Truth) -> NDArray[np.float64]:
    """Standard deviation of an exposure's noise, (D,): the pipeline's, or one robust value for all pixels."""
    seen = ~exposure.mask[0]
    bulk = 1.4826 * np.median(np.abs((exposure.flux[0] - truth.flux)[seen]))
    return np.where(exposure.ivar[0] > 0, np.sqrt(variance(exposure.ivar[0])), bulk)


def variance(ivar: NDArray) -> NDArray[np.float64]:
    """1 / ivar, and 0 where it is 0."""
    return np.divide(1.0, ivar, out=np.zeros(ivar.shape), where=ivar > 0)


def in_pixels(width: int, grid: WavelengthGrid) -> int:
    """A width in pixels of the paper's grid, converted to pixels of another grid."""
    return max(1, round(width * grid.size / PAPER_SIZE))


def between(grid: WavelengthGrid, first: int, last: int) -> NDArray[np.bool_]:
    """True for pixels from `first` to `last` - 1, (D,)."""
    pixel = np.arange(grid.size)
    return (pixel >= first) & (pixel < last)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
