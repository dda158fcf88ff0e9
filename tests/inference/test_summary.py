"""Laws of what becomes of draws: ArviZ's container, warnings, and batches put together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bayesspec
from bayesspec.exceptions import BayesspecError
from bayesspec.inference.arviz import import_arviz
from bayesspec.inference.denoise import denoise
from bayesspec.inference.draws import Draws
from bayesspec.inference.summary import arviz_input
from bayesspec.model import SCALE_WIDTH


@pytest.fixture(scope="module")
def stars(toy_model):
    """One complete spectrum of known scale; two exposures with gaps, their scales free."""
    wavelength = toy_model.grid.wavelength
    rng = np.random.default_rng(0)
    with torch.no_grad():
        clean = toy_model.generator(toy_model.prior.centres[:2, 0]).numpy()
    noisy = clean[:, None] + 0.1 * rng.standard_normal((2, 2, len(wavelength)))
    mask = np.zeros(noisy[1].shape, bool)
    mask[0, 20:30], mask[1, 50:] = True, True
    return [
        bayesspec.Observation(wavelength, noisy[0, 0], name="whole", scale=1.0),
        bayesspec.Observation(wavelength, noisy[1] * [[3.0], [5.0]], mask=mask, name="parts"),
    ]


@pytest.fixture(scope="module")
def chains(toy_model, stars):
    return denoise(stars, model=toy_model, method="nuts", chains=3, warmup=60, draws=80)


@pytest.fixture(scope="module")
def weighted(toy_model, stars):
    return denoise(stars, model=toy_model, method="importance", draws=600)


@pytest.mark.parametrize("star", [0, 1])
def test_pixels_sum_to_the_density(toy_model, chains, star):
    """Prior plus the log likelihoods of all pixels is the density that the sampler has seen."""
    posterior = chains.to_arviz(star)
    pixels = posterior["log_likelihood"]["y"].sum("pixel")
    z = torch.as_tensor(posterior["posterior"]["z"].values)
    prior = toy_model.log_joint_classes(z).logsumexp(-1).numpy()
    if star == 1:
        log_scale = torch.as_tensor(posterior["posterior"]["log_scale"].values)
        prior = prior + torch.distributions.Normal(0.0, SCALE_WIDTH).log_prob(log_scale).sum(-1).numpy()
    np.testing.assert_allclose(prior + pixels, posterior["sample_stats"]["lp"], atol=0.02, rtol=1e-4)


def test_arviz_has_the_draws_of_the_chains(chains):
    """Draws, statistics and observed pixels are the result's; only free scales are parameters."""
    posterior = chains.to_arviz(1)
    np.testing.assert_array_equal(posterior["posterior"]["z"], chains.draws.z[1])
    np.testing.assert_array_equal(posterior["posterior"]["log_scale"], chains.draws.log_scale[1])
    np.testing.assert_array_equal(
        posterior["warmup_sample_stats"]["energy"], chains.draws.warmup_stats["energy"][1]
    )
    assert posterior["posterior"].attrs["draws"] == "equally probable"
    assert posterior["posterior"].attrs["star"] == "parts"
    assert "log_scale" not in chains.to_arviz(0)["posterior"]

    used = posterior["constant_data"]["used"].values
    assert not (used & chains.observed_mask[1]).any()
    assert used.sum() == posterior["observed_data"]["y"].size
    table = import_arviz().summary(posterior)
    assert len(table) == chains.z.shape[1] + 2


def test_weighted_draws_become_one_chain(weighted):
    """Of equal weight, and said so; their mean is the weighted mean."""
    posterior = weighted.to_arviz(0)
    assert posterior["posterior"].sizes["chain"] == 1
    assert posterior["posterior"].attrs["draws"] == "resampled by importance weight"
    z = posterior["posterior"]["z"]
    np.testing.assert_allclose(z.mean(("chain", "draw")), weighted.z[0], atol=0.1 * float(z.std()))
    assert "sample_stats" not in list(posterior)


def test_predictive_is_the_clean_spectrum_and_the_noise(chains):
    """Replicated spectra scatter about the clean ones, in every exposure by its scale."""
    star = arviz_input(chains[1], replicates=240)
    assert star.thin == 1
    noise = star.replicated / np.exp(star.log_scale)[..., None] - star.clean[:, :, None]
    assert 0.05 < noise.std() < 0.2
    assert abs(noise.mean()) < 0.02
    again = arviz_input(chains[1], replicates=240)
    np.testing.assert_array_equal(star.replicated, again.replicated)
    few = arviz_input(chains[1], replicates=60)
    assert few.replicated.shape[:2] == (3, 20)


# of a few hundred draws ArviZ may say that a pixel counts for much: which one does is a matter of luck
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_leave_one_out_works(chains):
    loo = import_arviz().loo(chains.to_arviz(1), pointwise=True)
    assert loo.n_data_points == chains.to_arviz(1)["observed_data"]["y"].size
    assert np.isfinite(float(loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo))


def test_a_point_is_not_for_arviz(toy_model, stars):
    point = denoise(stars[0], model=toy_model, method="map")
    with pytest.raises(BayesspecError, match="nothing for ArviZ"):
        point.to_arviz(0)


def test_what_the_diagnostics_say_is_in_the_table(toy_model, stars):
    """A run that is too short is flagged; a number that fails has its words, one that does not has none."""
    short = denoise(stars[0], model=toy_model, method="nuts", chains=2, warmup=5, draws=10)
    assert any("effective draws" in note for note in short.warnings[0])
    row = short.table[0]
    for column, phrase, fails in (
        ("r_hat", "chains disagree", row["r_hat"] >= 1.01),
        ("divergences", "divergences", row["divergences"] > 0),
        ("ess_bulk", "few effective draws", min(row["ess_bulk"], row["ess_tail"]) <= 400),
    ):
        assert column in short.table.colnames
        assert (phrase in row["warnings"]) == fails


def test_batches_join(toy_model, stars, chains):
    """Stars of several batches, with other numbers of exposures, are those of one."""
    one_by_one = denoise(stars, model=toy_model, method="nuts", chains=3, warmup=60, draws=80, batch_size=1)
    assert one_by_one.draws.log_scale.shape == chains.draws.log_scale.shape
    spread = chains.draws.z.std((1, 2))
    assert (np.abs(one_by_one.z - chains.z) < spread).all()
    joined = Draws.concatenate([chains.draws.select([0]), chains.draws.select([1])])
    np.testing.assert_array_equal(joined.z, chains.draws.z)
    np.testing.assert_array_equal(joined.diagnostics["r_hat"], chains.draws.diagnostics["r_hat"])
