"""Pictures at a size of another shape: the middle of them, the whole with borders, or the whole squeezed."""

import numpy as np
from PIL import Image

from jdiff.images.values import Pictures, as_floats, check_range

# How a picture becomes one of another shape.
FITS = ("crop", "pad", "stretch")


def square(image: Pictures, side: int, resampling: Image.Resampling = Image.Resampling.BILINEAR) -> np.ndarray:
    """Returns the middle square of a picture: its shorter side is resized to `side`, and the rest is cut off.

    Args:
        image: [h w c] floats in [-1, 1], uint8, or a PIL picture.
        side: pixels of the result's sides.
        resampling: filter of Pillow.

    Returns:
        [side side c] float32.

    Raises:
        ValueError: `image` is no such picture, or `side` is less than 1.

    Example:
        >>> square(np.ones((200, 100, 3)), 64).shape
        (64, 64, 3)

    Reference:
        The course's 1.7, by torchvision's resize and center_crop.
    """
    if side < 1:
        raise ValueError(f"side must be 1 or more, got {side}")
    return fit(image, (side, side), resampling=resampling)


def fit(
    image: Pictures, size: tuple[int, int], how: str = "crop", resampling: Image.Resampling = Image.Resampling.BILINEAR,
    fill: float | None = None,
) -> np.ndarray:  # fmt: skip
    """Returns a picture at a size that may have another shape.

    Args:
        image: [h w c] floats in [-1, 1], uint8, or a PIL picture.
        size: height and width of the result.
        how: "crop" takes the middle of the picture, "pad" adds borders to the whole, and "stretch" squeezes the whole.
        resampling: filter of Pillow.
        fill: value of the borders; the picture's outermost pixels go on in them if None.

    Returns:
        [h' w' c] float32.

    Raises:
        ValueError: `image` is no such picture, or a value is out of range.

    Example:
        >>> fit(np.ones((480, 640, 3)), (24, 32), "pad").shape
        (24, 32, 3)
    """
    found = as_floats(image)
    if found.ndim != 3 or not all(found.shape):
        raise ValueError(f"image must have shape [h w c], got {list(found.shape)}")
    if how not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {how!r}")
    if min(size) < 1:
        raise ValueError(f"size must be 1 or more on each side, got {size}")
    check_range(found, "image")
    height, width = found.shape[:2]
    box, inner = (0.0, 0.0, float(width), float(height)), size
    if how == "crop":
        top, bottom, left, right = _middle((height, width), size)
        box = (left, top, right, bottom)
    elif how == "pad":
        scale = min(size[0] / height, size[1] / width)
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    planes = [Image.fromarray(found[..., k]) for k in range(found.shape[2])]
    cut = [plane.resize((inner[1], inner[0]), resampling, box=box) for plane in planes]
    made = np.stack([np.asarray(plane) for plane in cut], axis=-1)
    if inner == size:
        return made
    left = [whole - part for whole, part in zip(size, inner, strict=True)]
    borders = [(more // 2, more - more // 2) for more in left]
    if fill is None:
        return np.pad(made, [*borders, (0, 0)], "edge")
    return np.pad(made, [*borders, (0, 0)], constant_values=fill)


def cropped(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Returns the height and width, about, of the middle that `fit` takes of a picture of this shape.

    Example:
        >>> cropped((480, 640), (64, 64))
        (480, 480)
    """
    (height, width), (h, w) = shape, size
    return min(height, round(width * h / w)), min(width, round(height * w / h))


def _middle(shape: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(top, bottom, left, right) of the largest middle of a picture that has the shape of `size`."""
    height, width = shape
    by_height = size[0] * width >= size[1] * height  # all of the height is used
    edges = []
    for length, wanted in zip(shape, size, strict=True):
        resized = size[0] * length // height if by_height else size[1] * length // width
        first = round((resized - wanted) / 2)
        edges += [first * length / resized, (first + wanted) * length / resized]
    return edges[0], edges[1], edges[2], edges[3]
