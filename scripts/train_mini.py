"""Trains the mini model: coloured MNIST digits from captions, by IF's architecture and a small T5 over bytes.

    python scripts/train_mini.py --data-dir FOLDER_OF_TFDS

Stopped at any moment, the same command goes on from its last checkpoint in `--run`. On CPUs large pages are worth it:
GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184
"""

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.tree_util import Partial

from jdiff import schedule
from jdiff.checkpoints.folder import ByteEncoder, write_model
from jdiff.mesh import over_devices, use_cores
from jdiff.mnist import captions
from jdiff.mnist.data import mnist, pad32
from jdiff.networks import t5, unet
from jdiff.training import objectives
from jdiff.training.conv import fitting_conv
from jdiff.training.log import Log
from jdiff.training.loop import TrainState, start, train
from jdiff.types import Conditioning

UNET = unet.Config(
    sample_size=32,
    down_block_types=(unet.PLAIN_DOWN, unet.CROSS_DOWN, unet.CROSS_DOWN),
    up_block_types=(unet.CROSS_UP, unet.CROSS_UP, unet.PLAIN_UP),
    block_out_channels=(32, 32, 96),
    layers_per_block=(1, 1, 1),
    attention_head_dim=32,
    cross_attention_dim=128,
    encoder_hid_dim=128,
    addition_embed_type_num_heads=4,
    norm_num_groups=8,  # four channels a group, as IF has six: with one, GroupNorm would take every colour cast away
)
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": False,
    "dynamic_thresholding_ratio": 0.95,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "thresholding": True,
    "variance_type": "learned_range",
}
DEFAULTS = {"sampler": "deepfloyd", "steps": 20, "guidance": 4.0}
TEXT = t5.Config(vocab_size=259, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4)


def name_it(encode, params, key, batch):
    """Digit, colour and background read off the mean of the text states, the empty captions aside.

    The mean is over all of them, padding too, because that is what the UNet's pooling of the text starts from.

    The text encoder's warm-up, and its anchor afterwards: trained by the picture's error alone, which colours dominate
    at first, it forgot the digits.
    """
    del key
    states = encode(params["text"], batch.tokens, batch.mask)
    sizes = np.cumsum([len(captions.DIGITS), len(captions.COLOURS)])
    logits = jnp.split(states.mean(1) @ params["heads"], sizes, axis=-1)
    losses = [optax.softmax_cross_entropy_with_integer_labels(a, batch.labels[:, i]) for i, a in enumerate(logits)]
    told = batch.mask.sum(1) > 1
    return sum((loss * told).mean() for loss in losses), {}


def denoise(apply, encode, params, x, t, batch):
    states = encode(params["text"], batch.tokens, batch.mask)
    return apply(params["unet"], x, t, Conditioning(states))


def draw(n, null, world, key):
    return captions.draw(world, key, n, null)


def hybrid(abar, weight, denoise, encode, params, key, batch):
    loss, metrics = objectives.hybrid(abar, weight, objectives.cast_weight(abar), denoise, params, key, batch)
    anchor, _ = name_it(encode, params, key, batch)
    return loss + 0.1 * anchor, metrics | {"anchor": anchor}


def history(log: Path, every: int = 250) -> dict:
    """What the card shows of a run's log: its updates, its speed, and a row of every metric now and then."""
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if int(row["update"]) % every == 0 or row is rows[-1]]
    names = [name for name in ("update", "mse", "weighted", "offset", "bits", "anchor") if name in rows[0]]
    return {
        "updates": int(rows[-1]["update"]),
        "images_per_second": round(float(np.median([float(row["images_per_second"]) for row in rows])), 1),
        "metrics": names,
        "curve": [[float(row[name]) for name in names] for row in kept],
    }


def adam_with_cosine(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam on clipped gradients, its rate warmed up and brought to nothing by a cosine."""
    rates = optax.warmup_cosine_decay_schedule(0.0, rate, min(200, steps // 10), steps, rate * 0.01)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rates, b2=0.99))


def logged(
    state: TrainState, objective: Any, data: Any, optimizer: Any, *, steps: int, decay: float, batch: int, run: Path
) -> TrainState:
    """The state after `steps` updates over all devices, resumed and saved in `run`, with a bar and log.csv there."""
    with Log(run, steps, batch) as report:
        return train(
            state, objective, data, optimizer, steps=steps, decay=decay, mesh=over_devices(),
            every=25, report=report, checkpoints=run / "checkpoints", save_every=250,
        )  # fmt: skip


def main(
    data_dir: Path | None = None,
    run: Path = Path("runs/mini"),
    out: Path = Path("weights/mini"),
    steps: int = 8500,
    batch: int = 24,
    rate: float = 1e-3,
    decay: float = 0.998,
    least_weight: float = 0.1,
    warm_up_steps: int = 600,
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
        warm_up_steps: updates of the text encoder alone, before.
        seed: of everything random.
    """
    use_cores(batch)
    run.mkdir(parents=True, exist_ok=True)
    images, labels = mnist("train", data_dir)
    world = captions.world(pad32(images), labels)
    apply = unet.unet(UNET, fitting_conv()).apply
    encode, _ = t5.t5(TEXT)
    keys = jax.random.split(jax.random.key(seed), 4)

    text = t5.init(TEXT, keys[0])
    outputs = len(captions.DIGITS) + len(captions.COLOURS) + len(captions.BACKGROUNDS)
    warm = start({"text": text, "heads": jnp.zeros((TEXT.d_model, outputs))}, adam := optax.adam(1e-3), keys[1])
    objective = Partial(partial(name_it, encode))
    last = {}
    data = Partial(partial(draw, 64, 0.1), world)
    if not (run / "checkpoints").exists():
        warm = train(warm, objective, data, adam, steps=warm_up_steps, report=lambda _, m: last.update(m))
        print(f"text warm-up: loss {np.mean(last['loss']):.4f}")

    optimizer = adam_with_cosine(rate, steps)
    state = start({"unet": unet.init(UNET, keys[2]), **warm.params}, optimizer, keys[3])
    abar = jnp.asarray(schedule.cosine(), jnp.float32)
    weight = objectives.root_snr_weight(abar, least_weight)
    objective = Partial(hybrid, abar, weight, Partial(partial(denoise, apply, encode)), Partial(encode))
    data = Partial(partial(draw, batch, 0.1), world)
    state = logged(state, objective, data, optimizer, steps=steps, decay=decay, batch=batch, run=run)
    text_encoder = ByteEncoder(TEXT, state.ema["text"], captions.LENGTH)
    write_model(out, UNET, state.ema["unet"], scheduler=SCHEDULER, defaults=DEFAULTS, text_encoder=text_encoder)
    settings = {"batch": batch, "rate": rate, "decay": decay, "least_weight": least_weight, "seed": seed}
    (out / "training.json").write_text(json.dumps(settings | history(run / "log.csv"), indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
