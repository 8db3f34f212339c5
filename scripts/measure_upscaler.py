"""Measures the mini upscaler on digits that it was not trained on, compares it with resizing, and writes its card.

python scripts/measure_upscaler.py
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from einops import reduce

import jdiff
from jdiff import images, sample
from jdiff.mnist import captions
from jdiff.mnist.data import mnist, pad32
from jdiff.mnist.judge import load_judge
from jdiff.model import Model
from jdiff.parts import write_text
from jdiff.results import machine as this_machine
from jdiff.results import table
from jdiff.types import Array

LEVELS = (0, 50, 100, 250)  # noise levels that are measured
SHOWN = 10  # digits on the picture
AT_ONCE = 50  # pictures that are drawn at once
PICTURES = Path("docs/pictures")

CARD = """\
# The mini upscaler

A UNet in the architecture of IF's stage 2, which enlarges coloured digits from 16 x 16 to 32 x 32 pixels. This
repository trained it on captioned, coloured MNIST. It gets the low-res picture as three more channels, and is told that
picture's noise level. It attends to the text only. `jdiff upscale` and `jdiff generate --stage2 mini-upscaler` use it.

![Low-res digits, the same resized bilinearly, enlarged by the mini upscaler, and the originals]({picture})

*The first {shown} of the measured digits, none picked.*

![The mini model's pictures, resized bilinearly, and enlarged by the mini upscaler]({picture_64})

*Pictures of the mini model, enlarged from 32 to 64 pixels, at seed 0, none picked. The upscaler was not trained for
this size. There are no originals to measure against.*

## How well it works
The test digits are {n} digits, drawn from the first {n} of MNIST's test split, coloured and captioned as in training,
and reduced to 16 x 16 by the mean of each 2 x 2 pixels. The upscaler takes {steps} steps with guidance scale
{guidance:g}. Its default noise level is {noise_level}. Distances are root mean squares of the difference to the 32 x 32
originals, in [-1, 1]. The gradient is the difference between neighbouring pixels. Sharpness is the mean size of the
gradient, divided by that of the originals.

{rows}

Measured by `python scripts/measure_upscaler.py` on {machine}. All results are in `quality.json`.

## How it was made
`python scripts/train_mini_upscaler.py`: {updates:,} updates of {batch} pictures, {speed:.0f} pictures/s in the median.
The text encoder is the mini model's, unchanged. The noise level of the low-res picture is drawn as 1000 u^2 with u
uniform in [0, 1]. The files take {size:.1f} MB. The data is MNIST (Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0). The
weights have the library's licence (Apache-2.0).
"""


def gradient(pictures: Array) -> Array:
    """Returns the differences [n h-1 w-1 c 2] with the neighbours below and to the right."""
    here = pictures[:, :-1, :-1]
    return jnp.stack([pictures[:, 1:, :-1] - here, pictures[:, :-1, 1:] - here], axis=-1)


def compare(pictures: Array, originals: Array, labels: np.ndarray, judge: Any) -> dict[str, float]:
    """Measures pictures [n h w 3]: distances to the originals, sharpness, and the share of digits read right."""
    wanted, found = gradient(originals), gradient(pictures)
    seen = np.asarray(jax.jit(lambda judge, x: judge(x).digit)(judge, pictures))
    return {
        "distance": round(float(jnp.sqrt(((pictures - originals) ** 2).mean())), 4),
        "gradient_distance": round(float(jnp.sqrt(((found - wanted) ** 2).mean())), 4),
        "sharpness": round(float(jnp.linalg.norm(found, axis=-1).mean() / jnp.linalg.norm(wanted, axis=-1).mean()), 3),
        "digit": round(float(np.mean(seen == labels)), 4),
    }


def show_64(model: Model, facts: dict[str, Any]) -> None:
    """Writes pictures/upscaler-64.png: pictures of the mini model, enlarged from 32 to 64 pixels."""
    prompts = ["a red three", "the digit 8 in cyan", "a blue five on white", "a green zero", "an orange nine"]
    small = sample.generate(jdiff.load("mini"), prompts, jax.random.key(0), n=2).images
    large = sample.upscale(model, small, prompts, jax.random.key(1), n=2, side=64).images.reshape(10, 64, 64, 3)
    small = small.reshape(10, 32, 32, 3)
    rows = [small.repeat(2, 1).repeat(2, 2), jax.image.resize(small, large.shape, "linear"), large]
    page = images.grid(np.stack(rows), ["32 x 32", "bilinear", "mini upscaler"], cell=64)
    images.save(PICTURES / "upscaler-64.png", page, facts)


def main(
    data_dir: Path = Path("data/tensorflow_datasets"),
    folder: Path = Path("weights/mini-upscaler"),
    n: int = 200,
    guidance: float | None = None,
    machine: str = "",
) -> None:
    """Writes quality.json and README.md into `folder`, and pictures into docs/pictures.

    Args:
        data_dir: folder of TensorFlow Datasets, with MNIST; see docs/training.md.
        folder: the model's folder.
        n: number of test digits.
        guidance: guidance scale; the model's default if not given.
        machine: description of the machine for the card; detected if not given.
    """
    model, judge = jdiff.load(folder), load_judge()
    facts = {"model": model.name, "hash": model.hash}
    pixels, digits = mnist("test", data_dir)
    batch = captions.draw(captions.world(pad32(pixels[:n]), digits[:n]), jax.random.key(0), n, 0.0)
    labels = np.asarray(batch.labels[:, 0])
    texts = {(c.digit, c.colour, c.background): c.text for c in captions.captions()[::-1]}  # the first form of each
    prompts = [texts[tuple(row)] for row in np.asarray(batch.labels).tolist()]
    originals, side, factor = batch.images, model.config.sample_size, model.defaults.factor
    low = reduce(originals, "n (h a) (w b) c -> n h w c", "mean", a=factor, b=factor)
    ways = {
        "the original": originals,
        "nearest pixel": low.repeat(factor, 1).repeat(factor, 2),
        "bilinear": jax.image.resize(low, originals.shape, "linear"),
        "bilinear with aligned corners (the network's input)": sample.resized(low, (side, side)),
        "bicubic": jnp.clip(jax.image.resize(low, originals.shape, "cubic"), -1, 1),
    }
    how = {"guidance": guidance, "images_at_once": AT_ONCE}
    for level in LEVELS:
        made = sample.upscale(model, low, prompts, jax.random.key(0), noise_level=level, **how)
        ways[f"**mini upscaler, noise level {level}**"] = made.images[:, 0]
    found = {name: compare(pictures, originals, labels, judge) for name, pictures in ways.items()}
    for name, row in found.items():
        print(f"{name:60}", row, flush=True)
    guidance = model.defaults.guidance if guidance is None else guidance
    settings = {"n": n, "guidance": guidance, "steps": model.defaults.steps, "hash": model.hash}
    write_text(folder / "quality.json", json.dumps(settings | {"ways": found}, indent=1) + "\n")

    chosen = ways[f"**mini upscaler, noise level {model.defaults.noise_level}**"]
    shown = np.stack([a[:SHOWN] for a in (ways["nearest pixel"], ways["bilinear"], chosen, originals)])
    page = images.grid(shown, ["16 x 16", "bilinear", "mini upscaler", "original"], cell=64)
    images.save(PICTURES / "upscaler.png", page, facts)
    show_64(model, facts)
    trained = json.loads((folder / "training.json").read_text())
    head = ("method", "distance", "distance of the gradient", "sharpness", "digit read right")
    card = CARD.format(
        picture="../../docs/pictures/upscaler.png", picture_64="../../docs/pictures/upscaler-64.png",
        shown=SHOWN, n=n, steps=model.defaults.steps, guidance=guidance,
        noise_level=model.defaults.noise_level, machine=machine or this_machine(),
        rows=table(head, [(name, *(f"{v:g}" for v in row.values())) for name, row in found.items()]),
        size=sum(p.stat().st_size for p in folder.glob("*/model.safetensors")) / 1e6,
        updates=trained["updates"], batch=trained["batch"], speed=trained["images_per_second"],
    )  # fmt: skip
    write_text(folder / "README.md", card)


if __name__ == "__main__":
    tyro.cli(main)
