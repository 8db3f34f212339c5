"""The library's one training loop: state, EMA, checkpoints, resume, mesh. Objectives and data are passed in."""

import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from jdiff.types import Array, as_partial


class Batches(NamedTuple):
    """Where training's batches come from, if a key alone does not make them."""

    ahead: Callable  # (first, n) -> what updates first to first + n - 1 are cut from, on the host: arrays
    batch: Callable  # (key, ahead, i) -> batch of update first + i, in the compiled loop; may be a Partial


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
    """One update: a batch from `data(key)`, the gradient of `objective`, the optimizer, the running mean."""
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
def _updates(state, objective, batch, ahead, *, optimizer, decay, mesh, n):
    def body(state, i):
        return update(state, objective, lambda key: batch(key, ahead, i), optimizer, decay, mesh)

    return jax.lax.scan(body, state, jnp.arange(n))


def _made_by_key(data: Partial, key: Array, ahead: Any, i: Array) -> Any:
    del ahead, i
    return data(key)


def train(
    state: TrainState,
    objective: Callable,
    data: Callable | Batches,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    decay: float = 0.999,
    every: int = 50,
    report: Callable[[int, dict], Any] = lambda step, metrics: None,
    checkpoints: str | Path | None = None,
    save_every: int = 500,
    mesh: Mesh | None = None,
) -> TrainState:
    """The state after `steps` updates in all, resumed from the newest checkpoint in `checkpoints`, if any.

    `objective` is `(params, key, batch) -> (loss, metrics)`, `data` is `(key) -> batch [n ...]`, or `Batches` where an
    order is to be kept or the host reads; functions may be `jax.tree_util.Partial`s over arrays, which then stay
    arguments of the compiled loop. `report` is called every `every` updates, and before each checkpoint, with the
    number of the last and the metrics [up to `every`] of all since; where it returns True, training ends there.
    Checkpoints are made every `save_every` updates and at the end. A run that is stopped or killed and then resumed
    ends bit-equal to one that is not. With a mesh, batches are cut along its axis "data".

    Raises FloatingPointError, naming the update, at the first loss that is not finite, and OSError where a checkpoint
    cannot be written; what was saved before stays. Raises ValueError for checkpoints of another network.

    >>> objective = lambda params, key, batch: (jnp.sum((params - batch) ** 2), {})
    >>> optimizer = optax.sgd(0.1)
    >>> state = start(jnp.zeros(2), optimizer, jax.random.key(0))
    >>> train(state, objective, lambda key: jnp.ones(2), optimizer, steps=100, every=10).params.round(3).tolist()
    [1.0, 1.0]
    """
    objective = as_partial(objective)
    data = data if isinstance(data, Batches) else Batches(_nothing_ahead, Partial(_made_by_key, as_partial(data)))
    batch = as_partial(data.batch)
    saved = _Checkpoints(checkpoints) if checkpoints is not None else None
    if saved is not None:
        state = saved.newest(state)
    if mesh is not None:
        state, objective, batch = jax.device_put((state, objective, batch), NamedSharding(mesh, PartitionSpec()))
    done = int(state.step)
    while done < steps:
        since = done % save_every  # reports are counted from checkpoints, so that there are few lengths to compile
        n = min(every - since % every, save_every - since, steps - done)
        ahead = data.ahead(done, n)
        state, metrics = _updates(state, objective, batch, ahead, optimizer=optimizer, decay=decay, mesh=mesh, n=n)
        metrics = jax.device_get(metrics)
        if not all(map(math.isfinite, metrics["loss"])):
            first = next(i for i, loss in enumerate(metrics["loss"]) if not math.isfinite(loss))
            raise FloatingPointError(f"the loss of update {done + first} is {metrics['loss'][first]}")
        done += n
        enough = report(done, metrics) is True
        if saved is not None and (done % save_every == 0 or done == steps or enough):
            saved.save(done, state)
        if enough:
            break
    return state


def _nothing_ahead(first: int, n: int) -> None:
    del first, n


class _Checkpoints:
    """The two newest states in a folder, each complete or not there: Orbax writes beside and renames."""

    def __init__(self, folder: str | Path):
        import orbax.checkpoint as ocp

        self.folder = Path(folder).absolute()
        self.orbax: Any = ocp
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def newest(self, state: TrainState) -> TrainState:
        """The newest state saved, or `state`, which says what is accepted."""
        step = self.manager.latest_step()
        if step is None:
            return state
        kept = self.orbax.StandardCheckpointer().metadata(self.folder / str(step) / "default").item_metadata.tree
        there, wanted = (_shapes(tree) for tree in (kept["params"], state.params))
        if other := sorted(name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name)):
            name = other[0]
            raise ValueError(
                f"checkpoints is {self.folder}, which holds another network's state: {name} is {there.get(name)}, "
                f"accepted is {wanted.get(name)}"
            )
        found: Any = self.manager.restore(step, args=self.orbax.args.StandardRestore(state))
        return found

    def save(self, step: int, state: TrainState) -> None:
        before = self.manager.latest_step()
        wanted, free = sum(a.nbytes for a in jax.tree.leaves(state)), shutil.disk_usage(self.folder).free
        try:
            if free < wanted:  # said beforehand: Orbax leaves pages of traces behind it
                raise OSError(f"it takes {wanted:,} bytes, and {free:,} are free")
            self.manager.save(step, args=self.orbax.args.StandardSave(state), force=True)
        except (OSError, ValueError) as error:  # Orbax has tensorstore's ValueError for a disk that is full
            kept = "nothing was kept before" if before is None else f"that of update {before} is kept"
            why = str(error).splitlines()[0]
            raise OSError(
                f"the checkpoint of update {step} cannot be written to {self.folder}, {kept}: {why}"
            ) from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{path: shape}; Orbax has numbers among the keys of a dict as text."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path).replace("'", ""): tuple(leaf.shape) for path, leaf in leaves}
