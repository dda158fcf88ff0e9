"""Laws of the ArviZ converter, under either generation of ArviZ, in an environment that needs no torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from bayesspec.inference.convergence import import_arviz
from bayesspec.results.arviz import ArvizInput, to_arviz

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


def test_latents_of_a_model_with_more_parts_have_names(star):
    """Velocity and dust by name and with their units; the size of residuals apart from their patterns."""
    rng = np.random.default_rng(2)
    x, h, w = (rng.standard_normal((4, 200, count)) for count in (3, 1, 5))
    names = ("velocity_offset", "ebv_excess", "arm_step")
    group = to_arviz(replace(star, x=x, passage=names, h=h, w=w))["posterior"]
    for k, (name, unit) in enumerate(zip(names, ("km / s", "mag", ""), strict=True)):
        effect = group["passage"].sel(effect=name)
        np.testing.assert_array_equal(effect, x[..., k])
        assert effect["unit"].item() == unit
    np.testing.assert_array_equal(group["h"].sel(size=0), h[..., 0])
    np.testing.assert_array_equal(group["w"].sel(component=4), w[..., 4])


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


def test_needs_no_torch():
    code = "import sys; import bayesspec.results.arviz as a; a.import_arviz(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
