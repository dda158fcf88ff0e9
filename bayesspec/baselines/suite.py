"""All opponents of the benchmark, fitted on one set of stars and exposures, and kept on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bayesspec.data.library import StarLibrary
from bayesspec.data.noise import NoiseLibrary
from bayesspec.grid import WavelengthGrid
from bayesspec.observation import FULL_COVERAGE

from .autoencoder import Autoencoder, AutoencoderRecipe
from .base import Baseline, Denoiser
from .pairs import Pairs
from .pca import ProbabilisticPCA
from .savgol import SavitzkyGolay
from .wavelet import Wavelet
from .xseer import Xseer, published_layers

__all__ = ["SuiteRecipe", "fit_baselines"]

FORMAT_VERSION = 1
"""Raised where a method changes, so that what was fitted before is fitted again."""


@dataclass(frozen=True)
class SuiteRecipe:
    """How much is spent on the opponents.

    Arguments:
        min_snr: Training spectra of well-filled classes are above this S/N.
        validation_snr: The same of validation spectra, which are taken for the truth.
        per_class: Validation pairs of each class.
        components: Of each probabilistic PCA.
        bottlenecks: Widths that the autoencoder is tried with; one width is not tried but taken.
        autoencoder: Its sizes and steps.

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
        """A size that ends in about three minutes on one core."""
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
) -> dict[str, Denoiser]:
    """Fit every opponent on the training sides, tune it on the validation sides; the test sides are not read.

    What was fitted is kept under `out` and loaded from there the next time, if recipe, seed and data are the
    same; anything else is fitted anew. A stopped run goes on from its last checkpoint. The network `xseer` is
    among the opponents where its package is installed.

    Arguments:
        stars: Clean spectra of all sides.
        noise: Exposures of all sides.
        out: Folder of the fits.
        seed: Of everything random.
        quick: Spend little, for a look: `SuiteRecipe.quick()`.
        recipe: How much is spent instead of either.
        grid: Wavelength grid of the spectra, 4000-9000 Angstrom unless given.
        progress: Show bars on stderr.

    Returns:
        Opponents by name.

    Raises:
        BayesspecError: if scikit-image is not installed, or a side has no star or exposure.
    """
    out, recipe = Path(out), recipe or (SuiteRecipe.quick() if quick else SuiteRecipe())
    grid = grid or WavelengthGrid(size=stars.flux.shape[1])
    train_stars, train_noise = stars.clean(recipe.min_snr).split("train"), noise.split("train")
    unseen_stars, unseen_noise = (
        stars.clean(recipe.validation_snr).split("validation"),
        noise.split("validation"),
    )
    unseen_stars = unseen_stars.select((~unseen_stars.mask).mean(-1) >= FULL_COVERAGE)
    pairs = Pairs.draw(unseen_stars, unseen_noise, per_class=recipe.per_class, seed=seed)
    data = [_digest(part) for part in (train_stars, train_noise, unseen_stars, unseen_noise)]

    suite: dict[str, Denoiser] = {}

    def add(name: str, cls: type[Baseline], settings: Any, fit: Callable[[Path], Baseline]) -> None:
        key = hashlib.sha256(
            json.dumps(
                [FORMAT_VERSION, name, settings, recipe.per_class, seed, grid.to_dict(), data]
            ).encode()
        ).hexdigest()
        folder = out / name
        if Baseline.stored_key(folder) == key:
            suite[name] = cls.load(folder)
            return
        checkpoints = folder / f"checkpoints-{key[:12]}"
        suite[name] = fitted = fit(checkpoints)
        fitted.save(folder, key=key)
        shutil.rmtree(checkpoints, ignore_errors=True)

    for method in ("BayesShrink", "VisuShrink"):
        name = f"wavelet-{method.removesuffix('Shrink').lower()}"
        add(name, Wavelet, None, lambda _, method=method: Wavelet.tune(method, train_noise, pairs))

    add(
        "savgol",
        SavitzkyGolay,
        None,
        lambda _: SavitzkyGolay.tune(unseen_stars, unseen_noise, per_class=recipe.per_class, seed=seed),
    )

    for k in recipe.components:

        def fit_pca(_: Path, k: int = k) -> Baseline:
            return ProbabilisticPCA.fit(train_stars, train_noise, components=k, seed=seed).tune(pairs)

        add(f"pca-{k}", ProbabilisticPCA, None, fit_pca)

    if find_spec("xseer") is not None:
        add("xseer", Xseer, None, lambda _: Xseer.tune(published_layers(), grid, pairs))

    def fit_autoencoder(checkpoints: Path) -> Baseline:
        best = replace(recipe.autoencoder, latent_dim=recipe.bottlenecks[0])
        common = {"seed": seed, "progress": progress}
        if len(recipe.bottlenecks) > 1:
            best = Autoencoder.tune(
                train_stars,
                train_noise,
                pairs,
                recipe.autoencoder,
                latent_dims=recipe.bottlenecks,
                checkpoints=checkpoints,
                **common,
            )
        file = checkpoints / "autoencoder.safetensors"
        return Autoencoder.fit(train_stars, train_noise, best, checkpoint=file, **common)

    settings = [asdict(recipe.autoencoder), recipe.bottlenecks]
    add("autoencoder", Autoencoder, settings, fit_autoencoder)
    return suite


def _digest(library: StarLibrary | NoiseLibrary) -> str:
    """SHA-256 of a library's arrays."""
    digest = hashlib.sha256()
    for array in (getattr(library, f.name) for f in fields(library)):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
