"""The last step: how large errors are in arms and gaps that nothing was seen of, counted on unseen stars."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.inference.denoise import denoise
from bayesspec.inference.unseen import remoteness
from bayesspec.model import StellarModel

from .exposures import NoiseLibrary
from .library import StarLibrary
from .simulation import NoisyStars, choose_sides, interval, one_arm, simulate

__all__ = ["fit_unseen_sizes", "most_probable_sizes"]

ROBBED = {"interval": partial(interval, widths=(100, 1000)), "one_arm": one_arm}
"""What the stars are robbed of: part of the spectrum; all light above or below 6000 Angstrom, or so."""

PER_CLASS = 12
"""Stars of each class."""

DRAWS = 256
"""Of the posterior of each."""

MEANS, SPREADS = (-0.6, 1.6, 45), (0.0, 1.0, 21)
"""Log sizes, and spreads of them, that are tried: from, to, how many."""

NODES = 9
"""Of the quadrature over a star's log size."""

TYPICAL = 4.0
"""Stars of a class that those of all classes count as, each class alike."""


class Errors(NamedTuple):
    """Of one spectrum, in the pixels of the truth that nothing was seen of."""

    square: Tensor
    """In units of the posterior's variance, (D',)."""
    remote: Tensor
    """How remote each pixel is, (D',)."""


@torch.no_grad()
def fit_unseen_sizes(
    model: StellarModel, stars: StarLibrary, noise: NoiseLibrary, *, seed: int, progress: bool = False
) -> Tensor:
    """Mean and spread of the log size of residuals where nothing is seen, for every class, (kinds, 2).

    Unseen stars are given the noise of unseen nights, robbed of an arm or a piece of the spectrum, and
    denoised. What is sought is by how much the errors there are larger than the model says from what it sees.

    Arguments:
        model: The model, all else of it fitted.
        stars: Clean stars; those of the validation side count.
        noise: Noise of exposures; those of the validation side count.
        seed: Of which noise each star is given, and of the draws.
        progress: Show bars on stderr.

    Raises:
        BayesspecError: if no star with S/N above 60, or no night, is on the validation side.
    """
    model.residual.unseen_size.zero_()  # else it would be counted what is wrong with the last one
    chosen = choose_sides(stars, noise, PER_CLASS, "validation")
    errors: list[Errors] = []
    klass: list[int] = []
    star: list[str] = []
    for name, rob in ROBBED.items():
        data = simulate(name, rob, *chosen, model.grid, seed=seed, tell_scale=name == "interval")
        errors += _errors(model, data, seed, progress)
        klass += data.klass.tolist()
        star += data.star.tolist()
    return most_probable_sizes(errors, np.array(klass), np.array(star), len(model.residual.unseen_size))


def _errors(model: StellarModel, data: NoisyStars, seed: int, progress: bool) -> list[Errors]:
    """What posterior means are wrong by where nothing was seen."""
    options = {"method": "importance", "draws": DRAWS, "handover": False, "seed": seed, "progress": progress}
    found = denoise(data.observations(), model=model, **options)
    square = torch.as_tensor(((data.truth - found.flux) / found.flux_std) ** 2).float()
    remote = remoteness(torch.as_tensor(data.mask))
    known = torch.as_tensor(~data.truth_mask) & (remote > 0)
    return [Errors(e[k], r[k]) for e, r, k in zip(square, remote, known, strict=True)]


def most_probable_sizes(
    errors: list[Errors], klass: NDArray[np.int64], star: NDArray[np.str_], classes: int
) -> Tensor:
    """Mean and spread of log sizes, (classes, 2), that make errors most probable, pixel by pixel.

    Pixels of a star are not independent, so a star counts as one, whatever their number; a class of few stars
    is drawn to all others.

    Arguments:
        errors: Of N spectra.
        klass: (N,).
        star: Whose spectrum each is, (N,).
        classes: How many there are.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> size = torch.exp(0.5 + 0.3 * torch.randn(100, 1, generator=rng))
        >>> square = (size * torch.randn(100, 200, generator=rng)).square()
        >>> errors = [Errors(one, torch.ones(200)) for one in square]
        >>> found = most_probable_sizes(errors, np.zeros(100, int), np.arange(100).astype(str), 2)
        >>> bool((found - torch.tensor([0.5, 0.3])).abs().max() < 0.1)
        True
    """
    density = torch.stack([_log_density(one) for one in errors])
    of_class = {int(c): density[torch.as_tensor(klass == c)].mean(0) for c in np.unique(klass)}
    whole = TYPICAL * torch.stack(list(of_class.values())).mean(0)
    means, spreads = torch.linspace(*MEANS), torch.linspace(*SPREADS)
    sizes = []
    for c in range(classes):
        total = whole
        if c in of_class:
            total = total + len(np.unique(star[klass == c])) * of_class[c]
        best = int(total.argmax())
        sizes.append(torch.stack([means[best // len(spreads)], spreads[best % len(spreads)]]))
    return torch.stack(sizes)


def _log_density(errors: Errors) -> Tensor:
    """Mean log density of a spectrum's errors, for all means and spreads of the log size, (M, S).

    0 of a spectrum that has no pixel without data.
    """
    means, spreads = torch.linspace(*MEANS), torch.linspace(*SPREADS)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weight = torch.as_tensor(weights / weights.sum()).float()
    log_size = means[:, None, None] + spreads[:, None] * torch.as_tensor(nodes).float()
    total = torch.zeros(len(means), len(spreads))
    for square, remote in zip(errors.square.split(64), errors.remote.split(64), strict=True):
        a = log_size[..., None] * remote
        total += torch.logsumexp(weight.log()[:, None] - 0.5 * square * (-2 * a).exp() - a, -2).sum(-1)
    return total / max(1, len(errors.square))
