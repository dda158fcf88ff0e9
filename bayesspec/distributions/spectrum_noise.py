"""The base class of the noise models: arguments, masks, batches, and the residual."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

HIT_SHARE = 1e-5
"""Fraction of pixels with noise of any size: cosmic rays, defects, typing errors."""

HIT_WIDTH = 30.0
"""Width of the Cauchy distribution of their noise, in standard deviations of the usual noise."""

LOG_USUAL, LOG_HIT = math.log1p(-HIT_SHARE), math.log(HIT_SHARE)


def log_cauchy(square: Tensor) -> Tensor:
    """Log density of a standard Cauchy distribution, of squared deviates."""
    return -torch.log1p(square) - math.log(math.pi)


def log_cauchy_tail(size: Tensor) -> Tensor:
    """Log probability of a standard Cauchy deviate above a size that is not negative."""
    return torch.atan2(torch.ones_like(size), size).log() - math.log(math.pi)


def normal_quantile(log_p: Tensor) -> Tensor:
    """The x with log Phi(x) = log_p <= log(1 / 2), accurate arbitrarily far in the tail."""
    near = torch.special.ndtri(log_p.clamp_min(-12.0).exp())
    far = -(-2 * log_p - (-4 * math.pi * log_p.clamp_max(-1.0)).log()).clamp_min(0.0).sqrt()
    x = torch.where(log_p > -12.0, near, far).detach()

    # Newton steps on the concave log Phi: they refine the asymptotic guess and carry the gradient.
    for _ in range(3):
        slope = math.sqrt(2 / math.pi) / torch.special.erfcx(-x / math.sqrt(2))
        x = x - (torch.special.log_ndtr(x) - log_p) / slope
    return x


class SpectrumNoise(TorchDistribution):
    r"""Base of the distributions of an observed spectrum y given the clean spectrum s, y = a (s + noise).

    A subclass defines the log-densities of the pixels of a residual y / a - s (`_residual_terms`), which
    of them count (`_used`; by default those that are observed), and how to draw spectra (`sample`).
    Nothing is computed twice: a batch dimension along which neither the arguments nor the value vary costs
    nothing.

    Arguments:
        loc: The clean spectrum s, shape (..., D).
        network: The conditioner. Its parameters are not arguments of the distribution.
        scale: The positive scale a, broadcastable to the batch shape (...).
        observed: True where a pixel is observed, bool, shape (..., D); None for all.
        others: Further arguments of the subclass by name, each broadcastable to (..., D), or None.

    Raises:
        ValueError: If shapes do not fit, `observed` is not bool, or, under validation, `loc` is NaN, `scale`
            is not positive, or a value is NaN or infinite at an observed pixel.
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
        network: Any,
        scale: Tensor | float,
        observed: Tensor | None,
        validate_args: bool | None,
        **others: Tensor | None,
    ):
        self.loc = loc
        self.network = network
        self.scale = scale if isinstance(scale, Tensor) else loc.new_full((), scale)
        self._observed = observed
        for name, value in others.items():
            setattr(self, name, value)
        self._others = tuple(others)

        if observed is not None and observed.dtype != torch.bool:
            raise ValueError(f"observed must be bool, True where a pixel is observed, not {observed.dtype}")
        vectors = {"observed": observed, **others}
        for name, value in vectors.items():
            if value is not None and value.shape[-1:] != loc.shape[-1:]:
                raise ValueError(
                    f"{name} {tuple(value.shape)} and loc {tuple(loc.shape)} must have the same pixels"
                )

        shapes = {"loc": loc.shape[:-1], "scale": self.scale.shape}
        shapes |= {name: value.shape[:-1] for name, value in vectors.items() if value is not None}
        try:
            batch_shape = torch.broadcast_shapes(*shapes.values())
        except RuntimeError as error:
            raise ValueError(
                f"batch shapes of {', '.join(shapes)} do not broadcast: {[tuple(s) for s in shapes.values()]}"
            ) from error
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    @property
    def observed(self) -> Tensor | None:
        """True where a pixel is observed, as given; None for all."""
        return self._observed

    @property
    def seen(self) -> Tensor:
        """The same as a tensor also when all pixels are observed: bool, at least of the event's shape."""
        if self._observed is not None:
            return self._observed
        return torch.ones(self.event_shape, dtype=torch.bool, device=self.loc.device)

    @property
    def used(self) -> Tensor:
        """True where a pixel's term counts: bool, shape (..., D)."""
        used = torch.ones_like(self.loc, dtype=torch.bool) if self._observed is None else self._used
        return used.expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: list[int] | tuple[int, ...], _instance: Any = None) -> Self:
        """The same distribution with a larger batch shape; arguments are kept as they are."""
        new = self._get_checked_instance(type(self), _instance)
        batch_shape = Size(batch_shape)
        if torch.broadcast_shapes(self.batch_shape, batch_shape) != batch_shape:
            raise ValueError(f"cannot expand batch shape {tuple(self.batch_shape)} to {tuple(batch_shape)}")

        for name in ("loc", "network", "scale", "_observed", "_others", *self._others):
            setattr(new, name, getattr(self, name))
        super(SpectrumNoise, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def residual(self, value: Tensor) -> Tensor:
        r"""Noise :math:`y / a - s`, zero where not observed, shape (..., D)."""
        scale = self.scale[..., None]
        if self._observed is None:
            return value / scale - self.loc

        # Two masks: the inner keeps NaN out of the arithmetic, the outer blocks the gradient to s and a.
        residual = torch.where(self._observed, value, 0.0) / scale - self.loc
        return torch.where(self._observed, residual, 0.0)

    def log_prob_terms(self, value: Tensor) -> Tensor:
        """Log-densities of the pixels, each given those before it; zero where not used, shape (..., D)."""
        terms = self._terms(value)
        return terms.expand(torch.broadcast_shapes(terms.shape, self.batch_shape + self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of spectra (..., D), shape (...): the sum of the terms that count."""
        total = self._terms(value).sum(-1)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    @property
    def _used(self) -> Tensor:
        return self.seen

    def _terms(self, value: Tensor) -> Tensor:
        # Not expanded to the batch shape, so that equal values are computed once.
        if self._validate_args:
            self._validate_sample(value)

        terms = self._residual_terms(self.residual(value)) - self.scale.log()[..., None]
        return terms if self._observed is None else torch.where(self._used, terms, 0.0)

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
