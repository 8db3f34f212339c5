"""Examples of views that do not work: they change the distribution of the noise that the network expects."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jdiff.types import Array, Prediction, View
from jdiff.views.components import low_pass


def white_balance(gains: tuple[float, float, float] = (1.4, 1.0, 0.7)) -> View:
    """Returns the view that multiplies each channel by a number. This changes the variance of the noise.

    Args:
        gains: factor for each of the three channels.

    Example:
        >>> white_balance((2.0, 1.0, 0.5)).apply(jnp.ones((1, 1, 3))).ravel().tolist()
        [2.0, 1.0, 0.5]
    """
    g = jnp.asarray(gains)
    return View(Partial(_gain, g), Partial(_ungain, g))


def blurred(sigma: float = 1.0) -> View:
    """Returns the view that blurs the image. This removes the high frequencies of the noise.

    Args:
        sigma: standard deviation in pixels, at 64 pixels a side.

    Raises:
        ValueError: `sigma` is below 1e-6.

    Example:
        >>> float(blurred(2.0).apply(jax.random.normal(jax.random.key(0), (64, 64, 1))).std()) < 0.3
        True
    """
    return View(low_pass(sigma, kernel=9), Partial(_unchanged))


def inner_circle_bilinear(degrees: float = 45.0) -> View:
    """Returns the view that rotates the inner disc with bilinear interpolation. This reduces the variance of the noise.

    Args:
        degrees: angle of the rotation.

    Example:
        >>> float(inner_circle_bilinear().apply(jax.random.normal(jax.random.key(0), (64, 64, 1))).std()) < 0.95
        True
    """
    turn = jnp.float32(np.deg2rad(degrees))
    return View(Partial(_turn_disc, turn), Partial(_unturn_disc, turn))


def _gain(gains: Array, x: Array) -> Array:
    return x * gains.astype(x.dtype)[None, None]


def _ungain(gains: Array, prediction: Prediction) -> Prediction:
    return prediction._replace(estimate=_gain(1 / gains, prediction.estimate))


def _unchanged(prediction: Prediction) -> Prediction:
    return prediction


def _turn_disc(turn: Array, x: Array) -> Array:
    h, w, _ = x.shape
    v, u = jnp.mgrid[:h, :w]
    v, u = v - (h - 1) / 2, u - (w - 1) / 2
    places = [u * jnp.sin(turn) + v * jnp.cos(turn) + (h - 1) / 2, u * jnp.cos(turn) - v * jnp.sin(turn) + (w - 1) / 2]
    turned = jax.vmap(lambda a: jax.scipy.ndimage.map_coordinates(a, places, order=1), -1, -1)(x)
    return jnp.where((u**2 + v**2 < (3 / 8 * min(h, w)) ** 2)[..., None], turned, x)


def _unturn_disc(turn: Array, prediction: Prediction) -> Prediction:
    return jax.tree.map(lambda a: _turn_disc(-turn, a), prediction)
