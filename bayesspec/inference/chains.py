"""One chain of Pyro's NUTS, which asks for densities where a kernel would compute them, and may jump."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer import NUTS
from torch import Tensor

__all__ = ["Chain", "Question", "Settings", "run_chain"]

SPREAD = 1.5
"""Starts are normal about the modes, this many times as wide as Laplace's approximation."""


class Settings(NamedTuple):
    """Of all chains, see `nuts_draws`; `adapt_mass`: adapt a mass matrix; `jumps`: tried each time."""

    warmup: int
    draws: int
    target_accept: float
    max_tree_depth: int
    budget: int
    adapt_mass: bool
    jumps: int


class Question(NamedTuple):
    """What a chain asks: the density and its gradient at a point, or where a jump leads from there."""

    u: Tensor
    jump: tuple[int, float] | None = None
    """None: the density and its gradient there. Else: where jumps lead from there; how often that was asked
    before, and the log density there."""


@dataclass
class Chain:
    """What one chain leaves behind: positions in u, (warmup + draws, d), and statistics of every draw."""

    u: list[NDArray] = field(default_factory=list)
    stats: dict[str, list[float]] = field(default_factory=dict)
    spent: bool = False


def run_chain(
    size: int,
    settings: Settings,
    count: Callable[[float], None],
    begin: Tensor | None,
    ask: Callable[[Question], tuple[Tensor, Tensor]],
) -> Chain:
    """One chain of Pyro's NUTS in u, (size,).

    Arguments:
        size: Dimensions.
        settings: Of all chains.
        count: Called with the mean acceptance probability of every trajectory.
        begin: Where, (size,); None: at random about the mode.
        ask: Answers questions.
    """

    def potential(point: dict[str, Tensor]) -> Tensor:
        return _Potential.apply(point["u"], *ask(Question(point["u"].detach())))

    kernel = _Kernel(
        potential_fn=potential,
        full_mass=settings.adapt_mass,
        adapt_mass_matrix=settings.adapt_mass,
        target_accept_prob=settings.target_accept,
        max_tree_depth=settings.max_tree_depth,
    )
    begin = SPREAD * torch.randn(size, dtype=torch.float64) if begin is None else begin
    kernel.initial_params = {"u": begin}
    kernel.setup(settings.warmup)
    chain, point = Chain(), kernel.initial_params
    for number in range(settings.warmup + settings.draws):
        if not chain.spent and sum(chain.stats.get("n_steps", [])) >= settings.budget:
            chain.spent, kernel._max_tree_depth = True, 1
        step_size = kernel.step_size
        jumped = kernel.jump(ask, number) if settings.jumps else 0
        point = kernel.sample(point)
        chain.u.append(point["u"].detach().numpy().copy())
        last = {**kernel.last, "step_size": step_size} | ({"jumped": jumped} if settings.jumps else {})
        for name, value in last.items():
            chain.stats.setdefault(name, []).append(value)
        count(kernel.last["acceptance_rate"])
    return chain


class _Potential(torch.autograd.Function):
    """A number whose gradient is known: what Pyro's integrator differentiates."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, log_density: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return -log_density

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return -grad * gradient, None, None


class _Kernel(NUTS):
    """Pyro's NUTS, which keeps what it knows of the last draw: Pyro itself counts divergences, no more."""

    def jump(self, ask: Callable[[Question], tuple[Tensor, Tensor]], number: int) -> int:
        """Be elsewhere, where jumps are accepted, and how many were: the next trajectory begins there."""
        z, potential, _ = self._fetch_from_cache()
        u, accepted = ask(Question(z["u"].detach(), (number, -float(potential))))
        if accepted:
            value, gradient = ask(Question(u))
            self._cache({"u": u}, -value, {"u": -gradient})
        return int(accepted)

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        self.leaves: list[Any] = []
        self.start_energy = math.nan
        point = super().sample(params)

        # The draw is one of the trajectory's points, or the one it began from.
        z, potential, _ = self._fetch_from_cache()
        energy = self.start_energy
        for leaf in self.leaves:
            if leaf.z_proposal is z:
                energy = self.start_energy - float(leaf.weight)
        self.last = {
            "energy": energy,
            "lp": -float(potential),
            "tree_depth": (len(self.leaves) + 1).bit_length() - 1,
            "n_steps": len(self.leaves),
            "acceptance_rate": float(np.mean([float(leaf.sum_accept_probs) for leaf in self.leaves])),
            "diverging": any(bool(leaf.diverging) for leaf in self.leaves),
        }
        return point

    def _build_basetree(
        self, z: Any, r: Any, z_grads: Any, log_slice: Tensor, direction: int, energy_current: Tensor
    ) -> Any:
        leaf = super()._build_basetree(z, r, z_grads, log_slice, direction, energy_current)
        self.start_energy = float(energy_current)
        self.leaves.append(leaf)
        return leaf
