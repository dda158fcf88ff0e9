"""The likelihood: a spectrum as its clean spectrum plus noise that is correlated along the pixels."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor, nn

from bayesspec.distributions.spectrum_noise import SpectrumNoise


class NoiseFlow(SpectrumNoise):
    r"""Distribution of an observed spectrum y given the clean spectrum s, :math:`y = a (s + \epsilon)`.

    The noise is a local autoregressive flow, :math:`\epsilon_d \sim \mathcal{N}(\mu_d, \exp(\alpha_d)^2)`,
    with :math:`\mu_d, \alpha_d` from the K pixels before d. (The paper writes
    :math:`\sigma_d = \exp(-\alpha_d)`; its own density needs :math:`\exp(\alpha_d)`.) The scale a of an
    exposure is 1 where the flux scale is known, as in the paper.

    The term of a pixel counts only if the pixel and its K predecessors are observed, equation (16); one of
    the first K pixels, which have no predecessors in the flow, counts if it is observed. One bad pixel thus
    costs up to K + 1 terms: it is dropped, not marginalised. Whatever stands at an unobserved pixel, NaN
    included, changes neither the density nor any gradient.

    Densities are computed once for what differs: a batch dimension along which neither the arguments nor the
    value vary costs nothing.

    References:
        | A novel stellar spectrum denoising method based on deep Bayesian modeling (Kang, He & Zhang 2021)
        | https://arxiv.org/abs/2103.02896, equations (3) and (11) to (16)

    Arguments:
        loc: The clean spectrum s, shape (..., D) with D > K.
        network: The conditioner, e.g. a :class:`bayesspec.nn.noise.NoiseNetwork`: a module with `kernel`,
            `forward` and `step`. Its parameters are its own, not the distribution's.
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

    def __init__(
        self,
        loc: Tensor,
        network: nn.Module,
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

    @torch.no_grad()
    def sample(self, sample_shape: Size = Size()) -> Tensor:
        """Draw spectra, all pixels, observed or not, shape sample_shape + (..., D)."""
        shape = self._extended_shape(sample_shape)
        k, pixels = self.network.kernel, shape[-1]

        # Pixels first: a step reads K contiguous rows and turns one row of the base into noise, in place.
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
        k, used = self.network.kernel, self._observed.clone()
        for back in range(1, k + 1):
            used[..., k:].logical_and_(self._observed[..., k - back : -back])
        return used

    def _residual_terms(self, residual: Tensor) -> Tensor:
        xi, alpha = self._whiten(residual)
        return self._base_log_prob(xi) - alpha

    def _whiten(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        mean, alpha = self.network(eps)
        return (eps - mean) * torch.exp(-alpha), alpha

    @staticmethod
    def _base_log_prob(xi: Tensor) -> Tensor:
        return -0.5 * (xi.square() + math.log(2 * math.pi))

    def _base_sample(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
