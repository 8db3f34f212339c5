"""The glyphs as arrays, and what training draws from them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.letters import captions
from jdiff.text.tokens import byte_tokens
from jdiff.types import Array

SIZE = 32
HELD_OUT = 10  # of every so many families one is held out
# Families that draw no letters: flag signals, and shapes that only their designer can read.
NOT_LETTERS = ("semaphor", "fonts-f500")


class Glyphs(NamedTuple):
    """Typefaces drawn as arrays, and what is known of each."""

    images: np.ndarray  # [fonts 62 32 32] uint8, ink bright, in the order of `captions.CHARACTERS`
    fonts: list[dict[str, Any]]  # name, family, stem, italic, mono, serif and more: a row of fonts.jsonl


def read(folder: str | Path) -> Glyphs:
    """Reads a folder that `scripts/prepare_letters.py` wrote, reduced to 32 x 32 by area, without `NOT_LETTERS`.

    Raises:
        ValueError: the folder has no glyphs.npz or fonts.jsonl.
    """
    folder = Path(folder)
    if missing := [name for name in ("glyphs.npz", "fonts.jsonl") if not (folder / name).is_file()]:
        raise ValueError(f"{folder} has no {missing[0]}; make it by scripts/prepare_letters.py")
    with np.load(folder / "glyphs.npz") as file:
        large = file["glyphs"]
    fonts = [json.loads(line) for line in (folder / "fonts.jsonl").read_text().splitlines()]
    kept = [i for i, font in enumerate(fonts) if font["family"] not in NOT_LETTERS]
    fonts, large = [fonts[i] for i in kept], large[kept]
    n, characters, h, _ = large.shape
    by = h // SIZE
    small = large.reshape(n, characters, SIZE, by, SIZE, by).astype(np.float32).mean(axis=(3, 5))
    return Glyphs(np.rint(small).astype(np.uint8), fonts)


def split(glyphs: Glyphs) -> tuple[Glyphs, Glyphs]:
    """Returns (training, held out) glyphs. Whole families are held out: every tenth in the order of their names."""
    families = sorted({font["family"] for font in glyphs.fonts} | set(NOT_LETTERS))
    out = set(families[HELD_OUT // 2 :: HELD_OUT])
    is_out = np.array([font["family"] in out for font in glyphs.fonts])

    def part(rows: np.ndarray) -> Glyphs:
        return Glyphs(glyphs.images[rows], [glyphs.fonts[i] for i in np.flatnonzero(rows)])

    return part(~is_out), part(is_out)


class Batch(NamedTuple):
    """What one update sees."""

    images: Array  # [n 32 32 1] in [-1, 1], ink at 1
    tokens: Array  # [n l]
    mask: Array  # [n l]
    labels: Array  # [n 4]: character, then places in the groups of `captions.STYLE_WORDS`


class World(NamedTuple):
    """What batches are drawn from, on the device."""

    images: Array  # [fonts 62 32 32] uint8
    styles: Array  # [fonts 3] places in the groups of `captions.STYLE_WORDS`
    tokens: Array  # [weights slants kinds 2 62 l]
    mask: Array
    null_tokens: Array  # [l]
    null_mask: Array


def world(glyphs: Glyphs) -> World:
    """Returns the world of glyphs: their images, and every caption as tokens."""
    told = [captions.style_of(*(font[key] for key in ("stem", "italic", "mono", "serif"))) for font in glyphs.fonts]
    places = [[group.index(word) for group, word in zip(captions.STYLE_WORDS, style, strict=True)] for style in told]
    texts = [
        captions.caption(character, style, spelled=spelled)
        for style in captions.styles()
        for spelled in (False, True)
        for character in captions.CHARACTERS
    ]
    tokens, mask = byte_tokens(["", *texts], captions.LENGTH)
    shape = (*map(len, captions.STYLE_WORDS), 2, len(captions.CHARACTERS), captions.LENGTH)
    table, table_mask = (jnp.asarray(a[1:].reshape(shape)) for a in (tokens, mask))
    ends = (jnp.asarray(a[0]) for a in (tokens, mask))
    return World(jnp.asarray(glyphs.images), jnp.asarray(places, jnp.int32), table, table_mask, *ends)


def draw(world: World, key: Array, n: int, null: float, dropped: float) -> Batch:
    """Draws n glyphs with captions.

    Args:
        world: from `world`.
        key: random key.
        n: glyphs.
        null: chance of the empty caption.
        dropped: chance that a word of the style is left out, each for itself.
    """
    keys = jax.random.split(key, 5)
    font = jax.random.randint(keys[0], (n,), 0, world.images.shape[0])
    character = jax.random.randint(keys[1], (n,), 0, len(captions.CHARACTERS))
    said = world.styles[font] * jax.random.bernoulli(keys[2], 1 - dropped, (n, world.styles.shape[1]))
    spelled = jax.random.bernoulli(keys[3], 0.5, (n,)).astype(jnp.int32)
    empty = jax.random.bernoulli(keys[4], null, (n, 1))
    place = (*said.T, spelled, character)
    return Batch(
        world.images[font, character].astype(jnp.float32)[..., None] / 127.5 - 1,
        jnp.where(empty, world.null_tokens, world.tokens[place]),
        jnp.where(empty, world.null_mask, world.mask[place]),
        jnp.concatenate([character[:, None], said], axis=-1),
    )
