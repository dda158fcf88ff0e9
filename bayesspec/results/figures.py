"""The figures of a `Result`: of one star, its posterior, its classes, and where it lies among others."""

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
"""Equally probable draws that a figure has of a star."""


class _Stars(Protocol):
    """What figures ask of a result."""

    @property
    def model(self) -> StellarModel | None: ...
    @property
    def draws(self) -> Draws | None: ...
    def __len__(self) -> int: ...
    def _without_lines(self, i: SupportsIndex) -> Star: ...
    def _posterior(self, i: SupportsIndex, consequence: str) -> Posterior: ...


class Figures:
    """What a `Result` can draw; nothing that is drawn changes matplotlib's settings."""

    def plot(
        self: _Stars, i: SupportsIndex = 0, ax: Axes | None = None, *, truth: ArrayLike | None = None
    ) -> Figure:
        """Figure of star i: observed and clean spectrum, residuals, classes; on `ax` the spectra alone.

        Arguments:
            i: Which star.
            ax: Where to draw the spectra alone.
            truth: The true spectrum on the model's grid, (D,), in the flux unit of the input, where it is
                known.
        """
        from .plotting import plot_spectra, plot_star

        star = self._without_lines(i)
        if ax is None:
            return plot_star(star, truth)
        plot_spectra(ax, star, truth)
        return ax.figure.figure  # the whole one, where ax is in a part of it

    def plot_corner(
        self: _Stars,
        i: SupportsIndex = 0,
        names: Sequence[str] | None = None,
        *,
        truths: Mapping[str, float] | None = None,
        fig: Figure | None = None,
    ) -> Figure:
        """Corner plot of star i: the posterior of each quantity and each pair, and class probabilities.

        Draws count by their weights. Contours hold 39 and 86 % of them, as 1 and 2 sigma of a normal
        distribution of two quantities do; the numbers are mean and standard deviation, as in `table`.

        Arguments:
            i: Which star.
            names: What to show: `velocity_offset` (km/s), `ebv_excess` (mag), `arm_step` and `calibration 1`
                ... (ln flux), as far as the model has them, and latents `z1` ... Without it the first two,
                `z1` and `z2`.
            truths: Values to mark, such as those of a catalogue, by the same names.
            fig: Where to draw, with nothing on it yet; 3.5 inches fit a column of a journal. Without it on a
                figure of its own.

        Raises:
            BayesspecError: if there is no such star or quantity, the figure has axes already, or fewer draws
                than quantities; for `map`, which is one point of the posterior.

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
        """Class probabilities: of star i a bar for each class, of all stars a bar for each star.

        Bars of stars with warnings are hatched, and name no class.

        Arguments:
            i: Which star; without it all, of which there may be 60: `res[:60].plot_classes()`.
            ax: Where to draw; without it on a figure of its own, `res.plot_classes().figure`.

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
        """Latents z of the model's training stars by class, and those of these stars over them.

        A distance is that between spectra: the root mean square of their difference, where their mean flux is
        1. Each star is a large symbol at its `z`, open and red if it has warnings; where the method gives
        draws, 200 equally probable ones are small black points.

        Arguments:
            pairs: Which latents, counted from 1, a panel for each: (across, upwards); (1, 2), (3, 4) ... if
                None.
            fig: Where to draw, with nothing on it yet; without it on a figure of its own.

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
            raise BayesspecError("the result is without its model, whose training stars are to be shown")
        draws = np.empty((0, 0, 0), dtype=np.float32)
        if self.draws is not None:
            draws, _ = self.draws.resample(SHOWN_DRAWS)
        stars = [self._without_lines(n) for n in range(len(self))]
        return plot_latents(self.model, stars, draws, pairs=pairs, fig=fig)
