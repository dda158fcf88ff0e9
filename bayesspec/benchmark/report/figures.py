"""The paper's figures, of a benchmark run: latents, gaps, noise levels, comparisons, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from bayesspec.benchmark.measures.compare import median, wins
from bayesspec.benchmark.measures.coverage import LEVELS
from bayesspec.benchmark.run import INPUT, Scored
from bayesspec.exceptions import BayesspecError
from bayesspec.model import StellarModel
from bayesspec.results.classes import CLASS_STYLES
from bayesspec.results.plotting import CLEAN, INK, QUIET, STYLE
from bayesspec.training.library import CLASSES

from .tables import AUTOENCODER, condition_rows

__all__ = [
    "calibration",
    "gap_losses",
    "latent_space",
    "loss_against_loss",
    "method_styles",
    "noise_levels",
    "plot_coverage",
]

PALETTE = (INK, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#5B4B8A", "#B5B000")
"""Okabe & Ito's colours, except those for the truth and ours, and some more; then dashes differ."""

DASHES = ("-", "--", ":")

OUTLIER = 1e-2
"""Outlier score below which a star is circled."""

LEAST = 1e-8
"""Lower limit of logarithmic loss axes: no clean spectrum is known better."""

Styles = Mapping[str, dict]


def method_styles(methods: Sequence[str], ours: Sequence[str]) -> dict[str, dict]:
    """A colour and a dash style for every method, in all figures: ours blue, the paper's opponent black."""
    styles: dict[str, dict] = {INPUT: {"color": QUIET, "ls": "-", "lw": 1.0}}
    for k, name in enumerate(ours):
        styles[name] = {"color": CLEAN, "ls": DASHES[k % 3], "lw": 1.7, "zorder": 5}
    rivals = sorted((m for m in methods if m not in styles), key=lambda name: AUTOENCODER not in name)
    for k, name in enumerate(rivals):
        dash = DASHES[k // len(PALETTE) % 3]
        styles[name] = {"color": PALETTE[k % len(PALETTE)], "ls": dash, "lw": 1.2}
    return styles


def latent_space(model: StellarModel, scored: Scored, method: str) -> Figure:
    """Latents of the training stars (pale) and of the test stars by class, outliers circled (figure 5).

    For more than three latents, the first three principal components of the training stars are shown.
    """
    centres, weights = model.prior.centres.cpu().numpy(), model.prior.log_weights.cpu().numpy()
    own = [centre[np.isfinite(weight)] for centre, weight in zip(centres, weights, strict=True)]
    z, score = scored.scores[method]["z"], scored.scores[method]["outlier_score"]
    every, label = np.concatenate(own), "$z_{}$"
    if z.shape[1] > 3:
        axes = np.linalg.svd(every - every.mean(0), full_matrices=False)[2][:3]
        z, own, label = z @ axes.T, [part @ axes.T for part in own], "component {}"
        every = np.concatenate(own)

    pairs = list(combinations(range(z.shape[1]), 2))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(pairs), 4.9), dpi=130, layout="constrained")
        panels = figure.subplots(1, len(pairs), squeeze=False)[0]
        for ax, (a, b) in zip(panels, pairs, strict=True):
            for k, name in enumerate(CLASSES):
                style, rows = CLASS_STYLES[name], scored.data.klass == k
                train = own[model.classes.index(name)]
                ax.scatter(train[:, a], train[:, b], s=4, alpha=0.25, lw=0, **style)
                ax.scatter(z[rows, a], z[rows, b], s=20, lw=0.3, ec="white", label=name, **style)
            rare = score < OUTLIER
            label_rare = f"outlier (score < {OUTLIER:g})"
            ax.scatter(z[rare, a], z[rare, b], s=90, fc="none", ec="#D55E00", lw=1.2, label=label_rare)
            ax.set_xlabel(label.format(a + 1))
            ax.set_ylabel(label.format(b + 1))
            _bulk_limits(ax, np.concatenate([every, z])[:, [a, b]])
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=11, handletextpad=0.2)
    return figure


def gap_losses(scored: Scored, styles: Styles) -> Figure:
    """Median loss over the whole spectrum against the width of the gap, for each place (figure 6)."""
    conditions = list(condition_rows(scored))
    places = list(dict.fromkeys(condition["gap_place"] for condition, _ in conditions))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.3), dpi=130, layout="constrained")
        panels = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
        for ax, place in zip(panels, places, strict=True):
            own = [(c["gap_width"], rows) for c, rows in conditions if c["gap_place"] == place]
            _median_lines(ax, scored, styles, own, "loss")
            ax.axhline(1e-3, color=INK, lw=0.6, ls=(0, (1, 3)))
            ax.set_yscale("log")
            ax.set_title(f"gap at the {place}" if "end" in place else "gap in the middle", fontsize=10)
            ax.set_xlabel(f"Pixels removed, of {scored.data.grid.size}")
        panels[0].set_ylabel("Median loss, mean |flux| = 1")
        _legend_below(figure, panels[0])
    return figure


def noise_levels(scored: Scored, styles: Styles) -> Figure:
    """Median loss, and DER_SNR after denoising, against DER_SNR before (figure 10)."""
    own = [(condition["level"], rows) for condition, rows in condition_rows(scored)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.6), dpi=130, layout="constrained")
        left, right = figure.subplots(1, 2)
        levels = [level for level, _ in own]
        _median_lines(left, scored, styles, own, "loss")
        _median_lines(right, scored, styles, own, "der_snr")
        left.axhline(1e-3, color=INK, lw=0.6, ls=(0, (1, 3)))
        right.axhline(100, color=INK, lw=0.6, ls=(0, (1, 3)))
        left.set_ylabel("Median loss, mean |flux| = 1")
        right.set_ylabel("DER_SNR after denoising")
        for ax in (left, right):
            ax.set(xscale="log", yscale="log", xlabel="DER_SNR of the input")
            ax.set_xticks(levels, [f"{level:g}" for level in levels])
            ax.minorticks_off()
        _legend_below(figure, right)
    return figure


def loss_against_loss(scored: Scored, ours: str, theirs: str) -> Figure:
    """Loss of each spectrum by two methods, by class, with the fraction that ours wins (figures 9, 15)."""
    x, y = (np.maximum(scored.scores[method]["loss"], LEAST) for method in (theirs, ours))
    low, high = np.percentile(np.concatenate([x, y]), [0, 100]) * (0.7, 1.4)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 5.2), dpi=130, layout="constrained")
        panels = figure.subplots(2, 5, sharex=True, sharey=True)
        for k, (ax, name) in enumerate(zip(panels.flat, CLASSES, strict=True)):
            rows = scored.data.klass == k
            ax.fill_between([low, high], [low, low], [low, high], color=CLEAN, alpha=0.07, lw=0)
            ax.plot([low, high], [low, high], color=QUIET, lw=0.8)
            ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
            ax.set_title(name, fontsize=10, weight="bold")
            if not rows.any():
                continue
            for kind, face in (("model", "white"), ("real", CLEAN)):
                own = rows & ((scored.data.kind == "model") == (kind == "model"))
                ax.scatter(x[own], y[own], s=13, fc=face, ec=CLEAN, lw=0.7, zorder=3)
            won = wins(y[rows], x[rows])
            ax.set_title(f"{name}  {won.value:.0%} of {won.spectra}", fontsize=10, weight="bold")
        figure.supxlabel(f"Loss of {theirs}", fontsize=10)
        figure.supylabel(f"Loss of {ours}", fontsize=10)
        figure.suptitle(
            "Shaded: ours is better. Filled: real stars; open: theoretical spectra", fontsize=9, color=QUIET
        )
    return figure


def calibration(found: Mapping[str, Scored], method: str) -> Figure:
    """Actual against nominal coverage of the intervals."""
    names = [name for name, scored in found.items() if "coverage" in scored.scores.get(method, {})]
    titles = {
        "coverage": "for the star: the truth's noise counts against it",
        "coverage_measured": "for the truth as measured, noise included",
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.9), dpi=130, layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for ax, (measure, title) in zip(panels, titles.items(), strict=True):
            shares = {n.replace("_", " "): found[n].scores[method][measure].mean(0) for n in names}
            plot_coverage(shares, ax=ax).set_title(title, fontsize=10)
        panels[1].set_ylabel("")
        _legend_below(figure, panels[0])
    return figure


def plot_coverage(
    shares: Mapping[str, ArrayLike], levels: Sequence[float] = LEVELS, ax: Axes | None = None
) -> Axes:
    """Draw the actual against the nominal coverage of intervals; calibrated ones are on the diagonal.

    Below the diagonal intervals are too narrow, above it too wide.

    Arguments:
        shares: For each line of the legend the fraction of truths inside the intervals, (levels,), between 0
            and 1, such as `interval_coverage(...).share`.
        levels: Probabilities of the intervals, ascending, between 0 and 1.
        ax: Axes to draw on; by default those of a new figure, with a legend.

    Raises:
        BayesspecError: if there are not as many shares as levels.

    Returns:
        The axes.

    Example:
        >>> ax = plot_coverage({"right": [0.5, 0.9], "too narrow": [0.3, 0.6]}, levels=[0.5, 0.9])
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('Nominal coverage', 'Fraction of pixels inside')
    """
    if ax is None:
        with matplotlib.rc_context(STYLE):
            ax = Figure(figsize=(4.6, 4.6), dpi=150, layout="constrained").add_subplot()
            plot_coverage(shares, levels, ax).legend(loc="upper left")
            return ax
    ax.plot([0, 1], [0, 1], color=QUIET, lw=0.8)
    ax.text(0.29, 0.32, "calibrated", color=QUIET, rotation=45, fontsize="small", ha="center")
    for k, (name, share) in enumerate(shares.items()):
        if np.shape(share) != np.shape(levels):
            raise BayesspecError(f"{name}: shares {np.shape(share)} for levels {np.shape(levels)}")
        colour, dash = (CLEAN, *PALETTE)[k % 9], DASHES[k // 9 % len(DASHES)]
        points = [0, *levels], [0, *np.asarray(share)]
        ax.plot(*points, marker="o", ms=4, label=name, color=colour, ls=dash)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set(xlabel="Nominal coverage", ylabel="Fraction of pixels inside")
    return ax


def _median_lines(
    ax: Axes, scored: Scored, styles: Styles, conditions: list[tuple[float, NDArray]], measure: str
) -> None:
    for method, style in styles.items():
        scores = scored.scores.get(method, {})
        if measure not in scores:
            continue
        at = [value for value, _ in conditions]
        found = [median(scores[measure][rows]) for _, rows in conditions]
        ax.plot(at, [max(m.value, LEAST) for m in found], marker="o", ms=3.5, label=method, **style)
        if style["color"] == CLEAN and style["ls"] == "-":
            ax.fill_between(
                at, [m.low for m in found], [m.high for m in found], color=CLEAN, alpha=0.15, lw=0
            )


def _legend_below(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    columns = min(len(labels), 5)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.6)


def _bulk_limits(ax: Axes, points: NDArray) -> None:
    """Axis limits that do not depend on single stars."""
    low, high = np.percentile(points, [0.3, 99.7], axis=0)
    margin = 0.06 * (high - low)
    (left, bottom), (right, top) = low - margin, high + margin
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
