"""Trains the digit judge on MNIST, measures it on the test digits, plain and painted, and writes it with its card.

    python scripts/train_judge.py --data-dir FOLDER_OF_TFDS
    python scripts/train_judge.py --data-dir FOLDER_OF_TFDS --sigma 2 6 --out weights/judge-of-hybrids

The second trains one that also reads what `views.low_pass` and `views.high_pass` leave of digits, for any sigma between
the two. Nothing is written where the judge is right on less than 99 % of the plain test digits.
"""

import itertools
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import traverse_util
from jax.scipy.ndimage import map_coordinates
from jax.tree_util import Partial
from safetensors.numpy import save_file
from tqdm import tqdm

import jdiff
from jdiff import views
from jdiff.mnist import judge
from jdiff.mnist.captions import BACKGROUNDS, COLOURS, paint
from jdiff.mnist.data import mnist, pad32
from jdiff.training.conv import fitting_conv
from jdiff.training.loop import start, train

ANGLE, SCALE, SHIFT = np.deg2rad(10), 0.12, 2.5  # greatest turn, enlargement and shift in pixels
KERNEL = 63  # of the blur, at 64 pixels
LEAST = 0.99  # accuracy on the plain test digits that a judge must have
NOISE, SMALLEST_GAIN, LARGEST_GAIN = 0.12, 0.75, 1.5

CARD = """\
# The digit judge

Tells which of the ten digits a picture shows, from its strokes alone. It measures the mini model; how, and how colours
are read, is in `jdiff/mnist/judge.py`: `load_judge()(images)` gives digit, probability, colour and background.

| | |
|---|---|
| network | four 3x3 convolutions and two dense layers, {parameters:,} parameters, stored in {dtype} |
| data | MNIST's 60,000 training digits (LeCun, Cortes and Burges; CC BY-SA 3.0), by TensorFlow Datasets |
| augmentation | turned by up to 10 degrees, scaled by up to 12 %, shifted by up to 2.5 pixels; noise; contrast |
| training | {steps:,} updates of {batch}, Adam with cosine decay, running mean of the weights; seed {seed} |
| time | {seconds:.0f} s on {machine} |
| accuracy, plain | **{plain:.2%}** of the 10,000 test digits |
| accuracy, painted | {painted:.2%} of the test digits in all 15 combinations of colour and background; \
worst {worst:.2%} |
| colour read right | {colour:.3%} of those 150,000 pictures |
| background read right | {background:.3%} |
| colour's distance | at most {furthest:.2f} from its name, in RGB from -1 to 1 (`FAR_COLOUR` is {far}) |

Measured with the stored weights by `scripts/train_judge.py`, which writes this page. The weights are licensed as the
library is (Apache-2.0).

It has never seen what is no digit, and names one whatever it is shown: its probability is not a test of quality.
"""


HYBRID_CARD = """\
# The judge of hybrids

The network of `weights/judge`, trained as that one was but on digits seen in three ways: as they are, from afar
(`views.low_pass`, its sigma at 64 pixels drawn from {least:g} to {most:g} for each update) and from near (what that
leaves).

| | |
|---|---|
| training | {steps:,} updates of {batch}; seed {seed}; {seconds:.0f} s on {machine} |
| test digits read right, as they are | {plain:.2%} |
{rows}

`python scripts/train_judge.py --sigma {least:g} {most:g} --out weights/judge-of-hybrids` writes it and this page.
Stored in {dtype}; Apache-2.0, as the library.
"""


def augment(key, images):
    """[n 32 32] in [0, 1]: strokes moved a little, with noise and another contrast."""
    n, size = images.shape[0], judge.SIZE
    keys = jax.random.split(key, 6)
    angle = jax.random.uniform(keys[0], (n,), minval=-ANGLE, maxval=ANGLE)
    scale = 1 + jax.random.uniform(keys[1], (n, 2), minval=-SCALE, maxval=SCALE)
    shift = jax.random.uniform(keys[2], (n, 2), minval=-SHIFT, maxval=SHIFT)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")) - (size - 1) / 2

    def move(image, angle, scale, shift):
        c, s = jnp.cos(angle), jnp.sin(angle)
        turned = jnp.einsum("ij,jhw->ihw", jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])]), grid)
        place = turned * scale[:, None, None] + shift[:, None, None] + (size - 1) / 2
        return map_coordinates(image, [place[0], place[1]], order=1)

    moved = jax.vmap(move)(images, angle, scale, shift)
    gain = jax.random.uniform(keys[3], (n, 1, 1), minval=SMALLEST_GAIN, maxval=LARGEST_GAIN)
    noise = jax.random.uniform(keys[4], (n, 1, 1), maxval=NOISE)
    return jnp.clip(moved * gain + noise * jax.random.normal(keys[5], images.shape), 0.0, 1.0)


def draw(n, images, labels, key):
    rows_key, key = jax.random.split(key)
    rows = jax.random.randint(rows_key, (n,), 0, labels.shape[0])
    return augment(key, images[rows].astype(jnp.float32) / 255), labels[rows]


def filtered(sigma, strokes):
    """Strokes [3 n 32 32] as the judge sees strokes [n 32 32]: as they are, from afar, from near."""
    white = jnp.broadcast_to(2 * strokes[..., None] - 1, (*strokes.shape, 3))
    low = jax.vmap(views.low_pass(sigma, KERNEL))(white)
    return jnp.stack([strokes, judge.strokes(low), judge.strokes(white - low)])


def draw_filtered(n, sigmas, images, labels, key):
    """Digits, each in one of the three ways that hybrids are looked at; a sigma between the two `sigmas` for all."""
    key, which_key, sigma_key = jax.random.split(key, 3)
    strokes, digits = draw(n, images, labels, key)
    which = jax.random.randint(which_key, (n,), 0, 3)
    sigma = jax.random.uniform(sigma_key, minval=sigmas[0], maxval=sigmas[1])
    return filtered(sigma, strokes)[which, jnp.arange(n)], digits


def classify(apply, params, key, batch):
    """Cross entropy of the digits, in nats, with labels smoothed by 0.05."""
    del key
    images, labels = batch
    logits = apply(params, images)
    soft = optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.05)
    loss = optax.softmax_cross_entropy(logits, soft).mean()
    return loss, {"accuracy": (logits.argmax(-1) == labels).mean()}


@jax.jit
def guess(params, strokes):
    return judge.network()[0](params, strokes).argmax(-1)


@jax.jit
def look(params, strokes, rgb, behind):
    n = strokes.shape[0]
    images = paint(strokes, jnp.broadcast_to(rgb, (n, 3)), jnp.broadcast_to(behind, (n, 3)))
    return judge.judge(params, images)


def measure_filtered(params, images, labels, sigmas, batch=1000):
    """Share of `images` [m 32 32] uint8 read right as they are; rows of a card for those from afar and from near."""
    see = jax.jit(lambda params, sigma, strokes: jnp.stack([guess(params, s) for s in filtered(sigma, strokes)]))
    strokes = jnp.asarray(images, jnp.float32) / 255
    rows = []
    for sigma in np.linspace(sigmas[0], sigmas[1], 5):
        seen = [see(params, sigma, strokes[i : i + batch]) for i in range(0, len(labels), batch)]
        plain, low, high = (np.concatenate(seen, axis=1) == labels).mean(1)
        rows.append(f"| from afar, from near, sigma {sigma:g} | {low:.2%}, {high:.2%} |")
    return {"plain": float(plain), "rows": "\n".join(rows)}


def measure(params, images, labels, batch=1000):
    """Fractions of `images` [m 32 32] uint8 that are judged right, plain and painted."""
    strokes = jnp.asarray(images, jnp.float32) / 255
    parts = range(0, len(labels), batch)
    plain = np.concatenate([np.asarray(guess(params, strokes[i : i + batch])) for i in parts])
    found = []
    for (c, rgb), (b, behind) in itertools.product(enumerate(COLOURS.values()), enumerate(BACKGROUNDS.values())):
        if rgb == behind:
            continue
        rgb, behind = jnp.array(rgb, jnp.float32), jnp.array(behind, jnp.float32)
        verdicts = [look(params, strokes[i : i + batch], rgb, behind) for i in parts]
        verdict = jax.tree.map(lambda *a: np.concatenate(a), *verdicts)
        found.append(
            [np.mean(verdict.digit == labels), np.mean(verdict.colour == c), np.mean(verdict.background == b),
             verdict.colour_distance.max()]
        )  # fmt: skip
    digits, colours, backgrounds, furthest = map(np.array, zip(*found, strict=True))
    return {
        "plain": float(np.mean(plain == labels)), "painted": float(digits.mean()), "worst": float(digits.min()),
        "colour": float(colours.mean()), "background": float(backgrounds.mean()), "furthest": float(furthest.max()),
    }  # fmt: skip


def main(
    data_dir: Path | None = None,
    out: Path = Path("weights/judge"),
    steps: int = 2500,
    batch: int = 128,
    sigma: tuple[float, float] | None = None,
    rate: float = 2e-3,
    decay: float = 0.995,
    seed: int = 0,
    machine: str = "a virtual machine with two cores (AMD EPYC), shared with another job",
) -> None:
    """Trains up to `steps` updates of `batch` digits, and writes the weights and their card to `out`.

    Args:
        data_dir: where TFDS keeps its data sets; its own choice if not given.
        out: folder of the weights and the card.
        steps: updates in all.
        batch: digits an update.
        sigma: the least and the most of the blur at 64 pixels, for a judge of hybrids.
        rate: highest learning rate; a cosine brings it to nothing.
        decay: of the running mean of the weights, which is what ships.
        seed: of everything random.
        machine: what the card says it was trained on.
    """
    images, labels = mnist("train", data_dir)
    apply, _ = judge.network(fitting_conv())
    keys = jax.random.split(jax.random.key(seed), 2)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps))
    state = start(judge.init(keys[0]), optimizer, keys[1])
    drawer = partial(draw, batch) if sigma is None else partial(draw_filtered, batch, sigma)
    data = Partial(drawer, jnp.asarray(pad32(images)), jnp.asarray(labels))
    began = time.monotonic()
    with tqdm(total=steps, unit="update") as bar:

        def report(step, metrics):
            bar.update(step - bar.n)
            bar.set_postfix({k: f"{np.mean(v):.4f}" for k, v in metrics.items()})

        objective = Partial(partial(classify, apply))
        state = train(state, objective, data, optimizer, steps=steps, decay=decay, report=report)
    seconds = time.monotonic() - began

    stored = jax.tree.map(lambda a: np.asarray(a, np.float16), state.ema)
    images, labels = mnist("test", data_dir)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), stored)
    test = pad32(images)
    found = measure(params, test, labels) if sigma is None else measure_filtered(params, test, labels, sigma)
    print(json.dumps(found | {"seconds": seconds}))
    if found["plain"] < LEAST:
        raise SystemExit(f"right on {found['plain']:.2%} of the test digits, less than {LEAST:.0%}: not written")

    out.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": "jdiff.mnist.judge", "jdiff": jdiff.__version__, "data": "MNIST train", "dtype": "float16",
        "steps": str(steps), "batch": str(batch), "seed": str(seed), "test_accuracy": f"{found['plain']:.4f}",
    }  # fmt: skip
    beside = out / "model.safetensors.part"
    flat: Any = traverse_util.flatten_dict(stored, sep="/")
    save_file(flat, beside, metadata)
    beside.chmod(0o644)  # safetensors writes for its owner alone
    beside.replace(out / "model.safetensors")
    card = (CARD if sigma is None else HYBRID_CARD).format(
        **({} if sigma is None else {"least": sigma[0], "most": sigma[1]}),
        parameters=sum(a.size for a in jax.tree.leaves(stored)), dtype="float16", steps=steps, batch=batch, seed=seed,
        seconds=seconds, machine=machine, far=judge.FAR_COLOUR, **found,
    )  # fmt: skip
    (out / "README.md").write_text(card)


if __name__ == "__main__":
    tyro.cli(main)
