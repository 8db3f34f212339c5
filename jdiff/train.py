"""The library's one training loop: state, EMA, checkpoints, resume, mesh. Objectives and data are passed in."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jdiff.types import Array, as_partial


class TrainState(NamedTuple):
    """All that training carries, and all that a checkpoint holds."""

    step: Array  # [] how many updates were made
    key: Array  # the run's key data; update i draws from fold_in(key, i)
    params: Any
    optimizer: Any
    ema: Any  # running mean of params: what is shipped


def start(params: Any, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """The state before the first update.

    >>> int(start({"w": jnp.ones(3)}, optax.sgd(1.0), jax.random.key(0)).step)
    0
    """
    copy = jax.tree.map(jnp.array, params)
    return TrainState(jnp.zeros((), jnp.int32), jax.random.key_data(key), params, optimizer.init(params), copy)


def update(
    state: TrainState, objective: Callable, data: Callable, optimizer: Any, decay: float, mesh: Mesh | None
) -> tuple[TrainState, dict[str, Array]]:
    """One update: a batch from `data`, the gradient of `objective`, the optimizer, the running mean."""
    data_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step))
    batch = data(data_key)
    if mesh is not None:
        batch = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))
    (loss, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params, loss_key, batch)
    change, moments = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, change)
    d = jnp.minimum(decay, (1 + state.step) / (10 + state.step))  # early on a mean of few
    ema = jax.tree.map(lambda mean, new: d * mean + (1 - d) * new, state.ema, params)
    norm = jnp.sqrt(jax.tree.reduce(lambda total, g: total + jnp.sum(g**2), gradient, jnp.zeros(())))
    metrics = {"loss": loss, "gradient_norm": norm, **metrics}
    return TrainState(state.step + 1, state.key, params, moments, ema), metrics


@partial(jax.jit, static_argnames=("optimizer", "decay", "mesh", "n"), donate_argnames="state")
def _updates(state, objective, data, *, optimizer, decay, mesh, n):
    return jax.lax.scan(lambda s, _: update(s, objective, data, optimizer, decay, mesh), state, length=n)


def train(
    state: TrainState,
    objective: Callable,
    data: Callable,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    decay: float = 0.999,
    every: int = 50,
    report: Callable[[int, dict], None] = lambda step, metrics: None,
    checkpoints: str | Path | None = None,
    save_every: int = 500,
    mesh: Mesh | None = None,
) -> TrainState:
    """The state after `steps` updates in all, resumed from the newest checkpoint in `checkpoints`, if any.

    `objective` is `(params, key, batch) -> (loss, metrics)`, `data` is `(key) -> batch [n ...]`; both may be
    `jax.tree_util.Partial`s over arrays, which then stay arguments of the compiled loop. `report` is called
    every `every` updates with the last of them and the metrics [every] of all. A run that is stopped and
    resumed ends bit-equal to one that is not. With a mesh, batches are cut along its axis "data".

    Raises FloatingPointError, naming the update, at the first loss that is not finite; what was saved before stays.

    >>> objective = lambda params, key, batch: (jnp.sum((params - batch) ** 2), {})
    >>> optimizer = optax.sgd(0.1)
    >>> state = start(jnp.zeros(2), optimizer, jax.random.key(0))
    >>> train(state, objective, lambda key: jnp.ones(2), optimizer, steps=100, every=10).params.round(3).tolist()
    [1.0, 1.0]
    """
    if save_every % every:
        raise ValueError(f"save_every is {save_every}, accepted is a multiple of every ({every})")
    objective, data = as_partial(objective), as_partial(data)
    manager = _manager(checkpoints) if checkpoints is not None else None
    if manager is not None and manager.latest_step() is not None:
        import orbax.checkpoint as ocp

        saved: Any = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
        state = saved
    if mesh is not None:
        state, objective, data = jax.device_put((state, objective, data), NamedSharding(mesh, PartitionSpec()))
    done = int(state.step)
    while done < steps:
        n = min(every - done % every, steps - done)
        state, metrics = _updates(state, objective, data, optimizer=optimizer, decay=decay, mesh=mesh, n=n)
        metrics = jax.device_get(metrics)
        if not all(map(math.isfinite, metrics["loss"])):
            first = next(i for i, loss in enumerate(metrics["loss"]) if not math.isfinite(loss))
            raise FloatingPointError(f"the loss of update {done + first} is {metrics['loss'][first]}")
        done += n
        report(done, metrics)
        if manager is not None and (done % save_every == 0 or done == steps):
            import orbax.checkpoint as ocp

            manager.save(done, args=ocp.args.StandardSave(state), force=True)
            manager.wait_until_finished()
    return state


def _manager(folder: str | Path):
    import orbax.checkpoint as ocp

    return ocp.CheckpointManager(Path(folder).absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2))
