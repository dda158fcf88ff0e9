"""All opponents of the benchmark, fitted on the same stars and exposures, and kept on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bayesspec.grid import WavelengthGrid
from bayesspec.observation import FULL_COVERAGE
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.library import StarLibrary

from .autoencoder import Autoencoder, AutoencoderRecipe
from .base import Baseline
from .pairs import Pairs
from .pca import ProbabilisticPCA
from .savgol import SavitzkyGolay
from .wavelet import Wavelet
from .xseer import Xseer, covers, published_layers

__all__ = ["SuiteRecipe", "fit_baselines"]

FORMAT_VERSION = 2
"""Increased when a method changes, so that earlier fits are repeated."""


@dataclass(frozen=True)
class SuiteRecipe:
    """The effort for fitting the opponents.

    Arguments:
        min_snr: Minimum S/N of training spectra, in classes that have enough of them.
        validation_snr: The same for validation spectra, which are used as the truth.
        per_class: Validation pairs of each class.
        components: Number of components of each probabilistic PCA.
        bottlenecks: Widths that are tried for the autoencoder; a single one is used without trial.
        autoencoder: Sizes and steps of the autoencoder.

    Example:
        >>> SuiteRecipe.quick().autoencoder.steps < SuiteRecipe().autoencoder.steps
        True
    """

    min_snr: float = 30.0
    validation_snr: float = 60.0
    per_class: int = 12
    components: tuple[int, ...] = (10, 20, 40)
    bottlenecks: tuple[int, ...] = (8, 16, 32, 64)
    autoencoder: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)

    @classmethod
    def quick(cls) -> SuiteRecipe:
        """A recipe that takes about three minutes on one core."""
        return cls(per_class=4, bottlenecks=(32,), autoencoder=AutoencoderRecipe(steps=1_000))


def fit_baselines(
    stars: StarLibrary,
    noise: NoiseLibrary,
    *,
    out: str | Path,
    seed: int = 0,
    quick: bool = False,
    recipe: SuiteRecipe | None = None,
    grid: WavelengthGrid | None = None,
    progress: bool = False,
) -> dict[str, Baseline]:
    """Fit every opponent on training data and tune it on validation data; test data are not used.

    Fits are kept under `out` and loaded the next time if recipe, seed and data are the same. A stopped run
    continues from its last checkpoint. The network `xseer` is included if its package is installed and covers
    the grid.

    Arguments:
        stars: Clean spectra of all sides.
        noise: Exposures of all sides.
        out: Folder of the fits.
        seed: Random seed.
        quick: Use `SuiteRecipe.quick()`, for a first look.
        recipe: A recipe to use instead.
        grid: Wavelength grid of the spectra, 4000-9000 Angstrom unless given.
        progress: Show bars on stderr.

    Returns:
        Opponents by name.

    Raises:
        BayesspecError: if scikit-image is not installed, or a side has no star or exposure.
    """
    out, recipe = Path(out), recipe or (SuiteRecipe.quick() if quick else SuiteRecipe())
    grid = grid or WavelengthGrid(size=stars.flux.shape[1])
    sides = _Sides.of(stars, noise, recipe, seed)
    fits = _fits(sides, recipe, grid, seed, progress)
    common = [FORMAT_VERSION, recipe.per_class, seed, grid.to_dict(), sides.digest()]

    suite: dict[str, Baseline] = {}
    for name, (cls, settings, fit) in fits.items():
        key = hashlib.sha256(json.dumps([*common, name, settings]).encode()).hexdigest()
        folder = out / name
        if Baseline.stored_key(folder) == key:
            suite[name] = cls.load(folder)
            continue
        checkpoints = folder / f"checkpoints-{key[:12]}"
        suite[name] = fitted = fit(checkpoints)
        fitted.save(folder, key=key)
        shutil.rmtree(checkpoints, ignore_errors=True)
    return suite


@dataclass(frozen=True, eq=False)
class _Sides:
    """The data for fitting and for tuning, and the pairs drawn from the latter."""

    stars: StarLibrary
    noise: NoiseLibrary
    unseen_stars: StarLibrary
    unseen_noise: NoiseLibrary
    pairs: Pairs

    @classmethod
    def of(cls, stars: StarLibrary, noise: NoiseLibrary, recipe: SuiteRecipe, seed: int) -> _Sides:
        unseen = stars.clean(recipe.validation_snr).split("validation")
        unseen = unseen.select((~unseen.mask).mean(-1) >= FULL_COVERAGE)
        unseen_noise = noise.split("validation")
        pairs = Pairs.draw(unseen, unseen_noise, per_class=recipe.per_class, seed=seed)
        return cls(
            stars.clean(recipe.min_snr).split("train"), noise.split("train"), unseen, unseen_noise, pairs
        )

    def digest(self) -> str:
        """SHA-256 of all arrays."""
        digest = hashlib.sha256()
        for part in (self.stars, self.noise, self.unseen_stars, self.unseen_noise):
            for array in (getattr(part, f.name) for f in fields(part)):
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


Fit = Callable[[Path], Baseline]
"""Fits an opponent; its argument is a folder for checkpoints."""


def _fits(
    sides: _Sides, recipe: SuiteRecipe, grid: WavelengthGrid, seed: int, progress: bool
) -> dict[str, tuple[type[Baseline], Any, Fit]]:
    """For each name: class, part of the recipe, and fitting function. The quick ones come first."""

    def wavelet(method: Literal["BayesShrink", "VisuShrink"]) -> Fit:
        return lambda _: Wavelet.tune(method, sides.noise, sides.pairs)

    def savgol(_: Path) -> Baseline:
        return SavitzkyGolay.tune(
            sides.unseen_stars, sides.unseen_noise, per_class=recipe.per_class, seed=seed
        )

    def pca(components: int) -> Fit:
        return lambda _: ProbabilisticPCA.fit(
            sides.stars, sides.noise, components=components, seed=seed
        ).tune(sides.pairs)

    def xseer(_: Path) -> Baseline:
        return Xseer.tune(published_layers(), grid, sides.pairs)

    def autoencoder(checkpoints: Path) -> Baseline:
        options: dict[str, Any] = {"seed": seed, "progress": progress}
        best = replace(recipe.autoencoder, latent_dim=recipe.bottlenecks[0])
        if len(recipe.bottlenecks) > 1:
            best = Autoencoder.tune(
                sides.stars,
                sides.noise,
                sides.pairs,
                recipe.autoencoder,
                latent_dims=recipe.bottlenecks,
                checkpoints=checkpoints,
                **options,
            )
        file = checkpoints / "autoencoder.safetensors"
        return Autoencoder.fit(sides.stars, sides.noise, best, checkpoint=file, **options)

    fits: dict[str, tuple[type[Baseline], Any, Fit]] = {
        "wavelet-bayes": (Wavelet, None, wavelet("BayesShrink")),
        "wavelet-visu": (Wavelet, None, wavelet("VisuShrink")),
        "savgol": (SavitzkyGolay, None, savgol),
    }
    fits |= {f"pca-{k}": (ProbabilisticPCA, None, pca(k)) for k in recipe.components}
    if find_spec("xseer") is not None and covers(grid):
        fits["xseer"] = (Xseer, None, xseer)
    settings = [asdict(recipe.autoencoder), recipe.bottlenecks]
    return fits | {"autoencoder": (Autoencoder, settings, autoencoder)}
