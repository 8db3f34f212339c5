"""Measures the mini stage 2 on digits that no model was trained on, beside plain resizing, and writes its card.

python scripts/measure_upscaler.py --data-dir FOLDER_OF_TFDS
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jdiff
from jdiff import images, sample
from jdiff.mnist import captions
from jdiff.mnist.data import mnist, pad32
from jdiff.mnist.judge import load_judge
from jdiff.types import Array

LEVELS = (0, 50, 100, 250)  # noise levels measured
SHOWN = 10

CARD = """\
# The mini upscaler

Draws coloured digits of 16 x 16 pixels anew at 32 x 32: a UNet in the architecture of IF's stage 2 (the low-res picture
as three further channels, its noise level told, attention to the text alone) that this repository trained on captioned,
coloured MNIST. `jdiff upscale` uses it, and `jdiff generate --stage2 mini-upscaler`.

![Low-res digits, resized bilinearly, drawn anew, and the originals]({picture})

*The first {shown} of the test digits measured, none picked.*

![The mini model's pictures, resized bilinearly, and drawn anew](../../docs/pictures/upscaler-64.png)

*What it was not trained for and does: pictures of the mini model, 32 to 64 pixels, seed 0, none picked. There are no
originals to measure these by.*

## How well
{n} digits of MNIST's test split, coloured and captioned as in training, reduced to 16 x 16 by the mean of each 2 x 2
pixels: {how}. Distances are to the 32 x 32 originals, root mean square, in units of [-1, 1]; the
gradient is the difference of neighbouring pixels; sharpness is its mean size over the original's.

| way | distance | distance of the gradient | sharpness | digit read right |
| --- | --- | --- | --- | --- |
{rows}

Measured by `python scripts/measure_upscaler.py` on {machine}; figures in `quality.json`.

## How it was made
`python scripts/train_mini_upscaler.py`: {updates:,} updates of {batch} pictures at {speed:.0f} pictures/s on {machine};
text encoder of the mini model, unchanged; noise levels of the low-res picture drawn as 1000 u^2. {size:.1f} MB.
Data: MNIST (Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0). The weights are licensed as the library is (Apache-2.0).
"""


def gradient(pictures: Array) -> Array:
    """[n h-1 w-1 c 2] differences with the neighbours below and to the right."""
    here = pictures[:, :-1, :-1]
    return jnp.stack([pictures[:, 1:, :-1] - here, pictures[:, :-1, 1:] - here], axis=-1)


def compare(pictures: Array, originals: Array, labels: np.ndarray, judge: Any) -> dict[str, float]:
    """Distances of `pictures` to `originals` [n h w 3], sharpness, and the share of digits read right."""
    theirs, ours = gradient(originals), gradient(pictures)
    seen = np.asarray(jax.jit(lambda judge, x: judge(x).digit)(judge, pictures))
    return {
        "distance": round(float(jnp.sqrt(((pictures - originals) ** 2).mean())), 4),
        "gradient_distance": round(float(jnp.sqrt(((ours - theirs) ** 2).mean())), 4),
        "sharpness": round(float(jnp.linalg.norm(ours, axis=-1).mean() / jnp.linalg.norm(theirs, axis=-1).mean()), 3),
        "digit": round(float(np.mean(seen == labels)), 4),
    }


def main(
    data_dir: Path | None = None,
    folder: Path = Path("weights/mini-upscaler"),
    n: int = 200,
    guidance: float | None = None,
    machine: str = "a virtual machine with two cores (AMD EPYC)",
) -> None:
    """Writes `folder`/quality.json, README.md and docs/pictures/upscaler.png.

    Args:
        data_dir: where TFDS keeps its data sets; its own choice if not given.
        folder: the model.
        n: how many test digits, the first ones.
        guidance: guidance scale; the model's own if not given.
        machine: what the card says it was measured on.
    """
    model, judge = jdiff.load(folder), load_judge()
    pixels, digits = mnist("test", data_dir)
    world = captions.world(pad32(pixels[:n]), digits[:n])
    batch = captions.draw(world, jax.random.key(0), n, 0.0)
    labels = np.asarray(batch.labels[:, 0])
    names = {(c.digit, c.colour, c.background): c.text for c in captions.captions()[:150]}
    prompts = [names[tuple(row)] for row in np.asarray(batch.labels).tolist()]
    originals, side, factor = batch.images, model.config.sample_size, model.defaults.factor
    low = originals.reshape(n, side // factor, factor, side // factor, factor, 3).mean((2, 4))
    ways = {
        "the original": originals,
        "nearest pixel": low.repeat(factor, 1).repeat(factor, 2),
        "bilinear": jax.image.resize(low, originals.shape, "linear"),
        "bilinear, corners on corners (what the network sees)": sample.resized(low, (side, side)),
        "bicubic": jnp.clip(jax.image.resize(low, originals.shape, "cubic"), -1, 1),
    }
    for level in LEVELS:
        made = [
            sample.upscale(model, low[i : i + 50], prompts[i : i + 50], jax.random.fold_in(jax.random.key(0), i),
                           noise_level=level, guidance=guidance).images[:, 0]
            for i in range(0, n, 50)
        ]  # fmt: skip
        ways[f"**mini upscaler, noise level {level}**"] = jnp.concatenate(made)
    found = {name: compare(pictures, originals, labels, judge) for name, pictures in ways.items()}
    for name, row in found.items():
        print(f"{name:60}", row, flush=True)
    guidance = model.defaults.guidance if guidance is None else guidance
    settings = {"n": n, "guidance": guidance, "steps": model.defaults.steps, "hash": model.hash}
    (folder / "quality.json").write_text(json.dumps(settings | {"ways": found}, indent=1) + "\n")

    chosen = f"**mini upscaler, noise level {model.defaults.noise_level}**"
    shown = [ways["nearest pixel"], ways["bilinear"], ways[chosen], originals]
    page = images.grid(
        np.stack([a[:SHOWN] for a in shown]), ["16 x 16", "bilinear", "mini upscaler", "original"], cell=64
    )
    images.save("docs/pictures/upscaler.png", page, {"model": model.name, "hash": model.hash})
    prompts = ["a red three", "the digit 8 in cyan", "a blue five on white", "a green zero", "an orange nine"]
    small = sample.generate(jdiff.load("mini"), prompts, jax.random.key(0), n=2).images
    large = sample.upscale(model, small, prompts, jax.random.key(1), n=2, side=64).images.reshape(10, 64, 64, 3)
    small = small.reshape(10, 32, 32, 3)
    rows = [small.repeat(2, 1).repeat(2, 2), jax.image.resize(small, large.shape, "linear"), large]
    page = images.grid(np.stack(rows), ["32 x 32", "bilinear", "mini upscaler"], cell=64)
    images.save("docs/pictures/upscaler-64.png", page, {"model": model.name, "hash": model.hash})
    trained = json.loads((folder / "training.json").read_text())
    size = sum(p.stat().st_size for p in folder.glob("*/model.safetensors")) / 1e6
    rows = "\n".join(f"| {name} | {' | '.join(f'{v:g}' for v in row.values())} |" for name, row in found.items())
    card = CARD.format(
        picture="../../docs/pictures/upscaler.png", shown=SHOWN, n=n, rows=rows, machine=machine, size=size,
        how=f"{model.defaults.steps} calls, guidance {guidance:g}, noise level {model.defaults.noise_level} by default",
        updates=trained["updates"], batch=trained["batch"], speed=trained["images_per_second"],
    )  # fmt: skip
    (folder / "README.md").write_text(card)


if __name__ == "__main__":
    tyro.cli(main)
