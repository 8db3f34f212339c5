"""Views that permute the pixels of an image and may change their sign. They keep Gaussian noise independent."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jdiff.types import Array, Prediction, View
from jdiff.views import jigsaws

# (h, w) -> index [h*w]: for each pixel of the view, the number of the image's pixel. Both are counted row by row.
Index = Callable[[int, int], np.ndarray | Array]


def permutation(index: Index, sign: float = 1.0, inverse: Index | None = None) -> View:
    """Returns the view whose pixel i is pixel index(h, w)[i] of the image, times `sign`.

    The inverse also permutes the learned variance. It does not change its sign, because the learned variance is a
    position between two bounds.

    Args:
        index: the permutation, as a function of the image's height and width. It can be a Partial with arrays.
        sign: 1, or -1 for a negative.
        inverse: the inverse permutation; computed from `index` if None.

    Example:
        >>> upside_down = permutation(lambda h, w: np.arange(h * w).reshape(h, w)[::-1].ravel())
        >>> upside_down.apply(jnp.array([[[1.0]], [[2.0]]])).ravel().tolist()
        [2.0, 1.0]

    Reference:
        Geng et al. 2024 (Visual Anagrams), section 3.4: views must be orthogonal.
    """
    index = index if isinstance(index, Partial) else Partial(index)
    back = Partial(_inverse, index) if inverse is None else inverse
    back = back if isinstance(back, Partial) else Partial(back)
    factor = jnp.asarray(sign, float)
    return View(Partial(_permute, index, factor), Partial(_unpermute, back, factor))


def identity() -> View:
    """Returns the view that shows the unchanged image.

    Example:
        >>> identity().apply(jnp.arange(4.0).reshape(2, 2, 1)).ravel().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    return permutation(Partial(_moved, Partial(_same)))


def flip() -> View:
    """Returns the view that swaps top and bottom, as in a mirror (the course's 1.8).

    Example:
        >>> flip().apply(jnp.arange(4.0).reshape(2, 2, 1)).ravel().tolist()
        [2.0, 3.0, 0.0, 1.0]
    """
    return permutation(Partial(_moved, Partial(_upside_down)))


def mirror() -> View:
    """Returns the view that swaps left and right.

    Example:
        >>> mirror().apply(jnp.arange(4.0).reshape(2, 2, 1)).ravel().tolist()
        [1.0, 0.0, 3.0, 2.0]
    """
    return permutation(Partial(_moved, Partial(_swapped)))


def rotate_cw() -> View:
    """Returns the view that rotates a square image clockwise by a quarter turn.

    Example:
        >>> rotate_cw().apply(jnp.arange(4.0).reshape(2, 2, 1)).ravel().tolist()
        [2.0, 0.0, 3.0, 1.0]
    """
    return permutation(Partial(_moved, Partial(_clockwise)))


def rotate_ccw() -> View:
    """Returns the view that rotates a square image counterclockwise by a quarter turn.

    Example:
        >>> rotate_ccw().apply(jnp.arange(4.0).reshape(2, 2, 1)).ravel().tolist()
        [1.0, 3.0, 0.0, 2.0]
    """
    return permutation(Partial(_moved, Partial(np.rot90)))


def rotate_180() -> View:
    """Returns the view that rotates the image by half a turn.

    Example:
        >>> rotate_180().apply(jnp.arange(4.0).reshape(2, 2, 1)).ravel().tolist()
        [3.0, 2.0, 1.0, 0.0]
    """
    return permutation(Partial(_moved, Partial(_half_turn)))


def negate() -> View:
    """Returns the view that shows the negative of the image.

    Example:
        >>> negate().apply(jnp.ones((1, 1, 1))).item()
        -1.0
    """
    return permutation(Partial(_moved, Partial(_same)), -1.0)


def skew(slope: float = 1.5) -> View:
    """Returns the view that shifts column j down by slope * j pixels. Pixels that leave the bottom enter at the top.

    Args:
        slope: pixels down for each pixel to the right.

    Example:
        >>> skew(1.0).apply(jnp.arange(4.0).reshape(2, 2, 1)).ravel().tolist()
        [0.0, 3.0, 2.0, 1.0]
    """
    there, back = (Partial(roll, jnp.asarray(slope, float)) for roll in (_rolled_down, _rolled_up))
    return permutation(there, inverse=back)


def inner_circle() -> View:
    """Returns the view that rotates the middle disc by half a turn. Its diameter is 3/4 of the shorter side.

    Example:
        >>> inner_circle().apply(jnp.arange(16.0).reshape(4, 4, 1))[:2, :, 0].tolist()
        [[0.0, 1.0, 2.0, 3.0], [4.0, 10.0, 9.0, 7.0]]
    """
    return permutation(Partial(_moved, Partial(_inner_turned)))


def square_hinge() -> View:
    """Returns the view that rotates each of 3 x 3 squares by a quarter turn. Neighbours turn in opposite directions.

    Example:
        >>> square_hinge().apply(jnp.arange(36.0).reshape(6, 6, 1))[:2, :4, 0].tolist()
        [[6.0, 0.0, 3.0, 9.0], [7.0, 1.0, 2.0, 8.0]]
    """
    return permutation(Partial(_moved, Partial(_hinged)))


def patch_permute(seed: int = 0, grid: int = 8) -> View:
    """Returns the view that shuffles patches of the image.

    Args:
        seed: seed of the order. Images of all sizes have the same order.
        grid: number of patches along each side, which must divide the image's height and width.

    Example:
        >>> view = patch_permute(seed=3)
        >>> view.apply(jnp.zeros((64, 64, 3))).shape, view.apply(jnp.zeros((256, 256, 3))).shape
        ((64, 64, 3), (256, 256, 3))
    """
    order = np.random.default_rng(seed).permutation(grid * grid)
    there, back = (Partial(_patches, jnp.asarray(a, jnp.int32)) for a in (order, np.argsort(order)))
    return permutation(there, inverse=back)


def pixel_permute(seed: int = 0, grid: int = 64) -> View:
    """Returns the view that shuffles the pixels of an image of `grid` pixels a side.

    Args:
        seed: seed of the order.
        grid: pixels along each side of the image; 32 for the mini model.

    Example:
        >>> sorted(pixel_permute(grid=2).apply(jnp.arange(4.0).reshape(2, 2, 1)).ravel().tolist())
        [0.0, 1.0, 2.0, 3.0]
    """
    return patch_permute(seed, grid)


def jigsaw(seed: int = 0) -> View:
    """Returns the view that shuffles the sixteen pieces of a jigsaw puzzle.

    Corners, the two kinds of edge pieces, and inner pieces are each shuffled among themselves. Each piece is rotated to
    fit its new place. Images must be squares whose side is a multiple of 4 and at least 16.

    Args:
        seed: seed of the layout.

    Example:
        >>> x = jnp.arange(256.0).reshape(16, 16, 1)
        >>> bool((jnp.sort(jigsaw().apply(x).ravel()) == x.ravel()).all())
        True
    """
    laid = jigsaws.laid(np.random.default_rng(seed))
    there, back = (Partial(jigsaws.index, jnp.asarray(a, jnp.int32)) for a in (laid, jigsaws.inverse(laid)))
    return permutation(there, inverse=back)


def _permute(index: Partial, sign: Array, x: Array) -> Array:
    return sign.astype(x.dtype) * _gather(x, index)


def _unpermute(back: Partial, sign: Array, prediction: Prediction) -> Prediction:
    estimate = _permute(back, sign, prediction.estimate)
    return Prediction(estimate, None if prediction.variance is None else _gather(prediction.variance, back))


def _gather(x: Array, index: Partial) -> Array:
    h, w, c = x.shape
    pixels = jnp.asarray(x).reshape(h * w, c).at[index(h, w)].get(mode="promise_in_bounds", unique_indices=True)
    return pixels.reshape(h, w, c)


def _inverse(index: Partial, h: int, w: int) -> np.ndarray | Array:
    found = index(h, w)
    return np.argsort(found) if isinstance(found, np.ndarray) else jnp.argsort(found)


def _moved(move: Callable, h: int, w: int) -> np.ndarray:
    moved = move(np.arange(h * w).reshape(h, w))
    if moved.shape != (h, w):
        raise ValueError(f"the image must be a square for a view by a quarter turn, got {h} x {w}")
    return moved.ravel()


def _same(grid: np.ndarray) -> np.ndarray:
    return grid


def _upside_down(grid: np.ndarray) -> np.ndarray:
    return grid[::-1]


def _swapped(grid: np.ndarray) -> np.ndarray:
    return grid[:, ::-1]


def _clockwise(grid: np.ndarray) -> np.ndarray:
    return np.rot90(grid, -1)


def _half_turn(grid: np.ndarray) -> np.ndarray:
    return grid[::-1, ::-1]


def _inner_turned(grid: np.ndarray) -> np.ndarray:
    h, w = grid.shape
    y, x = (np.arange(n) - (n - 1) / 2 for n in (h, w))
    inside = y[:, None] ** 2 + x[None] ** 2 < (3 / 8 * min(h, w)) ** 2
    return np.where(inside, grid[::-1, ::-1], grid)


def _hinged(grid: np.ndarray) -> np.ndarray:
    side = min(grid.shape) // 3
    moved = grid.copy()
    for i in range(3):
        for j in range(3):
            part = (slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side))
            moved[part] = np.rot90(grid[part], 1 if (i + j) % 2 else -1)
    return moved


def _rolled_down(slope: Array, h: int, w: int) -> Array:
    y, x = jnp.mgrid[:h, :w]
    return ((y - (slope * x).astype(int)) % h * w + x).ravel()


def _rolled_up(slope: Array, h: int, w: int) -> Array:
    y, x = jnp.mgrid[:h, :w]
    return ((y + (slope * x).astype(int)) % h * w + x).ravel()


def _patches(order: Array, h: int, w: int) -> Array:
    g = math.isqrt(order.shape[0])
    if h % g or w % g:
        raise ValueError(
            f"the image's height and width must be multiples of {g}, the number of patches per side, got {h} x {w}"
        )
    cells = jnp.arange(h * w).reshape(g, h // g, g, w // g).swapaxes(1, 2).reshape(g * g, -1)
    return cells[order].reshape(g, g, h // g, w // g).swapaxes(1, 2).ravel()
