"""The figures of a `Result`: spectrum, posterior, classes, and position among the training stars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from bayesspec.exceptions import BayesspecError

from .star import Star

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bayesspec.inference.draws import Draws
    from bayesspec.model import StellarModel

    from .spectra import Posterior

__all__ = ["Figures"]

SHOWN_DRAWS = 200
"""Number of posterior draws of equal weight that a figure shows for a star."""


class _Stars(Protocol):
    """The parts of a result that figures use."""

    @property
    def model(self) -> StellarModel | None: ...
    @property
    def draws(self) -> Draws | None: ...
    def __len__(self) -> int: ...
    def _without_lines(self, i: SupportsIndex) -> Star: ...
    def _posterior(self, i: SupportsIndex, consequence: str) -> Posterior: ...


class Figures:
    """The figures of a `Result`. They leave matplotlib's settings unchanged."""

    def plot(
        self: _Stars, i: SupportsIndex = 0, ax: Axes | None = None, *, truth: ArrayLike | None = None
    ) -> Figure:
        """Figure of star i: observed and clean spectrum, residuals, classes; on `ax`, only the spectra.

        Arguments:
            i: Index of the star.
            ax: Axes for a plot of the spectra only.
            truth: The true spectrum on the model's grid, (D,), in the flux unit of the input, if known.
        """
        from .plotting import plot_spectra, plot_star

        star = self._without_lines(i)
        if ax is None:
            return plot_star(star, truth)
        plot_spectra(ax, star, truth)
        return ax.figure.figure  # the whole figure, if ax is in a subfigure

    def plot_corner(
        self: _Stars,
        i: SupportsIndex = 0,
        names: Sequence[str] | None = None,
        *,
        truths: Mapping[str, float] | None = None,
        fig: Figure | None = None,
    ) -> Figure:
        """Corner plot of star i: the posterior of each quantity and each pair, and class probabilities.

        The weights of the draws are used. Contours contain 39 and 86 % of the probability, like 1 and 2 sigma
        of a two-dimensional normal distribution; the numbers are mean and standard deviation, as in `table`.

        Arguments:
            i: Index of the star.
            names: Quantities to show: `velocity_offset` (km/s), `ebv_excess` (mag), `arm_step` and
                `calibration 1` ... (ln flux), if the model has them, and latents `z1` ... By default the
                first two, `z1` and `z2`.
            truths: Values to mark, such as those of a catalogue, by the same names.
            fig: An empty figure to draw on; a width of 3.5 inches fits a journal column. By default a new
                figure.

        Raises:
            BayesspecError: if there is no such star or quantity, the figure has axes already, or there are
                fewer draws than quantities; for `map`, which is a point estimate.

        Returns:
            The figure.

        Example:
            >>> import bayesspec, numpy as np
            >>> star = bayesspec.Observation(np.linspace(3900, 9100, 4000), np.ones(4000), name="flat")
            >>> res = bayesspec.denoise(star, model="kang2021", method="laplace", draws=64)
            >>> figure = res.plot_corner(0, ["z1", "z3"], truths={"z1": 0.2})
            >>> figure.axes[2].get_xlabel(), figure.axes[2].get_ylabel()
            ('$z_{1}$', '$z_{3}$')
        """
        from .corner import plot_corner

        posterior = self._posterior(i, "there is no corner plot")
        return plot_corner(posterior, self._without_lines(i), names, truths=truths, fig=fig)

    def plot_classes(self: _Stars, i: SupportsIndex | None = None, ax: Axes | None = None) -> Axes:
        """Class probabilities: for star i a bar for each class, for all stars a bar for each star.

        Bars of stars with warnings are hatched, and do not name a class.

        Arguments:
            i: Index of the star; by default all stars, at most 60: `res[:60].plot_classes()`.
            ax: Axes to draw on; by default those of a new figure, `res.plot_classes().figure`.

        Raises:
            BayesspecError: if there is no such star, or there are too many.

        Returns:
            The axes.

        Example:
            >>> import bayesspec, numpy as np
            >>> star = bayesspec.Observation(np.linspace(3900, 9100, 4000), np.ones(4000), name="flat")
            >>> res = bayesspec.denoise([star, star], model="kang2021")
            >>> res.plot_classes(0).get_title(loc="left"), res.plot_classes().get_xlabel()
            ('class probability', 'Class probability')
        """
        if i is None:
            from .classes import plot_class_shares

            return plot_class_shares([self._without_lines(n) for n in range(len(self))], ax)
        from .plotting import plot_class_bars

        return plot_class_bars(self._without_lines(i), ax)

    def plot_latents(
        self: _Stars, pairs: Sequence[tuple[int, int]] | None = None, *, fig: Figure | None = None
    ) -> Figure:
        """Latents z of the model's training stars by class, with the stars of this result on top.

        Distances are those between spectra: the rms of their difference at mean flux 1. Each star is a large
        symbol at its `z`, open and red if it has warnings. If the method gives draws, 200 draws of equal
        weight are shown as small black points.

        Arguments:
            pairs: Latents of each panel, counted from 1: (horizontal, vertical); by default (1, 2),
                (3, 4) ...
            fig: An empty figure to draw on; by default a new one.

        Raises:
            BayesspecError: if the model has no such latents, or the figure has axes already.

        Returns:
            The figure.

        Example:
            >>> import bayesspec, numpy as np
            >>> star = bayesspec.Observation(np.linspace(3900, 9100, 4000), np.ones(4000), name="flat")
            >>> figure = bayesspec.denoise(star, model="kang2021").plot_latents()
            >>> [ax.get_xlabel() for ax in figure.axes]
            ['$z_{1}$', '$z_{2}$']
        """
        from .classes import plot_latents

        if self.model is None:
            raise BayesspecError("the result has no model, so its training stars cannot be shown")
        draws = np.empty((0, 0, 0), dtype=np.float32)
        if self.draws is not None:
            draws, _ = self.draws.resample(SHOWN_DRAWS)
        stars = [self._without_lines(n) for n in range(len(self))]
        return plot_latents(self.model, stars, draws, pairs=pairs, fig=fig)
