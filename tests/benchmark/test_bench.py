"""The benchmark compares engines on one density: the one in JAX has to be the model's."""

import numpy as np
import pytest
import torch
from astropy.table import Table

from bayesspec import Observation, load_model
from bayesspec.batch import ObservationBatch
from bayesspec.benchmark.bench import COLUMNS, bench_posterior, ratios
from bayesspec.exceptions import BayesspecError
from bayesspec.inference.density import log_joint


@pytest.fixture(scope="module")
def model():
    return load_model("kang2021")


def star(model, *, gap=False, name="star"):
    """Noise about a spectrum of the model, some pixels missing."""
    rng = np.random.default_rng(5)
    clean = model.generator(model.prior.centres[3, 0]).numpy()
    mask = rng.random(2048) < 0.02
    mask[700:900] |= gap
    flux = clean + 0.1 * rng.standard_normal(2048)
    return Observation(model.grid.wavelength, flux, mask=mask, name=name)


def test_ratios_are_the_median_over_stars():
    """Engines are compared star by star."""
    speed = {"importance": [100.0, 200.0, 900.0], "pyro": [1.0, 10.0, 3.0], "numpyro": [50.0, 20.0, 90.0]}
    rows = [(f"s{n}", name, x[n], 2 * x[n]) for n in range(3) for name, x in speed.items()]
    table = Table(rows=rows, names=["star", "engine", "ess_per_second", "ess_per_second_after_warmup"])
    found = ratios(table)
    assert found["pyro"]["ess_per_second"] == pytest.approx(100)
    assert found["numpyro"]["ess_per_second"] == pytest.approx(10)
    assert found["numpyro"]["ess_per_second_after_warmup"] == pytest.approx(10)


def test_refuses_what_the_density_in_jax_is_not_for(model):
    """Known scales and several exposures are not in it."""
    known = Observation(model.grid.wavelength, np.ones(2048), name="known", scale=1.0)
    two = Observation.from_exposures([star(model), star(model)], name="two")
    batch = ObservationBatch.from_observations([star(model), known, two], model.grid)
    with pytest.raises(BayesspecError, match=r"unknown scale, not known, two$"):
        bench_posterior(model, batch)


@pytest.mark.parametrize("gap", [False, True])
def test_density_in_jax_is_the_models(model, gap):
    """Value by value, near the star and far from it, with and without missing pixels."""
    pytest.importorskip("jax", reason="NumPyro and JAX are for the benchmark only")
    from bayesspec.benchmark.jax_density import jax_log_density

    batch = ObservationBatch.from_observations([star(model, gap=gap)], model.grid)
    z = model.prior.centres[:, :4].flatten(0, 1)
    scale = torch.linspace(-0.5, 0.5, len(z))[:, None]
    here, _ = log_joint(model, batch.select([0] * len(z)), z, scale, classes="marginal")
    density = jax_log_density(model)
    data = batch.flux[0, 0].numpy(), batch.mask[0, 0].numpy()
    there = [float(density(row, *data)) for row in torch.cat([z, scale], dim=-1).numpy()]
    np.testing.assert_allclose(there, here.numpy(), rtol=1e-5, atol=0.02)


def test_a_benchmark_that_is_done_is_not_run_again(model, tmp_path):
    """Rows of the file are kept; other settings are refused."""
    pytest.importorskip("numpyro", reason="NumPyro and JAX are for the benchmark only")
    batch = ObservationBatch.from_observations([star(model)], model.grid)
    meta = {"model": model.card["sha256"], "warmup": 60, "draws": 60, "stock_draws": 20, "seed": 0}
    engines = ["importance", "nuts", "pyro", "numpyro"]
    rows = [("star", name, 100.0 + n, 1.0, 2.0, 1.0, 0.0, 50.0, 100.0) for n, name in enumerate(engines)]
    Table(rows=rows, names=COLUMNS, meta=meta).write(tmp_path / "bench.ecsv")
    settings = {"warmup": 60, "draws": 60, "stock_draws": 20, "out": tmp_path / "bench.ecsv"}
    found = bench_posterior(model, batch, **settings)
    assert [tuple(row) for row in found] == rows
    with pytest.raises(BayesspecError, match="another model or other settings"):
        bench_posterior(model, batch, **{**settings, "seed": 1})


@pytest.mark.slow
def test_every_engine_runs_on_every_star(model):
    """A row for each star and engine, and the random numbers of the caller as they were."""
    pytest.importorskip("numpyro", reason="NumPyro and JAX are for the benchmark only")
    batch = ObservationBatch.from_observations(
        [star(model, name="a"), star(model, gap=True, name="b")], model.grid
    )
    state = torch.get_rng_state()
    table = bench_posterior(model, batch, warmup=60, draws=60, stock_draws=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(table["star"]) == ["a"] * 4 + ["b"] * 4
    assert set(table["engine"]) == {"importance", "nuts", "pyro", "numpyro"}
    assert (table["ess"] > 0).all()
    assert (table["core_seconds"] > table["warmup"]).all()
