"""The hierarchical model of a stellar spectrum, eqs. (3)-(6), as a Pyro model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .distributions import LatentPrior, NoiseFlow
from .exceptions import BayesspecError
from .grid import WavelengthGrid
from .nn import Encoder, Generator, NoiseNetwork
from .observation import ObservationBatch

__all__ = ["StellarModel"]

SCALE_WIDTH = 1.0
"""Prior standard deviation of the log scale of an exposure whose normalisation is unknown."""


class StellarModel(nn.Module):
    r"""C ~ Uniform, z | C ~ KDE, s = G(z), y | s ~ NoiseFlow: call it in any Pyro tool with a batch of stars.

    .. math::
        C &\sim \mathrm{Categorical}(1/10, \dots, 1/10) & (6) \\
        z \,|\, C &\sim \mathrm{KDE}_C & (5) \\
        s &= G(z) & (4) \\
        y_1, \dots, y_E \,|\, s &\sim \mathrm{NoiseFlow}(s) & (3)

    An exposure whose normalisation is unknown has a scale, :math:`y_e = a_e (s + \epsilon_e)`, with
    :math:`\log a_e \sim \mathcal{N}(0, 1)`. The star's class can be enumerated: nothing but z depends on it.

    References:
        | Kang, He & Zhang 2021, RAA 21, 169, section 3 (https://arxiv.org/abs/2103.02896)

    Arguments:
        grid: Wavelengths of the D pixels.
        classes: Names of the K classes.
        encoder: First guess of z; not part of the density.
        generator: G.
        prior: p(z | C).
        noise: Conditioner of the noise flow.
        card: What is known about the bundle: name, provenance, recipe, metrics.

    Example:
        >>> import numpy as np, pyro
        >>> from bayesspec import Observation, load_model
        >>> from bayesspec.observation import ObservationBatch
        >>> model = load_model("kang2021")
        >>> star = Observation(model.grid.wavelength, np.ones(2048))
        >>> batch = ObservationBatch.from_observations([star, star], model.grid)
        >>> trace = pyro.poutine.trace(model).get_trace(batch)
        >>> trace.nodes["z"]["value"].shape, trace.nodes["y"]["value"].shape
        (torch.Size([2, 1, 3]), torch.Size([2, 1, 2048]))
    """

    def __init__(
        self,
        grid: WavelengthGrid,
        classes: Sequence[str],
        encoder: Encoder,
        generator: Generator,
        prior: LatentPrior,
        noise: NoiseNetwork,
        card: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.classes, self.card = grid, tuple(classes), dict(card or {})
        self.encoder, self.generator, self.prior, self.noise = encoder, generator, prior, noise
        self.register_buffer("class_logits", torch.zeros(len(self.classes)), persistent=False)
        self.requires_grad_(False)

    def forward(self, batch: ObservationBatch) -> Tensor:
        """The Pyro model of N stars with E exposures; returns the clean spectra, (N, 1, D).

        Sites: `C` (N, 1), `z` (N, 1, L), `log_scale` (F,) for the F exposures of the batch whose scale is
        free, `y` (N, E, D).
        """
        scale, device = self.exposure_scale(batch), batch.flux.device
        with pyro.plate("star", len(batch), dim=-2, device=device):
            klass = pyro.sample(
                "C", dist.Categorical(logits=self.class_logits), infer={"enumerate": "parallel"}
            )  # eq. (6)
            z = pyro.sample("z", self.prior(klass))  # eq. (5)
            s = self.generator(z)  # eq. (4)
            with pyro.plate("exposure", batch.flux.shape[1], dim=-1, device=device):
                pyro.sample("y", NoiseFlow(s, self.noise, scale, ~batch.mask), obs=batch.flux)  # eq. (3)
        return s

    def exposure_scale(self, batch: ObservationBatch) -> Tensor:
        """The scale of every exposure, (N, E): sampled where it is free, 1 where it is known."""
        scale = torch.ones_like(batch.unit_flux)
        free = batch.free_index.shape[1]
        if not free:
            return scale
        with pyro.plate("free", free, dim=-1, device=scale.device):
            log_scale = pyro.sample("log_scale", dist.Normal(scale.new_zeros(()), SCALE_WIDTH))
        return scale.index_put(tuple(batch.free_index), log_scale.exp())

    def log_likelihood(self, batch: ObservationBatch, z: Tensor, log_scale: Tensor) -> Tensor:
        """log p(y | z) of N stars, (..., N), at latents (..., N, L) and log scales (..., N, E), eq. (16)."""
        flow = NoiseFlow(self.generator(z)[..., None, :], self.noise, log_scale.exp(), ~batch.mask)
        return flow.log_prob(batch.flux).sum(-1)

    def log_joint_classes(self, z: Tensor) -> Tensor:
        """log p(C) + log p(z | C) of latents (N, L) for every class, (N, K)."""
        return self.class_logits.log_softmax(-1) + self.prior.log_prob_all(z)

    def with_class_weights(self, weights: Mapping[str, float] | Sequence[float]) -> StellarModel:
        """The same model, networks shared, with another prior of the classes, eq. (6).

        Arguments:
            weights: Relative, one for each class, or by name; a class that is not named weighs 1.

        Raises:
            BayesspecError: if a name is no class, or weights are negative, not finite, or all zero.
        """
        if isinstance(weights, Mapping):
            unknown = set(weights) - set(self.classes)
            if unknown:
                raise BayesspecError(f"class_weights: {self.name} has no class {', '.join(sorted(unknown))}")
            weights = [weights.get(name, 1.0) for name in self.classes]
        values = torch.as_tensor(list(weights), dtype=torch.float64)
        if values.shape != (len(self.classes),):
            raise BayesspecError(f"class_weights: {len(self.classes)} weights needed, {len(values)} given")
        if not (values.isfinite().all() and (values >= 0).all() and values.sum() > 0):
            raise BayesspecError(f"class_weights must be positive or zero, not {values.tolist()}")
        model = copy.copy(self)
        model._buffers = {**self._buffers, "class_logits": values.log().to(self.class_logits)}
        return model

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return str(self.card.get("name", "unnamed"))

    @property
    def latent_dim(self) -> int:
        """L."""
        return self.generator.latent_dim
