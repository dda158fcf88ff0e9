"""Sphinx configuration; also writes the pages that come from the bundles' cards."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
from astropy.table import Table

import bayesspec

project = "bayesspec"
author = "The bayesspec developers"
copyright = "The bayesspec developers"
version = release = bayesspec.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "_generated", "results"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_merge_streams = True

html_theme = "furo"
html_title = "bayesspec"


def _escape_absolute_values(app, what, name, obj, options, lines):
    """Docstrings write |flux| for an absolute value, which reST would take for a substitution."""
    for k, line in enumerate(lines):
        if not line.lstrip().startswith(("| ", ".. ")) and "|" in line and ":math:" not in line:
            lines[k] = re.sub(r"(?<!\\)\|", r"\\|", line)


def _tutorials(app):
    """The notebooks, which Sphinx reads from its own folder alone, and whose links are those of theirs.

    They are executed once for each state of the package: outputs are kept under its hash.
    """
    source = Path(app.srcdir)
    package = Path(bayesspec.__file__).parent
    state = hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *package.glob("pretrained/*/model.json")]):
        state.update(path.read_bytes())
    app.config.nb_execution_cache_path = str(source / "_build" / f".tutorials-{state.hexdigest()[:12]}")

    folder, notebooks = source / "tutorials", sorted((source.parent / "tutorials").glob("*.ipynb"))
    folder.mkdir(exist_ok=True)
    for gone in {path.name for path in folder.glob("*.ipynb")} - {path.name for path in notebooks}:
        (folder / gone).unlink()
    for path in notebooks:
        _write(folder / path.name, path.read_text(encoding="utf-8").replace("](../docs/", "](../"))


def _cards(app):
    """One page for each shipped bundle, from its model.json: no number is typed by hand."""
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    cards = sorted((Path(bayesspec.__file__).parent / "pretrained").glob("*/model.json"))
    pages = [_card_page(json.loads(path.read_text())) for path in cards]
    text = "\n\n".join(pages) or "This installation has no bundle."
    _write(folder / "bundles.md", text)


def _write(page, text):
    """Make a page anew where it has changed: Sphinx reads again what is new."""
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


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
        "All are given the pipeline's inverse variance; the Student-t has a factor for each pixel besides."
        if "residual" in card["architecture"]
        else "The flow knows no wavelength, as in the paper; the per-pixel models know nothing else.",
    ]
    return "\n".join(lines)


def _results(app):
    """The committed numbers of the benchmark, from their ECSV tables: no number is typed by hand."""
    source = Path(app.srcdir)
    pages = [_results_page(folder) for folder in sorted((source / "results").glob("*/"))]
    _write(source / "_generated" / "results.md", "\n\n".join(pages))


def _results_page(folder: Path) -> str:
    tables = {path.stem: Table.read(path) for path in sorted((folder / "tables").glob("*.ecsv"))}
    lines = [f"## {folder.name}", "", "### The paper's claims", ""]
    claims = tables["claims"]
    lines += ["| claim | the paper's number | ours | holds |", "|---|---|---|---|"]
    lines += [
        f"| {row['claim']} | {row['paper']} | {row['ours']} | {'yes' if row['holds'] else 'no'} |"
        for row in claims
    ]
    losses = tables["losses"]
    classes = list(dict.fromkeys(losses["class"]))
    for name, title in RESULTS.items():
        own = losses[losses["set"] == name]
        for condition in dict.fromkeys(own["condition"]):
            rows = own[own["condition"] == condition]
            what = title if condition == "-" else f"{title}: {condition}"
            lines += ["", f"### {what}", "", f"| median loss | {' | '.join(classes)} |"]
            lines += ["|---" + "|---:" * len(classes) + "|"]
            for method in dict.fromkeys(rows["method"]):
                by_class = {row["class"]: row["loss"] for row in rows[rows["method"] == method]}
                numbers = [f"{by_class[c]:.1e}" if c in by_class else "-" for c in classes]
                lines.append(f"| {method} | {' | '.join(numbers)} |")
    lines += ["", "### Figures", ""]
    for path in sorted((folder / "figures").glob("*.png")):
        lines += [f"![{path.stem}](results/{folder.name}/figures/{path.name})", ""]
    return "\n".join(lines)


def _changed_stars(app):
    """Stars that move, are reddened or miscalibrated: the default model beside the version before."""
    source = Path(app.srcdir)
    table = Table.read(source / "results" / "changed-stars.ecsv")
    lines = [
        "| the star | spectra | median loss before | now | class right before | now |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in table:
        losses = " | ".join(f"{row[name]:.1e}" for name in ("loss_before", "loss"))
        shares = " | ".join(f"{row[name]:.0%}" for name in ("class_before", "class"))
        lines.append(f"| {row['star']} | {row['spectra']} | {losses} | {shares} |")
    _write(source / "_generated" / "changed-stars.md", "\n".join(lines) + "\n")


LEVELS = (50, 68, 90, 95)
"""Of intervals, in per cent."""


def _stellar(app):
    """The default model on unseen stars, beside the version before, class by class."""
    source = Path(app.srcdir)
    table = Table.read(source / "results" / "stellar.ecsv")
    lines = []
    for name, title in RESULTS.items():
        own = [row for row in table if row["set"] == name]
        if not own:
            continue
        lines += [f"### {title}", ""]
        lines += ["| | stars | median loss, 0.1 | now | ratio | class right, 0.1 | now |"]
        lines[-1] += " 90 % intervals contain | the truth's noise allowed for |"
        lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
        for row in own:
            ratio = f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
            cells = [
                row["klass"],
                str(row["stars"]),
                f"{row['loss_before']:.1e}",
                f"{row['loss']:.1e}",
                ratio,
            ]
            shares = ("right_before", "right", "covered_90", "measured_90")
            lines.append(f"| {' | '.join(cells + [f'{row[share]:.0%}' for share in shares])} |")
        lines += ["", f"| {title}, all classes | {' | '.join(f'{q} %' for q in LEVELS)} |"]
        lines += ["|---" + "|---:" * len(LEVELS) + "|"]
        kinds = {"seen": "pixels that were seen", "unseen": "pixels that were not"}
        for kind, what in (kinds | {"measured": "all, the truth's noise allowed for"}).items():
            values = [own[0][f"{kind}_{q}"] for q in LEVELS]
            if values[0] == values[0]:
                lines.append(f"| {what} | {' | '.join(f'{value:.0%}' for value in values)} |")
        lines.append("")
    _write(source / "_generated" / "stellar.md", "\n".join(lines) + "\n")


def _nuts(app):
    """How NUTS of the default model does on unseen stars."""
    source = Path(app.srcdir)
    table = Table.read(source / "results" / "nuts.ecsv")
    good = int(((table["r_hat"] < 1.01) & (table["ess"] > 400)).sum())
    lines = [
        f"R-hat is below 1.01 and the effective number of draws, bulk and tail, above 400 in {good} of "
        f"{len(table)} stars. A star took {float(np.median(table['seconds'])):.0f} core-seconds (median).",
        "",
        "| star | R-hat | least effective draws | divergences | jumped |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in table:
        cells = f"{row['r_hat']:.3f} | {row['ess']:.0f} | {row['divergences']} | {row['jumped']:.0%}"
        lines.append(f"| {row['star']} | {cells} |")
    _write(source / "_generated" / "nuts.md", "\n".join(lines) + "\n")


SURVEYS = {"LAMOST DR10, low resolution": 11.4e6, "DESI DR1, stars": 4e6}
"""Spectra of surveys, of whose cost the page on surveys gives an idea."""

CORES = 64


def _survey(app):
    """What surveys cost: measured runs, and what follows for large ones."""
    source = Path(app.srcdir)
    runs = Table.read(source / "results" / "survey.ecsv")
    start = [run for run in runs if run["by"] == "start-up"]
    work = [run for run in runs if run["by"] != "start-up"]
    lines = [
        f"One machine of {runs['cores'][0]} cores, otherwise idle but where the load before the run says so. "
        "Processor time counts all processes, with their start; peak memory is that of the largest. Spectra "
        "are simulated; toy128 is a model of 128 pixels with random weights, which shows what the runner "
        "itself costs.",
        "",
        *_survey_ratios(work),
        "",
    ]
    if work:
        lines += [
            "| model | method | spectra | workers | by | wall clock, s | processor, s | spectra a core-s "
            "| peak memory, MiB | load before |",
            "|---|---|---:|---:|---|---:|---:|---:|---:|---:|",
        ]
    for run in work:
        facts = [str(run[name]) for name in ("model", "method", "spectra", "workers", "by")]
        rate = run["spectra"] / run["processor"]
        numbers = [f"{run['seconds']:.0f}", f"{run['processor']:.0f}", f"{rate:.1f}"]
        numbers += [str(run["peak_memory"]), f"{run['load']:.1f}"]
        lines.append(f"| {' | '.join(facts + numbers)} |")
    lines += [
        "",
        "| a list of files | files | processor, s | wall clock, s |",
        "|---|---:|---:|---:|",
        *(
            f"| until the run can {run['method']} | {run['spectra']} | {run['processor']:.1f} | "
            f"{run['seconds']:.0f} |"
            for run in start
        ),
    ]
    best: dict[str, float] = {}
    for run in work:
        if run["model"] in ("kang2021", "stellar"):
            key = f"{run['model']}, {run['method']}"
            best[key] = max(best.get(key, 0.0), run["spectra"] / run["processor"])
    if best:
        head = f"| on {CORES} such cores, all of them busy | {' | '.join(SURVEYS)} |"
        lines += ["", head, "|---|" + "---:|" * len(SURVEYS)]
    for name, rate in best.items():
        days = (f"{count / rate / CORES / 86400:.2g} days" for count in SURVEYS.values())
        lines.append(f"| {name} | {' | '.join(days)} |")
    lines += ["", "| killed with -9 | kills | runs that ended with other bytes |", "|---|---:|---:|"]
    for row in Table.read(source / "results" / "survey-kills.ecsv"):
        lines.append(f"| {row['what']} | {row['kills']} | {row['other_bytes']} |")
    _write(source / "_generated" / "survey.md", "\n".join(lines) + "\n")


def _survey_ratios(runs):
    """What a second worker, Dask, and fifty times as many spectra change: each pair that was measured."""

    def pairs(name, first, second):
        same = [key for key in ("model", "method", "spectra", "workers", "by") if key != name]
        for a in runs:
            for b in runs:
                if (a[name], b[name]) == (first, second) and all(a[key] == b[key] for key in same):
                    yield a, b

    lines = [
        f"* Two workers are {one['seconds'] / two['seconds']:.2f} times as fast as one ({one['model']}, "
        f"{one['method']}, {one['spectra']} spectra)."
        for one, two in pairs("workers", 1, 2)
    ]
    lines += [
        f"* Dask is {processes['seconds'] / dask['seconds']:.2f} times as fast as processes "
        f"({dask['model']}, {dask['spectra']} spectra, {dask['workers']} workers)."
        for processes, dask in pairs("by", "processes", "dask")
    ]
    lines += [
        f"* {many['spectra']:,} spectra take {many['peak_memory'] / few['peak_memory']:.2f} times the memory "
        f"of {few['spectra']:,}, and one of them "
        f"{many['processor'] / few['processor'] * few['spectra'] / many['spectra']:.2f} times the "
        f"processor's time ({many['model']})."
        for few, many in pairs("spectra", 2_000, 100_000)
    ]
    return lines


RESULTS = {
    "plain": "Complete spectra",
    "interval": "An interval of 100 to 1000 pixels removed",
    "high_snr": "Good spectra",
    "one_arm": "One arm only",
    "sky": "Sky lines and cosmic rays",
    "hits": "A single pixel, in units of the mean flux",
    "arms": "Red arm off by 5 to 20 %",
    "moving": "Moving stars",
    "dust": "Stars behind dust",
    "calibration": "Smooth errors of flux calibration",
    "visits": "Two to six exposures",
}
"""Sets of the benchmark whose losses are printed class by class."""


def setup(app):
    app.connect("config-inited", lambda app, _: _tutorials(app))
    app.connect("builder-inited", _cards)
    app.connect("builder-inited", _results)
    app.connect("builder-inited", _changed_stars)
    app.connect("builder-inited", _stellar)
    app.connect("builder-inited", _nuts)
    app.connect("builder-inited", _survey)
    app.connect("autodoc-process-docstring", _escape_absolute_values)
