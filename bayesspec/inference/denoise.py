"""`bayesspec.denoise`: observations in, a `Result` out, whatever the engine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bayesspec.bundle import load_model
from bayesspec.distributions import NoiseFlow
from bayesspec.exceptions import BayesspecError, ObservationError
from bayesspec.model import StellarModel
from bayesspec.observation import Observation, ObservationBatch
from bayesspec.runtime import progress_bar, seeded

from .map import MapEstimate, map_estimate
from .result import Failure, Result
from .scan import LatentScan

__all__ = ["METHODS", "denoise"]

METHODS = {"map": map_estimate}
"""The engines, by the name that `method` gives."""

RARE = 1e-3
"""Outlier score below which a star is said to be outside its class."""

EXCESS_NOISE = 4.0
"""Mean square of the whitened noise above which it is said that the model does not describe the data."""


def denoise(
    observations: Observation | Iterable[Observation],
    *,
    model: StellarModel | str | Path = "kang2021",
    method: Literal["map"] = "map",
    seed: int = 0,
    batch_size: int = 64,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = False,
    **options: Any,
) -> Result:
    """Infer the clean spectrum and the class of every star.

    Arguments:
        observations: One star or many, from `read` or made by hand.
        model: A model, the name of a shipped one, or the folder of a bundle.
        method: `map`: the mode of the posterior, eq. (7).
        seed: Of everything random.
        batch_size: Stars in memory at once.
        on_error: What to do with a star that cannot be used (no observed pixel on the grid): raise, or leave
            it out and list it in the result's `failures`.
        progress: Show a bar on stderr.
        **options: For the engine, see `map_estimate`.

    Returns:
        A `Result` with a row for every usable star, in the order of the input.

    Raises:
        ObservationError: if a star cannot be used and `on_error` is "raise", or none can.
        BayesspecError: if the method is not known.

    Example:
        >>> import numpy as np
        >>> wavelength = np.linspace(3900, 9100, 4000)
        >>> star = Observation(wavelength, 5e-17 * (wavelength / 6000) ** -2, name="hot")
        >>> res = denoise(star, model="kang2021", method="map", steps=50)
        >>> res.flux.shape, res.classes[res.best_class[0]] in ("O", "B", "A", "WD", "CV")
        ((1, 2048), True)
    """
    if method not in METHODS:
        raise BayesspecError(f"no method is called {method!r}; there is {', '.join(sorted(METHODS))}")
    if on_error not in ("raise", "skip"):
        raise BayesspecError(f"on_error is 'raise' or 'skip', not {on_error!r}")
    stars = [observations] if isinstance(observations, Observation) else list(observations)
    network = model if isinstance(model, StellarModel) else load_model(model)
    usable, failures = _usable(stars, network)
    if failures and (on_error == "raise" or not usable):
        raise ObservationError("; ".join(failure.reason for failure in failures))
    if not usable:
        raise ObservationError("no observation was given")

    device = network.class_logits.device
    scan = LatentScan(network)
    rarity = _PriorTail(network, seed)
    parts = []
    with progress_bar(f"denoise ({method})", len(usable), enabled=progress) as report:
        for first in range(0, len(usable), batch_size):
            chunk = usable[first : first + batch_size]
            batch = ObservationBatch.from_observations(
                chunk, network.grid, device=device, dtype=torch.float32
            )
            with seeded(seed):
                estimate = METHODS[method](network, batch, scan=scan, **options)
            parts.append(_summary(network, batch, estimate, rarity))
            report(first + len(chunk), len(chunk))

    return Result(
        method=method,
        model_name=network.name,
        model_version=str(network.card.get("sha256", ""))[:12],
        grid=network.grid,
        classes=network.classes,
        names=tuple(star.name for star in usable),
        units=tuple(star.unit for star in usable),
        failures=tuple(failures),
        warnings=tuple(note for part in parts for note in part.pop("warnings")),
        **_stack(parts),
    )


def _usable(stars: list[Observation], model: StellarModel) -> tuple[list[Observation], list[Failure]]:
    usable, failures = [], []
    for position, star in enumerate(stars):
        try:
            star.on_grid(model.grid)
            usable.append(star)
        except ObservationError as error:
            failures.append(Failure(position, star.name, str(error)))
    return usable, failures


class _PriorTail:
    """How rare a latent is in a class: the share of the class's own draws that are less probable."""

    @torch.no_grad()
    def __init__(self, model: StellarModel, seed: int, draws: int = 4096) -> None:
        self.prior = model.prior
        with seeded(seed):
            every = torch.arange(len(model.classes), device=model.class_logits.device)
            of_class = self.prior(every)
            self.sorted = of_class.log_prob(of_class.sample((draws,))).T.sort(-1).values.contiguous()

    def __call__(self, z: Tensor, klass: Tensor) -> Tensor:
        density = self.prior(klass).log_prob(z)
        below = torch.searchsorted(self.sorted[klass], density[:, None]).squeeze(-1)
        return (below + 1) / (self.sorted.shape[-1] + 1)


@torch.no_grad()
def _summary(
    model: StellarModel, batch: ObservationBatch, estimate: MapEstimate, rarity: _PriorTail
) -> dict[str, Any]:
    spectrum = model.generator(estimate.z)
    scale = estimate.log_scale.exp()
    flow = NoiseFlow(spectrum[:, None], model.noise, scale, ~batch.mask)
    used = flow.used
    xi = flow.xi(flow.residual(batch.flux))
    chi2 = torch.where(used, xi, 0.0).square().sum((-2, -1)) / used.sum((-2, -1)).clamp_min(1)

    # One flux unit for the star: that of its exposures, each by the pixels it has.
    weight = (~batch.mask).sum(-1).to(scale.dtype)
    unit = (weight * scale * batch.unit_flux).sum(-1) / weight.sum(-1)
    outlier = rarity(estimate.z, estimate.klass)
    columns = {
        "model_flux": spectrum,
        "unit_flux": unit,
        "z": estimate.z,
        "class_probabilities": model.log_joint_classes(estimate.z).softmax(-1),
        "best_class": estimate.klass,
        "log_density": estimate.log_density,
        "scale": scale,
        "exposure_unit": batch.unit_flux,
        "observed_flux": batch.flux,
        "observed_ivar": batch.ivar,
        "observed_mask": batch.mask,
        "chi2": chi2,
        "used_fraction": used.to(scale.dtype).sum((-2, -1)) / (~batch.mask).any(-1).sum(-1) / used.shape[-1],
        "observed_fraction": batch.observed_fraction,
        "outlier_score": outlier,
    }
    arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in columns.items()}
    arrays["warnings"] = [_notes(*row) for row in zip(arrays["chi2"], arrays["outlier_score"], strict=True)]
    return arrays


def _notes(chi2: float, outlier: float) -> tuple[str, ...]:
    notes = []
    if outlier < RARE:
        notes.append(f"outside its class: latents rarer than this have probability {outlier:.1g}")
    if chi2 > EXCESS_NOISE:
        notes.append(f"outside the model: the noise is {np.sqrt(chi2):.1f} times as large as the model's")
    return tuple(notes)


def _stack(parts: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    depth = max(part["scale"].shape[1] for part in parts)

    def pad(name: str, array: np.ndarray) -> np.ndarray:
        """Stars of several batches may have different numbers of exposures."""
        if name not in ("scale", "exposure_unit", "observed_flux", "observed_ivar", "observed_mask"):
            return array
        missing = [(0, 0), (0, depth - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
        empty = {"observed_mask": True, "scale": 1.0, "exposure_unit": 1.0}.get(name, 0.0)
        return np.pad(array, missing, constant_values=empty)

    return {name: np.concatenate([pad(name, part[name]) for part in parts]) for name in parts[0]}
