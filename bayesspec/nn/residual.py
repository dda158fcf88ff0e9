"""What the generator cannot express: a residual term B w, and beneath it a discrepancy of each pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WIDTHS", "ResidualTerm"]

WIDTHS = (0.6, 1.2, 2.4, 6.0, 60.0)
"""How many times as large as usual the discrepancy of a pixel may be; the widest are lines no pattern has."""

USUAL = 1.2
"""The width that all pixels have in a term that has learned nothing."""

KNOTS = 6
"""Places along the spectrum, evenly spread, between which the size of residuals is interpolated."""

LOG_RANGE = 4.0
"""The log size of a star's residuals stays within this, smoothly."""

FALL = 4.0
"""How steeply an anchor's weight falls with distance: as its square to the power of minus this."""

FARTHEST = 4.0
"""So many widths from an anchor and beyond, what it says of the mean is no longer extrapolated."""


class ResidualTerm(nn.Module):
    r"""The residual of a star beyond G(z): :math:`B\, m(z) + S(h) \odot B \Lambda(z)\,w + e`.

    The columns of B are P patterns that residuals of many stars share. How stars have them, on average and
    together, is another thing for every kind of star: an M dwarf's molecular bands are worse described than a
    white dwarf's continuum. So the mean :math:`m(z)`, the P x R factor :math:`\Lambda(z)` of the covariance,
    and the size :math:`\tau(z)` of what they leave in single pixels, e, are local: each is interpolated
    between J anchors in the space of z, the mean as a linear function of z around each. w is standard normal.

    How large the residuals of this star are, beside what is usual for its kind, is a smooth function of
    wavelength, :math:`S_d(h)`: between T knots it is linear, and its logarithm there is

    .. math:: \ell_t = \varsigma h_T + \varsigma_l h_t, \quad h \sim \mathcal{N}(0, I),

    one number for the whole star and one for each knot. Where a star is not seen, h goes back to its prior,
    and intervals are as wide as they have to be.

    The discrepancy e of a pixel has one of several `WIDTHS`,
    :math:`e_d \sim \sum_k \lambda_{kd}\, \mathcal{N}(0, \omega_k^2 S_d^2 \tau_d^2)`; `shares` says how often
    each, pixel by pixel, for every kind of star. An emission line that no pattern has is no cosmic ray.

    How much larger the noise of the star's exposures is than stated, b, is told from how large its residuals
    are by all pixels together, and so it is here, too. The T + 2 + R latents of the residual are h: b, then
    the numbers of the knots, then that of the whole star; and after it w.

    Arguments:
        latent_dim: L.
        size: D, the number of pixels.
        patterns: P.
        components: R.
        anchors: J.
        bands: Knots along the spectrum between which an anchor's part of :math:`\log \tau` is interpolated.
        kinds: Of stars, each with shares of its own: the classes that anchors were made for.
        knots: T.

    Example:
        >>> residual = ResidualTerm(latent_dim=6, components=80)
        >>> z, hw = torch.zeros(7, 6), torch.zeros(7, residual.dim)
        >>> residual(z, hw).shape, residual.discrepancy(z, hw).shape
        (torch.Size([7, 2048]), torch.Size([7, 2048]))
    """

    basis: Tensor
    anchors: Tensor
    width: Tensor
    offset: Tensor
    slope: Tensor
    factor: Tensor
    log_discrepancy: Tensor
    log_bands: Tensor
    kind: Tensor
    share: Tensor
    spread: Tensor
    local_spread: Tensor
    interpolation: Tensor
    between: Tensor

    def __init__(
        self,
        latent_dim: int = 6,
        size: int = 2048,
        patterns: int = 192,
        components: int = 80,
        anchors: int = 80,
        bands: int = 64,
        kinds: int = 10,
        knots: int = KNOTS,
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
            "knots": knots,
        }
        self.components, self.sizes = components, knots + 2
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
        usual = (torch.tensor(WIDTHS) == USUAL).float()
        self.register_buffer("kind", torch.arange(anchors) % kinds)
        self.register_buffer("share", usual[:, None].to(half).repeat(kinds, 1, size))
        self.register_buffer("spread", torch.tensor(0.5))
        self.register_buffer("local_spread", torch.tensor(0.3))
        self.register_buffer("interpolation", _hats(bands, size), persistent=False)
        self.register_buffer("between", _hats(knots, size), persistent=False)

    @property
    def dim(self) -> int:
        """T + 2 + R, of h and w."""
        return self.sizes + self.components

    def split(self, hw: Tensor) -> tuple[Tensor, Tensor]:
        """h (..., T + 2) and w (..., R)."""
        return hw[..., : self.sizes], hw[..., self.sizes :]

    def forward(self, z: Tensor, hw: Tensor) -> Tensor:
        """The residual term (..., D) of stars with latents z (..., L) and (h, w) (..., T + 2 + R)."""
        h, w = self.split(hw)
        near, basis = self.near(z), self.basis.to(z.dtype)
        scattered = (near[..., None] * self._each(w)).sum(-2) @ basis
        return self._offset(z, near) @ basis + self.size(h) * scattered

    def jacobian(self, z: Tensor, hw: Tensor) -> Tensor:
        """Its derivatives by (h, w), (..., D, T + 2 + R)."""
        h, w = self.split(hw)
        by_w = self.size(h)[..., None] * self.patterns_of(z)
        by_h = self.growth(h) * (by_w @ w[..., None])
        return torch.cat([by_h, by_w], dim=-1)

    def jacobian_z(self, z: Tensor, hw: Tensor) -> Tensor:
        """Its derivatives by z, (..., D, L)."""
        h, w = self.split(hw)
        near, away = self.near(z), z[..., None, :] - self.anchors
        square = away.square().sum(-1, keepdim=True)

        # The weight of an anchor changes, (..., J, L), times what it says, (..., J, P).
        pull = -2 * FALL * away / (self.width.square() + square)
        turn = near[..., None] * (pull - (near[..., None] * pull).sum(-2, keepdim=True))
        slope = self.slope.to(z.dtype)
        means = self.offset + torch.einsum("...jl,jlp->...jp", self.away(z), slope)

        # And what it says of the mean changes with `away`, whose derivatives are (..., J, L, L).
        reach = (FARTHEST * self.width).square()
        short = (1 + square / reach).rsqrt()[..., None]
        identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        bend = short * identity - short**3 * away[..., None] * away[..., None, :] / reach
        by_mean = (near[..., None, None] * bend).movedim(-1, -3).flatten(-2) @ slope.flatten(0, 1)
        of_mean, scattered = turn.mT @ means + by_mean, turn.mT @ self._each(w)
        basis = self.basis.to(z.dtype)
        return (of_mean @ basis + self.size(h)[..., None, :] * (scattered @ basis)).mT

    def patterns_of(self, z: Tensor) -> Tensor:
        r"""Spectra of unit w at the usual size, :math:`B \Lambda(z)`, (..., D, R), for z (..., L)."""
        return self.basis.T.to(z.dtype) @ self.local_factor(z)

    def near(self, z: Tensor) -> Tensor:
        """The weight of each anchor, (..., J), of sum 1: by inverse distance, smooth and never undefined."""
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

    def _each(self, w: Tensor) -> Tensor:
        """What each anchor makes of w, (..., J, P), at the usual size."""
        anchors, patterns, _ = self.factor.shape
        factor = self.factor.to(w.dtype).reshape(anchors * patterns, -1)
        return (w @ factor.T).unflatten(-1, (anchors, patterns))

    def _offset(self, z: Tensor, near: Tensor) -> Tensor:
        slope = self.slope.to(z.dtype).flatten(0, 1)
        return near @ self.offset + (near[..., None] * self.away(z)).flatten(-2) @ slope

    def local_factor(self, z: Tensor) -> Tensor:
        """Factor of their covariance, (..., P, R), at the usual size."""
        return torch.einsum("...j,jpr->...pr", self.near(z), self.factor.to(z.dtype))

    def log_sizes(self, h: Tensor) -> Tensor:
        """Log sizes at the knots, (..., T), of h (..., T + 2): they stay within `LOG_RANGE`, smoothly."""
        whole = self.spread * h[..., -1:] + self.local_spread * h[..., 1:-1]
        return LOG_RANGE * torch.tanh(whole / LOG_RANGE)

    def log_size(self, h: Tensor) -> Tensor:
        """Log size of stars whose knots are as usual, (...), of their number for the whole star (...)."""
        return LOG_RANGE * torch.tanh(self.spread * h / LOG_RANGE)

    def mean_size(self, h: Tensor) -> Tensor:
        """The mean log size of h (..., T + 2), in units of its prior's spread: standard normal, (...)."""
        mean = self.spread * h[..., -1] + self.local_spread * h[..., 1:-1].mean(-1)
        return mean / (self.spread.square() + self.local_spread.square() / (self.sizes - 2)).sqrt()

    def log_volume(self, h: Tensor, told: Tensor) -> Tensor:
        """Half the log determinant of the precision of w, (...), at sizes h (..., T + 2).

        Arguments:
            h: (..., T + 2).
            told: What the data say of w, as `bayesspec.inference.metric.information_by_size` has it,
                (..., 2 T - 1, R, R).
        """
        size = self.log_sizes(h).exp()
        products = torch.cat([size.square(), size[..., 1:] * size[..., :-1]], dim=-1)
        precision = torch.einsum("...f,...fij->...ij", products, told)
        identity = torch.eye(precision.shape[-1], dtype=h.dtype, device=h.device)
        return torch.linalg.cholesky(identity + precision).diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def size(self, h: Tensor) -> Tensor:
        """S, (..., D), of h (..., T + 2)."""
        return self.log_sizes(h).exp() @ self.between.to(h.dtype)

    def growth(self, h: Tensor) -> Tensor:
        """Derivatives by h of log S, (..., D, T + 2)."""
        sizes = self.log_sizes(h)
        slope = sizes.exp() * (1 - (sizes / LOG_RANGE).square())
        each = slope[..., None, :] * self.between.T.to(h.dtype)
        whole = each.sum(-1, keepdim=True)
        every = torch.cat([0 * whole, self.local_spread * each, self.spread * whole], dim=-1)
        return every / self.size(h)[..., None]

    def discrepancy(self, z: Tensor, hw: Tensor) -> Tensor:
        r""":math:`S \tau`, the usual size of e in each pixel, (..., D), at z (..., L) and (h, w)."""
        bands = self.near(z) @ self.log_bands
        return (bands @ self.interpolation + self.log_discrepancy).exp() * self.size(self.split(hw)[0])

    def shares(self, z: Tensor) -> Tensor:
        """Probability of each of `WIDTHS` in each pixel, (..., K, D), for stars with latents (..., L)."""
        shares = torch.einsum("...c,ckd->...kd", self._kinds(z), self.share.to(z.dtype))
        return shares / shares.sum(-2, keepdim=True)  # half precision sums to one but roughly

    def _kinds(self, z: Tensor) -> Tensor:
        """The weight of each kind, (..., kinds), of sum 1."""
        return self.near(z) @ torch.nn.functional.one_hot(self.kind, len(self.share)).to(z.dtype)


def _hats(bands: int, size: int) -> Tensor:
    """Piecewise linear functions of the pixel, (bands, D), that are 1 at their own knot and sum to 1."""
    position = torch.linspace(0, bands - 1, size)
    return (1 - (position - torch.arange(bands)[:, None]).abs()).clamp_min(0)
