"""Laws of `bayesspec.denoise`, with the shipped model."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.table import Table
from specutils import Spectrum, SpectrumList

import bayesspec
from bayesspec.distributions import NoiseFlow
from bayesspec.exceptions import BayesspecError, ObservationError, ReadError
from bayesspec.grid import WavelengthGrid, rebin
from bayesspec.inference.denoise import METHODS, choose_method
from bayesspec.runtime import seeded


@pytest.fixture(scope="module")
def model():
    return bayesspec.load_model("kang2021")


@pytest.fixture(scope="module")
def stars(model):
    """Six spectra drawn from the model, with its own noise, in arbitrary units."""
    with seeded(2):
        klass = torch.tensor([1, 2, 3, 4, 5, 6])
        clean = model.generator(model.prior(klass).sample())
        noisy = NoiseFlow(clean, model.noise).sample().numpy()
    unit = u.Unit("1e-17 erg / (s cm2 Angstrom)")
    return [
        bayesspec.Observation(model.grid.wavelength, 20 * y * unit, name=f"star {n}")
        for n, y in enumerate(noisy)
    ], clean.numpy()


@pytest.fixture(scope="module")
def result(model, stars):
    return bayesspec.denoise(stars[0], model=model)


def test_denoises(result, stars):
    """Spectra come back closer to the truth than they went in, in the unit they came in."""
    observations, clean = stars
    observed = np.array([star.exposures[0].flux for star in observations])
    after = np.square(result.flux - 20 * clean).mean(-1)
    before = np.square(observed - 20 * clean).mean(-1)
    assert (after < 0.2 * before).all()
    assert result.units[0] == observations[0].unit
    np.testing.assert_allclose(result.class_probabilities.sum(-1), 1, rtol=1e-5)


def test_unit_of_the_flux_comes_back(result, model, stars):
    """The same star in a unit a million times smaller: same latent, flux a million times larger."""
    star = stars[0][2]
    wavelength, flux = star.exposures[0].wavelength, star.exposures[0].flux
    scaled = bayesspec.denoise(bayesspec.Observation(wavelength, 1e6 * flux), model=model)
    np.testing.assert_allclose(scaled.z[0], result.z[2], atol=1e-3)
    np.testing.assert_allclose(scaled.flux[0], 1e6 * result.flux[2], rtol=2e-3, atol=20)


def test_order_and_batches_do_not_matter(result, model, stars):
    """Reversed, and three at a time: the same rows."""
    backward = bayesspec.denoise(stars[0][::-1], model=model, batch_size=3)
    np.testing.assert_allclose(backward.z[::-1], result.z, atol=2e-3)
    assert backward.names[::-1] == result.names


def test_stars_of_several_exposures_keep_their_rows(result, model, stars):
    """However many exposures each has, rows are in the order of the input."""
    first, second, third, *_ = stars[0]
    deep = bayesspec.Observation.from_exposures([first, first, first], name="deep")
    mixed = bayesspec.denoise([deep, second, third], model=model, batch_size=2)
    assert mixed.names == ("deep", second.name, third.name)
    np.testing.assert_allclose(mixed.z[1:], result.z[1:3], atol=2e-3)
    assert (~mixed.observed_mask).any(-1).sum(-1).tolist() == [3, 1, 1]


def test_same_seed_same_result(result, model, stars):
    """To the last bit."""
    again = bayesspec.denoise(stars[0], model=model)
    np.testing.assert_array_equal(again.flux, result.flux)


def test_a_gap_does_not_move_the_star(result, model, stars):
    """Half of the pixels gone and the rest in another unit: the scale is inferred, the latent stays."""
    star = stars[0][3]
    wavelength, flux = star.exposures[0].wavelength, star.exposures[0].flux
    red = bayesspec.Observation(wavelength[1024:], 3 * flux[1024:], name="red half")
    res = bayesspec.denoise(red, model=model)
    np.testing.assert_allclose(res.z[0], result.z[3], atol=0.15)
    assert np.square(res.flux[0] / 3 - result.flux[3]).mean() < 0.1 * np.square(result.flux[3]).mean()
    assert res.observed_fraction[0] == pytest.approx(0.5, abs=0.01)


def test_red_and_blue_exposures_work_together(model, stars):
    """Two half spectra with different units, one star: as good as the whole."""
    star, clean = stars[0][3], stars[1][3]
    wavelength, flux = star.exposures[0].wavelength, star.exposures[0].flux
    blue = bayesspec.Observation(wavelength[:1024], flux[:1024])
    red = bayesspec.Observation(wavelength[1024:], 5 * flux[1024:])
    res = bayesspec.denoise(bayesspec.Observation.from_exposures([blue, red], name="both"), model=model)
    shape = res.model_flux[0] / np.abs(res.model_flux[0]).mean()
    assert np.square(shape - clean / np.abs(clean).mean()).mean() < 2e-3
    assert res.scale.shape == (1, 2)


def test_unusable_stars_are_named(model, stars):
    """A star off the grid is an error that names it, or a failure beside the others' results."""
    off = bayesspec.Observation(np.linspace(10_000, 20_000, 100), np.ones(100), name="infrared")
    with pytest.raises(ObservationError, match="infrared: no observed pixel between 4000 and 9000"):
        bayesspec.denoise([stars[0][0], off], model=model)
    res = bayesspec.denoise([off, stars[0][0]], model=model, on_error="skip")
    assert len(res) == 1
    assert res.failures[0][:2] == (0, "infrared")
    with pytest.raises(BayesspecError, match="no method is called 'magic'"):
        bayesspec.denoise(stars[0][0], model=model, method="magic")


def test_uncertainty_is_importance_sampling(toy_model):
    """Asked for without a method, it is importance sampling's, to the last bit; the mode has none."""
    star = bayesspec.Observation(toy_model.grid.wavelength, np.ones(toy_model.grid.size), name="flat")
    asked = bayesspec.denoise(star, model=toy_model, uncertainty=True, draws=256)
    named = bayesspec.denoise(star, model=toy_model, method="importance", draws=256)
    assert asked.method == "importance"
    assert (asked.flux_std > 0).all()
    np.testing.assert_array_equal(asked.flux_std, named.flux_std)

    point = bayesspec.denoise(star, model=toy_model)
    assert point.method == "map"
    assert point.flux_std is None
    with pytest.raises(BayesspecError, match="uncertainty=True"):
        point.interval()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_is_named_is_used(method):
    """Whether uncertainty is asked or not, but `map` has none to give."""
    assert choose_method(method) == method
    if method == "map":
        with pytest.raises(BayesspecError, match="map is a point"):
            choose_method(method, uncertainty=True)
    else:
        assert choose_method(method, uncertainty=True) == method


def test_what_is_no_star_says_so(model):
    """Pure noise of ten times the model's is flagged in its row, and nothing is NaN."""
    rng = np.random.default_rng(0)
    sky = bayesspec.Observation(model.grid.wavelength, rng.normal(0, 3, 2048), name="sky")
    res = bayesspec.denoise(sky, model=model)
    assert "very weak signal" in res.warnings[0][0]
    assert np.isfinite(res.flux).all()
    assert np.isfinite(res.z).all()
    assert res.chi2[0] > 2


@pytest.fixture(scope="module")
def columns():
    wavelength = np.linspace(3950, 9050, 400)
    noise = np.random.default_rng(0).normal(0, 0.1, 400)
    return wavelength, 3 + (wavelength / 6000) + noise, np.full(400, 0.1)


@pytest.fixture(scope="module")
def file(columns, tmp_path_factory):
    path = tmp_path_factory.mktemp("stars") / "star.txt"
    np.savetxt(path, np.column_stack(columns))
    return path


@pytest.fixture(scope="module")
def expected(file, toy_model):
    return bayesspec.denoise(bayesspec.read(file), model=toy_model)


class TestWhatIsGiven:
    """Whatever `read` takes, `denoise` takes, alone or in a list."""

    @pytest.mark.parametrize("kind", ["path", "text", "open file", "spectrum", "table"])
    @pytest.mark.parametrize("many", [False, True])
    def test_every_form_gives_the_same(self, columns, file, expected, toy_model, kind, many):
        wavelength, flux, sigma = columns
        given = {
            "path": lambda: file,
            "text": lambda: str(file),
            "open file": lambda: io.StringIO(file.read_text()),
            "spectrum": lambda: _spectrum(columns),
            "table": lambda: Table({"wavelength": wavelength, "flux": flux, "ivar": sigma**-2}),
        }[kind]
        found = bayesspec.denoise(iter([given(), given()]) if many else given(), model=toy_model)
        assert len(found) == 1 + many
        np.testing.assert_allclose(found.flux, np.repeat(expected.flux, len(found), 0), rtol=2e-3)

    def test_a_list_of_spectra(self, columns, expected, toy_model):
        found = bayesspec.denoise(SpectrumList([_spectrum(columns)] * 2), model=toy_model)
        np.testing.assert_allclose(found.flux, np.repeat(expected.flux, 2, 0), rtol=2e-3)

    def test_files_that_cannot_be_read(self, file, expected, toy_model, tmp_path):
        missing = tmp_path / "missing.fits"
        with pytest.raises(ReadError, match=r"missing\.fits: no such file"):
            bayesspec.denoise([file, missing], model=toy_model)
        found = bayesspec.denoise([missing, file], model=toy_model, on_error="skip")
        assert found.failures[0][:2] == (0, str(missing))
        np.testing.assert_array_equal(found.flux, expected.flux)

    @pytest.mark.parametrize("given", [None, 5, np.ones(3), [np.ones((2, 3))], b"a", [["a"]], {1: 2}])
    def test_what_is_no_star(self, toy_model, given):
        with pytest.raises(BayesspecError, match="is no star: give an Observation, a path"):
            bayesspec.denoise(given, model=toy_model, on_error="skip")

    def test_nothing(self, toy_model):
        with pytest.raises(ObservationError, match="no observation was given"):
            bayesspec.denoise([], model=toy_model)

    @pytest.mark.parametrize("power", [-90, -40, 40, 90])
    def test_fluxes_that_single_precision_has_not(self, columns, toy_model, power):
        star = bayesspec.Observation(columns[0], columns[1] * 10.0**power, name="far out")
        with pytest.raises(ObservationError, match=r"far out: .*another unit"):
            bayesspec.denoise(star, model=toy_model)

    @pytest.mark.parametrize("power", [-36, -18, 20, 37])
    def test_units_that_come_back(self, columns, expected, toy_model, power):
        """Flux and ivar are finite and scaled, in the intervals too."""
        wavelength, flux, sigma = columns
        scale = 10.0**power
        star = bayesspec.Observation(wavelength, flux * scale, (sigma * scale) ** -2)
        found = bayesspec.denoise(star, model=toy_model)
        np.testing.assert_allclose(found.flux / scale, expected.flux, rtol=2e-3)
        np.testing.assert_allclose(found.observed.ivar * scale, expected.observed.ivar / scale, rtol=1e-4)
        found = bayesspec.denoise(star, model=toy_model, uncertainty=True, draws=256)
        lower, upper = found.interval(0.5)
        assert ((lower < upper) & (upper < 2 * found.flux)).all()
        assert (np.abs(found.flux / scale / expected.flux - 1) < 0.2).all()


def _spectrum(columns):
    from astropy.nddata import StdDevUncertainty

    wavelength, flux, sigma = columns
    return Spectrum(
        spectral_axis=wavelength * u.AA,
        flux=flux * u.dimensionless_unscaled,
        uncertainty=StdDevUncertainty(sigma),
    )


MAP, WEIGHTS, NUTS = {"method": "map"}, {"method": "importance"}, {"method": "nuts"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": None}, "seed must be a whole number, from 0 to 4294967295, not None"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**32}, "seed must be"),
        ({"seed": 1.0}, "seed must be"),
        ({"seed": True}, "seed must be"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more, not 0"),
        ({"batch_size": 2.5}, "batch_size must be"),
        ({"uncertainty": "no"}, "uncertainty is True or False"),
        ({"method": ["map"]}, "no method is called"),
        ({"model": 5}, "model is a model"),
        ({**WEIGHTS, "engine": "newton"}, "engine='newton' is one of method='map'"),
        ({"uncertainty": True, "engine": "autodelta"}, "engine='autodelta' is one of method='map'"),
        ({"engine": "magic"}, "no engine is called 'magic'"),
        ({**MAP, "draws": 100}, "'map' has no option draws; it has classes, iterations, starts"),
        ({**MAP, "starts": 0}, "starts must be"),
        ({**MAP, "starts": "many"}, "starts must be"),
        ({**MAP, "classes": "all"}, "classes must be one of joint, marginal"),
        ({"engine": "autodelta", "iterations": 3}, "has no option iterations; .* steps"),
        ({"engine": "autodelta", "learning_rate": -1}, "learning_rate must be a positive number"),
        ({**WEIGHTS, "draw": 5}, "'importance' has no option draw; it has draws, handover, rounds, starts"),
        ({**WEIGHTS, "draws": 0}, "draws must be"),
        ({**WEIGHTS, "rounds": -1}, "rounds must be a whole number, 0 or more"),
        ({**WEIGHTS, "handover": 1}, "handover must be True or False"),
        ({**NUTS, "chains": 0}, "chains must be"),
        ({**NUTS, "warmup": 0}, "warmup must be"),
        ({**NUTS, "draws": 0}, "draws must be"),
        ({**NUTS, "target_accept": 1}, "target_accept must be"),
        ({**NUTS, "scan": None}, "has no option scan"),
    ],
    ids=str,
)
def test_arguments_that_are_wrong_are_found_before_the_work(options, message):
    """Before a star is looked at, or a model loaded."""
    given = {"model": "no such model", **options}
    with pytest.raises(BayesspecError, match=message):
        bayesspec.denoise("no such file", **given)


@pytest.mark.parametrize("weights", ["WD", 5, [object()] * 3, {"hot": "heavy"}])
def test_weights_that_are_none(toy_model, weights):
    star = bayesspec.Observation(toy_model.grid.wavelength, np.ones(96))
    with pytest.raises(BayesspecError, match="class_weights"):
        bayesspec.denoise(star, model=toy_model, class_weights=weights)


@pytest.mark.parametrize("options", [WEIGHTS, {**NUTS, "chains": 1, "warmup": 1, "starts": 1}], ids=str)
def test_the_fewest_draws_are_no_error(toy_model, options):
    """They say of themselves that there are too few."""
    star = bayesspec.Observation(toy_model.grid.wavelength, np.ones(96))
    found = bayesspec.denoise(star, model=toy_model, draws=4, **options)
    assert found.warnings[0] or found.draws.diagnostics["ess_bulk"][0] <= 4
    assert np.isfinite(found.interval(0.5)).all()
    assert found.to_arviz()["posterior"]["z"].size


@pytest.mark.parametrize("by", ["denoise", "survey"])
def test_every_exposure_is_rebinned_once(stars, model, tmp_path, monkeypatch, by):
    """What is found out about a star on the grid is kept, not thrown away and found out again."""
    done = []

    def counted(*arguments):
        done.append(1)
        return rebin(*arguments)

    monkeypatch.setattr("bayesspec.observation.rebin", counted)
    if by == "denoise":
        bayesspec.denoise(stars[0][:3], model=model)
    else:
        files = [tmp_path / f"{n}.ecsv" for n in range(3)]
        for file, star in zip(files, stars[0], strict=False):
            exposure = star.exposures[0]
            Table({"wavelength": exposure.wavelength * u.AA, "flux": exposure.flux}).write(file)
        list(bayesspec.denoise_survey(files, tmp_path / "out", model="kang2021", workers=0))
    assert len(done) == 3


def test_what_is_on_the_grid_already_is_taken_as_it_is(result, stars, model):
    """With the same numbers as coming from the native pixels; on another model's grid it is refused."""
    gridded = [star.on_grid(model.grid) for star in stars[0]]
    np.testing.assert_array_equal(bayesspec.denoise(gridded, model=model).flux, result.flux)
    with pytest.raises(ObservationError, match="another grid"):
        bayesspec.denoise(stars[0][0].on_grid(WavelengthGrid(size=512)), model=model)
