"""The few types that everything else is written against; each for one image, batched by `vmap`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.tree_util import Partial

Array = jax.Array


class Prediction(NamedTuple):
    """What the network says of one image."""

    estimate: Any  # [h w c] in the network's own parametrisation: noise, clean image or velocity
    variance: Any = None  # [h w c] raw learned-range output, -1 the smaller bound and 1 the larger


class Conditioning(NamedTuple):
    """What the network is told besides the image and its level."""

    text: Any  # [l d], or what the network's `prepare` made of it
    low_res: Any = None  # [h w c] stage 2: the image to enlarge, resized and noised already
    noise_level: Any = None  # [] stage 2: the timestep to which `low_res` is noised
    pooled: Any = None  # [l d] text of the pooled path, where it is another one


class Level(NamedTuple):
    """One row of the table a sampler walks: one network call, from x = signal x0 + noise eps."""

    i: Any  # number of the row
    t: Any  # what the network is told
    signal: Any
    noise: Any
    signal_to: Any  # the same after the step; (1, 0) where the result is clean
    noise_to: Any
    again: Any  # then x <- sqrt(again) x + sqrt(1 - again) n; 1 is nothing
    live: Any  # False in rows that only fill the table up


class Combiner(NamedTuple):
    """How k estimates of one image become one. A pytree: its arrays are leaves, its structure is static."""

    branches: Conditioning  # [k ...]
    spread: Partial  # (x, low_res, level) -> [k ...] of each
    gather: Partial  # (Prediction [k ...], x, level) -> Prediction


class View(NamedTuple):
    """One way of looking at an image, and the way back for what the network says of it. A pytree."""

    apply: Partial  # [h w c] -> [h w c]
    invert: Partial  # Prediction -> Prediction, which knows what becomes of the variance


class State(NamedTuple):
    """What a solver carries from row to row."""

    x: Any  # [h w c]
    memory: Any = ()  # multistep methods: what they keep of earlier rows


class Row(NamedTuple):
    """A level with the constants that a solver made of it."""

    level: Level
    constants: Any


class Info(NamedTuple):
    """What a step saw and does not carry on."""

    x0: Any  # [h w c] estimate of the clean image
    prediction: Prediction


class Solver(NamedTuple):
    """One way of going from a level to the next. A pytree, like `Combiner`."""

    table: Partial  # (levels) -> rows, in float64 numpy
    init: Partial  # (x) -> State
    step: Partial  # (key, State, Row, (x, level) -> Prediction) -> (State, Info)


Denoiser = Callable[[Array, Array, Conditioning], Prediction]  # x [n h w c], t [n], Conditioning [n ...]


def as_partial(function: Callable) -> Partial:
    """`function` as a pytree, so that it can stand in one; a Partial is left as it is."""
    return function if isinstance(function, Partial) else Partial(function)
