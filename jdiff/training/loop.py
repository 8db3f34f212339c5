"""The training loop: state, EMA, checkpoints, resuming, several devices and processes.

Objective and data are arguments. Everything depends only on the run's key and the number of the update. So a run that
was stopped or killed and then resumed ends with the same bits as a run without a break.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from jdiff import checks
from jdiff import mesh as meshes
from jdiff.keys import as_key
from jdiff.mesh import DATA
from jdiff.training.checkpoints import Checkpoints, fingerprint
from jdiff.types import Array, Params, as_partial

# A pytree of arrays. Its structure is the caller's.
Batch = Any
# `(params, key, batch) -> (loss, metrics)`, which runs in the compiled loop.
Objective = Callable[[Params, Array, Batch], tuple[Array, dict[str, Array]]]


class Batches(NamedTuple):
    """Data that depend on more than a key, such as shuffled rows, or rows that the host reads.

    Attributes:
        ahead: `(first, n) -> arrays`, called on the host while the device computes. It returns the data for updates
            `first` to `first + n - 1`.
        batch: `(key, arrays, i) -> batch` of update `first + i`, called in the compiled loop. It can be a Partial.
        per_process: whether `ahead` returns this process's part of each batch, [n rows ...]. If not, every process must
            return the same arrays, which is checked.
    """

    ahead: Callable[[int, int], Any]
    batch: Callable[[Array, Any, Array], Batch]
    per_process: bool = False


class TrainState(NamedTuple):
    """The state of a training, which is what a checkpoint holds."""

    step: Array  # [] number of finished updates
    key: Array  # raw data of the run's key; update i uses fold_in(key, i)
    params: Params
    optimizer: optax.OptState
    ema: Params  # exponential moving average of the parameters, in float32 or better


def start(params: Params, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """Returns the state before the first update.

    Args:
        params: initial parameters, which are copied.
        optimizer: an optimizer of optax.
        key: the run's random key.

    Raises:
        ValueError: `key` is not a random key.

    Example:
        >>> int(start({"w": jnp.ones(3)}, optax.sgd(1.0), jax.random.key(0)).step)
        0
    """
    params = jax.tree.map(jnp.array, params)
    ema = jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32)), params)
    return TrainState(jnp.zeros((), jnp.int32), jax.random.key_data(as_key(key)), params, optimizer.init(params), ema)


def update(
    state: TrainState,
    objective: Objective,
    data: Callable[[Array], Batch],
    optimizer: optax.GradientTransformation,
    decay: float,
    mesh: Mesh | None,
) -> tuple[TrainState, dict[str, Array]]:
    """Makes one update of parameters, optimizer and EMA.

    Args:
        state: state before the update.
        objective: as in `train`.
        data: `(key) -> batch`.
        optimizer: as in `train`.
        decay: as in `train`.
        mesh: as in `train`.

    Returns:
        The next state, and the metrics: loss, gradient_norm, and those of the objective.

    Reference:
        The warm-up of the EMA, (1 + step) / (10 + step), is that of TensorFlow's `ExponentialMovingAverage`.
    """
    data_key, loss_key = jax.random.split(jax.random.fold_in(as_key(state.key), state.step))
    batch = data(data_key)
    if mesh is not None:
        batch = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(DATA)))
    (loss, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params, loss_key, batch)
    change, moments = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, change)
    kept = jnp.minimum(decay, (1 + state.step) / (10 + state.step))  # a smaller decay in the first updates
    wide = jax.tree.map(lambda p, mean: p.astype(mean.dtype), params, state.ema)
    ema = optax.incremental_update(wide, state.ema, 1 - kept)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), **metrics}
    return TrainState(state.step + 1, state.key, params, moments, ema), metrics


@partial(jax.jit, static_argnames=("optimizer", "decay", "mesh", "n"), donate_argnames="state")
def _updates(
    state: TrainState, objective: Objective, batch: Partial, ahead: Any, *, optimizer: optax.GradientTransformation,
    decay: float, mesh: Mesh | None, n: int,
) -> tuple[TrainState, dict[str, Array]]:  # fmt: skip
    def body(state: TrainState, i: Array) -> tuple[TrainState, dict[str, Array]]:
        return update(state, objective, lambda key: batch(key, ahead, i), optimizer, decay, mesh)

    return jax.lax.scan(body, state, jnp.arange(n))


def train(
    state: TrainState,
    objective: Objective,
    data: Callable[[Array], Batch] | Batches,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    decay: float = 0.999,
    every: int = 50,
    report: Callable[[int, dict[str, np.ndarray]], bool | None] = lambda step, metrics: None,
    checkpoints: str | Path | None = None,
    save_every: int = 500,
    settings: Mapping[str, object] | None = None,
    mesh: Mesh | None = None,
) -> TrainState:
    """Trains up to a number of updates, from the newest checkpoint if there is one.

    The caller's arrays are not changed.

    Args:
        state: initial state, from `start`. A checkpoint must have its structure.
        objective: `(params, key, batch) -> (loss, metrics)`. If it is a Partial, its arrays are arguments of the
            compiled loop.
        data: `(key) -> batch [n ...]`, or `Batches`.
        optimizer: an optimizer of optax.
        steps: total number of updates, including those of the checkpoint.
        decay: decay of the EMA of the parameters. With 0, the EMA is the last parameters.
        every: number of updates between reports.
        report: called with the number of the last update and the metrics of all updates since the previous report, on
            the first process only. If it returns True, training ends.
        checkpoints: folder for checkpoints; none are written if None. Each checkpoint is complete or does not exist.
        save_every: number of updates between checkpoints. There is one more at the end.
        settings: settings of this run, as JSON. A checkpoint with other settings is refused.
        mesh: devices of one or several processes. Each batch is split over the axis "data".

    Returns:
        The state after the last update.

    Raises:
        FloatingPointError: a loss is not finite. The message names the update. Checkpoints stay.
        OSError: a checkpoint cannot be written. Earlier ones stay.
        ValueError: the folder holds checkpoints of another run, the settings are not JSON, or several processes have no
            mesh or different data.

    Example:
        >>> objective = lambda params, key, batch: (jnp.sum((params - batch) ** 2), {})
        >>> optimizer = optax.sgd(0.1)
        >>> state = start(jnp.zeros(2), optimizer, jax.random.key(0))
        >>> train(state, objective, lambda key: jnp.ones(2), optimizer, steps=100, every=10).params.round(3).tolist()
        [1.0, 1.0]
    """
    every, save_every = checks.whole("every", every), checks.whole("save_every", save_every)
    objective = as_partial(objective)
    data = data if isinstance(data, Batches) else Batches(_nothing_ahead, Partial(_made_by_key, as_partial(data)))
    batch = as_partial(data.batch)
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    place = (lambda tree: tree) if whole is None else lambda tree: meshes.place(tree, whole)
    devices = nullcontext if mesh is None else partial(jax.set_mesh, mesh)  # for `jdiff.training.conv`
    with ExitStack() as stack:
        saved = None
        if checkpoints is not None:
            run = fingerprint(state, objective, decay, settings)
            saved = stack.enter_context(Checkpoints(checkpoints, run))
        found = None if saved is None else saved.newest(state, whole)
        state = (
            place(jax.tree.map(jnp.array, state)) if found is None else found
        )  # a copy, because the loop reuses its memory
        objective, batch = place(objective), place(batch)
        done = int(state.step)
        ahead = None
        while done < steps:
            n = _updates_until(done, steps, every, save_every)
            ahead = _ahead(data, mesh, done, n) if ahead is None else ahead
            with devices():
                how = {"optimizer": optimizer, "decay": decay, "mesh": mesh, "n": n}
                state, metrics = _updates(state, objective, batch, ahead, **how)
            following = _updates_until(done + n, steps, every, save_every)
            ahead = _ahead(data, mesh, done + n, following) if following else None  # while the device computes
            metrics = jax.device_get(metrics)
            if not np.isfinite(metrics["loss"]).all():
                first = int(np.argmin(np.isfinite(metrics["loss"])))
                raise FloatingPointError(f"the loss of update {done + first} is {metrics['loss'][first]}")
            done += n
            enough = _agreed(jax.process_index() == 0 and report(done, metrics) is True)
            if saved is not None and (done % save_every == 0 or done == steps or enough):
                saved.save(done, state)
            if enough:
                break
    return state


def _updates_until(done: int, steps: int, every: int, save_every: int) -> int:
    """Returns the number of updates up to the next report, the next checkpoint, or the end."""
    since = done % save_every  # reports are counted from the last checkpoint, so that few loop lengths are compiled
    return min(every - since % every, save_every - since, steps - done)


def _ahead(data: Batches, mesh: Mesh | None, first: int, n: int) -> Any:
    """Returns the data of the next updates, as arrays over all processes."""
    ahead = data.ahead(first, n)
    if jax.process_count() == 1 or ahead is None:
        return ahead
    if mesh is None:
        raise ValueError("mesh must be given with several processes; jdiff.mesh.make() has all devices")
    if data.per_process:
        rows = NamedSharding(mesh, PartitionSpec(None, DATA))
        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(rows, np.asarray(a)), ahead)
    multihost_utils.assert_equal(ahead, "Batches.ahead must return the same on every process, or set per_process")
    return meshes.replicate(mesh, ahead)


def _agreed(enough: bool) -> bool:
    """Returns the decision of the first process, on every process."""
    if jax.process_count() == 1:
        return enough
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(enough)))


def _nothing_ahead(first: int, n: int) -> None:
    del first, n


def _made_by_key(data: Partial, key: Array, ahead: None, i: Array) -> Batch:
    del ahead, i
    return data(key)
