"""One training loop for every network: deterministic, checkpointed as safetensors, resumable."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bayesspec.exceptions import BayesspecError
from bayesspec.runtime import progress_bar

__all__ = ["minimise"]

CHECKPOINT_SECONDS = 60.0


def minimise(
    network: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    weight_decay: float = 1e-4,
    label: str = "training",
    checkpoint: Path | None = None,
    progress: bool = False,
) -> float:
    """Minimise a stochastic loss over a network's parameters, in place, with AdamW.

    The learning rate rises over the first twentieth of the steps and falls to zero along a cosine. All random
    numbers come from the generator that is passed to the loss, so a run that was stopped and resumed from its
    checkpoint ends with the same weights as an uninterrupted one.

    Arguments:
        network: The network to train.
        loss: Draws a batch with the generator and returns a scalar.
        steps: Number of updates.
        learning_rate: Maximum learning rate.
        seed: Seed of the generator.
        weight_decay: Weight decay of AdamW.
        label: Text beside the bar.
        checkpoint: A safetensors file that is written every minute and at the end, and resumed from.
        progress: Show a bar on stderr.

    Returns:
        The loss, averaged over the last steps.

    Raises:
        BayesspecError: if the loss is not finite, or the checkpoint cannot be read or written.
    """
    parameters = dict(network.named_parameters())
    optimiser = torch.optim.AdamW(
        parameters.values(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay
    )
    rng = torch.Generator().manual_seed(seed)
    start, running = 0, math.nan
    if checkpoint is not None and checkpoint.exists():
        start, running = _restore(checkpoint, network, optimiser, parameters, rng)

    with progress_bar(label, steps, start, enabled=progress) as report:
        saved = time.monotonic()
        for step in range(start, steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * _schedule(step, steps)
            value = loss(rng)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimiser.step()

            current = float(value.detach())
            if not math.isfinite(current):
                raise BayesspecError(f"{label}: the loss is {current} at step {step}")
            running = current if math.isnan(running) else 0.99 * running + 0.01 * current
            report(step + 1, running)
            if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
                _save(checkpoint, network, optimiser, parameters, rng, step + 1, running)
                saved = time.monotonic()

    if checkpoint is not None and start < steps:
        _save(checkpoint, network, optimiser, parameters, rng, steps, running)
    return running


def _schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _save(
    path: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    rng: torch.Generator,
    step: int,
    running: float,
) -> None:
    tensors = {f"network.{k}": v.detach().contiguous() for k, v in network.state_dict().items()}
    for name, parameter in parameters.items():
        tensors |= {f"adam.{name}.{k}": torch.as_tensor(v) for k, v in optimiser.state[parameter].items()}
    tensors["rng"] = rng.get_state()
    fresh = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, fresh, metadata={"progress": json.dumps({"step": step, "running": running})})
        os.replace(fresh, path)  # a kill leaves the old checkpoint or the new one, both complete
    except (OSError, SafetensorError) as error:
        raise BayesspecError(f"{path}: the checkpoint cannot be written ({error})") from error


def _restore(
    path: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    rng: torch.Generator,
) -> tuple[int, float]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            progress = json.loads(file.metadata()["progress"])
        network.load_state_dict(
            {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        )
        for name, parameter in parameters.items():
            prefix = f"adam.{name}."
            optimiser.state[parameter] = {
                k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
            }
        rng.set_state(tensors["rng"])
        return progress["step"], progress["running"]
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        cause = " ".join(str(error).split())
        raise BayesspecError(f"{path}: not a checkpoint of this training ({cause})") from error
