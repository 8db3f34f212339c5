"""Trains the letters model: glyphs from captions, by IF's architecture on patches and a small T5 over bytes.

    python scripts/train_letters.py --data-folder FOLDER_OF_GLYPHS

A command that was stopped continues from its newest checkpoint when it is started again. On CPUs, large pages help:
GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184
"""

import json
from collections.abc import Callable
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
from jdiff.letters import captions, data, folder
from jdiff.mesh import over_devices, use_cores
from jdiff.networks import t5, unet
from jdiff.parts import write_text
from jdiff.training import objectives
from jdiff.training.conv import fitting_conv
from jdiff.training.log import Log, read
from jdiff.training.loop import start, train
from jdiff.training.optimizers import adam_with_cosine
from jdiff.types import Array, Conditioning, Params, Prediction

UNET = unet.Config(
    sample_size=data.SIZE,
    in_channels=1,
    out_channels=1,
    patch=2,
    down_block_types=(unet.PLAIN_DOWN, unet.CROSS_DOWN, unet.CROSS_DOWN),
    up_block_types=(unet.CROSS_UP, unet.CROSS_UP, unet.PLAIN_UP),
    block_out_channels=(48, 96, 128),
    layers_per_block=(1, 1, 1),
    attention_head_dim=32,
    cross_attention_dim=96,
    encoder_hid_dim=96,
    addition_embed_type_num_heads=3,
    norm_num_groups=8,
)
TEXT = t5.Config(vocab_size=259, d_model=96, d_kv=32, d_ff=192, num_layers=2, num_heads=3)
OUTPUTS = (len(captions.CHARACTERS), *map(len, captions.STYLE_WORDS))


def name_it(encode: Callable, params: Params, key: Array, batch: data.Batch) -> tuple[Array, dict[str, Array]]:
    """Computes the objective of the text encoder: tell character and style from the mean of the text states.

    The UNet's pooling of the text starts from that mean. The text encoder is trained by this objective alone. When it
    was also trained by the picture's error, it forgot characters.
    """
    del key
    states = encode(params["text"], batch.tokens, batch.mask)
    logits = jnp.split(states.mean(1) @ params["heads"], np.cumsum(OUTPUTS)[:-1].tolist(), axis=-1)
    losses = [optax.softmax_cross_entropy_with_integer_labels(a, batch.labels[:, i]) for i, a in enumerate(logits)]
    told = batch.mask.sum(1) > 1
    right = (told * (logits[0].argmax(-1) == batch.labels[:, 0])).sum() / jnp.maximum(told.sum(), 1)
    return sum(((loss * told).mean() for loss in losses), jnp.zeros(())), {"named": right}


def denoise(
    apply: Callable, encode: Callable, text: Params, params: Params, x: Array, t: Array, batch: data.Batch
) -> Prediction:
    """Predicts v of images x [n h w 1] with their captions, by a fixed text encoder."""
    return apply(params, x, t, Conditioning(encode(text, batch.tokens, batch.mask)))


def main(
    data_folder: Path = Path("data/glyphs"),
    run: Path = Path("runs/letters"),
    out: Path = Path("weights/letters"),
    steps: int = 3600,
    batch: int = 32,
    rate: float = 1.5e-3,
    decay: float = 0.998,
    text_steps: int = 800,
    save_every: int = 250,
    seed: int = 0,
    only_export: bool = False,
) -> None:
    """Trains up to `steps` updates of `batch` glyphs.

    Args:
        data_folder: glyphs.npz and fonts.jsonl, as `scripts/prepare_letters.py` writes them.
        run: folder for checkpoints and the log.
        out: folder that the model is written to at the end.
        steps: total number of updates.
        batch: glyphs per update.
        rate: highest learning rate; it decays to a hundredth with a cosine.
        decay: decay of the EMA of the weights, which is written.
        text_steps: updates of the text encoder, which is trained first, alone.
        save_every: updates between two checkpoints.
        seed: seed of everything random.
        only_export: write the EMA of the newest checkpoint, without training.
    """
    use_cores(batch)
    run.mkdir(parents=True, exist_ok=True)
    glyphs, _ = data.split(data.read(data_folder))
    world = data.world(glyphs)
    apply = unet.unet(UNET, fitting_conv()).apply
    encode, _ = t5.t5(TEXT)
    keys = jax.random.split(jax.random.key(seed), 4)

    warm = start(
        {"text": t5.init(TEXT, keys[0]), "heads": jnp.zeros((TEXT.d_model, sum(OUTPUTS)))},
        adam := optax.adam(1e-3),
        keys[1],
    )
    last: dict[str, Any] = {}
    drawer = Partial(partial(data.draw, n=128, null=0.1, dropped=0.4), world)
    warm = train(
        warm, Partial(partial(name_it, encode)), drawer, adam, steps=text_steps, checkpoints=run / "text",
        report=lambda _, metrics: last.update(metrics),
    )  # fmt: skip
    if last:
        print(f"text encoder: loss {np.mean(last['loss']):.4f}, named right {np.mean(last['named']):.4f}", flush=True)

    optimizer = adam_with_cosine(rate, steps)
    state = start(unet.init(UNET, keys[2]), optimizer, keys[3])
    abar = schedule.cosine()
    objective = Partial(
        objectives.v_error, jnp.asarray(abar, jnp.float32), jnp.asarray(objectives.timestep_quantiles(abar)),
        Partial(partial(denoise, apply, encode), warm.ema["text"]),
    )  # fmt: skip
    drawer = Partial(partial(data.draw, n=batch, null=0.1, dropped=0.4), world)
    with Log(run, steps, batch) as report:
        state = train(
            state, objective, drawer, optimizer, steps=0 if only_export else steps, decay=decay, mesh=over_devices(),
            every=25, report=report, checkpoints=run / "checkpoints", save_every=save_every,
        )  # fmt: skip
    folder.write(out, UNET, TEXT, state.ema, warm.ema["text"])
    rows = read(run / "log.csv")
    settings = {"updates": int(state.step), "batch": batch, "rate": rate, "decay": decay, "seed": seed}
    curve = [row for i, row in enumerate(rows) if i % 8 == 7 or row is rows[-1]]
    write_text(out / "training.json", json.dumps(settings | {"curve": curve}, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
