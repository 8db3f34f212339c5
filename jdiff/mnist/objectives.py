"""What part B's networks are trained to minimise: one objective, of which the three editions are values."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdiff.types import Array, Conditioning

Levels = tuple[Array, Array, Array]  # what the network is told, signal and noise, each [n]


def fixed(signal: float, noise: float, key: Array, n: int) -> Levels:
    """One level for all, of which the network is told nothing (course part B, 1.2: the whole image, 0.5 of noise)."""
    del key
    ones = jnp.ones(n)
    return 0 * ones, signal * ones, noise * ones


def timesteps(abar: Array, key: Array, n: int) -> Levels:
    """Uniform in 1..T, told as t/T, of a noise schedule abar [T] (course part B, 2.2).

    >>> told, signal, noise = timesteps(jnp.array([0.9, 0.5]), jax.random.key(0), 100)
    >>> sorted({round(float(t), 1) for t in told})
    [0.5, 1.0]
    """
    i = jax.random.randint(key, (n,), 0, abar.shape[0])
    of = jnp.asarray(abar)[i]
    return (i + 1) / abar.shape[0], jnp.sqrt(of), jnp.sqrt(1 - of)


def uniform_flow(key: Array, n: int) -> Levels:
    """Uniform in [0, 1], told as it is: t of the image and 1 - t of noise (course part B, flow edition)."""
    t = jax.random.uniform(key, (n,))
    return t, t, 1 - t


def logit_normal_flow(key: Array, n: int) -> Levels:
    """A flow's levels, most of them in the middle where the digit is decided; told as 1000 times the noise.

    Source: Esser et al. 2024 (Stable Diffusion 3), eq. 19 with mean 0 and deviation 1.
    """
    t = jax.nn.sigmoid(jax.random.normal(key, (n,)))
    return 1000 * (1 - t), t, 1 - t


def of_noise(x0: Array, eps: Array) -> Array:
    """The noise: what `step.noise` reads."""
    del x0
    return eps


def of_clean(x0: Array, eps: Array) -> Array:
    """The clean image: what `step.clean` reads."""
    del eps
    return x0


def of_velocity(x0: Array, eps: Array) -> Array:
    """Clean image - noise: what `step.velocity` reads."""
    return x0 - eps


def one_hot(classes: Array) -> Array:
    """[n 1 10] of classes [n], as a network's text; a class of -1 is none, all zeros.

    >>> one_hot(jnp.array([2, -1])).sum((1, 2)).tolist()
    [1.0, 0.0]
    """
    return jax.nn.one_hot(classes, 10)[:, None]


def regression(
    levels: Callable, target: Callable, dropout: Array, train: Callable, params: Any, key: Array, batch: tuple
) -> tuple[Array, dict[str, Array]]:
    """(mean squared error of `target` at noise levels drawn by `levels`, what to log) of images and their classes.

    `levels(key, n)` gives what the network is told, signal and noise; `target(x0, eps)` what it is to say of signal x0
    + noise eps; `train(params, x, t, conditioning)` a prediction and a term to add to what is minimised. Each sample's
    class is left out with the chance `dropout`. `batch` is images [n h w 1] and classes [n].

    Source: course part B, 1.2 (`fixed`, `of_clean`), 2.2 and 2.4 (`timesteps`, `of_noise`), and its flow edition.
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
    return mse + (pull - jax.lax.stop_gradient(pull)), {}  # in this order: the pull may be 1e9 at first
