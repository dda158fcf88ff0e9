"""Laws of wavelet shrinkage."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bayesspec.exceptions import BayesspecError

METHODS = ("BayesShrink", "VisuShrink")
SIZE = 1024


def wavelet(method: str, **settings: object):
    pytest.importorskip("skimage")
    pytest.importorskip("pywt")
    from bayesspec.benchmark.opponents.wavelet import Wavelet

    return Wavelet(method, np.ones(SIZE), **settings)


@pytest.mark.parametrize("method", METHODS)
def test_white_noise_goes(method):
    """Of a flat spectrum with noise the noise is shrunk by far, with the pipeline's ivar and without."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((20, SIZE))
    nothing = np.zeros(noise.shape, bool)
    for ivar in (np.full(noise.shape, 100.0), 0 * noise):
        clean = wavelet(method).denoise(1 + noise, ivar, nothing)
        assert ((clean - 1) ** 2).mean() < 0.2 * (noise**2).mean()


@pytest.mark.parametrize("method", METHODS)
def test_spectra_without_noise_come_back(method):
    """A spectrum that its ivar calls almost exact is not touched."""
    x = np.linspace(-1, 1, SIZE)
    flux = np.stack([1 + 0.3 * np.sin(9 * x), 1 - 0.8 * np.exp(-0.5 * (x / 0.005) ** 2)])
    clean = wavelet(method).denoise(flux, np.full(flux.shape, 1e12), np.zeros(flux.shape, bool))
    np.testing.assert_allclose(clean, flux, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_whitening_tells_the_noisy_arm_from_the_quiet_one(method):
    """Lines of the quiet red survive, noise of the blue does not: better than one threshold for both."""
    rng, x = np.random.default_rng(1), np.arange(SIZE)
    lines = 1 - 0.15 * np.exp(-0.5 * ((x % 32 - 16) / 2.0) ** 2)
    sigma = np.geomspace(0.4, 0.01, SIZE)
    noisy = lines + sigma * rng.standard_normal((20, SIZE))
    ivar = np.broadcast_to(sigma**-2, noisy.shape)
    loss = [
        ((wavelet(method, smoothing=s).denoise(noisy, ivar, noisy < -99) - lines) ** 2).mean()
        for s in (51, 0)
    ]
    assert loss[0] < loss[1]


def test_pixels_called_useless_are_bridged():
    """Noise of a sky line that the pipeline knows of does not stay in the spectrum as a spike."""
    flux, ivar = np.ones((1, SIZE)), np.full((1, SIZE), 100.0)
    flux[0, 100], ivar[0, 100] = 9.0, 1.0
    nothing = np.zeros(flux.shape, bool)
    spike = [wavelet("BayesShrink", reject=r).denoise(flux, ivar, nothing)[0, 100] for r in (2.0, 0.0)]
    assert spike[0] < 1.2 < spike[1]


def test_the_extra_is_named_where_it_is_missing():
    """The package can be imported without scikit-image; what needs it says how to get it."""
    code = (
        "import sys; sys.modules['skimage'] = None\n"
        "import numpy as np\n"
        "import bayesspec.benchmark.opponents.suite\n"
        "from bayesspec.benchmark.opponents.wavelet import Wavelet\n"
        "try: Wavelet('BayesShrink', np.ones(8))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(BayesspecError.__name__)
    assert 'pip install "bayesspec-stars[baselines]"' in done.stdout
