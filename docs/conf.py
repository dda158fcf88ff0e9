"""Sphinx configuration; also writes the pages that come from the bundles' cards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import bayesspec

project = "bayesspec"
author = "The bayesspec developers"
copyright = "The bayesspec developers"
version = release = bayesspec.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "_generated"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "bayesspec"


def _escape_absolute_values(app, what, name, obj, options, lines):
    """Docstrings write |flux| for an absolute value, which reST would take for a substitution."""
    for k, line in enumerate(lines):
        if not line.lstrip().startswith(("| ", ".. ")) and "|" in line and ":math:" not in line:
            lines[k] = re.sub(r"(?<!\\)\|", r"\\|", line)


def _cards(app):
    """One page for each shipped bundle, from its model.json: no number is typed by hand."""
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    cards = sorted((Path(bayesspec.__file__).parent / "pretrained").glob("*/model.json"))
    pages = [_card_page(json.loads(path.read_text())) for path in cards]
    text = "\n\n".join(pages) or "This installation has no bundle."
    page = folder / "bundles.md"
    if not page.exists() or page.read_text() != text:
        page.write_text(text)


def _card_page(card: dict) -> str:
    provenance, metrics = card["provenance"], card["metrics"]
    generator, noise = metrics["generator"], metrics["noise"]
    spectra, loss, tested = (
        provenance.get("training_spectra", {}),
        generator["median_loss"],
        generator["spectra"],
    )
    lines = [
        f"## {card['name']}",
        "",
        f"SHA-256 of the weights: `{card['sha256']}`",
        "",
        "Training spectra by class, and the median of the generator's own loss, the mean of "
        "$(y - G(E(y)))^2$ over pixels at mean |flux| = 1, on stars that no step of the training has seen:",
        "",
        "| class | observed | stacks | models | real test spectra | median loss | models too | median loss |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in card["classes"]:
        counts = [str(spectra.get(name, {}).get(kind, 0)) for kind in ("observed", "stack", "model")]
        for kind in ("real", "all"):
            value = f"{loss[kind][name]:.1e}" if name in loss[kind] else "-"
            counts += [str(tested[kind].get(name, 0)), value]
        lines.append(f"| {name} | {' | '.join(counts)} |")
    quantiles = (f"{value:.2f} at {quantile}" for quantile, value in generator["singular_values"].items())
    lines += [
        "",
        f"Singular values of dG/dz on these stars (1 is an isometry): {', '.join(quantiles)}; "
        f"{generator['singular_values_within_0.8_1.25']:.1%} lie within 0.8-1.25.",
        "",
        f"Log density per pixel of the noise of {noise['exposures']} exposures of nights that the training "
        "has not seen, over the same pixels for all models:",
        "",
        "| model of the noise | log density per pixel |",
        "|---|---:|",
        *(
            f"| {name.replace('_', ' ')} | {value:.3f} |"
            for name, value in noise["log_density_per_pixel"].items()
        ),
        "",
        "The flow knows no wavelength, as in the paper; the per-pixel models know nothing else.",
    ]
    return "\n".join(lines)


def setup(app):
    app.connect("builder-inited", _cards)
    app.connect("autodoc-process-docstring", _escape_absolute_values)
