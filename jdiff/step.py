"""Solvers: how an image goes from one level of the table to the next."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jdiff.types import Array, Info, Level, Row, Solver, State, as_partial


class Constants(NamedTuple):
    """x' = x0 * (clean estimate) + x * (image) + noisy * exp(log variance / 2) * n."""

    x0: Any
    x: Any
    lower: Any  # log variance: the least, of the posterior
    upper: Any  # log variance: the most, of the forward step
    noisy: Any  # 0 where the step adds no noise


class Multistep(NamedTuple):
    """x' = x0 * (clean estimate, led on by the last one) + x * (image)."""

    x0: Any
    x: Any
    log_snr: Any  # log(signal / noise)
    half_step: Any  # half of what it grows by; 0 where the result is clean


KNOWN = 2**31 - 2  # what a row's key is folded with for the noise of what is known


def noise(estimate: Array, x: Array, level: Level) -> Array:
    """The clean image that an estimate of the noise means: (x - noise eps) / signal (course 1.3)."""
    return (x - level.noise * estimate) / level.signal


def clean(estimate: Array, x: Array, level: Level) -> Array:
    """The clean image that an estimate of the clean image means: itself."""
    del x, level
    return estimate


def velocity(estimate: Array, x: Array, level: Level) -> Array:
    """The clean image that an estimate of (clean image - noise) means (Lipman et al. 2023; course part B)."""
    return (x + level.noise * estimate) / (level.signal + level.noise)


def untouched(x0: Array) -> Array:
    """The clean estimate [h w c] as it is, as the course has it."""
    return x0


def clip(least: float, most: float, x0: Array) -> Array:
    """The clean estimate [h w c] held within [`least`, `most`]; `Partial(clip, -1.0, 1.0)` is a rule."""
    return jnp.clip(x0, least, most)


def threshold(ratio: float = 0.95, maximum: float = 1.5) -> Partial:
    """Dynamic thresholding: a rule that brings the clean estimate [h w c] into [-1, 1].

    s = the `ratio` quantile of |x0| over the image, held within [1, `maximum`]; then clip(x0, -s, s) / s.

    >>> threshold()(jnp.array([[[0.5], [-3.0]]])).ravel()
    Array([ 0.33333334, -1.        ], dtype=float32)

    Source: Saharia et al. 2022 (Imagen), section 2.3; `maximum` is 1.5 in IF's stage 1 and 1 in stage 2.
    """
    return Partial(_threshold, ratio, maximum)


def _threshold(ratio: Any, maximum: Any, x0: Array) -> Array:
    s = jnp.clip(jnp.quantile(jnp.abs(x0), jnp.asarray(ratio, x0.dtype)), 1, jnp.asarray(maximum, x0.dtype))
    return jnp.clip(x0, -s, s) / s


def learned(variance: Array | None, constants: Constants) -> Array:
    """Log variance between the table's bounds by the network's own -1..1, not clipped (Improved DDPM, eq. 15)."""
    if variance is None:
        raise ValueError("variance=learned needs a network that predicts it; accepted here are large and small")
    fraction = (variance + 1) / 2
    return fraction * constants.upper + (1 - fraction) * constants.lower


def large(variance: Array | None, constants: Constants) -> Array:
    """Log variance of the forward step, beta (DDPM, section 3.2)."""
    del variance
    return constants.upper


def small(variance: Array | None, constants: Constants) -> Array:
    """Log variance of the forward process's posterior, beta tilde (DDPM, section 3.2)."""
    del variance
    return constants.lower


def ddpm(
    variance: Callable = learned,
    *,
    x0_rule: Callable = untouched,
    predicts: Callable = noise,
    draw: Callable = jax.random.normal,
) -> Solver:
    """Ancestral sampling: the posterior mean of the next level given the clean estimate, plus noise of `variance`.

    `variance` is `learned`, `large`, `small` or a function like them; `x0_rule` is applied to the clean estimate
    (`untouched`, `threshold()`); `predicts` says what the network estimates (`noise`, `clean`, `velocity`); `draw(key,
    shape, dtype)` makes the noise. A step to a clean image adds none.

    >>> from jdiff import schedule
    >>> rows = ddpm().table(schedule.levels(schedule.cosine(), range(990, -1, -30)))
    >>> rows.constants.upper[0].round(5).item(), rows.constants.noisy[-1].item()  # t = 990 and 0
    (-0.05479, 0.0)

    Source: Ho et al. 2020 (DDPM), eq. 7, with the strided beta; course 1.4.
    """
    step = Partial(_step, *map(as_partial, (variance, x0_rule, predicts, draw)))
    return Solver(Partial(_ddpm_table), Partial(State), step)


def ddim(
    eta: float = 0.0, *, x0_rule: Callable = untouched, predicts: Callable = noise, draw: Callable = jax.random.normal
) -> Solver:
    """The clean estimate and the noise that it implies, mixed anew for the next level; no fresh noise at eta 0.

    eta 1 has DDPM's small variance. On a table with signal = t, noise = 1 - t it is Euler's method for flow models.
    The noise is taken from the estimate after `x0_rule`, so that the image stays a mixture of the two.

    >>> from jdiff import schedule
    >>> rows = ddim().table(schedule.levels(schedule.cosine(), schedule.leading(10)))
    >>> rows.constants.x0[-1].item(), rows.constants.x[-1].item()
    (1.0, 0.0)

    Source: Song et al. 2021 (DDIM), eq. 12 and 16.
    """
    step = Partial(_step, *map(as_partial, (small, x0_rule, predicts, draw)))
    return Solver(Partial(_ddim_table, eta), Partial(State), step)


def dpmpp_2m(*, x0_rule: Callable = untouched, predicts: Callable = noise) -> Solver:
    """Two-step exponential integrator for clean estimates: second order, no fresh noise.

    The first row of any slice, the step to a clean image and the first after a jump upwards are of first order.

    >>> from jdiff import schedule
    >>> rows = dpmpp_2m().table(schedule.levels(schedule.cosine(), schedule.leading(10)))
    >>> rows.constants.x0[-1].item(), rows.constants.half_step[-1].item()
    (1.0, 0.0)

    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2.
    """
    return Solver(
        Partial(_multistep_table), Partial(_nothing_yet), Partial(_multistep, as_partial(x0_rule), as_partial(predicts))
    )


class Known(NamedTuple):
    """What `condition` adds to a row: the row's own constants, and the level that it leads to."""

    inner: Any
    signal_to: Any
    noise_to: Any


def condition(
    solver: Solver, reference: Array, component: Callable, *, noised: bool = True, draw: Callable = jax.random.normal
) -> Solver:
    """`solver`, after each step of which `component` of the image is that of `reference` [h w c] in [-1, 1].

    `component` is a linear map of an image: `views.unmasked(mask)` is inpainting, `views.low_pass()` the inverse
    hybrid, `views.grayscale()` colourisation. With `noised` the reference is noised to the level that the step led to,
    anew each time; without, it is put in as it is, at the start too. On a step to a clean image the two are one.

    >>> from jdiff import views
    >>> reference = jnp.ones((4, 4, 3))
    >>> half = views.unmasked(jnp.zeros((4, 4)).at[:2].set(1))
    >>> state = condition(ddpm(), reference, half, noised=False).init(jnp.zeros((4, 4, 3)))
    >>> state.x[:, 0, 0].tolist()
    [0.0, 0.0, 1.0, 1.0]

    Source: Lugmayr et al. 2022 (RePaint), eq. 8; course 1.7.2; Geng et al. 2024 (Factorized Diffusion), section 3.6;
    diffusers' IFInpaintingPipeline without `noised`.
    """
    put_in = Partial(_put_in, as_partial(component), reference)
    if noised:
        return Solver(
            Partial(_known_table, solver.table),
            solver.init,
            Partial(_noised_step, solver.step, put_in, as_partial(draw)),
        )
    return Solver(solver.table, Partial(_known_init, solver.init, put_in), Partial(_known_step, solver.step, put_in))


def _put_in(component: Partial, reference: Array, x: Array, signal: Any, fresh: Any) -> Array:
    """`x` with `component` of signal reference + fresh in the place of its own."""
    return x - component(x) + component(signal * reference.astype(x.dtype) + fresh)


def _known_table(table: Partial, levels: Level) -> Row:
    rows = table(levels)
    return Row(rows.level, Known(rows.constants, levels.signal_to, levels.noise_to))


def _noised_step(inner: Partial, put_in: Partial, draw: Partial, key, state: State, row: Row, denoise):
    c: Known = row.constants
    state, info = inner(key, state, Row(row.level, c.inner), denoise)
    fresh = c.noise_to * draw(jax.random.fold_in(key, KNOWN), state.x.shape, state.x.dtype)
    return state._replace(x=put_in(state.x, c.signal_to, fresh)), info


def _known_init(init: Partial, put_in: Partial, x: Array) -> State:
    state = init(x)
    return state._replace(x=put_in(state.x, 1, 0))


def _known_step(inner: Partial, put_in: Partial, key, state: State, row: Row, denoise):
    state, info = inner(key, state, row, denoise)
    return state._replace(x=put_in(state.x, 1, 0)), info


def _ddpm_table(levels: Level) -> Row:
    abar, abar_to = levels.signal**2, levels.signal_to**2
    left, left_to = levels.noise**2, levels.noise_to**2
    alpha = abar / abar_to
    beta = 1 - alpha
    x0, x = levels.signal_to * beta / left, np.sqrt(alpha) * left_to / left
    lower, upper = np.log(np.maximum(beta * left_to / left, 1e-20)), np.log(beta)
    return Row(levels, Constants(x0, x, lower, upper, (levels.noise_to > 0).astype(np.float64)))


def _ddim_table(eta: float, levels: Level) -> Row:
    beta = 1 - (levels.signal / levels.signal_to) ** 2
    fresh = eta**2 * (levels.noise_to / levels.noise) ** 2 * beta
    kept = np.sqrt(levels.noise_to**2 - fresh) / levels.noise
    log = np.log(np.maximum(fresh, 1e-20))
    return Row(levels, Constants(levels.signal_to - kept * levels.signal, kept, log, log, (fresh > 0).astype(float)))


def _multistep_table(levels: Level) -> Row:
    with np.errstate(divide="ignore"):
        here, there = (np.log(s / n) for s, n in ((levels.signal, levels.noise), (levels.signal_to, levels.noise_to)))
    half_step = np.where(np.isfinite(there), (there - here) / 2, 0.0)
    x = levels.noise_to / levels.noise
    return Row(levels, Multistep(levels.signal_to - x * levels.signal, x, here, half_step))


def _nothing_yet(x: Array) -> State:
    return State(x, (jnp.zeros_like(x), jnp.full((), -jnp.inf, x.dtype)))


def _multistep(x0_rule, predicts, key, state: State, row: Row, denoise) -> tuple[State, Info]:
    del key
    level, c = row
    prediction = denoise(state.x, level)
    x0 = x0_rule(predicts(prediction.estimate, state.x, level))
    x0_before, log_snr_before = state.memory
    gap = c.log_snr - log_snr_before  # infinite at first; not positive after a jump upwards
    x0_line = x0 + jnp.where(gap > 0, c.half_step / gap, 0) * (x0 - x0_before)
    return State(c.x0 * x0_line + c.x * state.x, (x0, c.log_snr)), Info(x0, prediction)


def _step(variance, x0_rule, predicts, draw, key, state: State, row: Row, denoise) -> tuple[State, Info]:
    level, c = row
    prediction = denoise(state.x, level)
    x0 = x0_rule(predicts(prediction.estimate, state.x, level))
    deviation = c.noisy * jnp.exp(variance(prediction.variance, c) / 2)
    x = c.x0 * x0 + c.x * state.x + deviation * draw(key, state.x.shape, state.x.dtype)
    return State(x, state.memory), Info(x0, prediction)
