"""Objectives: functions `(params, key, batch) -> (loss, metrics)` for `train`, and their parts."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdiff.types import Array, Params, Prediction


class HasImages(Protocol):
    """A batch with images, and anything else that the network needs."""

    @property
    def images(self) -> Array: ...  # [n h w c] in [-1, 1]


B = TypeVar("B", bound=HasImages)


def spread_timesteps(key: Array, n: int, steps: int) -> Array:
    """Draws evenly spread timesteps. Each one by itself is uniform in 0 to `steps` - 1.

    Args:
        key: random key.
        n: number of timesteps.
        steps: length of the noise schedule.

    Returns:
        [n] int32.

    Example:
        >>> sorted((spread_timesteps(jax.random.key(0), 4, 1000) // 250).tolist())
        [0, 1, 2, 3]

    Reference:
        Kingma et al. 2021 (VDM), appendix I.1.
    """
    return (_spread(key, n) * steps).astype(jnp.int32)


def _spread(key: Array, n: int) -> Array:
    """Draws evenly spread numbers [n]. Each one by itself is uniform in 0 to 1."""
    return (jax.random.uniform(key) + jnp.arange(n) / n) % 1


def timestep_quantiles(abar: np.ndarray, uniform: float = 0.1) -> np.ndarray:
    """Returns the cumulative distribution of timesteps whose log(noise / signal) is normal.

    Args:
        abar: noise schedule [steps].
        uniform: share of the timesteps that is uniform instead.

    Returns:
        [steps], for `v_error`.

    Example:
        >>> timestep_quantiles(np.linspace(0.99, 0.01, 3), uniform=0.0).round(2).tolist()
        [0.06, 0.94, 1.0]

    Reference:
        Esser et al. 2024 (Stable Diffusion 3), eq. 19, which draws logit-normal times of a flow.
    """
    log_ratio = 0.5 * (np.log1p(-abar) - np.log(abar))
    density = np.exp(-(log_ratio**2) / 2) * np.gradient(log_ratio)
    return np.cumsum((1 - uniform) * density / density.sum() + uniform / len(abar))


def gaussian_kl(mean: Array, log_var: Array, other_mean: Array, other_log_var: Array) -> Array:
    """Returns KL(N(mean, e^log_var) || N(other_mean, e^other_log_var)) for each element, in nats.

    Args:
        mean: means of the first Gaussians.
        log_var: log variances of the first Gaussians.
        other_mean: means of the second Gaussians.
        other_log_var: log variances of the second Gaussians.

    Example:
        >>> gaussian_kl(jnp.array(1.0), jnp.array(0.0), jnp.array(0.0), jnp.array(0.0)).item()
        0.5
    """
    gap = (mean - other_mean) ** 2 * jnp.exp(-other_log_var)
    return 0.5 * (other_log_var - log_var - 1 + jnp.exp(log_var - other_log_var) + gap)


def eight_bit_nll(x: Array, mean: Array, log_var: Array) -> Array:
    """Returns the negative log-likelihood of 8-bit pixels, in nats: -log of a Gaussian's mass in each pixel's bin.

    Args:
        x: pixels in [-1, 1].
        mean: means of the Gaussians.
        log_var: log variances of the Gaussians.

    Reference:
        Ho et al. 2020 (DDPM), eq. 13.
    """
    inverse = jnp.exp(-log_var / 2)
    above = jax.scipy.stats.norm.cdf((x - mean + 1 / 255) * inverse)
    below = jax.scipy.stats.norm.cdf((x - mean - 1 / 255) * inverse)
    mass = jnp.where(x < -0.999, above, jnp.where(x > 0.999, 1 - below, above - below))
    return -jnp.log(jnp.maximum(mass, 1e-12))


def root_snr_weight(abar: Array, least: float = 0.0, most: float = 2.0, least_abar: float = 0.002) -> Array:
    """Returns weights of the squared noise error for each timestep.

    The squared noise error is that of the clean image, times SNR = abar / (1 - abar). With these weights, the squared
    error of the clean image has the weight min(sqrt(SNR), most). The weights grow with the noise. They are small at low
    noise, where only fine detail is missing, larger at medium noise, which decides the shapes, and largest at the
    highest noise, which decides the colours.

    Args:
        abar: noise schedule [steps].
        least: smallest weight.
        most: largest weight of the clean image's squared error.
        least_abar: smallest value of abar, which bounds the weights. Smaller values are replaced by it.

    Returns:
        [steps].

    Example:
        >>> [round(float(weight), 2) for weight in root_snr_weight(jnp.array([0.99, 0.5, 0.01]))]
        [0.02, 1.0, 9.95]

    Reference:
        Clipping by `most` follows Hang et al. 2023 (Min-SNR).
    """
    a = jnp.maximum(abar, least_abar)
    snr = a / (1 - a)
    return jnp.maximum(jnp.minimum(jnp.sqrt(snr), most) / snr, least)


def cast_weight(abar: Array, least_abar: float = 0.005) -> Array:
    """Returns weights that turn the squared mean of the noise error into that of the clean image's error.

    Args:
        abar: noise schedule [steps].
        least_abar: smallest value of abar, which bounds the weights. Smaller values are replaced by it.

    Returns:
        [steps].

    Example:
        >>> cast_weight(jnp.array([0.5, 0.0])).tolist()
        [1.0, 200.0]
    """
    return (1 - abar) / jnp.maximum(abar, least_abar)


def v_error(
    abar: Array,
    quantiles: Array,
    denoise: Callable[[Params, Array, Array, B], Prediction],
    params: Params,
    key: Array,
    batch: B,
) -> tuple[Array, dict[str, Array]]:
    """Computes the objective of a network that predicts v = signal eps - noise x0: its mean squared error.

    Args:
        abar: noise schedule [steps].
        quantiles: cumulative distribution of the timesteps [steps], from `timestep_quantiles`.
        denoise: `(params, x, t, batch) -> Prediction`.
        params: parameters of the network.
        key: random key.
        batch: images [n h w c] in [-1, 1], and anything else that `denoise` needs.

    Returns:
        The loss, and no metrics.

    Reference:
        Salimans and Ho 2022, section 4 and appendix D.
    """
    x0, n = batch.images, batch.images.shape[0]
    t_key, noise_key = jax.random.split(key)
    t = jnp.minimum(jnp.searchsorted(quantiles, _spread(t_key, n)), abar.shape[0] - 1)
    signal, noise = (jnp.sqrt(a)[:, None, None, None] for a in (abar[t], 1 - abar[t]))
    eps = jax.random.normal(noise_key, x0.shape)
    prediction = denoise(params, signal * x0 + noise * eps, t.astype(x0.dtype), batch)
    return ((prediction.estimate - (signal * eps - noise * x0)) ** 2).mean(), {}


def hybrid(
    abar: Array,
    weight: Array,
    cast: Array,
    denoise: Callable[[Params, Array, Array, B], Prediction],
    params: Params,
    key: Array,
    batch: B,
) -> tuple[Array, dict[str, Array]]:
    """Computes the objective of a network that predicts the noise and a learned variance.

    It is the sum of three terms. The first is the weighted squared noise error. The second is the variational bound,
    which trains only the variances. The third is the squared mean of the noise error over the image, which is a colour
    cast. The colour cast has its own term, because it is only 1 / (h w) of the first one, and is decided at the highest
    noise.

    Args:
        abar: noise schedule [steps].
        weight: weights of the squared noise error, [steps].
        cast: weights of the colour cast, [steps].
        denoise: `(params, x, t, batch) -> Prediction`.
        params: parameters of the network.
        key: random key.
        batch: images [n h w c] in [-1, 1], and anything else that `denoise` needs.

    Returns:
        The loss, and the metrics mse (of the noise), weighted and offset (terms of the loss), and bits (the mean term
        of the variational bound, in bits per dimension).

    Raises:
        ValueError: the network has no learned variance.

    Reference:
        Nichol and Dhariwal 2021 (Improved DDPM), eq. 15 and 16. The term of the colour cast is this library's own.
    """
    x0 = batch.images
    t_key, noise_key = jax.random.split(key)
    t = spread_timesteps(t_key, x0.shape[0], abar.shape[0])
    noise = jax.random.normal(noise_key, x0.shape)
    column = (slice(None), None, None, None)
    a, a_to = abar[t][column], jnp.where(t > 0, abar[jnp.maximum(t - 1, 0)], 1.0)[column]
    x = jnp.sqrt(a) * x0 + jnp.sqrt(1 - a) * noise
    prediction = denoise(params, x, t.astype(jnp.float32), batch)
    if prediction.variance is None:
        raise ValueError("hybrid needs a network with a learned variance, got a Prediction whose variance is None")

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


def classify(
    apply: Callable[[Params, Array], Array],
    params: Params,
    key: Array,
    batch: tuple[Array, Array],
    smoothing: float = 0.05,
) -> tuple[Array, dict[str, Array]]:
    """Computes the objective of a classifier: the cross entropy with smoothed labels, in nats.

    Args:
        apply: `(params, images) -> logits [n classes]`.
        params: parameters of the network.
        key: not used.
        batch: images [n ...], and their classes [n].
        smoothing: share of each label that is spread evenly over all classes.

    Returns:
        The loss, and the metric accuracy.

    Example:
        >>> batch = jnp.zeros((2, 3)), jnp.array([0, 1])
        >>> apply, params = lambda params, x: x + params[None], jnp.array([1.0, 0.0, 0.0])
        >>> loss, metrics = classify(apply, params, jax.random.key(0), batch)
        >>> metrics["accuracy"].item()
        0.5
    """
    del key
    images, labels = batch
    logits = apply(params, images)
    soft = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    accuracy = (logits.argmax(axis=-1) == labels).mean()
    return optax.softmax_cross_entropy(logits, soft).mean(), {"accuracy": accuracy}


def adversarial(
    objective: Callable[[Params, Array, tuple[Array, ...]], tuple[Array, dict[str, Array]]],
    radius: float,
    params: Params,
    key: Array,
    batch: tuple[Array, ...],
) -> tuple[Array, dict[str, Array]]:
    """Computes an objective on adversarial examples: images that are changed so that the loss grows.

    The gradient of a classifier that is trained on them changes what people see, such as strokes, not single pixels.

    Args:
        objective: `(params, key, batch) -> (loss, metrics)`, such as `classify` with a network.
        radius: length of the longest change to an image, as the root of the sum of squares over pixels. Each image's
            change has a random length up to it.
        params: parameters of the network.
        key: random key.
        batch: images [n ...], and other arrays.

    Returns:
        As the objective.

    Example:
        >>> objective = lambda params, key, batch: ((params[None] * batch[0]).sum(-1).mean(), {})
        >>> batch = (jnp.zeros((1, 2)),)
        >>> loss, _ = adversarial(objective, 2.0, jnp.array([3.0, 4.0]), jax.random.key(0), batch)
        >>> 0 < float(loss) <= 10
        True

    Reference:
        Madry et al. 2018, eq. 2.1, with one step of the attack from a random point (Wong et al. 2020).
    """
    images, *rest = batch
    axes = tuple(range(1, images.ndim))
    unit = lambda a: a / jnp.sqrt((a**2).sum(axes, keepdims=True) + 1e-12)
    length_key, start_key, key = jax.random.split(key, 3)
    length = radius * jax.random.uniform(length_key, (len(images), *(1 for _ in axes)))
    change = unit(jax.random.normal(start_key, images.shape)) * length / 2
    gradient = jax.grad(lambda images: objective(params, key, (images, *rest))[0])(images + change)
    change += unit(len(images) * gradient) * length
    change *= jnp.minimum(1, length * jax.lax.rsqrt((change**2).sum(axes, keepdims=True) + 1e-12))
    return objective(params, key, (images + jax.lax.stop_gradient(change), *rest))
