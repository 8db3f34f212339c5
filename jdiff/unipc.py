"""UniPC: the constants of a multistep predictor with a corrector, and its step. `jdiff.step.unipc` is the solver.

A step is linear in the image and in the last few clean estimates m. So all coefficients are computed once, in float64,
from h, the growth of log(signal / noise) in a step.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jdiff.types import Array, Column, Info, Level, Row, State


class Constants(NamedTuple):
    """Constants of one row, for an image x, clean estimates m (the newest first), and x and m of the row before."""

    own: Column  # the corrected image is own x + x_before (x before) + new m[0] + m_before . (m before)
    x_before: Column
    new: Column
    m_before: Column  # [order]
    x: Column  # the next image is x (corrected image) + m . m
    m: Column  # [order]


def table(order: int, levels: Level) -> Row:
    """Returns the constants of every row. The history is empty after a jump, and the last rows are of lower order.

    Args:
        order: order of the predictor.
        levels: table [n].
    """
    n = len(levels.t)
    with np.errstate(divide="ignore"):  # pure noise and clean images have an infinite log(signal / noise)
        here, there = (np.log(s / v) for s, v in ((levels.signal, levels.noise), (levels.signal_to, levels.noise_to)))
    jumps = (levels.jump_scale != 1) | (levels.jump_noise != 0)
    own, x_before, new, m_before = np.ones(n), np.zeros(n), np.zeros(n), np.zeros((n, order))
    x, m = np.zeros(n), np.zeros((n, order))
    last = 0  # order of the previous row's prediction, which the correction has too
    first = 0  # first row of the history
    for i in range(n):
        if i and (jumps[i - 1] or not np.isfinite(here[i - 1])):
            first = i
        history = here[first : i + 1][::-1][:order]
        if i > first:
            own[i] = 0
            x_before[i], estimates, new[i] = coefficients(levels, i - 1, here[first:i][::-1][:last], corrected=True)
            m_before[i, : len(estimates)] = estimates
        if np.isfinite(here[i]) and np.isfinite(there[i]):
            last = min(len(history), n - i)
        else:
            last = 1  # only first order is possible where log(signal / noise) is infinite
        x[i], estimates, _ = coefficients(levels, i, history[:last], corrected=False)
        m[i, : len(estimates)] = estimates
    return Row(levels, Constants(own, x_before, new, m_before, x, m))


def coefficients(level: Level, i: int, log_snr: np.ndarray, *, corrected: bool) -> tuple[float, np.ndarray, float]:
    """Returns the coefficients of the image, of the clean estimates, and of the estimate at the end of the step.

    Args:
        level: the table.
        i: row of the step.
        log_snr: log(signal / noise) of row i and the rows before it, the newest first: as many as the order.
        corrected: whether the estimate at the end of the step is known. If not, its coefficient is 0.

    Reference:
        Zhao et al. 2023 (UniPC), eq. 3 and 9, theorem 3.1, for an estimate of the clean image; B(h) = exp(h) - 1.
    """
    signal_to, noise_to = level.signal_to[i], level.noise_to[i]
    scale = noise_to / level.noise[i]
    if noise_to == 0 or not np.isfinite(log_snr[0]):
        return scale, np.array([signal_to - scale * level.signal[i]]), 0.0
    h = np.log(signal_to / noise_to) - log_snr[0]
    growth = np.expm1(-h)
    places = (log_snr[1:] - log_snr[0]) / h  # positions of the older estimates, in steps
    nodes = np.append(places, 1.0) if corrected else places
    weights = np.linalg.solve(np.vander(nodes, increasing=True).T, moments(h, len(nodes))) if len(nodes) else nodes
    if len(nodes) == 1:
        weights = np.array([0.5])  # as in the paper; equal to second order
    parts = -signal_to * growth * weights  # coefficients of (m at a node - m[0]) / node
    old = parts[: len(places)] / places
    new = parts[-1] if corrected else 0.0
    return scale, np.append(-signal_to * growth - old.sum() - new, old), new


def moments(h: float, count: int) -> np.ndarray:
    """Returns b_k = k! phi_k+1(-h) (-h) / (exp(-h) - 1) for k = 1 .. count, with the phi of exponential integrators.

    Args:
        h: growth of log(signal / noise) in the step.
        count: how many of them.

    Example:
        >>> moments(1e-3, 2).round(2).tolist()
        [0.5, 0.33]
    """
    phi, found = np.expm1(-h) / -h, []
    for k in range(1, count + 1):
        phi = (phi - 1 / math.factorial(k)) / -h
        found.append(math.factorial(k) * phi * -h / np.expm1(-h))
    return np.array(found)


def start(order: int, x: Array) -> State:
    """Returns the state before the first row.

    Args:
        order: order of the predictor.
        x: image [h w c] to start from.
    """
    return State(x, (jnp.zeros_like(x), jnp.zeros((order, *x.shape), x.dtype)))


def step(
    x0_rule: Partial, predicts: Partial, key: Array, state: State, row: Row, denoise: Partial
) -> tuple[State, Info]:
    """Corrects the image by the newest clean estimate, and predicts the next image. The arguments are a solver's."""
    del key
    level, c = row
    x_before, m_before = state.memory
    prediction = denoise(state.x, level)
    x0 = x0_rule(predicts(prediction.estimate, state.x, level))
    weigh = lambda weights, m: jnp.tensordot(weights, m, 1, precision="highest")
    x = c.own * state.x + c.x_before * x_before + c.new * x0 + weigh(c.m_before, m_before)
    m = jnp.concatenate([x0[None], m_before[:-1]])
    return State(c.x * x + weigh(c.m, m), (x, m)), Info(x0, prediction)
