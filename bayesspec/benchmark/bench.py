"""Speed: effective draws per core-second of the engines here, of Pyro and of NumPyro, on the same density."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
import pyro
import torch
from astropy.table import Table
from numpy.typing import NDArray

from bayesspec.batch import ObservationBatch
from bayesspec.exceptions import BayesspecError
from bayesspec.inference.convergence import chain_diagnostics
from bayesspec.inference.density import log_joint
from bayesspec.inference.importance import importance_draws
from bayesspec.inference.nuts import nuts_draws
from bayesspec.inference.scan import LatentScan
from bayesspec.model import StellarModel
from bayesspec.runtime import progress_bar, seeded

__all__ = ["bench_posterior", "ratios"]

COLUMNS = ["star", "engine", "ess", "r_hat", "core_seconds", "warmup", "compilation"]
COLUMNS += ["ess_per_second", "ess_per_second_after_warmup"]

CHAINS = 4
"""Number of chains of the two NUTS samplers that run several at once."""


class Run(NamedTuple):
    """One star and one engine; times are core-seconds, summed over threads."""

    ess: float
    """Bulk effective sample size of the worst latent."""
    r_hat: float
    """R-hat of the worst latent; 1 for independent draws."""
    seconds: float
    """Time for the draws, including optimisation or warm-up."""
    warmup: float
    """Time for the warm-up, included in `seconds`."""
    compilation: float = 0.0
    """Time to compile, not included in `seconds`."""


Engine = Callable[[ObservationBatch], Run]


def bench_posterior(
    model: StellarModel,
    batch: ObservationBatch,
    *,
    warmup: int = 300,
    draws: int = 500,
    stock_draws: int = 200,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = False,
) -> Table:
    """Time the engines on the same spectra, one spectrum after the other.

    `importance` and `nuts` are this package's, with their defaults. `pyro` is Pyro's NUTS as in its manual,
    with one chain on the same Pyro model. `numpyro` is NumPyro's NUTS with vectorised chains on the same
    density and weights in JAX, compiled before timing starts.

    Arguments:
        model: The model.
        batch: Stars with one exposure and a free scale, as the JAX density requires.
        warmup: Warm-up draws of NumPyro.
        draws: Draws of each NumPyro chain.
        stock_draws: Draws of stock Pyro, which is slow, and also its number of warm-up draws.
        seed: Random seed.
        out: A table (ECSV) that is written after every run; an existing one is continued.
        progress: Show a bar on stderr.

    Returns:
        A row for each star and engine: effective draws of the worst latent and its R-hat, core-seconds
        (warm-up included, and separately), those of compilation, and effective draws per core-second with and
        without the warm-up.

    Raises:
        BayesspecError: if NumPyro is not installed, a star has several exposures or a known scale, or `out`
            is for another model or other settings.
    """
    if model.residual is not None:
        raise BayesspecError(f"{model.name}: the density in JAX is only for models without a residual term")
    odd = ((~batch.mask).any(-1).sum(-1) > 1) | ~batch.free_scale[:, 0]
    if odd.any():
        names = ", ".join(batch.names[n] for n in odd.nonzero()[:, 0].tolist())
        raise BayesspecError(f"the benchmark needs stars with one exposure and unknown scale, not {names}")
    scan = LatentScan(model)
    importance_draws(model, batch.select([0]), seed=seed, scan=scan)  # so that imports are not timed
    engines: dict[str, Engine] = {
        "importance": lambda star: _importance(model, star, scan, seed),
        "nuts": lambda star: _nuts(model, star, scan, seed),
        "pyro": lambda star: _stock_pyro(model, star, stock_draws, seed),
        "numpyro": _numpyro(model, batch.select([0]), scan, warmup, draws, seed),
    }
    settings = {"model": model.card.get("sha256", ""), "warmup": warmup, "draws": draws}
    settings |= {"stock_draws": stock_draws, "seed": seed}
    rows = _begun(out, settings)
    known = {row[:2] for row in rows}
    runs = [(n, name) for n in range(len(batch)) for name in engines if (batch.names[n], name) not in known]
    with progress_bar("bench posterior", len(rows) + len(runs), len(rows), enabled=progress) as report:
        for n, name in runs:
            run = engines[name](batch.select([n]))
            speeds = run.ess / run.seconds, run.ess / (run.seconds - run.warmup)
            rows.append((batch.names[n], name, *run, *speeds))
            if out is not None:
                Table(rows=rows, names=COLUMNS, meta=settings).write(out, overwrite=True)
            report(len(rows), speeds[0])
    return Table(rows=rows, names=COLUMNS, meta=settings)


def _begun(out: str | Path | None, settings: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The rows of a benchmark that was stopped."""
    if out is None or not Path(out).exists():
        return []
    table = Table.read(out)
    if {name: table.meta.get(name) for name in settings} != settings:
        raise BayesspecError(f"{out}: a benchmark of another model or other settings")
    return [(str(row[0]), str(row[1]), *map(float, list(row)[2:])) for row in table]


def ratios(table: Table, engine: str = "importance") -> dict[str, dict[str, float]]:
    """Speed of an engine relative to each other one: the median over stars of their ratios.

    Arguments:
        table: From `bench_posterior`.
        engine: The engine.

    Returns:
        `{other: {column: ratio}}` for the two columns of effective draws per core-second.
    """
    columns = ["ess_per_second", "ess_per_second_after_warmup"]
    own = table[table["engine"] == engine]
    others = sorted(set(table["engine"]) - {engine})
    return {
        other: {
            column: float(np.median(own[column] / table[table["engine"] == other][column]))
            for column in columns
        }
        for other in others
    }


def _importance(model: StellarModel, star: ObservationBatch, scan: LatentScan, seed: int) -> Run:
    start = time.process_time()
    found = importance_draws(model, star, seed=seed, scan=scan)
    return Run(float(found.diagnostics["ess_bulk"][0]), 1.0, time.process_time() - start, 0.0)


def _nuts(model: StellarModel, star: ObservationBatch, scan: LatentScan, seed: int) -> Run:
    start = time.process_time()
    found = nuts_draws(model, star, chains=CHAINS, seed=seed, scan=scan)
    seconds = time.process_time() - start
    # All chains run in step, so the cost of a draw is that of the longest trajectory.
    warm, drawn = (stats["n_steps"].max(1).sum() for stats in (found.warmup_stats, found.sample_stats))
    return _run(found.z[0], seconds, float(seconds * warm / (warm + drawn)))


def _stock_pyro(model: StellarModel, star: ObservationBatch, draws: int, seed: int) -> Run:
    marks: list[float] = []

    def mark(kernel: object, samples: object, stage: str, i: int) -> None:
        if not marks and not stage.startswith("Warmup"):
            marks.append(time.process_time())

    start = time.process_time()
    with seeded(seed), pyro.get_param_store().scope():
        mcmc = pyro.infer.MCMC(
            pyro.infer.NUTS(model),
            num_samples=draws,
            warmup_steps=draws,
            disable_progbar=True,
            hook_fn=mark,
        )
        mcmc.run(star)
        z = mcmc.get_samples()["z"].reshape(1, draws, -1).numpy()
    return _run(z, time.process_time() - start, marks[0] - start)


def _numpyro(
    model: StellarModel, example: ObservationBatch, scan: LatentScan, warmup: int, draws: int, seed: int
) -> Engine:
    try:
        import jax
        import numpyro
        import numpyro.distributions as dist
    except ModuleNotFoundError as error:
        raise BayesspecError('the benchmark needs NumPyro: pip install "bayesspec-stars[bench]"') from error
    from .jax_density import jax_log_density

    density = jax_log_density(model)
    _check_same_density(model, example, density)

    def program(flux: object, mask: object) -> None:
        everywhere = dist.ImproperUniform(dist.constraints.real_vector, (), (model.latent_dim + 1,))
        numpyro.factor("density", density(numpyro.sample("theta", everywhere), flux, mask))

    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(program),
        num_warmup=warmup,
        num_samples=draws,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
        jit_model_args=True,
    )

    def timed(star: ObservationBatch) -> Run:
        data = star.flux[0, 0].numpy(), star.mask[0, 0].numpy()
        begin = time.process_time()
        begins = scan.starts(star, CHAINS)
        start = {"theta": torch.cat([begins.z[0], begins.log_scale[0]], dim=-1).numpy()}
        mcmc.warmup(jax.random.PRNGKey(seed), *data, init_params=start)
        middle = time.process_time()
        mcmc.run(mcmc.post_warmup_state.rng_key, *data)
        z = np.asarray(mcmc.get_samples(group_by_chain=True)["theta"])[..., : model.latent_dim]
        run = _run(z, time.process_time() - begin, middle - begin)
        mcmc.post_warmup_state = None
        return run

    compilation: list[float] = []

    def engine(star: ObservationBatch) -> Run:
        if compilation:
            return timed(star)
        first, again = timed(example), timed(example)
        compilation.append(first.seconds - again.seconds)
        return timed(star)._replace(compilation=compilation[0])

    return engine


def _run(z: NDArray, seconds: float, warmup: float) -> Run:
    """The `Run` of draws (chains, draws, L)."""
    found = chain_diagnostics(z)
    return Run(found["ess_bulk"], found["r_hat"], seconds, warmup)


def _check_same_density(
    model: StellarModel, star: ObservationBatch, density: Callable[..., SupportsFloat]
) -> None:
    z = model.prior.centres[:, 0]
    scale = torch.linspace(-0.1, 0.1, len(z))[:, None]
    here, _ = log_joint(model, star.select([0] * len(z)), z, scale, classes="marginal")
    data = star.flux[0, 0].numpy(), star.mask[0, 0].numpy()
    there = torch.tensor([float(density(row, *data)) for row in torch.cat([z, scale], dim=-1).numpy()])
    if not torch.allclose(here, there, rtol=1e-4, atol=0.1):
        raise BayesspecError(f"the density in JAX is different: {there.tolist()}, not {here.tolist()}")
