"""Trains a judge of letters, measures it on typefaces of held-out families, and writes its weights and its card.

    python scripts/train_letters_judge.py --kind judge --seed 1
    python scripts/train_letters_judge.py --kind second-judge --seed 2 --steps 1500 --least 0.98
    python scripts/train_letters_judge.py --kind third-judge --seed 4
    python scripts/train_letters_judge.py --kind fourth-judge --seed 11 --least 0.98
    python scripts/train_letters_judge.py --kind guide --seed 3 --radius 2 --least 0.97

Nothing is written if the judge reads less than `--least` of the held-out glyphs right.
"""

import json
import time
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.tree_util import Partial

from jdiff.letters import data, judge
from jdiff.parts import write_text
from jdiff.training.conv import fitting_conv
from jdiff.training.log import Log
from jdiff.training.loop import start, train
from jdiff.training.objectives import adversarial, classify
from jdiff.types import Array, Params

CARD = """\
# The {kind} of letters

Reads which of {classes} characters a glyph of 32 x 32 pixels shows. The upper and lower case of a letter are one class.
O, o and 0 are one class, and so are I, i, l and 1. A capital L is a class of its own. {use}

| | |
|---|---|
| network | {sizes}, {parameters:,} parameters, stored in float16 |
| data | {fonts} typefaces, from the data of the letters model; whole families are held out |
| augmentation | turned by up to 8 degrees, scaled by up to 15 %, shifted by up to 2.5 pixels; noise; contrast |
| training | {steps:,} updates of {batch}{attacked}; seed {seed}; {seconds:.0f} s |
| accuracy | **{accuracy:.2%}** of the {glyphs:,} glyphs of {held} typefaces of held-out families |
| most frequent mistakes (times) | {confused} |

`{command}` wrote it and this page. It has the
library's licence (Apache-2.0). It reads a character in every picture.
"""
RANKS = "It is one of the three judges that rank the candidates of an ambigram."
USES = {
    "judge": RANKS,
    "second-judge": "It measures ambigrams. It never ranks candidates, so no candidate was chosen to please it.",
    "third-judge": RANKS,
    "fourth-judge": RANKS,
    "guide": "Its gradient guides the first steps of an ambigram. It neither ranks nor measures.",
}


def draw(n: int, images: Array, key: Array) -> tuple[Array, Array]:
    """Draws n glyphs [n 32 32 1] with augmentation, and their classes [n]."""
    font_key, character_key, key = jax.random.split(key, 3)
    font = jax.random.randint(font_key, (n,), 0, images.shape[0])
    character = jax.random.randint(character_key, (n,), 0, images.shape[1])
    ink = judge.vary(key, images[font, character].astype(jnp.float32) / 255)
    return ink[..., None], jnp.asarray(judge.LABELS)[character]


def measure(kind: str, params: Params, images: np.ndarray) -> tuple[float, str]:
    """Measures a judge.

    Args:
        kind: a name in `judge.KINDS`.
        params: of the judge.
        images: glyphs [fonts 62 32 32] uint8.

    Returns:
        The share that is read right, and the most frequent mistakes as text.
    """
    look = jax.jit(partial(judge.chances, kind=kind))
    guesses = np.stack([np.asarray(look(params, jnp.asarray(row[..., None] / 127.5 - 1)).argmax(-1)) for row in images])
    wrong = np.zeros((len(judge.CLASSES),) * 2, int)
    np.add.at(wrong, (np.broadcast_to(judge.LABELS, guesses.shape), guesses), 1)
    np.fill_diagonal(wrong, 0)
    worst = np.dstack(np.unravel_index(np.argsort(-wrong, axis=None)[:8], wrong.shape))[0]
    mistakes = ", ".join(f"{judge.CLASSES[a]} read as {judge.CLASSES[b]} ({wrong[a, b]})" for a, b in worst)
    return float((guesses == judge.LABELS).mean()), mistakes


def main(
    kind: Literal["judge", "second-judge", "third-judge", "fourth-judge", "guide"] = "judge",
    data_folder: Path = Path("data/glyphs"),
    out: Path = Path("weights/letters"),
    run: Path = Path("runs/letters-judges"),
    steps: int = 2500,
    batch: int = 128,
    rate: float = 2e-3,
    decay: float = 0.995,
    radius: float = 0.0,
    least: float = 0.985,
    seed: int = 0,
) -> None:
    """Trains a judge, and writes its weights and its card to `out`/`kind`.

    Args:
        kind: which of the judges.
        data_folder: folder that `scripts/prepare_letters.py` wrote.
        out: folder of the letters model.
        run: folder of logs, which are in `run`/`kind`.
        steps: updates in all.
        batch: glyphs an update.
        rate: highest learning rate; it decays to 0 with a cosine.
        decay: of the EMA of the weights, which is written.
        radius: length of the longest adversarial change to a glyph [32 32] in [0, 1]; 0 for none.
        least: share of held-out glyphs that must be read right.
        seed: of everything random.
    """
    training, held = data.split(data.read(data_folder))
    keys = jax.random.split(jax.random.key(seed), 2)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps))
    state = start(judge.init(kind, keys[0]), optimizer, keys[1])
    drawer = Partial(partial(draw, batch), jnp.asarray(training.images))
    began = time.monotonic()
    with Log(run / kind, steps, batch) as report:
        objective = Partial(partial(classify, judge.network(kind, fitting_conv())[0]))
        objective = Partial(partial(adversarial, objective, radius)) if radius else objective
        state = train(state, objective, drawer, optimizer, steps=steps, decay=decay, report=report)
    seconds = time.monotonic() - began

    stored = jax.tree.map(lambda a: np.asarray(a, np.float16), state.ema)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), stored)
    accuracy, confused = measure(kind, params, held.images)
    print(json.dumps({"kind": kind, "accuracy": accuracy, "confused": confused, "seconds": seconds}))
    if accuracy < least:
        raise SystemExit(
            f"the judge must read {least:.1%} of the held-out glyphs right, got {accuracy:.2%}: nothing is written"
        )
    judge.save_params(out / kind, stored, kind)
    sizes = judge.KINDS[kind]
    convolutions = "/".join(map(str, sizes.channels))
    command = f"python scripts/train_letters_judge.py --kind {kind} --seed {seed}"
    command += f" --radius {radius:g}" * bool(radius) + f" --least {least:g}"
    card = CARD.format(
        kind=kind, classes=len(judge.CLASSES), use=USES[kind], fonts=len(training.fonts),
        sizes=f"3x3 convolutions with {convolutions} channels on patches of {sizes.patch} x {sizes.patch} pixels",
        parameters=sum(a.size for a in jax.tree.leaves(stored)), steps=steps, batch=batch, seed=seed,
        attacked=f", glyphs changed against the {kind} by a length of up to {radius:g}" if radius else "",
        command=command, seconds=seconds, accuracy=accuracy,
        glyphs=held.images.shape[0] * held.images.shape[1], held=len(held.fonts), confused=confused,
    )  # fmt: skip
    write_text(out / kind / "README.md", card)


if __name__ == "__main__":
    tyro.cli(main)
