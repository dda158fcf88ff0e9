"""The exact posterior in few dimensions, by sums over a lattice: the oracle of the other engines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.model import StellarModel

from .newton import find_modes
from .scan import LatentScan
from .target import Target

__all__ = ["Quadrature", "quadrature"]

MAX_DIM = 5
"""Latents and free scales of a star together, above which a lattice has too many points."""

DEPTH = 11.0
"""The lattice reaches from the peak to where the density is lower by this much in the logarithm."""

SCANNED = 4000
"""Points of a lattice evaluated at once."""


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Moments of N posteriors.

    Arguments:
        log_evidence: log p(y), (N,).
        z_mean: (N, L).
        z_cov: (N, L, L).
        log_scale_mean: (N, E); 0 where the scale is known.
        flux_mean: Clean spectrum, (N, D), in the model's unit.
        flux_std: (N, D).
        class_probabilities: p(C | y), (N, K).
        points: Points of the last lattice, (N,).
        error: Largest change at the last refinement: of the evidence's logarithm, of class probabilities, and
            of z's mean and standard deviation in units of the latter, (N,).
    """

    log_evidence: NDArray[np.float64]
    z_mean: NDArray[np.float64]
    z_cov: NDArray[np.float64]
    log_scale_mean: NDArray[np.float64]
    flux_mean: NDArray[np.float64]
    flux_std: NDArray[np.float64]
    class_probabilities: NDArray[np.float64]
    points: NDArray[np.int64]
    error: NDArray[np.float64]


def quadrature(
    model: StellarModel,
    batch: ObservationBatch,
    *,
    tolerance: float = 1e-3,
    starts: int = 6,
    max_points: int = 200_000,
    scan: LatentScan | None = None,
) -> Quadrature:
    r"""Integrate :math:`p(y, z, a)` over the latents and the free scales of every star.

    The integrand is summed over a lattice whose axes whiten the posterior's largest modes. The lattice grows
    from every mode found, and from every training latent whose density is not negligible, over all neighbours
    until the density has dropped by a factor of 6e4: it covers a posterior of any shape, no part of it twice.
    For a smooth density such a sum converges faster than any power of the spacing; the spacing shrinks until
    the results change by less than the tolerance.

    Arguments:
        model: The model.
        batch: N stars, each of at most 5 latents and free scales together.
        tolerance: For the evidence's logarithm, class probabilities, and z's mean and standard deviation in
            units of the latter.
        starts: Classes whose best training latent is a start, and further starts that are far apart.
        max_points: Of a lattice; a star that needs more keeps the results of the last but one, and its
            `error` says how good they are.
        scan: `LatentScan(model)`, where it is at hand already.

    Raises:
        ValueError: if a star has more than 5 latents and free scales.

    Example:
        >>> import numpy as np
        >>> from bayesspec import Observation, load_model
        >>> model = load_model("kang2021")
        >>> star = Observation(model.grid.wavelength, np.ones(2048))
        >>> batch = ObservationBatch.from_observations([star], model.grid)
        >>> exact = quadrature(model, batch, tolerance=0.03)
        >>> exact.z_mean.shape, bool(exact.error[0] < 0.03)
        ((1, 3), True)
    """
    target = Target(model, batch)
    most = int(target.free.sum(-1).max())
    if most > MAX_DIM:
        raise ValueError(f"a star has {most} latents and free scales, more than the {MAX_DIM} of a lattice")
    scan = LatentScan(model) if scan is None else scan
    modes = find_modes(model, batch, classes="marginal", starts=starts, scan=scan)
    stars = []
    for n, ends in enumerate(modes.theta):
        # Without the exposures that other stars have: they would cost as much as its own.
        own = (~batch.mask[n]).any(-1)
        star = Target(model, _with_exposures(batch.select([n]), own))
        kept = torch.cat([own.new_ones(model.latent_dim), own])
        results = _star(star, ends[:, kept], modes.log_density[n], scan, tolerance, max_points)
        log_scale = np.zeros(len(own))
        log_scale[own.cpu().numpy()] = results[3]
        stars.append((*results[:3], log_scale, *results[4:]))
    return Quadrature(*(np.stack(column) for column in zip(*stars, strict=True)))


def _with_exposures(batch: ObservationBatch, keep: Tensor) -> ObservationBatch:
    names = ("flux", "ivar", "mask", "unit_flux", "free_scale")
    parts = {name: getattr(batch, name)[:, keep] for name in names}
    return batch.with_tensors(**parts)


def _star(
    target: Target,
    ends: Tensor,
    density: Tensor,
    scan: LatentScan,
    tolerance: float,
    max_points: int,
) -> tuple[NDArray, ...]:
    """The fields of `Quadrature` for one star."""
    alive = density > density.max() - DEPTH
    rows = np.zeros(int(alive.sum()), int)
    axes = target.select(rows).laplace(ends[alive])
    mass = density[alive] + axes.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    precision = (mass.softmax(0)[:, None, None] * torch.linalg.inv(axes @ axes.mT)).sum(0)
    best = ends[density.argmax()]

    # Seeds: every mode, and training latents at the scales of the best mode.
    latents = target.join(scan.z[:, None], best[target.latent_dim :].expand(len(scan.z), 1, -1))[:, 0]
    likely = target.log_density(latents[:, None])[:, 0] > density.max() - DEPTH
    seeds = torch.cat([ends[alive], latents[likely]])

    lattice = _Lattice(target, best, torch.linalg.inv(torch.linalg.cholesky(precision)).mT, seeds)
    spacing, before, error = 1.3, None, np.inf
    while True:
        theta, value = lattice.fill(spacing, max_points)
        if theta is None:
            break
        now = _moments(target, theta, value, lattice.log_cell(spacing))
        error = np.inf if before is None else _change(before, now)
        before = now
        if error < tolerance:
            break
        spacing *= 0.8
    if before is None:
        raise ValueError(f"{target.batch.names[0]}: the lattice has more than {max_points} points")
    return (*before, np.asarray(error))


class _Lattice:
    """Points origin + axes (k + 1/3) spacing, k integer, of the free components of one star's theta."""

    def __init__(self, target: Target, origin: Tensor, axes: Tensor, seeds: Tensor) -> None:
        free = target.free[0]
        self.target, self.origin, self.free = target, origin, free
        self.axes = axes[free][:, free]
        self.seeds = torch.linalg.solve(self.axes, (seeds - origin)[:, free].T).T
        dim = len(self.axes)
        identity = torch.eye(dim, dtype=torch.long, device=free.device)
        self.neighbours = torch.cat([identity, -identity])

    def log_cell(self, spacing: float) -> float:
        """Logarithm of the volume that belongs to a point."""
        return float(torch.linalg.slogdet(self.axes.double())[1]) + len(self.axes) * np.log(spacing)

    def theta(self, index: Tensor, spacing: float) -> Tensor:
        offset = ((index.to(self.axes.dtype) + 1 / 3) * spacing) @ self.axes.T
        theta = self.origin.repeat(len(index), 1)
        theta[:, self.free] += offset
        return theta

    def fill(self, spacing: float, max_points: int) -> tuple[Tensor | None, Tensor]:
        """Thetas and log densities of the points around the seeds; None if there are too many."""
        frontier = (self.seeds / spacing - 1 / 3).round().long().unique(dim=0)
        seen = {tuple(point) for point in frontier.tolist()}
        thetas, values, peak = [], [], -torch.inf
        while len(frontier):
            theta = self.theta(frontier, spacing)
            value = torch.cat([self.target.log_density(part[:, None])[:, 0] for part in theta.split(SCANNED)])
            thetas.append(theta)
            values.append(value)
            peak = max(peak, float(value.max()))
            if len(seen) > max_points:
                return None, value
            inner = frontier[value > peak - DEPTH]
            around = (inner[:, None] + self.neighbours).reshape(-1, frontier.shape[1]).unique(dim=0)
            fresh = [point for point in map(tuple, around.tolist()) if point not in seen]
            seen.update(fresh)
            frontier = torch.tensor(fresh, dtype=torch.long, device=self.free.device)
        return torch.cat(thetas), torch.cat(values)


def _moments(target: Target, theta: Tensor, value: Tensor, log_cell: float) -> tuple[NDArray, ...]:
    """Everything of one star but the error, from the points of a lattice."""
    value = value.double()
    evidence = value.logsumexp(0)
    weight = (value - evidence).exp()
    counts = weight > 1e-9
    weight, (z, log_scale) = weight[counts], target.split(theta[counts])
    z_mean, z_cov = _mean_and_covariance(z.double(), weight)
    classes = first = second = weight.new_zeros(())
    with torch.no_grad():
        # Deviations from the spectrum at the mean: a variance must not be a difference of large numbers.
        centre = target.model.generator(z_mean[None].to(z.dtype)).double()
        for part, share in zip(z.split(1024), weight.split(1024), strict=True):
            classes = classes + share @ target.model.log_joint_classes(part).double().softmax(-1)
            offset = target.model.generator(part).double() - centre
            first, second = first + share @ offset, second + share @ offset.square()
    results = (
        evidence + log_cell,
        z_mean,
        z_cov,
        weight @ log_scale.double(),
        centre[0] + first,
        (second - first.square()).clamp_min(0).sqrt(),
        classes,
    )
    return (*(part.cpu().numpy() for part in results), np.asarray(len(value)))


def _mean_and_covariance(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    mean = weight @ values
    offset = values - mean
    return mean, (offset * weight[:, None]).T @ offset


def _change(before: tuple[NDArray, ...], now: tuple[NDArray, ...]) -> float:
    std = np.sqrt(np.diagonal(now[2]))
    return max(
        float(abs(now[0] - before[0])),
        float((abs(now[1] - before[1]) / std).max()),
        float(abs(np.sqrt(np.diagonal(before[2])) / std - 1).max()),
        float(abs(now[6] - before[6]).max()),
    )
