"""The data of the mini model: coloured digits, and a small grammar of captions for them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.text.tokens import byte_tokens
from jdiff.types import Array

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (1, -1, -1),
    "green": (-1, 1, -1),
    "blue": (-1, -1, 1),
    "yellow": (1, 1, -1),
    "cyan": (-1, 1, 1),
    "magenta": (1, -1, 1),
    "orange": (1, 0, -1),
    "white": (1, 1, 1),
}  # in [-1, 1]
BACKGROUNDS = {"": (-1, -1, -1), " on white": (1, 1, 1)}
LENGTH = 40  # tokens of a caption: its bytes, an end token and padding; the longest caption has 35 bytes
FORMS = ("{a} {colour} {word}", "{a} {colour} {digit}", "the digit {digit} in {colour}", "the digit {word} in {colour}")


class Caption(NamedTuple):
    """A caption, and the digit and colours that it asks for."""

    text: str
    digit: int  # 0 to 9
    colour: int  # index into COLOURS
    background: int  # index into BACKGROUNDS


def captions() -> list[Caption]:
    """Returns all captions: 10 digits in 8 colours on black or white, except white on white, in 4 forms each.

    Example:
        >>> len(captions()), captions()[0]
        (600, Caption(text='a red zero', digit=0, colour=0, background=0))
    """
    found = []
    for form in FORMS:
        for digit, word in enumerate(DIGITS):
            for c, colour in enumerate(COLOURS):
                for b, background in enumerate(BACKGROUNDS):
                    if colour == "white" and background == " on white":
                        continue
                    a = "an" if colour == "orange" else "a"
                    text = form.format(a=a, colour=colour, word=word, digit=digit) + background
                    found.append(Caption(text, digit, c, b))
    return found


def paint(strokes: Array, colour: Array, background: Array) -> Array:
    """Paints strokes in a colour on a background.

    Args:
        strokes: [n h w] in [0, 1].
        colour: [n 3] in [-1, 1].
        background: [n 3] in [-1, 1].

    Returns:
        Images [n h w 3] in [-1, 1].

    Example:
        >>> paint(jnp.ones((1, 2, 2)), jnp.ones((1, 3)), -jnp.ones((1, 3))).min().item()
        1.0
    """
    strokes = strokes[..., None]
    return background[:, None, None] * (1 - strokes) + colour[:, None, None] * strokes


class Batch(NamedTuple):
    """Painted digits with their captions."""

    images: Array  # [n 32 32 3] in [-1, 1]
    tokens: Array  # [n l]
    mask: Array  # [n l]
    labels: Array  # [n 3]: digit, colour, background


class World(NamedTuple):
    """All digits and all captions, on the device."""

    images: Array  # [m 32 32] uint8
    labels: Array  # [m]
    tokens: Array  # [forms digits colours backgrounds l]; white on white is empty, and is never drawn
    mask: Array  # the same shape
    null_tokens: Array  # [l] of the empty caption
    null_mask: Array  # [l]


def world(images: np.ndarray, labels: np.ndarray) -> World:
    """Puts digits and all captions on the device.

    Args:
        images: digits [m 32 32] uint8.
        labels: their classes [m].
    """
    rows = captions()
    tokens, mask = byte_tokens(["", *(row.text for row in rows)], LENGTH)
    shape = (len(FORMS), len(DIGITS), len(COLOURS), len(BACKGROUNDS), LENGTH)
    table, table_mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for i, row in enumerate(rows):
        place = (i // (len(rows) // len(FORMS)), row.digit, row.colour, row.background)
        table[place], table_mask[place] = tokens[i + 1], mask[i + 1]
    return World(*map(jnp.asarray, (images, labels, table, table_mask, tokens[0], mask[0])))


def draw(w: World, key: Array, n: int, null: float, white: float = 1 / 3) -> Batch:
    """Draws painted digits with captions at random.

    Args:
        w: digits and captions.
        key: random key.
        n: number of digits.
        null: probability of an empty caption.
        white: probability of a white background. White digits are always on black.
    """
    keys = jax.random.split(key, 6)
    rows = jax.random.randint(keys[0], (n,), 0, w.labels.shape[0])
    colour = jax.random.randint(keys[1], (n,), 0, len(COLOURS))
    background = jax.random.bernoulli(keys[2], white, (n,)).astype(jnp.int32) * (colour != len(COLOURS) - 1)
    form = jax.random.randint(keys[3], (n,), 0, len(FORMS))
    empty = jax.random.bernoulli(keys[4], null, (n, 1))
    digit = w.labels[rows]
    strokes = w.images[rows].astype(jnp.float32) / 255
    rgb, behind = (jnp.array(list(table.values()), jnp.float32) for table in (COLOURS, BACKGROUNDS))
    place = (form, digit, colour, background)
    return Batch(
        paint(strokes, rgb[colour], behind[background]),
        jnp.where(empty, w.null_tokens, w.tokens[place]),
        jnp.where(empty, w.null_mask, w.mask[place]),
        jnp.stack([digit, colour, background], axis=-1),
    )
