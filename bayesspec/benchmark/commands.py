"""The commands `bayesspec evaluate` and `bayesspec bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bayesspec.options import LARGEST_SEED, Overwrite, Seed, expand, load, say

__all__ = ["bench", "evaluate"]


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A shipped model, or the folder of a bundle.")
    ],
    library: Annotated[
        list[Path],
        typer.Option(metavar="TABLE", help="Table of clean spectra with classes. Repeatable."),
    ],
    noise: Annotated[
        list[str],
        typer.Option(
            metavar="FILES", help="Full SDSS files: a folder, a file or a quoted pattern. Repeatable."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report.")] = Path("evaluation"),
    quick: Annotated[bool, typer.Option("--quick", help="A few stars of each class: minutes.")] = False,
    sweep: Annotated[
        int | None,
        typer.Option(min=1, help="Stars per class in sets with several conditions per star, instead of 12."),
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Also train and run other methods: autoencoder, PCA, wavelets.")
    ] = True,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the sets, the other methods and the draws.")
    ] = 2021,
) -> None:
    """Benchmark a model and other methods on stars and nights that were not used in training.

    The paper's experiments and harder ones: gaps, noise levels, sky lines, arms that do not join, visits.

    To continue a run that was stopped, give the same command again.

    [bold]Example[/bold]: bayesspec evaluate kang2021 --library stars.fits.gz --noise epochs/ -o out/ --quick
    """
    from .evaluate import evaluate as run

    network = load(model, "cpu")
    tty = sys.stderr.isatty()
    options: dict[str, Any] = {"quick": quick, "sweep": sweep, "baselines": baselines, "seed": seed}
    report = run(network, library, expand(noise), out, progress=tty, **options)
    typer.echo(report)


bench = typer.Typer(help="Measure the speed of the engines, and of those of others.", no_args_is_help=True)


@bench.command()
def posterior(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Spectra with one exposure: SDSS, LAMOST, text."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Table of all runs (ECSV).")] = Path("bench.ecsv"),
    model: Annotated[str, typer.Option(help="A shipped model, or the folder of a bundle.")] = "kang2021",
    draws: Annotated[int, typer.Option(min=50, help="Draws of each NumPyro chain.")] = 500,
    stock_draws: Annotated[int, typer.Option(min=20, help="Draws, and warm-up draws, of Pyro.")] = 200,
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Effective draws per core-second of the posterior, for the same density and spectra.

    Importance sampling and NUTS of this package, Pyro's NUTS as in its manual, and NumPyro's.

    To continue a run that was stopped, give the same command again.

    Needs NumPyro: pip install "bayesspec-stars\\[bench]". Slow: minutes per spectrum, nearly all of them for
    Pyro.

    [bold]Example[/bold]: bayesspec bench posterior spec-*.fits -o bench.ecsv
    """
    from bayesspec.batch import ObservationBatch
    from bayesspec.io import read
    from bayesspec.terminal import print_table

    from .bench import bench_posterior, ratios

    if overwrite:
        out.unlink(missing_ok=True)
    network = load(model, "cpu")
    batch = ObservationBatch.from_observations([read(file) for file in files], network.grid)
    table = bench_posterior(
        network,
        batch,
        draws=draws,
        stock_draws=stock_draws,
        seed=seed,
        out=out,
        progress=sys.stderr.isatty(),
    )
    print_table(
        ["importance is faster than", "median ratio", "not counting warm-up"],
        [[other, *(f"{value:.0f}" for value in found.values())] for other, found in ratios(table).items()],
    )
    say(f"{len(batch)} spectra, runs in {out}")


@bench.command()
def survey(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Table of all runs (ECSV), to which rows are added.")
    ],
    model: Annotated[str, typer.Option(help="A shipped model, or the folder of a bundle.")] = "kang2021",
    method: Annotated[list[str], typer.Option(help="Repeatable.")] = ["map"],  # noqa: B006
    spectra: Annotated[list[int], typer.Option(min=1, help="Number. Repeatable.")] = [64, 512],  # noqa: B006
    workers: Annotated[list[int], typer.Option(min=1, help="Number. Repeatable.")] = [1, 2],  # noqa: B006
    dask: Annotated[bool, typer.Option("--dask", help="Also with a local Dask cluster.")] = False,
    names: Annotated[int, typer.Option(min=0, help="Instead, time the start of a run of N files.")] = 0,
) -> None:
    """Time and memory of denoising simulated spectra, by number of spectra, workers and method.

    [bold]Example[/bold]: bayesspec bench survey -o survey.ecsv --spectra 2000 --spectra 100000
    """
    from bayesspec.terminal import print_table

    from .survey import bench_start, bench_survey

    options: dict[str, Any] = {"methods": method, "counts": spectra, "workers": workers, "scheduler": dask}
    table = bench_start(out, names=names, model=model) if names else bench_survey(out, model=model, **options)
    print_table(table.colnames, [list(row) for row in table])
