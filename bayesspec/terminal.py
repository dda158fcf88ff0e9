"""Output of the command line: aligned tables on a terminal, tab-separated ones for programs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .exceptions import BayesspecError, BundleError
from .observation import printable

__all__ = [
    "print_card",
    "print_classes",
    "print_counts",
    "print_observation",
    "print_status",
    "print_summary",
    "print_table",
]


_NO_DIGIT = re.compile(r"^-|[.% \N{PLUS-MINUS SIGN}]")
"""Characters that a number on a terminal may have besides digits."""

_LONG = re.compile(r"(status|reason|name|file|warnings|ew_.*|p_.*|z\d+)$")
"""Columns of a summary that are not printed, or printed in another form."""


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print to stdout: a table on a terminal, tab-separated values to a file or pipe.

    Raises:
        BayesspecError: if stdout is closed or cannot be written, such as a pipe whose reader has ended.
    """
    lines = [[_text(value) for value in row] for row in rows]
    if sys.stdout is None:
        raise BayesspecError("stdout is closed, the results are not printed")
    try:
        _write(header, lines, title)
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):  # the rest of the buffer would cause another error when Python exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise BayesspecError(f"stdout: the results cannot be printed ({error.strerror})") from error


def _write(header: Sequence[str], lines: list[list[str]], title: str) -> None:
    if not sys.stdout.isatty():
        sys.stdout.writelines(
            "\t".join(line) + "\n" for line in ([title] if title else [], header, *lines) if line
        )
        return
    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold")
    for name, *column in zip(header, *lines, strict=True):
        number = all(_NO_DIGIT.sub("", value).isdigit() for value in column if value)
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))  # Text, so that names are not read as markup
    Console().print(table)


def print_summary(table: Any, *, full: bool = False) -> None:
    """Print the table of a run, from `ProductWriter.summary`.

    Arguments:
        table: Astropy table with a row for each input.
        full: Also print the diagnostics: all columns but latents, lines and class probabilities.
    """
    columns = {
        "ra": ("ra", ".5f"),
        "dec": ("dec", ".5f"),
        "class": ("class", ""),
        "probability": ("probability", ".3f"),
        "snr": ("S/N", ".1f"),
        "velocity_offset": ("velocity [km/s]", ".1f"),
        "ebv_excess": ("E(B-V) [mag]", ".3f"),
    }
    if full:
        rest = [name for name in table.colnames if not name.endswith("_err") and not _LONG.match(name)]
        columns |= {name: (name, "") for name in rest if name not in columns}
    columns = {name: how for name, how in columns.items() if name in table.colnames}
    lines = []
    for row in table:
        done = row["status"] == "ok"
        cells = [_cell(row, name, form) if done else "" for name, (_, form) in columns.items()]
        note = _cell(row, "warnings", "") if done else f"{row['status']}: {row['reason']}"
        lines.append([row["name"], *cells, note])
    print_table(["file", *(title for title, _ in columns.values()), "note"], lines)


def _cell(row: Any, name: str, form: str) -> str:
    """A value of a summary, with its error if there is one; empty if unknown."""
    import numpy as np

    if np.ma.is_masked(row[name]):
        return ""
    value = row[name]
    text = format(value, form or (".5g" if isinstance(value, float | np.floating) else ""))
    error = f"{name}_err"
    if error in row.colnames and not np.ma.is_masked(row[error]):
        text += f" \N{PLUS-MINUS SIGN} {row[error]:{form}}"
    return text


def print_counts(counts: Mapping[str, int]) -> None:
    """Print the number of inputs in each class, for a large run."""
    ranked = sorted(counts.items(), key=lambda item: (item[0] == "failed", -item[1]))
    print_table(["class", "stars"], ranked)


def print_status(found: Mapping[str, Any]) -> None:
    """Print the progress of a run, from `bayesspec.survey.progress.status`."""
    from .survey.progress import duration

    facts = {
        "state": found["state"] + (f", {found['where']}" if found["where"] else ""),
        "done": f"{found['done']} of {found['total']} ({found['done'] / max(found['total'], 1):.1%})",
        "failed": found["failed"],
        "last change": f"{duration(found['updated'])} ago",
    }
    if found["rate"]:
        facts |= {"rate": f"{found['rate']:.3g} per second", "time left": duration(found["left"])}
    print_table(["what", "value"], facts.items())


def print_classes(
    classes: Sequence[str], probabilities: Iterable[float], warnings: Sequence[str] = ()
) -> None:
    """Print class probabilities that do not round to 0, the largest first, and the star's warnings."""
    ranked = sorted(zip(probabilities, classes, strict=True), reverse=True)
    notes = ["; ".join(warnings)] + [""] * (len(ranked) - 1)
    rows = [[name, f"{p:.3f}", note] for (p, name), note in zip(ranked, notes, strict=True) if p >= 5e-4]
    print_table(["class", "probability", "note"], rows)


def print_observation(star: Any, individual: Any | None) -> None:
    """Print the contents of a file: an `Observation`, and one of its single exposures if there are any."""
    known = {key: value for key, value in star.meta.items() if value not in (None, (), {}, "")}
    facts = {"star": star.name, **known, "flux unit": str(star.unit) or "none"}
    facts.pop("exposures", None)
    print_table(["what", "value"], facts.items())
    parts = list(zip(star.meta.get("exposures", ("",)), star.exposures, strict=False))
    if individual is not None:
        parts += zip(individual.meta["exposures"], individual.exposures, strict=True)
    print_table(["spectrum", "pixels", "from", "to", "observed", "S/N"], [_exposure(*part) for part in parts])


def print_card(card: dict[str, Any], path: object) -> None:
    """Print what a bundle's `model.json` says.

    Raises:
        BundleError: if it is not the card of a bayesspec model.
    """
    try:
        tables = _card_tables(card, path)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise BundleError(f"{path}: model.json is not the card of a bayesspec model ({cause})") from error
    for header, rows, title in tables:
        print_table(header, rows, title=title)


def _card_tables(card: dict[str, Any], path: object) -> list[tuple[list[str], list[list[object]], str]]:
    grid, recipe = card["grid"], card.get("recipe", {})
    provenance, metrics = card.get("provenance", {}), card.get("metrics", {})
    kernel = card["architecture"]["noise"]["kernel"]
    facts = {
        "model": card["name"],
        "bundle": path,
        "made by": f"bayesspec {card['bayesspec']}, {provenance.get('date', 'date unknown')}",
        "grid": f"{grid['size']} pixels, {grid['start']:g}-{grid['stop']:g} Angstrom, "
        + ("log-uniform" if grid["log"] else "uniform"),
        "latents": _latents(card),
        "noise": f"flow over the {kernel} pixels before"
        + (", in units of the pipeline's" if "residual" in card["architecture"] else ""),
        "seed": recipe.get("seed", "unknown"),
        "trained on": ", ".join(provenance.get("tables", ["unknown"])),
        "noise of": f"{provenance.get('training_exposures', 'unknown')} exposures",
        "sha256": card["sha256"],
    }
    generator, noise = metrics.get("generator", {}), metrics.get("noise", {})
    spectra, tested, loss = (
        provenance.get("training_spectra", {}),
        generator.get("spectra", {}).get("real", {}),
        generator.get("median_loss", {}).get("real", {}),
    )
    classes = [
        [
            name,
            *(spectra.get(name, {}).get(kind, 0) for kind in ("observed", "stack", "model")),
            tested.get(name, 0),
            f"{loss[name]:.2e}" if name in loss else "",
        ]
        for name in card["classes"]
    ]
    tables = [
        (["what", "value"], [list(fact) for fact in facts.items()], ""),
        (
            ["class", "observed", "stacks", "models", "real test spectra", "median loss"],
            classes,
            "Training spectra, and the generator's loss on unseen stars",
        ),
    ]
    if noise:
        densities = noise["log_density_per_pixel"].items()
        tables.append(
            (
                ["model of the noise", "log density per pixel"],
                [[name.replace("_", " "), f"{v:.4f}"] for name, v in densities],
                "Noise of unseen epochs",
            )
        )
    return tables


def _latents(card: dict[str, Any]) -> str:
    own = str(card["architecture"]["generator"]["latent_dim"])
    if "residual" not in card["architecture"]:
        return own
    return f"{own}, and {card['architecture']['residual']['components']} patterns of residuals"


def _exposure(name: str, exposure: Any) -> list[str]:
    import numpy as np

    good = ~exposure.mask
    snr = ""
    if exposure.ivar is not None and good.any():
        snr = f"{np.median(exposure.flux[good] * np.sqrt(exposure.ivar[good])):.1f}"
    low, high = exposure.wavelength[[0, -1]]
    return [name, str(len(good)), f"{low:.1f}", f"{high:.1f}", f"{good.mean():.1%}", snr]


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return printable(" ".join(str(value).split()))
