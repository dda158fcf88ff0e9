"""The command line: `bayesspec denoise | status | report | demo | info | train | evaluate | bench`.

Nothing heavy is imported before a command runs, so that --help is quick. Results go to stdout, everything
else to stderr. Exit status: 0 all well, 1 an input failed, 2 the command was not understood, or it could not
do its work: no space on the disk, stdout closed; 130 and 143 stopped by SIGINT (Ctrl-C) and SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .benchmark.commands import bench, evaluate
from .exceptions import BayesspecError, ReadError
from .options import Overwrite, Seed, expand, load, say

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
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Spectra: SDSS, BOSS, LAMOST, text; tables and images of many; folders, quoted patterns; "
            "@LIST for a file with a name a line.",
        ),
    ],
    out: Out = Path("denoised"),
    model: Annotated[str, typer.Option(help="A shipped model, or the folder of a bundle.")] = "stellar",
    method: Annotated[
        str | None,
        typer.Option(
            help="map: the mode of the posterior. laplace: mean and standard deviation too, by normal "
            "distributions at the modes. importance: the same by weighted draws. nuts: the same by "
            "Hamiltonian Monte Carlo, slowly. Without it map, or importance with --uncertainty."
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
    per_star: Annotated[
        bool | None,
        typer.Option(
            "--per-star/--parts",
            help="A file a star, or tables of some hundred stars and a catalogue. A file a star for fewer "
            "than a thousand, if neither is given.",
        ),
    ] = None,
    figures: Annotated[bool, typer.Option("--figures", help="Save a figure of every star.")] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Print the diagnostics, too, which files always have."),
    ] = False,
    overwrite: Overwrite = False,
    device: Annotated[str, typer.Option(help="cpu, or a GPU: cuda, cuda:1.")] = "cpu",
    seed: Seed = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Stars of one batch of inference: 16, on a GPU 64, if not given."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processes of one thread each; one a core if not given, for a file a star none."
        ),
    ] = None,
    piece_size: Annotated[int, typer.Option(min=1, help="Stars of a part, and of a worker's task.")] = 256,
    time_limit: Annotated[
        float,
        typer.Option(min=0.001, help="Seconds after which an input that is still being read is given up."),
    ] = 60.0,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Scheduler of a Dask cluster that does the work, or its file."),
    ] = None,
    part: Annotated[
        str | None, typer.Option(metavar="K/N", help="Do the share of job K of an array of N.")
    ] = None,
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Go on with a run of another machine that ended without a word."),
    ] = False,
) -> None:
    """Denoise spectra: one, or millions.

    Writes a FITS table for every star, and summary.ecsv with a row for every input; or, from a thousand on,
    parts of some hundred stars and a catalogue.

    A run that was stopped goes on where it was: give the same command again.

    An input that cannot be used is named on stderr, the others go on, and the exit status is 1.

    [bold]Example[/bold]: bayesspec denoise spec-*.fits -o out/ --figures

    [bold]Example[/bold]: bayesspec denoise survey/ -o out/ --workers 16
    """
    from .inference.denoise import choose_method
    from .survey.runner import denoise_survey
    from .terminal import print_counts, print_summary

    survey = denoise_survey(
        inputs,
        out,
        model=model,
        method=None if method is None else choose_method(method),
        uncertainty=uncertainty,
        exposures=exposures.value,
        strict=strict,
        seed=seed,
        device=device,
        batch_size=batch_size,
        per_star=per_star,
        figures=figures,
        piece_size=piece_size,
        time_limit=time_limit,
        workers=workers,
        scheduler=scheduler,
        part=_share(part),
        overwrite=overwrite,
        take_over=take_over,
        progress=True,
    )
    counts: Counter[str] = Counter()
    try:
        with _stopped_by_signals(), closing(survey):
            for row in survey:
                counts[row.get("class", "failed")] += 1
    except Stopped as stop:
        say(f"stopped: {survey.done} of {survey.total} done; the same command goes on")
        raise typer.Exit(128 + stop.number) from None
    share = survey.total if part is None else survey.share
    try:
        print_summary(survey.summary(), full=full) if survey.per_star else print_counts(counts)
    finally:
        say(f"{survey.done - survey.failed} of {share} denoised, products in {out}")
    raise typer.Exit(1 if survey.failed else 0)


@app.command()
def status(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder of a run.")],
) -> None:
    """Say how far a run of denoise is, running or stopped.

    [bold]Example[/bold]: bayesspec status out/
    """
    from .survey.progress import status as look
    from .terminal import print_status

    print_status(look(out))


@app.command()
def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder of a run.")],
    page: Annotated[Path | None, typer.Option("--page", help="Instead of OUT/report.html.")] = None,
    spectra: Annotated[int, typer.Option(min=0, help="How many spectra the page holds.")] = 300,
    sample: Annotated[int, typer.Option(min=0, help="Stars besides those with warnings.")] = 1000,
    seed: Seed = 0,
) -> None:
    """Make one HTML page of a run of denoise, to look at without a server.

    Counts, distributions, what failed, and a table of stars: all that have a warning, and a sample.

    [bold]Example[/bold]: bayesspec report out/
    """
    from .survey.report import write_report

    typer.echo(write_report(out, page, spectra=spectra, sample=sample, seed=seed))


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

    say("making three noisy exposures of a real star, and denoising them")
    outcome = run_demo(out, load(model, "cpu"), seed=seed, overwrite=overwrite)
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
        say(str(error))
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
    files = expand(noise)
    try:
        bundle = run(library, files, out, chosen, resume=not restart, progress=sys.stderr.isatty())
    except OSError as error:  # a folder that goes away in mid-run, say
        raise BayesspecError(f"{error.filename or out}: {error.strerror or error}") from error
    typer.echo(bundle)


app.command()(evaluate)
app.add_typer(bench, name="bench")


class Stopped(BaseException):
    """A signal asks for the end."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Stopped`, once: what comes after it tidies up in peace."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    try:
        before = [signal.signal(number, stop) for number in numbers]
    except ValueError:  # not the main thread, which alone hears of signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _share(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal()):
        raise BayesspecError(f"--part {text}: the share is K/N, such as 3/64")
    return int(k), int(n)
