"""The likelihood: an observed spectrum is the clean spectrum plus noise that is correlated between pixels."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Size, Tensor

from .spectrum_noise import (
    HIT_SHARE,
    HIT_WIDTH,
    LOG_HIT,
    LOG_USUAL,
    SpectrumNoise,
    log_cauchy,
    log_cauchy_tail,
    normal_quantile,
)


class Conditioner(Protocol):
    """The network of a flow: means and log-widths of the noise, given the K pixels before."""

    kernel: int
    """K."""

    def __call__(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-widths of all pixels, (..., D), given the noise (..., D)."""

    def step(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-width of one pixel, (...), given those before it, (..., K)."""


class NoiseFlow(SpectrumNoise):
    r"""Distribution of an observed spectrum y given the clean spectrum s, :math:`y = a (s + \epsilon)`.

    The noise is a local autoregressive flow, :math:`\epsilon_d \sim \mathcal{N}(\mu_d, \exp(\alpha_d)^2)`,
    with :math:`\mu_d, \alpha_d` from the K pixels before d. (The paper writes
    :math:`\sigma_d = \exp(-\alpha_d)`; its own density needs :math:`\exp(\alpha_d)`.) The scale a of an
    exposure is 1 where the flux scale is known, as in the paper.

    With Gaussian noise the influence of a cosmic ray grows with its height. So one pixel in 1e5 is not
    Gaussian: its :math:`\xi_d = (\epsilon_d - \mu_d) \exp(-\alpha_d)` is Cauchy of width 30, and its
    influence falls with its height. (The paper has the Gaussian alone. Below 5.5 standard deviations the two
    hardly differ.)

    The term of a pixel counts only if the pixel and its K predecessors are observed, equation (16); one of
    the first K pixels, which have no predecessors in the flow, counts if it is observed. One bad pixel thus
    costs up to K + 1 terms: it is dropped, not marginalised. The values of unobserved pixels, NaN included,
    affect neither the density nor its gradients.

    Nothing is computed twice: a batch dimension along which neither the arguments nor the value vary costs
    nothing.

    References:
        | A novel stellar spectrum denoising method based on deep Bayesian modeling (Kang, He & Zhang 2021)
        | https://arxiv.org/abs/2103.02896, equations (3) and (11) to (16)

    Arguments:
        loc: The clean spectrum s, shape (..., D) with D > K.
        network: The conditioner, e.g. a :class:`bayesspec.nn.noise.NoiseNetwork`. Its parameters are not
            arguments of the distribution.
        scale: The positive scale a, broadcastable to the batch shape (...).
        observed: True where a pixel is observed, bool, shape (..., D); None for all. (The package's masks
            are True where *bad*: pass ``~mask``.)

    Raises:
        ValueError: If shapes do not fit, `observed` is not bool, or, under validation, `loc` is NaN, `scale`
            is not positive, or a value is NaN or infinite at an observed pixel.

    Example:
        >>> from bayesspec.nn.noise import NoiseNetwork
        >>> clean, y = torch.ones(2048), torch.ones(3, 2048)
        >>> y[0, 100] = torch.nan
        >>> flow = NoiseFlow(clean, NoiseNetwork(), observed=~y.isnan())
        >>> flow.log_prob(y).isfinite()
        tensor([True, True, True])
        >>> 2048 - flow.used.sum(-1)
        tensor([6, 0, 0])
    """

    network: Conditioner

    def __init__(
        self,
        loc: Tensor,
        network: Conditioner,
        scale: Tensor | float = 1.0,
        observed: Tensor | None = None,
        validate_args: bool | None = None,
    ):
        if loc.dim() < 1 or loc.shape[-1] <= network.kernel:
            raise ValueError(f"loc must be (..., D), D > kernel = {network.kernel}, not {tuple(loc.shape)}")
        super().__init__(loc, network, scale, observed, validate_args)

    def xi(self, eps: Tensor) -> Tensor:
        r"""Whitened noise :math:`\xi_d = (\epsilon_d - \mu_d) \exp(-\alpha_d)`, shape (..., D)."""
        return self._whiten(eps)[0]

    def whiten(self, value: Tensor) -> Tensor:
        r"""Standard normal deviates of the pixels, each given those before it, shape (..., D).

        The normal quantile of the distribution function of :math:`\xi`: below 4 standard deviations it is
        :math:`\xi` itself.
        """
        xi = self.xi(self.residual(value))
        normal = torch.special.log_ndtr(-xi.abs()) + LOG_USUAL
        tail = torch.logaddexp(normal, log_cauchy_tail(xi.abs() / HIT_WIDTH) + LOG_HIT)
        return -torch.sign(xi) * normal_quantile(tail)

    def precision(self, value: Tensor) -> Tensor:
        r"""Inverse variance of the Gaussian with the same gradient at the residual, unit 1 / s^2, (..., D).

        :math:`\exp(-2 \alpha)` times the probability that the pixel is not a hit. Zero where not used.
        """
        residual = self.residual(value)
        xi, alpha = self._whiten(residual)
        usual, hit = self._base_log_probs(xi)
        found = torch.exp(-2 * alpha) * torch.sigmoid(usual - hit)
        return found if self._observed is None else torch.where(self._used, found, 0.0)

    @torch.no_grad()
    def sample(self, sample_shape: list[int] | tuple[int, ...] = Size()) -> Tensor:
        """Draw spectra, all pixels, observed or not, shape sample_shape + (..., D)."""
        shape = self._extended_shape(sample_shape)
        k, pixels = self.network.kernel, shape[-1]

        # Pixels first: a step reads K contiguous rows and changes one row of the base into noise, in place.
        eps = self._base_sample((pixels, shape[:-1].numel()))
        mean, alpha = self.network(eps.new_zeros(k))
        eps[:k].mul_(alpha.exp()[:, None]).add_(mean[:, None])
        for d in range(k, pixels):
            mean, alpha = self.network.step(eps[d - k : d].t())
            eps[d].mul_(alpha.exp()).add_(mean)

        return self.scale[..., None] * (self.loc + eps.t().reshape(shape))

    @property
    def _used(self) -> Tensor:
        # Equation (16).
        k, used = self.network.kernel, self.seen.clone()
        for back in range(1, k + 1):
            used[..., k:].logical_and_(self.seen[..., k - back : -back])
        return used

    def _residual_terms(self, residual: Tensor) -> Tensor:
        xi, alpha = self._whiten(residual)
        return self._base_log_prob(xi) - alpha

    def _whiten(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        mean, alpha = self.network(eps)
        return (eps - mean) * torch.exp(-alpha), alpha

    @staticmethod
    def _base_log_probs(xi: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities of the Gaussian and Cauchy parts of the base, weights included."""
        square = xi.square()
        usual = -0.5 * (square + math.log(2 * math.pi)) + LOG_USUAL
        return usual, log_cauchy(square / HIT_WIDTH**2) + LOG_HIT - math.log(HIT_WIDTH)

    def _base_log_prob(self, xi: Tensor) -> Tensor:
        return torch.logaddexp(*self._base_log_probs(xi))

    def _base_sample(self, shape: tuple[int, ...]) -> Tensor:
        base = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        hit = torch.rand_like(base) < HIT_SHARE
        # A ratio of normal numbers is Cauchy.
        return torch.where(hit, HIT_WIDTH * base / torch.randn_like(base), base)
