"""A figure per star: what was observed, the clean spectrum over it, residuals, and the classes."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import matplotlib
import numpy as np
from astropy import units as u
from matplotlib.figure import Figure
from matplotlib.markers import CARETDOWNBASE, CARETUPBASE
from numpy.typing import ArrayLike, NDArray

from bayesspec.observation import printable

from .diagnostics import quality
from .star import Star

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

__all__ = ["Picture", "plot_class_bars", "plot_spectra", "plot_star", "save_figure"]

# Okabe & Ito's palette, apart for every kind of colour vision, and greys for what is in the background.
CLEAN, TRUTH, OBSERVED, WARNING = "#0072B2", "#D55E00", "#9AA3AD", "#B3261E"
INK, QUIET, GAP = "#22272E", "#6B7480", "#F3F1EC"

LINE = 0.2
"""Inches from one line of warnings to the next."""

STYLE: dict[RcKeyType, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": QUIET,
    "xtick.direction": "out",
    "xtick.labelcolor": INK,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
}


class Picture(Figure):
    """A figure that a notebook shows as the value of a cell, even before pyplot has drawn anything."""

    def _repr_png_(self) -> bytes:
        save_figure(self, image := io.BytesIO())
        return image.getvalue()


def plot_star(star: Star, truth: ArrayLike | None = None) -> Figure:
    """Figure of one star, its warnings in red under its class.

    Arguments:
        star: `res.star(i)` of a result.
        truth: The true spectrum on the model's grid, (D,), in the flux unit of the input, where it is known.

    Example:
        >>> import bayesspec, numpy as np
        >>> star = bayesspec.Observation(np.linspace(3900, 9100, 4000), np.ones(4000), name="flat")
        >>> figure = plot_star(bayesspec.denoise(star, model="kang2021").star())
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['Flux', 'Residual [%]', '']
    """
    with matplotlib.rc_context(STYLE):
        notes = [line for note in star.warnings for line in textwrap.wrap(printable(note), 115)]
        height = 5.4 + LINE * len(notes)
        figure = Picture(figsize=(10.5, height), dpi=150)
        grid = figure.add_gridspec(
            2, 2, height_ratios=(3.1, 1), width_ratios=(5.6, 1), hspace=0.08, wspace=0.17,
            left=0.075, right=0.985, top=1 - (0.73 + LINE * len(notes)) / height, bottom=0.57 / height,
        )  # fmt: skip
        spectra = figure.add_subplot(grid[0, 0])
        residuals = figure.add_subplot(grid[1, 0], sharex=spectra)
        classes = figure.add_subplot(grid[:, 1])

        plot_spectra(spectra, star, truth)
        spectra.tick_params(labelbottom=False)
        spectra.set_xlabel("")
        _plot_residuals(residuals, star)
        plot_class_bars(star, classes).set_xlabel("")  # the warnings are in the title
        _title(figure, star, notes)
        figure.align_ylabels([spectra, residuals])
    return figure


def save_figure(figure: Figure, path: str | Path | IO[bytes]) -> None:
    """Write a figure as PNG; characters of a name that the font lacks are boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing", UserWarning)
        figure.savefig(path, format="png")


def plot_spectra(ax: Axes, star: Star, truth: ArrayLike | None = None) -> None:
    """Draw what was observed of a star and its clean spectrum; arguments as `plot_star`'s."""
    observed, wavelength = star.observed, star.grid.wavelength
    clean, seen = star.flux, ~observed.mask
    flux = np.where(seen, observed.flux, np.nan)

    _shade_gaps(ax, star)
    label = "observed, mean of exposures" if star.row["exposures"] > 1 else "observed"
    ax.plot(wavelength, flux, color=OBSERVED, lw=0.6, label=label, drawstyle="steps-mid")
    if truth is not None:
        ax.plot(wavelength, np.asarray(truth), color=TRUTH, lw=0.9, label="truth")
    ax.plot(wavelength, clean, color=CLEAN, lw=1.1, label="denoised")
    std = star.flux_std
    if std is not None:
        band = clean - std, clean + std
        ax.fill_between(wavelength, *band, color=CLEAN, alpha=0.3, lw=0, label=r"$\pm 1 \sigma$")

    # Limits from the bulk: a cosmic ray is marked at the edge, it does not squeeze the star.
    low, high = _limits(np.concatenate([flux[seen], clean]), np.concatenate([clean, np.zeros(1)]))
    ax.set_ylim(low, high)
    _mark_clipped(ax, wavelength, flux, low, high)
    ax.set_xlim(star.grid.edges[0], star.grid.edges[-1])
    ax.set_xlabel("Wavelength (vacuum) [Å]")
    power = math.floor(math.log10(max(abs(low), abs(high))))  # the limits are never both 0
    power = 0 if -2 <= power <= 5 else power
    ax.yaxis.set_major_formatter(lambda value, _: f"{value / 10**power:g}")
    ax.set_ylabel(_flux_label(star.unit, power))
    ax.legend(loc="best", ncols=4, handlelength=1.4, columnspacing=1.4, fontsize=9)


def _plot_residuals(ax: Axes, star: Star) -> None:
    observed, wavelength = star.observed, star.grid.wavelength
    seen = ~observed.mask
    residual = np.where(seen, observed.flux - star.flux, np.nan)
    if (observed.ivar[seen] > 0).all():
        residual = residual * np.sqrt(observed.ivar)
        label = r"Residual [$\sigma$]"
    else:
        residual = residual * 100 / (np.abs(star.flux).mean() or 1.0)
        label = "Residual [%]"

    known = np.abs(residual[np.isfinite(residual)])
    bound = 1.35 * (np.percentile(known, 99) if len(known) else 0.0) or 1.0
    _shade_gaps(ax, star)
    ax.axhline(0, color=CLEAN, lw=0.9, zorder=3)
    ax.plot(wavelength, residual, color=OBSERVED, lw=0.5, drawstyle="steps-mid")
    ax.set_ylim(-bound, bound)
    _mark_clipped(ax, wavelength, residual, -bound, bound)
    ax.set_xlabel("Wavelength (vacuum) [Å]")
    ax.set_ylabel(label)


def plot_class_bars(star: Star, ax: Axes | None = None) -> Axes:
    """Draw a bar for the probability of each class, its number beside it.

    The most probable one is blue and bold. Of a star with warnings it is red, hatched and not bold: no class
    that is drawn as if it were sure stands beside a warning. The flags are below.

    Arguments:
        star: `res.star(i)` of a result.
        ax: Where to draw; without it on a figure of its own.

    Returns:
        The axes.
    """
    if ax is None:
        with matplotlib.rc_context(STYLE):
            figure = Picture(figsize=(2.6, 3.4), dpi=150, layout="constrained")
            figure.suptitle(plain(shorten(star.name, 30)), fontsize="large")
            return plot_class_bars(star, figure.add_subplot())
    probabilities = star.class_probabilities
    best, doubtful = star.classes.index(star.row["class"]), bool(star.warnings)
    rows = np.arange(len(star.classes))
    ax.barh(rows, np.ones(len(rows)), height=0.62, color=GAP)
    bars = ax.barh(rows, probabilities, height=0.62, color=[CLEAN if k == best else OBSERVED for k in rows])
    if doubtful:
        bars[best].set(facecolor="white", edgecolor=WARNING, hatch="//////", linewidth=0.7)
    weights = ["bold" if k == best and not doubtful else "normal" for k in rows]
    for row, p in enumerate(probabilities):
        text = "0" if p < 5e-4 else f"{p:.3f}".lstrip("0") if p < 0.9995 else "1"
        ax.text(
            1.06, row, text, va="center_baseline", fontsize="small",
            color=INK if p >= 5e-4 else QUIET, weight=weights[row],
        )  # fmt: skip
    ax.set_yticks(rows, [plain(name) for name in star.classes])
    for tick, weight in zip(ax.get_yticklabels(), weights, strict=True):
        tick.set_fontweight(weight)
    ax.set_xlim(0, 1.36)
    ax.invert_yaxis()
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title("class probability", fontsize="medium", loc="left", pad=8)
    ax.set_xlabel(flag_words(star), color=WARNING, fontsize="small")
    return ax


def _title(figure: Figure, star: Star, notes: list[str]) -> None:
    row = star.row
    count = int(row["exposures"])
    facts = [
        f"class {plain(row['class'])}, p = {row['probability']:.3f}",
        f"{count} exposure{'s' * (count != 1)}",
        f"{row['observed_fraction']:.0%} of the grid observed",
        f"$\\chi^2$ per term {row['chi2']:.2f}",
        f"{plain(star.model_name)}, {star.method.upper() if star.method == 'map' else star.method}",
    ]

    def write(text: str, below: float, **style: Any) -> None:
        figure.text(0.075, 1 - below / figure.get_figheight(), text, va="center", **style)

    write(shorten(printable(star.name)), 0.245, fontsize=13, weight="bold", parse_math=False)
    write("  ·  ".join(facts), 0.515, fontsize=9.5, color=QUIET)
    for k, note in enumerate(notes, start=1):
        write(note, 0.515 + LINE * k, fontsize=9.5, color=WARNING, parse_math=False)


def _shade_gaps(ax: Axes, star: Star) -> None:
    edges, gap = star.grid.edges, star.observed.mask
    change = np.flatnonzero(np.diff(np.concatenate([[False], gap, [False]]).astype(int)))
    for first, last in change.reshape(-1, 2):
        ax.axvspan(edges[first], edges[last], color=GAP, lw=0, zorder=0)


def _limits(values: NDArray, always: NDArray) -> tuple[float, float]:
    """Of an axis: finite and apart, whatever the values are."""
    finite, always = values[np.isfinite(values)], always[np.isfinite(always)]
    low, high = np.percentile(finite, [0.2, 99.8]) if len(finite) else (0.0, 0.0)
    low, high = min(low, always.min()), max(high, always.max())
    if not low < high:
        return -1.0, 1.0
    margin = 0.05 * (high - low)
    return low - margin * (low < 0), high + 2.4 * margin


def _mark_clipped(ax: Axes, wavelength: NDArray, values: NDArray, low: float, high: float) -> None:
    for edge, beyond, marker in ((low, values < low, CARETUPBASE), (high, values > high, CARETDOWNBASE)):
        where = wavelength[beyond]
        ax.plot(
            where, np.full(len(where), edge), ls="", marker=marker, ms=4, color=QUIET, clip_on=False, zorder=5
        )


def _flux_label(unit: u.UnitBase, power: int) -> str:
    parts = [f"$10^{{{power}}}$"] * bool(power)
    if unit != u.dimensionless_unscaled:
        parts.append(unit.to_string("latex_inline").replace(r"1 \times 10", "10"))
    return f"Flux [{' '.join(parts)}]" if parts else "Flux"


def flag_words(star: Star) -> str:
    """The flags of a star, as "low S/N, not a star"; its warnings where it has none."""
    flags = int(star.row["flags"])
    return plain(shorten(quality(flags) if flags else "; ".join(star.warnings), 50))


def plain(text: str) -> str:
    """A name that may hold the sign of mathematics, or what cannot be shown."""
    return printable(text).replace("$", r"\$")


def shorten(name: str, length: int = 70) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
