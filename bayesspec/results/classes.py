"""Figures of class probabilities, of one star or many, and of latents by class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from bayesspec.exceptions import BayesspecError

from .plotting import INK, STYLE, WARNING, Picture, flag_words, plain, shorten
from .star import Star

if TYPE_CHECKING:
    from bayesspec.model import StellarModel

__all__ = ["class_styles", "plot_class_shares", "plot_latents"]

SEQUENCE = matplotlib.colormaps["plasma"](np.linspace(0.02, 0.9, 7))
CLASS_STYLES: dict[str, dict[str, Any]] = {
    **{name: {"color": SEQUENCE[k], "marker": "o"} for k, name in enumerate("OBAFGKM")},
    "CV": {"color": "#009E73", "marker": "s"},
    "Carbon": {"color": "#6B4A2B", "marker": "^"},
    "WD": {"color": "#56B4E9", "marker": "D"},
}
"""Colours from hot to cool; classes outside that sequence also have their own marker."""

MARKERS = "o^sDvPX"

MOST = 60
"""Maximum number of stars whose names can be read beside their bars."""

NAMED = 0.12
"""Minimum probability of a class for its name to fit in its part of a bar."""

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a colour under text."""


def class_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each class, distinguishable with any kind of colour vision.

    Arguments:
        names: Names of the classes. Those of the shipped models have fixed styles, others get them in order.

    Example:
        >>> styles = class_styles(("O", "WD", "mine"))
        >>> [style["marker"] for style in styles.values()]
        ['o', 'D', 's']
    """
    spread = matplotlib.colormaps["plasma"](np.linspace(0.02, 0.9, max(len(names), 2)))
    return {
        name: CLASS_STYLES.get(name, {"color": spread[k], "marker": MARKERS[k % len(MARKERS)]})
        for k, name in enumerate(names)
    }


def plot_class_shares(stars: Sequence[Star], ax: Axes | None = None) -> Axes:
    """Draw a bar for each star, divided by the probabilities of its classes.

    A class is named in its part of the bar. The bar of a star with warnings is hatched and names its flags
    instead.

    Arguments:
        stars: `res.star(i)` of a result, 1 to 60 of them.
        ax: Axes to draw on; by default those of a new figure.

    Raises:
        BayesspecError: if there are no stars, or too many.

    Returns:
        The axes.
    """
    if not 0 < len(stars) <= MOST:
        raise BayesspecError(f"one figure shows the classes of 1 to {MOST} stars, not of {len(stars)}")
    if ax is None:
        with matplotlib.rc_context(STYLE):
            figure = Picture(figsize=(7, 1.2 + 0.28 * len(stars)), dpi=150, layout="constrained")
            return plot_class_shares(stars, figure.add_subplot())

    rows, left = np.arange(len(stars)), np.zeros(len(stars))
    styles = class_styles(stars[0].classes)
    for k, (name, style) in enumerate(styles.items()):
        share = np.array([star.class_probabilities[k] for star in stars])
        bars = ax.barh(rows, share, left=left, height=0.72, color=style["color"], label=plain(name))
        for bar, star in zip(bars, stars, strict=True):
            bar.set(edgecolor="white", linewidth=0.6)
            if star.warnings:
                bar.set(facecolor="white", edgecolor=style["color"], hatch="////")
            elif bar.get_width() > NAMED:
                ink = "white" if np.dot(to_rgb(style["color"]), LUMINANCE) < 0.4 else INK
                middle = bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height() / 2
                ax.text(*middle, plain(name), color=ink, ha="center", va="center_baseline", fontsize="small")
        left = left + share
    ax.set_yticks(rows, [plain(shorten(star.name, 28)) for star in stars])
    for row, star in enumerate(stars):
        if star.warnings:
            ax.get_yticklabels()[row].set_color(WARNING)
            ax.text(
                0.02, row, flag_words(star), va="center_baseline", color=WARNING, fontsize="small",
                bbox={"fc": "white", "ec": "none", "pad": 1},
            )  # fmt: skip
    ax.set(xlim=(0, 1), ylim=(len(stars) - 0.5, -0.5), xlabel="Class probability")
    ax.tick_params(axis="y", length=0)
    handles = [Patch(color=style["color"], label=plain(name)) for name, style in styles.items()]
    _legend_above(ax, handles, handlelength=0.8, handletextpad=0.4)
    return ax


def plot_latents(
    model: StellarModel,
    stars: Sequence[Star] = (),
    draws: Iterable[NDArray] = (),
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    fig: Figure | None = None,
) -> Figure:
    """Draw the latents z of a model's training stars by class, with other stars on top.

    Distances are those between spectra: the rms of their difference at mean flux 1. The symbol of a star with
    warnings is open and red.

    Arguments:
        model: The model.
        stars: N stars, each shown as a large symbol with its name, see `Result.plot_latents`.
        draws: For each star posterior draws of its latents with equal weight, (S, L), shown as small points.
        pairs: Latents of each panel, counted from 1: (horizontal, vertical); by default (1, 2), (3, 4) ...
        fig: An empty figure to draw on; by default a new one.

    Raises:
        BayesspecError: if the model has no such latents, or the figure has axes already.

    Returns:
        The figure.

    Example:
        >>> import bayesspec
        >>> figure = plot_latents(bayesspec.load_model("kang2021"), pairs=[(1, 3)])
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
        ('$z_{1}$', '$z_{3}$')
    """
    size = model.latent_dim
    if pairs is None:
        pairs = [(max(1, min(k, size - 1)), min(k + 1, size)) for k in range(1, size + 1, 2)]
    if wrong := [one for pair in pairs for one in pair if not 1 <= one <= size]:
        raise BayesspecError(f"{model.name} has the latents 1 to {size}, and no latent {wrong[0]}")
    if fig is None:
        with matplotlib.rc_context(STYLE):
            fig = Picture(figsize=(0.6 + 3.3 * len(pairs), 4.1), dpi=150, layout="constrained")
            return plot_latents(model, stars, draws, pairs=pairs, fig=fig)
    if fig.axes:
        raise BayesspecError("the figure has axes already, and the latents need an empty one")

    known = zip(model.prior.centres.cpu().numpy(), model.prior.log_weights.cpu().numpy(), strict=True)
    own = [centres[np.isfinite(log_weights)] for centres, log_weights in known]
    clouds, panels = list(draws), fig.subplots(1, len(pairs), squeeze=False)[0]
    styles = class_styles(model.classes)
    for ax, (i, j) in zip(panels, pairs, strict=True):
        for style, z in zip(styles.values(), own, strict=True):
            ax.scatter(z[:, i - 1], z[:, j - 1], s=7, alpha=0.5, lw=0, **style)
        for z in clouds:
            ax.scatter(z[:, i - 1], z[:, j - 1], s=2, alpha=0.5, lw=0, color="black", zorder=4)
        for star in stars:
            _mark_star(ax, star, (float(star.z[i - 1]), float(star.z[j - 1])))
        ax.set(xlabel=f"$z_{{{i}}}$", ylabel=f"$z_{{{j}}}$")
    marks = [Line2D([], [], ls="", label=plain(name), **style) for name, style in styles.items()]
    _legend_above(fig, marks, handletextpad=0.1)
    return fig


def _legend_above(where: Axes | FigureBase, handles: list[Any], **style: Any) -> None:
    """Legend of the classes; it has two rows in a figure of a column's width."""
    figure = where.get_figure(root=True)
    columns = 10 if figure is not None and figure.get_figwidth() > 5 else 5
    place: dict[str, Any] = {"loc": "outside upper center"}
    if isinstance(where, Axes):
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    where.legend(
        handles=handles, ncols=columns, fontsize="small", frameon=False, columnspacing=1.0, **place, **style
    )


def _mark_star(ax: Axes, star: Star, at: tuple[float, float]) -> None:
    edge = WARNING if star.warnings else "black"
    face = "none" if star.warnings else "white"
    ax.scatter([at[0]], [at[1]], s=110, marker="*", fc=face, ec=edge, lw=1.0, zorder=3)
    inwards = -1 if at[0] > np.mean(ax.get_xlim()) else 1
    ax.annotate(
        plain(shorten(star.name, 20)), at, (6 * inwards, 5), textcoords="offset points", color=edge,
        fontsize="small", ha="left" if inwards > 0 else "right", zorder=6,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )  # fmt: skip
