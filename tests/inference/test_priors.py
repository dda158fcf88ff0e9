"""Every engine obeys a prior that was replaced in a copy of the model."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest

from bayesspec.inference.importance import importance_draws
from bayesspec.inference.laplace import laplace_draws
from bayesspec.inference.newton import find_modes
from bayesspec.inference.nuts import nuts_draws

SAMPLERS = {
    "laplace": laplace_draws,
    "importance": partial(importance_draws, draws=512),
    "nuts": partial(nuts_draws, chains=2, warmup=30, draws=60),
}
METHODS = ["laplace", "importance", pytest.param("nuts", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def informed(toy_stellar):
    """Someone knows that the star recedes at 60 km/s, to half a kilometre per second."""
    model = copy.copy(toy_stellar)
    model.passage = copy.deepcopy(toy_stellar.passage)
    model.passage.velocity_prior = lambda: dist.Normal(60.0, 0.5)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_samplers(method, informed, toy_stellar_batch):
    found = SAMPLERS[method](informed, toy_stellar_batch.select([0]))
    v = found.x[0, ..., 0] * float(informed.passage.widths[0])
    weight = np.ones(v.shape) if found.log_weight is None else np.exp(found.log_weight[0])
    weight = weight / weight.sum()
    mean = (weight * v).sum()
    assert abs(mean - 60.0) < 1.0
    assert 0.2 < np.sqrt((weight * (v - mean) ** 2).sum()) < 1.0


def test_map(informed, toy_stellar_batch):
    modes = find_modes(informed, toy_stellar_batch.select([0]), starts=3)
    v = modes.theta[0, modes.log_density[0].argmax(), informed.latent_dim] * informed.passage.widths[0]
    assert abs(float(v) - 60.0) < 1.0
