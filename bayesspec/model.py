"""The hierarchical model of a stellar spectrum, eqs. (3)-(6), as a Pyro model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .batch import ObservationBatch
from .distributions import LatentPrior, NoiseFlow, RobustNoiseFlow, SharedDiscrepancy
from .distributions.clean_spectrum import CleanSpectrum
from .exceptions import BayesspecError
from .grid import WavelengthGrid
from .nn import WIDTHS, Encoder, Generator, NoiseNetwork, Passage, ResidualTerm, RobustNoiseNetwork
from .noise_level import fill_ivar
from .observation import Observation

__all__ = ["StellarModel"]

SCALE_WIDTH = 1.0
"""Prior standard deviation of the log scale of an exposure, in the batch's units."""


STATED, UNSTATED = 0.15, 1.0
"""Prior standard deviation of the log noise level, with and without errors from the pipeline."""


class StellarModel(nn.Module):
    r"""C ~ Uniform, z | C ~ KDE, s = G(z), y | s ~ NoiseFlow: a Pyro model of a batch of stars.

    .. math::
        C &\sim \mathrm{Categorical}(1/10, \dots, 1/10) & (6) \\
        z \,|\, C &\sim \mathrm{KDE}_C & (5) \\
        s &= G(z) & (4) \\
        y_1, \dots, y_E \,|\, s &\sim \mathrm{NoiseFlow}(s) & (3)

    Every exposure has a scale, :math:`y_e = a_e (s + \epsilon_e)`, with :math:`\log a_e \sim
    \mathcal{N}(0, 1)`, unless the user states it. The class can be enumerated, because only z depends on it.

    A model may have a residual term for what G cannot express. Its noise model then uses the pipeline's
    inverse variance, and

    .. math::
        h, w &\sim \mathcal{N}(0, 1), \quad
        e_d \sim \textstyle\sum_k \lambda_{kd}(z)\, \mathcal{N}(0, \omega_k^2 S_d(h)^2 \tau_d(z)^2) \\
        s &= G(z) + B\, m(z) + S(h) \odot B \Lambda(z)\,w + e

    The discrepancy e has one value per pixel, shared by all exposures. It is marginalised in the likelihood
    (see `SharedDiscrepancy`), and `complete` gives its distribution. In the code, w stands for h and w
    together, R numbers. The latents of a function are z, then x if there is a passage, then this w.

    References:
        | Kang, He & Zhang 2021, RAA 21, 169, section 3 (https://arxiv.org/abs/2103.02896)

    Arguments:
        grid: Wavelengths of the D pixels.
        classes: Names of the K classes.
        encoder: First guess of z; not part of the density.
        generator: G.
        prior: p(z | C).
        noise: Conditioner of the noise flow; with a residual term, one that uses the inverse variance.
        residual: B, m, Lambda and tau, or None.
        passage: Velocity, dust and flux calibration, or None.
        card: Information about the bundle: name, provenance, recipe, metrics.

    Example:
        >>> import numpy as np, pyro
        >>> from bayesspec import Observation, load_model
        >>> model = load_model("kang2021")
        >>> star = Observation(model.grid.wavelength, np.ones(2048))
        >>> trace = pyro.poutine.trace(model).get_trace(model.batch([star, star]))
        >>> trace.nodes["z"]["value"].shape, trace.nodes["y"]["value"].shape
        (torch.Size([2, 3]), torch.Size([2, 1, 2048]))
    """

    class_logits: Tensor

    def __init__(
        self,
        grid: WavelengthGrid,
        classes: Sequence[str],
        encoder: Encoder,
        generator: Generator,
        prior: LatentPrior,
        noise: NoiseNetwork | RobustNoiseNetwork,
        card: dict[str, Any] | None = None,
        residual: ResidualTerm | None = None,
        passage: Passage | None = None,
    ) -> None:
        super().__init__()
        if (residual is None) != isinstance(noise, NoiseNetwork):
            raise ValueError("a residual term needs a RobustNoiseNetwork, no residual term a NoiseNetwork")
        self.grid, self.classes, self.card = grid, tuple(classes), dict(card or {})
        self.encoder, self.generator, self.prior, self.noise = encoder, generator, prior, noise
        self.residual, self.passage = residual, passage
        self.register_buffer("class_logits", torch.zeros(len(self.classes)), persistent=False)
        self.requires_grad_(False)

    def forward(self, batch: ObservationBatch) -> Tensor:
        """The Pyro model of N stars with E exposures; returns their clean spectra without e, (N, D).

        Sites: `C` (N,), `z` (N, L); with a passage `v` (N,), the velocity in km/s, and `q` (N, P - 1), E(B-V)
        in mag and other log factors; with a residual term `w` (N, R), h and w together; `log_scale` (F,) for
        the F exposures of the batch whose scale is free; `y` (N, E, D).
        """
        return self._sample(batch)[0]

    def with_flux(self, batch: ObservationBatch) -> Tensor:
        """The same program with a site `flux`, (N, D): the clean spectra, e included. It returns them.

        e is drawn from its exact distribution given y and all other sites. `Predictive(model.with_flux,
        draws)` therefore turns the draws of any sampler of the model into draws of the clean spectrum.
        """
        _, latents, scale, y = self._sample(batch)
        star = self.complete(latents, scale.log(), replace(batch, flux=y))
        return pyro.deterministic("flux", star.sample(), event_dim=1)

    def with_w_summed(self, batch: ObservationBatch, told: Tensor) -> None:
        """The program whose maximum `map` reports: w is marginalised by Laplace's method to estimate h.

        The joint mode of h and w overestimates h: for the same spectrum a larger h allows a smaller w, which
        is more probable. The factor `volume` subtracts half the log determinant of the precision of w.

        Arguments:
            batch: N stars.
            told: Information of the data about w, from `bayesspec.inference.metric.information_by_size`,
                (N, 2 T - 1, R, R).
        """
        _, latents, _, _ = self._sample(batch)
        h, _ = self.residual_term.split(self.split(latents)[1])
        with pyro.plate("volume of w", len(batch), dim=-1, device=str(batch.flux.device)):
            pyro.factor("volume", -self.residual_term.log_volume(h, told))

    def _sample(self, batch: ObservationBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale, device = self.exposure_scale(batch), str(batch.flux.device)
        with pyro.plate("star", len(batch), dim=-1, device=device):
            klass = pyro.sample(
                "C", dist.Categorical(logits=self.class_logits), infer={"enumerate": "parallel"}
            )  # eq. (6)
            latents = pyro.sample("z", self.prior(klass))  # eq. (5)
            if self.passage is not None:
                v = pyro.sample("v", self.passage.velocity_prior())
                q = pyro.sample("q", self.passage.factor_prior().to_event(1))
                x = self.passage.latents(v, q)
                latents = torch.cat([latents, x.expand(*latents.shape[:-1], -1)], dim=-1)
            if self.residual is not None:
                unit = dist.Normal(batch.flux.new_zeros(()), 1.0).expand([self.residual_dim]).to_event(1)
                w = pyro.sample("w", unit)
                latents = torch.cat([latents, w.expand(*latents.shape[:-1], -1)], dim=-1)
            s = self.spectrum(latents)  # eq. (4)
            y = pyro.sample("y", self.exposures(latents, s, scale, batch), obs=batch.flux)  # eq. (3)
        return s, latents, scale, y

    def batch(self, stars: Observation | Sequence[Observation]) -> ObservationBatch:
        """The argument of the program: one star or several on the model's grid, device and precision.

        If the model needs errors and the pipeline gives none, they are estimated; see `with_noise_level`.

        Raises:
            ObservationError: as `Observation.on_grid`.
        """
        stars = [stars] if isinstance(stars, Observation) else stars
        logits = self.class_logits
        batch = ObservationBatch.from_observations(stars, self.grid, device=logits.device, dtype=logits.dtype)
        return self.with_noise_level(batch)

    def spectrum(self, latents: Tensor) -> Tensor:
        """Observed-frame spectra (..., D), without e, of latents (..., L + P + R)."""
        z, x, w = self.parts(latents)
        rest = self._at_rest(z, w)
        return rest if self.passage is None else self.passage(rest, x)

    def rest_spectrum(self, latents: Tensor) -> Tensor:
        """The same at rest, without dust and calibration error: G(z) plus the residual term."""
        z, _, w = self.parts(latents)
        return self._at_rest(z, w)

    def _at_rest(self, z: Tensor, w: Tensor) -> Tensor:
        generated = self.generator(z)
        return generated if self.residual is None else generated + self.residual(z, w)

    def jacobian(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The spectrum, (..., D), and its derivatives, (..., D, L + P + R), at latents (..., L + P + R)."""
        z, x, w = self.parts(latents)
        spectrum, by_z = self.generator.jacobian(z)
        by_rest = by_z
        if self.residual is not None:
            spectrum = spectrum + self.residual(z, w)
            by_rest = torch.cat([by_z + self.residual.jacobian_z(z, w), self.residual.jacobian(z, w)], -1)
        if self.passage is None:
            return spectrum, by_rest
        spectrum, by_x, by_rest = self.passage.jacobian(spectrum, by_rest, x)
        by_z, by_w = by_rest.split([self.latent_dim, self.residual_dim], dim=-1)
        return spectrum, torch.cat([by_z, by_x, by_w], dim=-1)

    def parts(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (..., L + P + R) as z (..., L), x (..., P) and w (..., R)."""
        z, x, w = latents.tensor_split((self.latent_dim, self.lead_dim), dim=-1)
        return z, x, w

    def sites(self, latents: Tensor, log_scale: Tensor, batch: ObservationBatch) -> dict[str, Tensor]:
        """Values of the program's sites except the class, by name; see `forward`.

        Arguments:
            latents: (N, L + P + R).
            log_scale: (N, E).
            batch: N stars.
        """
        z, x, w = self.parts(latents)
        values = {"z": z}
        if batch.free_index.shape[1]:
            values["log_scale"] = log_scale[tuple(batch.free_index)]
        if self.passage is not None:
            physical = self.passage.physical(x)
            values |= {"v": physical[..., 0], "q": physical[..., 1:]}
        if self.residual is not None:
            values["w"] = w
        return values

    def of_sites(self, values: Mapping[str, Tensor]) -> Tensor:
        """Latents, (..., L + P + R), from values of the program's sites: the inverse of `sites`."""
        parts = [values["z"]]
        if self.passage is not None:
            parts.append(self.passage.latents(values["v"], values["q"]))
        if self.residual is not None:
            parts.append(values["w"])
        return torch.cat(parts, dim=-1)

    def split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (..., L + P + R) as z and x together (..., L + P) and w (..., R)."""
        return latents[..., : self.lead_dim], latents[..., self.lead_dim :]

    def likelihood(
        self, latents: Tensor, spectrum: Tensor, scale: Tensor, batch: ObservationBatch
    ) -> NoiseFlow | RobustNoiseFlow:
        """The distribution of each exposure by itself, batch shape (..., N, E), marginalised over e.

        Arguments:
            latents: (..., N, L + P + R); they set the scale of e and the noise level.
            spectrum: `spectrum(latents)`, (..., N, D).
            scale: Scale of every exposure, (..., N, E).
            batch: N stars; with a residual term its ivar has to be known, see `with_noise_level`.
        """
        observed, spectrum = ~batch.mask, spectrum[..., None, :]
        if isinstance(self.noise, NoiseNetwork):
            return NoiseFlow(spectrum, self.noise, scale, observed)
        z, _, _ = self.parts(latents)
        level = self.noise_level(latents, batch).exp()[..., None, None]
        noise_std = level * torch.where(observed, batch.ivar, 1.0).rsqrt()
        return RobustNoiseFlow(
            spectrum,
            self.noise,
            noise_std,
            scale,
            self.discrepancy(latents)[..., None, :],
            observed,
            self.residual_term.shares(z)[..., None, :, :],
            WIDTHS,
        )

    def noise_level(self, latents: Tensor, batch: ObservationBatch) -> Tensor:
        """Log ratio of the true to the stated noise, (..., N), at latents (..., N, L + P + R)."""
        spread = torch.where(batch.noise_known, STATED, UNSTATED).to(latents)
        return spread * self.residual_term.split(self.split(latents)[1])[0][..., 0]

    def exposures(
        self, latents: Tensor, spectrum: Tensor, scale: Tensor, batch: ObservationBatch
    ) -> dist.TorchDistribution:
        """The distribution of y, batch shape (..., N), event shape (E, D). All exposures share one e.

        The arguments are those of `likelihood`.
        """
        flow = self.likelihood(latents, spectrum, scale, batch)
        return flow.to_event(1) if isinstance(flow, NoiseFlow) else SharedDiscrepancy(flow)

    def complete(self, latents: Tensor, log_scale: Tensor, batch: ObservationBatch) -> CleanSpectrum:
        """The clean spectra given y and all latents, e included: a distribution in closed form.

        Arguments:
            latents: (..., N, L + P + R).
            log_scale: (..., N, E).
            batch: N stars.
        """
        s = self.spectrum(latents)
        if self.residual is None:
            return CleanSpectrum(s, None)
        noise = self.exposures(latents, s, log_scale.exp(), batch)
        return CleanSpectrum(s, noise.discrepancy_given(batch.flux))

    def discrepancy(self, latents: Tensor) -> Tensor:
        """Standard deviation of e in each pixel, (..., D), at latents (..., L + P + R)."""
        z, x, w = self.parts(latents)
        found = self.residual_term.discrepancy(z, w)
        return found if self.passage is None else found * self.passage.throughput(x)

    def exposure_scale(self, batch: ObservationBatch) -> Tensor:
        """The scale of every exposure, (N, E): sampled where it is free, 1 where it is known."""
        scale = torch.ones_like(batch.unit_flux)
        free = batch.free_index.shape[1]
        if not free:
            return scale
        with pyro.plate("free", free, dim=-1, device=str(scale.device)):
            log_scale = pyro.sample("log_scale", dist.Normal(scale.new_zeros(()), SCALE_WIDTH))
        return scale.index_put(tuple(batch.free_index), log_scale.exp())

    def log_likelihood(self, batch: ObservationBatch, latents: Tensor, log_scale: Tensor) -> Tensor:
        """log p(y | z, x, w) of N stars, (..., N), at latents (..., N, L + P + R), log scales (..., N, E)."""
        noise = self.exposures(latents, self.spectrum(latents), log_scale.exp(), batch)
        return noise.log_prob(batch.flux)

    def log_prob_terms(self, batch: ObservationBatch, latents: Tensor, log_scale: Tensor) -> Tensor:
        """Log density of every pixel given the pixels and exposures before it, (..., N, E, D)."""
        arguments = latents, self.spectrum(latents), log_scale.exp(), batch
        noise = self.likelihood(*arguments) if self.residual is None else self.exposures(*arguments)
        return noise.log_prob_terms(batch.flux)

    def log_joint_classes(self, latents: Tensor) -> Tensor:
        """log p(C) + log p(z | C) + log p(x) + log p(w) of latents (N, L + P + R) for every class, (N, K)."""
        z, x, w = self.parts(latents)
        by_class = self.class_logits.log_softmax(-1) + self.prior.log_prob_all(z)
        if self.passage is not None:
            by_class = by_class + self.passage.log_prob(x)[..., None]
        if self.residual is None:
            return by_class
        unit = torch.distributions.Normal(w.new_zeros(()), 1.0, validate_args=False)
        return by_class + unit.log_prob(w).sum(-1, keepdim=True)

    def with_noise_level(self, batch: ObservationBatch) -> ObservationBatch:
        """The batch; if the model needs an inverse variance and the pipeline gave none, it is estimated."""
        if isinstance(self.noise, NoiseNetwork):
            return batch
        return fill_ivar(batch, self.noise.reference)

    def with_class_weights(self, weights: Mapping[str, float] | Sequence[float]) -> StellarModel:
        """A model with the same networks and other prior probabilities of the classes, eq. (6).

        Arguments:
            weights: Relative weights, one for each class, or by name; a class that is not named has weight 1.

        Raises:
            BayesspecError: if a name is not a class, or weights are negative, not finite, or all zero.
        """
        if isinstance(weights, Mapping):
            unknown = set(weights) - set(self.classes)
            if unknown:
                raise BayesspecError(f"class_weights: {self.name} has no class {', '.join(sorted(unknown))}")
            weights = [weights.get(name, 1.0) for name in self.classes]
        try:
            values = torch.as_tensor(list(weights), dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BayesspecError(f"class_weights: numbers are needed, not {weights!r}") from error
        if values.shape != (len(self.classes),):
            raise BayesspecError(f"class_weights: {len(self.classes)} weights needed, {len(values)} given")
        if not (values.isfinite().all() and (values >= 0).all() and values.sum() > 0):
            raise BayesspecError(f"class_weights must be positive or zero, not {values.tolist()}")
        model = copy.copy(self)
        model.class_logits = values.log().to(self.class_logits)
        return model

    def __copy__(self) -> StellarModel:
        """A model that shares networks and prior; replacing one in the copy does not change this model."""
        model = type(self).__new__(type(self))
        model.__dict__ = {k: copy.copy(v) if isinstance(v, dict | set) else v for k, v in vars(self).items()}
        return model

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return str(self.card.get("name", "unnamed"))

    @property
    def version(self) -> str:
        """The first digits of the hash of weights, grid, classes and architecture."""
        return str(self.card.get("settings_sha256", ""))[:12]

    @property
    def residual_term(self) -> ResidualTerm:
        """The residual term.

        Raises:
            BayesspecError: if the model has none.
        """
        if self.residual is None:
            raise BayesspecError(f"{self.name} has no residual term")
        return self.residual

    @property
    def latent_dim(self) -> int:
        """L, the number of latents z."""
        return self.generator.latent_dim

    @property
    def lead_dim(self) -> int:
        """L + P, the number of latents z and x; P = 0 without a passage."""
        return self.latent_dim + (0 if self.passage is None else self.passage.dim)

    @property
    def residual_dim(self) -> int:
        """R, the number of latents h and w; 0 without a residual term."""
        return 0 if self.residual is None else self.residual.dim
