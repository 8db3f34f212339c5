"""Views that permute the pixels of an image, with a sign: independent Gaussian noise stays what it is."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jdiff.types import Array, Prediction, View
from jdiff.views import jigsaws

# (h, w) -> index [h w]: which pixel of the image, row by row, each pixel of the view is.
Index = Callable[[int, int], np.ndarray | Array]


def permutation(index: Index, sign: float = 1.0, inverse: Index | None = None) -> View:
    """Returns the view whose pixel i is pixel index(h, w)[i] of the image, times `sign`.

    The way back moves the variance but leaves its sign alone: it is a place between two bounds.

    Args:
        index: the permutation, as a function of the image's height and width. A Partial may hold arrays.
        sign: 1, or -1 for a negative.
        inverse: the inverse permutation; sorted out from `index` if None.

    Example:
        >>> upside_down = permutation(lambda h, w: np.arange(h * w).reshape(h, w)[::-1].ravel())
        >>> upside_down.apply(jnp.array([[[1.0]], [[2.0]]])).ravel().tolist()
        [2.0, 1.0]

    Reference:
        Geng et al. 2024 (Visual Anagrams), section 3.4: views have to be orthogonal.
    """
    index = index if isinstance(index, Partial) else Partial(index)
    back = Partial(_inverse, index) if inverse is None else inverse
    back = back if isinstance(back, Partial) else Partial(back)
    factor = jnp.asarray(sign, float)
    return View(Partial(_permute, index, factor), Partial(_unpermute, back, factor))


def identity() -> View:
    """Returns the view that shows the image as it is."""
    return permutation(Partial(_moved, Partial(_same)))


def flip() -> View:
    """Returns the view that turns the image upside down (the course's 1.8)."""
    return permutation(Partial(_moved, Partial(_upside_down)))


def mirror() -> View:
    """Returns the view that swaps left and right."""
    return permutation(Partial(_moved, Partial(_swapped)))


def rotate_cw() -> View:
    """Returns the view that turns a square image by a quarter turn clockwise."""
    return permutation(Partial(_moved, Partial(_clockwise)))


def rotate_ccw() -> View:
    """Returns the view that turns a square image by a quarter turn counterclockwise."""
    return permutation(Partial(_moved, Partial(np.rot90)))


def rotate_180() -> View:
    """Returns the view that turns the image by half a turn."""
    return permutation(Partial(_moved, Partial(_half_turn)))


def negate() -> View:
    """Returns the view that shows the negative: dark becomes light."""
    return permutation(Partial(_moved, Partial(_same)), -1.0)


def skew(slope: float = 1.5) -> View:
    """Returns the view that rolls column j down by `slope` j pixels."""
    there, back = (Partial(roll, jnp.asarray(slope, float)) for roll in (_rolled_down, _rolled_up))
    return permutation(there, inverse=back)


def inner_circle() -> View:
    """Returns the view that turns a disc, three quarters of the image wide, by half a turn."""
    return permutation(Partial(_moved, Partial(_inner_turned)))


def square_hinge() -> View:
    """Returns the view that turns nine squares by a quarter turn each, neighbours against each other."""
    return permutation(Partial(_moved, Partial(_hinged)))


def patch_permute(seed: int = 0, grid: int = 8) -> View:
    """Returns the view that shuffles patches of the image.

    Args:
        seed: what the order is drawn from. It is the same order at every size that `grid` divides.
        grid: patches along each side.

    Example:
        >>> view = patch_permute(seed=3)
        >>> view.apply(jnp.zeros((64, 64, 3))).shape, view.apply(jnp.zeros((256, 256, 3))).shape
        ((64, 64, 3), (256, 256, 3))
    """
    order = np.random.default_rng(seed).permutation(grid * grid)
    there, back = (Partial(_patches, jnp.asarray(a, jnp.int32)) for a in (order, np.argsort(order)))
    return permutation(there, inverse=back)


def pixel_permute(seed: int = 0, grid: int = 64) -> View:
    """Returns `patch_permute` with patches of one pixel at `grid` pixels a side; the mini model needs grid=32."""
    return patch_permute(seed, grid)


def jigsaw(seed: int = 0) -> View:
    """Returns the view that lays the sixteen pieces of a jigsaw puzzle anew.

    Corners, both kinds of edges and inner pieces are shuffled among themselves, each turned to fit its new place.

    Args:
        seed: what the order is drawn from. Images must be squares of 16 pixels or more that 4 divides.
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
        raise ValueError(f"the image must be a square for a view that turns it, got {h} x {w}")
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
        raise ValueError(f"the image's sides must be multiples of the {g} x {g} patches, got {h} x {w}")
    cells = jnp.arange(h * w).reshape(g, h // g, g, w // g).swapaxes(1, 2).reshape(g * g, -1)
    return cells[order].reshape(g, g, h // g, w // g).swapaxes(1, 2).ravel()
