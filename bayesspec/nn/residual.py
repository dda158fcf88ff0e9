"""What the generator cannot express: a residual term B w, and a discrepancy in each pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WIDTHS", "ResidualTerm"]

WIDTHS = (0.6, 1.2, 2.4, 6.0, 60.0)
"""Widths of a pixel's discrepancy in units of the usual one; the widest is for lines that no pattern has."""

USUAL = 1.2
"""The width of all pixels in an untrained term."""

KNOTS = 6
"""Number of equidistant knots along the spectrum between which the amplitude of residuals is interpolated."""

LOG_RANGE = 4.0
"""Smooth limit on the log amplitude of a star's residuals."""

FALL = 4.0
"""At large distances an anchor's interpolation weight falls as the squared distance to the power -FALL."""

FARTHEST = 4.0
"""Distance from an anchor, in widths, beyond which its linear mean is no longer extrapolated."""


class ResidualTerm(nn.Module):
    r"""The residual of a star beyond G(z): :math:`B\, m(z) + S(h) \odot B \Lambda(z)\,w + e`.

    The columns of B are P patterns that the residuals of many stars share. The mean and covariance of their
    coefficients depend on the kind of star: an M dwarf's molecular bands are described less well than a white
    dwarf's continuum. So the mean :math:`m(z)`, the P x R factor :math:`\Lambda(z)` of the covariance, and
    the scale :math:`\tau(z)` of the misfit e that remains in single pixels are local. Each is interpolated
    between J anchors in the space of z; around each anchor the mean is linear in z. w is standard normal.

    The amplitude of this star's residuals, relative to what is usual for its kind, is a function of
    wavelength, :math:`S_d(h)`. It is linear between T knots, and its logarithm at a knot is

    .. math:: \ell_t = \varsigma h_T + \varsigma_l h_t, \quad h \sim \mathcal{N}(0, I),

    with one number for the whole star and one for each knot. Where nothing is observed, h returns to its
    prior, and intervals widen accordingly.

    The discrepancy e of a pixel is a mixture of several `WIDTHS`,
    :math:`e_d \sim \sum_k \lambda_{kd}\, \mathcal{N}(0, \omega_k^2 S_d^2 \tau_d^2)`. The mixture weights,
    `shares`, depend on the pixel and the kind of star, so an emission line that is in no pattern is not
    taken for a cosmic ray.

    The log noise level b of the exposures is a latent of this term too, because the data distinguish it from
    the residual amplitudes only with all pixels together. The T + 2 + R latents are h (b, then one number for
    each knot, then that of the whole star) and w.

    Arguments:
        latent_dim: L.
        size: D, the number of pixels.
        patterns: P.
        components: R, the dimension of w.
        anchors: J.
        bands: Knots along the spectrum between which an anchor's part of :math:`\log \tau` is interpolated.
        kinds: Number of kinds of star, each with its own mixture weights: the classes that have anchors.
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
        # Large arrays that need only three digits are kept in half precision.
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
        """T + 2 + R, the number of latents h and w."""
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
        """Its derivatives with respect to (h, w), (..., D, T + 2 + R)."""
        h, w = self.split(hw)
        by_w = self.size(h)[..., None] * self.patterns_of(z)
        by_h = self.growth(h) * (by_w @ w[..., None])
        return torch.cat([by_h, by_w], dim=-1)

    def jacobian_z(self, z: Tensor, hw: Tensor) -> Tensor:
        """Its derivatives with respect to z, (..., D, L)."""
        h, w = self.split(hw)
        near, away = self.near(z), z[..., None, :] - self.anchors
        square = away.square().sum(-1, keepdim=True)

        # The derivative of each anchor's weight, (..., J, L), times its coefficients, (..., J, P).
        pull = -2 * FALL * away / (self.width.square() + square)
        turn = near[..., None] * (pull - (near[..., None] * pull).sum(-2, keepdim=True))
        slope = self.slope.to(z.dtype)
        means = self.offset + torch.einsum("...jl,jlp->...jp", self.away(z), slope)

        # And the weight times the derivative of its mean, which is linear in `away`, (..., J, L, L).
        reach = (FARTHEST * self.width).square()
        short = (1 + square / reach).rsqrt()[..., None]
        identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        bend = short * identity - short**3 * away[..., None] * away[..., None, :] / reach
        by_mean = (near[..., None, None] * bend).movedim(-1, -3).flatten(-2) @ slope.flatten(0, 1)
        of_mean, scattered = turn.mT @ means + by_mean, turn.mT @ self._each(w)
        basis = self.basis.to(z.dtype)
        return (of_mean @ basis + self.size(h)[..., None, :] * (scattered @ basis)).mT

    def patterns_of(self, z: Tensor) -> Tensor:
        r"""Spectra of unit w at the usual amplitude, :math:`B \Lambda(z)`, (..., D, R), for z (..., L)."""
        return self.basis.T.to(z.dtype) @ self.local_factor(z)

    def near(self, z: Tensor) -> Tensor:
        """Interpolation weights of the anchors, (..., J), with sum 1: smooth, falling with distance."""
        square = (z[..., None, :] - self.anchors).square().sum(-1)
        return (-FALL * torch.log1p(square / self.width.square())).softmax(-1)

    def local_offset(self, z: Tensor) -> Tensor:
        """Mean of the patterns' coefficients, (..., P), among stars like z (..., L)."""
        return self._offset(z, self.near(z))

    def away(self, z: Tensor) -> Tensor:
        """Offset of z from each anchor, (..., J, L), limited smoothly to a length of `FARTHEST` widths."""
        offset = z[..., None, :] - self.anchors
        square = offset.square().sum(-1, keepdim=True) / (FARTHEST * self.width).square()
        return offset * (1 + square).rsqrt()

    def _each(self, w: Tensor) -> Tensor:
        """Coefficients of w by each anchor's factor, (..., J, P), at the usual amplitude."""
        anchors, patterns, _ = self.factor.shape
        factor = self.factor.to(w.dtype).reshape(anchors * patterns, -1)
        return (w @ factor.T).unflatten(-1, (anchors, patterns))

    def _offset(self, z: Tensor, near: Tensor) -> Tensor:
        slope = self.slope.to(z.dtype).flatten(0, 1)
        return near @ self.offset + (near[..., None] * self.away(z)).flatten(-2) @ slope

    def local_factor(self, z: Tensor) -> Tensor:
        """Factor of the coefficients' covariance, (..., P, R), at the usual amplitude."""
        return torch.einsum("...j,jpr->...pr", self.near(z), self.factor.to(z.dtype))

    def log_sizes(self, h: Tensor) -> Tensor:
        """Log amplitudes at the knots, (..., T), for h (..., T + 2), limited smoothly to `LOG_RANGE`."""
        whole = self.spread * h[..., -1:] + self.local_spread * h[..., 1:-1]
        return LOG_RANGE * torch.tanh(whole / LOG_RANGE)

    def log_size(self, h: Tensor) -> Tensor:
        """Log amplitude, (...), for the number of the whole star (...) if those of its knots are 0."""
        return LOG_RANGE * torch.tanh(self.spread * h / LOG_RANGE)

    def mean_size(self, h: Tensor) -> Tensor:
        """The mean log amplitude, (...), for h (..., T + 2), divided by its prior standard deviation."""
        mean = self.spread * h[..., -1] + self.local_spread * h[..., 1:-1].mean(-1)
        return mean / (self.spread.square() + self.local_spread.square() / (self.sizes - 2)).sqrt()

    def log_volume(self, h: Tensor, told: Tensor) -> Tensor:
        """Half the log determinant of the posterior precision of w, (...), at h.

        Arguments:
            h: (..., T + 2).
            told: Information of the data about w, from `bayesspec.inference.metric.information_by_size`,
                (..., 2 T - 1, R, R).
        """
        size = self.log_sizes(h).exp()
        products = torch.cat([size.square(), size[..., 1:] * size[..., :-1]], dim=-1)
        precision = torch.einsum("...f,...fij->...ij", products, told)
        identity = torch.eye(precision.shape[-1], dtype=h.dtype, device=h.device)
        return torch.linalg.cholesky(identity + precision).diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def size(self, h: Tensor) -> Tensor:
        """S, (..., D), for h (..., T + 2)."""
        return self.log_sizes(h).exp() @ self.between.to(h.dtype)

    def growth(self, h: Tensor) -> Tensor:
        """Derivatives of log S with respect to h, (..., D, T + 2)."""
        sizes = self.log_sizes(h)
        slope = sizes.exp() * (1 - (sizes / LOG_RANGE).square())
        each = slope[..., None, :] * self.between.T.to(h.dtype)
        whole = each.sum(-1, keepdim=True)
        every = torch.cat([0 * whole, self.local_spread * each, self.spread * whole], dim=-1)
        return every / self.size(h)[..., None]

    def discrepancy(self, z: Tensor, hw: Tensor) -> Tensor:
        r""":math:`S \tau`, the usual scale of e in each pixel, (..., D), at z (..., L) and (h, w)."""
        bands = self.near(z) @ self.log_bands
        return (bands @ self.interpolation + self.log_discrepancy).exp() * self.size(self.split(hw)[0])

    def shares(self, z: Tensor) -> Tensor:
        """Probability of each of `WIDTHS` in each pixel, (..., K, D), for stars with latents (..., L)."""
        shares = torch.einsum("...c,ckd->...kd", self._kinds(z), self.share.to(z.dtype))
        return shares / shares.sum(-2, keepdim=True)  # in half precision the sum is only roughly 1

    def _kinds(self, z: Tensor) -> Tensor:
        """The weight of each kind of star, (..., kinds), with sum 1."""
        return self.near(z) @ torch.nn.functional.one_hot(self.kind, len(self.share)).to(z.dtype)


def _hats(bands: int, size: int) -> Tensor:
    """Piecewise linear functions of the pixel, (bands, D), each 1 at its own knot, with sum 1 everywhere."""
    position = torch.linspace(0, bands - 1, size)
    return (1 - (position - torch.arange(bands)[:, None]).abs()).clamp_min(0)
