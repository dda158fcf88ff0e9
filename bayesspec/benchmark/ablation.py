"""Ablation of the default model: the same networks, with the parts added one after the other."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from astropy.table import Table
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter

from bayesspec.benchmark.measures.compare import median
from bayesspec.benchmark.measures.coverage import LEVELS
from bayesspec.exceptions import BayesspecError
from bayesspec.inference.denoise import Method
from bayesspec.model import StellarModel
from bayesspec.results.plotting import CLEAN, INK, STYLE
from bayesspec.training.simulation import NoisyStars

from .run import INPUT, Bayes, run_benchmark

__all__ = ["ablate", "draw_ablation", "variants"]

GONE = -12.0
"""Log factor on a part that is removed: it becomes negligible."""

NARROW = 1e-3
"""Prior width of a log amplitude that is removed."""


def variants(model: StellarModel, paper: StellarModel) -> dict[str, StellarModel]:
    """The paper's model, and then the additions of the default model, one after the other.

    Arguments:
        model: A model with a residual term.
        paper: The paper's model on the same grid; the first variant uses its noise flow.

    Raises:
        BayesspecError: if the model has no residual term, or the grids differ.
    """
    if model.residual is None or model.grid != paper.grid:
        raise BayesspecError(f"{model.name}: an ablation needs a residual term and the grid of {paper.name}")
    latents = StellarModel(
        model.grid, model.classes, model.encoder, model.generator, model.prior, paper.noise, {"name": "L"}
    )
    still = copy.copy(model)
    still._modules = {name: part for name, part in model._modules.items() if name != "passage"}
    still._modules["passage"] = None
    return {
        f"{paper.name}: L = {paper.latent_dim}": paper,
        f"L = {model.latent_dim}": latents,
        "+ robust noise with ivar": _without(still, "basis", "discrepancy", "size"),
        "+ discrepancy e": _without(still, "basis", "size"),
        "+ residual term B w": _without(still, "size"),
        "+ size h": still,
        f"+ velocity, dust, calibration: {model.name}": model,
    }


def ablate(
    models: Mapping[str, StellarModel],
    sets: Sequence[NoisyStars],
    out: str | Path,
    *,
    method: Method = "importance",
    seed: int = 0,
    progress: bool = False,
) -> Table:
    """Run every variant on the sets; earlier results are reused.

    Arguments:
        models: Variants by name.
        sets: The sets, from `build_sets`.
        out: Folder of the scores.
        method: Method of `denoise`.
        seed: Seed of the draws.
        progress: Show bars on stderr.

    Returns:
        A row for each set and variant: median loss with its bootstrap interval, coverage of the 68 and 90 %
        intervals for the truth as measured, harm corrected for the truth's own noise, class accuracy.
    """
    rows = []
    runs = {name: _Variant(name, model, method, seed) for name, model in models.items()}
    found = run_benchmark(sets, {data.name: list(runs.values()) for data in sets}, out, progress=progress)
    for scored in found.values():
        before = scored.scores[INPUT]
        own, noise = before["clean_variance"], before["loss_observed"]
        for name in runs:
            scores = scored.scores[name]
            loss = median(scores["loss"])
            covered = (
                scores["coverage_measured"].mean(0) if "coverage_measured" in scores else np.full(4, np.nan)
            )
            rows.append(
                {
                    "set": scored.data.name,
                    "variant": name,
                    "spectra": len(scored.data),
                    "loss": loss.value,
                    "loss_low": loss.low,
                    "loss_high": loss.high,
                    **{f"covered_{level:.0%}": covered[k] for k, level in enumerate(LEVELS)},
                    "harmed": float(np.mean(scores["loss_observed"] - own > noise + own)),
                    "accuracy": float(np.mean(scores["best_class"] == scored.data.klass)),
                    "seconds": scored.seconds[name],
                }
            )
    return Table(rows=rows)


def draw_ablation(table: Table) -> Figure:
    """Median loss and coverage of every variant, a line for each set."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
        names = list(dict.fromkeys(table["variant"]))[::-1]
        for k, name in enumerate(dict.fromkeys(table["set"])):
            own = table[table["set"] == name]
            at = [names.index(variant) + 0.12 * k for variant in own["variant"]]
            style = {"marker": "os^Dv"[k % 5], "color": (CLEAN, INK, "#E69F00", "#009E73", "#CC79A7")[k % 5]}
            spread = np.abs(np.stack([own["loss"] - own["loss_low"], own["loss_high"] - own["loss"]]))
            left.errorbar(own["loss"], at, xerr=spread, ls="", label=str(name).replace("_", " "), **style)
            right.plot(own["covered_90%"], at, ls="", **style)
        left.set(xscale="log", xlabel="median loss", yticks=range(len(names)), yticklabels=names)
        left.xaxis.set_major_formatter(LogFormatterSciNotation())
        left.xaxis.set_minor_formatter(NullFormatter())
        if len(set(table["set"])) > 1:
            left.legend(frameon=False, fontsize="small", loc="lower right")
        right.axvline(0.9, color=INK, lw=0.8)
        right.set(xlabel="fraction of pixels inside the 90 % interval", xlim=(0, 1))
    return figure


class _Variant(Bayes):
    """A model under its variant's name, identified by its weights."""

    def __init__(self, name: str, model: StellarModel, method: Method, seed: int) -> None:
        super().__init__(model, method, seed)
        self.name = name
        self.key = f"{name} {model.version} {method} {seed}"


def _without(model: StellarModel, *parts: str) -> StellarModel:
    """The model with parts of its residual term made negligible; the rest is shared."""
    changed = copy.copy(model)
    residual = copy.deepcopy(model.residual_term)
    with torch.no_grad():
        if "basis" in parts:
            residual.offset.zero_()
            residual.slope.zero_()
            residual.factor.zero_()
        if "discrepancy" in parts:
            residual.log_discrepancy += GONE
        if "size" in parts:
            residual.spread.fill_(NARROW)
            residual.local_spread.fill_(NARROW)
    changed._modules = {**model._modules, "residual": residual}
    return changed
