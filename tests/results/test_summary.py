"""Laws of what becomes of draws: ArviZ, warnings, and batches put together; and of what is no star."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.table import Table

import bayesspec
from bayesspec import demo
from bayesspec.batch import ObservationBatch
from bayesspec.bundle import shipped
from bayesspec.exceptions import BayesspecError
from bayesspec.inference.convergence import chain_diagnostics, import_arviz
from bayesspec.inference.denoise import denoise
from bayesspec.inference.draws import Draws
from bayesspec.model import SCALE_WIDTH
from bayesspec.observation import Observation
from bayesspec.results.diagnostics import Flag, features
from bayesspec.results.spectra import arviz_input
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.library import CLASSES, StarLibrary
from bayesspec.training.simulation import choose_stars


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
    return denoise(stars, model=toy_model, method="nuts", chains=3, warmup=30, draws=40)


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


def test_weighted_draws_become_four_chains(weighted):
    """Of equal weight, and said so; their mean is the weighted mean, and the chains agree."""
    posterior = weighted.to_arviz(0)
    assert posterior["posterior"].sizes["chain"] == 4
    r_hat = import_arviz().summary(posterior)["r_hat"].astype(float)
    assert (r_hat < 1.03).all()
    assert posterior["posterior"].attrs["draws"] == "resampled by importance weight"
    z = posterior["posterior"]["z"]
    np.testing.assert_allclose(z.mean(("chain", "draw")), weighted.z[0], atol=0.1 * float(z.std()))
    assert "sample_stats" not in list(posterior)


def test_bad_weights_are_chains_that_disagree(weighted):
    """Where a few draws have nearly all the weight, R-hat says so; few draws, or many, are no error."""
    star = weighted[0]
    count = star.draws.log_weight.shape[-1]
    log_weight = np.full((1, 1, count), -20.0)
    log_weight[..., :: count // 3] = 0.0
    log_weight -= np.logaddexp.reduce(log_weight, axis=-1, keepdims=True)
    bad = replace(star, draws=replace(star.draws, log_weight=log_weight))
    z = bad.to_arviz()["posterior"]["z"].values
    assert chain_diagnostics(z)["r_hat"] > 1.1
    few = replace(
        star,
        draws=replace(
            star.draws,
            **{
                name: getattr(star.draws, name)[:, :, :3]
                for name in ("z", "x", "w", "log_scale", "log_weight", "log_density")
            },
        ),
    )
    assert few.to_arviz()["posterior"].sizes["chain"] == 4


def test_predictive_is_the_clean_spectrum_and_the_noise(chains):
    """Replicated spectra scatter about the clean ones, in every exposure by its scale."""
    star = arviz_input(chains._posterior(1, ""), replicates=120)
    assert star.thin == 1
    noise = star.replicated / np.exp(star.log_scale)[..., None] - star.clean[:, :, None]
    assert 0.05 < noise.std() < 0.2
    assert abs(noise.mean()) < 0.02
    again = arviz_input(chains._posterior(1, ""), replicates=120)
    np.testing.assert_array_equal(star.replicated, again.replicated)
    few = arviz_input(chains._posterior(1, ""), replicates=30)
    assert few.replicated.shape[:2] == (3, 10)


def test_parts_of_the_latents_are_told_apart(toy_stellar, toy_stellar_batch):
    """What the draws hold together has names of its own: size h, patterns w, and the passage in its units."""
    flux, mask = (getattr(toy_stellar_batch, name)[0, :1].numpy() for name in ("flux", "mask"))
    star = Observation(toy_stellar.grid.wavelength, flux, np.full(flux.shape, 400.0), mask)
    options = {"method": "nuts", "chains": 2, "warmup": 4, "draws": 8}
    found = denoise(star, model=toy_stellar, **options)
    group, draws = found.to_arviz()["posterior"], found.draws
    together = np.concatenate([group["h"], group["w"]], axis=-1)
    np.testing.assert_array_equal(together, draws.w[0])
    assert group["h"].sizes["size"] == toy_stellar.residual_dim - toy_stellar.residual.components
    widths = toy_stellar.passage.widths.numpy()
    for k, name in enumerate(toy_stellar.passage.names):
        np.testing.assert_allclose(
            group["passage"].sel(effect=name), widths[k] * draws.x[0, ..., k], rtol=1e-6
        )


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
    row = short.full_table[0]
    for column, phrase, fails in (
        ("r_hat", "chains disagree", row["r_hat"] >= 1.01),
        ("divergences", "divergences", row["divergences"] > 0),
        ("ess_bulk", "few effective draws", min(row["ess_bulk"], row["ess_tail"]) <= 400),
    ):
        assert column in short.full_table.colnames
        assert (phrase in row["warnings"]) == fails
    assert Flag.FEW_DRAWS in Flag(row["flags"])
    assert int(row["flags"]).bit_count() == len(short.warnings[0])


def test_batches_join(toy_model, stars, chains):
    """Stars of several batches, with other numbers of exposures, are those of one."""
    one_by_one = denoise(stars, model=toy_model, method="nuts", chains=3, warmup=30, draws=40, batch_size=1)
    assert one_by_one.draws.log_scale.shape == chains.draws.log_scale.shape
    spread = chains.draws.z.std((1, 2))
    assert (np.abs(one_by_one.z - chains.z) < spread).all()
    joined = Draws.concatenate([chains.draws.select([0]), chains.draws.select([1])])
    np.testing.assert_array_equal(joined.z, chains.draws.z)
    np.testing.assert_array_equal(joined.diagnostics["r_hat"], chains.draws.diagnostics["r_hat"])


class Measured:
    """`features` of whatever stars of three latents might look like."""

    def __init__(self, model, seed=0, exposures=1):
        self.model, self.exposures = model, exposures
        drawn = np.random.default_rng(seed).standard_normal((3, 2))
        self.z = torch.as_tensor(drawn, dtype=model.prior.centres.dtype)
        self.zx = torch.cat([self.z, self.z.new_zeros(3, model.lead_dim - model.latent_dim)], dim=-1)
        self.w = torch.zeros(3, model.residual_dim, dtype=self.z.dtype)
        self.usual = model.spectrum(torch.cat([self.zx, self.w], -1))
        self.sigma = 0.05 * torch.linspace(1.5, 0.8, self.usual.shape[-1], dtype=self.z.dtype)

    def __call__(self, clean, noise=0.0, mask=None):
        """Of spectra (3, D) with noise (3, E, D) in units of sigma."""
        scale = torch.linspace(0.5, 2, self.exposures, dtype=self.z.dtype).expand(3, -1)
        flux = scale[..., None] * (clean[:, None] + self.sigma * noise).expand(3, self.exposures, -1)
        ivar = (scale[..., None] * self.sigma).square().reciprocal().expand_as(flux)
        mask = torch.zeros(flux.shape, dtype=bool) if mask is None else mask.expand_as(flux)
        arrays = (a.numpy() for a in (flux, ivar, mask, torch.ones_like(scale), scale > 0))
        batch = ObservationBatch.from_arrays(*arrays, dtype=flux.dtype)
        latents = torch.cat([self.zx, self.w], -1)[:, None]
        flow = self.model.likelihood(latents, clean[:, None], scale, batch)
        return features(self.model, batch, flow, self.zx)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("exposures", [1, 3])
def test_features_are_those_of_the_kind_beside_any_smooth_curve(gaussian_stellar, share, exposures):
    """As strong as they are put in, in any number of exposures of any brightness, gaps or not."""
    measured = Measured(gaussian_stellar, exposures=exposures)
    x = torch.linspace(-1, 1, measured.usual.shape[-1], dtype=measured.z.dtype)
    curve = 1.5 - 0.8 * x + 0.3 * x**2 + 0.5 * x**7
    for mask in (None, (x > -0.3) & (x < 0.1)):
        strength, error = measured(share * measured.usual + curve, mask=mask)
        np.testing.assert_allclose(strength, share, atol=1e-3)
        assert (error > 0).all()


@pytest.mark.usefixtures("no_hits")
def test_the_error_of_features_is_their_scatter(gaussian_stellar):
    """In many spectra with noise of the given sigma; and a pixel that is hit, however high, says nothing."""
    measured = Measured(gaussian_stellar, exposures=2)
    rng = np.random.default_rng(1)
    found = []
    for _ in range(300):
        strength, error = measured(measured.usual, torch.as_tensor(rng.standard_normal((3, 2, 96))))
        found.append(strength.numpy())
    scatter = np.std(found, axis=0)
    # The model has a discrepancy beside the noise, which these spectra have not.
    assert (scatter < 1.1 * error.numpy()).all()
    assert (scatter > 0.5 * error.numpy()).all()
    np.testing.assert_allclose(np.mean(found, axis=0), 1, atol=0.2 * error.max())


@pytest.mark.parametrize("height", [1e2, 1e5, 1e9])
def test_a_hit_has_no_features(toy_stellar, height):
    measured = Measured(toy_stellar)
    noise = torch.zeros(3, 1, 96, dtype=measured.z.dtype)
    before, _ = measured(measured.usual, noise)
    noise[..., 40] = height
    np.testing.assert_allclose(measured(measured.usual, noise)[0], before, atol=0.02)


@pytest.fixture(scope="module")
def stellar():
    if "stellar" not in shipped():
        pytest.skip("needs the trained bundle stellar")
    return bayesspec.load_model("stellar")


X = np.linspace(-1, 1, 2048)
ANGSTROM = 6500 + 2500 * X
NO_STARS = {
    "flat": 1 + 0 * X,
    "rising": 1 + 0.3 * X,
    "falling": 1 - 0.3 * X,
    "steep": 1 - 0.8 * X,
    "power law": (ANGSTROM / 6500) ** 2,
    "broken": 1 + 0.5 * np.abs(X),
    "step": np.where(ANGSTROM < 5200, 1, 0.6),
    "step of the arms": np.where(ANGSTROM < 6000, 1, 1.5),
    "two steps": np.where(np.abs(ANGSTROM - 6500) < 1000, 1.4, 1),
    "sawtooth": 1 + 0.3 * ((ANGSTROM - 4000) / 1000 % 1 - 0.5),
    "sine": 1 + 0.3 * np.sin(2 * np.pi * X),
    "waves": 1 + 0.2 * np.sin(2 * np.pi * ANGSTROM / 700),
}


def exposures_of(spectrum, snr, count, seed=0):
    """Independent exposures of one spectrum, of any brightness, three times as noisy at the blue end."""
    rng = np.random.default_rng(seed)
    sigma = spectrum.mean() / snr * np.where(ANGSTROM < 4300, 3, 1)
    level = rng.uniform(0.5, 2, (count, 1))
    flux = level * (spectrum + sigma * rng.standard_normal((count, 2048)))
    return bayesspec.Observation(ANGSTROM, flux, np.broadcast_to((level * sigma) ** -2, flux.shape))


FOUR = ("flat", "falling", "step of the arms", "sawtooth")


@pytest.mark.parametrize(
    ("snr", "names"),
    [
        (30, ("falling", "power law", "broken", "sawtooth")),
        *(
            pytest.param(snr, names, marks=pytest.mark.slow)
            for snr, names in ((10, FOUR), (30, tuple(NO_STARS)), (100, FOUR))
        ),
    ],
    ids=lambda value: value if isinstance(value, int) else f"{len(value)} kinds",
)
def test_what_is_no_star_is_flagged_and_a_star_is_not(stellar, snr, names):
    """Straight lines, steps and waves; the star with the same noise has no flag."""
    truth = demo.on_grid(demo.example_star(), stellar.grid)
    given = [exposures_of(NO_STARS.get(name, truth), snr, 1, seed=snr) for name in (*names, "star")]
    *told, star = bayesspec.denoise(given, model=stellar, method="map").warnings
    assert [name for name, notes in zip(names, told, strict=True) if not notes] == []
    assert star == ()


@pytest.mark.parametrize(
    ("count", "starts"), [(2, {"starts": 2}), pytest.param(3, {}, marks=pytest.mark.slow)], ids=[2, 3]
)
def test_exposures_of_what_is_no_star_are_flagged(stellar, count, starts):
    """As a coadd is; and those of a star are not."""
    truth = demo.on_grid(demo.example_star(), stellar.grid)
    given = [exposures_of(spectrum, 30, count, seed=30) for spectrum in (NO_STARS["flat"], truth)]
    flat, visits = bayesspec.denoise(given, model=stellar, method="map", **starts).warnings
    assert flat
    assert visits == ()


def no_star(notes):
    """Whether a row says that this is no star of any class."""
    return any(note.startswith(("outside", "hardly")) for note in notes)


@pytest.mark.slow
def test_real_galaxies_and_quasars_are_flagged(stellar, shared_data):
    """Eleven objects; a galaxy's coadd and its exposures; all epochs of a quasar, some of them both ways."""
    table = Table.read(shared_data / "not_stars.fits.gz")
    wavelength = 10 ** (table.meta["COEFF0"] + table.meta["COEFF1"] * np.arange(table["FLUX"].shape[1]))
    given = [bayesspec.Observation(wavelength, row["FLUX"], row["IVAR"], name=row["ID"]) for row in table]
    galaxy = shared_data / "raw" / "sdss-full" / "spec-0352-51694-0030.fits"
    epochs = sorted(shared_data.glob("boss_epochs/*.fits.gz"))
    given += [bayesspec.read(file) for file in (galaxy, *epochs)]
    given += [bayesspec.read(file, exposures="individual") for file in (galaxy, *epochs[::12])]
    told = bayesspec.denoise(given, model=stellar, method="map").warnings
    assert [star.name for star, notes in zip(given, told, strict=True) if not notes] == []
    assert np.mean([no_star(notes) for notes in told]) > 0.95


@pytest.mark.slow
def test_hardly_a_real_star_is_flagged(stellar, shared_data):
    """At most 3 % of unseen stars of all classes with the noise of unseen nights, S/N 5 to 100."""
    library = StarLibrary.read(shared_data / "stars.fits.gz", stellar.grid)
    files = sorted(shared_data.glob("boss_epochs/*.fits.gz"))
    noise = NoiseLibrary.from_files(files, stellar.grid).split("test")
    stars, rng = choose_stars(library, 12), np.random.default_rng(0)
    given = []
    for n, (truth, bad) in enumerate(zip(stars.flux, stars.mask, strict=True)):
        snr = (5, 10, 20, 50, 100)[n % 5]
        if CLASSES[stars.klass[n]] == "CV":  # these have noise of their own, and no errors
            snr = min(snr, 20)
        k = rng.integers(len(noise))
        seen = ~bad & ~noise.mask[k] & (noise.ivar[k] > 0)
        share = np.median(np.sqrt(noise.ivar[k][seen])) / snr
        own = np.where(stars.believable[n] & (stars.ivar[n] > 0), 1 / np.maximum(stars.ivar[n], 1e-12), 0)
        variance = share**2 / np.where(seen, noise.ivar[k], 1) + own
        flux = truth + share * noise.residual[k]
        given.append(bayesspec.Observation(stellar.grid.wavelength, flux, 1 / variance, ~seen))
    told = bayesspec.denoise(given, model=stellar, method="map").warnings
    assert len(given) > 90
    assert np.mean([no_star(notes) for notes in told]) <= 0.03
