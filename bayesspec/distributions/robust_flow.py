"""The likelihood of the default model: correlated, heavy-tailed noise in units of the pipeline's errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from . import spectrum_noise
from .pixel_mixture import DiscrepancyGiven, PixelMixture
from .spectrum_noise import HIT_WIDTH, SpectrumNoise, normal_quantile


class _Conditioner(Protocol):
    """The network of the flow: a :class:`bayesspec.nn.robust_noise.RobustNoiseNetwork`."""

    kernel: int
    reference: Tensor

    def __call__(self, t: Tensor, context: Tensor) -> tuple[Tensor, Tensor]: ...
    def step(self, window: Tensor, context: Tensor) -> tuple[Tensor, Tensor]: ...
    def context(self, noise_std: Tensor, observed: Tensor) -> Tensor: ...
    def mixture(self) -> tuple[Tensor, Tensor]: ...


class RobustNoiseFlow(SpectrumNoise):
    r"""Distribution of an observed spectrum y given the clean spectrum s, :math:`y = a (s + e + n)`.

    The pipeline gives the standard deviation :math:`\sigma_d` of the noise n, in the unit of s. The
    *discrepancy* e is the misfit that no s of the model can express. It is marginalised here; in each pixel
    it has one of a few widths, :math:`e_d \sim \sum_k \lambda_{kd}\, \mathcal{N}(0, \omega_k^2 \tau_d^2)`.
    With :math:`r = y / a - s`, :math:`c_d^2 = \sigma_d^2 + \tau_d^2` and :math:`t_d = r_d / c_d` (zero where
    not observed), the distribution is a local autoregressive flow

    .. math::
        r_d \mid r_{<d} \sim \sum_{k, m} \lambda_{kd} \pi_m \,
        \mathcal{N}(\mu_d \sigma_d^2 / c_d,\; \omega_k^2 \tau_d^2 + \kappa_m^2 e^{2 \alpha_d} \sigma_d^2)

    with :math:`\mu_d, \alpha_d` from :math:`t_{d-K}, \dots, t_{d-1}`, from which of these are observed and
    from the context of the pixel (`RobustNoiseNetwork`). The finite mixture has heavy tails, and its
    convolution with the mixture of e is exact. One pixel in 1e5 is different: its residual is Cauchy, of
    width :math:`\sqrt{\tau_d^2 + 30^2 e^{2 \alpha_d} \sigma_d^2}`, so the influence of a cosmic ray falls
    with its height, and it has no information about e. The discrepancy is independent from pixel to pixel,
    so the predicted centre is reduced by the factor :math:`\sigma_d^2 / c_d^2`, the noise's part of the
    variance.

    Every observed pixel has a term: a predecessor that is not observed is zero and flagged as such. The
    values of y, `noise_std` and `discrepancy` at unobserved pixels, NaN included, affect neither the density
    nor its gradients.

    Nothing is computed twice: a batch dimension along which neither the arguments nor the value vary costs
    nothing.

    Arguments:
        loc: The clean spectrum s, shape (..., D).
        network: The conditioner, a :class:`bayesspec.nn.robust_noise.RobustNoiseNetwork` of D pixels.
        noise_std: Standard deviation of the pipeline's noise, a sigma, in the unit of y: positive and finite
            where observed, shape (..., D).
        scale: The positive scale a, broadcastable to the batch shape (...).
        discrepancy: :math:`\tau` in the unit of s, not negative, shape (..., D); None for zero.
        observed: True where a pixel is observed, bool, shape (..., D); None for all.
        shares: :math:`\lambda`, the probability of each width of e, positive, with sum 1, shape (..., K, D);
            None for one width.
        kinds: :math:`\omega`, the K widths of e in units of tau.

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

    network: _Conditioner
    noise_std: Tensor
    discrepancy: Tensor | None

    arg_constraints = SpectrumNoise.arg_constraints | {
        "noise_std": constraints.dependent(is_discrete=False, event_dim=1),  # anything where not observed
        "discrepancy": constraints.dependent(is_discrete=False, event_dim=1),  # likewise, or None
        "shares": constraints.dependent(is_discrete=False, event_dim=2),  # or None
    }

    def __init__(
        self,
        loc: Tensor,
        network: _Conditioner,
        noise_std: Tensor,
        scale: Tensor | float = 1.0,
        discrepancy: Tensor | None = None,
        observed: Tensor | None = None,
        shares: Tensor | None = None,
        kinds: Sequence[float] = (1.0,),
        validate_args: bool | None = None,
    ):
        if loc.shape[-1:] != network.reference.shape:
            raise ValueError(
                f"loc {tuple(loc.shape)} must have the network's {len(network.reference)} pixels"
            )
        rows = 1 if shares is None else shares.shape[-2]
        if rows != len(kinds) or (shares is not None and discrepancy is None):
            raise ValueError(f"shares have {rows} rows: one is needed for each of {len(kinds)} widths of e")
        others = {"noise_std": noise_std, "discrepancy": discrepancy}
        super().__init__(
            loc,
            network,
            scale,
            observed,
            validate_args,
            **others,
            shares=None if shares is None else shares[..., 0, :],  # for its shape
            kinds=None,
        )
        self.shares, self.kinds = shares, tuple(kinds)

    def widths(self) -> tuple[Tensor, Tensor | None, Tensor]:
        r"""Standard deviations :math:`\sigma, \tau, c`, in the unit of s, each (..., D); tau may be None.

        Where not observed, sigma is 1 / a and tau is 0.
        """
        sigma, tau = self._known_noise() / self.scale[..., None], self.discrepancy
        if tau is None:
            return sigma, None, sigma
        tau = tau if self._observed is None else torch.where(self._observed, tau, 0.0)
        return sigma, tau, (sigma.square() + tau.square()).sqrt()

    def context(self) -> Tensor:
        """The network's context of every pixel, known before the fluxes, shape (I, ..., D)."""
        return self.network.context(self._known_noise(), self.seen)

    def conditional(self, value: Tensor) -> tuple[Tensor, Tensor]:
        r"""Centre :math:`\mu_d \sigma_d^2 / c_d`, in the unit of s, and :math:`\alpha_d`, each (..., D)."""
        return self._conditional(self.residual(value))

    def whiten(self, value: Tensor) -> Tensor:
        r"""Standard normal deviates :math:`\xi` of the pixels, each given those before it, shape (..., D).

        The normal quantile of each pixel's conditional distribution function; under the model the deviates
        are independent. Zero where not observed.
        """
        given = self.given(value)
        quantile = normal_quantile(given.log_tail())
        return self._where_observed(-torch.sign(given.beyond) * quantile)

    def precision(self, value: Tensor) -> Tensor:
        r"""Inverse variance of the Gaussian with the same gradient at the residual, unit 1 / s^2, (..., D).

        :math:`\sum_m \rho_m / v_m` with the variances :math:`v_m` of the mixture and the responsibilities
        :math:`\rho_m` given the residual: the weights of iteratively reweighted least squares. For the Cauchy
        part, of width :math:`\gamma`, 1 / v is :math:`2 / (\gamma^2 + r^2)`. Zero where not observed.
        """
        return self._where_observed(self.given(value).precision())

    def curvature(self, value: Tensor) -> Tensor:
        r"""Minus the second derivative of each term with respect to its residual, unit 1 / s^2, (..., D).

        At most the `precision`, and negative in the tails, where the log density is not concave. Zero where
        not observed.
        """
        return self._where_observed(self.given(value).curvature())

    def discrepancy_given(self, value: Tensor) -> DiscrepancyGiven:
        """The posterior of e, pixel by pixel, given spectra (..., D); its prior where nothing was observed.

        Raises:
            ValueError: If the flow has no discrepancy.
        """
        return DiscrepancyGiven.of_one(self.given(value), self.prior_variances(), self._observed)

    def given(self, value: Tensor) -> PixelMixture:
        """The mixture of every pixel, given the pixels before it."""
        return self._given(self.residual(value))

    @property
    def tau(self) -> Tensor:
        """The usual scale of the discrepancy, (..., D).

        Raises:
            ValueError: If the flow has none.
        """
        if self.discrepancy is None:
            raise ValueError("the flow has no discrepancy")
        return self.discrepancy

    def prior_variances(self) -> list[Tensor]:
        """Prior variance of e for each of its widths, in the unit of s, each (..., D).

        Raises:
            ValueError: If the flow has no discrepancy.
        """
        return [(width * self.tau).square() for width in self.kinds]

    def prior_shares(self) -> tuple[Tensor | float, ...]:
        """Probability of each of the widths of e, each (..., D)."""
        return (1.0,) if self.shares is None else self.shares.unbind(-2)

    @torch.no_grad()
    def sample(self, sample_shape: list[int] | tuple[int, ...] = Size()) -> Tensor:
        """Draw spectra, shape sample_shape + (..., D); unobserved pixels are a s, without noise."""
        shape = self._extended_shape(sample_shape)
        return self.sample_given(self.sample_discrepancy(shape), shape)

    @torch.no_grad()
    def sample_discrepancy(self, shape: Size) -> Tensor:
        """Draws of e from its prior, of a shape that the flow's broadcasts to; 0 for a flow without e."""
        drawn = torch.zeros(shape, dtype=self.loc.dtype, device=self.loc.device)
        if self.discrepancy is None:
            return drawn
        level, normal = torch.rand_like(drawn), torch.randn_like(drawn)
        below: Tensor | float = 0.0
        for share, variance in zip(self.prior_shares(), self.prior_variances(), strict=True):
            drawn = torch.where(level >= below, variance.sqrt() * normal, drawn)
            below = below + share
        return drawn

    @torch.no_grad()
    def sample_given(self, e: Tensor, shape: Size) -> Tensor:
        """Draw spectra of this shape, given the discrepancy e, which is broadcast to it."""
        k, pixels = self.network.kernel, shape[-1]
        sigma, tau, total = self.widths()
        context = self.context()

        def pixels_first(x: Tensor) -> Tensor:
            return x.expand(shape).reshape(-1, pixels).t().contiguous()

        # First draw the component of the base and the deviate; then each step reads K rows and writes one.
        log_weights, scales = self._base()
        component = torch.multinomial(log_weights.exp(), shape.numel(), replacement=True)
        width = scales[component].reshape(pixels, -1)
        drawn = torch.randn(width.shape, dtype=self.loc.dtype, device=self.loc.device)
        hit = (component == len(scales) - 1).reshape(width.shape)
        drawn = torch.where(hit, drawn / torch.randn_like(drawn), drawn)  # a ratio of normals is Cauchy
        observed = pixels_first(self.seen)
        sigma, total = pixels_first(sigma), pixels_first(total)
        # A hit replaces e; the usual width of e is added to the width of the hit.
        beneath = torch.where(hit, 0.0, pixels_first(e))
        wider = torch.where(hit, 0.0 if tau is None else pixels_first(tau.square()), 0.0)

        context = context.reshape(len(context), *[1] * (len(shape) - context.dim() + 1), *context.shape[1:])
        context = context.movedim(-1, 0).contiguous()
        t = drawn.new_zeros((k + pixels, width.shape[1]))
        for d in range(pixels):
            known = context[d].expand(-1, *shape[:-1]).reshape(context.shape[1], -1)
            mean, alpha = self.network.step(t[d : d + k].t(), known)
            spread = (wider[d] + (width[d] * alpha.exp() * sigma[d]).square()).sqrt()
            residual = mean * sigma[d].square() / total[d] + beneath[d] + spread * drawn[d]
            t[k + d] = torch.where(observed[d], residual / total[d], 0.0)

        residual = (t[k:] * total).t().reshape(shape)
        return self.scale[..., None] * (self.loc + residual)

    def _residual_terms(self, residual: Tensor) -> Tensor:
        return self._given(residual).log_density()

    def _conditional(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        sigma, tau, total = self.widths()
        mean, alpha = self.network(residual / total, self.context())
        return mean * (sigma if tau is None else sigma.square() / total), alpha

    def _given(self, residual: Tensor) -> PixelMixture:
        centre, alpha = self._conditional(residual)
        sigma, tau, _ = self.widths()
        beyond, square = self._where_observed(residual - centre), (alpha.exp() * sigma).square()
        if tau is None:
            return PixelMixture(beyond, square, *self.network.mixture(), (1.0,), (0.0,), 0.0)
        tau_square = tau.square()
        variances = tuple(width**2 * tau_square for width in self.kinds)
        return PixelMixture(
            beyond, square, *self.network.mixture(), self.prior_shares(), variances, tau_square
        )

    def _base(self) -> tuple[Tensor, Tensor]:
        """Log weights and widths of the network's Gaussians, and last those of the Cauchy part."""
        log_weights, scales = self.network.mixture()
        usual, hit = (
            log_weights + spectrum_noise.LOG_USUAL,
            log_weights.new_full((1,), spectrum_noise.LOG_HIT),
        )
        return torch.cat([usual, hit]), torch.cat([scales, scales.new_full((1,), HIT_WIDTH)])

    def _known_noise(self) -> Tensor:
        if self._observed is None:
            return self.noise_std
        return torch.where(self._observed, self.noise_std, 1.0)

    def _where_observed(self, value: Tensor) -> Tensor:
        return value if self._observed is None else torch.where(self._observed, value, 0.0)
