"""Trains one of part B's networks by its recipe, with checkpoints and a log, and writes what it has become."""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from jdiff.checkpoints import files
from jdiff.mnist import data, objectives
from jdiff.mnist.recipes import Recipe
from jdiff.parts import beside
from jdiff.training import log
from jdiff.training.conv import fitting_conv
from jdiff.training.loop import TrainState, start, train


class Run(NamedTuple):
    """One training, as its card tells it."""

    kind: str
    recipe: str
    width: int
    batch: int
    epochs: int
    rate: float
    seed: int
    dtype: str = "float32"


def mixed(train: Any, dtype: Any, params: Any, x: Any, t: Any, conditioning: Any) -> Any:
    """`train` with weights and image in `dtype`; statistics, and what comes back, stay in float32."""
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
    """(the state after training on images uint8 [n 28 28] with labels [n], whether it is finished).

    `folder` gets checkpoints, every epoch or every `save_every` updates, and log.csv, and is gone on from. Training
    ends early, between two reports, after so many `minutes`. The weights after each of `keep_epochs` are kept in
    `folder`/epoch-N.safetensors.

    Raises ValueError where `folder` holds a run of other settings, and what `train` raises.
    """
    folder, began = Path(folder), time.monotonic()
    _agree(folder, run._asdict() | {"images": len(images)})
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
    with log.Log(folder, updates * run.epochs, run.batch, tensorboard=tensorboard, quiet=quiet) as told:

        def report(step: int, metrics: dict) -> bool:
            told(step, metrics)
            return time.monotonic() - began > 60 * minutes

        for epoch in wanted:
            state = train(
                state, objective, batches, optimizer, steps=updates * epoch, decay=recipe.decay, every=every,
                report=report, checkpoints=folder / "checkpoints", save_every=save_every, mesh=mesh,
            )  # fmt: skip
            if int(state.step) < updates * epoch:
                return state, False
            if epoch in keep_epochs and int(state.step) == updates * epoch:
                files.save(folder / f"epoch-{epoch}.safetensors", state.ema, {"kind": run.kind})
    return state, True


def _agree(folder: Path, now: dict[str, Any]) -> None:
    """Writes run.json, or raises ValueError where there is one of other settings."""
    path = folder / "run.json"
    if path.is_file():
        try:
            before = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"run is {folder}, whose run.json cannot be read ({error}), accepted is another"
            ) from error
        other = [
            f"{name} {value}, was {before[name]}" for name, value in now.items() if before.get(name, value) != value
        ]
        if other:
            what = f"which holds a run of other settings ({'; '.join(other)})"
            raise ValueError(f"run is {folder}, {what}, accepted are the same, or another folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with beside(path) as file:
        file.write((json.dumps(now, indent=1) + "\n").encode())


def _halved(a: Any) -> np.ndarray:
    """float16, or as it is where that is too small, as for a variance of 100,000."""
    a = np.asarray(a)
    return a.astype(np.float16) if np.abs(a).max(initial=0) <= np.finfo(np.float16).max else a


def export(out: str | Path, run: Run, state: TrainState, finished: bool, folder: str | Path, images: int) -> None:
    """Writes the running mean of the weights, in half precision where it holds them, and training.json into `out`.

    `folder` is the run's, with its log.csv; `images` is how many pictures an epoch has.
    """
    out, step = Path(out), int(state.step)
    rows = [row for row in log.read(Path(folder) / "log.csv") if row["update"] <= step]
    out.mkdir(parents=True, exist_ok=True)
    stored = jax.tree.map(_halved, state.ema)
    files.save(out / "model.safetensors", stored, {"kind": run.kind, "recipe": run.recipe})
    speeds = [row["images_per_second"] for row in rows if row["images_per_second"]]  # a run's first row has none
    kept = [row for i, row in enumerate(rows) if i % max(len(rows) // 200, 1) == 0 or row is rows[-1]]
    facts = run._asdict() | {
        "updates": step,
        "epochs_done": round(step / data.per_epoch(images, run.batch), 2),
        "finished": finished,
        "device": jax.devices()[0].device_kind,
        "images_per_second": float(np.median(speeds)) if speeds else 0.0,
        "curve": [[int(row["update"]), row["loss"]] for row in kept],
    }
    with beside(out / "training.json") as file:
        file.write((json.dumps(facts, indent=1) + "\n").encode())
