"""The objective of part B's networks. The denoiser, the DDPM and the flow differ only in its arguments."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jdiff.types import Array, Conditioning, Params, Prediction

# (timestep or time as the network gets it, signal, noise), each [n].
Levels = tuple[Array, Array, Array]
# `(params, x, t, conditioning) -> (Prediction, term whose gradient is added to the loss's)`.
Training = Callable[[Params, Array, Array, Conditioning], tuple[Prediction, Array | float]]


def fixed(signal: float, noise: float, key: Array, n: int) -> Levels:
    """Returns the same level for all images. The network gets t = 0.

    Args:
        signal: signal of the level.
        noise: noise of the level.
        key: not used.
        n: number of images.

    Reference:
        Course part B, 1.2, where the signal is 1 and the noise 0.5.
    """
    del key
    ones = jnp.ones(n)
    return 0 * ones, signal * ones, noise * ones


def timesteps(abar: Array, key: Array, n: int) -> Levels:
    """Draws timesteps t from 1 to T. The network gets t / T.

    Args:
        abar: noise schedule [T].
        key: random key.
        n: number of images.

    Example:
        >>> told, signal, noise = timesteps(jnp.array([0.9, 0.5]), jax.random.key(0), 100)
        >>> sorted({round(float(t), 1) for t in told})
        [0.5, 1.0]

    Reference:
        Course part B, 2.2.
    """
    i = jax.random.randint(key, (n,), 0, abar.shape[0])
    of = jnp.asarray(abar)[i]
    return (i + 1) / abar.shape[0], jnp.sqrt(of), jnp.sqrt(1 - of)


def uniform_flow(key: Array, n: int) -> Levels:
    """Draws t from [0, 1]. The signal is t, the noise is 1 - t, and the network gets t.

    Args:
        key: random key.
        n: number of images.

    Reference:
        Course part B, flow edition.
    """
    t = jax.random.uniform(key, (n,))
    return t, t, 1 - t


def logit_normal_flow(key: Array, n: int) -> Levels:
    """Draws levels of a flow. Most are in the middle, where the digit is decided. The network gets 1000 * noise.

    Args:
        key: random key.
        n: number of images.

    Reference:
        Esser et al. 2024 (Stable Diffusion 3), eq. 19, with mean 0 and standard deviation 1.
    """
    t = jax.nn.sigmoid(jax.random.normal(key, (n,)))
    return 1000 * (1 - t), t, 1 - t


def of_noise(x0: Array, eps: Array) -> Array:
    """Returns the noise: the target of a network that is sampled with `step.noise`."""
    del x0
    return eps


def of_clean(x0: Array, eps: Array) -> Array:
    """Returns the clean image: the target of a network that is sampled with `step.clean`."""
    del eps
    return x0


def of_velocity(x0: Array, eps: Array) -> Array:
    """Returns the clean image minus the noise: the target of a network that is sampled with `step.velocity`."""
    return x0 - eps


def one_hot(classes: Array) -> Array:
    """Returns classes as the text of a network.

    Args:
        classes: [n] in 0 to 9, or -1 for no class, which becomes zeros.

    Returns:
        [n 1 10].

    Example:
        >>> one_hot(jnp.array([2, -1])).sum((1, 2)).tolist()
        [1.0, 0.0]
    """
    return jax.nn.one_hot(classes, 10)[:, None]


def regression(
    levels: Callable[[Array, int], Levels],
    target: Callable[[Array, Array], Array],
    dropout: Array,
    train: Training,
    params: Params,
    key: Array,
    batch: tuple[Array, Array],
) -> tuple[Array, dict[str, Array]]:
    """Computes the mean squared error of the network's estimate for images at random noise levels.

    Args:
        levels: `(key, n) -> Levels`, which draws noise levels.
        target: `(x0, eps) -> target` of the network for the image signal x0 + noise eps.
        dropout: probability that the class of an image is left out.
        train: the network in training. Its second result is a term whose gradient is added to that of the loss. The
            value of the loss does not contain the term.
        params: parameters of the network.
        key: random key.
        batch: images [n h w 1], and their classes [n].

    Returns:
        The loss, and an empty dict of metrics.

    Reference:
        Course part B, 1.2 (`fixed`, `of_clean`), 2.2 and 2.4 (`timesteps`, `of_noise`), and its flow edition.
    """
    x0, classes = batch
    level_key, noise_key, class_key = jax.random.split(key, 3)
    t, signal, noise = levels(level_key, x0.shape[0])
    eps = jax.random.normal(noise_key, x0.shape)
    x = signal[:, None, None, None] * x0 + noise[:, None, None, None] * eps
    left = jax.random.uniform(class_key, classes.shape) >= dropout
    prediction, pull = train(params, x, t, Conditioning(one_hot(jnp.where(left, classes, -1))))
    mse = jnp.mean((prediction.estimate - target(x0, eps)) ** 2)
    pull = jnp.asarray(pull, mse.dtype)
    return mse + (pull - jax.lax.stop_gradient(pull)), {}  # the brackets keep the mse exact: the term can be 1e9
