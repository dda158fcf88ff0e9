"""Probabilistic principal components with wavelength-dependent, heavy-tailed noise: a strong opponent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from bayesspec.benchmark.measures.der_snr import der_noise
from bayesspec.exceptions import BayesspecError
from bayesspec.observation import FULL_COVERAGE
from bayesspec.training.exposures import NoiseLibrary
from bayesspec.training.library import StarLibrary

from .base import Array, Baseline, Mask
from .pairs import Pairs, search
from .scales import noise_scale, pipeline_factor

__all__ = ["ProbabilisticPCA"]

CHOICES = {"blend": (1.0, 0.75, 0.5, 0.25, 0.0), "dof": (5.0, 3.0, 10.0, 30.0)}
STEPS = 12
"""Re-weighted least-squares steps: after ten, 95 % of spectra change by less than 1e-3 of their error."""

LEAST_VARIANCE = 1e-6
"""Minimum misfit variance of a pixel: no star is reproduced to better than 0.1 % of its mean flux."""


class ProbabilisticPCA(Baseline):
    r"""Posterior mean of a linear Gaussian model of stars under Student-t noise.

    A spectrum is :math:`y = a (\mu + W c + e) + \epsilon` with :math:`c \sim N(0, 1)`,
    :math:`e_d \sim N(0, \psi_d)` for the misfit of K components. The scale of the noise is that of the
    pipeline (calibrated by wavelength) blended with that of training exposures times an amplitude found from
    the spectrum's own residuals; without pipeline errors only the latter is used. The t-distribution is
    solved by re-weighted least squares, with weight 0 for missing pixels. The scale a is free, because the
    mean flux of the observed pixels is not that of the whole grid (1 % of missing blue pixels can change it
    more than the noise does), and very different if an arm is missing.

    References:
        | Tipping & Bishop 1999, J. R. Stat. Soc. B 61, 611
        | Bailey 2012, PASP 124, 1015 (weights and missing pixels by expectation maximisation)

    Arguments:
        mean: Mean star, (D,).
        components: W, the components times the standard deviations of their coefficients, (K, D).
        uniqueness: psi, (D,).
        scale: Noise by wavelength in units of a spectrum's noise level, (D,).
        factor: Noise in units of the pipeline's, (D,).
        blend: Weight of the pipeline's errors in the logarithm of the noise, where they are known.
        dof: Degrees of freedom of the noise.
    """

    def __init__(
        self,
        mean: Array,
        components: Array,
        uniqueness: Array,
        scale: Array,
        factor: Array,
        *,
        blend: float = 1.0,
        dof: float = 5.0,
    ) -> None:
        self.mean, self.components, self.uniqueness = mean, components, uniqueness
        self.scale, self.factor = scale, factor
        self.blend, self.dof = blend, dof
        self.name, self.size = f"pca-{len(components)}", len(mean)
        self._design = np.concatenate([components, mean[None]])
        self._products = _products(self._design)

    @classmethod
    def fit(
        cls,
        stars: StarLibrary,
        noise: NoiseLibrary,
        *,
        components: int,
        balance: float = 0.7,
        model_vote: float = 0.5,
        rounds: int = 12,
        seed: int,
    ) -> Self:
        """Fit stars by expectation maximisation, weighted by class and pixel, and noise by wavelength.

        Arguments:
            stars: Clean training spectra; their own noise and missing pixels are accounted for.
            noise: Training exposures.
            components: K.
            balance: 1 gives every class the same weight, 0 every star. For validation stars of nearly every
                class a little less than 1 is best.
            model_vote: Weight of a theoretical star, relative to a real one.
            rounds: Iterations of expectation maximisation.
            seed: Seed of the randomised singular vectors from which it starts.

        Raises:
            BayesspecError: if there are not more stars than components.
        """
        if len(stars) <= components:
            raise BayesspecError(f"{components} components need more than {len(stars)} stars")
        weights = stars.sampling_weights(balance, model_vote)
        fitted = _expectation_maximisation(stars, weights, components, rounds, seed)
        return cls(*fitted, noise_scale(noise), pipeline_factor(noise))

    def tune(self, validation: Pairs) -> Self:
        """The same components with the blend and tail of the noise that do best on validation pairs."""
        return self._with(**search(self._with, CHOICES, validation))

    def _with(self, **settings: float) -> Self:
        return type(self)(self.mean, self.components, self.uniqueness, self.scale, self.factor, **settings)

    def _denoise(self, flux: Array, ivar: Array, mask: Mask) -> Array:
        n, k = len(flux), len(self.components)
        observed = ~mask

        # The prior of (a c, a): coefficients as wide as the scale, and a scale of about 1.
        scale = np.ones(n)
        target = np.zeros(k + 1)
        target[k] = 1.0

        level = np.maximum(der_noise(flux, mask)[0], 1e-3)
        spectrum, weight = np.broadcast_to(self.mean, flux.shape), observed.astype(float)
        for step in range(STEPS):
            variance = self._noise_variance(ivar, level) + scale[:, None] ** 2 * self.uniqueness
            residual = flux - spectrum
            if step:
                weight = observed * (self.dof + 1) / (self.dof + residual**2 / variance)
            pull = weight / variance
            a = _symmetric(pull @ self._products, k + 1)
            a[:, range(k), range(k)] += scale[:, None] ** -2.0
            a[:, k, k] += 1.0
            b = target + (pull * flux) @ self._design.T
            coefficients = np.linalg.solve(a, b[..., None])[..., 0]
            scale = np.clip(coefficients[:, k], 0.1, 10.0)
            spectrum = coefficients @ self._design
            level = self._level(flux - spectrum, observed, scale)

        # The misfit of the components, as far as it can be told from the pixel's noise.
        share = scale[:, None] ** 2 * self.uniqueness / variance * np.minimum(weight, 1.0)
        return spectrum + share * (flux - spectrum)

    def _noise_variance(self, ivar: Array, level: Array) -> Array:
        own = (level[:, None] * self.scale) ** 2
        known = ivar > 0
        pipeline = self.factor**2 / np.where(known, ivar, 1.0)
        return np.where(known, pipeline**self.blend * own ** (1 - self.blend), own)

    def _level(self, residual: Array, observed: Mask, scale: Array) -> Array:
        """Amplitude of a spectrum's noise from its residuals, minus the part that is not noise, (N,)."""
        count = np.maximum(observed.sum(-1, keepdims=True), 1)
        excess = np.where(
            observed, (residual**2 - scale[:, None] ** 2 * self.uniqueness) / self.scale**2, np.inf
        )
        at = np.round(0.6827 * (count - 1)).astype(int)
        square = np.take_along_axis(np.sort(excess, axis=-1), at, axis=-1)[:, 0]
        return np.sqrt(np.maximum(square, 1e-6))

    def _state(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        names = ("mean", "components", "uniqueness", "scale", "factor")
        return {name: getattr(self, name) for name in names}, {"blend": self.blend, "dof": self.dof}

    @classmethod
    def _from_state(cls, arrays: Mapping[str, NDArray], config: Mapping[str, Any]) -> Self:
        state: dict[str, Any] = {**arrays, **config}
        return cls(**state)


def _expectation_maximisation(
    stars: StarLibrary, weights: Array, components: int, rounds: int, seed: int
) -> tuple[Array, Array, Array]:
    """Mean (D,), components (K, D) for unit-variance coefficients, and uniqueness (D,)."""
    observed = ~stars.mask
    variance = _star_variance(stars)
    weights = weights / weights.sum()
    partial = observed.mean(-1) < FULL_COVERAGE
    k = components

    # Start from the singular vectors of the spectra with the mean star in their gaps.
    total = np.maximum(weights @ observed, 1e-12)
    mean = weights @ (stars.flux * observed) / total
    filled = np.where(observed, stars.flux - mean, 0.0) * np.sqrt(weights)[:, None]
    _, singular, vectors = randomized_svd(filled, k, random_state=seed)
    w = singular[:, None] * vectors
    psi = np.maximum((filled**2).sum(0) / total - (w**2).sum(0), 1e-4)

    unit = np.ones(len(stars))
    for _ in range(rounds):
        flux = stars.flux * unit[:, None]
        pull = (observed / (variance * unit[:, None] ** 2 + psi)).astype(np.float32)

        # Coefficients of every star, and their covariance.
        a = _symmetric((pull @ _products(w).astype(np.float32)).astype(float), k) + np.eye(k)
        b = (pull * (flux - mean)) @ w.T
        covariance = np.linalg.inv(a)
        c = (covariance @ b[..., None])[..., 0]

        # Mean and components at every pixel.
        joint = np.concatenate([c, np.ones((len(c), 1))], axis=1)
        moment = joint[:, :, None] * joint[:, None, :]
        moment[:, :k, :k] += covariance
        upper = np.triu_indices(k + 1)
        weighted = (pull * weights[:, None].astype(np.float32)).T
        left = _symmetric((weighted @ moment[:, *upper].astype(np.float32)).astype(float), k + 1)
        left += 1e-6 * np.trace(left, axis1=1, axis2=2)[:, None, None] / (k + 1) * np.eye(k + 1)
        solution = np.linalg.solve(left, ((weighted * flux.T) @ joint)[..., None])[..., 0]
        w, mean = solution[:, :k].T, solution[:, k]

        # The typical residual of every pixel, not dominated by a few stars with strong emission.
        spectrum = c @ w + mean
        psi = _typical_variance(flux - spectrum, observed, weights, variance * unit[:, None] ** 2)

        # Incomplete spectra are in units of their own mean; rescale them to that of the whole grid.
        size = np.abs(spectrum)
        share = (size * observed).sum(-1) / observed.sum(-1) / size.mean(-1)
        unit = np.where(partial, share, 1.0)

    # Coefficients of unit variance, components orthogonal.
    spread = np.linalg.cholesky((c * weights[:, None]).T @ c + np.tensordot(weights, covariance, 1))
    _, singular, vectors = np.linalg.svd(spread.T @ w, full_matrices=False)
    return mean, singular[:, None] * vectors, psi


def _star_variance(stars: StarLibrary) -> NDArray[np.float32]:
    """Variance of a star's own noise, (N, D), from its ivar or its S/N."""
    known = stars.ivar > 0
    typical = (1 / np.maximum(stars.snr, 1.0) ** 2)[:, None]
    return np.where(known, 1 / np.where(known, stars.ivar, 1.0), typical).astype(np.float32)


def _typical_variance(residual: Array, observed: Mask, weights: Array, variance: Array) -> Array:
    """Squared residual with 68.27 % of the weight below it, minus the stars' own noise, (D,)."""
    square = np.where(observed, residual**2, np.inf)
    order = np.argsort(square, axis=0)
    share = np.cumsum((weights[:, None] * observed)[order, np.arange(square.shape[1])], axis=0)
    at = (share < 0.6827 * share[-1]).sum(0).clip(max=len(square) - 1)
    typical = np.take_along_axis(square, np.take_along_axis(order, at[None], 0), 0)[0]
    own = (weights[:, None] * observed * np.minimum(variance, 1.0)).sum(0) / np.maximum(share[-1], 1e-12)
    return np.maximum(typical - own, np.maximum(0.05 * typical, LEAST_VARIANCE))


def _products(rows: Array) -> Array:
    """Products of all pairs of K rows, pixel by pixel, (D, K (K + 1) / 2)."""
    i, j = np.triu_indices(len(rows))
    return np.ascontiguousarray((rows[i] * rows[j]).T)


def _symmetric(upper: Array, size: int) -> Array:
    """Symmetric matrices (N, K, K) from their upper triangles."""
    i, j = np.triu_indices(size)
    full = np.empty((len(upper), size, size))
    full[:, i, j] = upper
    full[:, j, i] = upper
    return full
