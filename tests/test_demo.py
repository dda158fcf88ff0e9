"""The demonstration: what it writes is an SDSS file that the readers know, with the example star as truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bayesspec import demo, load_model, read
from bayesspec.exceptions import BayesspecError


@pytest.fixture(scope="module")
def model(small_bundle):
    return load_model(small_bundle)


@pytest.fixture(scope="module")
def outcome(model, tmp_path_factory):
    return demo.run_demo(tmp_path_factory.mktemp("demo"), model)


def test_truth_is_the_star_that_ships_with_the_package(outcome, model):
    truth = demo.on_grid(demo.example_star(), model.grid)
    assert np.abs(truth).mean() == pytest.approx(1)
    np.testing.assert_allclose(outcome.truth, truth * demo.FLUX)


def test_file_comes_back_as_it_was_made(outcome, model):
    truth = outcome.truth / demo.FLUX
    flux, ivar, bits = demo.noisy_exposures(truth, model)
    star = read(outcome.files["input"], exposures="individual")
    back = star.rebin(model.grid)
    np.testing.assert_array_equal(back.mask, bits != 0)
    np.testing.assert_allclose(back.flux, np.where(bits == 0, flux * demo.FLUX, 0), rtol=1e-6)
    np.testing.assert_allclose(back.ivar, np.where(bits == 0, ivar / demo.FLUX**2, 0), rtol=1e-6)
    coadd = read(outcome.files["input"]).rebin(model.grid)
    np.testing.assert_array_equal(coadd.mask[0], back.mask.all(0))


def test_one_cosmic_ray_is_masked_and_one_is_not(outcome, model):
    flux, _, bits = demo.noisy_exposures(outcome.truth / demo.FLUX, model)
    sigma = np.std((flux - outcome.truth / demo.FLUX)[bits == 0])
    for exposure, at, found in demo.COSMIC_RAYS:
        hit = np.abs(model.grid.wavelength - at - 4).argmin()
        if abs(model.grid.wavelength[hit] - at - 4) <= 4:
            assert (bits[exposure, hit] != 0) == found
            assert flux[exposure, hit] - outcome.truth[hit] / demo.FLUX > 5 * sigma


def test_losses_are_those_of_the_result(outcome):
    truth = outcome.truth / demo.FLUX
    assert outcome.losses["denoised"] == pytest.approx(
        np.mean((outcome.result.flux / demo.FLUX - truth) ** 2)
    )
    assert outcome.losses["mean of the exposures"] < outcome.losses["one exposure"]
    assert all(np.isfinite(list(outcome.losses.values())))


def test_products_are_there_and_not_overwritten(outcome, model):
    assert all(path.exists() for path in outcome.files.values())
    with pytest.raises(BayesspecError, match="there already"):
        demo.run_demo(outcome.files["input"].parent, model)


def test_seed_decides(model, outcome, tmp_path):
    state = torch.random.get_rng_state()
    again, other = (demo.run_demo(tmp_path / str(seed), model, seed=seed) for seed in (0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert outcome.files["input"].read_bytes() == again.files["input"].read_bytes()
    np.testing.assert_array_equal(outcome.result.flux, again.result.flux)
    assert outcome.files["input"].read_bytes() != other.files["input"].read_bytes()


def test_shipped_model_beats_its_input_and_knows_the_class(tmp_path):
    from bayesspec.bundle import shipped

    if "kang2021" not in shipped():
        pytest.skip("needs the trained bundle kang2021")
    outcome = demo.run_demo(tmp_path, load_model("kang2021"))
    assert outcome.losses["denoised"] < outcome.losses["mean of the exposures"] / 2
    assert outcome.result.table["class"][0] == "M"
