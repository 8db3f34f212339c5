"""UniPC: equal to diffusers' scheduler, of its order on every kind of table, and right around jumps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import combine, sample, schedule, step, unipc
from jdiff.types import Prediction

SHAPE = (2, 2, 3)
SPREAD = 0.5  # standard deviation of the data, which are Gaussian around 0.2
MEAN = 0.2


def exact(signal_of):
    """The best clean estimate for Gaussian data: its mean given x."""

    def denoise(x, t, told):
        signal, noise = signal_of(t)
        gain = signal * SPREAD**2 / (signal**2 * SPREAD**2 + noise**2)
        shape = (-1, 1, 1, 1)
        return Prediction(MEAN + gain.reshape(shape) * (x - signal.reshape(shape) * MEAN))

    return denoise


def smooth(t):
    """A variance-preserving schedule without corners: t from 0 (clean) to 1 (noise)."""
    angle = t * (np.pi / 2 - 0.1) + 0.02
    return jnp.cos(angle), jnp.sin(angle)


TABLES = {  # (signal, noise) at t in [0, 1]
    "variance-preserving": smooth,
    "flow": lambda t: (1 - 0.9 * t - 0.05, 0.9 * t + 0.05),
    "exploding": lambda t: (jnp.ones_like(t), 0.05 * 200.0**t),
}


def levels_of(name, n):
    """n steps from t = 1 to t = 0, at each of which the network is told t."""
    t = np.linspace(1, 0, n + 1)
    with jax.enable_x64(True):
        signal, noise = (np.asarray(a, np.float64) for a in TABLES[name](jnp.asarray(t)))
    ones, zeros = np.ones(n), np.zeros(n)
    return schedule.Level(
        np.arange(n), t[:-1], signal[:-1], noise[:-1], signal[1:], noise[1:], ones, zeros, ones.astype(bool)
    )


def walk(solver, levels, denoise, x):
    keys = sample.image_keys(jax.random.key(0), 1)
    prompt = combine.conditional(jnp.zeros((1, 1)))
    return np.asarray(sample.sample(denoise, keys, x, levels, combiner=prompt, solver=solver).images)


def solution(name, x):
    """Where the probability flow takes x from t = 1 to t = 0: Gaussians stay Gaussians, at the same quantile."""
    (s1, n1), (s0, n0) = (map(float, TABLES[name](jnp.asarray(t))) for t in (1.0, 0.0))
    wide, narrow = (np.hypot(s * SPREAD, n) for s, n in ((s1, n1), (s0, n0)))
    return s0 * MEAN + narrow / wide * (x - s1 * MEAN)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_whole_scan_arrives_where_the_flow_does(order, name):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (1, *SHAPE), jnp.float64) * (10 if name == "exploding" else 1)
        solver = step.unipc(order, predicts=step.clean)
        errors = [
            np.abs(walk(solver, levels_of(name, n), exact(TABLES[name]), x) - solution(name, np.asarray(x))).max()
            for n in (20, 160)
        ]
    assert errors[1] < 1e-3 and errors[1] < errors[0] / 8, errors  # the first and last rows are of lower order


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_one_step_is_of_its_order(order, corrected):
    """From exact images and estimates the error of a step of h falls with h to order + 1, corrected to order + 2."""
    lengths, errors = np.array([0.2, 0.1, 0.05]), []
    for h in lengths:
        log_snr = 0.3 - h * np.arange(order)  # of the row, and of those before it
        ahead = np.append(log_snr, 0.3 + h)
        signal = 1 / np.sqrt(1 + np.exp(-2 * ahead))
        noise = signal * np.exp(-ahead)
        wide = np.hypot(signal * SPREAD, noise)  # an image stays at its quantile; let that be 1
        x = signal * MEAN + wide
        m = MEAN + signal * SPREAD**2 / wide
        level = schedule.Level(*[np.zeros(1)] * 2, signal[:1], noise[:1], signal[-1:], noise[-1:], *[np.ones(1)] * 3)
        scale, estimates, new = unipc.coefficients(level, 0, log_snr, corrected=corrected)
        assert corrected or new == 0
        errors.append(abs(scale * x[0] + estimates @ m[:-1] + new * m[-1] - x[-1]))
    slope = np.polyfit(np.log(lengths), np.log(errors), 1)[0]
    assert abs(slope - (order + 1 + corrected)) < 0.35, (slope, errors)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # of torch
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 25])
def test_equal_to_diffusers(order, n):
    torch = pytest.importorskip("torch", reason="the oracle needs the extra torch")
    diffusers = pytest.importorskip("diffusers", reason="the oracle needs the extra torch")
    peer = diffusers.UniPCMultistepScheduler(
        solver_order=order, solver_type="bh2", beta_schedule="linear", timestep_spacing="leading",
        final_sigmas_type="zero", predict_x0=True, thresholding=False,
    )  # fmt: skip
    peer.set_timesteps(n)
    abar = np.asarray(peer.alphas_cumprod, np.float64)
    timesteps = peer.timesteps.numpy()
    with jax.enable_x64(True):
        signal, noise = jnp.sqrt(jnp.asarray(abar)), jnp.sqrt(1 - jnp.asarray(abar))
        at = lambda t: (signal[t.astype(int)], noise[t.astype(int)])
        clean = exact(at)

        def eps(x, t, told):
            s, v = (a.reshape(-1, 1, 1, 1) for a in at(t))
            return Prediction((x - s * clean(x, t, told).estimate) / v)

        x = jax.random.normal(jax.random.key(2), (1, *SHAPE), jnp.float64)
        got = walk(step.unipc(order), schedule.levels(abar, timesteps), eps, x)
        y = torch.from_numpy(np.array(x))
        for t in timesteps:
            estimate = eps(jnp.asarray(y.numpy()), jnp.full(1, t), None).estimate
            y = peer.step(torch.from_numpy(np.array(estimate)), int(t), y, return_dict=False)[0]
    # the scheduler holds its schedule in float32
    np.testing.assert_allclose(got, y.numpy(), rtol=0, atol=2e-6)


def test_history_begins_anew_after_a_jump():
    """After a jump to noise the rows are those of a table that begins there."""
    levels = schedule.levels(schedule.cosine(), schedule.leading(12))
    jumping = schedule.resample(levels, 4, 2)
    rows = step.unipc(3).table(jumping).constants
    starts = 1 + np.flatnonzero((jumping.jump_scale != 1) | (jumping.jump_noise != 0))
    assert len(starts)
    for i in starts:
        later = step.unipc(3).table(sample.from_row(jumping, int(i))).constants
        for name in rows._fields:
            np.testing.assert_array_equal(getattr(rows, name)[i:], getattr(later, name))


@pytest.mark.parametrize("order", [0, 4, 1.5])
def test_other_orders_are_refused(order):
    with pytest.raises(ValueError, match=f"order must be a whole number between 1 and 3, got {order}"):
        step.unipc(order)
