"""What the numbers of a picture mean, and how every accepted kind becomes one: floats in [-1, 1]."""

import warnings
from typing import Any

import numpy as np
from PIL import Image

from jdiff.images.pixels import of_pil, on_white

# Largest absolute value of a picture in [-1, 1]: samples that are not clipped yet exceed 1 a little.
RANGE = 2.0
# Larger values than this, none of them far below 0, are of a picture in 0 to 255, not of a noisy one.
FAR = 8.0
KINDS = "floats in [-1, 1], uint8 or PIL pictures"
# Pictures of one of these kinds. `as_array` refuses values of other types.
Pictures = Any


def as_array(value: Pictures, name: str = "image") -> np.ndarray:
    """Returns pictures as one NumPy array, uint8 or float32.

    Args:
        value: floats, uint8, a PIL picture, or nested lists of PIL pictures of one size.
        name: what errors call it.

    Returns:
        [... h w c]. PIL pictures are [h w 3] float32 in [-1, 1], read as `load` reads their files.

    Raises:
        ValueError: the values are of another kind.

    Example:
        >>> as_array([Image.new("L", (2, 1), 255)]).tolist()
        [[[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]]
    """
    found = _of_pil(value, name)
    try:
        found = np.asarray(value) if found is None else found
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {KINDS}, got {type(value).__name__}") from error
    if found.dtype == np.uint8:
        return found
    if not (np.issubdtype(found.dtype, np.floating) or found.dtype.name == "bfloat16"):
        raise ValueError(f"{name} must be {KINDS}, got {found.dtype}")
    return found.astype(np.float32)


def _of_pil(value: Pictures, name: str) -> np.ndarray | None:
    """[... h w 3] float32 in [-1, 1] of PIL pictures; None for everything else."""
    if isinstance(value, Image.Image):
        return on_white(of_pil(value, name))
    if not isinstance(value, list | tuple) or not value:
        return None
    parts = [_of_pil(entry, name) for entry in value]
    if all(part is None for part in parts):
        return None
    first = parts[0]
    if first is None or any(part is None or part.shape != first.shape for part in parts):
        raise ValueError(f"{name} must be PIL pictures of one size in a list, got others among them")
    return np.stack([part for part in parts if part is not None])


def as_floats(value: Pictures, name: str = "image") -> np.ndarray:
    """Returns pictures of any accepted kind as float32 in [-1, 1]; floats keep their values.

    Example:
        >>> as_floats(np.array([0, 255], np.uint8)).tolist()
        [-1.0, 1.0]
    """
    found = as_array(value, name)
    return found / np.float32(127.5) - 1 if found.dtype == np.uint8 else found


def to_uint8(images: Pictures) -> np.ndarray:
    """Returns pictures as uint8 of the same shape: -1 becomes 0 and 1 becomes 255, rounded.

    Args:
        images: floats in [-1, 1], uint8, or PIL pictures. Floats outside [-1, 1], as noisy pictures have them, are
            clipped.

    Raises:
        ValueError: a value is not finite, or the floats look like 0 to 255.

    Example:
        >>> to_uint8([-1.0, 0.0, 1.0, 7.0]).tolist()
        [0, 128, 255, 255]
    """
    found = as_array(images)
    if found.dtype == np.uint8:
        return found
    check_range(found, "image")
    return np.round((np.clip(found, -1, 1) + 1) * 127.5).astype(np.uint8)


def check_range(found: np.ndarray, name: str) -> None:
    """Raises ValueError for floats that are not finite, or that look like 0 to 255. Noisy pictures pass."""
    bad = np.sum(~np.isfinite(found))
    if bad:
        raise ValueError(f"{name} must have finite values in [-1, 1], got {bad} that are not finite")
    least, most = found.min(initial=np.inf), found.max(initial=-np.inf)
    if least >= 0 and most > RANGE or least > -RANGE and most > FAR:
        raise ValueError(f"{name} must have floats in [-1, 1], got {least:.4g} to {most:.4g}; give 0 to 255 as uint8")


def as_picture(value: Pictures, name: str = "image") -> Any:
    """Returns a picture, or an array of pictures, as floats in [-1, 1] (a JAX array).

    Floats in [0, 1] cannot be told from a bright picture in [-1, 1]: they keep their values, with a warning.

    Args:
        value: floats in [-1, 1], uint8, a PIL picture, or lists of PIL pictures; of any type, since refusing the
            others is the purpose. What is transparent in a PIL picture becomes white.
        name: what errors call it.

    Returns:
        [... h w c], float32 or wider.

    Raises:
        ValueError: the values are of another kind, not finite, or outside [-2, 2].

    Warns:
        UserWarning: all values are in [0, 1], as in a picture that was scaled for another library.

    Example:
        >>> as_picture(np.array([[[0, 255, 0]]], np.uint8)).tolist()
        [[[-1.0, 1.0, -1.0]]]
    """
    import jax.numpy as jnp

    is_pil = _is_pil(value)
    if isinstance(value, Image.Image | list | tuple):
        value = as_array(value, name)
    try:
        found = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {KINDS}, got {type(value).__name__}") from error
    if found.size == 0:
        raise ValueError(f"{name} must have pixels, got shape {list(found.shape)}")
    if found.dtype == jnp.uint8:
        return found.astype(jnp.float32) / 127.5 - 1
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"{name} must be {KINDS}, got {found.dtype}")
    least, most = (float(f(found)) for f in (jnp.min, jnp.max))
    if not -RANGE <= least <= most <= RANGE:  # NaN too
        raise ValueError(f"{name} must have finite values in [-1, 1], got {least:.4g} to {most:.4g}")
    if 0 <= least < most <= 1 and not is_pil:
        warnings.warn(
            f"{name} has values from {least:.3g} to {most:.3g}, which looks like [0, 1]; black is -1 here: "
            "give 2 * picture - 1 if it is",
            stacklevel=3,
        )
    return found.astype(jnp.promote_types(found.dtype, jnp.float32))


def _is_pil(value: Pictures) -> bool:
    return isinstance(value, Image.Image) or isinstance(value, list | tuple) and bool(value) and _is_pil(value[0])
