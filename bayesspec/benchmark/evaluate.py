"""A benchmark from files to a report, as run by `bayesspec evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bayesspec.benchmark.report.report import draw_figures, provenance, write_report
from bayesspec.benchmark.report.tables import all_tables
from bayesspec.grid import WavelengthGrid
from bayesspec.model import StellarModel
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.library import StarLibrary

from .run import Bayes, Method, Opponent, run_benchmark
from .sets import SETS, BenchmarkRecipe, build_sets

__all__ = ["evaluate"]

SAMPLED = ("plain", "interval", "der_snr", "high_snr", "one_arm")
"""The sets for which posteriors are also sampled; for the others only the modes are compared."""


def evaluate(
    model: StellarModel,
    library: Sequence[str | Path],
    noise: Sequence[str | Path],
    out: str | Path,
    *,
    quick: bool = False,
    sweep: int | None = None,
    baselines: bool = True,
    seed: int = 2021,
    progress: bool = False,
) -> Path:
    """Benchmark a bundle and other methods on unseen stars and nights.

    All results are kept in `out`, so that the same call continues a run that was stopped.

    References:
        | Kang, He & Zhang 2021, RAA 21, 169, section 4

    Arguments:
        model: The bundle.
        library: Tables of clean spectra, see `StarLibrary.read`.
        noise: Spec files with individual exposures, see `NoiseLibrary.from_files`.
        out: Folder of the report, its tables and figures, the scores, and the fitted opponents.
        quick: Use a few stars of each class, and opponents that are trained for a minute.
        sweep: Stars per class in sets with several conditions per star; None: as in the recipe.
        baselines: Also fit the opponents, on training stars and nights, and run them.
        seed: Random seed.
        progress: Show bars on stderr.

    Returns:
        The report, an HTML file.

    Raises:
        ReadError: if a table or file cannot be read.
        BayesspecError: if no star or night is on the test side, or the model has different classes.
    """
    out = Path(out)
    stars = StarLibrary.read(library, model.grid)
    exposures = NoiseLibrary.from_files(noise, model.grid)
    recipe = BenchmarkRecipe.quick(seed) if quick else BenchmarkRecipe(seed=seed)
    if sweep is not None:
        recipe = replace(recipe, sweep_per_class=sweep)
    mode, draws = Bayes(model, "map", seed), Bayes(model, "importance", seed)
    sets = list(build_sets(stars, exposures, model.grid, recipe))
    rivals = []
    if baselines:
        rivals = _opponents(stars, exposures, model.grid, out / "baselines", seed, quick, progress)

    methods: dict[str, list[Method]] = {
        name: [mode, *([draws] if name in SAMPLED else []), *rivals] for name in SETS
    }
    found = run_benchmark(sets, methods, out, progress=progress)
    facts = provenance(
        model,
        found,
        library=", ".join(Path(path).name for path in library),
        noise=_nights(exposures.split("test")),
        recipe=recipe.to_dict(),
        opponents=", ".join(rival.name for rival in rivals) or "none",
    )
    tables = all_tables(found, mode.name)
    return write_report(out, tables, draw_figures(model, found, (mode.name, draws.name)), facts, mode.name)


def _opponents(
    stars: StarLibrary,
    noise: NoiseLibrary,
    grid: WavelengthGrid,
    folder: Path,
    seed: int,
    quick: bool,
    progress: bool,
) -> list[Opponent]:
    """Opponents fitted on training data; their key is a hash of what they were fitted with."""
    from bayesspec.benchmark.opponents.suite import fit_baselines

    fitted = fit_baselines(stars, noise, out=folder, seed=seed, quick=quick, grid=grid, progress=progress)
    return [Opponent(rival, name, rival.key) for name, rival in fitted.items()]


def _nights(noise: NoiseLibrary) -> str:
    nights = sorted(set(noise.epoch))
    return f"{len(noise)} exposures of {len(nights)} unseen nights ({', '.join(nights)})"
