"""Figures of single spectra of a benchmark: before and after for every class, and close-ups of lines."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bayesspec.benchmark.run import INPUT, Scored
from bayesspec.results.plotting import CLEAN, GAP, OBSERVED, STYLE, TRUTH
from bayesspec.training.library import CLASSES

__all__ = ["close_ups", "examples"]

WINDOWS = {
    "H alpha and TiO, and the join of the arms": (6000.0, 6800.0),
    "Ca II triplet and OH sky lines": (8300.0, 8800.0),
}
"""Wavelength ranges of the close-ups, Angstrom."""


def examples(scored: Scored, method: str) -> Figure:
    """A spectrum of each class: input, truth, and denoised (figures 7, 8, 13, 14)."""
    data = scored.data
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.5, 11.5), dpi=120, layout="constrained")
        panels = figure.subplots(5, 2, sharex=True)
        for k, (ax, name) in enumerate(zip(panels.T.flat, CLASSES, strict=True)):
            own = np.flatnonzero(data.klass[scored.kept] == k)
            ax.set_title(name, loc="left", fontsize=10, weight="bold")
            if len(own):
                at = int(own[0])
                loss = scored.scores[method]["loss"][scored.kept[at]]
                before = scored.scores[INPUT]["loss_observed"][scored.kept[at]]
                note = f"{data.star[scored.kept[at]][:36]}   loss {before:.1e} to {loss:.1e}"
                ax.set_title(note, loc="right", fontsize=8.5, parse_math=False)
                _spectrum(ax, scored, at, {method: {"color": CLEAN, "lw": 1.0}})
            ax.set_xlim(data.grid.edges[0], data.grid.edges[-1])
        for ax in panels[-1]:
            ax.set_xlabel("Wavelength (vacuum) [Å]")
        figure.supylabel("Flux, mean |flux| = 1", fontsize=10)
        _legend(figure, panels[0, 0])
    return figure


def close_ups(scored: Scored, styles: Mapping[str, dict]) -> Figure:
    """Two wavelength ranges of two stars, for some methods (figures 11, 12).

    Arguments:
        scored: A set.
        styles: Plot style of each method, by name; methods without kept spectra are left out.
    """
    data = scored.data
    klass = data.klass[scored.kept]
    # One star of each of two classes with many lines, if there are any.
    cool = [n for name in ("K", "M") for n in np.flatnonzero(klass == CLASSES.index(name))[:1]]
    chosen = [*dict.fromkeys([*cool, *range(len(klass))])][:2]
    drawn = {m: style for m, style in styles.items() if m in scored.flux}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.5, 7.4), dpi=130, layout="constrained")
        panels = figure.subplots(len(chosen), len(WINDOWS), squeeze=False)
        for row, at in zip(panels, chosen, strict=False):
            for ax, (title, (low, high)) in zip(row, WINDOWS.items(), strict=True):
                _spectrum(ax, scored, int(at), drawn, (low, high))
                ax.set_xlim(low, high)
                ax.set_title(title, loc="left", fontsize=10)
                star = f"{CLASSES[klass[at]]}: {data.star[scored.kept[at]][:24]}"
                ax.set_title(star, loc="right", fontsize=8.5, parse_math=False)
        for ax in panels[-1]:
            ax.set_xlabel("Wavelength (vacuum) [Å]")
        figure.supylabel("Flux, mean |flux| = 1", fontsize=10)
        _legend(figure, panels[0, 0])
    return figure


def _spectrum(
    ax: Axes,
    scored: Scored,
    at: int,
    drawn: Mapping[str, dict],
    window: tuple[float, float] | None = None,
) -> None:
    """A kept spectrum: the input in grey, the truth in orange, methods on top, gaps shaded."""
    data = scored.data.select(scored.kept[[at]])
    wavelength, edges = data.grid.wavelength, data.grid.edges
    single, unit = data.single()
    mask = single.mask[0]
    flux = np.where(mask, np.nan, single.flux[0] * unit[0])
    truth = np.where(data.truth_mask[0], np.nan, data.truth[0])
    change = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    for first, last in change.reshape(-1, 2):
        ax.axvspan(edges[first], edges[last], color=GAP, lw=0, zorder=0)
    ax.plot(wavelength, flux, color=OBSERVED, lw=0.5, drawstyle="steps-mid", label="input")
    ax.plot(wavelength, truth, color=TRUTH, lw=1.6, alpha=0.75, label="truth")
    for method, style in drawn.items():
        ax.plot(wavelength, scored.flux[method][at], label=method, **style)

    inside = slice(None) if window is None else (wavelength > window[0]) & (wavelength < window[1])
    ax.set_ylim(*_limits(truth[inside], flux[inside]))


def _limits(truth: NDArray, flux: NDArray) -> tuple[float, float]:
    """Limits that show all of the truth, and most of the noise around it."""
    values = np.concatenate([truth, flux])
    low, high = np.nanpercentile(values, [1, 99]) if np.isfinite(values).any() else (0.0, 1.0)
    if np.isfinite(truth).any():
        low, high = min(low, np.nanmin(truth)), max(high, np.nanmax(truth))
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), handlelength=2.2)
