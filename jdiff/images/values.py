"""What the numbers of a picture or a mask mean, and how every accepted kind becomes one."""

import warnings
from typing import Any

import numpy as np
from PIL import Image

# Largest absolute value of a picture in [-1, 1]: samples that are not clipped yet exceed 1 a little.
RANGE = 2.0
# A mask's pixel is black below the first share of the largest value, and white from the second on.
BLACK, WHITE = 0.25, 0.75
# Largest share of a mask's pixels that may lie between black and white, as soft edges do.
SOFT = 0.25
# Largest difference, of 255, between two pixels of one colour.
ONE_COLOUR = 32


def as_array(value: Any, name: str = "image") -> np.ndarray:
    """Returns pictures as one NumPy array, uint8 or float32.

    Args:
        value: floats, uint8, a PIL picture, or nested lists of PIL pictures of one size. Of any type, since refusing
            the others is the purpose.
        name: what errors call it.

    Returns:
        [... h w c]. PIL pictures are [h w 3] uint8.

    Raises:
        ValueError: the values are of another kind.

    Example:
        >>> as_array([Image.new("L", (2, 1), 255)]).tolist()
        [[[[255, 255, 255], [255, 255, 255]]]]
    """
    found = _of_pil(value, name)
    found = np.asarray(value) if found is None else found
    if found.dtype == np.uint8:
        return found
    if not (np.issubdtype(found.dtype, np.floating) or found.dtype.name == "bfloat16"):
        raise ValueError(f"{name} must be floats in [-1, 1], uint8 or PIL pictures, got {found.dtype}")
    return found.astype(np.float32)


def _of_pil(value: Any, name: str) -> np.ndarray | None:
    """[... h w 3] uint8 of PIL pictures; None for everything else."""
    if isinstance(value, Image.Image):
        return np.asarray(value.convert("RGB"))
    if not isinstance(value, list | tuple) or not value:
        return None
    parts = [_of_pil(entry, name) for entry in value]
    if all(part is None for part in parts):
        return None
    if any(part is None or part.shape != parts[0].shape for part in parts):  # type: ignore[union-attr]
        raise ValueError(f"{name} must be PIL pictures of one size in a list, got others among them")
    return np.stack(parts)  # type: ignore[arg-type]


def as_floats(value: Any, name: str = "image") -> np.ndarray:
    """Returns pictures of any accepted kind as float32 in [-1, 1]; floats keep their values.

    Example:
        >>> as_floats(np.array([0, 255], np.uint8)).tolist()
        [-1.0, 1.0]
    """
    found = as_array(value, name)
    return found / np.float32(127.5) - 1 if found.dtype == np.uint8 else found


def to_uint8(images: Any) -> np.ndarray:
    """Returns pictures as uint8 of the same shape: -1 becomes 0 and 1 becomes 255, rounded.

    Args:
        images: floats in [-1, 1], uint8, or PIL pictures. Floats outside [-1, 1] are clipped.

    Raises:
        ValueError: a value is not finite, or the floats look like 0 to 255.

    Example:
        >>> to_uint8([-1.0, 0.0, 1.0, 7.0]).tolist()
        [0, 128, 255, 255]
    """
    found = as_array(images)
    if found.dtype == np.uint8:
        return found
    bad = np.sum(~np.isfinite(found))
    if bad:
        raise ValueError(f"image must have finite values in [-1, 1], got {bad} that are not finite")
    least, most = found.min(initial=np.inf), found.max(initial=-np.inf)
    if least >= 0 and most > RANGE:
        raise ValueError(f"image must have floats in [-1, 1], got {least:.4g} to {most:.4g}; give 0 to 255 as uint8")
    return np.round((np.clip(found, -1, 1) + 1) * 127.5).astype(np.uint8)


def as_picture(value: Any, name: str = "image") -> Any:
    """Returns a picture, or an array of pictures, as floats in [-1, 1] (a JAX array).

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

    if isinstance(value, Image.Image) or isinstance(value, list | tuple):
        value = as_array(_on_white(value), name)
    kind = getattr(value, "dtype", None)
    if kind == np.uint8:
        return jnp.asarray(value, jnp.float32) / 127.5 - 1
    try:
        found = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be floats in [-1, 1], uint8 or PIL pictures, got {type(value).__name__}") from (
            error
        )
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"{name} must be floats in [-1, 1], uint8 or PIL pictures, got {found.dtype}")
    if found.size == 0:
        raise ValueError(f"{name} must have pixels, got shape {list(found.shape)}")
    least, most = (float(f(found)) for f in (jnp.min, jnp.max))
    if not -RANGE <= least <= most <= RANGE:  # NaN too
        raise ValueError(f"{name} must have finite values in [-1, 1], got {least:.4g} to {most:.4g}")
    if 0 <= least < most <= 1:
        warnings.warn(
            f"{name} has values from {least:.3g} to {most:.3g}, which looks like [0, 1]; black is -1 here: "
            "give 2 * picture - 1 if it is",
            stacklevel=3,
        )
    return found.astype(jnp.promote_types(found.dtype, jnp.float32))


def _on_white(value: Any) -> Any:
    """PIL pictures with what is transparent in them white; everything else as it is."""
    if isinstance(value, list | tuple):
        return [_on_white(entry) for entry in value]
    if isinstance(value, Image.Image) and value.has_transparency_data:
        above = value.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return value


def as_mask(value: Any, name: str = "mask") -> np.ndarray:
    """Returns a mask as float32 in [0, 1]: 0 is kept, 1 is made new.

    Args:
        value: bool, uint8 of 0 to 255 (or of 0 and 1), floats in [0, 1], a PIL picture, or a list of PIL pictures.
            What is transparent in a PIL picture is kept, as what is black; see `mask_of`.
        name: what errors call it.

    Raises:
        ValueError: the values are of another kind or out of range, or a PIL picture is no mask.

    Example:
        >>> as_mask(np.array([[0, 255]], np.uint8)).tolist()
        [[0.0, 1.0]]
    """
    if isinstance(value, Image.Image):
        above = value.convert("RGBA")
        return mask_of(np.asarray(above)[..., :3] / 255, np.asarray(above)[..., 3] / 255, name)
    if isinstance(value, list | tuple) and value and all(isinstance(entry, Image.Image) for entry in value):
        return np.stack([as_mask(entry, name) for entry in value])
    found = np.asarray(value)
    if found.dtype == np.uint8 and found.max(initial=0) > 1:
        found = found / np.float32(255)
    kinds = (np.bool_, np.integer, np.floating)
    if not (any(np.issubdtype(found.dtype, kind) for kind in kinds) or found.dtype.name == "bfloat16"):
        raise ValueError(f"{name} must be bool, uint8, floats in [0, 1] or a PIL picture, got {found.dtype}")
    found = found.astype(np.float32)
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"{name} must have values from 0 (kept) to 1 (made new), got {found.min()} to {found.max()}")
    return found


def mask_of(colour: np.ndarray, alpha: np.ndarray | None = None, name: str = "mask") -> np.ndarray:
    """Returns the mask that a picture shows: 1 where something is painted, 0 where it is black or transparent.

    A pixel's value is its brightest channel times its alpha, so strokes of any colour on a transparent or black
    ground mean what they cover. The largest value counts as white; a file of 0 and 1 is a mask, too.

    Args:
        colour: [h w 3] in [0, 1].
        alpha: [h w] in [0, 1], if the picture has transparency.
        name: what errors call it.

    Returns:
        [h w] float32, 0 or 1.

    Raises:
        ValueError: more than a quarter of the pixels are neither black nor white, or what is not transparent has
            several colours: a photo.

    Example:
        >>> red = np.array([[[1.0, 0, 0], [1.0, 0, 0]]])
        >>> mask_of(red, np.array([[0.0, 1.0]])).tolist()
        [[0.0, 1.0]]
    """
    value = colour.max(axis=-1) if alpha is None else colour.max(axis=-1) * alpha
    most = value.max(initial=0)
    if most == 0:
        return np.zeros(value.shape, np.float32)
    share = value / most
    between = float(((share >= BLACK) & (share < WHITE)).mean())
    wanted = "a mask is white where the picture is made new and black or transparent where it is kept"
    if between > SOFT:
        raise ValueError(
            f"{name} has {between:.0%} of its pixels between black and its largest value, {_of_255(most)}, "
            f"as a photo has; {wanted}"
        )
    clear = alpha is not None and float((alpha < BLACK).mean()) > 0
    if alpha is not None and clear:  # what is left must be one colour, on black or not
        painted = np.round(255 * colour[(alpha >= WHITE) & (colour.max(axis=-1) >= BLACK * most)])
        middle = np.median(painted, axis=0) if len(painted) else 0
        others = float((np.abs(painted - middle).max(axis=-1, initial=0) > ONE_COLOUR).mean()) if len(painted) else 0.0
        dark = float(((alpha >= WHITE) & (colour.max(axis=-1) < BLACK * most)).mean())
        if others > SOFT or dark > 0 and others > 0.05:
            raise ValueError(f"{name} has transparent pixels and several colours, as an erased photo has; {wanted}")
    return (share >= 0.5).astype(np.float32)


def _of_255(value: float) -> str:
    return f"{255 * value:.4g} of 255"


def square(image: Any, side: int, resampling: Image.Resampling = Image.Resampling.BILINEAR) -> np.ndarray:
    """Returns the middle square of a picture: its shorter side is resized to `side`, and the rest is cut off.

    Args:
        image: [h w c] floats in [-1, 1], uint8, or a PIL picture.
        side: pixels of the result's sides.
        resampling: filter of Pillow.

    Returns:
        [side side c] float32.

    Raises:
        ValueError: `image` is no such picture.

    Example:
        >>> square(np.ones((200, 100, 3)), 64).shape
        (64, 64, 3)

    Reference:
        The course's 1.7, by torchvision's resize and center_crop.
    """
    found = as_floats(image)
    if found.ndim != 3 or not all(found.shape):
        raise ValueError(f"image must have shape [h w c], got {list(found.shape)}")
    box = []  # left, top, right, bottom of the square, in pixels of the image
    for length in (found.shape[1], found.shape[0]):
        resized = side * length // min(found.shape[:2])
        first = round((resized - side) / 2)
        box.append((first * length / resized, (first + side) * length / resized))
    (left, right), (top, bottom) = box
    planes = [Image.fromarray(found[..., k]) for k in range(found.shape[2])]
    cut = [plane.resize((side, side), resampling, box=(left, top, right, bottom)) for plane in planes]
    return np.stack([np.asarray(plane) for plane in cut], axis=-1)
