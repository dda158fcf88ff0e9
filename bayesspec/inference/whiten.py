"""Coordinates in which the posterior is nearly a standard normal: what any Pyro tool works well in."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor

from bayesspec.batch import ObservationBatch
from bayesspec.model import StellarModel

from .newton import find_modes
from .scan import LatentScan
from .target import Target

__all__ = ["Whitened"]


class Whitened(Reparam):
    r"""The program in coordinates u that Laplace's approximation makes standard normal, for any tool of Pyro.

    A posterior is a thousand times narrower than its prior. Samplers and guides of Pyro that begin with the
    prior's width take very long to find that out. Here each site of the program (`log_scale`, `z`, `v`, `q`,
    `w`) gets a site `..._white` beside it, and is

    .. math:: \theta = \theta_m + L u

    with the mode :math:`\theta_m`, and :math:`L L^T` the covariance of Laplace's approximation there. L is
    lower triangular in the order of the sites, so that a site that is conditioned keeps its value and moves
    those after it as it should. The density stays what it was, the volume of the map included.

    References:
        | Hoffman et al. 2019, NeuTra-lizing bad geometry in HMC (https://arxiv.org/abs/1903.03704), with a
        | linear map

    Arguments:
        model: The model.
        batch: N stars, those that the program is run with.
        centre: Latents (N, L + P + R) and log scales (N, E).
        factor: A with A A^T the covariance of `Target`'s vectors there, (N, d, d).

    Example:
        >>> import numpy as np
        >>> from pyro import poutine
        >>> from pyro.infer import MCMC, NUTS, Predictive
        >>> from bayesspec import Observation, load_model
        >>> model = load_model("kang2021")
        >>> star = Observation(model.grid.wavelength, np.linspace(1.5, 0.5, 2048), scale=1.0)
        >>> batch = model.batch(star)
        >>> white = Whitened.at_modes(model, batch)
        >>> chain = MCMC(NUTS(poutine.reparam(model, white)), 20, 10, disable_progbar=True)
        >>> chain.run(batch)
        >>> draws = Predictive(poutine.reparam(model.with_flux, white), chain.get_samples())(batch)
        >>> draws["flux"].shape
        torch.Size([20, 1, 2048])
    """

    def __init__(
        self, model: StellarModel, batch: ObservationBatch, centre: tuple[Tensor, Tensor], factor: Tensor
    ) -> None:
        target = Target(model, batch)
        lead, end = target.latent_dim, target.end
        theta, unit = target.join(*centre), torch.ones_like(factor[0, 0])
        if model.passage is not None:  # v and q have units
            unit[model.latent_dim : lead] = model.passage.widths
        theta, factor = theta * unit, factor * unit[:, None]
        # The program's order: the scales come first.
        index = torch.arange(target.dim, device=theta.device)
        order = torch.cat([index[lead:end], index[:lead], index[end:]])
        covariance = factor @ factor.mT
        self.centre = theta[:, order]
        self.factor = torch.linalg.cholesky(covariance[:, order[:, None], order])
        self.free = batch.free_index[0] * (end - lead) + batch.free_index[1]

        sizes = {"log_scale": end - lead, "z": model.latent_dim}
        if model.passage is not None:
            sizes |= {"v": 1, "q": model.passage.dim - 1}
        if model.residual is not None:
            sizes["w"] = model.residual_dim
        self.columns: dict[str, slice] = {}
        for name, size in sizes.items():
            start = sum(sizes[earlier] for earlier in self.columns)
            self.columns[name] = slice(start, start + size)
        self._before: dict[str, Tensor] = {}

    @classmethod
    def at_modes(
        cls, model: StellarModel, batch: ObservationBatch, *, starts: int = 4, scan: LatentScan | None = None
    ) -> Whitened:
        """Around the highest mode of each star, the class summed out.

        Arguments:
            model: The model.
            batch: N stars, of `StellarModel.batch`.
            starts: As for `find_modes`.
            scan: `LatentScan(model)`, where it is at hand already.
        """
        modes = find_modes(model, batch, starts=starts, scan=scan)
        best = modes.log_density.argmax(-1)
        theta = modes.theta[torch.arange(len(batch), device=best.device), best]
        target = Target(model, batch)
        return cls(model, batch, target.split(theta), target.laplace(theta))

    # The base class has a method of this name that Pyro has given up, with other arguments.
    def __call__(self, msg: Any) -> Whitened | None:  # type: ignore[override]
        """What `pyro.poutine.reparam` asks of every site."""
        return self if msg["name"] in self.columns else None

    def apply(self, msg: Any) -> Any:
        """The site's value from the coordinates of this site and of those before it."""
        name, value = msg["name"], msg["value"]
        shape = None if value is None else value.shape
        own = self.columns[name]
        if name == "log_scale" or (name == "z" and not len(self.free)):
            self._before = {}  # the program begins
        mean = self.centre[:, own]
        for earlier, before in self._before.items():
            block = self.factor[:, own, self.columns[earlier]]
            mean = mean + (block @ before[..., None])[..., 0]
        block = self.factor[:, own, own]
        if value is not None and not (msg["is_observed"] or getattr(value, "_pyro_custom_init", True)):
            value = None  # a guess that knows nothing of the data

        u: Any = None
        if value is not None:
            away = self._columns(name, value, mean) - mean
            u = torch.linalg.solve_triangular(block, away[..., None], upper=False)[..., 0]
        if not msg["is_observed"]:
            u = self._draw(name, u, own.stop - own.start)
            value = mean + (block @ u[..., None])[..., 0]
            volume = block.diagonal(dim1=-2, dim2=-1).log()
            if name == "log_scale":
                value, volume = value.flatten(-2)[..., self.free], volume.flatten()[self.free]
            else:
                value, volume = value[..., 0] if name == "v" else value, volume.sum(-1)
            pyro.factor(f"{name}_volume", volume)
            if shape is not None:  # a guess that was made for each class; all have the same coordinates
                value = value.expand(shape)
        self._before[name] = u
        return {"fn": msg["fn"], "value": value, "is_observed": True}

    def _draw(self, name: str, u: Tensor | None, size: int) -> Tensor:
        """The site of the coordinates, (..., N, size): without a density of its own."""
        zero = self.centre.new_zeros(())
        if name == "log_scale":
            given = None if u is None else u.flatten(-2)[..., self.free]
            fn = dist.Normal(zero, 1.0).mask(False)
            free = pyro.sample(f"{name}_white", fn, obs=given, infer={"is_observed": False})
            return self._scattered(free)
        fn = dist.Normal(zero, 1.0).expand([size]).to_event(1).mask(False)
        return pyro.sample(f"{name}_white", fn, obs=u, infer={"is_observed": False})

    def _columns(self, name: str, value: Tensor, mean: Tensor) -> Tensor:
        """A site's value as the columns of a vector, (..., N, size)."""
        if name == "log_scale":
            every = mean.expand(*value.shape[:-1], *mean.shape[-2:]).flatten(-2)
            return every.index_copy(-1, self.free, value).unflatten(-1, mean.shape[-2:])
        return value[..., None] if name == "v" else value

    def _scattered(self, free: Tensor) -> Tensor:
        """Numbers of the free exposures, (..., F), as (..., N, E), 0 elsewhere."""
        shape = len(self.centre), self.columns["log_scale"].stop
        empty = free.new_zeros(*free.shape[:-1], shape[0] * shape[1])
        return empty.index_copy(-1, self.free, free).unflatten(-1, shape)
