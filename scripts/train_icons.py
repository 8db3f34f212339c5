"""Trains a model of icons: one-colour pictures from captions, by IF's architecture on patches and a T5 over bytes.

    python scripts/train_icons.py --data-folder data/icons

`scripts/prepare_icons.py` makes the data. The defaults are for one accelerator and icons of 64 x 64 pixels. On a CPU,
try `--words 100 --width 48` with icons of 32 x 32 pixels. The model has not been trained in full, and does not ship.

A caption is the icon's style and name, as in "outline arrow up". The text encoder first learns by itself to tell which
words a caption has. Later it is trained by the picture's error too. Glyphs can be mixed in, with captions such as
"bold serif capital A". A command that was stopped continues from its newest checkpoint when it is started again.
"""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.tree_util import Partial

from jdiff import schedule
from jdiff.checkpoints.folder import ByteEncoder, write_model
from jdiff.letters import data
from jdiff.letters.captions import CHARACTERS
from jdiff.letters.folder import DEFAULTS, SCHEDULER, STORED
from jdiff.mesh import over_devices, use_cores
from jdiff.networks import t5, unet
from jdiff.parts import write_text
from jdiff.text.tokens import byte_tokens
from jdiff.training import objectives
from jdiff.training.conv import fitting_conv
from jdiff.training.log import Log, summary
from jdiff.training.loop import start, train
from jdiff.training.optimizers import adam_with_cosine
from jdiff.types import Array, Conditioning, Json, Params, Prediction

LENGTH = 48  # tokens of a caption: its bytes and an end token
TEXT = t5.Config(vocab_size=259, d_model=192, d_kv=32, d_ff=512, num_layers=4, num_heads=6)
VOCABULARY = 2000  # words that the text encoder learns to tell
ANCHOR = 0.1  # weight of `name_it` beside the picture's error
METRICS = ("mse", "named")


class Icons(NamedTuple):
    """Icons and the words of their captions."""

    images: np.ndarray  # [n size size] uint8 with bright ink
    names: list[str]
    styles: list[str]  # "" for none


class World(NamedTuple):
    """All icons and captions, on the device."""

    images: Array  # [n size size] uint8
    tokens: Array  # [2 n l], without and with the style
    mask: Array  # [2 n l]
    words: Array  # [2 n k] the words of a caption: places in the vocabulary, or its length for none
    null_tokens: Array  # [l] of the empty caption
    null_mask: Array  # [l]


class Batch(NamedTuple):
    """Icons with their captions."""

    images: Array  # [n size size 1] in [-1, 1], ink at 1
    tokens: Array  # [n l]
    mask: Array  # [n l]
    words: Array  # [n k]


def read(folder: Path, words: int | None) -> Icons:
    """Reads icons.

    Args:
        folder: a folder that `scripts/prepare_icons.py` wrote.
        words: keep the icons whose names have one of this number of the most frequent words; all icons if None.
    """
    if missing := [name for name in ("icons.npz", "icons.jsonl") if not (folder / name).is_file()]:
        raise SystemExit(
            f"--data-folder must have {missing[0]}, got {str(folder)!r}; make it by scripts/prepare_icons.py"
        )
    with np.load(folder / "icons.npz") as file:
        images = file["icons"]
    rows: list[Json] = [json.loads(line) for line in (folder / "icons.jsonl").read_text().splitlines()]
    if words is not None:
        counts = Counter(word for row in rows for word in set(row["name"].split()))
        frequent = {word for word, _ in counts.most_common(words)}
        kept = [i for i, row in enumerate(rows) if frequent & set(row["name"].split())]
        images, rows = images[kept], [rows[i] for i in kept]
    return Icons(images, [row["name"] for row in rows], [row["style"] for row in rows])


def with_glyphs(icons: Icons, folder: Path) -> Icons:
    """Adds the glyphs of a folder that `scripts/prepare_letters.py` wrote, at the size of the icons."""
    size = icons.images.shape[1]
    glyphs = data.read(folder, size)
    kind = lambda c: "digit" if c.isdigit() else "capital" if c.isupper() else "small"
    names = [f"{kind(c)} {c}" for c in CHARACTERS] * len(glyphs.fonts)
    said = [" ".join(word for word in style if word) for style in data.styles(glyphs) for _ in CHARACTERS]
    return Icons(
        np.concatenate([icons.images, glyphs.images.reshape(-1, size, size)]), icons.names + names, icons.styles + said
    )


def world(icons: Icons) -> tuple[World, list[str]]:
    """Returns the icons on the device, and the vocabulary."""
    texts = [*icons.names, *(f"{style} {name}".strip() for style, name in zip(icons.styles, icons.names, strict=True))]
    texts = [text[: LENGTH - 1] if text.isascii() else "" for text in texts]
    vocabulary = [word for word, _ in Counter(word for text in texts for word in text.split()).most_common(VOCABULARY)]
    place = {word: i for i, word in enumerate(vocabulary)}
    found = [[place[word] for word in text.split() if word in place] for text in texts]
    most = max(map(len, found), default=0)
    words = np.array([row + [len(vocabulary)] * (most - len(row)) for row in found], np.int16)
    tokens, mask = byte_tokens(["", *texts], LENGTH)
    two = lambda a: jnp.asarray(a.reshape(2, len(icons.names), -1))
    return (
        World(
            jnp.asarray(icons.images), two(tokens[1:].astype(np.int16)), two(mask[1:].astype(np.int8)), two(words),
            jnp.asarray(tokens[0]), jnp.asarray(mask[0]),
        ),
        vocabulary,
    )  # fmt: skip


def draw(world: World, key: Array, n: int, null: float = 0.1, styled: float = 0.7) -> Batch:
    """Draws icons with captions.

    Args:
        world: from `world`.
        key: random key.
        n: number of icons.
        null: probability of the empty caption.
        styled: probability that a caption has the icon's style.
    """
    keys = jax.random.split(key, 3)
    icon = jax.random.randint(keys[0], (n,), 0, world.images.shape[0])
    place = jax.random.bernoulli(keys[1], styled, (n,)).astype(jnp.int32), icon
    empty = jax.random.bernoulli(keys[2], null, (n, 1))
    tokens, mask, words = (a[place].astype(jnp.int32) for a in (world.tokens, world.mask, world.words))
    return Batch(
        world.images[icon].astype(jnp.float32)[..., None] / 127.5 - 1,
        jnp.where(empty, world.null_tokens, tokens),
        jnp.where(empty, world.null_mask, mask),
        words,
    )


def name_it(encode: Callable, params: Params, key: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
    """Computes the text encoder's objective: tell the words of a caption from the mean of the text states."""
    del key
    logits = encode(params["text"], batch.tokens, batch.mask).mean(1) @ params["heads"] + params["bias"]
    has = jax.nn.one_hot(batch.words, logits.shape[-1]).max(1)  # a place beyond the last is no word
    told = batch.mask.sum(1) > 1
    losses = optax.sigmoid_binary_cross_entropy(logits, has).sum(-1)
    right = ((logits > 0) == (has > 0)).all(-1)
    return (losses * told).mean(), {"named": (right * told).sum() / jnp.maximum(told.sum(), 1)}


def denoise(apply: Callable, encode: Callable, params: Params, x: Array, t: Array, batch: Batch) -> Prediction:
    """Predicts v of images x [n h w 1] with their captions."""
    return apply(params["unet"], x, t, Conditioning(encode(params["text"], batch.tokens, batch.mask)))


def both(
    abar: Array, quantiles: Array, denoise: Callable, encode: Callable, params: Params, key: Array, batch: Batch
) -> tuple[Array, dict[str, Array]]:
    """Computes the objective: the picture's error, and a part of `name_it`."""
    mse, _ = objectives.v_error(abar, quantiles, denoise, params, key, batch)
    anchor, metrics = name_it(encode, params, key, batch)
    return mse + ANCHOR * anchor, {"mse": mse} | metrics


def network(size: int, width: int) -> unet.Config:
    """Returns the UNet for icons of `size` pixels, with `width` channels at its finest level."""
    return unet.Config(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        patch=2,
        down_block_types=(unet.PLAIN_DOWN, unet.CROSS_DOWN, unet.CROSS_DOWN),
        up_block_types=(unet.CROSS_UP, unet.CROSS_UP, unet.PLAIN_UP),
        block_out_channels=(width, 2 * width, 3 * width),
        layers_per_block=(2, 2, 2),
        attention_head_dim=width // 2,
        cross_attention_dim=TEXT.d_model,
        encoder_hid_dim=TEXT.d_model,
        addition_embed_type_num_heads=TEXT.num_heads,
        norm_num_groups=8,
    )


def main(
    data_folder: Path = Path("data/icons"),
    glyph_folder: Path | None = None,
    run: Path = Path("runs/icons"),
    out: Path = Path("weights/icons"),
    words: int | None = None,
    width: int = 96,
    steps: int = 100_000,
    batch: int = 256,
    rate: float = 4e-4,
    decay: float = 0.9995,
    text_steps: int = 3000,
    save_every: int = 500,
    seed: int = 0,
) -> None:
    """Trains up to `steps` updates of `batch` icons.

    Args:
        data_folder: icons.npz and icons.jsonl, as `scripts/prepare_icons.py` writes them.
        glyph_folder: glyphs to mix in, as `scripts/prepare_letters.py` writes them; none if not given.
        run: folder for checkpoints and the log.
        out: folder that the model is written to at the end.
        words: train on the icons whose names have one of this number of the most frequent words; all if not given.
        width: channels of the UNet at its finest level, a multiple of 16.
        steps: total number of updates.
        batch: icons per update.
        rate: highest learning rate; it decays to a hundredth with a cosine.
        decay: decay of the EMA of the weights, which is written.
        text_steps: updates of the text encoder, which is first trained alone.
        save_every: updates between two checkpoints.
        seed: seed of everything random.
    """
    use_cores(batch)
    icons = read(data_folder, words)
    icons = icons if glyph_folder is None else with_glyphs(icons, glyph_folder)
    drawn, vocabulary = world(icons)
    config = network(icons.images.shape[1], width)
    apply = unet.unet(config, fitting_conv()).apply
    encode, _ = t5.t5(TEXT)
    keys = jax.random.split(jax.random.key(seed), 4)
    settings: Json = {"icons": len(icons.names), "words": words, "width": width, "batch": batch, "rate": rate}
    settings |= {"decay": decay, "steps": steps, "text_steps": text_steps, "seed": seed}

    heads = {"heads": jnp.zeros((TEXT.d_model, len(vocabulary))), "bias": jnp.full(len(vocabulary), -6.0)}
    adam, batches = optax.adam(1e-3), Partial(partial(draw, n=batch), drawn)
    warm = start({"text": t5.init(TEXT, keys[0])} | heads, adam, keys[1])
    named = train(
        warm, Partial(partial(name_it, encode)), batches, adam,
        steps=text_steps, checkpoints=run / "text", save_every=save_every, settings=settings, mesh=over_devices(),
    ).params  # fmt: skip

    optimizer = adam_with_cosine(rate, steps)
    abar = schedule.cosine()
    objective = Partial(
        both, jnp.asarray(abar, jnp.float32), jnp.asarray(objectives.timestep_quantiles(abar)),
        Partial(partial(denoise, apply, encode)), Partial(encode),
    )  # fmt: skip
    state = start({"unet": unet.init(config, keys[2])} | named, optimizer, keys[3])
    with Log(run, steps, batch) as report:
        state = train(
            state, objective, batches, optimizer, steps=steps, decay=decay, every=25, report=report, settings=settings,
            checkpoints=run / "checkpoints", save_every=save_every, mesh=over_devices(),
        )  # fmt: skip
    stored = jax.tree.map(lambda a: np.asarray(a, STORED), state.ema)
    encoder = ByteEncoder(TEXT, stored["text"], LENGTH)
    write_model(out, config, stored["unet"], scheduler=SCHEDULER, defaults=DEFAULTS, text_encoder=encoder)
    write_text(out / "training.json", json.dumps(settings | summary(run / "log.csv", 250, METRICS), indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
