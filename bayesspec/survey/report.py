"""`bayesspec report`: a run as a single HTML page that needs neither a server nor the network."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayesspec.exceptions import BayesspecError
from bayesspec.results.products import written

from .browse import Browser, open_run
from .folder import STATE, read_json
from .progress import status

__all__ = ["write_report"]

LISTED = 5000
"""Maximum number of stars in the table of the page, and also of failures."""

BINS = 60

_HIDDEN = ("position", "status", "reason", "unit", "part", "row", "file")
_FIRST = ("name", "star", "class", "probability", "snr")


def write_report(
    out: str | Path, path: str | Path | None = None, *, spectra: int = 300, sample: int = 1000, seed: int = 0
) -> Path:
    """Write the page of a run: counts, distributions, failures, and stars to look at.

    A large run is represented by a random sample and by all stars with a warning, the most unusual first, up
    to 5,000. Spectra are shown for the first of these and for the sample.

    Arguments:
        out: Output folder of the run.
        path: The page; `report.html` in the folder if not given.
        spectra: Number of spectra on the page, 30 to 60 KB each.
        sample: Number of random stars in the table besides those with warnings; all if the run has no more.
        seed: Seed of the sample.

    Raises:
        BayesspecError: if there is no catalogue, plotly is not installed, or the page cannot be written.
    """
    try:
        from jinja2 import Environment, PackageLoader
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise BayesspecError('a report needs plotly: pip install "bayesspec-stars[scale]"') from error
    run = open_run(out)
    failed = run.where("status", "failed")
    done = run.where("status", "ok")
    chosen = _chosen(run, done, sample, seed)
    rows = run.rows(chosen)
    for row, data in zip(rows, _with_spectra(run, rows, spectra), strict=True):
        row["_spectrum"] = data
    environment = Environment(loader=PackageLoader("bayesspec", "survey"), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        title=Path(out).resolve().name,
        facts=_facts(run, status(out)),
        plotly=get_plotlyjs(),
        data=_json(
            {
                "classes": Counter(run.column("class")[done].tolist()).most_common() if len(done) else [],
                "histograms": _histograms(run, done),
                "columns": _columns(run),
                "units": run.units,
                "stars": rows,
                "failures": run.rows(failed[:LISTED]),
                "causes": _causes(run, failed),
                "total_failed": len(failed),
                "total_done": len(done),
            }
        ),
    )
    path = Path(out) / "report.html" if path is None else Path(path)
    with written(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def _chosen(run: Browser, done: NDArray[np.int64], sample: int, seed: int) -> NDArray[np.int64]:
    """Rows to show: those with warnings, the most unusual first, and a sample, each row once."""
    flagged = run.where("warnings", "", equal=False) if "warnings" in run.units else done[:0]
    if "outlier_score" in run.units:
        flagged = flagged[np.argsort(run.column("outlier_score")[flagged], kind="stable")]
    flagged = flagged[:LISTED]
    others = np.setdiff1d(done, flagged)
    if len(others) > sample:
        others = np.sort(np.random.default_rng(seed).choice(others, sample, replace=False))
    return np.concatenate([flagged, others])


def _with_spectra(run: Browser, rows: list[dict[str, Any]], count: int) -> list[dict[str, Any] | None]:
    """Spectra of `count` rows: half from the beginning, where the warnings are, half spread over the rest."""
    first = min(len(rows), count // 2)
    rest = np.linspace(first, len(rows) - 1, min(count - first, len(rows) - first)).astype(int)
    wanted = {*range(first), *rest.tolist()}
    return [_packed(run.spectrum(row)) if n in wanted else None for n, row in enumerate(rows)]


def _packed(columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Arrays as 16-bit integers between their extremes: finer than a screen shows, a quarter of the size."""
    packed: dict[str, Any] = {}
    for name, values in columns.items():
        if name == "MASK":
            packed[name] = base64.b64encode(np.packbits(np.asarray(values, dtype=bool)).tobytes()).decode()
            continue
        values = np.asarray(values, dtype=float)
        low, high = float(values.min()), float(values.max())
        scaled = np.round((values - low) / (high - low if high > low else 1) * 65535).astype("<u2")
        packed[name] = [low, high, base64.b64encode(scaled.tobytes()).decode()]
    return packed


def _histograms(run: Browser, done: NDArray[np.int64]) -> dict[str, Any]:
    """Histograms of the numbers in the catalogue, without the most extreme per cent."""
    found = {}
    for name in _columns(run):
        values = run.column(name)
        if values.dtype.kind not in "if":
            continue
        values = values[done].astype(float)
        values = values[np.isfinite(values)]
        if len(values) > 1 and values.min() < values.max():
            low, high = np.percentile(values, [0.5, 99.5] if len(values) > 400 else [0, 100])
            counts, edges = np.histogram(values, BINS, (low, high) if high > low else None)
            found[name] = {"counts": counts.tolist(), "edges": edges.tolist()}
    return found


def _columns(run: Browser) -> list[str]:
    """Columns to show: without class probabilities, latents and positions of files."""
    names = [n for n in run.units if n not in (*_HIDDEN, "warnings") and not n.startswith("p_")]
    names = [n for n in names if not (n[0] == "z" and n[1:].isdigit())]
    first = [name for name in _FIRST if name in names]
    return [*first, *(n for n in names if n not in first), *(["warnings"] if "warnings" in run.units else [])]


def _causes(run: Browser, failed: NDArray[np.int64]) -> list[tuple[str, int]]:
    """Numbers of failures for the same reason, ignoring numbers and names in it."""
    import re

    reasons = run.column("reason")[failed]
    plain = (re.sub(r"\d[\d.e+-]*", "N", str(reason).rpartition(": ")[2]) for reason in reasons)
    return Counter(plain).most_common(30)


def _facts(run: Browser, found: dict[str, Any]) -> dict[str, Any]:
    settings = read_json(run.root / STATE / "run.json") or {}
    keys = ("model", "method", "exposures", "seed", "bayesspec")
    return {
        "state": found["state"],
        "inputs": found["total"],
        "done": found["done"],
        "failed": found["failed"],
        **{key: settings[key] for key in keys if key in settings},
    }


def _json(value: Any) -> str:
    """JSON that is safe in a script: without closing tags, and with null for NaN and infinities."""

    def clean(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: clean(part) for key, part in item.items()}
        if isinstance(item, list | tuple):
            return [clean(part) for part in item]
        if isinstance(item, float) and not np.isfinite(item):
            return None
        return item

    return json.dumps(clean(value), allow_nan=False).replace("<", "\\u003c")
