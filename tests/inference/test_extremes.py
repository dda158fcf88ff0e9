"""Whatever observations are accepted, however extreme: results are finite, in order, and their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bayesspec
from bayesspec import Observation

SIZE = 600
WAVE = np.linspace(3900.0, 9100.0, SIZE)
SHAPE = 1 + 0.3 * np.sin(WAVE / 300)


def noisy(snr, unit=1.0, *, seed=0, **changes):
    """A star of this S/N a pixel in this unit of flux, with changes to its arrays."""
    noise = np.random.default_rng(seed).normal(0, 1 / snr, SIZE)
    arrays = {"flux": (SHAPE + noise) * unit, "ivar": np.full(SIZE, snr**2) / unit**2, **changes}
    return Observation(WAVE, **arrays)


ONE = np.arange(SIZE) != 300
HIT = np.where(ONE, SHAPE, SHAPE + 1e6 / 30)
EXTREMES = {
    "usual": noisy(30),
    "S/N 0.1": noisy(0.1),
    "S/N 1e6": noisy(1e6),
    "flux 1e-30": noisy(30, 1e-30),
    "flux 1e30": noisy(30, 1e30),
    "one pixel of the grid": noisy(30, mask=np.abs(WAVE - 6000) > 60),
    "one pixel at 1e6 sigma": noisy(30, flux=HIT),
    "one ivar is infinite": noisy(30, ivar=np.where(ONE, 900.0, np.inf)),
    "negative": noisy(30, flux=-SHAPE),
    "constant": noisy(30, flux=np.ones(SIZE)),
    "no errors": noisy(30, ivar=None),
    "zero but for a pixel": noisy(30, flux=np.where(ONE, 0.0, 1.0)),
    "errors over ten decades": noisy(30, ivar=np.logspace(-5, 5, SIZE)),
    "half": noisy(30, mask=WAVE > 6500),
}
OPTIONS = {"map": {}, "laplace": {}, "importance": {"draws": 64}}


@pytest.fixture(scope="module", params=["toy_model", pytest.param("kang2021", marks=pytest.mark.slow)])
def model(request):
    name = request.param
    return request.getfixturevalue(name) if name == "toy_model" else bayesspec.load_model(name)


@pytest.fixture(scope="module", params=OPTIONS)
def run(request, model):
    method = request.param
    if model.name == "kang2021" and method != "map":
        pytest.skip("the toy stands for it: a minute of draws")

    def run(stars, **options):
        return bayesspec.denoise(stars, model=model, method=method, **OPTIONS[method], **options)

    return run


def named(names=EXTREMES):
    stars = []
    for name in names:
        star = EXTREMES[name]
        star.name = name
        stars.append(star)
    return stars


@pytest.fixture(scope="module")
def result(run):
    return run(named())


def test_everything_is_finite_and_in_order(result):
    assert result.names == tuple(EXTREMES)
    for field in ("flux", "z", "class_probabilities", "scale", "chi2", "log_density"):
        assert np.isfinite(getattr(result, field)).all(), field
    np.testing.assert_allclose(result.class_probabilities.sum(-1), 1, rtol=1e-5)
    assert (result.class_probabilities >= 0).all()
    units = [star.unit for star in named()]
    assert list(result.units) == units
    if result.flux_std is not None:
        assert np.isfinite(result.flux_std).all()
        assert (result.flux_std >= 0).all()


def test_intervals_are_nested(result):
    if result.flux_std is None:
        pytest.skip("a mode has none")
    inner, outer = result.interval(0.5), result.interval(0.95)
    assert np.isfinite(outer).all()
    assert (inner[0] <= inner[1]).all()
    assert (outer[0] <= inner[0]).all()
    assert (inner[1] <= outer[1]).all()


def test_the_same_seed_gives_the_same_bits(run, result):
    again = run(named())
    np.testing.assert_array_equal(again.flux, result.flux)
    np.testing.assert_array_equal(again.class_probabilities, result.class_probabilities)


def test_a_star_does_not_notice_its_neighbours(run, result):
    """To 1 % of the mean flux: sums of float32 depend on the batch, and climbs end where they end."""
    for name in ("usual", "flux 1e-30", "half", "one pixel at 1e6 sigma"):
        alone, row = run(named([name])), list(EXTREMES).index(name)
        size = np.abs(result.flux[row]).mean()
        np.testing.assert_allclose(alone.flux[0] / size, result.flux[row] / size, atol=0.01)


def test_a_unit_is_only_a_unit(result):
    """The same star in units 60 decades apart."""
    names = list(EXTREMES)
    usual = result.flux[names.index("usual")]
    for name, unit in (("flux 1e-30", 1e-30), ("flux 1e30", 1e30)):
        np.testing.assert_allclose(
            result.flux[names.index(name)] / unit, usual, atol=0.02 * np.abs(usual).mean()
        )


def test_class_densities_far_from_all_samples(model):
    """Density and gradient of p(z) are finite a million widths away."""
    for distance in (1e2, 1e4, 1e6):
        z = torch.full((1, model.latent_dim), distance, requires_grad=True)
        for klass in range(len(model.classes)):
            density = model.prior(torch.tensor([klass])).log_prob(z)
            (gradient,) = torch.autograd.grad(density.sum(), z)
            assert density.isfinite().all()
            assert gradient.isfinite().all()
            assert float(density.detach().max()) < -distance
