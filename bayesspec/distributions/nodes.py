"""Nodes of an integral over the line: close together about a few values, ever farther apart elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["close_about"]


@torch.no_grad()
def close_about(
    centres: Sequence[Tensor], widths: Sequence[Tensor], lower: Tensor, upper: Tensor, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    r"""Nodes and weights of a quadrature from `lower` to `upper`.

    The trapezoid rule with equal steps of :math:`u(e) = \sum_k \mathrm{asinh}((e - c_k) / w_k)`: for a smooth
    function that vanishes at both ends its error falls exponentially with the number of nodes (Trefethen &
    Weideman 2014, SIAM Review 56, 385). Between two centres the nodes of both are at hand.

    Arguments:
        centres: Values c about which the function is narrow, each (...).
        widths: How narrow, w, positive, each (...).
        lower: Where it has vanished, below all that counts, (...).
        upper: Likewise above.
        count: Q, the number of nodes.

    Yields:
        Q times a node and its weight, each (...).

    Example:
        >>> zero, one = torch.zeros(()), torch.ones(())
        >>> nodes = close_about([zero, 3 * one], [one, 0.1 * one], -9 * one, 9 * one, 40)
        >>> total = sum(weight * torch.exp(-0.5 * e**2) for e, weight in nodes)
        >>> abs(total / (2 * torch.pi) ** 0.5 - 1) < 1e-5
        tensor(True)
    """
    c, w = (torch.stack(torch.broadcast_tensors(*part, lower)[:-1]) for part in (centres, widths))
    inverse = 1 / w

    def u(e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """And its first two derivatives."""
        x = (e - c) * inverse
        size, square = x.abs(), 1 + x.square()
        near = square.rsqrt()
        each, slope = torch.log(size + square * near), near * inverse
        return torch.copysign(each, x).sum(0), slope.sum(0), -(slope.square() * near * x).sum(0)

    def stride(e: Tensor) -> Tensor:
        return step / ((e - c).square() + w.square()).rsqrt().sum(0)

    begin = u(lower)[0]
    step = (u(upper)[0] - begin) / (count - 1)
    e = lower.expand(c.shape[1:])
    weight = stride(e)
    yield e, weight
    for node in range(1, count):
        # Where half a stride ahead points to, and from there to where it belongs, in one step of Halley's.
        e = e + stride(e + 0.5 * weight)
        found, slope, bend = u(e)
        newton = (begin + node * step - found) / slope
        e = e + newton / (1 + 0.5 * newton * bend / slope)
        weight = stride(e)
        yield e, weight
