"""The Gaussian law: for data N(0, s^2) and its exact denoiser, the variance of a sampler is a scalar recursion.

`sampled` runs the library's whole scan; `recursion` is written from the papers, without the library's solvers.
`python scripts/parity.py` puts the figures of all solvers on all kinds of tables into docs/parity.md.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import combine, keys, sample, schedule, step
from jdiff.types import Array, Conditioning, Level, Prediction, Solver

VARIANCE = 0.25  # s^2 of the data


class Walk(NamedTuple):
    """A solver, and the same in numbers."""

    solver: Callable[..., Solver]  # (draw=) -> solver whose network predicts the clean image
    moments: Callable[..., tuple[float, float, float]]  # see `recursion`


def even(n: int) -> np.ndarray:
    return schedule.respaced([n])


TABLES: dict[str, Callable[[int], Level]] = {
    "variance-preserving, cosine": lambda n: schedule.levels(schedule.cosine(), even(n)),
    "variance-preserving, linear": lambda n: schedule.levels(schedule.linear(), even(n)),
    "variance-preserving, the course's end": lambda n: schedule.levels(
        schedule.cosine(), schedule.course(n), schedule.cosine()[0]
    ),
    "flow": lambda n: schedule.flow(np.linspace(0, 1, n + 1)),
    "flow, from the middle": lambda n: schedule.flow(np.linspace(0.3, 1, n + 1)),
    "exploding, EDM's": lambda n: schedule.karras(n),
    "exploding, geometric": lambda n: schedule.exploding(np.append(np.geomspace(50, 0.01, n), 0)),
}


def ancestral(large: bool, at: Level) -> tuple[float, float, float]:
    """Bayes' rule for x_to, given x = a x_to + sqrt(v) n and x_to = signal_to x0 + noise_to n'."""
    a = at.signal / at.signal_to
    v = at.noise**2 - (a * at.noise_to) ** 2
    if at.noise_to == 0:
        return at.signal_to, 0.0, 0.0
    if v == 0:
        return 0.0, 1 / a, 0.0
    precision = 1 / at.noise_to**2 + a**2 / v
    power, power_to = at.signal**2 + at.noise**2, at.signal_to**2 + at.noise_to**2
    fresh = v * power_to / power if large else 1 / precision
    return at.signal_to / at.noise_to**2 / precision, a / v / precision, fresh


def implicit(eta: float, at: Level) -> tuple[float, float, float]:
    """DDIM: signal_to x0 + sqrt(noise_to^2 - fresh) eps, with eps = (x - signal x0) / noise."""
    fresh = eta**2 * ancestral(False, at)[2]
    kept = np.sqrt(max(at.noise_to**2 - fresh, 0)) / at.noise
    return at.signal_to - kept * at.signal, kept, fresh


SOLVERS: dict[str, Walk] = {
    "ddpm, small": Walk(partial(step.ddpm, step.small, predicts=step.clean), partial(ancestral, False)),
    "ddpm, large": Walk(partial(step.ddpm, step.large, predicts=step.clean), partial(ancestral, True)),
    "ddim": Walk(partial(step.ddim, predicts=step.clean), partial(implicit, 0.0)),
    "ddim, eta 0.5": Walk(partial(step.ddim, 0.5, predicts=step.clean), partial(implicit, 0.5)),
    "ddim, eta 1": Walk(partial(step.ddim, 1.0, predicts=step.clean), partial(implicit, 1.0)),
    "dpmpp_2m": Walk(lambda draw=None: step.dpmpp_2m(predicts=step.clean), partial(implicit, 0.0)),
}


def gain(at: Level) -> float:
    """E[x0 | x] / x for data N(0, VARIANCE)."""
    return at.signal * VARIANCE / (at.signal**2 * VARIANCE + at.noise**2)


def recursion(solver: str, levels: Level) -> float:
    """Variance of the result, from the first level's true variance, in NumPy.

    Each step is x' = p x0 + q x + sqrt(fresh) n, with x0 = gain x; the second-order solver leads x0 on by the last one.
    """
    start = levels.signal[0] ** 2 * VARIANCE + levels.noise[0] ** 2
    x, x0_before, snr_before, variance = 1.0, 0.0, None, 0.0
    for i in range(len(levels.t)):
        at = sample.one(levels, i)
        p, q, fresh = SOLVERS[solver].moments(at)
        x0 = gain(at) * x
        led = x0
        if solver == "dpmpp_2m":
            with np.errstate(divide="ignore"):
                snr, snr_to = np.log(at.signal / at.noise), np.log(at.signal_to / at.noise_to)
            if snr_before is not None and np.isfinite([snr_before, snr_to]).all():
                led = x0 + (snr_to - snr) / (2 * (snr - snr_before)) * (x0 - x0_before)
            x0_before, snr_before = x0, snr
        variance = (p * gain(at) + q) ** 2 * variance + fresh
        x = p * led + q * x
    return x**2 * start + variance


def denoise(x: Array, t: Array, conditioning: Conditioning) -> Prediction:
    """The exact estimate of the clean image at the level (signal, noise) that the text holds, by row number t."""
    at = conditioning.text[0, t[0].astype(int)]
    return Prediction(at[0] * VARIANCE / (at[0] ** 2 * VARIANCE + at[1] ** 2) * x)


def sampled(solver: str, levels: Level) -> float:
    """Variance of the result of `sample.sample`, in float64.

    The scan is linear in where it starts and in the noise of each row. So image 0 starts from 1 and draws no noise,
    and image i starts from 0 and draws 1 in row i - 1 alone: the squares of the results add up to the variance.
    """
    n = len(levels.t)
    image_keys = keys.image_keys(jax.random.key(0), n + 1)
    row_keys = jax.random.key_data(jax.vmap(keys.fold_in)(image_keys[1:], jnp.arange(n)))

    def draw(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jnp.full(shape, (jax.random.key_data(key)[None] == row_keys).all(-1).any(), dtype)

    start = np.sqrt(levels.signal[0] ** 2 * VARIANCE + levels.noise[0] ** 2)
    x = jnp.zeros((n + 1, 1, 1, 1)).at[0].set(start)
    told = combine.conditional(jnp.stack([levels.signal, levels.noise], axis=-1))
    numbered = levels._replace(t=np.arange(n, dtype=np.float64))
    made = sample.sample(denoise, image_keys, x, numbered, combiner=told, solver=SOLVERS[solver].solver(draw=draw))
    return float((made.images**2).sum())
