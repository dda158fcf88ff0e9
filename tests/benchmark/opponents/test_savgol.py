"""Laws of Savitzky-Golay smoothing."""

from __future__ import annotations

import numpy as np

from bayesspec.benchmark.measures.der_snr import der_noise
from bayesspec.benchmark.opponents.savgol import SavitzkyGolay
from tests.benchmark.opponents.conftest import draw_noise, draw_stars


def test_polynomials_come_back():
    """A local parabola through a parabola is that parabola, ends included."""
    x = np.linspace(-1, 1, 128)
    parabola = np.stack([2 + x, 2 + x**2, 2 - 0.5 * x - x**2])
    clean = SavitzkyGolay([0.1], [21], [2]).denoise(parabola, 0 * parabola, np.zeros(parabola.shape, bool))
    np.testing.assert_allclose(clean, parabola, atol=1e-10)


def test_more_noise_wider_windows():
    """What is chosen for noisier spectra is wider; what is fed is measured, not told."""
    fitted = SavitzkyGolay.tune(draw_stars(30, 0), draw_noise(20, 1, outliers=0), per_class=10, seed=0)
    assert (np.diff(fitted.levels) > 0).all()
    assert fitted.windows[0] < fitted.windows[-1]
    rng = np.random.default_rng(0)
    for level, window, order in zip(fitted.levels, fitted.windows, fitted.orders, strict=True):
        flux = 1 + level * rng.standard_normal((1, 4096))
        own = SavitzkyGolay([1.0], [window], [order])
        nothing = np.zeros(flux.shape, bool)
        if abs(np.log(der_noise(flux, nothing)[0][0] / level)) < 0.2:
            expected = own.denoise(flux, 0 * flux, nothing)
            np.testing.assert_allclose(fitted.denoise(flux, 0 * flux, nothing), expected)


def test_same_seed_same_choice():
    first, second = (
        SavitzkyGolay.tune(draw_stars(20, 0), draw_noise(10, 1), per_class=4, seed=2) for _ in range(2)
    )
    assert first._state() == second._state()
