"""The geometry of a jigsaw puzzle of sixteen pieces that fits every square image."""

import jax.numpy as jnp
import numpy as np

from jdiff.types import Array

PIECES = 16
# One piece of each kind: a corner, an edge with knobs, an edge with holes, an inner piece.
KINDS = (0, 1, 2, 5)


def laid(rng: np.random.Generator) -> np.ndarray:
    """Returns a random new layout [16 2]: which piece lies in each place, and its quarter turns clockwise.

    A piece whose row and column sum to an even number has knobs on its left and right and holes above and below; the
    others have the reverse. So a quarter turn maps the puzzle onto itself, and pieces that it maps onto each other
    have the same shape.
    """
    layout = np.zeros((PIECES, 2), int)
    turned = [np.rot90(np.arange(PIECES).reshape(4, 4), -k).ravel() for k in range(4)]  # pieces after k turns
    for first in KINDS:
        orbit = [int(np.flatnonzero(turned[k] == first)[0]) for k in range(4)]
        for place, source in enumerate(rng.permutation(4)):
            layout[orbit[place]] = orbit[source], (place - source) % 4
    return layout


def inverse(layout: np.ndarray) -> np.ndarray:
    """Returns the layout that undoes another one."""
    back = np.zeros_like(layout)
    back[layout[:, 0], 0] = np.arange(PIECES)
    back[layout[:, 0], 1] = -layout[:, 1] % 4
    return back


def pieces(n: int) -> np.ndarray:
    """Returns which of the sixteen pieces each pixel of an n x n image belongs to."""
    side, y, x = n // 4, *np.mgrid[:n, :n]
    row, column = y // side, x // side
    middle, reach = (side - 1) / 2, side / 6
    for down in (False, True):  # knobs over the borders between columns, then between rows
        along, across = (x % side, y % side) if down else (y % side, x % side)
        place = row if down else column
        near = (np.abs(along - middle) < reach) & ((y // side + x // side) % 2 == (0 if down else 1))
        before = near & (across < round(reach)) & (place > 0)  # a knob of the neighbour before
        after = near & (across >= side - round(reach)) & (place < 3)
        shift = after.astype(int) - before.astype(int)
        row, column = (row + shift, column) if down else (row, column + shift)
    return row * 4 + column


def index(layout: Array, h: int, w: int) -> Array:
    """Returns the permutation [h w] of an image's pixels that a layout [16 2] makes."""
    if h != w or h % 4 or h < 16:
        raise ValueError(f"the image must be a square of 16 or more pixels a side that 4 divides, got {h} x {w}")
    piece = pieces(h).ravel()
    source, turns = layout[piece, 0], layout[piece, 1]
    y, x = np.mgrid[:h, :h].reshape(2, -1)
    side = h // 4
    centre = lambda p: ((p // 4) * side + (side - 1) / 2, (p % 4) * side + (side - 1) / 2)
    (cy, cx), (sy, sx) = centre(piece), centre(source)
    dy, dx = y - cy, x - cx
    back = jnp.stack([jnp.stack([dy, dx]), jnp.stack([-dx, dy]), jnp.stack([-dy, -dx]), jnp.stack([dx, -dy])])
    dy, dx = back[turns, :, jnp.arange(h * h)].T  # where a turn clockwise brought it from
    return (jnp.round(sy + dy) * h + jnp.round(sx + dx)).astype(jnp.int32)
