"""Laws of NUTS: it samples the Pyro model's posterior, says how well, and leaves nothing behind."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model

from bayesspec.inference.lockstep import run_together
from bayesspec.inference.newton import find_modes
from bayesspec.inference.nuts import _spread, _starts, enumerated_log_density, nuts_draws
from bayesspec.inference.target import Target

CHAINS, WARMUP, DRAWS = 3, 50, 150


@pytest.fixture(scope="module")
def toy_stars(toy_batch):
    """One exposure; three of which one has a gap and a free scale; three complete ones."""
    return toy_batch.select([0, 1, 3])


@pytest.fixture(scope="module")
def toy_draws(toy_model, toy_stars):
    return nuts_draws(toy_model, toy_stars, seed=3, chains=CHAINS, warmup=WARMUP, draws=DRAWS)


def brute_force(model, star, size=51):
    """Weights and nodes of a grid over theta about the mode of one star, wide enough for tails."""
    frame = _starts(model, star, find_modes(model, star, starts=3), 1)
    free = Target(model, star).free[0]
    axes = [torch.linspace(-7, 7, size) if f else torch.zeros(1) for f in free]
    u = torch.cartesian_prod(*axes)
    theta = frame.centre + u @ frame.factor[0].T
    log_density = Target(model, star).log_density(theta[:, None])[:, 0].double()
    return torch.softmax(log_density, 0), theta.double()


@pytest.mark.parametrize("star", [0, 1, 2])
def test_agrees_with_brute_force(toy_model, toy_stars, toy_draws, star):
    """Means and standard deviations are those of a grid over the posterior, within Monte Carlo error."""
    one = toy_stars.select([star])
    exposures = one.flux.shape[1]
    weight, theta = brute_force(toy_model, one)
    mean = weight @ theta
    std = (weight @ (theta - mean).square()).sqrt()

    found = toy_draws.select([star])
    assert found.diagnostics["r_hat"][0] < 1.05
    ess = min(found.diagnostics["ess_bulk"][0], found.diagnostics["ess_tail"][0])
    drawn = np.concatenate([found.z[0], found.log_scale[0]], -1).reshape(-1, 2 + exposures)
    free = std.numpy() > 0
    error = (drawn.mean(0) - mean.numpy())[free] / std.numpy()[free]
    assert (np.abs(error) < 4 / np.sqrt(ess)).all()
    np.testing.assert_allclose(drawn.std(0)[free] / std.numpy()[free], 1, atol=4 / np.sqrt(ess))
    assert (drawn[:, ~free] == 0).all()


def test_density_is_that_of_pyro(toy_model, toy_batch):
    """The potential is minus the one that Pyro's own NUTS would use, and the engines share one density."""
    theta = torch.cat([toy_model.prior.centres[0, :4], 0.1 * torch.randn(4, 3)], -1)
    joint = enumerated_log_density(toy_model, toy_batch, theta)
    target = Target(toy_model, toy_batch)
    torch.testing.assert_close(joint, target.log_density(target.join(*target.split(theta))))

    _, potential, _, _ = initialize_model(toy_model, (toy_batch,), max_plate_nesting=1)
    values = {"z": theta[:, :2], "log_scale": theta[:, 2:][tuple(toy_batch.free_index)]}
    torch.testing.assert_close(-potential(values), joint.sum())


def test_log_density_is_that_of_the_draws(toy_model, toy_stars, toy_draws):
    """What is recorded beside a draw belongs to that draw."""
    target = Target(toy_model, toy_stars)
    z = torch.as_tensor(toy_draws.z[:, 1]).transpose(0, 1)
    log_scale = torch.as_tensor(toy_draws.log_scale[:, 1]).transpose(0, 1)
    density = target.log_density(target.join(z, log_scale)).T.numpy()
    np.testing.assert_allclose(density, toy_draws.log_density[:, 1], rtol=1e-4, atol=1e-2)


def test_statistics_of_every_draw(toy_draws):
    """Their shapes, their ranges, and what ties them to each other."""
    shape = toy_draws.log_density.shape
    assert shape == (len(toy_draws), CHAINS, DRAWS)
    for kind, length in (("sample_stats", DRAWS), ("warmup_stats", WARMUP)):
        stats = getattr(toy_draws, kind)
        assert all(values.shape == (*shape[:2], length) for values in stats.values())
        assert np.isfinite(stats["energy"]).all()
        assert ((stats["acceptance_rate"] >= 0) & (stats["acceptance_rate"] <= 1)).all()
        assert (stats["n_steps"] >= 2 ** stats["tree_depth"] - 1).all()
        assert (stats["n_steps"] < 2 ** (stats["tree_depth"] + 1)).all()
        # The energy is the kinetic energy on top of the potential.
        assert (stats["energy"] + stats["lp"] >= 0).all()

    stats = toy_draws.sample_stats
    assert (np.ptp(stats["step_size"], axis=-1) == 0).all()
    assert (np.ptp(toy_draws.warmup_stats["step_size"], axis=-1) > 0).all()
    assert 0.7 < stats["acceptance_rate"].mean() < 0.97
    # The kinetic energy of d momenta is half a chi-square of d degrees of freedom.
    kinetic = (stats["energy"] + stats["lp"])[0]
    assert abs(kinetic.mean() - 1.0) < 0.3


def test_diagnostics_of_every_star(toy_draws):
    found = toy_draws.diagnostics
    assert set(found) == {"r_hat", "ess_bulk", "ess_tail", "divergences", "budget_spent"}
    assert all(len(values) == len(toy_draws) for values in found.values())
    assert (found["r_hat"] < 1.05).all()
    assert (found["ess_bulk"] > 100).all()
    np.testing.assert_array_equal(found["divergences"], toy_draws.sample_stats["diverging"].sum((1, 2)))


def test_coarse_steps_diverge_and_are_counted(toy_model, toy_stars, monkeypatch):
    """A trajectory whose energy runs away is a divergence."""
    monkeypatch.setattr("bayesspec.inference.chains.SPREAD", 60.0)
    found = nuts_draws(toy_model, toy_stars.select([0]), chains=2, warmup=0, draws=10)
    assert found.sample_stats["diverging"].any()
    assert found.diagnostics["divergences"][0] == found.sample_stats["diverging"].sum()
    assert found.diagnostics["r_hat"][0] > 1.01


def test_seeds_reproduce_and_company_does_not_matter(toy_model, toy_stars):
    """The seed decides; another seed gives other draws; a star alone has the draws it has among others."""
    short = {"chains": 2, "warmup": 20, "draws": 15}
    first, again, other = (nuts_draws(toy_model, toy_stars, seed=seed, **short) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.z, again.z)
    assert not np.allclose(first.z, other.z)
    alone = nuts_draws(toy_model, toy_stars.select([2]), seed=1, **short)
    # To rounding, which chaos amplifies: the first draws agree.
    np.testing.assert_allclose(
        alone.warmup_stats["lp"][0, :, :3], first.warmup_stats["lp"][2, :, :3], atol=0.05
    )
    assert not np.allclose(first.z[:, 0], first.z[:, 1])


def test_masked_pixels_have_no_influence(toy_model, toy_batch):
    short = {"chains": 1, "warmup": 10, "draws": 5}
    spoiled = replace(toy_batch, flux=torch.where(toy_batch.mask, torch.nan, toy_batch.flux))
    clean, dirty = (nuts_draws(toy_model, batch, **short) for batch in (toy_batch, spoiled))
    np.testing.assert_array_equal(clean.z, dirty.z)


def test_every_mode_has_a_chain():
    """Distinct modes take turns, those of most mass first; one found twice counts once, a tiny one never."""
    theta = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.05, 0.0], [0.0, 5.0]])
    factor = 0.1 * torch.eye(2).expand(4, 2, 2)
    share = torch.tensor([0.5, 0.3, 0.5, 0.001])
    order = [0, 2, 1, 3]
    assert _spread(theta, factor, share.log(), order, 4) == [0, 1, 0, 1]
    assert _spread(theta, factor, share.log(), order, 1) == [0]
    share[3] = 0.2
    assert _spread(theta, factor, share.log(), order, 4) == [0, 1, 3, 0]


def test_runs_on_a_device_without_a_cpu_tensor_in_the_way(toy_model, toy_batch, only_meta):
    """The density that the chains ask for touches no tensor but those of the device that it is on."""
    model, batch = copy.deepcopy(toy_model).to("meta"), toy_batch.to("meta")
    theta = torch.zeros(len(batch), 5, device="meta", requires_grad=True)
    with only_meta(), pyro.validation_enabled(False):
        density = enumerated_log_density(model, batch, theta)
        (gradient,) = torch.autograd.grad(density.sum(), theta)
    assert density.shape == (len(batch),)
    assert gradient.shape == theta.shape


def test_users_state_is_untouched(toy_model, toy_stars):
    pyro.get_param_store().clear()
    pyro.param("mine", torch.ones(2))
    torch.manual_seed(1)

    def state():
        return torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()

    before, random = state(), torch.random.get_rng_state()
    validation = torch.distributions.Distribution._validate_args
    with torch.no_grad():
        nuts_draws(toy_model, toy_stars.select([0]), chains=2, warmup=10, draws=5)
    assert state() == before
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.distributions.Distribution._validate_args == validation
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.get_param_store().clear()


def test_errors_of_a_task_are_raised_and_end_the_others():
    """Every task is left as by an exception, whatever happens in one, and no gradient mode leaks."""
    left = []

    def good(ask):
        try:
            with torch.no_grad():
                for _ in range(100):
                    ask(0)
                    assert not torch.is_grad_enabled()
        finally:
            left.append("good")

    def bad(ask):
        ask(0)
        assert torch.is_grad_enabled()
        raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="mine"):
        run_together([good, bad, good], lambda who, questions: questions, [0, 1, 2])
    assert left == ["good", "good"]
    assert torch.is_grad_enabled()

    def broken(who, questions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_together([good, good], broken, [0, 1])
    assert left == ["good"] * 4


def test_random_states_of_tasks_are_their_own():
    """A task draws the same numbers whoever runs beside it."""

    def draw(ask):
        return [float(torch.rand(())) + ask(0) for _ in range(5)]

    def other(ask):
        ask(torch.rand(7))

    def answer(who, questions):
        return [0.0] * len(who)

    alone = run_together([draw], answer, [4])[0]
    assert run_together([other, draw, other], answer, [1, 4, 2])[1] == alone


@pytest.mark.slow
def test_real_spectra(real_batch):
    """With the default settings 95 % pass every check, and those that pass agree with the lattice."""
    from bayesspec.bundle import load_model
    from bayesspec.inference.quadrature import quadrature

    model, batch = load_model("kang2021"), real_batch[0]
    batch = batch.select(np.arange(0, len(batch), 3))
    found = nuts_draws(model, batch)
    good = found.diagnostics
    ess = np.minimum(good["ess_bulk"], good["ess_tail"])
    passed = (good["r_hat"] < 1.01) & (ess > 400) & (good["divergences"] == 0)
    assert passed.mean() >= 0.9  # 95 % of many; one of these twenty-odd may fail, or two

    for n in np.flatnonzero(passed):
        exact = quadrature(model, batch.select([n]), tolerance=2e-3, max_points=100_000)
        if exact.error[0] > 5e-3:
            continue
        std = np.sqrt(np.diagonal(exact.z_cov[0]))
        z = found.z[n].reshape(-1, model.latent_dim)
        assert (np.abs(z.mean(0) - exact.z_mean[0]) < 4.5 * std / np.sqrt(ess[n])).all()
        np.testing.assert_allclose(z.std(0), std, rtol=4.5 / np.sqrt(ess[n]))
        classes = model.log_joint_classes(torch.as_tensor(z)).softmax(-1).mean(0)
        np.testing.assert_allclose(classes, exact.class_probabilities[0], atol=2.5 / np.sqrt(ess[n]))


def test_a_chain_that_has_spent_its_budget_goes_on_by_single_steps(toy_model, toy_stars):
    """Nothing runs without bound: the budget, one trajectory more, and a step a draw; and it is said."""
    options = {"chains": 2, "warmup": 10, "draws": 40, "max_tree_depth": 5}
    found = nuts_draws(toy_model, toy_stars.select([0]), budget=50, **options)
    assert found.diagnostics["budget_spent"].all()
    steps = np.concatenate([found.warmup_stats["n_steps"][0], found.sample_stats["n_steps"][0]], axis=-1)
    before = np.cumsum(steps, axis=-1) - steps
    assert (steps[before >= 50] == 1).all()
    assert not nuts_draws(toy_model, toy_stars.select([0]), **options).diagnostics["budget_spent"].any()
