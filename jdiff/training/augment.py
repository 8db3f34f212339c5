"""Augmentation of small grey images by rotation, scaling, shifts, noise and contrast."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from jdiff.types import Array


def jitter(
    key: Array,
    images: Array,
    *,
    degrees: float = 10.0,
    scale: float = 0.12,
    shift: float = 2.5,
    noise: float = 0.12,
    gain: tuple[float, float] = (0.75, 1.5),
) -> Array:
    """Rotates, scales and shifts each image a little, changes its contrast, and adds noise.

    Args:
        key: random key.
        images: [n h h] in [0, 1].
        degrees: largest angle of rotation, to either side.
        scale: largest relative change of size along each axis.
        shift: largest shift along each axis, in pixels.
        noise: largest standard deviation of the noise.
        gain: smallest and largest factor of the contrast.

    Returns:
        Images [n h h] in [0, 1].

    Example:
        >>> image = jnp.ones((1, 8, 8))
        >>> still = {"degrees": 0.0, "scale": 0.0, "shift": 0.0, "noise": 0.0, "gain": (0.5, 0.5)}
        >>> jitter(jax.random.key(0), image, **still)[0, 4, 4].item()
        0.5
    """
    n, size = images.shape[0], images.shape[1]
    keys = jax.random.split(key, 6)
    angle = jax.random.uniform(keys[0], (n,), minval=-jnp.deg2rad(degrees), maxval=jnp.deg2rad(degrees))
    factor = 1 + jax.random.uniform(keys[1], (n, 2), minval=-scale, maxval=scale)
    offset = jax.random.uniform(keys[2], (n, 2), minval=-shift, maxval=shift)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")) - (size - 1) / 2

    def move(image: Array, angle: Array, factor: Array, offset: Array) -> Array:
        c, s = jnp.cos(angle), jnp.sin(angle)
        turned = jnp.einsum("ij,jhw->ihw", jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])]), grid)
        place = turned * factor[:, None, None] + offset[:, None, None] + (size - 1) / 2
        return map_coordinates(image, [place[0], place[1]], order=1)

    moved = jax.vmap(move)(images, angle, factor, offset)
    contrast = jax.random.uniform(keys[3], (n, 1, 1), minval=gain[0], maxval=gain[1])
    deviation = jax.random.uniform(keys[4], (n, 1, 1), maxval=noise)
    return jnp.clip(moved * contrast + deviation * jax.random.normal(keys[5], images.shape), 0.0, 1.0)
