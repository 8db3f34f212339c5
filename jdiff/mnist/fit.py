"""Training part B's networks by their recipes, and writing trained networks."""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from jdiff.checkpoints import files
from jdiff.mnist import data, objectives
from jdiff.mnist.recipes import Recipe
from jdiff.parts import write_text
from jdiff.training import log
from jdiff.training.conv import fitting_conv
from jdiff.training.loop import TrainState, start, train
from jdiff.types import Array, Conditioning, Params, Prediction


class Run(NamedTuple):
    """The settings of a training. A checkpoint with other settings is refused."""

    kind: str
    recipe: str
    width: int
    batch: int
    epochs: int
    rate: float
    seed: int
    dtype: str = "float32"


def mixed(
    train: objectives.Training, dtype: str, params: Params, x: Array, t: Array, conditioning: Conditioning
) -> tuple[Prediction, Array | float]:
    """Calls a network with weights and images in another dtype. BatchNorm's statistics and the result stay in float32.

    Args:
        train: the network in training.
        dtype: dtype of weights and images.
        params: parameters of the network.
        x: images [n h w 1].
        t: timestep or time [n], as the network gets it.
        conditioning: the classes.

    Returns:
        As `train`.
    """
    cast = lambda tree: jax.tree.map(lambda a: a.astype(dtype), tree)
    params = params | {"params": cast(params["params"])} if "statistics" in params else cast(params)
    prediction, pull = train(params, x.astype(dtype), t, conditioning)
    return jax.tree.map(lambda a: a.astype(jnp.float32), prediction), pull


def fit(
    recipe: Recipe,
    run: Run,
    images: np.ndarray,
    labels: np.ndarray,
    folder: str | Path,
    *,
    minutes: float = float("inf"),
    keep_epochs: Sequence[int] = (),
    every: int = 36,
    save_every: int | None = None,
    mesh: Mesh | None = None,
    tensorboard: bool = False,
    quiet: bool = False,
) -> tuple[TrainState, bool]:
    """Trains a network, from the newest checkpoint in a folder if there is one.

    Args:
        recipe: the network's recipe.
        run: settings of the training.
        images: [n 28 28] uint8.
        labels: [n].
        folder: folder for checkpoints, log.csv and the weights of `keep_epochs`.
        minutes: training ends at the first report after this time.
        keep_epochs: epochs after which the weights are written to `folder`/epoch-N.safetensors.
        every: number of updates between reports.
        save_every: number of updates between checkpoints; one epoch if None.
        mesh: devices, as in `train`.
        tensorboard: whether to write files for TensorBoard too.
        quiet: whether to show no progress bar.

    Returns:
        The state, and whether training is finished.

    Raises:
        ValueError: the folder holds checkpoints with other settings, or there are fewer images than `run.batch`.
        FloatingPointError: the loss is not finite.
        OSError: a checkpoint cannot be written.
    """
    folder, began = Path(folder), time.monotonic()
    updates = data.per_epoch(len(images), run.batch)
    order_key, state_key, init_key = jax.random.split(jax.random.key(run.seed), 3)
    forward = recipe.training(run.width, fitting_conv())
    forward = forward if run.dtype == "float32" else partial(mixed, forward, run.dtype)
    optimizer = recipe.optimizer(run.rate, updates, run.epochs)
    state = start(recipe.init(run.width, init_key), optimizer, state_key)
    levels, target, forward = map(Partial, (recipe.levels, recipe.target, forward))
    objective = Partial(objectives.regression, levels, target, jnp.float32(recipe.dropout), forward)
    batches = data.on_device(images, labels, run.batch, order_key, recipe.scale)
    wanted = sorted({epoch for epoch in keep_epochs if epoch < run.epochs} | {run.epochs})
    save_every = updates if save_every is None else save_every
    settings = run._asdict() | {"images": len(images)}
    with log.Log(folder, updates * run.epochs, run.batch, tensorboard=tensorboard, quiet=quiet) as written:

        def report(step: int, metrics: dict[str, np.ndarray]) -> bool:
            written(step, metrics)
            return time.monotonic() - began > 60 * minutes

        for epoch in wanted:
            state = train(
                state, objective, batches, optimizer, steps=updates * epoch, decay=recipe.decay, every=every,
                report=report, checkpoints=folder / "checkpoints", save_every=save_every, settings=settings, mesh=mesh,
            )  # fmt: skip
            if int(state.step) < updates * epoch:
                return state, False
            if epoch in keep_epochs and int(state.step) == updates * epoch and jax.process_index() == 0:
                files.save(folder / f"epoch-{epoch}.safetensors", state.ema, {"kind": run.kind})
    return state, True


def _halved(a: Array) -> np.ndarray:
    """Converts an array to float16, unless a number in it is too large, such as a variance of 100,000."""
    wide = np.asarray(a)
    return wide.astype(np.float16) if np.abs(wide).max(initial=0) <= np.finfo(np.float16).max else wide


def export(out: str | Path, run: Run, state: TrainState, finished: bool, folder: str | Path, images: int) -> None:
    """Writes the EMA of the weights to model.safetensors, and a report of the training to training.json.

    Args:
        out: folder to write to, which is made if it does not exist.
        run: settings of the training.
        state: final state, from `fit`.
        finished: whether training is finished, from `fit`.
        folder: the run's folder, with log.csv.
        images: number of training images.

    Raises:
        OSError: a file cannot be written.
    """
    out, step = Path(out), int(state.step)
    rows = [row for row in log.read(Path(folder) / "log.csv") if row["update"] <= step]
    out.mkdir(parents=True, exist_ok=True)
    stored = jax.tree.map(_halved, state.ema)
    files.save(out / "model.safetensors", stored, {"kind": run.kind, "recipe": run.recipe})
    speeds = [row["images_per_second"] for row in rows if row["images_per_second"]]  # the first row of a run has none
    kept = [row for i, row in enumerate(rows) if i % max(len(rows) // 200, 1) == 0 or row is rows[-1]]
    facts = run._asdict() | {
        "updates": step,
        "epochs_done": round(step / data.per_epoch(images, run.batch), 2),
        "finished": finished,
        "device": jax.devices()[0].device_kind,
        "images_per_second": float(np.median(speeds)) if speeds else 0.0,
        "curve": [[int(row["update"]), row["loss"]] for row in kept],
    }
    write_text(out / "training.json", json.dumps(facts, indent=1) + "\n")
