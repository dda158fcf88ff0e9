"""Laws of the MAP engine: it finds the maximum of eq. (7), and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

from bayesspec.inference.density import log_joint
from bayesspec.inference.map import map_estimate
from bayesspec.inference.scan import LatentScan


def climb(model, batch, z, log_scale, classes):
    """Second opinion: L-BFGS on the density itself, one star at a time."""
    best = []
    for n in range(len(batch)):
        star = batch.select([n])
        point = [z[n : n + 1].clone().requires_grad_(), log_scale[n : n + 1].clone().requires_grad_()]
        optimiser = torch.optim.LBFGS(point, max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

        def loss(star=star, point=point, optimiser=optimiser):
            optimiser.zero_grad()
            scale = torch.where(star.free_scale, point[1], 0.0)
            value = -log_joint(model, star, point[0], scale, classes)[0].sum()
            value.backward()
            return value

        optimiser.step(loss)
        best.append(-loss().detach())
    return torch.stack(best)


@pytest.mark.parametrize("classes", ["joint", "marginal"])
def test_reaches_the_best_of_many_climbs(toy_model, toy_batch, classes):
    """No climb from any training latent ends higher, whatever the gaps and free scales."""
    found = map_estimate(toy_model, toy_batch, classes=classes, starts=3, steps=400)
    density, klass = log_joint(toy_model, toy_batch, found.z, found.log_scale, classes)
    torch.testing.assert_close(density, found.log_density)
    assert (klass == found.klass).all()

    scan = LatentScan(toy_model)
    highest = torch.full((len(toy_batch),), -torch.inf)
    for start in range(0, len(scan.z), 20):
        z = scan.z[start].expand(len(toy_batch), -1)
        highest = highest.maximum(climb(toy_model, toy_batch, z, found.log_scale, classes))
    assert (found.log_density > highest - 0.02).all()


def test_joint_maximum_is_that_of_the_classes_in_turn(toy_model, toy_batch):
    """Eq. (7)'s argmax over (z, C) = the best of the maxima with C fixed to each class."""
    few = map_estimate(toy_model, toy_batch, starts=1, steps=300)
    all_classes = map_estimate(toy_model, toy_batch, starts=len(toy_model.classes), steps=300)
    torch.testing.assert_close(few.log_density, all_classes.log_density, rtol=0, atol=0.02)
    assert (few.klass == all_classes.klass).all()


def test_gradient_vanishes(toy_model, toy_batch):
    """At the maximum the density is flat: a Newton step would move z by far less than its error."""
    found = map_estimate(toy_model, toy_batch, classes="marginal", starts=3, steps=600)
    z = found.z.clone().requires_grad_()

    def density(latents):
        return log_joint(toy_model, toy_batch, latents, found.log_scale, "marginal")[0].sum()

    (gradient,) = torch.autograd.grad(density(z), z)
    hessian = torch.autograd.functional.hessian(density, found.z)
    blocks = torch.stack([hessian[n, :, n] for n in range(len(z))])
    covariance = torch.linalg.inv(-blocks)
    step = (covariance @ gradient[..., None])[..., 0]
    assert (step.abs() < 0.1 * covariance.diagonal(dim1=-2, dim2=-1).sqrt()).all()


def test_more_exposures_raise_the_evidence_for_the_truth(toy_model):
    """With more exposures of one spectrum the maximum comes closer to its latent."""
    from bayesspec.batch import ObservationBatch
    from bayesspec.distributions import NoiseFlow
    from bayesspec.runtime import seeded

    with seeded(11):
        z = toy_model.prior(torch.arange(12) % 3).sample()
        s = toy_model.generator(z)[:, None].expand(-1, 16, -1)
        y = NoiseFlow(s, toy_model.noise).sample().numpy()
    errors = []
    for exposures in (1, 16):
        flux = y[:, :exposures]
        none = torch.zeros(flux.shape, dtype=torch.bool).numpy()
        batch = ObservationBatch.from_arrays(flux, 0 * flux, none, none[..., 0] + 1.0, none[..., 0])
        errors.append((map_estimate(toy_model, batch, starts=3).z - z).square().mean().sqrt())
    assert errors[1] < 0.5 * errors[0]
