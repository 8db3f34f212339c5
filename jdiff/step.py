"""Solvers: how an image goes from one level of the table to the next.

Outside jit, a solver computes constants from a table of levels. Its step is then a few products of these constants with
the image, the estimate of the clean image, and noise.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jdiff import checks, keys, schedule
from jdiff import unipc as multistep
from jdiff.types import Array, Column, Estimate, Image, Info, Level, Prediction, Row, Solver, State, as_partial

# Predicts for an image, as a step calls it: (x [h w c], level) -> Prediction.
Denoise = Callable[[Array, Level], Prediction]

KNOWN = 2**31 - 2  # folded into a row's key for the noise on the reference of `condition`
LEAST_VARIANCE = 1e-20  # lower bound before a logarithm, as in DDPM and diffusers


class Constants(NamedTuple):
    """Constants of a one-step method: x' = x0 * (clean estimate) + x * (image) + exp(log variance / 2) * n."""

    x0: Column
    x: Column
    lower: Column  # log variance of the forward process's posterior: the lower bound
    upper: Column  # log variance for data of unit variance: the upper bound
    noisy: Column  # whether the step adds noise; None if no step of the table does


class Multistep(NamedTuple):
    """Constants of a two-step method: x' = x0 * (clean estimate, extrapolated from the last two) + x * (image)."""

    x0: Column
    x: Column
    log_snr: Column  # log(signal / noise)
    half_step: Column  # half of the growth of log_snr; 0 makes the step first order


class Known(NamedTuple):
    """Constants of `condition`: those of its inner solver, and the level after the step."""

    inner: Any  # the constants of another solver
    signal_to: Column
    noise_to: Column


# --- parametrisations: from the network's estimate to the clean image


def noise(estimate: Estimate, x: Estimate, level: Level) -> Estimate:
    """Returns the clean image, from an estimate of the noise: (x - noise eps) / signal (the course's 1.3).

    Args:
        estimate: the network's estimate [h w c].
        x: the noisy image [h w c].
        level: the level of x.

    Example:
        >>> level = Level(0, 0.0, 0.5, 0.5, 1, 0, 1, 0, True)  # signal and noise are 0.5
        >>> noise(jnp.array([1.0]), jnp.array([2.0]), level).item()
        3.0
    """
    return (x - level.noise * estimate) / level.signal


def clean(estimate: Estimate, x: Estimate, level: Level) -> Estimate:
    """Returns the estimate unchanged, for networks that estimate the clean image.

    Args:
        estimate: as in `noise`.
        x: not used.
        level: not used.
    """
    del x, level
    return estimate


def velocity(estimate: Estimate, x: Estimate, level: Level) -> Estimate:
    """Returns the clean image, from an estimate of x0 - eps (Lipman et al. 2023; the course's part B).

    Args:
        estimate: as in `noise`.
        x: as in `noise`.
        level: as in `noise`.

    Example:
        >>> level = Level(0, 0.0, 0.5, 0.5, 1, 0, 1, 0, True)
        >>> velocity(jnp.array([2.0]), jnp.array([2.0]), level).item()  # x0 = 3, eps = 1
        3.0
    """
    return (x + level.noise * estimate) / (level.signal + level.noise)


def v_prediction(estimate: Estimate, x: Estimate, level: Level) -> Estimate:
    """Returns the clean image, from an estimate of signal eps - noise x0 (Salimans and Ho 2022, appendix D).

    Args:
        estimate: as in `noise`.
        x: as in `noise`.
        level: as in `noise`.

    Example:
        >>> level = Level(0, 0.0, 0.5, 0.5, 1, 0, 1, 0, True)
        >>> v_prediction(jnp.array([-1.0]), jnp.array([2.0]), level).item()  # x0 = 3, eps = 1
        3.0
    """
    return (level.signal * x - level.noise * estimate) / (level.signal**2 + level.noise**2)


# --- rules for the estimate of the clean image


def untouched(x0: Estimate) -> Estimate:
    """Returns the clean estimate unchanged, as in the course."""
    return x0


def clip(least: float, most: float, x0: Estimate) -> Estimate:
    """Clips the clean estimate to [least, most]. As an `x0_rule`, write `Partial(clip, -1.0, 1.0)`.

    Args:
        least: smallest value.
        most: largest value.
        x0: clean estimate [h w c].

    Example:
        >>> clip(-1.0, 1.0, jnp.array([0.5, 3.0])).tolist()
        [0.5, 1.0]
    """
    return jnp.clip(x0, least, most)


def threshold(ratio: float = 0.95, maximum: float = 1.5) -> Partial:
    """Returns dynamic thresholding, which brings the clean estimate [h w c] into [-1, 1].

    It computes clip(x0, -s, s) / s, where s is the `ratio` quantile of |x0| over the image, clipped to [1, `maximum`].

    Args:
        ratio: quantile, in [0, 1].
        maximum: largest s. IF uses 1.5 in stage 1 and 1 in stage 2.

    Raises:
        ValueError: `ratio` is outside [0, 1], or `maximum` is below 1.

    Example:
        >>> threshold()(jnp.array([[[0.5], [-3.0]]])).ravel()
        Array([ 0.33333334, -1.        ], dtype=float32)

    Reference:
        Saharia et al. 2022 (Imagen), section 2.3.
    """
    return Partial(_threshold, checks.number("ratio", ratio, 0, 1), checks.number("maximum", maximum, 1))


def _threshold(ratio: float, maximum: float, x0: Array) -> Array:
    s = jnp.clip(jnp.quantile(jnp.abs(x0), jnp.asarray(ratio, x0.dtype)), 1, jnp.asarray(maximum, x0.dtype))
    return jnp.clip(x0, -s, s) / s


# --- the variance of a step


def learned(variance: Array | None, constants: Constants) -> Array:
    """Returns the log variance that the network learned, as a position between the table's bounds; it is not clipped.

    Args:
        variance: the network's learned variance [h w c]: -1 is the lower bound, 1 the upper bound.
        constants: constants of the row.

    Raises:
        ValueError: the network predicts no variance.

    Reference:
        Nichol and Dhariwal 2021 (Improved DDPM), eq. 15.
    """
    if variance is None:
        raise ValueError("variance=learned needs a network that predicts a variance; use step.small or step.large")
    fraction = (variance + 1) / 2
    return fraction * constants.upper + (1 - fraction) * constants.lower


def large(variance: Array | None, constants: Constants) -> Array:
    """Returns the log variance for data of unit variance: beta on variance-preserving tables (DDPM, section 3.2).

    Args:
        variance: not used.
        constants: constants of the row.
    """
    del variance
    return constants.upper


def small(variance: Array | None, constants: Constants) -> Array:
    """Returns the log variance of the forward process's posterior, beta tilde (DDPM, section 3.2).

    Args:
        variance: not used.
        constants: constants of the row.
    """
    del variance
    return constants.lower


# --- solvers


def ddpm(
    variance: Callable[[Array | None, Constants], Array] = learned,
    *,
    x0_rule: Callable[[Array], Array] = untouched,
    predicts: Callable[[Array, Array, Level], Array] = noise,
    draw: Callable[..., Array] = keys.normal,
) -> Solver:
    """Returns ancestral sampling: the posterior mean of the next level given the clean estimate, plus noise.

    It is right on variance-preserving, flow and exploding tables; `variance=learned` on variance-preserving ones only.
    A step to a clean image adds no noise.

    Args:
        variance: `learned`, `large`, `small`, or a function like them.
        x0_rule: function that is applied to the clean estimate: `untouched`, `threshold()`, or a function like them.
        predicts: what the network estimates: `noise`, `clean`, `velocity`, `v_prediction`, or a function like them.
        draw: draws the noise: `(key, shape, dtype) -> array`.

    Example:
        >>> rows = ddpm().table(schedule.levels(schedule.cosine(), range(990, -1, -30)))
        >>> rows.constants.upper[0].round(5).item(), rows.constants.noisy[-1].item()  # t = 990 and 0
        (-0.05479, False)

    Reference:
        Ho et al. 2020 (DDPM), eq. 7, with the beta of a stride; the course's 1.4. The general Gaussian: Kingma et al.
        2021 (VDM), eq. 25 to 27.
    """
    table = Partial(_learned_table if variance is learned else _ddpm_table, as_partial(predicts))
    step = Partial(_step, *map(as_partial, (variance, x0_rule, predicts, draw)))
    return Solver(table, Partial(State), step)


def ddim(
    eta: float = 0.0,
    *,
    x0_rule: Callable[[Array], Array] = untouched,
    predicts: Callable[[Array, Array, Level], Array] = noise,
    draw: Callable[..., Array] = keys.normal,
) -> Solver:
    """Returns DDIM. A step mixes the clean estimate and the noise implied by it in the proportions of the next level.

    The implied noise is computed after `x0_rule`, so x stays signal x0 + noise eps. With eta 0, it is Euler's method on
    flow tables and on exploding ones.

    Args:
        eta: share of fresh noise, in [0, 1]: with 0 no noise is drawn, and 1 is `ddpm` with the `small` variance.
        x0_rule: as in `ddpm`.
        predicts: as in `ddpm`.
        draw: as in `ddpm`.

    Raises:
        ValueError: `eta` is outside [0, 1].

    Example:
        >>> rows = ddim().table(schedule.levels(schedule.cosine(), schedule.leading(10)))
        >>> rows.constants.x0[-1].item(), rows.constants.x[-1].item(), rows.constants.noisy
        (1.0, 0.0, None)

    Reference:
        Song et al. 2021 (DDIM), eq. 12 and 16.
    """
    table = Partial(_ddim_table, checks.number("eta", eta, 0, 1), as_partial(predicts))
    step = Partial(_step, *map(as_partial, (small, x0_rule, predicts, draw)))
    return Solver(table, Partial(State), step)


def dpmpp_2m(
    *,
    x0_rule: Callable[[Array], Array] = untouched,
    predicts: Callable[[Array, Array, Level], Array] = noise,
) -> Solver:
    """Returns DPM-Solver++(2M): a two-step exponential integrator of second order that draws no noise.

    The first row of a table, the step to a clean image, and the first step after a jump are of first order.

    Args:
        x0_rule: as in `ddpm`.
        predicts: as in `ddpm`.

    Example:
        >>> rows = dpmpp_2m().table(schedule.levels(schedule.cosine(), schedule.leading(10)))
        >>> rows.constants.x0[-1].item(), rows.constants.half_step[-1].item()
        (1.0, 0.0)

    Reference:
        Lu et al. 2022 (DPM-Solver++), algorithm 2.
    """
    table = Partial(_multistep_table, as_partial(predicts))
    return Solver(table, Partial(_no_memory), Partial(_multistep, as_partial(x0_rule), as_partial(predicts)))


def unipc(
    order: int = 2,
    *,
    x0_rule: Callable[[Array], Array] = untouched,
    predicts: Callable[[Array, Array, Level], Array] = noise,
) -> Solver:
    """Returns UniPC: a multistep predictor and a corrector, with one network call per step. It draws no noise.

    The first rows, the first ones after a jump, and the last ones are of lower order.

    Args:
        order: order of the predictor: 1, 2 or 3. With the corrector, the method has one order more.
        x0_rule: as in `ddpm`.
        predicts: as in `ddpm`.

    Raises:
        ValueError: `order` is not 1, 2 or 3.

    Example:
        >>> rows = unipc(3).table(schedule.levels(schedule.cosine(), schedule.leading(10)))
        >>> rows.constants.m.shape, rows.constants.own[:2].tolist()
        ((10, 3), [1.0, 0.0])

    Reference:
        Zhao et al. 2023 (UniPC), algorithms 5 and 6 with the clean estimate, B(h) = exp(h) - 1.
    """
    order = checks.whole("order", order, 1, 3)
    table = Partial(partial(_unipc_table, order), as_partial(predicts))
    advance = Partial(multistep.step, as_partial(x0_rule), as_partial(predicts))
    return Solver(table, Partial(partial(multistep.start, order)), advance)


def condition(
    solver: Solver,
    reference: Image,
    component: Callable[[Array], Array],
    *,
    noised: bool = True,
    draw: Callable[..., Array] = keys.normal,
) -> Solver:
    """Returns a solver that replaces one component of the image by that of a reference after each step.

    The component `views.unmasked(mask)` makes it inpainting, `views.low_pass()` an inverse hybrid, and
    `views.grayscale()` colourisation.

    Args:
        solver: any solver.
        reference: image [h w c] in [-1, 1].
        component: linear map of an image.
        noised: whether the reference is noised to the level after the step, with fresh noise each time. Otherwise the
            clean reference is used, at the start too. Both are the same where a step ends at a clean image.
        draw: as in `ddpm`.

    Example:
        >>> from jdiff import views
        >>> half = views.unmasked(jnp.zeros((4, 4)).at[:2].set(1))
        >>> state = condition(ddpm(), jnp.ones((4, 4, 3)), half, noised=False).init(jnp.zeros((4, 4, 3)))
        >>> state.x[:, 0, 0].tolist()
        [0.0, 0.0, 1.0, 1.0]

    Reference:
        Lugmayr et al. 2022 (RePaint), eq. 8; the course's 1.7.2; Geng et al. 2024 (Factorized Diffusion), section 3.6.
        Without `noised`: diffusers' IFInpaintingPipeline.
    """
    put_in = Partial(_put_in, as_partial(component), reference)
    if noised:
        step = Partial(_noised_step, solver.step, put_in, as_partial(draw))
        return Solver(Partial(_known_table, solver.table), solver.init, step)
    return Solver(solver.table, Partial(_known_init, solver.init, put_in), Partial(_known_step, solver.step, put_in))


# --- tables of constants


def _ddpm_table(predicts: Partial, levels: Level) -> Row:
    _check_parametrisation(predicts, levels)
    signal, noise, signal_to, noise_to = levels.signal, levels.noise, levels.signal_to, levels.noise_to
    a, v = schedule.transition(signal, noise, signal_to, noise_to)
    x0, x = signal_to * v / noise**2, a * noise_to**2 / noise**2
    least = noise_to**2 * v / noise**2  # data known exactly
    most = v * (signal_to**2 + noise_to**2) / (signal**2 + noise**2)  # data of unit variance
    lower, upper = (np.log(np.maximum(variance, LEAST_VARIANCE)) for variance in (least, most))
    return Row(levels, Constants(x0, x, lower, upper, _where_noisy(least)))


def _learned_table(predicts: Partial, levels: Level) -> Row:
    power = levels.signal**2 + levels.noise**2
    if not np.allclose(power, 1, rtol=0, atol=1e-6):
        raise ValueError(
            "variance=learned needs a variance-preserving table (signal^2 + noise^2 = 1), "
            f"got a sum of {power[np.abs(power - 1).argmax()]:.6g}; use step.small or step.large"
        )
    return _ddpm_table(predicts, levels)


def _ddim_table(eta: float, predicts: Partial, levels: Level) -> Row:
    _check_parametrisation(predicts, levels)
    _, v = schedule.transition(levels.signal, levels.noise, levels.signal_to, levels.noise_to)
    fresh = eta**2 * levels.noise_to**2 * v / levels.noise**2
    kept = np.sqrt(np.maximum(levels.noise_to**2 - fresh, 0)) / levels.noise  # only rounding makes it negative
    log = np.log(np.maximum(fresh, LEAST_VARIANCE))
    return Row(levels, Constants(levels.signal_to - kept * levels.signal, kept, log, log, _where_noisy(fresh)))


def _multistep_table(predicts: Partial, levels: Level) -> Row:
    _check_parametrisation(predicts, levels)
    schedule.transition(levels.signal, levels.noise, levels.signal_to, levels.noise_to)
    with np.errstate(divide="ignore"):  # pure noise and clean images have an infinite log(signal / noise)
        here, there = (np.log(s / n) for s, n in ((levels.signal, levels.noise), (levels.signal_to, levels.noise_to)))
    second_order = np.isfinite(here) & np.isfinite(there)
    half_step = np.where(second_order, (np.where(second_order, there, 0) - np.where(second_order, here, 0)) / 2, 0.0)
    x = levels.noise_to / levels.noise
    log_snr = np.where(np.isfinite(here), here, np.finfo(np.float32).min)
    return Row(levels, Multistep(levels.signal_to - x * levels.signal, x, log_snr, half_step))


def _unipc_table(order: int, predicts: Partial, levels: Level) -> Row:
    _check_parametrisation(predicts, levels)
    schedule.transition(levels.signal, levels.noise, levels.signal_to, levels.noise_to)
    return multistep.table(order, levels)


def _known_table(table: Partial, levels: Level) -> Row:
    rows = table(levels)
    return Row(rows.level, Known(rows.constants, levels.signal_to, levels.noise_to))


def _where_noisy(variance: np.ndarray) -> np.ndarray | None:
    """Returns which steps add noise; None if none does, so that no noise is drawn."""
    noisy = variance > 0
    return noisy if noisy.any() else None


def _check_parametrisation(predicts: Partial, levels: Level) -> None:
    if predicts.func is noise and (levels.signal == 0).any():
        raise ValueError(
            "predicts=noise needs a table with signal above 0, because it divides by the signal, "
            f"got 0 in row {int(np.argmin(levels.signal))}; use another table or parametrisation"
        )


# --- steps


def _step(
    variance: Partial, x0_rule: Partial, predicts: Partial, draw: Partial, key: Array, state: State, row: Row,
    denoise: Denoise,
) -> tuple[State, Info]:  # fmt: skip
    level, c = row
    prediction = denoise(state.x, level)
    x0 = x0_rule(predicts(prediction.estimate, state.x, level))
    x = c.x0 * x0 + c.x * state.x
    if c.noisy is not None:
        # a learned variance may overflow where no noise is added, and 0 * inf is NaN
        deviation = jnp.where(c.noisy, jnp.exp(variance(prediction.variance, c) / 2), 0)
        x = x + deviation * draw(key, state.x.shape, state.x.dtype)
    return State(x, state.memory), Info(x0, prediction)


def _no_memory(x: Array) -> State:
    return State(x, (jnp.zeros_like(x), jnp.full((), -jnp.inf, x.dtype)))


def _multistep(
    x0_rule: Partial, predicts: Partial, key: Array, state: State, row: Row, denoise: Denoise
) -> tuple[State, Info]:
    del key
    level, c = row
    prediction = denoise(state.x, level)
    x0 = x0_rule(predicts(prediction.estimate, state.x, level))
    x0_before, log_snr_before = state.memory
    gap = c.log_snr - log_snr_before  # infinite in the first row, and not positive after a jump
    x0_ahead = x0 + jnp.where(gap > 0, c.half_step / gap, 0) * (x0 - x0_before)
    return State(c.x0 * x0_ahead + c.x * state.x, (x0, c.log_snr)), Info(x0, prediction)


def _put_in(component: Partial, reference: Array, x: Array, signal: Array | int, fresh: Array | int) -> Array:
    """Returns `x` with its component replaced by that of signal * reference + fresh."""
    return x - component(x) + component(signal * reference.astype(x.dtype) + fresh)


def _noised_step(
    inner: Partial, put_in: Partial, draw: Partial, key: Array, state: State, row: Row, denoise: Denoise
) -> tuple[State, Info]:
    c: Known = row.constants
    state, info = inner(key, state, Row(row.level, c.inner), denoise)
    fresh = c.noise_to * draw(keys.fold_in(key, KNOWN), state.x.shape, state.x.dtype)
    return state._replace(x=put_in(state.x, c.signal_to, fresh)), info


def _known_init(init: Partial, put_in: Partial, x: Array) -> State:
    state = init(x)
    return state._replace(x=put_in(state.x, 1, 0))


def _known_step(
    inner: Partial, put_in: Partial, key: Array, state: State, row: Row, denoise: Denoise
) -> tuple[State, Info]:
    state, info = inner(key, state, row, denoise)
    return state._replace(x=put_in(state.x, 1, 0)), info
