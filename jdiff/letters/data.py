"""The glyphs of many typefaces, and batches of them for training."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.letters import captions
from jdiff.text.tokens import byte_tokens
from jdiff.types import Array, Json

SIZE = 32
HELD_OUT = 10  # one of this number of families is held out
# Families whose glyphs cannot be read as letters: flag signals, and abstract shapes. A typeface belongs to one if its
# family is one of these, or if its name starts with a name here.
NOT_LETTERS = ("semaphor", "fonts-f500")
NAMES_OF_NOT_LETTERS = ("semafor", "[f500]")


class Glyphs(NamedTuple):
    """The glyphs of typefaces, and facts about each typeface."""

    images: np.ndarray  # [fonts 62 size size] uint8 with bright ink, in the order of `captions.CHARACTERS`
    fonts: list[Json]  # rows of fonts.jsonl: name, family, stem, italic, mono, serif and more


def read(folder: str | Path, size: int = SIZE) -> Glyphs:
    """Reads glyphs, reduced to size x size pixels by area, without the families in `NOT_LETTERS`.

    Args:
        folder: a folder that `scripts/prepare_letters.py` wrote.
        size: height and width in pixels, which divides that of the folder's glyphs.

    Raises:
        ValueError: the folder has no glyphs.npz or no fonts.jsonl.
    """
    folder = Path(folder)
    if missing := [name for name in ("glyphs.npz", "fonts.jsonl") if not (folder / name).is_file()]:
        raise ValueError(
            f"the glyphs' folder must have {missing[0]}, got {folder}; make it by scripts/prepare_letters.py"
        )
    with np.load(folder / "glyphs.npz") as file:
        large = file["glyphs"]
    fonts = [json.loads(line) for line in (folder / "fonts.jsonl").read_text().splitlines()]
    kept = [i for i, font in enumerate(fonts) if not _is_not_letters(font)]
    fonts, large = [fonts[i] for i in kept], large[kept]
    n, characters, h, _ = large.shape
    by = h // size
    small = large.reshape(n, characters, size, by, size, by).astype(np.float32).mean(axis=(3, 5))
    return Glyphs(np.rint(small).astype(np.uint8), fonts)


def _is_not_letters(font: Json) -> bool:
    return font["family"] in NOT_LETTERS or str(font.get("font", "")).lower().startswith(NAMES_OF_NOT_LETTERS)


def split(glyphs: Glyphs) -> tuple[Glyphs, Glyphs]:
    """Divides glyphs into (training, held out). Every tenth family, in the order of their names, is held out whole."""
    families = sorted({font["family"] for font in glyphs.fonts} | set(NOT_LETTERS))
    out = set(families[HELD_OUT // 2 :: HELD_OUT])
    is_out = np.array([font["family"] in out for font in glyphs.fonts])

    def part(rows: np.ndarray) -> Glyphs:
        return Glyphs(glyphs.images[rows], [glyphs.fonts[i] for i in np.flatnonzero(rows)])

    return part(~is_out), part(is_out)


class Batch(NamedTuple):
    """Glyphs with their captions."""

    images: Array  # [n 32 32 1] in [-1, 1], ink at 1
    tokens: Array  # [n l]
    mask: Array  # [n l]
    labels: Array  # [n 4]: character, and indices into the groups of `captions.STYLE_WORDS`


class World(NamedTuple):
    """All glyphs and all captions, on the device."""

    images: Array  # [fonts 62 32 32] uint8
    styles: Array  # [fonts 3] indices into the groups of `captions.STYLE_WORDS`
    tokens: Array  # [weights slants kinds 2 62 l]; the axis of 2 is `spelled`
    mask: Array  # the same shape
    null_tokens: Array  # [l] of the empty caption
    null_mask: Array  # [l]


def styles(glyphs: Glyphs) -> list[captions.Style]:
    """Returns the words for each typeface."""
    return [captions.style_of(*(font[key] for key in ("stem", "italic", "mono", "serif"))) for font in glyphs.fonts]


def world(glyphs: Glyphs) -> World:
    """Puts glyphs and all captions on the device."""
    words = captions.STYLE_WORDS
    places = [[group.index(word) for group, word in zip(words, style, strict=True)] for style in styles(glyphs)]
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
    """Draws glyphs with captions.

    Args:
        world: from `world`.
        key: random key.
        n: number of glyphs.
        null: probability of the empty caption.
        dropped: probability, for each word of the style, that it is left out.
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
