"""Trains the mini upscaler: IF's stage 2 architecture, which enlarges coloured digits from 16 x 16 to 32 x 32 pixels.

    python scripts/train_mini_upscaler.py

The text encoder is the mini model's, unchanged. A command that was stopped continues from its newest checkpoint when it
is started again.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from einops import reduce
from jax.tree_util import Partial
from train_mini import METRICS, SCHEDULER, TEXT, UNET, Encode

from jdiff import model, schedule
from jdiff.checkpoints import files
from jdiff.checkpoints.folder import write_model
from jdiff.mesh import over_devices, use_cores
from jdiff.mnist import captions
from jdiff.mnist.data import mnist, pad32
from jdiff.networks import t5, unet
from jdiff.parts import write_text
from jdiff.sample import resized
from jdiff.training import objectives
from jdiff.training.conv import fitting_conv
from jdiff.training.log import Log, summary
from jdiff.training.loop import start, train
from jdiff.training.optimizers import adam_with_cosine
from jdiff.types import Array, Conditioning, Params, Prediction

FACTOR = 2
# It is offered for 32 to 64 pixels too, because nearly all that it does is local.
DEFAULTS = {"sampler": "deepfloyd", "steps": 30, "guidance": 1.0, "noise_level": 50, "factor": FACTOR, "low_res": 32}
UPSCALER = dataclasses.replace(
    UNET,
    in_channels=6,
    block_out_channels=(32, 64, 64),
    only_cross_attention=True,
    class_embed_type="timestep",
    time_embedding_dim=128,  # four times the first number of channels
    time_embedding_act_fn="gelu",
    resnet_skip_time_act=True,
    resnet_out_scale_factor=1 / 0.7071,
    mid_block_scale_factor=1 / 0.7071,
)


class Batch(NamedTuple):
    """Images and their conditioning."""

    images: Array  # [n 32 32 3] in [-1, 1]
    conditioning: Conditioning


def draw(
    n: int, null: float, encode: Encode, text: Params, world: captions.World, abar: Array, key: Array
) -> Batch:  # fmt: skip
    """Draws digits with captions and low-res images, with a noise level of 1000 u^2, so that most have little noise."""
    key, level_key, noise_key = jax.random.split(key, 3)
    batch = captions.draw(world, key, n, null)
    _, h, w, _ = batch.images.shape
    low = resized(reduce(batch.images, "n (h a) (w b) c -> n h w c", "mean", a=FACTOR, b=FACTOR), (h, w))
    level = (jax.random.uniform(level_key, (n,)) ** 2 * abar.shape[0]).astype(jnp.int32)
    a = abar[level][:, None, None, None]
    low = jnp.sqrt(a) * low + jnp.sqrt(1 - a) * jax.random.normal(noise_key, low.shape)
    states = encode(text, batch.tokens, batch.mask)
    return Batch(batch.images, Conditioning(states, low, level.astype(jnp.float32)))


def denoise(apply: Callable, params: Params, x: Array, t: Array, batch: Batch) -> Prediction:
    """Predicts the noise of images x [n h w c]."""
    return apply(params, x, t, batch.conditioning)


def main(
    data_dir: Path = Path("data/tensorflow_datasets"),
    run: Path = Path("runs/mini-upscaler"),
    out: Path = Path("weights/mini-upscaler"),
    steps: int = 6000,
    batch: int = 24,
    rate: float = 1e-3,
    decay: float = 0.998,
    least_weight: float = 0.3,
    seed: int = 0,
) -> None:
    """Trains the mini upscaler.

    Args:
        data_dir: folder of TensorFlow Datasets, with MNIST; see docs/training.md.
        run: folder for checkpoints and the log.
        out: folder that the model is written to at the end.
        steps: updates in all.
        batch: images an update.
        rate: highest learning rate.
        decay: of the EMA of the weights, which is written.
        least_weight: smallest weight of the noise error, which it has at the lowest noise.
        seed: of everything random.
    """
    use_cores(batch)
    settings = {
        "steps": steps,
        "batch": batch,
        "rate": rate,
        "decay": decay,
        "least_weight": least_weight,
        "seed": seed,
    }
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
    with Log(run, steps, batch) as report:
        state = train(
            state, objective, data, optimizer, steps=steps, decay=decay, every=25, report=report, save_every=250,
            checkpoints=run / "checkpoints", settings=settings, mesh=over_devices(),
        )  # fmt: skip
    text_encoder = model.shipped("mini") / "text_encoder"
    write_model(out, UPSCALER, state.ema, scheduler=SCHEDULER, defaults=DEFAULTS, text_encoder=text_encoder)
    facts = settings | summary(run / "log.csv", 250, METRICS)
    write_text(out / "training.json", json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
