"""Masks: 1 where a picture is made new, 0 where it is kept."""

import numpy as np
from PIL import Image

from jdiff.images.pixels import of_pil
from jdiff.images.values import Pictures

# A pixel is black below the first share of the mask's largest value, and white from the second on.
BLACK, WHITE = 0.25, 0.75
# Largest share of a mask's pixels that may lie between black and white, as soft edges do.
SOFT = 0.25
# Largest value, of 1, of a mask that may have two values only: a darker picture may be noise on black.
DARK = 0.25
# Largest difference, of 255, between two pixels of one colour.
ONE_COLOUR = 32
# Largest share of painted pixels of another colour, where the transparent background is black under its alpha.
STRAY = 0.05
MEANING = "a mask is white where the picture is redrawn and black or transparent where it is kept"


def as_mask(value: Pictures, name: str = "mask") -> np.ndarray:
    """Returns a mask as float32 in [0, 1]: 0 is kept, 1 is made new.

    In a Pillow picture, a pixel that is black or transparent is kept, and a pixel that is painted in any light colour
    is made new; see `mask_of`. Arrays are taken as they are, soft values included.

    Args:
        value: bool, uint8 of 0 to 255 (or of 0 and 1), floats in [0, 1], a PIL picture, or a list of PIL pictures; of
            any type, since refusing the others is the purpose.
        name: what errors call it.

    Raises:
        ValueError: the values are of another kind or out of range, or a PIL picture is no mask.

    Example:
        >>> as_mask(np.array([[0, 255]], np.uint8)).tolist()
        [[0.0, 1.0]]
    """
    if isinstance(value, Image.Image):
        found = of_pil(value, name)
        return mask_of(found.colour, found.alpha, name)
    wanted = f"{name} must be bool, uint8, floats in [0, 1] or a PIL picture"
    if isinstance(value, list | tuple) and value and all(isinstance(entry, Image.Image) for entry in value):
        masks = [as_mask(entry, name) for entry in value]
        if any(mask.shape != masks[0].shape for mask in masks):
            raise ValueError(f"{name} must be PIL pictures of one size, got {', '.join(map(_size, masks))}")
        return np.stack(masks)
    try:
        found = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{wanted}, got {type(value).__name__}") from error
    kinds = (np.bool_, np.integer, np.floating)
    if not (any(np.issubdtype(found.dtype, kind) for kind in kinds) or found.dtype.name == "bfloat16"):
        raise ValueError(f"{wanted}, got {found.dtype}")
    if found.dtype == np.uint8 and found.max(initial=0) > 1:
        found = found / np.float32(255)
    found = found.astype(np.float32)
    if not ((found >= 0) & (found <= 1)).all():  # NaN too
        raise ValueError(
            f"{name} must have values from 0 (kept) to 1 (made new), or uint8 of 0 to 255, "
            f"got {found.min():.4g} to {found.max():.4g}"
        )
    return found


def mask_of(colour: np.ndarray, alpha: np.ndarray | None = None, name: str = "mask") -> np.ndarray:
    """Returns the mask that a picture shows: 1 where something light is painted, 0 where it is black or transparent.

    A pixel's value is its brightest channel times its alpha. So a stroke of any light colour, on a transparent or black
    background, marks what it covers. The largest value counts as white, so a file of 0 and 1 is a mask too.

    Args:
        colour: [h w 3] in [0, 1].
        alpha: [h w] in [0, 1], if the picture has transparency.
        name: what errors call it.

    Returns:
        [h w] float32, 0 or 1.

    Raises:
        ValueError: more than a quarter of the pixels are neither black nor white, or the picture is nearly black with
            more than two values, or what is not transparent has several colours: a photo.

    Example:
        >>> red = np.array([[[1.0, 0, 0], [1.0, 0, 0]]])
        >>> mask_of(red, np.array([[0.0, 1.0]])).tolist()
        [[0.0, 1.0]]
    """
    bright = colour.max(axis=-1)
    value = bright if alpha is None else bright * alpha
    most = float(value.max(initial=0))
    if most == 0:
        return np.zeros(value.shape, np.float32)
    share = value / most
    between = float(((share >= BLACK) & (share < WHITE)).mean())
    if between > SOFT:
        raise ValueError(
            f"{name} has {between:.0%} of its pixels between black and its largest value, {_of_255(most)}, as a photo "
            f"has; {MEANING}"
        )
    if most < DARK and len(np.unique(value)) > 2:
        raise ValueError(f"{name} is nearly black, with a largest value of {_of_255(most)}; {MEANING}")
    if alpha is not None and (alpha < BLACK).any():
        solid = alpha >= WHITE
        dark = solid & (bright < BLACK * most)
        painted = np.round(255 * colour[solid & ~dark])
        middle = np.median(painted, axis=0) if len(painted) else 0
        strays = (np.abs(painted - middle).max(axis=-1, initial=0) > ONE_COLOUR).mean() if len(painted) else 0
        if strays > SOFT or dark.any() and strays > STRAY:
            raise ValueError(f"{name} has transparent pixels and several colours, as an erased photo has; {MEANING}")
    return (share >= 0.5).astype(np.float32)


def _of_255(value: float) -> str:
    return f"{255 * value:.4g} of 255"


def _size(mask: np.ndarray) -> str:
    return f"{mask.shape[1]} x {mask.shape[0]}"
