"""The posterior density of a model in JAX, only for NumPyro's NUTS in the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bayesspec.distributions.spectrum_noise import HIT_WIDTH, LOG_HIT, LOG_USUAL
from bayesspec.model import SCALE_WIDTH, StellarModel
from bayesspec.nn.noise import ALPHA_MAX

__all__ = ["jax_log_density"]


def jax_log_density(model: StellarModel) -> Callable[[Any, Any, Any], Any]:
    """log p(y, z, a) of one spectrum, marginalised over the class: a function of (z, log a), flux and mask.

    Same weights, same formula as `StellarModel`: eqs. (3)-(6) with eq. (16) for missing pixels.

    Arguments:
        model: The model.
    """
    import jax
    import jax.numpy as jnp
    from jax.scipy.special import logsumexp

    weight = {name: np.asarray(tensor) for name, tensor in model.state_dict().items()}
    generator, strides = model.generator, model.generator.config["strides"]
    kernel, reach = model.noise.kernel, model.noise.reach
    centres, bandwidth = weight["prior.centres"], weight["prior.bandwidth"]
    latent = centres.shape[-1]
    width = np.broadcast_to(bandwidth.reshape(len(centres), -1), (len(centres), latent))
    log_norm = -np.log(width).sum(-1) - 0.5 * latent * np.log(2 * np.pi)

    def dense(name: str, x: Any) -> Any:
        return x @ weight[f"{name}.weight"].T + weight[f"{name}.bias"]

    def spectrum(z: Any) -> Any:
        x = jax.nn.silu(dense("generator.features", jax.nn.silu(dense("generator.dense", z))))
        x = x.reshape(generator.width, -1)
        for layer, stride in enumerate(strides):
            y = (jax.nn.silu(x) if layer else x) @ weight[f"generator.upsample.{layer}.kernel.weight"].T
            first, second = jnp.split(y, 2, axis=-1)
            blocks = jnp.pad(first, ((0, 1), (0, 0))) + jnp.pad(second, ((1, 0), (0, 0)))
            bias = weight[f"generator.upsample.{layer}.bias"]
            x = blocks.reshape(-1, len(bias))[stride // 2 : -(stride // 2)] + bias
        return x[:, 0] + weight["generator.mean"]

    def log_prior(z: Any) -> Any:
        distance = ((z - centres) / width[:, None]) ** 2
        by_class = logsumexp(weight["prior.log_weights"] - 0.5 * distance.sum(-1), axis=-1) + log_norm
        return logsumexp(by_class) - jnp.log(len(centres))

    def log_density(theta: Any, flux: Any, mask: Any) -> Any:
        z, log_scale = theta[:latent], theta[latent]
        eps = jnp.where(mask, 0.0, flux * jnp.exp(-log_scale) - spectrum(z))
        read = eps if reach is None else reach * jnp.tanh(eps / reach)
        windows = jnp.stack([read[k : len(eps) - kernel + k] for k in range(kernel)], axis=-1)
        hidden = jax.nn.relu(dense("noise.convolution", windows))
        mean, raw = dense("noise.heads", jax.nn.relu(dense("noise.pixelwise", hidden))).T
        mean = jnp.concatenate([weight["noise.first_mean"], mean])
        alpha = jnp.concatenate([weight["noise.first_alpha"], ALPHA_MAX * jnp.tanh(raw / ALPHA_MAX)])
        square = ((eps - mean) * jnp.exp(-alpha)) ** 2
        usual = LOG_USUAL - 0.5 * square - 0.5 * jnp.log(2 * jnp.pi)
        hit = LOG_HIT - jnp.log1p(square / HIT_WIDTH**2) - jnp.log(HIT_WIDTH * jnp.pi)
        terms = jnp.logaddexp(usual, hit) - alpha - log_scale
        seen = jnp.stack([~mask[k : len(mask) - kernel + k] for k in range(kernel + 1)]).all(0)
        used = jnp.concatenate([~mask[:kernel], seen])
        log_prior_scale = -0.5 * (log_scale / SCALE_WIDTH) ** 2 - jnp.log(SCALE_WIDTH * jnp.sqrt(2 * jnp.pi))
        return log_prior(z) + log_prior_scale + jnp.where(used, terms, 0.0).sum()

    return log_density
