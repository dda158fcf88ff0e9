"""What the command line prints: aligned tables for a person, tab-separated ones for a program."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["print_card", "print_classes", "print_observation", "print_summary", "print_table"]


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print to stdout: a table on a terminal; lines of tab-separated values into a file or pipe."""
    lines = [[_text(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        sys.stdout.writelines(
            "\t".join(line) + "\n" for line in ([title] if title else [], header, *lines) if line
        )
        return
    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold")
    for name, *column in zip(header, *lines, strict=True):
        number = all(value.replace(".", "").strip("-%").isdigit() for value in column if value)
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))  # names are not markup
    Console().print(table)


def print_summary(rows: Iterable[Any]) -> None:
    """The table of a run, as `ProductWriter.summary` gives it."""
    header = ["file", "class", "probability", "chi2", "outlier", "observed", "note"]
    lines = []
    for row in rows:
        if row["status"] != "ok":
            lines.append([row["name"], "", "", "", "", "", f"{row['status']}: {row['reason']}"])
            continue
        numbers = [
            f"{row[name]:.3f}" for name in ("probability", "chi2", "outlier_score", "observed_fraction")
        ]
        lines.append([row["name"], row["class"], *numbers, row["warnings"]])
    print_table(header, lines)


def print_classes(classes: Sequence[str], probabilities: Iterable[float]) -> None:
    """Class probabilities, the largest first; what is below 1 in 1000 is left out."""
    ranked = sorted(zip(probabilities, classes, strict=True), reverse=True)
    print_table(["class", "probability"], [[name, f"{p:.3f}"] for p, name in ranked if p >= 5e-4])


def print_observation(star: Any, individual: Any | None) -> None:
    """What a file holds: an `Observation`, and one of its single exposures where there are any."""
    known = {key: value for key, value in star.meta.items() if value not in (None, (), {}, "")}
    facts = {"star": star.name, **known, "flux unit": str(star.unit) or "none"}
    facts.pop("exposures", None)
    print_table(["what", "value"], facts.items())
    parts = list(zip(star.meta.get("exposures", ("",)), star.exposures, strict=False))
    if individual is not None:
        parts += zip(individual.meta["exposures"], individual.exposures, strict=True)
    print_table(["spectrum", "pixels", "from", "to", "observed", "S/N"], [_exposure(*part) for part in parts])


def print_card(card: dict[str, Any], path: object) -> None:
    """What a bundle holds: from its `model.json`."""
    grid, recipe = card["grid"], card.get("recipe", {})
    provenance, metrics = card.get("provenance", {}), card.get("metrics", {})
    kernel = card["architecture"]["noise"]["kernel"]
    print_table(
        ["what", "value"],
        {
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
        }.items(),
    )
    generator, noise = metrics.get("generator", {}), metrics.get("noise", {})
    spectra, tested, loss = (
        provenance.get("training_spectra", {}),
        generator.get("spectra", {}).get("real", {}),
        generator.get("median_loss", {}).get("real", {}),
    )
    print_table(
        ["class", "observed", "stacks", "models", "real test spectra", "median loss"],
        [
            [
                name,
                *(spectra.get(name, {}).get(kind, 0) for kind in ("observed", "stack", "model")),
                tested.get(name, 0),
                f"{loss[name]:.2e}" if name in loss else "",
            ]
            for name in card["classes"]
        ],
        title="Training spectra, and the generator on stars that it has not seen",
    )
    if noise:
        print_table(
            ["model of the noise", "log density per pixel"],
            [[name.replace("_", " "), f"{v:.4f}"] for name, v in noise["log_density_per_pixel"].items()],
            title="Noise of epochs that were not seen",
        )


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
    return " ".join(str(value).split())
