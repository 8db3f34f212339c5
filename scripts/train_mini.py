"""Trains the mini model: coloured MNIST digits from captions, with IF's architecture and a small T5 over bytes.

    python scripts/train_mini.py
    python scripts/train_mini.py --run runs/mini-more --start-from weights/mini --white 0.6 --rate 4e-4 --steps 6000

The second command starts from the weights that ship, and shows more digits on white. A command that was stopped
continues from its newest checkpoint when it is started again. On CPUs, large pages make it faster:
GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.tree_util import Partial

from jdiff import schedule
from jdiff.checkpoints.folder import ByteEncoder, first_weights, write_model
from jdiff.mesh import over_devices, use_cores
from jdiff.mnist import captions
from jdiff.mnist.data import mnist, pad32
from jdiff.networks import t5, unet
from jdiff.parts import write_text
from jdiff.training import objectives
from jdiff.training.conv import fitting_conv
from jdiff.training.log import Log, summary
from jdiff.training.loop import start, train
from jdiff.training.optimizers import adam_with_cosine
from jdiff.types import Array, Conditioning, Params, Prediction

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
    norm_num_groups=8,  # four channels or more a group (IF has six); with one, GroupNorm would remove every colour cast
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


SIZES = (len(captions.DIGITS), len(captions.COLOURS), len(captions.BACKGROUNDS))
METRICS = ("mse", "weighted", "offset", "bits", "anchor")
Encode = Callable[[Params, Array, Array], Array]
Loss = tuple[Array, dict[str, Array]]


def name_it(encode: Encode, params: Params, key: Array, batch: captions.Batch) -> Loss:
    """Computes the text encoder's objective: tell digit, colour and background from the mean of the text states.

    The mean is over all states, padding included, because the UNet's pooling of the text starts from that mean. Empty
    captions do not count. The text encoder is first trained by this objective alone, and keeps a part of it later.
    Without it, the encoder forgot the digits, because at first the image's error is mostly about colour.
    """
    del key
    states = encode(params["text"], batch.tokens, batch.mask)
    logits = jnp.split(states.mean(1) @ params["heads"], np.cumsum(SIZES)[:-1].tolist(), axis=-1)
    losses = [optax.softmax_cross_entropy_with_integer_labels(a, batch.labels[:, i]) for i, a in enumerate(logits)]
    captioned = batch.mask.sum(1) > 1
    return jnp.stack([(loss * captioned).mean() for loss in losses]).sum(), {}


def name_it_by_heads(encode: Encode, text: Params, heads: Array, key: Array, batch: captions.Batch) -> Loss:
    """Computes `name_it` with a fixed text encoder, so that only the heads are trained."""
    return name_it(encode, {"text": text, "heads": heads}, key, batch)


def denoise(
    apply: Callable, encode: Encode, params: Params, x: Array, t: Array, batch: captions.Batch
) -> Prediction:  # fmt: skip
    """Predicts the noise of images x [n h w c] with their captions."""
    states = encode(params["text"], batch.tokens, batch.mask)
    return apply(params["unet"], x, t, Conditioning(states))


def draw(n: int, null: float, white: float, world: captions.World, key: Array) -> captions.Batch:
    """Draws digits with captions; see `captions.draw`."""
    return captions.draw(world, key, n, null, white)


def hybrid(
    abar: Array, weight: Array, denoise: Callable, encode: Encode, params: Params, key: Array, batch: captions.Batch
) -> Loss:
    """Computes the objective: `objectives.hybrid`, plus a tenth of `name_it`."""
    loss, metrics = objectives.hybrid(abar, weight, objectives.cast_weight(abar), denoise, params, key, batch)
    anchor, _ = name_it(encode, params, key, batch)
    return loss + 0.1 * anchor, metrics | {"anchor": anchor}


def main(
    data_dir: Path = Path("data/tensorflow_datasets"),
    run: Path = Path("runs/mini"),
    out: Path = Path("weights/mini"),
    start_from: Path | None = None,
    steps: int = 8500,
    batch: int = 24,
    rate: float = 1e-3,
    decay: float = 0.998,
    least_weight: float = 0.1,
    white: float = 1 / 3,
    warm_up_steps: int = 600,
    seed: int = 0,
) -> None:
    """Trains the mini model.

    Args:
        data_dir: folder of TensorFlow Datasets, with MNIST; see docs/training.md.
        run: folder for checkpoints and the log.
        out: folder that the model is written to at the end.
        start_from: folder of a mini model to start from; fresh weights if not given.
        steps: updates in all.
        batch: images an update.
        rate: highest learning rate.
        decay: of the EMA of the weights, which is written.
        least_weight: smallest weight of the noise error, which it has at the lowest noise.
        white: share of images on white. White digits are always on black.
        warm_up_steps: updates in which the text encoder is trained alone, before the rest.
        seed: of everything random.
    """
    use_cores(batch)
    settings = {name: value for name, value in locals().items() if name not in ("data_dir", "run", "out")}
    settings["start_from"] = start_from and str(start_from)
    images, labels = mnist("train", data_dir)
    world = captions.world(pad32(images), labels)
    apply = unet.unet(UNET, fitting_conv()).apply
    encode, _ = t5.t5(TEXT)
    keys = jax.random.split(jax.random.key(seed), 4)

    heads, adam = jnp.zeros((TEXT.d_model, sum(SIZES))), optax.adam(1e-3)
    data = Partial(partial(draw, 64, 0.1, white), world)
    how = {"steps": warm_up_steps, "checkpoints": run / "text", "settings": settings}
    if start_from is None:
        network = unet.init(UNET, keys[2])
        warm = start({"text": t5.init(TEXT, keys[0]), "heads": heads}, adam, keys[1])
        named = train(warm, Partial(partial(name_it, encode)), data, adam, **how).params
    else:
        network, text = first_weights(start_from, run / "start", UNET, TEXT)
        objective = Partial(partial(name_it_by_heads, encode), text)
        named = {"text": text, "heads": train(start(heads, adam, keys[1]), objective, data, adam, **how).params}

    optimizer = adam_with_cosine(rate, steps)
    state = start({"unet": network, **named}, optimizer, keys[3])
    abar = jnp.asarray(schedule.cosine(), jnp.float32)
    weight = objectives.root_snr_weight(abar, least_weight)
    objective = Partial(hybrid, abar, weight, Partial(partial(denoise, apply, encode)), Partial(encode))
    data = Partial(partial(draw, batch, 0.1, white), world)
    with Log(run, steps, batch) as report:
        state = train(
            state, objective, data, optimizer, steps=steps, decay=decay, every=25, report=report, save_every=250,
            checkpoints=run / "checkpoints", settings=settings, mesh=over_devices(),
        )  # fmt: skip
    text_encoder = ByteEncoder(TEXT, state.ema["text"], captions.LENGTH)
    write_model(out, UNET, state.ema["unet"], scheduler=SCHEDULER, defaults=DEFAULTS, text_encoder=text_encoder)
    facts = settings | summary(run / "log.csv", 250, METRICS)
    write_text(out / "training.json", json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
