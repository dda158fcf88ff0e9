"""Quadrature nodes on the real line: dense around a few centres, and sparser with distance from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["close_about"]


ROUGH = 8
"""Points on either side of each centre, from which first guesses of the nodes are interpolated."""

STEPS = 2
"""Steps of Halley's method that make the nodes exact."""


@torch.no_grad()
def close_about(
    centres: Sequence[Tensor], widths: Sequence[Tensor], lower: Tensor, upper: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    r"""Nodes and weights of a quadrature from `lower` to `upper`.

    The trapezoid rule with equal steps of :math:`u(e) = \sum_k \mathrm{asinh}((e - c_k) / w_k)`: for a smooth
    function that vanishes at both ends its error falls exponentially with the number of nodes (Trefethen &
    Weideman 2014, SIAM Review 56, 385).

    Arguments:
        centres: Values c around which the function is narrow, each (...).
        widths: Widths w there, positive, each (...).
        lower: Lower end, where the function has vanished, (...).
        upper: Upper end, likewise.
        count: Q, the number of nodes.

    Returns:
        Nodes and their weights, each (Q, ...).

    Example:
        >>> zero, one = torch.zeros(()), torch.ones(())
        >>> e, weight = close_about([zero, 3 * one], [one, 0.1 * one], -9 * one, 9 * one, 40)
        >>> total = (weight * torch.exp(-0.5 * e**2)).sum()
        >>> abs(total / (2 * torch.pi) ** 0.5 - 1) < 1e-5
        tensor(True)
    """
    c, w = (torch.stack(torch.broadcast_tensors(*part, lower)[:-1]) for part in (centres, widths))
    lower, upper = (end.expand(c.shape[1:]) for end in (lower, upper))

    def u(e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u and its first two derivatives at e."""
        total = slope = bend = torch.zeros_like(e)
        for centre, width in zip(c, w, strict=True):
            x = (e - centre) / width
            near = (1 + x.square()).rsqrt()
            total, slope = total + torch.asinh(x), slope + near / width
            bend = bend - (near / width).square() * near * x
        return total, slope, bend

    # First guesses, by interpolating u between points that are distributed like the nodes.
    away = torch.linspace(-1, 1, 2 * ROUGH + 1, dtype=c.dtype, device=c.device)
    away = away.reshape(-1, *[1] * c.dim())
    reach = torch.asinh((upper - lower) / w)
    rough = (c + w * torch.sinh(away * reach)).flatten(0, 1)
    rough = torch.cat([lower[None], upper[None], rough.clamp(lower, upper)]).sort(0).values
    known = u(rough)[0]
    begin, end = known[0], known[-1]
    step = (end - begin) / (count - 1)
    number = torch.arange(count, dtype=c.dtype, device=c.device).reshape(-1, *[1] * (c.dim() - 1))
    wanted = begin + number * step
    above = torch.searchsorted(known.movedim(0, -1).contiguous(), wanted.movedim(0, -1).contiguous())
    above = above.movedim(-1, 0).clamp(1, len(rough) - 1)
    (left, right), (low, high) = ([part.gather(0, above - k) for k in (1, 0)] for part in (rough, known))
    share = ((wanted - low) / (high - low).clamp_min(torch.finfo(c.dtype).tiny)).clamp(0, 1)
    e = left + share * (right - left)
    for _ in range(STEPS):
        found, slope, bend = u(e)
        newton = (wanted - found) / slope
        moved = e + newton / (1 + 0.5 * newton * bend / slope)
        e = torch.minimum(torch.maximum(moved, left), right)
    return e, step / u(e)[1]
