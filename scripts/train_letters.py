"""Trains the letters model: glyphs from captions, by IF's architecture on patches and a small T5 over bytes.

    python scripts/train_letters.py --data-folder FOLDER_OF_GLYPHS --out NEW
    python scripts/train_letters.py --data-folder FOLDER_OF_GLYPHS --start-from NEW --run runs/letters-more \
        --steps 7600 --rate 1e-3 --decay 0.999 --seed 1

The first command starts from fresh weights, and the second from what the first wrote. Both together made the model that
ships. A command that was stopped continues from its newest checkpoint when it is started again. On CPUs, large pages
help:
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
from jdiff.checkpoints.folder import first_weights
from jdiff.letters import captions, data, folder
from jdiff.mesh import over_devices, use_cores
from jdiff.networks import t5, unet
from jdiff.parts import write_text
from jdiff.training import objectives
from jdiff.training.conv import fitting_conv
from jdiff.training.log import Log, read
from jdiff.training.loop import start, train
from jdiff.training.optimizers import adam_with_cosine
from jdiff.types import Array, Conditioning, Json, Params, Prediction

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


def text_encoder(encode: Callable, world: data.World, run: Path, steps: int, keys: Array) -> Params:
    """Trains the text encoder by `name_it` and returns its parameters.

    Args:
        encode: the text encoder.
        world: the glyphs and their captions.
        run: folder for checkpoints.
        steps: number of updates.
        keys: random keys of the initial parameters and of training [2].
    """
    params = {"text": t5.init(TEXT, keys[0]), "heads": jnp.zeros((TEXT.d_model, sum(OUTPUTS)))}
    optimizer = optax.adam(1e-3)
    last: dict[str, Any] = {}
    state = train(
        start(params, optimizer, keys[1]), Partial(partial(name_it, encode)),
        Partial(partial(data.draw, n=128, null=0.1, dropped=0.4), world), optimizer, steps=steps, checkpoints=run,
        report=lambda _, metrics: last.update(metrics),
    )  # fmt: skip
    if last:
        print(f"text encoder: loss {np.mean(last['loss']):.4f}, named right {np.mean(last['named']):.4f}", flush=True)
    return state.ema["text"]


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
    start_from: Path | None = None,
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
        start_from: folder of a letters model whose weights training starts from, for example to add typefaces of your
            own. Its text encoder stays as it is. Fresh weights if not given.
    """
    use_cores(batch)
    settings: Json = {"batch": batch, "rate": rate, "steps": steps, "start_from": start_from and str(start_from)}
    run.mkdir(parents=True, exist_ok=True)
    glyphs, _ = data.split(data.read(data_folder))
    world = data.world(glyphs)
    apply = unet.unet(UNET, fitting_conv()).apply
    encode, _ = t5.t5(TEXT)
    keys = jax.random.split(jax.random.key(seed), 4)
    if start_from:
        first, text = first_weights(start_from, run / "start", UNET, TEXT)
    else:
        first = unet.init(UNET, keys[2])
        text = text_encoder(encode, world, run / "text", text_steps, keys[:2])

    optimizer = adam_with_cosine(rate, steps)
    state = start(first, optimizer, keys[3])
    abar = schedule.cosine()
    objective = Partial(
        objectives.v_error, jnp.asarray(abar, jnp.float32), jnp.asarray(objectives.timestep_quantiles(abar)),
        Partial(partial(denoise, apply, encode), text),
    )  # fmt: skip
    drawer = Partial(partial(data.draw, n=batch, null=0.1, dropped=0.4), world)
    with Log(run, steps, batch) as report:
        state = train(
            state, objective, drawer, optimizer, steps=0 if only_export else steps, decay=decay, mesh=over_devices(),
            every=25, report=report, checkpoints=run / "checkpoints", save_every=save_every, settings=settings,
        )  # fmt: skip
    folder.write(out, UNET, TEXT, state.ema, text)
    rows = read(run / "log.csv")
    told = {"updates": int(state.step), "batch": batch, "rate": rate, "decay": decay, "seed": seed}
    told["curve"] = [row for i, row in enumerate(rows) if i % 8 == 7 or row is rows[-1]]
    if (before := run / "start" / "training.json").is_file():
        told["before"] = json.loads(before.read_text())
    write_text(out / "training.json", json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
