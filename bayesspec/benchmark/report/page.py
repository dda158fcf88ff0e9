"""The HTML page of a benchmark: self-contained, every number from the tables."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from astropy.table import Row, Table

from bayesspec.benchmark.run import INPUT

from .tables import ALL

__all__ = ["page"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22272E }
body { max-width: 1160px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.7em } h2 { font-size: 1.25em; margin-top: 2.2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0; font-variant-numeric: tabular-nums }
th, td { padding: 3px 10px; text-align: right; border-bottom: 1px solid #eee; vertical-align: top }
th { border-bottom: 1px solid #888; color: #6B7480; font-weight: 600 }
td:first-child, th:first-child { text-align: left } td.text { text-align: left; max-width: 34em }
td.best { font-weight: 700; color: #0072B2 }
figure { margin: 1.2em 0 } img { max-width: 100% } figcaption, .note { color: #6B7480; font-size: 13px }
.wide { overflow-x: auto }
"""


def page(
    tables: Mapping[str, Table], images: Mapping[str, tuple[str, str]], facts: Mapping[str, str], ours: str
) -> str:
    """The whole page.

    Arguments:
        tables: From `all_tables`.
        images: By name, a PNG in base64 and its caption.
        facts: From `provenance`.
        ours: The method that was run on every set.
    """
    title = html.escape(f"Benchmark of {facts['bundle'].split(',')[0]}")
    body = "\n".join(_sections(tables, images, facts, ours))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style><h1>{title}</h1>{body}</html>\n"
    )


def _sections(
    tables: Mapping[str, Table], images: Mapping[str, tuple[str, str]], facts: Mapping[str, str], ours: str
) -> Iterable[str]:
    def image(*names: str) -> str:
        return "".join(
            f'<figure><img alt="{html.escape(images[n][1])}" src="data:image/png;base64,{images[n][0]}">'
            f"<figcaption>{html.escape(images[n][1])}</figcaption></figure>"
            for n in names
            if n in images
        )

    losses, every = tables["losses"], tables["losses"][tables["losses"]["class"] == ALL]
    plain = losses[losses["set"] == "plain"]
    yield (
        '<p class="note">Stars and nights of the sets were not used in training. Losses are mean squared '
        "differences from the clean spectrum at mean |flux| = 1, over all its pixels, including gaps. "
        "Intervals are 95 %: bootstrap for medians, binomial (Jeffreys) for fractions.</p>"
    )
    if "claims" in tables:
        yield "<h2>The paper's claims</h2>" + _table(
            ["claim", "paper", f"here, {ours}", "holds"],
            (
                [row["claim"], row["paper"], row["ours"], "yes" if row["holds"] else "no"]
                for row in tables["claims"]
            ),
        )
    yield "<h2>Median loss by class, no gap</h2>" + _pivot(plain, "class", _loss, best="loss")
    if "wins" in tables:
        wins = tables["wins"]
        own = wins[(wins["set"] == "plain") & (wins["method"] == ours)]
        if len(own):
            yield f"<h2>Fraction of spectra for which {html.escape(ours)} is better</h2>" + _pivot(
                own, "class", lambda r: _share(r, "share"), across="opponent"
            )
    losses_shown = [name for name in images if name.startswith("losses-")]
    yield image(*losses_shown, "examples", "close-ups", "latents")
    yield "<h2>Median loss of every set</h2>" + _pivot(every, "set", _loss, best="loss")
    yield image("examples-gap", "gaps", "noise")
    yield (
        "<h2>Harm: fraction of spectra that are worse than their input</h2>"
        '<p class="note">Over observed pixels. In brackets: with the '
        "clean spectrum's own noise variance subtracted from the loss and added to that of the input.</p>"
        + _pivot(every[every["method"] != INPUT], "set", _harm)
    )
    if "coverage" in tables:
        rows = tables["coverage"][tables["coverage"]["class"] == ALL]
        yield "<h2>Intervals</h2>" + _table(
            ["set", "condition", "method", "level", "covers the star", "as measured", "mean width"],
            (
                [r["set"], r["condition"], r["method"], f"{r['level']:.0%}", _share(r, "coverage"),
                 _share(r, "coverage_measured"), f"{r['width']:.4f}"]
                for r in rows
            ),
        )  # fmt: skip
        yield image("calibration")
    if "classes" in tables:
        rows = tables["classes"][tables["classes"]["class"] == ALL]
        yield "<h2>Classes: accuracy (log score)</h2>" + _pivot(rows, "set", _accuracy)
        confusion = tables["confusion"]
        own = confusion[(confusion["set"] == "plain") & (confusion["method"] == ours)]
        if len(own):
            names = [name for name in own.colnames if name not in ("set", "method", "true class")]
            yield f"<p>Confusion matrix of {html.escape(ours)}, no gap; rows are true classes.</p>" + _table(
                ["", *names], ([row["true class"], *(row[name] for name in names)] for row in own)
            )
    lines = tables["lines"][tables["lines"]["set"] == "plain"] if "lines" in tables else []
    if len(lines):
        yield (
            "<h2>Equivalent widths: median error in Å, no gap</h2>"
            '<p class="note">Only lines without missing pixels, so there are fewer for the input.</p>'
            + _pivot(lines, "line", lambda r: f"{r['error']:.2f} ({r['spectra']})", best="error")
        )
    timed = every[(every["method"] != INPUT) & (every["set"] == "plain")]
    yield "<h2>Seconds per spectrum, no gap</h2>" + _table(
        ["method", "seconds"], ([row["method"], f"{row['seconds']:.2g}"] for row in timed)
    )
    yield "<h2>Stars</h2>" + _table(
        ["set", "class", "observed", "stack", "model", "spectra"],
        (
            [row[name] for name in ("set", "class", "observed", "stack", "model", "spectra")]
            for row in tables["counts"]
        ),
    )
    yield "<h2>Provenance</h2>" + _table(["what", "value"], facts.items())


def _pivot(
    table: Table,
    down: str,
    cell: Callable[[Row], str],
    *,
    across: str = "method",
    best: str | None = None,
) -> str:
    """A row for each class, line, or set and condition; a column for each method; the best in bold."""
    columns = list(dict.fromkeys(str(name) for name in table[across]))
    conditions = down == "set"
    rows: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in table:
        label = (str(row[down]), str(row["condition"])) if conditions else (str(row[down]),)
        rows.setdefault(label, {})[str(row[across])] = row
    header = [down, *(["condition"] if conditions else []), "spectra", *columns]

    def line(label: tuple[str, ...], cells: dict[str, Row]) -> list[Any]:
        least = (
            min((row[best] for name, row in cells.items() if name != INPUT), default=None) if best else None
        )
        texts = [
            (cell(cells[name]), name != INPUT and best is not None and cells[name][best] == least)
            if name in cells
            else ""
            for name in columns
        ]
        return [*label, max(int(row["spectra"]) for row in cells.values()), *texts]

    return _table(header, (line(*item) for item in rows.items()))


def _loss(row: Row) -> str:
    return f"{row['loss']:.2g} [{row['loss_low']:.1g}, {row['loss_high']:.1g}]"


def _harm(row: Row) -> str:
    return f"{_share(row, 'harmed')} ({row['harmed_less_truth_noise']:.0%})"


def _share(row: Row, name: str) -> str:
    return f"{row[name]:.0%} [{row[f'{name}_low']:.0%}, {row[f'{name}_high']:.0%}]"


def _accuracy(row: Row) -> str:
    return f"{_share(row, 'accuracy')} ({row['log_score']:.2f})"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """HTML of a table; a cell may be a pair of its text and whether it is the best in its row."""

    def cell(value: Any) -> str:
        text, kind = value if isinstance(value, tuple) else (value, False)
        text = html.escape(str(text))
        style = ' class="best"' if kind else ' class="text"' if len(text) > 45 else ""
        return f"<td{style}>{text}</td>"

    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in header)
    lines = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'
