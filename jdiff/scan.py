"""The scan down a table of levels: one compiled program that every task is a value of."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import combine, schedule, step  # noqa: F401 (the examples use schedule)
from jdiff.types import Array, Combiner, Level, Row, Solver, State, as_partial

LENGTHS = (64, 256, 1024)  # tables are filled up to the next of these, so that one program serves many numbers of steps
START = 2**31 - 1  # what a key is folded with for the noise that an image starts from; rows fold with their number


class Samples(NamedTuple):
    """Finished images, and what was kept of the way to them."""

    images: Array  # [n h w c]
    way: Array | None = None  # [n m h w c], the last one finished


def image_keys(key: Array, n: int) -> Array:
    """n keys, one an image: key i is the same whatever n, so that image i can be made again alone.

    >>> bool((image_keys(jax.random.key(0), 8)[:2] == image_keys(jax.random.key(0), 2)).all())
    True
    """
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(n))


def forward(keys: Array, images: Array, level: Level, draw: Callable = jax.random.normal) -> Array:
    """`images` [n h w c] with noise at `level`: signal x0 + noise eps, each image's eps from its own key [n].

    >>> level = one(schedule.levels(schedule.cosine(), [250]), 0)
    >>> round(float(forward(image_keys(jax.random.key(0), 1), jnp.zeros((1, 64, 64, 3)), level).std()), 1)
    0.4

    Source: Ho et al. 2020 (DDPM), eq. 4; course 1.1.
    """
    draw_one = lambda key, x: draw(jax.random.fold_in(key, START), x.shape, x.dtype)
    eps = jax.vmap(draw_one)(keys, images)
    signal, noise = (jnp.asarray(a, images.dtype) for a in (level.signal, level.noise))
    return signal * images + noise * eps


def start(keys: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Pure noise [n *shape], each image's from its own key [n]."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, START), shape, dtype))(keys)


def one(levels: Level, i: int) -> Level:
    """Row `i` of a table, as one level.

    >>> one(schedule.levels(schedule.cosine(), [250]), 0).t.item()
    250.0
    """
    return jax.tree.map(lambda column: column[i], levels)


def from_row(levels: Level, row: int) -> Level:
    """The table from that row on.

    >>> from_row(schedule.levels(schedule.cosine(), schedule.course()), 10).t[0].item()
    690.0
    """
    n = len(levels.t)
    if not 0 <= row < n:
        raise ValueError(f"i_start is {row}, accepted is a row of the table, 0 to {n - 1}")
    return jax.tree.map(lambda a: a[row:], levels)


def prepare(denoise: Callable, combiner: Combiner | Callable, in_axes: Any = None) -> Combiner | Callable:
    """`combiner` with all that the network makes of its prompts alone, made once."""
    make = getattr(getattr(denoise, "func", None), "prepare", None)
    if (
        make is None
        or not isinstance(combiner, Combiner)
        or not isinstance(combiner.branches.text, jax.Array | np.ndarray)
    ):
        return combiner
    axes = in_axes.branches if isinstance(in_axes, Combiner) else in_axes
    params = denoise.args[0]  # type: ignore[attr-defined]  # what has a `func` is a Partial
    return combiner._replace(branches=_prepare(make, params, combiner.branches, axes))


@partial(jax.jit, static_argnames=("make", "axes"))
def _prepare(make, params, branches, axes):
    return make(params, branches) if axes is None else jax.vmap(partial(make, params), in_axes=(axes,))(branches)


def _table(solver: Solver, levels: Level, keep_every: int, length: int, dtype: Any) -> tuple[Row, Array, int]:
    """Rows of `levels`, cast and filled up to `length` with dead ones; each row's slot in what is kept; its size."""
    n = len(levels.t)
    rows = solver.table(levels)
    left = n - 1 - np.arange(n)  # counted from the end, so that the finished image is kept
    kept = -(-n // keep_every) if keep_every else 0
    slots = np.where(left % keep_every == 0, kept - 1 - left // keep_every, kept) if keep_every else np.zeros(n, int)
    rows, slots = jax.tree.map(lambda a: np.concatenate([a, np.repeat(a[-1:], length - n, axis=0)]), (rows, slots))
    rows.level.live[n:] = False
    cast = lambda a: jnp.asarray(a, dtype) if np.issubdtype(a.dtype, np.floating) else jnp.asarray(a)
    return jax.tree.map(cast, rows), jnp.asarray(slots, jnp.int32), kept


@partial(jax.jit, static_argnames=("in_axes", "solver_axes", "branch_batch"), donate_argnames=("state", "way"))
def _run(denoise, keys, state, way, rows, slots, combiner, solver, low_res, *, in_axes, solver_axes, branch_batch):
    """The scan: one step of every image a row; rows that are not live are skipped."""
    combiner, leaves_axes = (combiner, in_axes) if isinstance(combiner, Combiner) else (combiner, None)

    def image_step(key, state, combiner, advance, low_res, row):
        key = jax.random.fold_in(key, row.level.i)
        estimate = combine.denoiser(denoise, combiner, low_res, branch_batch)
        state, _ = advance(key, state, row, estimate)
        return again(key, state, row.level)

    def live_row(carry, row, slot):
        state, way = carry
        axes = (0, 0, leaves_axes, solver_axes, None if low_res is None else 0, None)
        state = jax.vmap(image_step, in_axes=axes)(keys, state, combiner, solver.step, low_res, row)
        if way is not None:
            way = jax.vmap(lambda frames, x: frames.at[slot].set(x, mode="drop"))(way, state.x)
        return state, way

    def body(carry, inputs):
        row, slot = inputs
        return jax.lax.cond(row.level.live, live_row, lambda carry, row, slot: carry, carry, row, slot), None

    return jax.lax.scan(body, (state, way), (rows, slots))[0]


def again(key: Array, state: State, level: Level) -> State:
    """`state` noised anew, sqrt(again) x + sqrt(1 - again) n: nothing where `level.again` is 1."""
    n = jax.random.normal(jax.random.fold_in(key, START), state.x.shape, state.x.dtype)
    return state._replace(x=jnp.sqrt(level.again) * state.x + jnp.sqrt(1 - level.again) * n)


def sample(
    denoise: Callable,
    keys: Array,
    x: Array,
    levels: Level,
    *,
    combiner: Combiner | Callable,
    solver: Solver | None = None,
    in_axes: Any = None,
    solver_axes: int | None = None,
    low_res: Array | None = None,
    keep_every: int = 0,
    branch_batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    progress_every: int = 4,
) -> Samples:
    """Images [n h w c] that `solver` makes of x [n h w c] down the table `levels`, and those kept of the way.

    Args:
        denoise: the network, `(x [n h w c], t [n], Conditioning [n ...]) -> Prediction`, its parameters bound by
            `jax.tree_util.Partial`.
        keys: one key an image [n]; image i has the same noise in any batch.
        x: where to start: `start(keys, shape)` for pure noise, `forward(...)` for an edit, float32 or float64.
        levels: rows of `schedule.levels`; a slice of a table starts or ends elsewhere.
        combiner: a Combiner, or a function `(denoise, x, level) -> Prediction` of one image; functions are static
            (one compilation each), and `Partial(function, arrays)` is not compiled again for other arrays.
        solver: `step.ddpm()` unless given.
        in_axes: which leaves of `combiner` are per image, as for `jax.vmap`; None says it is shared by all.
        solver_axes: 0 where the leaves of `solver.init` and `solver.step` are per image (a `jax.vmap` of
            `step.condition` makes such ones), None where they are shared.
        low_res: stage 2's condition [n h w c].
        keep_every: 0 keeps nothing of the way; m keeps every m-th image counted from the last.
        branch_batch: how many branches of an image the network sees at a time; all of them unless given.
        progress: called with (rows done, rows in all) every `progress_every` rows, between calls of one compiled
            scan of that length; without it the scan is one call.

    Changing a prompt, scale, key, image, parameter or the number of steps compiles nothing new.

    >>> from jdiff.types import Prediction
    >>> exact = lambda x, t, c: Prediction(x)  # says that all of x is noise: the clean image is black, 0
    >>> levels = schedule.levels(schedule.cosine(), schedule.leading(20))
    >>> keys = image_keys(jax.random.key(0), 2)
    >>> image = combine.conditional(jnp.zeros((1, 1)))
    >>> sample(exact, keys, start(keys, (4, 4, 3)), levels, combiner=image, solver=step.ddim()).images.shape
    (2, 4, 4, 3)

    Source: Ho et al. 2020 (DDPM), algorithm 2; course 1.4 to 1.6.
    """
    solver = step.ddpm() if solver is None else solver
    if x.shape[:1] != keys.shape:
        raise ValueError(f"keys has shape {keys.shape}, accepted is one key for each of {x.shape[0]} images")
    denoise = as_partial(denoise)
    combiner = combiner if isinstance(combiner, Combiner) else as_partial(combiner)
    n = len(levels.t)
    length = next((m for m in LENGTHS if m >= n), n) if progress is None else progress_every
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    total = n if progress is None else -(-n // length) * length
    rows, slots, kept = _table(solver, levels, keep_every, max(total, length), dtype)
    combiner = prepare(denoise, combiner, in_axes)
    state = jax.vmap(lambda init, x: init(x), in_axes=(solver_axes, 0))(solver.init, jnp.array(x, dtype))
    way = jnp.zeros((x.shape[0], kept, *x.shape[1:]), dtype) if keep_every else None
    for first in range(0, len(slots), length):
        part = jax.tree.map(lambda a, first=first: a[first : first + length], (rows, slots))
        state, way = _run(
            denoise, keys, state, way, *part, combiner, solver, low_res,
            in_axes=in_axes, solver_axes=solver_axes, branch_batch=branch_batch,
        )  # fmt: skip
        if progress is not None:
            jax.block_until_ready(state)
            progress(min(first + length, n), n)
    return Samples(state.x, way)


def denoise_once(
    denoise: Callable,
    x: Array,
    level: Level,
    *,
    combiner: Combiner | Callable,
    x0_rule: Callable = step.untouched,
    predicts: Callable = step.noise,
) -> Array:
    """The clean images [n h w c] that the network sees in x [n h w c] at one `level`, in a single call.

    >>> from jdiff.types import Prediction
    >>> level = one(schedule.levels(schedule.cosine(), [250]), 0)
    >>> silent = lambda x, t, c: Prediction(jnp.zeros_like(x))  # says that there is no noise
    >>> x = jnp.ones((1, 4, 4, 3))
    >>> round(float(denoise_once(silent, x, level, combiner=combine.conditional(jnp.zeros((1, 1)))).max()), 3)
    1.087

    Source: course 1.3; Ho et al. 2020 (DDPM), eq. 15.
    """
    combiner = combiner if isinstance(combiner, Combiner) else as_partial(combiner)
    level = jax.tree.map(jnp.asarray, level)
    return _once(*map(as_partial, (denoise, x0_rule, predicts)), x, level, combiner)


@jax.jit
def _once(denoise, x0_rule, predicts, x, level, combiner):
    estimate = combine.denoiser(denoise, combiner)
    return jax.vmap(lambda x: x0_rule(predicts(estimate(x, level).estimate, x, level)))(x)


def iterative_denoise(
    denoise: Callable, keys: Array, x: Array, levels: Level, *, i_start: int = 0, **settings: Any
) -> Samples:
    """`sample` from row `i_start` of the table on: x [n h w c] is an image at that row's level.

    Raises ValueError for an `i_start` that is no row.

    >>> from jdiff.types import Prediction
    >>> levels = schedule.levels(schedule.cosine(), schedule.course())
    >>> keys, x = image_keys(jax.random.key(0), 1), jnp.ones((1, 4, 4, 3))
    >>> exact = lambda x, t, c: Prediction(x, x)
    >>> iterative_denoise(exact, keys, x, levels, i_start=10, combiner=combine.conditional(x[0, 0])).images.shape
    (1, 4, 4, 3)

    Source: course 1.4 (`iterative_denoise`).
    """
    return sample(denoise, keys, x, from_row(levels, i_start), **settings)
