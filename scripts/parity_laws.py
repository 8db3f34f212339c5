"""Measures the Gaussian law: the solvers have, on every kind of table, the variance that a recursion gives.

    python scripts/parity_laws.py

Data N(0, s^2) have an exact denoiser, which is linear. So a recursion of numbers gives the variance of a sampler's
result. `sampled` runs the library's scan. `recursion` follows the papers, without the library's solvers.
The command prints the section of docs/parity.md, which `python scripts/parity.py` writes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import combine, keys, sample, schedule, step
from jdiff.results import table
from jdiff.types import Array, Conditioning, Level, Prediction, Solver

VARIANCE = 0.25  # s^2 of the data
FEW, MANY = 12, 320  # steps of the comparison with the scan, and of the limit
JUMP = 4, 2  # rows that a jump goes back, and times that each stretch is walked


class Walk(NamedTuple):
    """A solver, and the coefficients of one step for Gaussian data."""

    solver: Callable[..., Solver]  # (draw=) -> the library's solver, for a network that predicts the clean image
    moments: Callable[[Level], tuple[float, float, float]]  # level -> (p, q, fresh) of `recursion`


def even(n: int) -> np.ndarray:
    """Returns n evenly spaced timesteps."""
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
    """Returns DDPM's step: Bayes' rule for x_to, given x = a x_to + sqrt(v) n and x_to = signal_to x0 + noise_to n'."""
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
    """Returns DDIM's step: signal_to x0 + sqrt(noise_to^2 - fresh) eps, with eps = (x - signal x0) / noise."""
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
    """Returns E[x0 | x] / x for data N(0, VARIANCE)."""
    return at.signal * VARIANCE / (at.signal**2 * VARIANCE + at.noise**2)


def recursion(solver: str, levels: Level) -> float:
    """Returns the variance of a sampler's result, if x starts with the variance of the first level.

    Each step is x' = p x0 + q x + sqrt(fresh) n, with x0 = gain x. The second-order solver extrapolates x0 from the
    last two.
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
    """Returns the exact estimate of the clean image. Row t of the text holds the level's (signal, noise)."""
    at = conditioning.text[0, t[0].astype(int)]
    return Prediction(at[0] * VARIANCE / (at[0] ** 2 * VARIANCE + at[1] ** 2) * x)


def sampled(solver: str, levels: Level) -> float:
    """Returns the variance of the result of `sample.sample`.

    The scan is linear in its start and in the noise of each row. So image 0 starts from the standard deviation of the
    first level and draws no noise, and image i starts from 0 and draws 1 in row i - 1 only. The squares of the results
    add up to the variance.
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


def landing(levels: Level) -> float:
    """Returns the largest difference between the end of RePaint's jumps and the next row's signal and noise."""
    rows = schedule.resample(levels, *JUMP)
    signal = rows.jump_scale * rows.signal_to
    noise = np.hypot(rows.jump_scale * rows.noise_to, rows.jump_noise)
    return float(max(np.abs(signal[:-1] - rows.signal[1:]).max(), np.abs(noise[:-1] - rows.noise[1:]).max()))


SECTION = """
## The Gaussian law

For data N(0, {variance}) the exact denoiser is known, and it is linear. So a recursion of numbers gives the variance of
a sampler's result. The tests compare the library's scan with this recursion, for these solvers on every kind of table,
and require a difference below 1e-10. UniPC is compared with diffusers and with an exact solution instead.

This is the difference in float64 with {few} steps. The last column is the largest difference between the end of a jump
of RePaint and the signal and noise of the next row (jumps of {length} rows, each stretch walked {times} times).

{differences}

This is the variance after {many} steps. It tends to {variance} as the number of steps grows. On the course's table it
tends to {end:.5f}, because this table ends with the noise of t = 0.

{variances}

Measured by `python scripts/parity_laws.py`.
"""


def section() -> str:
    """Measures the law and returns its section of docs/parity.md."""
    differences, variances = [], []
    with jax.enable_x64(True):
        for name, make in TABLES.items():
            few, many = make(FEW), make(MANY)
            errors = [abs(sampled(solver, few) - recursion(solver, few)) for solver in SOLVERS]
            differences.append((name, *(f"{error:.0e}" if error else "0" for error in (*errors, landing(few)))))
            variances.append((name, *(f"{recursion(solver, many):.5f}" for solver in SOLVERS)))
    head, abar = ("table", *SOLVERS), float(schedule.cosine()[0])
    return SECTION.format(
        variance=VARIANCE, few=FEW, many=MANY, length=JUMP[0], times=JUMP[1], end=abar * VARIANCE + 1 - abar,
        differences=table((*head, "jumps"), differences), variances=table(head, variances),
    )  # fmt: skip


if __name__ == "__main__":
    print(section())
