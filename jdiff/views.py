"""Views of an image, which keep noise noise, and components, which a picture is the sum of.

Lengths are those at 64 pixels a side and grow with the image's shorter side, so that one value serves both stages.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jdiff.types import Array, Prediction, View

# --- views: a permutation of the pixels and a sign, under which independent Gaussian noise stays what it is


def permutation(index: Callable, sign: float = 1.0) -> View:
    """The view whose pixel i is pixel index(h, w)[i] of the image, row by row, times `sign`.

    The way back leaves the variance's sign alone: it is a place between two bounds, which negation does not move.

    >>> upside_down = permutation(lambda h, w: np.arange(h * w).reshape(h, w)[::-1].ravel())
    >>> upside_down.apply(jnp.array([[[1.0]], [[2.0]]])).ravel().tolist()
    [2.0, 1.0]

    Source: Geng et al. 2024 (Visual Anagrams), section 3.4: views have to be orthogonal.
    """
    index = index if isinstance(index, Partial) else Partial(index)
    return View(Partial(_permute, index, sign), Partial(_unpermute, index, sign))


def _permute(index: Callable, sign: Any, x: Array) -> Array:
    h, w, c = x.shape
    return jnp.asarray(sign, x.dtype) * x.reshape(h * w, c)[index(h, w)].reshape(h, w, c)


def _unpermute(index: Callable, sign: Any, prediction: Prediction) -> Prediction:
    def back(a):
        h, w, c = a.shape
        return jnp.zeros_like(a, shape=(h * w, c)).at[index(h, w)].set(a.reshape(h * w, c)).reshape(h, w, c)

    estimate, variance = jax.tree.map(back, prediction)
    return Prediction(jnp.asarray(sign, estimate.dtype) * estimate, variance)


def _moved(move: Callable, h: int, w: int) -> np.ndarray:
    moved = move(np.arange(h * w).reshape(h, w))
    if moved.shape != (h, w):
        raise ValueError(f"the image is {h} x {w}, accepted for a view that turns it is a square")
    return moved.ravel()


def _same(grid: np.ndarray) -> np.ndarray:
    return grid


def _upside_down(grid: np.ndarray) -> np.ndarray:
    return grid[::-1]


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


def identity() -> View:
    """The image as it is."""
    return permutation(Partial(_moved, Partial(_same)))


def flip() -> View:
    """Upside down (course 1.8)."""
    return permutation(Partial(_moved, Partial(_upside_down)))


def rotate_cw() -> View:
    """A quarter turn clockwise; needs a square."""
    return permutation(Partial(_moved, Partial(_clockwise)))


def rotate_ccw() -> View:
    """A quarter turn against the clock; needs a square."""
    return permutation(Partial(_moved, Partial(np.rot90)))


def rotate_180() -> View:
    """Half a turn."""
    return permutation(Partial(_moved, Partial(_half_turn)))


def negate() -> View:
    """Its negative: dark is light."""
    return permutation(Partial(_moved, Partial(_same)), -1.0)


def skew(slope: float = 1.5) -> View:
    """Column j rolled down by `slope` j pixels."""
    return permutation(Partial(_skewed, jnp.float32(slope)))


def _skewed(slope: Array, h: int, w: int) -> Array:
    y, x = jnp.mgrid[:h, :w]
    return ((y - (slope * x).astype(int)) % h * w + x).ravel()


def inner_circle() -> View:
    """A disc, three quarters of the image wide, turned by half a turn; the rest stays."""
    return permutation(Partial(_moved, Partial(_inner_turned)))


def square_hinge() -> View:
    """Nine squares, each turned by a quarter, neighbours against each other; pixels that are left over stay."""
    return permutation(Partial(_moved, Partial(_hinged)))


def patch_permute(seed: int = 0, grid: int = 8) -> View:
    """`grid` x `grid` patches in an order drawn from `seed`, the same order at every size that `grid` divides.

    >>> view = patch_permute(seed=3)
    >>> view.apply(jnp.zeros((64, 64, 3))).shape, view.apply(jnp.zeros((256, 256, 3))).shape
    ((64, 64, 3), (256, 256, 3))
    """
    order = jnp.asarray(np.random.default_rng(seed).permutation(grid * grid), jnp.int32)
    return permutation(Partial(_patches, order))


def pixel_permute(seed: int = 0, grid: int = 64) -> View:
    """`patch_permute` with patches of one pixel at `grid` pixels a side; a mini model's 32 needs grid=32 or less."""
    return patch_permute(seed, grid)


def _patches(order: Array, h: int, w: int) -> Array:
    g = math.isqrt(order.shape[0])
    if h % g or w % g:
        raise ValueError(f"the image is {h} x {w}, accepted are sizes that its {g} x {g} patches divide")
    cells = jnp.arange(h * w).reshape(g, h // g, g, w // g).swapaxes(1, 2).reshape(g * g, -1)
    return cells[order].reshape(g, g, h // g, w // g).swapaxes(1, 2).ravel()


def jigsaw(seed: int = 0) -> View:
    """Sixteen pieces of a jigsaw puzzle laid anew, by `seed`: corners, both kinds of edges and inner ones among
    themselves, each turned as its new place asks. Sizes are squares that 4 divides, of 16 pixels or more.
    """
    return permutation(Partial(_jigsaw, jnp.asarray(_laid(np.random.default_rng(seed)), jnp.int32)))


def _laid(rng: np.random.Generator) -> np.ndarray:
    """[16 2]: which piece lies in each place, and by how many quarter turns clockwise.

    A piece whose row and column add up to an even number has knobs on its left and right sides and holes above and
    below, the others the reverse; so a quarter turn of the whole puzzle is the puzzle again, and pieces that it takes
    into one another are alike. Turned by half, an inner piece is as it was.
    """
    laid = np.zeros((16, 2), int)
    turned = [np.rot90(np.arange(16).reshape(4, 4), -k).ravel() for k in range(4)]  # what k turns bring to each place
    for first in (0, 1, 2, 5):  # a corner, an edge of each kind, an inner piece
        orbit = [int(np.flatnonzero(turned[k] == first)[0]) for k in range(4)]
        for place, source in enumerate(rng.permutation(4)):
            laid[orbit[place]] = orbit[source], (place - source) % 4
    return laid


def _pieces(n: int) -> np.ndarray:
    """[n n] which of the sixteen pieces each pixel belongs to."""
    side, y, x = n // 4, *np.mgrid[:n, :n]
    row, column = y // side, x // side
    middle, reach = (side - 1) / 2, side / 6
    for down in (False, True):  # knobs over the borders between columns, then between rows
        along, across = (x % side, y % side) if down else (y % side, x % side)
        place = row if down else column
        near = (np.abs(along - middle) < reach) & ((y // side + x // side) % 2 == (0 if down else 1))
        before = near & (across < round(reach)) & (place > 0)  # the neighbour's knob reaches in here
        after = near & (across >= side - round(reach)) & (place < 3)
        shift = after.astype(int) - before.astype(int)
        row, column = (row + shift, column) if down else (row, column + shift)
    return row * 4 + column


def _jigsaw(laid: Array, h: int, w: int) -> Array:
    if h != w or h % 4 or h < 16:
        raise ValueError(f"the image is {h} x {w}, accepted for a jigsaw is a square of 16 or more that 4 divides")
    piece = _pieces(h).ravel()
    source, turns = laid[piece, 0], laid[piece, 1]
    y, x = np.mgrid[:h, :h].reshape(2, -1)
    side = h // 4
    centre = lambda p: ((p // 4) * side + (side - 1) / 2, (p % 4) * side + (side - 1) / 2)
    (cy, cx), (sy, sx) = centre(piece), centre(source)
    dy, dx = y - cy, x - cx
    back = jnp.stack([jnp.stack([dy, dx]), jnp.stack([-dx, dy]), jnp.stack([-dy, -dx]), jnp.stack([dx, -dy])])
    dy, dx = back[turns, :, jnp.arange(h * h)].T  # where a turn clockwise brought it from
    return (jnp.round(sy + dy) * h + jnp.round(sx + dx)).astype(jnp.int32)


# --- views that fail on purpose: what they make of noise is not the noise that the network was trained on


def white_balance(gains: tuple[float, float, float] = (1.4, 1.0, 0.7)) -> View:
    """Each channel times its gain, which its variance follows."""
    g = jnp.asarray(gains)
    return View(Partial(_gain, g), Partial(_ungain, g))


def _gain(gains: Array, x: Array) -> Array:
    return x * gains.astype(x.dtype)[None, None]


def _ungain(gains: Array, prediction: Prediction) -> Prediction:
    return prediction._replace(estimate=_gain(1 / gains, prediction.estimate))


def blurred(sigma: float = 1.0) -> View:
    """Blurred, which takes the noise's high frequencies away; there is no way back from that."""
    return View(low_pass(sigma, kernel=9), Partial(_as_it_is))


def _as_it_is(prediction: Prediction) -> Prediction:
    return prediction


def inner_circle_bilinear(degrees: float = 45.0) -> View:
    """The inner disc turned by `degrees` against the clock, between pixels: means of four, of less variance."""
    turn = jnp.float32(np.deg2rad(degrees))
    return View(Partial(_turn_disc, turn), Partial(_unturn_disc, turn))


def _turn_disc(turn: Array, x: Array) -> Array:
    h, w, _ = x.shape
    v, u = jnp.mgrid[:h, :w]
    v, u = v - (h - 1) / 2, u - (w - 1) / 2
    places = [u * jnp.sin(turn) + v * jnp.cos(turn) + (h - 1) / 2, u * jnp.cos(turn) - v * jnp.sin(turn) + (w - 1) / 2]
    turned = jax.vmap(lambda a: jax.scipy.ndimage.map_coordinates(a, places, order=1), -1, -1)(x)
    return jnp.where((u**2 + v**2 < (3 / 8 * min(h, w)) ** 2)[..., None], turned, x)


def _unturn_disc(turn: Array, prediction: Prediction) -> Prediction:
    return jax.tree.map(lambda a: _turn_disc(-turn, a), prediction)


# --- components: linear maps of an image; those of one factorisation add up to the image


def low_pass(sigma: float = 2.0, kernel: int = 33) -> Partial:
    """Gaussian blur of standard deviation `sigma` cut to `kernel` pixels, both at 64; borders are mirrored.

    >>> low_pass()(jnp.ones((32, 32, 3))).std().round(5).item()
    0.0

    Source: course 1.9; as torchvision's gaussian_blur with a kernel of 33 (133 at 256 pixels).
    """
    return Partial(_low, jnp.zeros(kernel), jnp.asarray(sigma))


def _low(kernel: Array, sigma: Array, x: Array) -> Array:
    h, w, _ = x.shape
    factor = min(h, w) / 64
    reach = int(kernel.shape[0] / 2 * factor)  # the kernel is there for its length alone
    taps = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / (sigma * factor)) ** 2)
    rows, columns = (_matrix(taps / taps.sum(), n).astype(x.dtype) for n in (h, w))
    return jnp.einsum("ij,jkc,lk->ilc", rows, x, columns)


def _matrix(taps: Array, n: int) -> Array:
    """[n n] the convolution of n pixels with `taps`."""
    places = _places(n, taps.shape[0] // 2)
    return jnp.zeros((n, n), taps.dtype).at[np.arange(n)[:, None], places].add(taps)


def _rest(part: Partial, x: Array) -> Array:
    return x - part(x)


def rest(part: Partial) -> Partial:
    """What `part` leaves of the image."""
    return Partial(_rest, part)


def high_pass(sigma: float = 2.0, kernel: int = 33) -> Partial:
    """What `low_pass` leaves (course 1.9)."""
    return rest(low_pass(sigma, kernel))


def low_and_high(sigma: float = 2.0) -> tuple[Partial, Partial]:
    """(low_pass, high_pass) of `sigma`, cut to eight deviations either way: to the course's 33 pixels for its 2.

    >>> x = jax.random.normal(jax.random.key(0), (32, 32, 3))
    >>> bool(jnp.allclose(sum(part(x) for part in low_and_high(3.0)), x, atol=1e-5))
    True
    """
    kernel = 16 * math.ceil(sigma) + 1
    return low_pass(sigma, kernel), high_pass(sigma, kernel)


def _in_turn(first: Partial, second: Partial, x: Array) -> Array:
    return second(first(x))


def bands(fine: float = 1.0, coarse: float = 2.0, kernel: int = 33) -> tuple[Partial, Partial, Partial]:
    """(low, medium, high): the image blurred by `fine` and `coarse`, by `fine` without that, and without `fine`.

    >>> x = jax.random.normal(jax.random.key(0), (64, 64, 3))
    >>> bool(jnp.allclose(sum(part(x) for part in bands()), x, atol=1e-5))
    True

    Source: Geng et al. 2024 (Factorized Diffusion), triple hybrids.
    """
    blur = low_pass(fine, kernel)
    return (
        Partial(_in_turn, blur, low_pass(coarse, kernel)),
        Partial(_in_turn, blur, high_pass(coarse, kernel)),
        rest(blur),
    )


def grayscale() -> Partial:
    """The mean of the channels, in each (Factorized Diffusion, colour hybrids)."""
    return Partial(_gray)


def _gray(x: Array) -> Array:
    return jnp.broadcast_to(x.mean(axis=-1, keepdims=True), x.shape)


def color() -> Partial:
    """What `grayscale` leaves."""
    return rest(grayscale())


def motion(length: int = 9) -> Partial:
    """Mean along `length` pixels of the falling diagonal, at 64 pixels; borders are mirrored (Factorized Diffusion)."""
    return Partial(_along, jnp.zeros(length))


def _along(kernel: Array, x: Array) -> Array:
    h, w, _ = x.shape
    reach = max(1, int(kernel.shape[0] / 2 * min(h, w) / 64))
    return x[_places(h, reach)[:, None], _places(w, reach)[None]].mean(axis=2)


def _places(n: int, reach: int) -> np.ndarray:
    """[n 2 reach + 1] the pixels around each of n, the border mirrored about its last pixel."""
    if reach >= n:
        raise ValueError(f"the kernel reaches {reach} pixels, accepted are fewer than the image's {n}")
    places = np.abs(np.arange(n)[:, None] + np.arange(-reach, reach + 1))
    return n - 1 - np.abs(n - 1 - places)


def motion_res(length: int = 9) -> Partial:
    """What `motion` leaves."""
    return rest(motion(length))


def scale(share: float = 0.5) -> Partial:
    """`share` of the image itself: a factorisation into shares is a weighted mean of prompts."""
    return Partial(jnp.multiply, jnp.asarray(share))


def unmasked(mask: Array) -> Partial:
    """What a mask [h w] or [h w 1] in [0, 1] leaves as it is: where it is 0. White (1) is what is made new."""
    mask = jnp.asarray(mask)
    return Partial(_outside, mask if mask.ndim == 3 else mask[..., None])


def _outside(mask: Array, x: Array) -> Array:
    return (1 - mask.astype(x.dtype)) * x


VIEWS: dict[str, Callable[..., View]] = {
    "identity": identity,
    "flip": flip,
    "rotate_cw": rotate_cw,
    "rotate_ccw": rotate_ccw,
    "rotate_180": rotate_180,
    "negate": negate,
    "skew": skew,
    "patch_permute": patch_permute,
    "pixel_permute": pixel_permute,
    "jigsaw": jigsaw,
    "inner_circle": inner_circle,
    "square_hinge": square_hinge,
}
FAILING: dict[str, Callable[..., View]] = {
    "white_balance": white_balance,
    "blur": blurred,
    "inner_circle_bilinear": inner_circle_bilinear,
}
FACTORISATIONS: dict[str, Callable[..., tuple[Partial, ...]]] = {
    "low and high": low_and_high,
    "three bands": bands,
    "grey and colour": lambda: (grayscale(), color()),
    "motion": lambda: (motion(), motion_res()),
    "scale": lambda: (scale(0.3), scale(0.7)),
}
