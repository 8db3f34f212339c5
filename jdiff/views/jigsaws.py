"""The geometry of a jigsaw puzzle of sixteen pieces, for square images of any size."""

import jax.numpy as jnp
import numpy as np

from jdiff.types import Array

PIECES = 16
# One piece of each kind: a corner, the two kinds of edge pieces, an inner piece.
KINDS = (0, 1, 2, 5)


def laid(rng: np.random.Generator) -> np.ndarray:
    """Draws a layout of the pieces.

    If the row and the column of a piece add up to an even number, the piece has knobs on its left and right and holes
    at its top and bottom. The other pieces have it the other way round. So a quarter turn maps the puzzle onto itself,
    and pieces that it maps onto each other have the same shape. They can take each other's places.

    Args:
        rng: random number generator.

    Returns:
        For each place, the piece that lies there and its number of clockwise quarter turns: [16 2].
    """
    layout = np.zeros((PIECES, 2), int)
    turned = [np.rot90(np.arange(PIECES).reshape(4, 4), -k).ravel() for k in range(4)]  # pieces after k turns
    for first in KINDS:
        orbit = [int(np.flatnonzero(turned[k] == first)[0]) for k in range(4)]
        for place, source in enumerate(rng.permutation(4)):
            layout[orbit[place]] = orbit[source], (place - source) % 4
    return layout


def inverse(layout: np.ndarray) -> np.ndarray:
    """Returns the inverse of a layout.

    Args:
        layout: [16 2], as `laid` returns it.
    """
    back = np.zeros_like(layout)
    back[layout[:, 0], 0] = np.arange(PIECES)
    back[layout[:, 0], 1] = -layout[:, 1] % 4
    return back


def pieces(n: int) -> np.ndarray:
    """Returns the number of the piece that each pixel of an n x n image belongs to: [n n]."""
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
    """Returns the permutation [h*w] of the pixels of an image for a layout.

    Args:
        layout: [16 2], as `laid` returns it.
        h: height of the image.
        w: width of the image.

    Raises:
        ValueError: the image is not a square, or its side is not a multiple of 4 or is below 16.
    """
    if h != w or h % 4 or h < 16:
        raise ValueError(f"the image must be a square whose side is a multiple of 4 and at least 16, got {h} x {w}")
    piece = pieces(h).ravel()
    source, turns = layout[piece, 0], layout[piece, 1]
    y, x = np.mgrid[:h, :h].reshape(2, -1)
    side = h // 4
    centre = lambda p: ((p // 4) * side + (side - 1) / 2, (p % 4) * side + (side - 1) / 2)
    (cy, cx), (sy, sx) = centre(piece), centre(source)
    dy, dx = y - cy, x - cx
    back = jnp.stack([jnp.stack([dy, dx]), jnp.stack([-dx, dy]), jnp.stack([-dy, -dx]), jnp.stack([dx, -dy])])
    dy, dx = back[turns, :, jnp.arange(h * h)].T  # the place before the clockwise turn
    return (jnp.round(sy + dy) * h + jnp.round(sx + dx)).astype(jnp.int32)
