"""The likelihood: a spectrum as its clean spectrum plus noise that is correlated along the pixels."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints


class NoiseFlow(TorchDistribution):
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

    arg_constraints = {  # noqa: RUF012 - the type that torch declares
        "loc": constraints.real_vector,
        "scale": constraints.positive,
        "observed": constraints.dependent(is_discrete=True, event_dim=1),  # bool by its dtype, or None
    }
    support = constraints.real_vector

    def __init__(
        self,
        loc: Tensor,
        network: nn.Module,
        scale: Tensor | float = 1.0,
        observed: Tensor | None = None,
        validate_args: bool | None = None,
    ):
        self.loc = loc
        self.network = network
        self.scale = scale if isinstance(scale, Tensor) else loc.new_full((), scale)
        self._observed = observed

        if loc.dim() < 1 or loc.shape[-1] <= network.kernel:
            raise ValueError(f"loc must be (..., D), D > kernel = {network.kernel}, not {tuple(loc.shape)}")
        if observed is not None and observed.dtype != torch.bool:
            raise ValueError(f"observed must be bool, True where a pixel is observed, not {observed.dtype}")
        if observed is not None and observed.shape[-1:] != loc.shape[-1:]:
            raise ValueError(
                f"observed {tuple(observed.shape)} and loc {tuple(loc.shape)} must have the same pixels"
            )

        shapes = [loc.shape[:-1], self.scale.shape] + ([] if observed is None else [observed.shape[:-1]])
        try:
            batch_shape = torch.broadcast_shapes(*shapes)
        except RuntimeError as error:
            raise ValueError(
                f"batch shapes of loc, scale, observed do not broadcast: {[tuple(s) for s in shapes]}"
            ) from error
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    @property
    def observed(self) -> Tensor | None:
        """True where a pixel is observed, as given; None for all."""
        return self._observed

    @property
    def used(self) -> Tensor:
        """True where a pixel's term counts, equation (16): bool, shape (..., D)."""
        used = torch.ones_like(self.loc, dtype=torch.bool) if self._observed is None else self._used
        return used.expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Size, _instance: NoiseFlow | None = None) -> NoiseFlow:
        """The same distribution with a larger batch shape; arguments are kept as they are."""
        new = self._get_checked_instance(NoiseFlow, _instance)
        batch_shape = Size(batch_shape)
        if torch.broadcast_shapes(self.batch_shape, batch_shape) != batch_shape:
            raise ValueError(f"cannot expand batch shape {tuple(self.batch_shape)} to {tuple(batch_shape)}")

        new.loc, new.network, new.scale, new._observed = self.loc, self.network, self.scale, self._observed
        super(NoiseFlow, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def residual(self, value: Tensor) -> Tensor:
        r"""Noise :math:`\epsilon = y / a - s`, zero where not observed, shape (..., D)."""
        scale = self.scale[..., None]
        if self._observed is None:
            return value / scale - self.loc

        # Twice: the inner keeps NaN out of the arithmetic, the outer keeps the gradient from s and a.
        eps = torch.where(self._observed, value, 0.0) / scale - self.loc
        return torch.where(self._observed, eps, 0.0)

    def xi(self, eps: Tensor) -> Tensor:
        r"""Whitened noise :math:`\xi_d = (\epsilon_d - \mu_d) \exp(-\alpha_d)`, shape (..., D)."""
        return self._whiten(eps)[0]

    def log_prob_terms(self, value: Tensor) -> Tensor:
        """Log-densities of the pixels, each given those before it; zero where not used, shape (..., D)."""
        terms = self._terms(value)
        return terms.expand(torch.broadcast_shapes(terms.shape, self.batch_shape + self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of spectra (..., D), shape (...): the sum of the terms that count."""
        total = self._terms(value).sum(-1)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

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
        k, used = self.network.kernel, self._observed.clone()
        for back in range(1, k + 1):
            used[..., k:].logical_and_(self._observed[..., k - back : -back])
        return used

    def _terms(self, value: Tensor) -> Tensor:
        # Not expanded to the batch shape: what does not differ is computed once.
        if self._validate_args:
            self._validate_sample(value)

        xi, alpha = self._whiten(self.residual(value))
        terms = self._base_log_prob(xi) - alpha - self.scale.log()[..., None]
        return terms if self._observed is None else torch.where(self._used, terms, 0.0)

    def _whiten(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        mean, alpha = self.network(eps)
        return (eps - mean) * torch.exp(-alpha), alpha

    @staticmethod
    def _base_log_prob(xi: Tensor) -> Tensor:
        return -0.5 * (xi.square() + math.log(2 * math.pi))

    def _base_sample(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def _validate_sample(self, value: Tensor) -> None:
        expected = self.batch_shape + self.event_shape
        try:
            fits = torch.broadcast_shapes(value.shape, expected)[-1:] == value.shape[-1:]
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"value {tuple(value.shape)} does not fit spectra of shape {tuple(expected)}")

        bad = ~value.isfinite()
        if self._observed is not None:
            bad = bad & self._observed
        if bad.any():
            first = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"value is NaN or infinite at {int(bad.sum())} observed pixels, the first at {first}: "
                "mark such pixels as not observed"
            )
