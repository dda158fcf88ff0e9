"""Laplace's approximation: a normal distribution at every mode, for the price of finding the modes."""

from __future__ import annotations

import numpy as np

from bayesspec.batch import ObservationBatch
from bayesspec.model import StellarModel

from .draws import Draws
from .importance import Pool
from .newton import find_modes
from .scan import LatentScan
from .target import Target

__all__ = ["laplace_draws"]


def laplace_draws(
    model: StellarModel,
    batch: ObservationBatch,
    *,
    draws: int = 256,
    starts: int = 4,
    seed: int = 0,
    scan: LatentScan | None = None,
) -> Draws:
    r"""Draw from Laplace's approximation of :math:`p(z, a \,|\, y)`, the class summed out.

    Normal distributions at all modes, each by its share of the mass; with a residual term w is normal given
    the rest, as it very nearly is. The draws are taken as they are: nothing mends what the posterior has that
    normal distributions have not, such as a ridge that bends. Importance weights of the same draws say how
    good the approximation is: Pareto k above 0.7, and the row says so.

    References:
        | MacKay 2003, Information Theory, Inference, and Learning Algorithms, chapter 27
        | Vehtari et al. 2024, JMLR 25, 72 (https://arxiv.org/abs/1507.02646), on k

    Arguments:
        model: The model.
        batch: N stars.
        draws: S, for each star.
        starts: Classes whose best training latent is a start, and further starts that are far apart.
        seed: Of the random numbers, which are the same for every star.
        scan: `LatentScan(model)`, where it is at hand already.

    Returns:
        Draws of one weight, one chain of S; diagnostics `laplace_k`; with the log evidence by Laplace's
        approximation, mended by the weights.

    Example:
        >>> import numpy as np
        >>> from bayesspec import Observation, load_model
        >>> model = load_model("kang2021")
        >>> star = Observation(model.grid.wavelength, np.ones(2048))
        >>> found = laplace_draws(model, model.batch(star), draws=100)
        >>> found.z.shape, found.log_weight is None
        ((1, 1, 100, 3), True)
    """
    target = Target(model, batch)
    modes = find_modes(model, batch, classes="marginal", starts=starts, scan=scan)
    pool = Pool.of(target, modes, normal=True)
    pool.draw(draws, seed)
    return target.draws(
        pool.theta.movedim(0, 1)[:, None].cpu().numpy(),
        log_weight=None,
        log_density=pool.log_density.T[:, None].cpu().numpy(),
        log_evidence=np.logaddexp.reduce(pool.log_ratio, axis=-1) - np.log(draws),
        diagnostics={"laplace_k": pool.pareto_k},
    )
