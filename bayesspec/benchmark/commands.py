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
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report; made if need be.")] = Path(
        "evaluation"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A few stars of each class: minutes.")] = False,
    sweep: Annotated[
        int | None,
        typer.Option(min=1, help="Stars of a class that are taken under several conditions, instead of 12."),
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Train and run the opponents too: autoencoder, PCA, wavelets.")
    ] = True,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Of the sets, the opponents and the draws.")
    ] = 2021,
) -> None:
    """Benchmark a model on stars and nights that no training has seen, beside other methods.

    The paper's experiments and harder ones: gaps, noise levels, sky lines, arms that do not join, visits.

    A run that was stopped goes on where it was: give the same command again.

    [bold]Example[/bold]: bayesspec evaluate kang2021 --library stars.fits.gz --noise epochs/ -o out/ --quick
    """
    from .evaluate import evaluate as run

    network = load(model, "cpu")
    tty = sys.stderr.isatty()
    options: dict[str, Any] = {"quick": quick, "sweep": sweep, "baselines": baselines, "seed": seed}
    report = run(network, library, expand(noise), out, progress=tty, **options)
    typer.echo(report)


bench = typer.Typer(help="Measure how fast the engines are, beside those of others.", no_args_is_help=True)


@bench.command()
def posterior(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Spectra of one exposure: SDSS, LAMOST, text."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Table of all runs (ECSV).")] = Path("bench.ecsv"),
    model: Annotated[str, typer.Option(help="A shipped model, or the folder of a bundle.")] = "kang2021",
    draws: Annotated[int, typer.Option(min=50, help="Of each NumPyro chain.")] = 500,
    stock_draws: Annotated[int, typer.Option(min=20, help="Of Pyro's chain; as many of warm-up.")] = 200,
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Effective draws per core-second of the posterior, on one density and the same spectra.

    Importance sampling and NUTS of this package, Pyro's NUTS as its manual has it, and NumPyro's.

    A run that was stopped goes on where it was: give the same command again.

    Needs NumPyro: pip install "bayesspec-stars\\[bench]". Slow: minutes a spectrum, nearly all of them
    Pyro's.

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
    spectra: Annotated[list[int], typer.Option(min=1, help="How many. Repeatable.")] = [64, 512],  # noqa: B006
    workers: Annotated[list[int], typer.Option(min=1, help="Repeatable.")] = [1, 2],  # noqa: B006
    dask: Annotated[bool, typer.Option("--dask", help="By a local Dask cluster, too.")] = False,
    names: Annotated[int, typer.Option(min=0, help="How fast a run of so many files begins, instead.")] = 0,
) -> None:
    """What runs of denoise over simulated spectra cost: time and memory, by number, workers and method.

    [bold]Example[/bold]: bayesspec bench survey -o survey.ecsv --spectra 2000 --spectra 100000
    """
    from bayesspec.terminal import print_table

    from .survey import bench_start, bench_survey

    options: dict[str, Any] = {"methods": method, "counts": spectra, "workers": workers, "scheduler": dask}
    table = bench_start(out, names=names, model=model) if names else bench_survey(out, model=model, **options)
    print_table(table.colnames, [list(row) for row in table])
