"""Laws of the ArviZ converter, under either generation of ArviZ, in an environment that needs no torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from bayesspec.inference.arviz import (
    ArvizInput,
    chain_diagnostics,
    import_arviz,
    pareto_smooth,
    to_arviz,
)

arviz = import_arviz()
MODERN = int(arviz.__version__.split(".")[0]) >= 1

# ArviZ 0.23 draws with what matplotlib 3.11 calls deprecated, and says so in the name of its caller.
pytestmark = pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")


@pytest.fixture
def star() -> ArvizInput:
    """A straight line in noise, two exposures with missing pixels, and draws of its exact posterior."""
    rng = np.random.default_rng(0)
    chains, draws, thin, exposures, size, sigma = 4, 200, 4, 2, 32, 0.1
    x = np.linspace(-1, 1, size)
    used = rng.random((exposures, size)) > 0.2
    flux = np.where(used, 1 + 0.3 * x + sigma * rng.standard_normal(used.shape), 0.0)

    design = np.stack([np.ones_like(x), x], -1)
    precision = sum(design[row].T @ design[row] for row in used) / sigma**2
    mean = np.linalg.solve(precision, sum(design[row].T @ y[row] for row, y in zip(used, flux, strict=True)))
    covariance = np.linalg.inv(precision)
    z = rng.multivariate_normal(mean / sigma**2, covariance, (chains, draws))
    clean = z @ design.T
    terms = -0.5 * ((flux - clean[:, :, None]) / sigma) ** 2 - np.log(sigma * np.sqrt(2 * np.pi))
    stats = {
        "energy": rng.standard_normal((chains, draws)),
        "lp": terms[..., used].sum(-1),
        "step_size": np.full((chains, draws), 0.8),
        "tree_depth": rng.integers(1, 4, (chains, draws)),
        "acceptance_rate": rng.random((chains, draws)),
        "diverging": np.zeros((chains, draws), bool),
    }
    return ArvizInput(
        z=z,
        log_scale=0.1 * rng.standard_normal((chains, draws, 1)),
        free=[1],
        class_probability=np.broadcast_to([0.25, 0.75, 0.0], (chains, draws, 3)),
        classes=("hot", "warm", "cool"),
        wavelength=np.linspace(4000, 9000, size),
        flux=flux,
        used=used,
        log_likelihood=np.where(used, terms, np.nan),
        replicated=clean[:, ::thin, None] + sigma * rng.standard_normal((chains, draws // thin, *used.shape)),
        clean=clean[:, ::thin],
        thin=thin,
        sample_stats=stats,
        warmup_stats={name: values[:, :20] for name, values in stats.items()},
        attrs={"model": "a straight line"},
    )


def test_every_array_is_under_its_coordinates(star):
    """A group holds the arrays it was given, and a coordinate finds what it names."""
    posterior = to_arviz(star)
    group = posterior["posterior"]
    assert group["z"].dims == ("chain", "draw", "latent")
    np.testing.assert_array_equal(group["z"], star.z)
    np.testing.assert_array_equal(group["log_scale"].sel(exposure=1), star.log_scale[..., 0])

    e, d = np.argwhere(star.used)[40]
    for name in ("log_likelihood", "posterior_predictive", "observed_data"):
        y = posterior[name]["y"]
        at = (y["exposure"] == e) & (y["wavelength"] == star.wavelength[d])
        assert int(at.sum()) == 1
        truth = {
            "log_likelihood": star.log_likelihood,
            "posterior_predictive": star.replicated,
            "observed_data": star.flux,
        }
        np.testing.assert_array_equal(y[..., at.values].squeeze("pixel"), truth[name][..., e, d])

    some = posterior["predictions"]
    np.testing.assert_array_equal(some["draw"], np.arange(200)[::4])
    np.testing.assert_array_equal(some["flux"].sel(wavelength=9000.0), star.clean[..., -1])
    np.testing.assert_array_equal(some["class_probability"].sel({"class": "warm"}), 0.75)
    np.testing.assert_array_equal(posterior["constant_data"]["used"], star.used)
    for name, values in star.sample_stats.items():
        np.testing.assert_array_equal(posterior["sample_stats"][name], values)
        np.testing.assert_array_equal(posterior["warmup_sample_stats"][name], values[:, :20])
    assert posterior["posterior"].attrs["model"] == "a straight line"


def test_container_is_that_of_the_generation(star):
    assert type(to_arviz(star)).__name__ == ("DataTree" if MODERN else "InferenceData")


def test_missing_pixels_are_not_there(star):
    """Whatever stands at a pixel without a term, nothing of it comes through."""
    hidden = ~star.used
    spoiled = replace(
        star,
        flux=np.where(hidden, np.nan, star.flux),
        replicated=np.where(hidden, np.nan, star.replicated),
        log_likelihood=np.where(hidden, np.inf, star.log_likelihood),
    )
    posterior = to_arviz(spoiled)
    for name in ("log_likelihood", "posterior_predictive", "observed_data"):
        assert np.isfinite(posterior[name]["y"]).all()
        assert posterior[name]["y"].sizes["pixel"] == star.used.sum()


def test_known_scales_are_no_parameters(star):
    posterior = to_arviz(replace(star, free=[], log_scale=star.log_scale[..., :0]))
    assert list(posterior["posterior"].data_vars) == ["z"]


def test_summary_has_a_row_for_every_parameter(star):
    table = arviz.summary(to_arviz(star))
    assert list(table.index) == ["z[0]", "z[1]", "log_scale[1]"]
    np.testing.assert_allclose(table["mean"].iloc[:2].astype(float), star.z.mean((0, 1)), atol=1e-3)
    assert (table["r_hat"].astype(float) <= 1.02).all()


def test_loo_is_that_of_the_exact_posterior(star):
    """Two parameters of a linear model: LOO sees every pixel once and about two effective parameters."""
    loo = arviz.loo(to_arviz(star), pointwise=True)
    assert loo.n_data_points == star.used.sum()
    p = loo.p if MODERN else loo.p_loo
    assert 1.0 < float(p) < 4.0
    assert float(np.max(loo.pareto_k)) < 0.7


def test_netcdf_round_trip(star, tmp_path):
    posterior = to_arviz(star)
    path = tmp_path / "star.nc"
    posterior.to_netcdf(str(path))
    back = arviz.from_netcdf(str(path))
    for group in ("posterior", "sample_stats", "log_likelihood", "observed_data", "predictions"):
        for name, values in posterior[group].data_vars.items():
            np.testing.assert_array_equal(back[group][name], values)
            for coordinate, ticks in values.coords.items():
                np.testing.assert_array_equal(back[group][name][coordinate], ticks)


@pytest.mark.parametrize(
    "plot", ["trace", "rank", "energy", "pair", "forest", "ppc_dist" if MODERN else "ppc"]
)
def test_plots(star, plot, monkeypatch):
    """ArviZ finds in the container what its plots need."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    options = {"energy": {}, "ppc": {"num_pp_samples": 10, "random_seed": 0}, "ppc_dist": {}}
    getattr(arviz, f"plot_{plot}")(to_arviz(star), **options.get(plot, {"var_names": ["z"]}))
    assert plt.get_fignums() or MODERN
    plt.close("all")


def test_diagnostics_tell_good_chains_from_bad_ones():
    """Independent draws pass; chains that disagree, that crawl, or that stand still do not."""
    rng = np.random.default_rng(1)
    good = rng.standard_normal((4, 500, 2))
    found = chain_diagnostics(good)
    assert found["r_hat"] < 1.01
    assert min(found["ess_bulk"], found["ess_tail"]) > 1500

    apart = good.copy()
    apart[0, :, 1] += 2.0
    assert chain_diagnostics(apart)["r_hat"] > 1.1
    crawling = np.cumsum(0.05 * good, axis=1)
    assert chain_diagnostics(crawling)["ess_bulk"] < 100
    still = good.copy()
    still[2] = 0.0
    assert chain_diagnostics(still) == {"r_hat": np.inf, "ess_bulk": 0.0, "ess_tail": 0.0}
    assert chain_diagnostics(good[:, :3])["r_hat"] == np.inf


def test_one_chain_is_held_against_itself():
    """A chain alone that drifts is not taken for one that has converged."""
    good = np.random.default_rng(3).standard_normal((1, 600, 2))
    assert chain_diagnostics(good)["r_hat"] < 1.01
    drifting = good + np.linspace(0, 3, 600)[:, None]
    assert chain_diagnostics(drifting)["r_hat"] > 1.1
    assert chain_diagnostics(good[:, :6])["r_hat"] == np.inf


def test_worst_quantity_counts():
    values = np.random.default_rng(2).standard_normal((4, 300, 3))
    values[1, :, 2] += 2.0
    alone = [chain_diagnostics(values[..., k]) for k in range(3)]
    together = chain_diagnostics(values)
    assert together["r_hat"] == max(one["r_hat"] for one in alone)
    assert together["ess_bulk"] == min(one["ess_bulk"] for one in alone)


def test_needs_no_torch():
    code = (
        "import sys; import bayesspec.inference.arviz as a; a.import_arviz(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_pareto_weights_are_those_of_the_ratios():
    """Normalised, in the order of the ratios, and all but the tail in proportion to them."""
    log_ratio = np.random.default_rng(0).normal(5, [[0.1], [1.0], [3.0]], (3, 1000))
    log_weight, _ = pareto_smooth(log_ratio)
    np.testing.assert_allclose(np.exp(log_weight).sum(-1), 1, rtol=1e-6)
    for ratio, weight in zip(log_ratio, log_weight, strict=True):
        order = ratio.argsort()
        assert (np.diff(weight[order]) >= -1e-9).all()
        body = order[:800]
        np.testing.assert_allclose(np.ptp((weight - ratio)[body]), 0, atol=1e-9)


def test_pareto_k_tells_good_weights_from_bad():
    """Below 0.5 where weights hardly differ, above 0.7 where one outweighs all; equal ones are no error."""
    widths = np.array([[0.1], [8.0], [0.0]])
    log_weight, k = pareto_smooth(np.random.default_rng(0).normal(0, 1, (3, 1000)) * widths)
    assert k[0] < 0.5
    assert k[1] > 0.7
    np.testing.assert_allclose(log_weight[2], -np.log(1000), rtol=1e-9)
