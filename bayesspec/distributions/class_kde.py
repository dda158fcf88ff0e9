"""The prior of the latents: one Gaussian kernel density per class, on the latents of its training stars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints

# Kernels evaluated at once: few enough for a CPU's cache, or for the memory of an accelerator.
_CPU_BLOCK, _BLOCK = 2**18, 2**25


def class_log_density(
    z: Tensor, centres: Tensor, log_weights: Tensor, bandwidth: Tensor, precision_tril: Tensor | None = None
) -> Tensor:
    """Log-density of latents (..., L) under the kernel density of every class, shape (..., n_class).

    Distances are sums of squared differences, one latent dimension at a time. The matrix-product form
    z^2 - 2 z.c + c^2 would cancel most of float32's digits where the classes are far apart in bandwidths.
    """
    latent = z.shape[-1]
    precision = bandwidth.reshape(len(centres), -1).expand(-1, latent).reciprocal()
    log_norm = precision.log().sum(-1) - 0.5 * latent * math.log(2 * math.pi)
    columns = [column.contiguous() for column in centres.unbind(-1)]
    if precision_tril is not None:
        log_weights = log_weights + precision_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def white(offsets: list[Tensor], j: int) -> Tensor:
        if precision_tril is None:
            return offsets[j]
        total = offsets[j] * precision_tril[..., j, j]
        for i in range(j + 1, latent):
            total = torch.addcmul(total, offsets[i], precision_tril[..., i, j])
        return total

    def block_log_density(block: Tensor) -> Tensor:
        exponent = log_weights
        offsets = [
            (block[:, d, None, None] - column) * precision[:, d, None] for d, column in enumerate(columns)
        ]
        for j in range(latent):
            exponent = torch.addcmul(exponent, (offset := white(offsets, j)), offset, value=-0.5)
        return exponent.logsumexp(-1) + log_norm

    kernels = _CPU_BLOCK if z.device.type == "cpu" else _BLOCK
    blocks = z.reshape(-1, latent).split(max(1, kernels // log_weights.numel()))
    return torch.cat([block_log_density(block) for block in blocks]).reshape(*z.shape[:-1], len(centres))


def neighbour_precision(
    centres: Tensor, log_weights: Tensor, bandwidth: Tensor, neighbours: int, stretch: float
) -> Tensor:
    r"""Kernels with the covariance of their neighbours, as `ClassKDE`'s `precision_tril`.

    The covariance of a kernel is :math:`h_C^2 + \eta^2 S`, where S is the covariance of the nearest centres
    in its class. Along a sequence or a sheet of stars the kernels are therefore long, and across it thin.

    Arguments:
        centres: Shape (n_class, M, L).
        log_weights: Shape (n_class, M), -inf where padded.
        bandwidth: h, shape (n_class,) or (n_class, L).
        neighbours: Number of nearest centres, itself included; in smaller classes, all.
        stretch: :math:`\eta`.

    Returns:
        Lower Cholesky factors of the kernels' precisions, in units of the bandwidth, (n_class, M, L, L).
    """
    latent = centres.shape[-1]
    identity = torch.eye(latent, dtype=torch.float64, device=centres.device)
    factors = identity.repeat(*log_weights.shape, 1, 1)
    units = bandwidth.reshape(len(centres), -1).expand(-1, latent)
    for factor, points, real, unit in zip(factors, centres, log_weights > -torch.inf, units, strict=True):
        own = (points[real] / unit).double()
        nearest = torch.cdist(own, own).topk(min(neighbours, len(own)), largest=False).indices
        away = own[nearest] - own[nearest].mean(1, keepdim=True)
        covariance = identity + stretch**2 * away.mT @ away / max(1, nearest.shape[-1] - 1)
        factor[real] = torch.linalg.cholesky(torch.linalg.inv(covariance))
    # Each column is contiguous in memory.
    return factors.to(centres).permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)


class ClassKDE(TorchDistribution):
    r"""Distribution of the latent z of a star given its class C, one Gaussian kernel density per class.

    .. math:: p(z | C) = \sum_m w_{Cm} \, \mathcal{N}(z | c_{Cm}, \mathrm{diag}(h_C^2))

    Kernels may have their own covariances: with `precision_tril`, P, the covariance is :math:`(P P^T)^{-1}`
    in units of the bandwidth.

    The density of every class is computed once for each z and then selected by class, so an enumerated class
    costs no more than a single one.

    References:
        | A novel stellar spectrum denoising method based on deep Bayesian modeling (Kang, He & Zhang 2021)
        | https://arxiv.org/abs/2103.02896, equation (5)

    Arguments:
        klass: The class's index, integer; its shape is the batch shape.
        centres: The kernels' centres, shape (n_class, M, L), finite also where padded.
        log_weights: The logarithms of their weights, shape (n_class, M), -inf where padded; the weights of
            each class sum to one.
        bandwidth: The kernels' standard deviation, positive, shape (n_class,) or (n_class, L).
        precision_tril: Lower Cholesky factors of the kernels' precisions in units of the bandwidth, shape
            (n_class, M, L, L). None: all kernels are isotropic.

    Raises:
        ValueError: If shapes do not fit or, under validation, an argument or a value is out of its range.

    Example:
        >>> klass = torch.arange(2)[:, None]
        >>> centres = torch.tensor([[[0.0], [1.0]], [[5.0], [0.0]]])
        >>> log_weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
        >>> kde = ClassKDE(klass, centres, log_weights, bandwidth=torch.ones(2))
        >>> kde.log_prob(torch.zeros(3, 1)).shape
        torch.Size([2, 3])
        >>> kde.log_prob_all(torch.zeros(3, 1)).shape
        torch.Size([3, 2])
    """

    arg_constraints = {  # noqa: RUF012 - the type that torch declares
        "klass": constraints.nonnegative_integer,
        "centres": constraints.independent(constraints.real, 3),
        "log_weights": constraints.dependent(
            is_discrete=False, event_dim=2
        ),  # -inf is allowed: checked below
        "bandwidth": constraints.positive,
    }
    support = constraints.real_vector

    def __init__(
        self,
        klass: Tensor,
        centres: Tensor,
        log_weights: Tensor,
        bandwidth: Tensor,
        precision_tril: Tensor | None = None,
        validate_args: bool | None = None,
    ):
        self.klass = klass
        self.centres = centres
        self.log_weights = log_weights
        self.bandwidth = bandwidth
        self.precision_tril = precision_tril

        if klass.is_floating_point() or klass.dtype == torch.bool:
            raise ValueError(f"klass must be an integer tensor, not {klass.dtype}")
        if centres.dim() != 3 or log_weights.shape != centres.shape[:2]:
            raise ValueError(
                "centres must be (n_class, M, L) and log_weights (n_class, M), "
                f"not {tuple(centres.shape)} and {tuple(log_weights.shape)}"
            )
        if bandwidth.shape not in (centres.shape[:1], centres.shape[::2]):
            raise ValueError(f"bandwidth must be (n_class,) or (n_class, L), not {tuple(bandwidth.shape)}")
        wanted = (*centres.shape, centres.shape[-1])
        if precision_tril is not None and precision_tril.shape != wanted:
            raise ValueError(
                f"precision_tril must be (n_class, M, L, L), {wanted}, not {tuple(precision_tril.shape)}"
            )

        super().__init__(klass.shape, centres.shape[-1:], validate_args=validate_args)
        if self._validate_args:
            self._validate_classes()

    def expand(self, batch_shape: list[int] | tuple[int, ...], _instance: Any = None) -> ClassKDE:
        """The same distribution with a larger batch shape."""
        new = self._get_checked_instance(ClassKDE, _instance)
        new.klass = self.klass.expand(batch_shape)
        for name in ("centres", "log_weights", "bandwidth", "precision_tril"):
            setattr(new, name, getattr(self, name))
        super(ClassKDE, new).__init__(new.klass.shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob_all(self, value: Tensor) -> Tensor:
        """Log-density of latents (..., L) in every class, whatever `klass` is, shape (..., n_class)."""
        return class_log_density(value, self.centres, self.log_weights, self.bandwidth, self.precision_tril)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of latents (..., L) in their class, shape (...)."""
        if self._validate_args:
            self._validate_sample(value)

        every = self.log_prob_all(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return every.expand(*shape, -1).gather(-1, self.klass.expand(shape)[..., None]).squeeze(-1)

    @torch.no_grad()
    def sample(self, sample_shape: list[int] | tuple[int, ...] = Size()) -> Tensor:
        """Draw latents, shape sample_shape + (..., L): a centre by its weight, plus the kernel's noise."""
        shape = self._extended_shape(sample_shape)
        klass = self.klass.expand(shape[:-1])
        n_class, size, latent = self.centres.shape

        # The distribution functions of all classes in one row: that of class c rises from c to c + 1, in
        # float64 so that c costs no digits. A padded centre has an empty interval and is never drawn.
        rise = self.log_weights.double().exp().cumsum(-1)
        steps = torch.arange(n_class, dtype=rise.dtype, device=rise.device)[:, None] + rise / rise[:, -1:]
        u = torch.rand(klass.shape, dtype=torch.float32, device=rise.device)  # klass + u < klass + 1 exactly
        index = torch.searchsorted(steps.reshape(-1), klass.double() + u.double(), right=True)

        centre = self.centres.reshape(n_class * size, latent)[index]
        bandwidth = self.bandwidth.reshape(n_class, -1).expand(-1, latent)[klass]
        noise = torch.randn_like(centre)
        if self.precision_tril is not None:
            factor = self.precision_tril.reshape(n_class * size, latent, latent)[index]
            noise = torch.linalg.solve_triangular(factor.mT, noise[..., None], upper=True)[..., 0]
        return centre + bandwidth * noise

    def _validate_classes(self) -> None:
        n_class = len(self.centres)
        if (self.klass >= n_class).any():
            raise ValueError(
                f"klass must be below the number of classes, {n_class}, not {int(self.klass.max())}"
            )

        factors = self.precision_tril
        if factors is not None and not constraints.lower_cholesky.check(factors).all():
            raise ValueError("precision_tril must be lower triangular with a positive diagonal")

        total = self.log_weights.exp().sum(-1)
        if not ((total - 1).abs() < 1e-3).all():  # NaN is caught too
            raise ValueError(f"weights must sum to one in every class, their sums are {total.tolist()}")


class LatentPrior(nn.Module):
    """The kernel densities of all classes as one module, which is saved in the bundle.

    Arguments:
        centres: The kernels' centres, shape (n_class, M, L), finite also where padded.
        log_weights: The logarithms of their weights, shape (n_class, M), -inf where padded.
        bandwidth: The kernels' standard deviation, shape (n_class,) or (n_class, L).
        neighbours: Number of centres that set a kernel's covariance, see `neighbour_precision`; 0: isotropic.
        stretch: Factor on the standard deviations of these centres.

    Example:
        >>> prior = LatentPrior.from_classes([torch.randn(40, 3), torch.randn(5, 3)], bandwidths=[0.2, 0.4])
        >>> prior.log_prob_all(torch.zeros(7, 3)).shape
        torch.Size([7, 2])
        >>> prior(torch.tensor([0, 1, 1])).sample().shape
        torch.Size([3, 3])
    """

    centres: Tensor
    log_weights: Tensor
    bandwidth: Tensor
    precision_tril: Tensor | None

    def __init__(
        self,
        centres: Tensor,
        log_weights: Tensor,
        bandwidth: Tensor,
        neighbours: int = 0,
        stretch: float = 0.6,
    ):
        super().__init__()
        ClassKDE(torch.arange(len(centres)), centres, log_weights, bandwidth)

        self.config: dict[str, Any] = {"neighbours": neighbours, "stretch": stretch}
        self.register_buffer("centres", centres)
        self.register_buffer("log_weights", log_weights)
        self.register_buffer("bandwidth", bandwidth)
        shapes = neighbour_precision(centres, log_weights, bandwidth, **self.config) if neighbours else None
        self.register_buffer("precision_tril", shapes, persistent=False)

    @classmethod
    def from_classes(
        cls,
        latents: Sequence[ArrayLike],
        bandwidths: ArrayLike,
        weights: Sequence[ArrayLike] | None = None,
        **kernels: Any,
    ) -> LatentPrior:
        """Build the prior from the latents of each class, padded to the largest.

        Arguments:
            latents: For each class the latents of its stars, shape (m_c, L), m_c > 0.
            bandwidths: The kernels' standard deviation, shape (n_class,) or (n_class, L).
            weights: For each class the weights of its stars, shape (m_c,), not negative, not all zero, in any
                normalisation. None for equal weights.
            **kernels: `neighbours` and `stretch`.

        Raises:
            ValueError: If a class is empty, shapes do not fit or a number is out of its range.
        """
        dtype = torch.get_default_dtype()
        known = [torch.as_tensor(points, dtype=dtype) for points in latents]
        for c, points in enumerate(known):
            if points.dim() != 2 or not len(points) or points.shape[1] != known[0].shape[-1]:
                raise ValueError(
                    f"each class needs latents (m, L), m > 0, with one L; class {c} is {tuple(points.shape)}"
                )
        if weights is None:
            weights = [torch.ones(len(points)) for points in known]

        shape = len(known), max(len(points) for points in known)
        centres = torch.zeros(*shape, known[0].shape[1], dtype=dtype)
        log_weights = torch.full(shape, -torch.inf, dtype=dtype)
        for c, (points, given) in enumerate(zip(known, weights, strict=True)):
            weight = torch.as_tensor(given, dtype=dtype)
            if weight.shape != points.shape[:1] or (weight < 0).any():
                raise ValueError(f"weights of class {c} must be {len(points)} numbers that are not negative")
            centres[c, : len(points)] = points
            log_weights[c, : len(points)] = (weight / weight.sum()).log()
        return cls(centres, log_weights, torch.as_tensor(bandwidths, dtype=dtype), **kernels)

    def forward(self, klass: Tensor) -> ClassKDE:
        """The distribution of the latents given classes, integer (...): batch shape (...)."""
        return ClassKDE(klass, self.centres, self.log_weights, self.bandwidth, self.precision_tril)

    def of_class(self, k: int, batch_shape: Size = Size()) -> ClassKDE:
        """The distribution of one class alone, without the cost of the others."""
        own, shapes = slice(k, k + 1), self.precision_tril
        klass = torch.zeros(batch_shape, dtype=torch.long, device=self.centres.device)
        parts = self.centres[own], self.log_weights[own], self.bandwidth[own]
        return ClassKDE(klass, *parts, None if shapes is None else shapes[own])

    def log_prob_all(self, z: Tensor) -> Tensor:
        """Log-density of latents (..., L) in every class, shape (..., n_class)."""
        return class_log_density(z, self.centres, self.log_weights, self.bandwidth, self.precision_tril)
