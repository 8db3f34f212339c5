"""The recipes of part B's networks, the course's and our own: how each network is built, trained and sampled."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import optax
from jax.tree_util import Partial

from jdiff import checks, schedule, step
from jdiff.mnist import objectives, patched, unet
from jdiff.mnist.data import to_floats, to_signed
from jdiff.training.optimizers import adam_with_cosine
from jdiff.types import Array, Level, Network, Solver

T = 300  # timesteps of the course's DDPM
CLASS_DROPOUT = 0.1  # probability that the class of an image is left out in training


class Recipe(NamedTuple):
    """How a network is built, trained and sampled."""

    network: Callable[[int, Callable], Network]  # (width, conv) -> the network, whose parameters are shapes
    training: Callable[[int, Callable], objectives.Training]  # (width, conv) -> the network in training
    init: Callable[[int, Array], dict]  # (width, key) -> parameters
    scale: Callable[[Array], Array]  # uint8 images [n 28 28] -> input of the network [n 28 28 1]
    unscale: Callable[[Array], Array]  # the network's images -> images in [0, 1]
    levels: Callable[[Array, int], objectives.Levels]  # draws the noise levels of training
    target: Callable[[Array, Array], Array]  # (x0, eps) -> target of the network
    dropout: float  # probability that the class of an image is left out; 1 for networks without classes
    optimizer: Callable[[float, int, int], optax.GradientTransformation]  # (rate, updates an epoch, epochs)
    width: int  # channels D
    batch: int  # images an update
    epochs: int
    rate: float  # learning rate
    decay: float  # decay of the EMA of the weights, which is what is written; with 0 it is the last weights
    table: Callable[[int], Level]  # steps -> table of levels for sampling
    solver: Callable[[], Solver]
    steps: int  # of sampling
    guidance: float  # guidance scale of sampling


def ddpm_table(steps: int) -> Level:
    """Returns a table of evenly spread timesteps among the course's 300. The network gets t / 300.

    Args:
        steps: number of rows.

    Raises:
        ValueError: `steps` is not between 1 and 300.
    """
    checks.whole("steps", steps, 1, T)
    levels = schedule.levels(schedule.linear(T), np.linspace(T - 1, 0, steps).round().astype(int))
    return levels._replace(t=(levels.t + 1) / T)


def flow_table(steps: int) -> Level:
    """Returns a flow table of equal steps from noise to image. The network gets t, from 0 to 1.

    Args:
        steps: number of rows.

    Raises:
        ValueError: `steps` is not between 1 and 1000.
    """
    checks.whole("steps", steps, 1, 1000)
    return schedule.flow(np.linspace(0, 1, steps + 1))


def best_table(steps: int) -> Level:
    """Returns a flow table of equal steps from noise to image. The network gets 1000 * noise.

    Args:
        steps: number of rows.

    Raises:
        ValueError: `steps` is not between 1 and 1000.
    """
    levels = flow_table(steps)
    return levels._replace(t=1000 * levels.noise)


def one_step(noise: float, steps: int) -> Level:
    """Returns the table of the single-step denoiser: one step from a noise level to the clean image.

    Args:
        noise: noise of the level, whose signal is 1.
        steps: must be 1.

    Raises:
        ValueError: `steps` is not 1.
    """
    checks.whole("steps", steps, 1, 1)
    return schedule.exploding([noise, 0.0])._replace(t=np.zeros(1))


def adam(schedule: Callable | float) -> optax.GradientTransformation:
    """Returns Adam for the parameters, and PyTorch's running mean for BatchNorm's statistics.

    Args:
        schedule: learning rate, or a function from the number of the update to it.
    """
    kinds: dict[Hashable, optax.GradientTransformation] = {
        "params": optax.adam(schedule),
        "statistics": optax.sgd(unet.MOMENTUM),
    }
    return optax.partition(kinds, {name: name for name in kinds})


def constant(rate: float, updates: int, epochs: int) -> optax.GradientTransformation:
    """Returns Adam with a constant learning rate (course part B, 1.2).

    Args:
        rate: learning rate.
        updates: not used.
        epochs: not used.
    """
    del updates, epochs
    return adam(rate)


def tenth(rate: float, updates: int, epochs: int) -> optax.GradientTransformation:
    """Returns Adam with a learning rate that decays after each epoch, to a tenth at the end (course part B, 2.2).

    Args:
        rate: first learning rate.
        updates: number of updates in an epoch.
        epochs: number of epochs.
    """
    return adam(optax.exponential_decay(rate, updates, 0.1 ** (1 / epochs), staircase=True))


def cosine(rate: float, updates: int, epochs: int) -> optax.GradientTransformation:
    """Returns Adam with clipped gradients, a warm-up, and a cosine decay of the learning rate to a hundredth.

    Args:
        rate: highest learning rate.
        updates: number of updates in an epoch.
        epochs: number of epochs.
    """
    return adam_with_cosine(rate, updates * epochs)


def _network(config: unet.Config, width: int, conv: Callable) -> Network:
    return unet.unet(_wide(config, width), conv)


def _training(config: unet.Config, width: int, conv: Callable) -> Callable:
    return unet.training(_wide(config, width), conv)


def _init(config: unet.Config, width: int, key: Array) -> dict:
    return unet.init(_wide(config, width), key)


def _wide(config: unet.Config, width: int) -> unet.Config:
    return unet.Config(width, config.time, config.classes, config.multiply)


def as_it_is(x: Array) -> Array:
    """Returns the images unchanged."""
    return x


def from_signed(x: Array) -> Array:
    """Converts images from [-1, 1] to [0, 1]."""
    return (x + 1) / 2


def _courses(config: unet.Config, **how: Any) -> Recipe:
    dropout = CLASS_DROPOUT if config.classes else 1.0
    network, training, init = partial(_network, config), partial(_training, config), partial(_init, config)
    return Recipe(
        network=network, training=training, init=init, scale=to_floats, unscale=as_it_is, dropout=dropout, decay=0.0,
        **how,
    )  # fmt: skip


def _ddpm(config: unet.Config) -> Recipe:
    levels = Partial(
        objectives.timesteps, schedule.linear(T).astype(np.float32)
    )  # a NumPy array, so that JAX does not start yet
    return _courses(
        config, levels=levels, target=objectives.of_noise, optimizer=tenth, width=64, batch=128, epochs=20, rate=1e-3,
        table=ddpm_table, solver=partial(step.ddpm, step.large), steps=T, guidance=5.0,
    )  # fmt: skip


def _flow(config: unet.Config, steps: int) -> Recipe:
    return _courses(
        config, levels=objectives.uniform_flow, target=objectives.of_velocity, optimizer=tenth, width=64, batch=64,
        epochs=10, rate=1e-2, table=flow_table, solver=partial(step.ddim, predicts=step.velocity), steps=steps,
        guidance=5.0,
    )  # fmt: skip


def _best(dropout: float) -> Recipe:
    """A flow with IF's UNet and an EMA of the weights, sampled by a second-order solver."""
    return Recipe(
        network=patched.unet, training=patched.training, init=patched.init, scale=to_signed, unscale=from_signed,
        levels=objectives.logit_normal_flow, target=objectives.of_velocity, dropout=dropout, optimizer=cosine, width=48,
        batch=64, epochs=10, rate=1e-3, decay=0.999, table=best_table,
        solver=partial(step.dpmpp_2m, predicts=step.velocity), steps=25, guidance=2.0,
    )  # fmt: skip


def denoiser(signal: float, noise: float) -> Recipe:
    """Returns the recipe of the single-step denoiser.

    Args:
        signal: signal of the images in training, signal x0 + noise eps; 0 for pure noise.
        noise: noise of the images in training.
    """
    return _courses(
        unet.Config(time=False, classes=False), levels=partial(objectives.fixed, signal, noise),
        target=objectives.of_clean, optimizer=constant, width=128, batch=256, epochs=5, rate=1e-4,
        table=partial(one_step, noise), solver=partial(step.ddim, predicts=step.clean), steps=1, guidance=1.0,
    )  # fmt: skip


def recipes() -> dict[tuple[str, str], Recipe]:
    """Returns all recipes by (kind, name).

    "spec" is the course's recipe, "best" is ours, and "pure" is the course's denoiser of pure noise.

    Example:
        >>> sorted(kind for kind, recipe in recipes() if recipe == "best")
        ['class', 'time']
    """
    time, classes = unet.Config(classes=False), unet.Config()
    return {
        ("denoise", "spec"): denoiser(1.0, 0.5),
        ("denoise", "pure"): denoiser(0.0, 1.0),  # from pure noise (course part B, 1.2.3)
        ("time", "spec"): _ddpm(time),
        ("class", "spec"): _ddpm(classes),
        ("flow-time", "spec"): _flow(unet.Config(classes=False, multiply=True), 50),
        ("flow-class", "spec"): _flow(unet.Config(multiply=True), 300),
        ("time", "best"): _best(1.0),
        ("class", "best"): _best(CLASS_DROPOUT),
    }


KINDS = ("denoise", "time", "class", "flow-time", "flow-class")
