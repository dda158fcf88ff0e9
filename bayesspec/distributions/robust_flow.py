"""The likelihood of the default model: correlated noise in units of the pipeline's, with a heavy tail."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints

from .spectrum_noise import (
    HIT_WIDTH,
    LOG_HIT,
    LOG_USUAL,
    SpectrumNoise,
    log_cauchy,
    log_cauchy_tail,
    normal_quantile,
)


class RobustNoiseFlow(SpectrumNoise):
    r"""Distribution of an observed spectrum y given the clean spectrum s, :math:`y = a (s + e + n)`.

    The pipeline gives the standard deviation :math:`\sigma_d` of the noise n, in the unit of s. The
    *discrepancy* :math:`e_d \sim \mathcal{N}(0, \tau_d^2)`, what no s of the model can express, is
    marginalised here. With :math:`r = y / a - s`, :math:`c_d^2 = \sigma_d^2 + \tau_d^2` and
    :math:`t_d = r_d / c_d` (zero where not observed), a local autoregressive flow

    .. math::
        r_d \mid r_{<d} \sim \sum_m \pi_m \,
        \mathcal{N}(\mu_d \sigma_d^2 / c_d,\; \tau_d^2 + \kappa_m^2 e^{2 \alpha_d} \sigma_d^2)

    with :math:`\mu_d, \alpha_d` from :math:`t_{d-K}, \dots, t_{d-1}`, from which of these are observed and
    from what is known of the pixel beforehand. The finite mixture has a heavy tail, and its convolution with
    the Gaussian e is exact. One pixel in 1e5 is none of these: its residual is Cauchy, of the width
    :math:`\sqrt{\tau_d^2 + 30^2 e^{2 \alpha_d} \sigma_d^2}`, so that the higher a cosmic ray the less it
    pulls. The discrepancy is independent from pixel to pixel: only the part :math:`\sigma_d^2 / c_d^2` of
    what is seen tells of the next pixel's noise.

    Every observed pixel has a term: a predecessor that is not observed is zero and flagged as such. What
    stands at an unobserved pixel of y, `noise_std` or `discrepancy`, NaN included, changes neither the
    density nor any gradient.

    Densities are computed once for what differs: a batch dimension along which neither the arguments nor the
    value vary costs nothing.

    Arguments:
        loc: The clean spectrum s, shape (..., D).
        network: The conditioner, a :class:`bayesspec.nn.robust_noise.RobustNoiseNetwork` of D pixels.
        noise_std: Standard deviation of the pipeline's noise, a sigma, in the unit of y: positive and finite
            where observed, shape (..., D).
        scale: The positive scale a, broadcastable to the batch shape (...).
        discrepancy: :math:`\tau` in the unit of s, not negative, shape (..., D); None for zero.
        observed: True where a pixel is observed, bool, shape (..., D); None for all.

    Raises:
        ValueError: If shapes do not fit, `observed` is not bool, or, under validation, `loc` is NaN, `scale`
            is not positive, or a value is NaN or infinite at an observed pixel.

    Example:
        >>> from bayesspec.nn import RobustNoiseNetwork
        >>> clean, y = torch.ones(2048), torch.ones(3, 2048)
        >>> y[0, 100] = torch.nan
        >>> flow = RobustNoiseFlow(clean, RobustNoiseNetwork(), torch.full((2048,), 0.1), observed=~y.isnan())
        >>> flow.log_prob(y).isfinite()
        tensor([True, True, True])
        >>> 2048 - flow.used.sum(-1)
        tensor([1, 0, 0])
    """

    arg_constraints = SpectrumNoise.arg_constraints | {
        "noise_std": constraints.dependent(is_discrete=False, event_dim=1),  # anything where not observed
        "discrepancy": constraints.dependent(is_discrete=False, event_dim=1),  # likewise, or None
    }

    def __init__(
        self,
        loc: Tensor,
        network: nn.Module,
        noise_std: Tensor,
        scale: Tensor | float = 1.0,
        discrepancy: Tensor | None = None,
        observed: Tensor | None = None,
        validate_args: bool | None = None,
    ):
        if loc.shape[-1:] != network.reference.shape:
            raise ValueError(
                f"loc {tuple(loc.shape)} must have the network's {len(network.reference)} pixels"
            )
        super().__init__(
            loc, network, scale, observed, validate_args, noise_std=noise_std, discrepancy=discrepancy
        )

    def widths(self) -> tuple[Tensor, Tensor | None, Tensor]:
        r"""Standard deviations :math:`\sigma, \tau, c`, in the unit of s, each (..., D); tau may be None.

        Where not observed sigma is 1 / a and tau is 0.
        """
        sigma, tau = self._known_noise() / self.scale[..., None], self.discrepancy
        if tau is None:
            return sigma, None, sigma
        tau = tau if self._observed is None else torch.where(self._observed, tau, 0.0)
        return sigma, tau, (sigma.square() + tau.square()).sqrt()

    def context(self) -> Tensor:
        """What the network knows of every pixel beforehand, shape (I, ..., D)."""
        return self.network.context(self._known_noise(), self._all_or_observed())

    def conditional(self, value: Tensor) -> tuple[Tensor, Tensor]:
        r"""Centre :math:`\mu_d \sigma_d^2 / c_d`, in the unit of s, and :math:`\alpha_d`, each (..., D)."""
        given = self._given(self.residual(value))
        return given.centre, given.alpha

    def whiten(self, value: Tensor) -> Tensor:
        r"""Standard normal deviates :math:`\xi` of the pixels, each given those before it, shape (..., D).

        The conditional distribution function of a pixel through the normal quantile: under the model they are
        independent. Zero where not observed.
        """
        residual = self.residual(value)
        given = self._given(residual)
        beyond = residual - given.centre
        tails = [torch.special.log_ndtr(-beyond.abs() / v.sqrt()) for v in given.variances[:-1]]
        tails.append(log_cauchy_tail(beyond.abs() / given.variances[-1].sqrt()))
        weighted = [w + tail for w, tail in zip(given.log_weights, tails, strict=True)]
        quantile = normal_quantile(functools.reduce(torch.logaddexp, weighted))
        return self._where_observed(-torch.sign(beyond) * quantile)

    def precision(self, value: Tensor) -> Tensor:
        r"""Inverse variance of the Gaussian that pulls as hard on the residual, unit 1 / s^2, (..., D).

        :math:`\sum_m \rho_m / v_m` with the variances :math:`v_m` of the mixture and the responsibilities
        :math:`\rho_m` given the residual: the weights of iteratively reweighted least squares. Of the Cauchy
        part, of width :math:`\gamma`, 1 / v is :math:`2 / (\gamma^2 + r^2)`. Zero where not observed.
        """
        residual = self.residual(value)
        given = self._given(residual)
        pulls = given.precisions(residual, given.variances)
        return self._where_observed((given.responsibilities(residual) * pulls).sum(0))

    def curvature(self, value: Tensor) -> Tensor:
        r"""Minus the second derivative of each term by its own residual, in units of 1 / s^2, shape (..., D).

        Below the `precision`, and negative in the tails, where the density is not concave. Zero where not
        observed.
        """
        residual = self.residual(value)
        given = self._given(residual)
        weights, pulls = given.responsibilities(residual), given.precisions(residual, given.variances)
        slopes = (residual - given.centre) * pulls
        spread = (weights * slopes.square()).sum(0) - (weights * slopes).sum(0).square()
        # The slope of a Cauchy term falls in its tail, by r^2 / gamma^2 times its precision.
        pulls[-1] *= 1 - slopes[-1] * (residual - given.centre)
        return self._where_observed((weights * pulls).sum(0) - spread)

    def noise_precision(self, value: Tensor) -> Tensor:
        r"""The `precision` of the noise alone, without the discrepancy's variance, shape (..., D).

        :math:`\sum_m \rho_m / (\kappa_m^2 e^{2 \alpha} \sigma^2)`.
        """
        return self.noise_given(value).precision[0]

    def noise_given(
        self, value: Tensor, widths: Sequence[float] = (1.0,), beneath: Tensor | None = None
    ) -> NoiseGiven:
        r"""What the discrepancy's posterior needs, were it wider or narrower than the flow has it.

        The widths of the noise are the flow's own, and so are its centres, unless the discrepancy is known:
        then they are those given the noise of the pixels before, which is what it leaves of them.

        Arguments:
            value: Spectra, (..., D).
            widths: How many times as wide, K of them.
            beneath: The discrepancy of the pixels before, in the unit of s, broadcastable to (..., D).
        """
        residual = self.residual(value)
        given, tau = self._given(residual, beneath), self.widths()[1]
        noise, densities, precisions = given.precisions(residual, given.noise_variances), [], []
        for width in widths:
            if tau is not None:
                wider = (width * tau).square()
                given = given._replace(variances=[n + wider for n in given.noise_variances])
            terms = torch.stack(given.log_densities(residual))
            densities.append(self._where_observed(terms.logsumexp(0)))
            precisions.append(self._where_observed((terms.softmax(0) * noise).sum(0)))
        beyond = self._where_observed(residual - given.centre)
        return NoiseGiven(beyond, torch.stack(densities), torch.stack(precisions))

    @torch.no_grad()
    def sample(self, sample_shape: Size = Size()) -> Tensor:
        """Draw spectra, shape sample_shape + (..., D); where not observed they are a s, without noise."""
        shape = self._extended_shape(sample_shape)
        k, pixels = self.network.kernel, shape[-1]
        sigma, tau, total = self.widths()
        context = self.context()

        def pixels_first(x: Tensor) -> Tensor:
            return x.expand(shape).reshape(-1, pixels).t().contiguous()

        # Which part of the base, and where in it; then a step reads K rows and writes one.
        log_weights, scales = self._base()
        component = torch.multinomial(log_weights.exp(), shape.numel(), replacement=True)
        width = scales[component].reshape(pixels, -1)
        drawn = torch.randn(width.shape, dtype=self.loc.dtype, device=self.loc.device)
        hit = (component == len(scales) - 1).reshape(width.shape)
        drawn = torch.where(hit, drawn / torch.randn_like(drawn), drawn)  # a ratio of normals is Cauchy
        observed = pixels_first(self._all_or_observed())
        sigma, total = pixels_first(sigma), pixels_first(total)
        tau_square = 0.0 if tau is None else pixels_first(tau.square())

        context = context.reshape(len(context), *[1] * (len(shape) - context.dim() + 1), *context.shape[1:])
        context = context.movedim(-1, 0).contiguous()
        t = drawn.new_zeros((k + pixels, width.shape[1]))
        for d in range(pixels):
            known = context[d].expand(-1, *shape[:-1]).reshape(context.shape[1], -1)
            mean, alpha = self.network.step(t[d : d + k].t(), known)
            tau_d = tau_square[d] if isinstance(tau_square, Tensor) else tau_square
            spread = (tau_d + (width[d] * alpha.exp() * sigma[d]).square()).sqrt()
            residual = mean * sigma[d].square() / total[d] + spread * drawn[d]
            t[k + d] = torch.where(observed[d], residual / total[d], 0.0)

        residual = (t[k:] * total).t().reshape(shape)
        return self.scale[..., None] * (self.loc + residual)

    def _residual_terms(self, residual: Tensor) -> Tensor:
        # One component after the other: all at once, in one tensor, is ten times slower.
        return functools.reduce(torch.logaddexp, self._given(residual).log_densities(residual))

    def _given(self, residual: Tensor, beneath: Tensor | None = None) -> _Conditionals:
        sigma, tau, total = self.widths()
        if beneath is None:
            mean, alpha = self.network(residual / total, self.context())
            centre = mean * (sigma if tau is None else sigma.square() / total)
        else:
            mean, alpha = self.network(self._where_observed(residual - beneath) / sigma, self.context())
            centre = mean * sigma

        log_weights, scales = self._base()
        square = (alpha.exp() * sigma).square()
        noise = [scale * square for scale in scales.square()]
        variances = noise if tau is None else [n + tau.square() for n in noise]
        return _Conditionals(centre, alpha, log_weights, noise, variances)

    def _base(self) -> tuple[Tensor, Tensor]:
        """Log weights and widths of the network's Gaussians and, last, of the Cauchy part."""
        log_weights, scales = self.network.mixture()
        return (
            torch.cat([log_weights + LOG_USUAL, log_weights.new_full((1,), LOG_HIT)]),
            torch.cat([scales, scales.new_full((1,), HIT_WIDTH)]),
        )

    def _known_noise(self) -> Tensor:
        if self._observed is None:
            return self.noise_std
        return torch.where(self._observed, self.noise_std, 1.0)

    def _all_or_observed(self) -> Tensor:
        if self._observed is not None:
            return self._observed
        return torch.ones(self.event_shape, dtype=torch.bool, device=self.loc.device)

    def _where_observed(self, value: Tensor) -> Tensor:
        return value if self._observed is None else torch.where(self._observed, value, 0.0)


class NoiseGiven(NamedTuple):
    """What is seen beyond s and the expected noise, and what the noise makes of it for each of K widths of e.

    Each is 0 where not observed.
    """

    beyond: Tensor
    """In the unit of s, (..., D)."""
    log_density: Tensor
    """Of every pixel's residual, (K, ..., D)."""
    precision: Tensor
    r"""Of the noise alone, :math:`\sum_m \rho_m / (\kappa_m^2 e^{2 \alpha} \sigma^2)`, (K, ..., D)."""


class _Conditionals(NamedTuple):
    """Every pixel's mixture given the pixels before it: tensors (..., D), or one for each part of it.

    All parts but the last are Gaussian; that one is Cauchy, and its `variance` the square of its width.
    """

    centre: Tensor
    alpha: Tensor
    log_weights: Tensor
    noise_variances: list[Tensor]
    variances: list[Tensor]

    def log_densities(self, residual: Tensor) -> list[Tensor]:
        """Log of weight times density of every part."""
        square = (residual - self.centre).square()
        terms = [-0.5 * (square / v + math.log(2 * math.pi)) for v in self.variances[:-1]]
        terms.append(log_cauchy(square / self.variances[-1]))
        return [
            t - 0.5 * v.log() + w for t, v, w in zip(terms, self.variances, self.log_weights, strict=True)
        ]

    def responsibilities(self, residual: Tensor) -> Tensor:
        """Probability of every part given the residual, shape (M + 1, ..., D)."""
        return torch.stack(self.log_densities(residual)).softmax(0)

    def precisions(self, residual: Tensor, variances: list[Tensor]) -> Tensor:
        """Inverse variance of the Gaussian that pulls as hard as each part, shape (M + 1, ..., D)."""
        square = (residual - self.centre).square()
        return torch.stack([*(1 / v for v in variances[:-1]), 2 / (variances[-1] + square)])
