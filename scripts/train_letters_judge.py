"""Trains a judge of letters, measures it on typefaces of held-out families, and writes its weights and their card.

    python scripts/train_letters_judge.py --kind judge
    python scripts/train_letters_judge.py --kind second-judge --seed 1

Nothing is written where it is right on fewer than 98.5 % of the held-out glyphs, unless `--least` says otherwise.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.scipy.ndimage import map_coordinates
from jax.tree_util import Partial
from safetensors.numpy import save_file
from tqdm import tqdm

from jdiff.letters import data, judge
from jdiff.training.conv import fitting_conv
from jdiff.training.loop import start, train
from jdiff.types import Array, Params

ANGLE, SCALE, SHIFT = np.deg2rad(8), 0.15, 2.5  # largest turn, enlargement and shift in pixels
NOISE, SMALLEST_GAIN, LARGEST_GAIN = 0.12, 0.75, 1.5

CARD = """\
# The {kind} of letters

Tells which of {classes} characters a glyph of 32 x 32 shows: case is folded, O and 0 are one class, and so are I, i, l
and 1. {use}

| | |
|---|---|
| network | {sizes}, {parameters:,} parameters, stored in float16 |
| data | {fonts} typefaces of the glyphs that the model is trained on; whole families are held out |
| augmentation | turned by up to 8 degrees, scaled by up to 15 %, shifted by up to 2.5 pixels; noise; contrast |
| training | {steps:,} updates of {batch}; seed {seed}; {seconds:.0f} s |
| accuracy | **{accuracy:.2%}** of the {glyphs:,} glyphs of {held} typefaces of held-out families |
| most often taken for one another | {confused} |

`python scripts/train_letters_judge.py --kind {kind} --seed {seed}` writes it and this page. Licensed as the library is
(Apache-2.0). It names a character whatever it is shown.
"""
USES = {
    "judge": "It ranks the candidates of an ambigram.",
    "second-judge": "It ranks nothing. It only measures, so that what is measured was not searched for.",
}


def augment(key: Array, ink: Array) -> Array:
    """Ink [n 32 32] in [0, 1], moved a little, with noise and another contrast."""
    n, size = ink.shape[0], judge.SIZE
    keys = jax.random.split(key, 6)
    angle = jax.random.uniform(keys[0], (n,), minval=-ANGLE, maxval=ANGLE)
    scale = 1 + jax.random.uniform(keys[1], (n, 2), minval=-SCALE, maxval=SCALE)
    shift = jax.random.uniform(keys[2], (n, 2), minval=-SHIFT, maxval=SHIFT)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")) - (size - 1) / 2

    def move(image: Array, angle: Array, scale: Array, shift: Array) -> Array:
        c, s = jnp.cos(angle), jnp.sin(angle)
        turned = jnp.einsum("ij,jhw->ihw", jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])]), grid)
        place = turned * scale[:, None, None] + shift[:, None, None] + (size - 1) / 2
        return map_coordinates(image, [place[0], place[1]], order=1)

    moved = jax.vmap(move)(ink, angle, scale, shift)
    gain = jax.random.uniform(keys[3], (n, 1, 1), minval=SMALLEST_GAIN, maxval=LARGEST_GAIN)
    noise = jax.random.uniform(keys[4], (n, 1, 1), maxval=NOISE)
    return jnp.clip(moved * gain + noise * jax.random.normal(keys[5], ink.shape), 0.0, 1.0)


def draw(n: int, images: Array, key: Array) -> tuple[Array, Array]:
    """n glyphs [n 32 32 1] and their classes."""
    font_key, character_key, key = jax.random.split(key, 3)
    font = jax.random.randint(font_key, (n,), 0, images.shape[0])
    character = jax.random.randint(character_key, (n,), 0, images.shape[1])
    ink = augment(key, images[font, character].astype(jnp.float32) / 255)
    return ink[..., None], jnp.asarray(judge.LABELS)[character]


def classify(apply: Callable, params: Params, key: Array, batch: tuple[Array, Array]) -> tuple[Array, dict[str, Array]]:
    """Cross entropy in nats, with labels smoothed by 0.05."""
    del key
    ink, labels = batch
    logits = apply(params, ink)
    soft = optax.smooth_labels(jax.nn.one_hot(labels, len(judge.CLASSES)), 0.05)
    return optax.softmax_cross_entropy(logits, soft).mean(), {"accuracy": (logits.argmax(-1) == labels).mean()}


def measure(kind: str, params: Params, images: np.ndarray) -> tuple[float, str]:
    """(share read right, the most frequent confusions) of glyphs [fonts 62 32 32] uint8."""
    look = jax.jit(partial(judge.chances, kind=kind))
    guesses = np.stack([np.asarray(look(params, jnp.asarray(row[..., None] / 127.5 - 1)).argmax(-1)) for row in images])
    wrong = np.zeros((len(judge.CLASSES),) * 2, int)
    np.add.at(wrong, (np.broadcast_to(judge.LABELS, guesses.shape), guesses), 1)
    np.fill_diagonal(wrong, 0)
    worst = np.dstack(np.unravel_index(np.argsort(-wrong, axis=None)[:8], wrong.shape))[0]
    said = ", ".join(f"{judge.CLASSES[a]} for {judge.CLASSES[b]} ({wrong[a, b]})" for a, b in worst)
    return float((guesses == judge.LABELS).mean()), said


def main(
    kind: Literal["judge", "second-judge"] = "judge",
    data_folder: Path = Path("../shared/data/glyphs"),
    out: Path = Path("weights/letters"),
    steps: int = 2500,
    batch: int = 128,
    rate: float = 2e-3,
    decay: float = 0.995,
    least: float = 0.985,
    seed: int = 0,
) -> None:
    """Trains up to `steps` updates of `batch` glyphs, and writes the weights and their card to `out`/`kind`.

    Args:
        kind: which of the two judges.
        data_folder: glyphs.npz and fonts.jsonl, as `scripts/prepare_letters.py` writes them.
        out: folder of the letters model.
        steps: updates in all.
        batch: glyphs an update.
        rate: highest learning rate; a cosine brings it to nothing.
        decay: of the running mean of the weights, which is what ships.
        least: share of held-out glyphs that must be read right.
        seed: of everything random.
    """
    training, held = data.split(data.read(data_folder))
    keys = jax.random.split(jax.random.key(seed), 2)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps))
    state = start(judge.init(kind, keys[0]), optimizer, keys[1])
    drawer = Partial(partial(draw, batch), jnp.asarray(training.images))
    began = time.monotonic()
    with tqdm(total=steps, unit="update", mininterval=10) as bar:

        def report(step: int, metrics: dict) -> None:
            bar.update(step - bar.n)
            bar.set_postfix({name: f"{np.mean(values):.4f}" for name, values in metrics.items()})

        objective = Partial(partial(classify, judge.network(kind, fitting_conv())[0]))
        state = train(state, objective, drawer, optimizer, steps=steps, decay=decay, report=report)
    seconds = time.monotonic() - began

    stored = jax.tree.map(lambda a: np.asarray(a, np.float16), state.ema)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), stored)
    accuracy, confused = measure(kind, params, held.images)
    print(json.dumps({"kind": kind, "accuracy": accuracy, "confused": confused, "seconds": seconds}))
    if accuracy < least:
        raise SystemExit(f"right on {accuracy:.2%} of the held-out glyphs, fewer than {least:.1%}: not written")
    folder = out / kind
    folder.mkdir(parents=True, exist_ok=True)
    flat: Any = judge.named(stored)
    save_file(flat, folder / "model.safetensors.part", {"format": "jdiff.letters.judge", "kind": kind})
    (folder / "model.safetensors.part").chmod(0o644)  # safetensors writes for its owner alone
    (folder / "model.safetensors.part").replace(folder / "model.safetensors")
    card = CARD.format(
        kind=kind, classes=len(judge.CLASSES), use=USES[kind], sizes=judge.KINDS[kind], fonts=len(training.fonts),
        parameters=sum(a.size for a in jax.tree.leaves(stored)), steps=steps, batch=batch, seed=seed, seconds=seconds,
        accuracy=accuracy, glyphs=held.images.shape[0] * held.images.shape[1], held=len(held.fonts), confused=confused,
    )  # fmt: skip
    (folder / "README.md").write_text(card)


if __name__ == "__main__":
    tyro.cli(main)
