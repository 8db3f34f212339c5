"""Trains the mini stage 2: coloured digits of 16 x 16 drawn anew at 32 x 32, by the architecture of IF's stage 2.

    python scripts/train_mini_upscaler.py --data-dir FOLDER_OF_TFDS

The text encoder is the mini model's and stays as it is. Stopped at any moment, the same command goes on from its last
checkpoint in `--run`.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial
from train_mini import SCHEDULER, TEXT, UNET, adam_with_cosine, history, logged

from jdiff import model, schedule
from jdiff.checkpoints import files
from jdiff.checkpoints.folder import write_model
from jdiff.mesh import use_cores
from jdiff.mnist import captions
from jdiff.mnist.data import mnist, pad32
from jdiff.networks import t5, unet
from jdiff.sample import resized
from jdiff.training import objectives
from jdiff.training.conv import fitting_conv
from jdiff.training.loop import start
from jdiff.types import Array, Conditioning

FACTOR = 2
# to 64 pixels too: nearly all that it does is local
DEFAULTS = {"sampler": "deepfloyd", "steps": 30, "guidance": 1.0, "noise_level": 50, "factor": FACTOR, "low_res": 32}
UPSCALER = dataclasses.replace(
    UNET,
    in_channels=6,
    block_out_channels=(32, 64, 64),
    only_cross_attention=True,
    class_embed_type="timestep",
    time_embedding_dim=128,  # the first width by four, as IF's is by its last multiplier
    time_embedding_act_fn="gelu",
    resnet_skip_time_act=True,
    resnet_out_scale_factor=1 / 0.7071,
    mid_block_scale_factor=1 / 0.7071,
)


class Batch(NamedTuple):
    images: Array  # [n 32 32 3] in [-1, 1]
    conditioning: Conditioning


def reduced(images: Array, factor: int = FACTOR) -> Array:
    """[n h/f w/f c] of images [n h w c]: the mean of each square."""
    n, h, w, c = images.shape
    return images.reshape(n, h // factor, factor, w // factor, factor, c).mean((2, 4))


def draw(n, null, encode, text, world, abar, key):
    """Digits with captions, and beside each its low-res self, resized and noised to a level that leans to the low."""
    key, level_key, noise_key = jax.random.split(key, 3)
    batch = captions.draw(world, key, n, null)
    _, h, w, _ = batch.images.shape
    low = resized(reduced(batch.images), (h, w))
    level = (jax.random.uniform(level_key, (n,)) ** 2 * abar.shape[0]).astype(jnp.int32)
    a = abar[level][:, None, None, None]
    low = jnp.sqrt(a) * low + jnp.sqrt(1 - a) * jax.random.normal(noise_key, low.shape)
    states = encode(text, batch.tokens, batch.mask)
    return Batch(batch.images, Conditioning(states, low, level.astype(jnp.float32)))


def denoise(apply, params, x, t, batch):
    return apply(params, x, t, batch.conditioning)


def main(
    data_dir: Path | None = None,
    run: Path = Path("runs/mini-upscaler"),
    out: Path = Path("weights/mini-upscaler"),
    steps: int = 6000,
    batch: int = 24,
    rate: float = 1e-3,
    decay: float = 0.998,
    least_weight: float = 0.3,
    seed: int = 0,
) -> None:
    """Trains up to `steps` updates of `batch` pictures.

    Args:
        data_dir: where TFDS keeps its data sets; its own choice if not given.
        run: folder for checkpoints and the log.
        out: folder that the model is written to at the end.
        steps: updates in all.
        batch: pictures an update.
        rate: highest learning rate; a cosine brings it to nothing.
        decay: of the running mean of the weights, which is what ships.
        least_weight: of the noise error, at the lowest noise.
        seed: of everything random.
    """
    use_cores(batch)
    run.mkdir(parents=True, exist_ok=True)
    images, labels = mnist("train", data_dir)
    world = captions.world(pad32(images), labels)
    apply = unet.unet(UPSCALER, fitting_conv()).apply
    encode, abstract = t5.t5(TEXT)
    text = files.load(model.shipped("mini") / "text_encoder" / "model.safetensors", abstract, dtype=np.float32)
    text = jax.tree.map(jnp.asarray, text)
    key, init_key = jax.random.split(jax.random.key(seed))
    optimizer = adam_with_cosine(rate, steps)
    state = start(unet.init(UPSCALER, init_key), optimizer, key)
    abar = jnp.asarray(schedule.cosine(), jnp.float32)
    weight = objectives.root_snr_weight(abar, least_weight)
    cast = objectives.cast_weight(abar)
    objective = Partial(objectives.hybrid, abar, weight, cast, Partial(partial(denoise, apply)))
    data = Partial(partial(draw, batch, 0.1, encode), text, world, abar)
    state = logged(state, objective, data, optimizer, steps=steps, decay=decay, batch=batch, run=run)
    text_encoder = model.shipped("mini") / "text_encoder"
    write_model(out, UPSCALER, state.ema, scheduler=SCHEDULER, defaults=DEFAULTS, text_encoder=text_encoder)
    settings = {"batch": batch, "rate": rate, "decay": decay, "least_weight": least_weight, "seed": seed}
    (out / "training.json").write_text(json.dumps(settings | history(run / "log.csv"), indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
