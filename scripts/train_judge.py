"""Trains a digit judge on MNIST, measures it on the test digits, and writes it with its card.

    python scripts/train_judge.py
    python scripts/train_judge.py --sigma 2 6 --out weights/judge-of-hybrids

The second command trains the judge of hybrids. It also reads the low and the high frequencies of digits
(`views.low_pass` and `views.high_pass`), for any sigma between the two numbers. Nothing is written if the judge reads
less than 99 % of the plain test digits right.
"""

import itertools
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.tree_util import Partial

import jdiff
from jdiff import views
from jdiff.mnist import judge
from jdiff.mnist.captions import BACKGROUNDS, COLOURS, paint
from jdiff.mnist.data import mnist, pad32
from jdiff.parts import write_text
from jdiff.results import machine as this_machine
from jdiff.training.augment import jitter
from jdiff.training.conv import fitting_conv
from jdiff.training.log import Log
from jdiff.training.loop import start, train
from jdiff.training.objectives import classify
from jdiff.types import Array, Params

KERNEL = 63  # of the blur, at 64 pixels
LEAST = 0.99  # accuracy on the plain test digits that a judge must have
AT_ONCE = 1000  # digits that are measured at once

CARD = """\
# The digit judge

Reads which of the ten digits a picture shows, from its strokes. It measures the mini model. `load_judge()(images)` in
`jdiff/mnist/judge.py` returns the digit, its probability, the colour and the background.

| | |
|---|---|
| network | four 3x3 convolutions and two dense layers, {parameters:,} parameters, stored in {dtype} |
| data | MNIST's 60,000 training digits (LeCun, Cortes and Burges; CC BY-SA 3.0) from TensorFlow Datasets |
| augmentation | turned by up to 10 degrees, scaled by up to 12 %, shifted by up to 2.5 pixels; noise; contrast |
| training | {steps:,} updates of {batch}, Adam with a cosine decay, EMA of the weights; seed {seed} |
| time | {seconds:.0f} s on {machine} |
| accuracy on plain digits | **{plain:.2%}** of the 10,000 test digits |
| accuracy on painted digits | {painted:.2%} of the test digits in all 15 pairs of colour and background; \
{worst:.2%} in the worst pair |
| colours read right | {colour:.3%} of these 150,000 pictures |
| backgrounds read right | {background:.3%} |
| largest distance of a colour | {furthest:.2f} from its name, in RGB in [-1, 1] (`FAR_COLOUR` is {far}) |

`scripts/train_judge.py` measured this with the stored weights and wrote this page. The weights have the library's
licence (Apache-2.0).

The judge was trained on digits only, and reads a digit in every picture. So its probability does not measure the
quality of a picture.
"""
HYBRID_CARD = """\
# The judge of hybrids

The network of `weights/judge`. It was trained in the same way, but on digits in three forms: plain, from afar
(`views.low_pass`, with a sigma at 64 pixels that is drawn from {least:g} to {most:g} for each update), and from near
(the rest of the picture).

| | |
|---|---|
| training | {steps:,} updates of {batch}; seed {seed}; {seconds:.0f} s on {machine} |
| plain test digits read right | {plain:.2%} |
{rows}

`python scripts/train_judge.py --sigma {least:g} {most:g} --out weights/judge-of-hybrids` wrote it and this page. It is
stored in {dtype}. It has the library's licence (Apache-2.0).
"""


def draw(n: int, images: Array, labels: Array, key: Array) -> tuple[Array, Array]:
    """Draws n digits with augmentation, and their labels."""
    rows_key, key = jax.random.split(key)
    rows = jax.random.randint(rows_key, (n,), 0, labels.shape[0])
    return jitter(key, images[rows].astype(jnp.float32) / 255), labels[rows]


def filtered(sigma: Array, strokes: Array) -> Array:
    """Returns strokes [3 n 32 32] of strokes [n 32 32]: plain, their low frequencies, and their high frequencies."""
    white = jnp.broadcast_to(2 * strokes[..., None] - 1, (*strokes.shape, 3))
    low = jax.vmap(views.low_pass(sigma, KERNEL))(white)
    return jnp.stack([strokes, judge.strokes(low), judge.strokes(white - low)])


def draw_filtered(
    n: int, sigmas: tuple[float, float], images: Array, labels: Array, key: Array
) -> tuple[Array, Array]:  # fmt: skip
    """Draws n digits, each in one of the three forms. All have the same random sigma, between the two `sigmas`."""
    key, which_key, sigma_key = jax.random.split(key, 3)
    strokes, digits = draw(n, images, labels, key)
    which = jax.random.randint(which_key, (n,), 0, 3)
    sigma = jax.random.uniform(sigma_key, minval=sigmas[0], maxval=sigmas[1])
    return filtered(sigma, strokes)[which, jnp.arange(n)], digits


@jax.jit
def guess(params: Params, strokes: Array) -> Array:
    """Returns the digits [n] that the judge reads in strokes [n 32 32]."""
    return judge.network()[0](params, strokes).argmax(-1)


@jax.jit
def look(params: Params, strokes: Array, rgb: Array, behind: Array) -> judge.Verdict:
    """Paints strokes [n 32 32] in a colour on a background, and reads them."""
    n = strokes.shape[0]
    images = paint(strokes, jnp.broadcast_to(rgb, (n, 3)), jnp.broadcast_to(behind, (n, 3)))
    return judge.judge(params, images)


def measure_filtered(params: Params, images: np.ndarray, labels: np.ndarray, sigmas: tuple[float, float]) -> dict:
    """Measures the judge of hybrids on images [m 32 32] uint8: accuracy on plain digits, and rows of the card."""
    see = jax.jit(lambda params, sigma, strokes: jnp.stack([guess(params, s) for s in filtered(sigma, strokes)]))
    strokes, rows, plain = jnp.asarray(images, jnp.float32) / 255, [], 0.0
    for sigma in np.linspace(sigmas[0], sigmas[1], 5):
        seen = [see(params, sigma, strokes[i : i + AT_ONCE]) for i in range(0, len(labels), AT_ONCE)]
        plain, low, high = (np.concatenate(seen, axis=1) == labels).mean(1)
        rows.append(f"| from afar, from near, sigma {sigma:g} | {low:.2%}, {high:.2%} |")
    return {"plain": float(plain), "rows": "\n".join(rows)}


def measure(params: Params, images: np.ndarray, labels: np.ndarray) -> dict:
    """Measures the digit judge on images [m 32 32] uint8, plain and painted."""
    strokes = jnp.asarray(images, jnp.float32) / 255
    parts = range(0, len(labels), AT_ONCE)
    plain = np.concatenate([np.asarray(guess(params, strokes[i : i + AT_ONCE])) for i in parts])
    found = []
    for (c, rgb), (b, behind) in itertools.product(enumerate(COLOURS.values()), enumerate(BACKGROUNDS.values())):
        if rgb == behind:
            continue
        rgb, behind = jnp.array(rgb, jnp.float32), jnp.array(behind, jnp.float32)
        verdicts = [look(params, strokes[i : i + AT_ONCE], rgb, behind) for i in parts]
        verdict = jax.tree.map(lambda *a: np.concatenate(a), *verdicts)
        right = (verdict.digit == labels, verdict.colour == c, verdict.background == b)
        found.append([*map(np.mean, right), verdict.colour_distance.max()])
    digits, colours, backgrounds, furthest = map(np.array, zip(*found, strict=True))
    return {
        "plain": float(np.mean(plain == labels)), "painted": float(digits.mean()), "worst": float(digits.min()),
        "colour": float(colours.mean()), "background": float(backgrounds.mean()), "furthest": float(furthest.max()),
    }  # fmt: skip


def main(
    data_dir: Path = Path("data/tensorflow_datasets"),
    out: Path = Path("weights/judge"),
    run: Path = Path("runs/judge"),
    steps: int = 2500,
    batch: int = 128,
    sigma: tuple[float, float] | None = None,
    rate: float = 2e-3,
    decay: float = 0.995,
    seed: int = 0,
    machine: str = "",
) -> None:
    """Trains a judge, and writes its weights and its card to `out`.

    Args:
        data_dir: folder of TensorFlow Datasets, with MNIST; see docs/training.md.
        out: folder of the weights and the card.
        run: folder of the log.
        steps: updates in all.
        batch: digits an update.
        sigma: smallest and largest sigma of the blur at 64 pixels, for a judge of hybrids.
        rate: highest learning rate; it decays to 0 with a cosine.
        decay: decay of the EMA of the weights, which is written.
        seed: seed of everything random.
        machine: description of the machine for the card; detected if not given.
    """
    images, labels = mnist("train", data_dir)
    apply, _ = judge.network(fitting_conv())
    keys = jax.random.split(jax.random.key(seed), 2)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps))
    state = start(judge.init(keys[0]), optimizer, keys[1])
    drawer = partial(draw, batch) if sigma is None else partial(draw_filtered, batch, sigma)
    data = Partial(drawer, jnp.asarray(pad32(images)), jnp.asarray(labels))
    began = time.monotonic()
    with Log(run, steps, batch) as report:
        objective = Partial(partial(classify, apply))
        state = train(state, objective, data, optimizer, steps=steps, decay=decay, report=report)
    seconds = time.monotonic() - began

    stored = jax.tree.map(lambda a: np.asarray(a, np.float16), state.ema)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), stored)
    images, labels = mnist("test", data_dir)
    test = pad32(images)
    found = measure(params, test, labels) if sigma is None else measure_filtered(params, test, labels, sigma)
    print(json.dumps(found | {"seconds": seconds}))
    if found["plain"] < LEAST:
        raise SystemExit(
            f"the judge must read {LEAST:.0%} of the test digits right, got {found['plain']:.2%}: nothing is written"
        )
    judge.save_params(out, stored, {
        "jdiff": jdiff.__version__, "data": "MNIST train", "dtype": "float16", "steps": str(steps),
        "batch": str(batch), "seed": str(seed), "test_accuracy": f"{found['plain']:.4f}",
    })  # fmt: skip
    card = (CARD if sigma is None else HYBRID_CARD).format(
        **({} if sigma is None else {"least": sigma[0], "most": sigma[1]}),
        parameters=sum(a.size for a in jax.tree.leaves(stored)), dtype="float16", steps=steps, batch=batch, seed=seed,
        seconds=seconds, machine=machine or this_machine(), far=judge.FAR_COLOUR, **found,
    )  # fmt: skip
    write_text(out / "README.md", card)


if __name__ == "__main__":
    tyro.cli(main)
