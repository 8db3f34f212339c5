"""The scan down a table of levels: the compiled loop that runs every sampler and every task."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jdiff import checks, combine, step
from jdiff.keys import as_key, fold_in, normal
from jdiff.types import (
    Array,
    Axes,
    Batch,
    Combiner,
    Conditioning,
    Images,
    Level,
    Network,
    Row,
    Solver,
    State,
    as_network,
    as_partial,
    unchanged,
)  # fmt: skip

# A table is padded to the next of these lengths, so that one program serves many numbers of steps.
LENGTHS = (64, 256, 1024)
# Rows per call of the program when progress is reported or intermediate images are kept.
CHUNK = 4
# Folded into an image's key for its starting noise, and into a row's key for the noise of a jump.
START = 2**31 - 1

# A function that is called while images are drawn, with rows done, rows in all, and the current images.
Watch = Callable[[int, int, np.ndarray], None]


class Samples(NamedTuple):
    """Finished images, and the intermediate images that were kept."""

    images: Array  # [n h w c]
    way: Array | None = None  # [n m h w c], from noise to image; the last one is finished


def forward(keys: Array, images: Batch, level: Level, draw: Callable[..., Array] = normal) -> Batch:
    """Adds the noise of a level to images: signal x0 + noise eps.

    Args:
        keys: one key for each image [n].
        images: clean images [n h w c].
        level: one row of a table, such as `one(levels, 0)`.
        draw: draws the noise: `(key, shape, dtype) -> array`.

    Returns:
        Noisy images [n h w c].

    Raises:
        ValueError: `keys` are not random keys.

    Example:
        >>> from jdiff import schedule
        >>> from jdiff.keys import image_keys
        >>> level = one(schedule.levels(schedule.cosine(), [250]), 0)
        >>> round(float(forward(image_keys(jax.random.key(0), 1), jnp.zeros((1, 64, 64, 3)), level).std()), 1)
        0.4

    Reference:
        Ho et al. 2020 (DDPM), eq. 4; the course's 1.1.
    """
    keys = as_key(keys, "keys")
    eps = jax.vmap(lambda key, x: draw(fold_in(key, START), x.shape, x.dtype))(keys, images)
    signal, noise = (jnp.asarray(a, images.dtype) for a in (level.signal, level.noise))
    return signal * images + noise * eps


def start(keys: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32, level: Level | None = None) -> Array:
    """Returns pure noise to start from.

    Args:
        keys: one key for each image [n].
        shape: shape (h, w, c) of one image.
        dtype: dtype of the noise.
        level: first row of the table. The variance of the noise is then signal^2 + noise^2, as for images of unit
            variance at that level. If None, the variance is 1, which fits variance-preserving tables.

    Returns:
        Noise [n h w c].

    Raises:
        ValueError: `keys` are not random keys.

    Example:
        >>> from jdiff.keys import image_keys
        >>> start(image_keys(jax.random.key(0), 2), (4, 4, 3)).shape
        (2, 4, 4, 3)
    """
    noise = jax.vmap(lambda key: normal(fold_in(key, START), shape, dtype))(as_key(keys, "keys"))
    return noise if level is None else jnp.asarray(np.hypot(level.signal, level.noise), dtype) * noise


def one(levels: Level, i: int) -> Level:
    """Returns one row of a table.

    Args:
        levels: table [n].
        i: row number.

    Returns:
        The level, without the axis [n].

    Example:
        >>> from jdiff import schedule
        >>> one(schedule.levels(schedule.cosine(), [250]), 0).t.item()
        250.0
    """
    return jax.tree.map(lambda column: column[i], levels)


def from_row(levels: Level, row: int) -> Level:
    """Returns the rows of a table from one row on.

    Args:
        levels: table [n].
        row: first row to keep, from 0 to n - 1.

    Raises:
        ValueError: there is no such row.

    Example:
        >>> from jdiff import schedule
        >>> from_row(schedule.levels(schedule.cosine(), schedule.course()), 10).t[0].item()
        690.0
    """
    row = checks.whole("i_start", row, 0, len(levels.t) - 1)
    return jax.tree.map(lambda a: a[row:], levels)


def prepare(network: Network, combiner: Combiner | Callable, in_axes: Axes = None) -> Combiner | Callable:
    """Returns the combiner with its conditioning prepared: what depends on the prompts alone is computed once.

    Args:
        network: its `prepare` is called.
        combiner: a Combiner; a function is returned unchanged.
        in_axes: which leaves of the combiner are per image, as in `sample`.

    Example:
        >>> halve = lambda params, told: told._replace(text=told.text / 2)
        >>> network = Network((), lambda params, x, t, told: None, halve)
        >>> prepare(network, combine.conditional(jnp.ones((1, 1)))).conditioning.text.item()
        0.5
    """
    if not isinstance(combiner, Combiner) or network.prepare is unchanged:
        return combiner
    axes = in_axes.conditioning if isinstance(in_axes, Combiner) else in_axes
    return combiner._replace(conditioning=_prepare(network, combiner.conditioning, axes))


@partial(jax.jit, static_argnames="axes")
def _prepare(network: Network, conditioning: Conditioning, axes: Axes) -> Conditioning:
    make = partial(network.prepare, network.params)
    return make(conditioning) if axes is None else jax.vmap(make, in_axes=(axes,))(conditioning)


def sample(
    network: Network | Callable,
    keys: Array,
    x: Batch,
    levels: Level,
    *,
    combiner: Combiner | Callable,
    solver: Solver | None = None,
    in_axes: Axes = None,
    solver_axes: int | None = None,
    low_res: Images | None = None,
    noise_level: float | Array | None = None,
    keep_every: int = 0,
    branch_batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Watch | None = None,
) -> Samples:
    """Samples images down a table of levels. Every sampler and every task runs this loop.

    Another prompt, scale, key, image, parameter or number of steps compiles nothing new. One program serves up to 64
    steps, one up to 256, one up to 1024, and one each larger number.

    Args:
        network: a Network, or a function `(x [n h w c], t [n], Conditioning [n ...]) -> Prediction [n ...]`.
        keys: one key for each image [n]. An image gets the same noise in any batch.
        x: images to start from [n h w c]: `start(keys, shape)` for pure noise, `forward(...)` for an edit. The
            arithmetic is in float32, or in float64 for float64 images.
        levels: rows of a table. A slice of a table starts late or stops early.
        combiner: a Combiner, or a function `(denoise, x, level) -> Prediction` for one image. Each function compiles
            once; `Partial(function, arrays)` does not compile again for other arrays.
        solver: `step.ddpm()` if None.
        in_axes: which leaves of `combiner` are per image, as for `jax.vmap`; None if all images share them.
        solver_axes: 0 if the leaves of `solver.init` and `solver.step` are per image, like those of a vmapped
            `step.condition`; None if all images share them.
        low_res: stage 2: the resized and noised images [n h w c] to enlarge.
        noise_level: stage 2: the timestep to which `low_res` is noised.
        keep_every: keeps the image after every `keep_every`-th row, counted back from the last; 0 keeps none.
        branch_batch: how many branches of an image the network evaluates at a time; all of them if None.
        progress: called with (rows done, rows in all) every few rows.
        watch: called with (rows done, rows in all, current images [n h w c]) after every row. An exception that it
            raises ends the sampling.

    Returns:
        Samples: images [n h w c], and the intermediate images [n m h w c] if any are kept.

    Raises:
        ValueError: an argument has the wrong type, shape or range, or the solver is not valid for the table.

    Example:
        >>> from jdiff import schedule
        >>> from jdiff.keys import image_keys
        >>> from jdiff.types import Prediction
        >>> black = lambda x, t, told: Prediction(x)  # says that all of x is noise: the clean image is 0
        >>> levels = schedule.levels(schedule.cosine(), schedule.leading(20))
        >>> keys = image_keys(jax.random.key(0), 2)
        >>> prompt = combine.conditional(jnp.zeros((1, 1)))
        >>> sample(black, keys, start(keys, (4, 4, 3)), levels, combiner=prompt, solver=step.ddim()).images.shape
        (2, 4, 4, 3)

    Reference:
        Ho et al. 2020 (DDPM), algorithm 2; the course's 1.4 to 1.6.
    """
    network, keys = as_network(network), as_key(keys, "keys")
    solver = step.ddpm() if solver is None else solver
    combiner = combiner if isinstance(combiner, Combiner) else as_partial(combiner)
    keep_every = checks.whole("keep_every", keep_every, 0)
    if branch_batch is not None:
        branch_batch = checks.whole("branch_batch", branch_batch)
    x = jnp.asarray(x)
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating images [n h w c], got {x.dtype} of shape {x.shape}")
    if keys.shape != x.shape[:1]:
        raise ValueError(f"keys must have one for each of {x.shape[0]} images, got shape {keys.shape}")
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    rows = _rows(solver, levels, dtype)
    told = None if noise_level is None else jnp.asarray(noise_level, dtype)
    combiner = prepare(network, combiner, in_axes)
    state = jax.vmap(lambda init, x: init(x), in_axes=(solver_axes, 0))(solver.init, jnp.array(x, dtype))
    run = partial(_run, in_axes=in_axes, solver_axes=solver_axes, branch_batch=branch_batch)
    n, kept = len(levels.t), []
    for part, done in _chunks(rows, n, 1 if watch else keep_every, progress is not None):
        state = run(network, keys, state, part, combiner, solver.step, low_res, told)
        if keep_every and (n - done) % keep_every == 0:
            kept.append(jnp.array(state.x))  # a copy, because the next call reuses the state's memory
        if progress is not None:
            jax.block_until_ready(state)
            progress(done, n)
        if watch is not None:
            watch(done, n, np.array(state.x))  # a copy, for the same reason
    return Samples(state.x, jnp.stack(kept, axis=1) if keep_every else None)


def _rows(solver: Solver, levels: Level, dtype: np.dtype) -> Row:
    """Returns the solver's rows, checked and cast. Without jumps, the jump columns are None, and no noise is drawn."""
    if len(levels.t) == 0:
        raise ValueError("levels must have at least one row, got none")
    rows: Row = solver.table(levels)
    for name, column in rows._asdict().items():
        for leaf in jax.tree.leaves(column):
            if not np.isfinite(leaf).all():
                i = int(np.argmin(np.isfinite(leaf)))
                level = one(levels, i)
                raise ValueError(
                    f"the solver's {name} must be finite, got {leaf[i]} in row {i}, from signal {level.signal} and "
                    f"noise {level.noise} to signal {level.signal_to} and noise {level.noise_to}"
                )
    if (levels.jump_scale == 1).all() and (levels.jump_noise == 0).all():
        rows = rows._replace(level=rows.level._replace(jump_scale=None, jump_noise=None))
    cast = lambda a: np.asarray(a, dtype) if np.issubdtype(a.dtype, np.floating) else np.asarray(a)
    return jax.tree.map(cast, rows)


def _chunks(rows: Row, n: int, keep_every: int, told: bool) -> Iterator[tuple[Row, int]]:
    """Yields parts of the table, padded to a few lengths with rows that are not live, and the rows done after each."""
    if not keep_every and not told:
        yield _padded(rows, 0, n, next((m for m in LENGTHS if m >= n), n)), n
        return
    stops = [i + 1 for i in range(n) if keep_every and (n - 1 - i) % keep_every == 0] or [n]
    first = 0
    for stop in stops:
        while first < stop:
            last = min(first + CHUNK, stop)
            yield _padded(rows, first, last, CHUNK), last
            first = last


def _padded(rows: Row, first: int, last: int, length: int) -> Row:
    index = np.minimum(np.arange(first, first + length), last - 1)
    part = jax.tree.map(lambda a: a[index], rows)
    part.level.live[last - first :] = False
    return part


@partial(jax.jit, static_argnames=("in_axes", "solver_axes", "branch_batch"), donate_argnames="state")
def _run(
    network: Network, keys: Array, state: State, rows: Row, combiner: Combiner | Callable, advance: Callable,
    low_res: Array | None, noise_level: float | Array | None, *, in_axes: Axes, solver_axes: int | None,
    branch_batch: int | None,
) -> State:  # fmt: skip
    """The scan: each live row is one step of every image."""

    def image_step(idle, key, state, combiner, advance, low_res, row):
        key = fold_in(key, row.level.i)
        denoise = combine.denoiser(
            network, combiner, low_res, noise_level=noise_level, branch_batch=branch_batch, idle=idle
        )
        state, _ = advance(key, state, row, denoise)
        return jump(key, state, row.level)

    def live_row(state, row):
        axes = (0, 0, in_axes, solver_axes, None if low_res is None else 0, None)
        step = lambda idle: jax.vmap(partial(image_step, idle), in_axes=axes)(
            keys, state, combiner, advance, low_res, row
        )
        idle = combine.is_idle(combiner, row.level, in_axes)
        return step(False) if idle is None else jax.lax.cond(idle, lambda: step(True), lambda: step(False))

    def body(state, row):
        return jax.lax.cond(row.level.live, live_row, lambda state, row: state, state, row), None

    return jax.lax.scan(body, state, rows)[0]


def jump(key: Array, state: State, level: Level) -> State:
    """Returns the state after the level's jump: jump_scale x + jump_noise n. Without jumps, no noise is drawn.

    Args:
        key: the row's key.
        state: after the step.
        level: row of the table. Its `jump_scale` is None if the table has no jumps.
    """
    if level.jump_scale is None:
        return state
    n = normal(fold_in(key, START), state.x.shape, state.x.dtype)
    return state._replace(x=level.jump_scale * state.x + level.jump_noise * n)


def denoise_once(
    network: Network | Callable,
    x: Batch,
    level: Level,
    *,
    combiner: Combiner | Callable,
    x0_rule: Callable[[Array], Array] = step.untouched,
    predicts: Callable[[Array, Array, Level], Array] = step.noise,
) -> Batch:
    """Estimates the clean images of noisy ones with one call of the network.

    Args:
        network: as in `sample`.
        x: noisy images [n h w c].
        level: level of all images.
        combiner: as in `sample`, shared by all images.
        x0_rule: as in `step.ddpm`.
        predicts: as in `step.ddpm`.

    Returns:
        Clean images [n h w c].

    Example:
        >>> from jdiff import schedule
        >>> from jdiff.types import Prediction
        >>> level = one(schedule.levels(schedule.cosine(), [250]), 0)
        >>> silent = lambda x, t, told: Prediction(jnp.zeros_like(x))  # says that there is no noise
        >>> prompt = combine.conditional(jnp.zeros((1, 1)))
        >>> round(float(denoise_once(silent, jnp.ones((1, 4, 4, 3)), level, combiner=prompt).max()), 3)
        1.087

    Reference:
        The course's 1.3; Ho et al. 2020 (DDPM), eq. 15.
    """
    combiner = combiner if isinstance(combiner, Combiner) else as_partial(combiner)
    level = jax.tree.map(jnp.asarray, level)
    return _once(as_network(network), *map(as_partial, (x0_rule, predicts)), x, level, combiner)


@jax.jit
def _once(
    network: Network, x0_rule: Callable, predicts: Callable, x: Array, level: Level, combiner: Combiner | Callable
) -> Array:
    denoise = combine.denoiser(network, combiner)
    return jax.vmap(lambda x: x0_rule(predicts(denoise(x, level).estimate, x, level)))(x)


def iterative_denoise(
    network: Network | Callable,
    keys: Array,
    x: Batch,
    levels: Level,
    *,
    i_start: int = 0,
    **settings: Any,
) -> Samples:
    """Samples from row `i_start` of a table on.

    Args:
        network: as in `sample`.
        keys: as in `sample`.
        x: images [n h w c] at the level of row `i_start`.
        levels: the whole table.
        i_start: the row to start from.
        settings: the other arguments of `sample`.

    Returns:
        As `sample`.

    Raises:
        ValueError: there is no such row, or as `sample`.

    Example:
        >>> from jdiff import schedule
        >>> from jdiff.keys import image_keys
        >>> from jdiff.types import Prediction
        >>> levels = schedule.levels(schedule.cosine(), schedule.course())
        >>> keys, x = image_keys(jax.random.key(0), 1), jnp.ones((1, 4, 4, 3))
        >>> exact = lambda x, t, told: Prediction(x, x)
        >>> iterative_denoise(exact, keys, x, levels, i_start=10, combiner=combine.conditional(x[0, 0])).images.shape
        (1, 4, 4, 3)

    Reference:
        The course's 1.4 (`iterative_denoise`).
    """
    return sample(network, keys, x, from_row(levels, i_start), **settings)
