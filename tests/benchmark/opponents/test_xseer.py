"""Laws of the published network: what is fed to it, and what is made of its output."""

from __future__ import annotations

from importlib.util import find_spec

import h5py
import numpy as np
import pytest

from bayesspec.benchmark.opponents.pairs import Pairs
from bayesspec.benchmark.opponents.xseer import UNITS, Xseer, published_layers
from bayesspec.exceptions import BayesspecError
from bayesspec.grid import WavelengthGrid
from tests.benchmark.opponents.conftest import GRID, draw_noise, draw_stars, xseer_layers


def test_smooth_spectra_pass_layers_that_keep_them():
    """Onto the network's pixels and back: layers that are a low-pass filter return a smooth spectrum."""
    grid = WavelengthGrid()
    flux = 1 + 0.2 * np.sin((grid.wavelength - 4000) / 400)[None]
    clean = Xseer(xseer_layers(), grid).denoise(flux, 0 * flux, np.zeros(flux.shape, bool))
    # Away from the ends, where the flux that the grid does not have begins.
    np.testing.assert_allclose(clean[:, 200:-200], flux[:, 200:-200], atol=0.01)


def test_grids_that_the_network_does_not_know_are_refused():
    with pytest.raises(BayesspecError, match="xseer covers 3737-9384 Angstrom, not 3000-9000"):
        Xseer(xseer_layers(), WavelengthGrid(3000, 9000, 128))


def test_the_unit_is_chosen_on_pairs():
    """Layers that work only near one unit of flux: that unit is found."""
    layers = xseer_layers()
    (kernel, _), middle, (back, _) = layers
    # Below 20 in the input's first components the exponential bends; far above it the bias is wrong.
    layers = [(kernel, np.full(400, 1e3)), middle, (back, -1e3 * kernel.sum(1))]
    pairs = Pairs.draw(draw_stars(20, 0), draw_noise(10, 1), per_class=5, seed=0, gaps=0.0)
    tuned = Xseer.tune(layers, GRID, pairs)
    scores = {unit: pairs.score(Xseer(layers, GRID, unit=unit)) for unit in UNITS}
    assert scores[tuned.unit] == min(scores.values())


def test_weights_come_from_the_installed_package_without_importing_it(tmp_path, monkeypatch):
    """From the file that the package ships; a file of another shape, or no package, is one clear error."""
    if find_spec("xseer") is None:
        with pytest.raises(BayesspecError, match="pip install --no-deps xseer"):
            published_layers()

    package = tmp_path / "xseer"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('TensorFlow')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BayesspecError, match=r"xseer\.h5: not the weights of xseer 0\.8"):
        published_layers()

    expected = xseer_layers()
    with h5py.File(package / "xseer.h5", "w") as file:
        for name, (kernel, bias) in zip(("dense", "dense_1", "dense_2"), expected, strict=True):
            group = file.create_group(f"model_weights/{name}/{name}")
            group["kernel:0"], group["bias:0"] = kernel, bias
    for found, made in zip(published_layers(), expected, strict=True):
        for a, b in zip(found, made, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(find_spec("xseer") is None, reason="needs the package xseer")
def test_the_published_network_smooths():
    """The real weights: of a flat spectrum with noise little noise is left."""
    grid = WavelengthGrid()
    flux = 1 + 0.1 * np.random.default_rng(0).standard_normal((5, grid.size))
    clean = Xseer(published_layers(), grid).denoise(flux, 0 * flux, np.zeros(flux.shape, bool))
    assert (np.diff(clean) ** 2).mean() < 0.05 * (np.diff(flux) ** 2).mean()
