"""Laws of what is made once a model: the same while the model is the same, and never of another one."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch

from bayesspec.inference.denoise import denoise
from bayesspec.inference.once import once_a_model
from bayesspec.inference.scan import LatentScan
from bayesspec.observation import Observation
from bayesspec.results.diagnostics import PriorTail


@pytest.fixture
def model(toy_stellar):
    return copy.deepcopy(toy_stellar)


def scan(model):
    return once_a_model(LatentScan, model)


def test_it_is_made_once(model):
    """For another model with the same networks and other class weights, too, which have no part in it."""
    weighted = model.with_class_weights([1.0, *[2.0] * (len(model.classes) - 1)])
    assert scan(model) is scan(model) is scan(weighted)
    assert once_a_model(PriorTail, model, 1) is once_a_model(PriorTail, model, 1)
    assert once_a_model(PriorTail, model, 2) is not once_a_model(PriorTail, model, 1)


def change_a_weight(model):
    next(model.generator.parameters()).mul_(1.5)


def put_another_tensor(model):
    model.prior.centres = model.prior.centres + 1.0


def change_what_is_within(model):
    next(model.generator.parameters()).data = next(model.generator.parameters()).data.clone().mul_(2)


def load_a_state(model):
    model.load_state_dict({name: 1.1 * tensor for name, tensor in model.state_dict().items()})


def put_another_prior(model):
    model.prior = copy.deepcopy(model.prior)


def put_another_residual_term(model):
    model.residual = copy.deepcopy(model.residual)


def take_another_precision(model):
    model.double()


@pytest.mark.parametrize(
    "change",
    [
        change_a_weight,
        put_another_tensor,
        change_what_is_within,
        load_a_state,
        put_another_prior,
        put_another_residual_term,
        take_another_precision,
    ],
)
def test_a_model_that_has_changed_gets_its_own(model, change):
    """And what it gets is what it would get without anything kept."""
    before = scan(model)
    with torch.no_grad():
        change(model)
    after = scan(model)
    assert after is not before
    torch.testing.assert_close(after.templates, LatentScan(model).templates, rtol=0, atol=0)
    assert scan(model) is after


def test_numbers_of_an_inference_tensor_are_not_trusted(model):
    """Torch does not count their changes."""
    with torch.inference_mode():
        model.prior.centres = model.prior.centres.clone()
    assert scan(model) is not scan(model)


def test_a_star_is_rare_by_the_model_s_own_residual_term(model):
    """Two models that share all but that term have scores of their own."""
    other = copy.copy(model)
    other.residual = copy.deepcopy(model.residual)
    other.residual.spread *= 3
    latents = torch.ones(1, model.lead_dim + model.residual_dim)
    latents[:, : model.latent_dim] = model.prior.centres[0, 0]
    klass = torch.zeros(1, dtype=torch.long)
    for one in (model, other, model):
        assert once_a_model(PriorTail, one, 0)(latents, klass) == PriorTail(one, 0)(latents, klass)
    assert PriorTail(model, 0)(latents, klass) != PriorTail(other, 0)(latents, klass)


def test_a_copy_has_its_own(model):
    assert scan(copy.deepcopy(model)) is not scan(model)


def test_what_is_kept_does_not_keep_the_model(model):
    other = copy.deepcopy(model)
    once_a_model(PriorTail, other, 0), scan(other)
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None


def test_results_are_those_of_a_model_that_was_never_used(model):
    """With other weights of the classes, and again with none."""
    grid = model.grid
    star = Observation(grid.wavelength, np.linspace(1, 2, grid.size), np.full(grid.size, 400.0))
    weights = [4.0, *[1.0] * (len(model.classes) - 1)]
    used = [denoise(star, model=model, class_weights=w) for w in (None, weights, None)]
    fresh = [denoise(star, model=copy.deepcopy(model), class_weights=w) for w in (None, weights, None)]
    for one, other in zip(used, fresh, strict=True):
        np.testing.assert_array_equal(one.flux, other.flux)
        np.testing.assert_array_equal(one.class_probabilities, other.class_probabilities)
        np.testing.assert_array_equal(one.outlier_score, other.outlier_score)
