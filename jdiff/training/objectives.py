"""What networks are trained to minimise: functions of (parameters, key, batch), passed to `train`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdiff.types import Array


def spread_timesteps(key: Array, n: int, steps: int) -> Array:
    """[n] timesteps in 0..steps-1, each uniform, together evenly spread (Kingma et al. 2021, VDM, appendix I.1)."""
    return ((jax.random.uniform(key) + jnp.arange(n) / n) % 1 * steps).astype(jnp.int32)


def gaussian_kl(mean: Array, log_var: Array, other_mean: Array, other_log_var: Array) -> Array:
    """KL(N(mean, e^log_var) || N(other_mean, e^other_log_var)) of each number, in nats."""
    gap = (mean - other_mean) ** 2 * jnp.exp(-other_log_var)
    return 0.5 * (other_log_var - log_var - 1 + jnp.exp(log_var - other_log_var) + gap)


def eight_bit_nll(x: Array, mean: Array, log_var: Array) -> Array:
    """-log P(x) in nats, x one of 256 values in [-1, 1], under N(mean, e^log_var) cut into bins (DDPM, eq. 13)."""
    inverse = jnp.exp(-log_var / 2)
    above = jax.scipy.stats.norm.cdf((x - mean + 1 / 255) * inverse)
    below = jax.scipy.stats.norm.cdf((x - mean - 1 / 255) * inverse)
    mass = jnp.where(x < -0.999, above, jnp.where(x > 0.999, 1 - below, above - below))
    return -jnp.log(jnp.maximum(mass, 1e-12))


def root_snr_weight(abar: Array, least: float = 0.0, most: float = 2.0, least_abar: float = 0.002) -> Array:
    """[steps] weights of the noise error, by which the clean image's error counts min(sqrt(SNR), `most`).

    With SNR = abar / (1 - abar), the noise error is SNR times the clean image's: so that levels count most where shapes
    are decided, little where only pixels are left to decide (as Hang et al. 2023, Min-SNR, has it), and more than there
    at the highest noise, which decides colours. `least_abar` bounds the weights.

    >>> [round(float(weight), 2) for weight in root_snr_weight(jnp.array([0.99, 0.5, 0.01]))]
    [0.02, 1.0, 9.95]
    """
    a = jnp.maximum(abar, least_abar)
    snr = a / (1 - a)
    return jnp.maximum(jnp.minimum(jnp.sqrt(snr), most) / snr, least)


def cast_weight(abar: Array, least_abar: float = 0.005) -> Array:
    """[steps] weights by which the noise error's mean counts as the clean image's, down to abar = `least_abar`.

    >>> cast_weight(jnp.array([0.5, 0.0])).tolist()
    [1.0, 200.0]
    """
    return (1 - abar) / jnp.maximum(abar, least_abar)


def hybrid(
    abar: Array, weight: Array, cast: Array, denoise: Callable, params: Any, key: Array, batch: Any
) -> tuple[Array, dict[str, Array]]:
    """Weighted noise error plus the variational bound that the variances alone are trained by.

    `abar`, `weight` and `cast` [steps]; `denoise(params, x, t, batch) -> Prediction`; `batch.images` [n h w c] in
    [-1, 1]. The noise error counts `weight`; its mean over the picture, a colour cast, has a term of its own, which
    counts `cast`: it is 1/(h w) of the noise error and decided at the highest levels alone, so that nothing else would
    teach it.

    Source: Nichol and Dhariwal 2021 (Improved DDPM), eq. 15 and 16; the offset term is this library's.
    """
    x0 = batch.images
    t_key, noise_key = jax.random.split(key)
    t = spread_timesteps(t_key, x0.shape[0], abar.shape[0])
    noise = jax.random.normal(noise_key, x0.shape)
    column = (slice(None), None, None, None)
    a, a_to = abar[t][column], jnp.where(t > 0, abar[jnp.maximum(t - 1, 0)], 1.0)[column]
    x = jnp.sqrt(a) * x0 + jnp.sqrt(1 - a) * noise
    prediction = denoise(params, x, t.astype(jnp.float32), batch)

    error = prediction.estimate - noise
    simple = (error**2).mean(axis=(1, 2, 3))
    offset = (error.mean(axis=(1, 2)) ** 2).mean(axis=-1)
    weighted, offset = (weight[t] * simple).mean(), (cast[t] * offset).mean()

    beta = 1 - a / a_to
    upper, lower = jnp.log(beta), jnp.log(jnp.maximum(beta * (1 - a_to) / (1 - a), 1e-20))
    fraction = (prediction.variance + 1) / 2
    log_var = fraction * upper + (1 - fraction) * jnp.where(t[column] > 0, lower, upper)
    estimate = jax.lax.stop_gradient(prediction.estimate)

    def mean(x0):
        return jnp.sqrt(a_to) * beta / (1 - a) * x0 + jnp.sqrt(a / a_to) * (1 - a_to) / (1 - a) * x

    guess = mean((x - jnp.sqrt(1 - a) * estimate) / jnp.sqrt(a))
    bound = jnp.where(
        t[column] > 0, gaussian_kl(mean(x0), lower, guess, log_var), eight_bit_nll(x0, guess, log_var)
    ).mean(axis=(1, 2, 3)) / jnp.log(2.0)
    bits = bound.mean()
    loss = weighted + offset + bits * abar.shape[0] / 1000
    return loss, {"mse": simple.mean(), "weighted": weighted, "offset": offset, "bits": bits}
