"""The command line: `bayesspec denoise | demo | info | train | evaluate | bench`.

Nothing heavy is imported before a command runs, so that --help is quick. Results go to stdout, everything
else to stderr. Exit status: 0 all well, 1 an input failed, 2 the command was not understood, or it could not
do its work: no space on the disk, stdout closed.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__
from .exceptions import BayesspecError, ReadError

if TYPE_CHECKING:
    from rich.progress import Progress

    from .model import StellarModel

__all__ = ["app", "main"]

app = typer.Typer(
    name="bayesspec",
    help="Clean stellar spectra and stellar classes from noisy spectra.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Exposures(StrEnum):
    """What to read of a file with several exposures."""

    coadd = "coadd"
    individual = "individual"


Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the products; made if need be.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the products of an earlier run.")]
LARGEST_SEED = 2**32 - 1  # of numpy and Pyro
Seed = Annotated[
    int,
    typer.Option(
        min=0, max=LARGEST_SEED, help="Of everything random; the same seed gives the same products."
    ),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run a command; errors are one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that knows ASCII only is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=arguments)
    except (BayesspecError, OSError) as error:
        typer.echo(" ".join(f"bayesspec: {error}".split()), err=True)
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bayesspec {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def denoise(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Spectra: SDSS, BOSS, LAMOST, or text.")
    ],
    out: Out = Path("denoised"),
    model: Annotated[str, typer.Option(help="A shipped model, or the folder of a bundle.")] = "stellar",
    method: Annotated[
        str | None,
        typer.Option(
            help="map: the mode of the posterior. importance: its mean and standard deviation, by weighted "
            "draws. nuts: the same by Hamiltonian Monte Carlo, slowly. Without it map, or importance with "
            "--uncertainty."
        ),
    ] = None,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Mean and standard deviation, not the mode alone.")
    ] = False,
    exposures: Annotated[
        Exposures, typer.Option(help="What to read of an SDSS full file.")
    ] = Exposures.coadd,
    strict: Annotated[
        bool, typer.Option("--strict", help="Take pixels with doubtful mask bits for missing too.")
    ] = False,
    figures: Annotated[bool, typer.Option("--figures", help="Save a figure of every star.")] = False,
    overwrite: Overwrite = False,
    device: Annotated[str, typer.Option(help="cpu, or a GPU: cuda, cuda:1.")] = "cpu",
    seed: Seed = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stars in memory at once, and between two summaries: 16, on a GPU 64, if not given."
        ),
    ] = None,
) -> None:
    """Denoise spectra, one star a file.

    Writes a FITS table for every star, and summary.ecsv with a row for every file.

    A file that cannot be used is named on stderr, the others go on, and the exit status is 1.

    [bold]Example[/bold]: bayesspec denoise spec-*.fits -o out/ --figures
    """
    from .inference.denoise import choose_method
    from .pipeline import denoise_files
    from .results.products import ProductWriter
    from .terminal import print_summary

    chosen = choose_method(method, uncertainty)
    writer = ProductWriter(out, [str(file) for file in files], figures=figures, overwrite=overwrite)
    network = _load(model, device)
    failed = 0
    with _progress("denoise", len(files)) as progress:
        (task,) = progress.task_ids
        for outcome in denoise_files(
            files,
            writer,
            network,
            method=chosen,
            exposures=exposures.value,
            strict=strict,
            seed=seed,
            batch_size=batch_size or (16 if device == "cpu" else 64),
        ):
            progress.advance(task)
            if isinstance(outcome, tuple):
                failed += 1
                _say(f"{outcome.name}: {outcome.reason}", progress)
    try:
        print_summary(writer.summary())
    finally:
        _say(f"{len(files) - failed} of {len(files)} denoised, products in {out}")
    raise typer.Exit(1 if failed else 0)


@app.command()
def demo(
    out: Out = Path("bayesspec-demo"),
    model: Annotated[str, typer.Option(help="A shipped model, or the folder of a bundle.")] = "stellar",
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Denoise a real star whose truth is known.

    A spectrum that ships with the package becomes an SDSS file of three noisy exposures.

    That file is denoised as any other, and the outcome is compared with the truth.

    [bold]Example[/bold]: bayesspec demo -o bayesspec-demo
    """
    from .demo import run_demo
    from .terminal import print_classes, print_table

    _say("making three noisy exposures of a real star, and denoising them")
    outcome = run_demo(out, _load(model, "cpu"), seed=seed, overwrite=overwrite)
    star = outcome.result
    print_classes(star.classes, star.class_probabilities[0], star.warnings[0])
    print_table(
        ["spectrum", "mean squared error"],
        [[name, f"{loss:.2e}"] for name, loss in outcome.losses.items()],
    )
    print_table(["product", "path"], outcome.files.items())


@app.command()
def info(
    target: Annotated[str, typer.Argument(metavar="FILE|BUNDLE", help="A spectrum, or a model.")],
) -> None:
    """Say what a file or a model bundle holds.

    [bold]Example[/bold]: bayesspec info spec-2942-54521-0124.fits

    [bold]Example[/bold]: bayesspec info kang2021
    """
    from .terminal import print_card, print_observation

    path = Path(target)
    if path.is_dir() or not path.exists():
        from .bundle import read_card, shipped

        print_card(read_card(target), shipped().get(target, target))
        return

    from .io import read

    try:
        star = read(path)
    except ReadError as error:
        _say(str(error))
        raise typer.Exit(1) from None
    try:
        individual = read(path, exposures="individual")
    except ReadError:
        individual = None
    print_observation(star, individual)


@app.command()
def train(
    library: Annotated[
        list[Path], typer.Argument(metavar="LIBRARY", help="Tables of clean spectra with classes.")
    ],
    noise: Annotated[
        list[str],
        typer.Option(
            metavar="FILES", help="Full SDSS files: a folder, a file or a quoted pattern. Repeatable."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="BUNDLE", help="Folder of the new bundle.")],
    recipe: Annotated[str, typer.Option(help="Name of a shipped model, or a TOML or JSON file.")] = "stellar",
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew instead of going on from the checkpoints.")
    ] = False,
) -> None:
    """Train a model on star libraries and the noise of real exposures.

    A run that was stopped, or failed, goes on where it was: give the same command again.

    The bundle's card names what it was trained on, and how it does on what it has not seen.

    [bold]Example[/bold]: bayesspec train stars.fits.gz --noise boss_epochs/ -o my-model
    """
    from .training.recipe import Recipe
    from .training.recipe import train as run

    chosen = Recipe.read(recipe) if Path(recipe).is_file() else Recipe.named(recipe)
    files = _expand(noise)
    try:
        bundle = run(library, files, out, chosen, resume=not restart, progress=sys.stderr.isatty())
    except OSError as error:  # a folder that goes away in mid-run, say
        raise BayesspecError(f"{error.filename or out}: {error.strerror or error}") from error
    typer.echo(bundle)


@app.command()
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
    from .benchmark.evaluate import evaluate as run

    network = _load(model, "cpu")
    tty = sys.stderr.isatty()
    options = {"quick": quick, "sweep": sweep, "baselines": baselines, "seed": seed, "progress": tty}
    report = run(network, library, _expand(noise), out, **options)
    typer.echo(report)


bench = typer.Typer(help="Measure how fast the engines are, beside those of others.", no_args_is_help=True)
app.add_typer(bench, name="bench")


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
    from .batch import ObservationBatch
    from .benchmark.bench import bench_posterior, ratios
    from .io import read
    from .terminal import print_table

    if overwrite:
        out.unlink(missing_ok=True)
    network = _load(model, "cpu")
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
    _say(f"{len(batch)} spectra, runs in {out}")


def _load(model: str, device: str) -> StellarModel:
    from .bundle import load_model

    try:
        return load_model(model, device=device)
    except (RuntimeError, AssertionError) as error:  # how torch says that there is no such device
        raise BayesspecError(f"device {device!r} cannot be used ({str(error).splitlines()[0]})") from error


def _expand(patterns: list[str]) -> list[Path]:
    files: list[Path] = []
    for pattern in patterns:
        folder = Path(pattern).is_dir()
        found = sorted(glob.glob(f"{glob.escape(pattern)}/*.fits*" if folder else pattern))
        if not found:
            raise BayesspecError(f"--noise {pattern}: no such file, and no file is like that")
        files += map(Path, found)
    return files


def _progress(label: str, total: int) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    bar.add_task(label, total=total)
    return bar


def _say(message: str, progress: Progress | None = None) -> None:
    """One line on stderr, above the bar if there is one."""
    if progress is None or progress.disable:
        typer.echo(message, err=True)
    else:
        progress.console.print(message, markup=False, highlight=False, soft_wrap=True)
