"""The checks are checked: a right posterior passes, one too narrow, too wide or biased does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bayesspec.benchmark.sbc import calibrate, geweke, simulate
from bayesspec.inference.draws import Draws
from bayesspec.inference.importance import importance_draws


def coverage(stars, pixels):
    """A third complete, a third with a gap, a third of one arm in each of two exposures."""
    mask = np.zeros((stars, 2, pixels), bool)
    mask[::3, 1] = True
    mask[1::3, 1] = True
    mask[1::3, 0, pixels // 3 : pixels // 2] = True
    mask[2::3, 0, pixels // 2 :] = True
    mask[2::3, 1, : pixels // 2 - 4] = True
    return mask


def engine(model, batch, seed):
    return importance_draws(model, batch, draws=512, seed=seed)


@pytest.fixture(scope="module")
def simulated(toy_model):
    """Two hundred stars of the toy model, and their posteriors."""
    batch, truth = simulate(toy_model, coverage(200, toy_model.grid.size), seed=3)
    return batch, truth, engine(toy_model, batch, 0)


def spoiled(draws: Draws, change) -> Draws:
    """The same draws with each star's latents changed about their mean."""
    weight = np.exp(draws.log_weight)[..., None]
    mean = (weight * draws.z).sum((1, 2), keepdims=True)
    spread = np.sqrt((weight * (draws.z - mean) ** 2).sum((1, 2), keepdims=True))
    return replace(draws, z=change(draws.z, mean, spread).astype(np.float32))


@pytest.mark.slow
def test_importance_is_calibrated(toy_model, simulated):
    """Ranks of latents, log-likelihood and flux are uniform, with gaps, one arm only, and free scales."""
    batch, truth, draws = simulated
    calibration = calibrate(toy_model, batch, truth, draws)
    assert len(calibration.ranks) == 2 + 1 + 10
    assert calibration.passes(), calibration.p_values()


def exposures_of(kind, stars, pixels):
    """Single arms, gaps, two or six exposures, arms that the model may find not to join."""
    mask = np.zeros(
        (stars, 6 if kind == "six exposures" else 2 if kind == "two exposures" else 1, pixels), bool
    )
    if kind == "one arm":
        mask[::2, :, pixels // 2 :] = True
        mask[1::2, :, : pixels // 2] = True
    elif kind == "gap":
        mask[..., pixels // 3 : pixels // 2] = True
    else:
        mask[:, -1, :3] = True
    return mask


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gap", "one arm", "two exposures", "six exposures", "no errors"])
def test_the_whole_program_is_calibrated(toy_stellar, kind):
    """Every latent, noise level and sizes among them, and `flux`: ranks of the program's own stars."""
    stars = 60 if "exposures" in kind else 160
    mask = exposures_of(kind, stars, toy_stellar.grid.size)
    batch, truth = simulate(toy_stellar, mask, seed=7, stated=kind != "no errors")
    draws = importance_draws(toy_stellar, batch, draws=512)
    calibration = calibrate(toy_stellar, batch, truth, draws)
    assert {"velocity_offset", "noise level", "h", "w1", "log_likelihood"} <= set(calibration.ranks)
    assert calibration.passes(), calibration.p_values()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda z, mean, spread: mean + 0.5 * (z - mean), id="too narrow"),
        pytest.param(lambda z, mean, spread: mean + 2.0 * (z - mean), id="too wide"),
        pytest.param(lambda z, mean, spread: z + 0.5 * spread, id="biased"),
    ],
)
def test_calibration_tells_wrong_posteriors(toy_model, simulated, change):
    """Half or twice the width, or half a standard deviation off, is found."""
    batch, truth, draws = simulated
    assert not calibrate(toy_model, batch, truth, spoiled(draws, change)).passes()


@pytest.mark.slow
def test_geweke_passes_and_fails(toy_model):
    """Sweeps between data and latents keep the prior if the posterior is right, and not if it is biased."""
    mask = coverage(240, toy_model.grid.size)
    right = geweke(toy_model, mask, engine, sweeps=2)
    assert min(right.values()) * len(right) > 0.01, right

    def biased(model, batch, seed):
        return spoiled(engine(model, batch, seed), lambda z, mean, spread: z + 1.5 * spread)

    wrong = geweke(toy_model, mask, biased, sweeps=2)
    assert min(wrong.values()) * len(wrong) < 0.01


def test_simulations_are_the_model_s(toy_model):
    """Seeds reproduce; scales are drawn where pixels lack, else 1; given a truth only noise is new."""
    mask = coverage(30, toy_model.grid.size)
    first, second = (simulate(toy_model, mask, seed=1) for _ in range(2))
    assert torch.equal(first[0].flux, second[0].flux)
    assert ((first[1].log_scale != 0) == first[0].free_scale).all()
    again, truth = simulate(toy_model, mask, seed=2, truth=first[1])
    assert torch.equal(truth.z, first[1].z)
    assert torch.equal(truth.log_scale, first[1].log_scale)
    assert not torch.equal(again.flux, first[0].flux)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kang2021", "stellar"])
def test_importance_is_calibrated_on_the_shipped_models(name):
    """The same over a shipped model: 200 stars of it, real noise flow, gaps and single arms."""
    from bayesspec import load_model

    model = load_model(name)
    batch, truth = simulate(model, coverage(200, model.grid.size), seed=5)
    calibration = calibrate(model, batch, truth, importance_draws(model, batch, draws=1024))
    assert calibration.passes(), calibration.p_values()


@pytest.mark.slow
def test_nuts_is_calibrated_on_the_shipped_model():
    """Fewer stars for NUTS."""
    from bayesspec import load_model
    from bayesspec.inference.nuts import nuts_draws

    model = load_model("kang2021")
    batch, truth = simulate(model, coverage(48, model.grid.size), seed=6)
    draws = nuts_draws(model, batch, seed=0)
    assert calibrate(model, batch, truth, draws).passes()
