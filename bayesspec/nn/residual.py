"""What the generator cannot express: a residual term B w, and beneath it a discrepancy of each pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WIDTHS", "ResidualTerm"]

WIDTHS = (0.5, 1.0, 2.0, 5.0, 25.0, 125.0)
"""How many times as large as usual the discrepancy of a pixel may be; the widest are lines no pattern has."""

LOG_RANGE = 4.0
"""The log size of a star's residuals stays within this, smoothly."""

FALL = 4.0
"""How steeply an anchor's say falls with distance: as its square to the power of minus this."""

FARTHEST = 4.0
"""So many widths from an anchor and beyond, what it says of the mean is no longer extrapolated."""


class ResidualTerm(nn.Module):
    r"""The residual of a star beyond G(z): :math:`B\,(m(z) + e^{\varsigma h} \Lambda(z)\,w) + e`.

    The columns of B are P patterns that residuals of many stars share. How stars have them, on average and
    together, is another thing for every kind of star: an M dwarf's molecular bands are worse described than a
    white dwarf's continuum. So the mean :math:`m(z)`, the P x R factor :math:`\Lambda(z)` of the covariance,
    and the discrepancy of single pixels that they leave, :math:`e_d \sim \mathcal{N}(0, e^{2 \varsigma h}
    \tau_d(z)^2)`, are local: each is interpolated between J anchors in the space of z, the mean as a linear
    function of z around each. w is standard normal. A star that is like no other of its kind is told by h,
    standard normal: all its residuals are larger.

    Where e is put back after the fit, pixels have one of several `WIDTHS`: `shares` says how often, pixel by
    pixel, for every kind of star. An emission line that no pattern has is no cosmic ray. And far from any
    pixel that was seen, residuals have another size than where they were: `unseen_sizes`.

    The R + 1 latents of the residual are h and after it w.

    Arguments:
        latent_dim: L.
        size: D, the number of pixels.
        patterns: P.
        components: R.
        anchors: J.
        bands: Knots along the spectrum between which an anchor's part of :math:`\log \tau` is interpolated.
        kinds: Of stars, each with shares of its own: the classes that anchors were made for.

    Example:
        >>> residual = ResidualTerm(latent_dim=6, components=80)
        >>> z, w = torch.zeros(7, 6), torch.zeros(7, 1 + 80)
        >>> residual(z, w).shape, residual.discrepancy(z, w).shape
        (torch.Size([7, 2048]), torch.Size([7, 2048]))
    """

    def __init__(
        self,
        latent_dim: int = 6,
        size: int = 2048,
        patterns: int = 192,
        components: int = 80,
        anchors: int = 80,
        bands: int = 64,
        kinds: int = 10,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "latent_dim": latent_dim,
            "size": size,
            "patterns": patterns,
            "components": components,
            "anchors": anchors,
            "bands": bands,
            "kinds": kinds,
        }
        self.components = components
        # What is many numbers and of no use to more than three digits is kept in half precision.
        half = torch.float16
        self.register_buffer("basis", torch.zeros(patterns, size, dtype=half))
        self.register_buffer("anchors", torch.zeros(anchors, latent_dim))
        self.register_buffer("width", torch.tensor(0.1))
        self.register_buffer("offset", torch.zeros(anchors, patterns))
        self.register_buffer("slope", torch.zeros(anchors, latent_dim, patterns, dtype=half))
        self.register_buffer("factor", torch.zeros(anchors, patterns, components, dtype=half))
        self.register_buffer("log_discrepancy", torch.full((size,), -4.0))
        self.register_buffer("log_bands", torch.zeros(anchors, bands))
        usual = (torch.tensor(WIDTHS) == 1).float()
        self.register_buffer("kind", torch.arange(anchors) % kinds)
        self.register_buffer("share", usual[:, None].to(half).repeat(kinds, 1, size))
        self.register_buffer("spread", torch.tensor(0.5))
        self.register_buffer("unseen_size", torch.zeros(kinds, 2))
        self.register_buffer("interpolation", _hats(bands, size), persistent=False)

    @property
    def dim(self) -> int:
        """R + 1, of h and w."""
        return self.components + 1

    def forward(self, z: Tensor, hw: Tensor) -> Tensor:
        """The residual term (..., D) of stars with latents z (..., L) and (h, w) (..., R + 1)."""
        near, each = self.near(z), self._each(hw)
        return ((near[..., None] * each).sum(-2) + self._offset(z, near)) @ self.basis.to(each.dtype)

    def jacobian(self, z: Tensor, hw: Tensor) -> Tensor:
        """Its derivatives by (h, w), (..., D, R + 1)."""
        scaled = self.local_factor(z) * self.log_size(hw[..., :1]).exp()[..., None]
        by_w = self.basis.T.to(scaled.dtype) @ scaled
        by_h = self.growth(hw)[..., None] * (by_w @ hw[..., 1:, None])[..., 0]
        return torch.cat([by_h[..., None], by_w], dim=-1)

    def jacobian_z(self, z: Tensor, hw: Tensor) -> Tensor:
        """Its derivatives by z, (..., D, L)."""
        near, away = self.near(z), z[..., None, :] - self.anchors
        square = away.square().sum(-1, keepdim=True)

        # The say of an anchor changes, (..., J, L), times what it says, (..., J, P).
        pull = -2 * FALL * away / (self.width.square() + square)
        turn = near[..., None] * (pull - (near[..., None] * pull).sum(-2, keepdim=True))
        slope = self.slope.to(z.dtype)
        says = self._each(hw) + self.offset + torch.einsum("...jl,jlp->...jp", self.away(z), slope)

        # And what it says changes with `away`, whose derivatives are (..., J, L, L).
        reach = (FARTHEST * self.width).square()
        short = (1 + square / reach).rsqrt()[..., None]
        identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        bend = short * identity - short**3 * away[..., None] * away[..., None, :] / reach
        by_z = turn.mT @ says + (near[..., None, None] * bend).movedim(-1, -3).flatten(-2) @ slope.flatten(
            0, 1
        )
        return (by_z @ self.basis.to(z.dtype)).mT

    def near(self, z: Tensor) -> Tensor:
        """The say of each anchor, (..., J), of sum 1: by inverse distance, smooth and never undefined."""
        square = (z[..., None, :] - self.anchors).square().sum(-1)
        return (-FALL * torch.log1p(square / self.width.square())).softmax(-1)

    def local_offset(self, z: Tensor) -> Tensor:
        """Mean of the patterns' coefficients, (..., P), among stars like z (..., L)."""
        return self._offset(z, self.near(z))

    def away(self, z: Tensor) -> Tensor:
        """How far from each anchor, (..., J, L): never farther than `FARTHEST` widths."""
        offset = z[..., None, :] - self.anchors
        square = offset.square().sum(-1, keepdim=True) / (FARTHEST * self.width).square()
        return offset * (1 + square).rsqrt()

    def _each(self, hw: Tensor) -> Tensor:
        """What each anchor makes of (h, w), (..., J, P)."""
        w = hw[..., 1:] * self.log_size(hw[..., :1]).exp()
        anchors, patterns, _ = self.factor.shape
        factor = self.factor.to(w.dtype).reshape(anchors * patterns, -1)
        return (w @ factor.T).unflatten(-1, (anchors, patterns))

    def _offset(self, z: Tensor, near: Tensor) -> Tensor:
        slope = self.slope.to(z.dtype).flatten(0, 1)
        return near @ self.offset + (near[..., None] * self.away(z)).flatten(-2) @ slope

    def local_factor(self, z: Tensor) -> Tensor:
        """Factor of their covariance, (..., P, R), at the usual size."""
        return torch.einsum("...j,jpr->...pr", self.near(z), self.factor.to(z.dtype))

    def growth(self, hw: Tensor) -> Tensor:
        """Derivative by h of the log size of all residuals, (...)."""
        return self.spread * torch.cosh(self.spread * hw[..., 0] / LOG_RANGE).square().reciprocal()

    def discrepancy(self, z: Tensor, hw: Tensor) -> Tensor:
        """Standard deviation of each pixel's discrepancy, (..., D), at latents (..., L) and (..., R + 1)."""
        bands = self.near(z) @ self.log_bands
        return (bands @ self.interpolation + self.log_discrepancy + self.log_size(hw[..., :1])).exp()

    def shares(self, z: Tensor) -> Tensor:
        """Probability of each of `WIDTHS` in each pixel, (..., K, D), for stars with latents (..., L)."""
        shares = torch.einsum("...c,ckd->...kd", self._kinds(z), self.share.to(z.dtype))
        return shares / shares.sum(-2, keepdim=True)  # half precision sums to one but roughly

    def unseen_sizes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of the log size of residuals far from any seen pixel, beside h's, (...) each."""
        mean, spread = (self._kinds(z) @ self.unseen_size.to(z.dtype)).unbind(-1)
        return mean, spread

    def _kinds(self, z: Tensor) -> Tensor:
        """The say of each kind, (..., kinds), of sum 1."""
        return self.near(z) @ torch.nn.functional.one_hot(self.kind, len(self.share)).to(z.dtype)

    def log_size(self, h: Tensor) -> Tensor:
        """The log factor on all residuals of stars with sizes h."""
        return LOG_RANGE * torch.tanh(self.spread * h / LOG_RANGE)


def _hats(bands: int, size: int) -> Tensor:
    """Piecewise linear functions of the pixel, (bands, D), that are 1 at their own knot and sum to 1."""
    position = torch.linspace(0, bands - 1, size)
    return (1 - (position - torch.arange(bands)[:, None]).abs()).clamp_min(0)
