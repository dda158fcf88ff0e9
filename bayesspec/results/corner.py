"""The corner plot of one star: velocity, reddening and latents, with the class probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bayesspec.exceptions import BayesspecError
from bayesspec.nn.passage import ARMS, DUST, VELOCITY

from .plotting import CLEAN, INK, STYLE, TRUTH, WARNING, Picture, flag_words, plain, plot_class_bars, shorten
from .star import Star

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

    from .spectra import Posterior

__all__ = ["plot_corner", "quantities"]

LABELS = {VELOCITY: "Velocity offset\n[km/s]", DUST: "E(B$-$V) excess\n[mag]", ARMS: "Arm step\n[ln flux]"}
"""Labels of axes; other effects are also in ln flux, and latents z have no unit."""

USUAL = (VELOCITY, DUST, "z1", "z2")
"""Quantities that are shown by default, if the model has them."""

BINS, SMOOTH = 25, 1.2
"""Bins of a histogram over the range of the draws; smoothing width of two-dimensional ones, in bins."""

CONTOURS = (0.393, 0.865)
"""Probabilities inside the contours of a pair: 1 and 2 sigma of a normal distribution."""


def quantities(star: Posterior) -> dict[str, NDArray[np.float64]]:
    """Draws of the effects of the passage, in their units, and of the latents z1, z2 ..., each (S,).

    Chains are pooled; weights are those of `draws.log_weight`.
    """
    draws, passage = star.draws, star.model.passage
    z = draws.z.reshape(-1, draws.z.shape[-1]).astype(float)
    columns = {f"z{k}": column for k, column in enumerate(z.T, start=1)}
    if passage is None:
        return columns
    x = draws.x.reshape(-1, draws.x.shape[-1]) * passage.widths.cpu().numpy().astype(float)
    return {**dict(zip(passage.names, x.T, strict=True)), **columns}


def plot_corner(
    posterior: Posterior,
    star: Star,
    names: Sequence[str] | None = None,
    *,
    truths: Mapping[str, float] | None = None,
    fig: Figure | None = None,
) -> Figure:
    """The figure of `Result.plot_corner`, drawn by the package `corner` with the weights of the draws.

    Arguments:
        posterior: The posterior of the star.
        star: Its name, classes and warnings.
        names: Quantities to show, K of the keys of `quantities`.
        truths: Values to mark, by name.
        fig: An empty figure to draw on.

    Raises:
        BayesspecError: if there is no such quantity, there are fewer draws than quantities, or the figure has
            axes already.
    """
    from corner import corner

    every = quantities(posterior)
    shown = tuple(name for name in USUAL if name in every) if names is None else tuple(names)
    for name in (*shown, *(truths or {})):
        if name not in every:
            raise BayesspecError(f"{star.name}: no quantity is called {name!r}; there are {', '.join(every)}")
    values = np.array([every[name] for name in shown]).T
    if not 0 < len(shown) <= len(values):
        raise BayesspecError(f"{star.name}: {len(values)} draws cannot show {len(shown)} quantities")
    fig = Picture(figsize=(1.2 + 1.6 * len(shown),) * 2, dpi=150) if fig is None else fig
    if fig.axes:
        raise BayesspecError("the figure has axes already, and a corner plot needs an empty one")

    log_weight = posterior.draws.log_weight
    weight = np.full(len(values), 1.0) if log_weight is None else np.exp(log_weight.ravel())
    weight = weight / weight.sum()
    marked = [(truths or {}).get(name) for name in shown]
    ranges, bins = zip(*(_range(v, weight, t) for v, t in zip(values.T, marked, strict=True)), strict=True)
    font = float(np.clip(9.5 * fig.get_figwidth() / 6, 6.5, 9.5))
    sizes: dict[RcKeyType, Any] = {"font.size": font, "lines.markersize": 0.5 * font}
    with matplotlib.rc_context({**STYLE, **sizes, "lines.linewidth": 0.12 * font}):
        corner(
            values,
            weights=weight,
            fig=fig,
            range=ranges,
            bins=list(bins),
            truths=marked,
            truth_color=TRUTH,
            color=CLEAN,
            smooth=SMOOTH,
            levels=CONTOURS,
            plot_datapoints=False,  # they would ignore the weights
            plot_density=False,
            fill_contours=True,
            quiet=True,
            max_n_ticks=4,
            hist_kwargs={"histtype": "stepfilled", "alpha": 0.7},
        )
        panels = np.array(fig.axes).reshape(len(shown), len(shown))
        line = font / 72
        _lay_out(fig, panels, line)
        for k, (name, column) in enumerate(zip(shown, values.T, strict=True)):
            mean = float(weight @ column)
            std = math.sqrt(weight @ (column - mean) ** 2)
            panels[k, k].set_title(_measured(mean, std), fontsize="medium")
            panels[-1, k].set_xlabel(_label(name))
            if k:
                panels[k, 0].set_ylabel(_label(name))
        if (room := len(shown) // 2) > 0:
            first, last = panels[0, -room].get_position(), panels[room - 1, -1].get_position()
            left, below = 4 * line / fig.get_figwidth(), 2.2 * line / fig.get_figheight()
            box = first.x0 + left, last.y0 + below, last.x1 - first.x0 - left, first.y1 - last.y0 - below
            plot_class_bars(star, fig.add_axes(box)).set_xlabel("")  # the flags are in the title
        title = plain(shorten(star.name, 40)) + (f": {flag_words(star)}" if star.warnings else "")
        y = 1 - 0.4 * line / fig.get_figheight()
        fig.suptitle(title, y=y, fontsize="large", color=WARNING if star.warnings else INK)
    return fig


def _lay_out(fig: Figure, panels: NDArray, line: float) -> None:
    """Reserve space for labels and place them, by the height of a line in inches, not by the panel size."""
    width, height = fig.get_figwidth(), fig.get_figheight()
    fig.subplots_adjust(
        left=7 * line / width, bottom=7 * line / height, right=1 - line / width, top=1 - 4 * line / height
    )
    box = panels[0, 0].get_position()
    for ax in panels[-1]:
        ax.xaxis.set_label_coords(0.5, -3.6 * line / (box.height * height))
    for ax in panels[:, 0]:
        ax.yaxis.set_label_coords(-3.9 * line / (box.width * width), 0.5)
        ax.tick_params(axis="y", labelrotation=45)


def _range(values: NDArray, weight: NDArray, truth: float | None) -> tuple[tuple[float, float], int]:
    """Ends of an axis with nearly all draws and the marked value, and the number of bins at fixed width."""
    low, high = np.quantile(values, (0.001, 0.999), weights=weight, method="inverted_cdf")
    margin = 0.08 * (high - low) or max(1e-3 * abs(low), 1e-6)
    low, high = low - margin, high + margin
    width = (high - low) / BINS
    if truth is not None:
        low, high = min(low, truth - margin), max(high, truth + margin)
    return (float(low), float(high)), int(np.clip(math.ceil((high - low) / width), BINS, 8 * BINS))


def _label(name: str) -> str:
    if name in LABELS:
        return LABELS[name]
    return f"$z_{{{name[1:]}}}$" if name.startswith("z") else f"{name.capitalize()}\n[ln flux]"


def _measured(mean: float, std: float) -> str:
    """Mean and error in text, with two significant digits of the error."""
    digits = max(0, 1 - math.floor(math.log10(std))) if std > 0 else 3
    return f"{mean:.{digits}f} $\\pm$ {std:.{digits}f}".replace("-", "\N{MINUS SIGN}")
