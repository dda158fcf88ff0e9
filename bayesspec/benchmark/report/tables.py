"""The numbers of a benchmark as tables: losses, wins, intervals, classes, lines, and the paper's claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from bayesspec.benchmark.measures.compare import (
    Estimate,
    accuracy,
    confusion,
    log_score,
    mean,
    median,
    share,
    wins,
)
from bayesspec.benchmark.measures.coverage import LEVELS
from bayesspec.benchmark.run import INPUT, Scored
from bayesspec.observation import FULL_COVERAGE
from bayesspec.results.lines import LINES
from bayesspec.training.library import CLASSES
from bayesspec.training.simulation import PAPER_SIZE

__all__ = ["CONDITIONS", "all_tables", "condition_rows"]

CONDITIONS = {
    "gaps": ("gap_width", "gap_place"),
    "der_snr": ("level",),
    "high_snr": ("snr",),
    "one_arm": ("arm",),
    "hits": ("height",),
    "moving": ("velocity",),
    "dust": ("ebv",),
    "calibration": ("calibration_error",),
}
"""The conditions that distinguish the spectra of a set; other sets have only one."""

ALL = "all"

AUTOENCODER = "autoencoder"
"""Part of the name of the paper's opponent."""

Found = Mapping[str, Scored]


def all_tables(found: Found, ours: str) -> dict[str, Table]:
    """Every table, by name.

    Arguments:
        found: From `run_benchmark`.
        ours: The method for the wins and the paper's claims.
    """
    tables = {
        "losses": _table(_losses(found)),
        "wins": _table(_wins(found)),
        "coverage": _table(_coverage(found)),
        "classes": _table(_classes(found)),
        "confusion": _table(_confusion(found)),
        "lines": _table(_lines(found)),
        "counts": _table(_counts(found)),
        "claims": _table(_claims(found, ours)),
    }
    return {name: table for name, table in tables.items() if len(table)}


def condition_rows(scored: Scored) -> Iterator[tuple[dict[str, Any], NDArray[np.bool_]]]:
    """The conditions of a set and the spectra of each, (N,); a set without conditions has all in one."""
    names = CONDITIONS.get(scored.data.name, ())
    columns = [scored.data.condition[name] for name in names]
    for values in sorted(set(zip(*columns, strict=True))) if names else [()]:
        rows = np.ones(len(scored.data), bool)
        for column, value in zip(columns, values, strict=True):
            rows &= column == value
        yield dict(zip(names, (v.item() for v in values), strict=True)), rows


def _groups(scored: Scored) -> Iterator[tuple[dict[str, str], NDArray[np.bool_]]]:
    """The spectra of each set, condition and class; then those of all classes."""
    klass = scored.data.klass
    for condition, rows in condition_rows(scored):
        text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in condition.items())
        for c, name in enumerate((*CLASSES, ALL)):
            own = rows & ((klass == c) | (name == ALL))
            if own.any():
                yield {"set": scored.data.name, "condition": text or "-", "class": name}, own


def _losses(found: Found) -> Iterator[dict[str, Any]]:
    """Medians with bootstrap intervals, and how often a spectrum is made worse than the input."""
    for scored in found.values():
        before = scored.scores[INPUT]
        for group, rows in _groups(scored):
            for method, scores in scored.scores.items():
                observed, own = scores["loss_observed"][rows], before["clean_variance"][rows]
                loss = scores.get("loss", scores["loss_observed"])[rows]
                noise = before["loss_observed"][rows]
                yield {
                    **group,
                    "method": method,
                    **_interval("loss", median(loss)),
                    "loss_less_truth_noise": float(np.median(loss - own)),
                    "loss_observed": float(np.median(observed)),
                    "loss_missing": float(np.median(scores.get("loss_missing", np.zeros(len(rows)))[rows])),
                    "loss_over_noise": float(np.median(observed / np.maximum(noise, 1e-30))),
                    **_interval("der_snr", median(scores["der_snr"][rows])),
                    **_interval("harmed", share(observed > noise)),
                    # Both relative to the star, not to the noisy truth.
                    "harmed_less_truth_noise": float(np.mean(observed - own > noise + own)),
                    "seconds": scored.seconds.get(method, 0.0),
                }


def _wins(found: Found) -> Iterator[dict[str, Any]]:
    for scored in found.values():
        for group, rows in _groups(scored):
            for ours, theirs in _pairs(scored):
                won = wins(scored.scores[ours]["loss"][rows], scored.scores[theirs]["loss"][rows])
                yield {**group, "method": ours, "opponent": theirs, **_interval("share", won)}


def _coverage(found: Found) -> Iterator[dict[str, Any]]:
    for scored in found.values():
        for method, scores in scored.scores.items():
            if "coverage" not in scores:
                continue
            for group, rows in _groups(scored):
                for k, level in enumerate(LEVELS):
                    row = {**group, "method": method, "level": level}
                    for name in ("coverage", "coverage_measured", "width"):
                        row |= _interval(name, mean(scores[name][rows, k]))
                    gaps = rows & (scored.scores[INPUT]["observed"] < FULL_COVERAGE)
                    hidden = scores["coverage_missing"][gaps, k]
                    share = float(hidden.mean()) if len(hidden) else 0.0
                    yield {**row, "gaps": len(hidden), "coverage_missing": share}


def _classes(found: Found) -> Iterator[dict[str, Any]]:
    for scored in found.values():
        for group, rows in _groups(scored):
            for method, scores in scored.scores.items():
                if "class_probabilities" in scores:
                    p, klass = scores["class_probabilities"][rows], scored.data.klass[rows]
                    right = accuracy(p, klass)
                    score = _interval("log_score", log_score(p, klass))
                    yield {**group, "method": method, **_interval("accuracy", right), **score}


def _confusion(found: Found) -> Iterator[dict[str, Any]]:
    for scored in found.values():
        for method, scores in scored.scores.items():
            if "class_probabilities" in scores:
                table = confusion(scores["class_probabilities"], scored.data.klass)
                for name, row in zip(CLASSES, table, strict=True):
                    counted = dict(zip(CLASSES, row.tolist(), strict=True))
                    yield {"set": scored.data.name, "method": method, "true class": name, **counted}


def _lines(found: Found) -> Iterator[dict[str, Any]]:
    for scored in found.values():
        for method, scores in scored.scores.items():
            for line in LINES:
                error = scores[f"ew {line}"][scores[f"ew {line} measured"]]
                if len(error):
                    yield {
                        "set": scored.data.name,
                        "method": method,
                        "line": line,
                        "bias": float(np.median(error)),
                        **_interval("error", median(np.abs(error))),
                    }


def _counts(found: Found) -> Iterator[dict[str, Any]]:
    for scored in found.values():
        for name, kinds in scored.data.counts().items():
            spectra = int((scored.data.klass == CLASSES.index(name)).sum())
            yield {"set": scored.data.name, "class": name, **kinds, "spectra": spectra}


class Claim(NamedTuple):
    """A claim of the paper, its number, and ours."""

    claim: str
    paper: str
    ours: str
    holds: bool


def _claims(found: Found, ours: str) -> Iterator[dict[str, Any]]:
    """The paper's claims about its own method and our results, for the sets that were run."""
    for claim in (*_win_claims(found, ours), *_loss_claims(found, ours)):
        yield claim._asdict()


def _win_claims(found: Found, ours: str) -> Iterator[Claim]:
    scored = found.get("plain")
    if scored is None:
        return
    for opponent in [name for name in scored.scores if AUTOENCODER in name.lower()]:
        loss, theirs = scored.scores[ours]["loss"], scored.scores[opponent]["loss"]
        klass = scored.data.klass
        by_class = {
            c: wins(loss[klass == k], theirs[klass == k]) for k, c in enumerate(CLASSES) if k in klass
        }
        text = ", ".join(f"{c} {won.value:.0%} of {won.spectra}" for c, won in by_class.items())
        every = min(won.value for won in by_class.values())
        yield Claim(f"better than the {opponent} in each class", "> 80 %", text, every > 0.8)
        best = [by_class[c] for c in ("Carbon", "WD") if c in by_class]
        text = ", ".join(f"{c} {by_class[c].value:.0%}" for c in ("Carbon", "WD") if c in by_class)
        if best:
            held = min(won.value for won in best) > 0.95
            what = f"the same of Carbon stars and white dwarfs, {opponent}"
            yield Claim(what, "near 100 % (held above 95 %)", text, held)


def _loss_claims(found: Found, ours: str) -> Iterator[Claim]:
    def of(name: str, **wanted: object) -> Iterator[tuple[Any, str]]:
        for condition, rows in condition_rows(found[name]) if name in found else ():
            if wanted.items() <= condition.items():
                where = f", {condition['gap_place']}" if "gap_place" in condition else ""
                yield {k: v[rows] for k, v in found[name].scores[ours].items()}, where

    for scores, _ in of("der_snr", level=3.0):
        loss = median(scores["loss"])
        text = f"{loss.value:.2g} ({loss.low:.2g} to {loss.high:.2g})"
        yield Claim("median loss at DER_SNR 3", "near 1e-3 (held below 2e-3)", text, loss.value < 2e-3)
    size = found["gaps"].data.grid.size if "gaps" in found else PAPER_SIZE
    for scores, where in of("gaps", gap_width=round(800 * size / PAPER_SIZE)):
        loss = median(scores["loss"])
        text = f"{loss.value:.2g} ({loss.low:.2g} to {loss.high:.2g})"
        yield Claim(f"median loss with 800 of 2048 pixels missing{where}", "< 1e-3", text, loss.value < 1e-3)
    for scores, _ in of("plain"):
        ratio = median(scores["der_snr"])
        text = f"{ratio.value:.0f} ({ratio.low:.0f} to {ratio.high:.0f})"
        yield Claim("median DER_SNR after denoising", "> 100", text, ratio.value > 100)


def _pairs(scored: Scored) -> Iterator[tuple[str, str]]:
    """Pairs of our methods, which give classes, with all other methods."""
    cleaners = [method for method in scored.scores if method != INPUT]
    for ours in cleaners:
        if "class_probabilities" in scored.scores[ours]:
            yield from ((ours, theirs) for theirs in cleaners if theirs != ours)


def _interval(name: str, estimate: Estimate) -> dict[str, Any]:
    low, high = {f"{name}_low": estimate.low}, {f"{name}_high": estimate.high}
    return {"spectra": estimate.spectra, name: estimate.value, **low, **high}


def _table(rows: Iterator[dict[str, Any]]) -> Table:
    return Table(rows=list(rows))
