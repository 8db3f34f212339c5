"""The library's basic types. Each describes one image; `jax.vmap` makes the batch."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float

Array = jax.Array
# Arrays of a shape. The tests check each call's arrays against them.
Text = Float[Array | np.ndarray, "length width"]  # prompt embedding
Image = Float[Array, "height width channels"]
Images = Float[Array, "n height width channels"]
Estimate = Float[Array, "*image"]  # all of one call have the same shape
Batch = Float[Array, "n *image"]
# A column of a table: a NumPy array outside jit, one traced number inside the scan. No single type covers both.
Column = Any
# A nested dict of arrays, or of their shapes. JAX has no type for it.
Params = Any
# A JSON object, such as the contents of a config.json. Its values can be of any type of JSON.
Json = Mapping[str, Any]
# An `in_axes` of `jax.vmap`: an int, None, or a tree of them.
Axes = Any


class Prediction(NamedTuple):
    """What a network predicts for one image."""

    estimate: Array  # [h w c] in the network's own parametrisation: noise, clean image or velocity
    variance: Array | None = None  # [h w c] learned variance: -1 is the lower bound, 1 the upper bound


class Conditioning(NamedTuple):
    """The inputs of a network besides the image and the timestep."""

    text: Any  # [l d] prompt embedding, or whatever the network's `prepare` makes of it
    low_res: Array | None = None  # [h w c] stage 2: the resized and noised image to enlarge
    noise_level: Array | None = None  # [] stage 2: the timestep to which `low_res` is noised
    pooled: Array | None = None  # [l d] text for the pooled path, if it differs from `text`


class Level(NamedTuple):
    """One row of a table of levels, which is one network call. At a level, x = signal x0 + noise eps."""

    i: Column  # row number
    t: Column  # timestep (or time, or sigma) that the network gets
    signal: Column
    noise: Column
    signal_to: Column  # signal and noise after the step; (1, 0) is a clean image
    noise_to: Column
    jump_scale: Column  # after the step, x <- jump_scale x + jump_noise n; (1, 0) changes nothing
    jump_noise: Column
    live: Column  # False in rows that only pad the table


# What the branches of a rule see: images [k h w c], and low-res images [k h w c] or None.
Shown = tuple[Array, Array | None]


def same_image(rule: "Rule", x: Array, low_res: Array | None, level: Level) -> Shown:
    """Shows the unchanged image to every branch: the default `show` of a Rule."""
    del level
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (rule.k, *a.shape)), (x, low_res))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("parts", "idle"),
    meta_fields=("k", "join", "show", "stand_ins"),
)
@dataclasses.dataclass(frozen=True)
class Rule:
    """How k predictions for one image become one. A rule holds no prompt; `Combiner` pairs it with prompts.

    A pytree: the numbers and arrays in `parts` are leaves, the rest is static.

    Attributes:
        k: number of branches, which are the network evaluations for one image in one step.
        parts: what `join` and `show` use, such as a scale, a view, or inner rules.
        join: `(rule, Prediction [k ...], x, level) -> Prediction`.
        show: `(rule, x, low_res, level) -> (x, low_res)` of every branch [k ...].
        idle: `(level) -> bool`: whether some branches can be skipped at a level; None if all are always needed.
        stand_ins: for each branch, the branch whose prediction replaces its own where the rule is idle.

    Example:
        >>> first = Rule(2, None, lambda rule, prediction, x, level: jax.tree.map(lambda a: a[0], prediction))
        >>> first.gather(Prediction(jnp.array([5.0, 7.0])), None, None).estimate.item()
        5.0
    """

    k: int
    parts: Any  # any pytree: each rule has its own
    join: Callable[["Rule", Prediction, Array, Level], Prediction]
    show: Callable[["Rule", Array, Array | None, Level], Shown] = same_image
    idle: Partial | None = None
    stand_ins: tuple[int, ...] | None = None

    def spread(self, x: Array, low_res: Array | None, level: Level) -> Shown:
        """Returns what each branch sees [k ...] of an image [h w c] and of its low-res image, if any."""
        return self.show(self, x, low_res, level)

    def gather(self, prediction: Prediction, x: Array, level: Level) -> Prediction:
        """Combines the k predictions [k ...] for an image x [h w c] into one."""
        return self.join(self, prediction, x, level)


class Combiner(NamedTuple):
    """A rule with the conditioning of its k branches. A pytree: arrays are leaves, the structure is static."""

    rule: Rule
    conditioning: Conditioning  # [k ...]


class View(NamedTuple):
    """A transform of an image, and its inverse for predictions. A pytree."""

    apply: Partial  # [h w c] -> [h w c]
    invert: Partial  # Prediction -> Prediction


class State(NamedTuple):
    """What a solver carries from row to row."""

    x: Array  # [h w c]
    memory: Any = ()  # what a multistep solver keeps of earlier rows: a pytree of its own


class Row(NamedTuple):
    """A level with the constants that a solver computed for it."""

    level: Level
    constants: Any  # a NamedTuple of the solver's own


class Info(NamedTuple):
    """What a step returns besides the next state."""

    x0: Array  # [h w c] estimate of the clean image
    prediction: Prediction


class Solver(NamedTuple):
    """The sampling method: how a step leads from one level to the next. A pytree, like `Combiner`."""

    table: Partial  # (levels) -> rows, in float64 NumPy
    init: Partial  # (x) -> State
    step: Partial  # (key, State, Row, (x, level) -> Prediction) -> (State, Info)


def unchanged(params: Params, conditioning: Conditioning) -> Conditioning:
    """Returns the conditioning unchanged: the `prepare` of a network that precomputes nothing."""
    del params
    return conditioning


@partial(jax.tree_util.register_dataclass, data_fields=("params",), meta_fields=("apply", "prepare"))
@dataclasses.dataclass(frozen=True)
class Network:
    """A network with its parameters. A pytree: the parameters are leaves, the functions are static.

    Attributes:
        params: nested dict of arrays, or of `jax.ShapeDtypeStruct` as long as there are no weights.
        apply: `(params, x [n h w c], t [n], Conditioning [n ...]) -> Prediction [n ...]`.
        prepare: `(params, Conditioning [n ...]) -> Conditioning [n ...]`: computes once, before sampling, what depends
            on neither x nor t. `apply` accepts prepared and unprepared conditionings.

    Example:
        >>> import jax.numpy as jnp
        >>> silent = Network({"scale": jnp.zeros(())}, lambda p, x, t, told: Prediction(p["scale"] * x))
        >>> silent(jnp.ones((1, 4, 4, 3)), jnp.zeros(1), Conditioning(None)).estimate.shape
        (1, 4, 4, 3)
    """

    params: Params
    apply: Callable[[Params, Array, Array, Conditioning], Prediction]
    prepare: Callable[[Params, Conditioning], Conditioning] = unchanged

    def __call__(self, x: Array, t: Array, conditioning: Conditioning) -> Prediction:
        """Predicts for a batch: x [n h w c], t [n], conditioning [n ...]."""
        return self.apply(self.params, x, t, conditioning)

    def bind(self, params: Params) -> "Network":
        """Returns the same network with other parameters."""
        return dataclasses.replace(self, params=params)


def as_partial(function: Callable) -> Partial:
    """Returns a function as a pytree; a Partial is returned unchanged."""
    return function if isinstance(function, Partial) else Partial(function)


def as_network(denoise: "Network | Callable") -> Network:
    """Returns a function `(x, t, conditioning) -> Prediction` as a Network; a Network is returned unchanged."""
    return denoise if isinstance(denoise, Network) else Network(as_partial(denoise), _call)


def _call(function: Partial, x: Array, t: Array, conditioning: Conditioning) -> Prediction:
    return function(x, t, conditioning)
