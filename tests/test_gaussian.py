"""Data N(0, s^2) and their exact denoiser: the solvers have the right variance on every kind of table."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import combine, keys, sample, schedule, step
from jdiff.types import Prediction

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
import parity_laws as laws  # noqa: E402  # pyright: ignore[reportMissingImports]

PAIRS = [(solver, table) for solver in laws.SOLVERS for table in laws.TABLES]
# Where the variance tends to: the course's table ends at the noise of t = 0.
ABAR = schedule.cosine()[0]
ENDS = {"variance-preserving, the course's end": ABAR * laws.VARIANCE + 1 - ABAR}


@pytest.mark.parametrize(("solver", "table"), PAIRS)
def test_the_scan_has_the_variance_of_the_scalar_recursion(solver, table, x64):
    levels = laws.TABLES[table](12)
    assert laws.sampled(solver, levels) == pytest.approx(laws.recursion(solver, levels), abs=1e-10)


@pytest.mark.parametrize(("solver", "table"), PAIRS)
def test_the_variance_tends_to_the_datas(solver, table):
    errors = [
        abs(laws.recursion(solver, laws.TABLES[table](n)) - ENDS.get(table, laws.VARIANCE)) for n in (20, 80, 320)
    ]
    assert errors[0] > errors[1] > 2.5 * errors[2] or max(errors) < 1e-6  # four times the steps: first order is 4


@pytest.mark.parametrize("table", laws.TABLES)
def test_the_page_shows_the_variances(table):
    page = (Path(__file__).resolve().parents[1] / "docs" / "parity.md").read_text()
    variances = [f"{laws.recursion(solver, laws.TABLES[table](laws.MANY)):.5f}" for solver in laws.SOLVERS]
    assert f"| {table} | {' | '.join(variances)} |" in page


def test_a_table_of_known_values():
    """Variances that were computed by hand: cosine schedule, 50 steps in diffusers' spacing."""
    levels = schedule.levels(schedule.cosine(), schedule.leading(50))
    want = {"ddim": 0.2353, "ddpm, small": 0.2188, "ddpm, large": 0.2593}
    levels = levels._replace(signal=levels.signal.copy(), noise=levels.noise.copy())
    # these started from variance 1, not from the first level's own
    found = {}
    for name in want:
        x = 1.0
        for i in range(50):
            at = sample.one(levels, i)
            p, q, fresh = laws.SOLVERS[name].moments(at)
            x = (p * laws.gain(at) + q) ** 2 * x + fresh
        found[name] = round(x, 4)
    assert found == want


@pytest.mark.parametrize("table", [name for name in laws.TABLES if name.startswith("variance-preserving")])
@pytest.mark.parametrize(("variance", "bound"), [(-1.0, "small"), (1.0, "large")])
def test_a_learned_variance_at_its_bounds_is_the_small_or_the_large(table, variance, bound):
    levels = laws.TABLES[table](9)
    image_keys = sample.image_keys(jax.random.key(0), 2)
    x = sample.start(image_keys, (4, 4, 3))
    prompt = combine.conditional(jnp.zeros((1, 1)))
    network = lambda x, t, told: Prediction(0.3 * x, jnp.full_like(x, variance))
    learned, fixed = (
        sample.sample(network, image_keys, x, levels, combiner=prompt, solver=step.ddpm(rule)).images
        for rule in (step.learned, getattr(step, bound))
    )
    np.testing.assert_allclose(learned, fixed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("table", laws.TABLES)
@pytest.mark.parametrize(("jump_length", "times"), [(1, 3), (4, 2), (5, 5)])
def test_a_jump_lands_on_the_next_rows_distribution(table, jump_length, times):
    levels = schedule.resample(laws.TABLES[table](12), jump_length, times)
    signal = levels.jump_scale * levels.signal_to
    noise = np.hypot(levels.jump_scale * levels.noise_to, levels.jump_noise)
    np.testing.assert_allclose(signal[:-1], levels.signal[1:], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(noise[:-1], levels.noise[1:], rtol=1e-12)
    assert (levels.jump_scale[-1], levels.jump_noise[-1]) == (1, 0)
    assert (levels.jump_scale != 1).sum() > 0 or table.startswith("exploding")


@pytest.mark.parametrize("table", laws.TABLES)
def test_sampling_with_jumps_ends_at_the_datas_variance(table):
    """The whole scan with its own noise: the variance of 4,096 numbers is 0.25, within a few standard errors."""
    levels = schedule.resample(laws.TABLES[table](40), 10, 2)
    image_keys = keys.image_keys(jax.random.key(1), 16)
    start = np.sqrt(levels.signal[0] ** 2 * laws.VARIANCE + levels.noise[0] ** 2)
    x = start * sample.start(image_keys, (16, 16, 1))
    told = combine.conditional(jnp.stack([levels.signal, levels.noise], axis=-1))
    solver = step.ddpm(step.small, predicts=step.clean)
    numbered = levels._replace(t=np.arange(len(levels.t), dtype=np.float64))
    made = sample.sample(laws.denoise, image_keys, x, numbered, combiner=told, solver=solver).images
    bias = laws.recursion("ddpm, small", laws.TABLES[table](40)) - laws.VARIANCE
    assert abs(float(made.var()) - laws.VARIANCE - bias) < 5 * laws.VARIANCE * np.sqrt(2 / made.size) + 0.01


@pytest.mark.parametrize(
    ("make", "levels", "message"),
    [
        (lambda: step.ddpm(), laws.TABLES["flow"](4), "variance=learned needs a variance-preserving table"),
        (lambda: step.ddpm(step.small), laws.TABLES["flow"](4), "predicts=noise needs a table with signal above 0"),
        (lambda: step.ddim(), laws.TABLES["flow"](4), "predicts=noise needs a table with signal above 0"),
        (lambda: step.dpmpp_2m(), laws.TABLES["flow"](4), "predicts=noise needs a table with signal above 0"),
        (lambda: step.ddim(2.0), laws.TABLES["flow"](4), "eta must be a finite number between 0 and 1, got 2.0"),
        (
            lambda: step.ddim(predicts=step.clean),
            jax.tree.map(lambda a: a[::-1], schedule.exploding([9.0, 3.0, 1.0]))._replace(
                noise=np.array([1.0, 3.0]), noise_to=np.array([3.0, 9.0])
            ),
            "every step of a table must lead to a level with a higher ratio of signal to noise",
        ),
    ],
)
def test_a_solver_refuses_a_table_that_it_is_not_valid_for(make, levels, message):
    with pytest.raises(ValueError, match=message):
        make().table(levels)


def test_constants_that_are_not_finite_are_refused_for_every_solver():
    broken = lambda levels: step.ddim().table(levels)._replace(constants=step.Constants(*[np.full(4, np.nan)] * 5))
    solver = step.ddim()._replace(table=jax.tree_util.Partial(broken))
    image_keys = sample.image_keys(jax.random.key(0), 1)
    levels = schedule.levels(schedule.cosine(), schedule.leading(4))
    with pytest.raises(ValueError, match="the solver's constants must be finite, got nan in row 0"):
        sample.sample(
            lambda x, t, told: Prediction(x), image_keys, jnp.zeros((1, 4, 4, 3)), levels,
            combiner=combine.conditional(jnp.zeros((1, 1))), solver=solver,
        )  # fmt: skip


@pytest.mark.parametrize("end", [1.0, "own"])
@pytest.mark.parametrize("make", [lambda: step.ddpm(), lambda: step.ddim(1.0), lambda: step.ddim(), step.dpmpp_2m])
def test_a_last_step_that_leads_nowhere_changes_nothing(make, end):
    """A table that ends at abar[0] and whose last row is t = 0 has a step from a level to itself."""
    abar = schedule.cosine()
    levels = schedule.levels(abar, [0], abar[0] if end == "own" else end)
    image_keys = sample.image_keys(jax.random.key(0), 1)
    x = jnp.ones((1, 4, 4, 3))
    network = lambda x, t, told: Prediction(0 * x, 0 * x)
    made = sample.sample(
        network, image_keys, x, levels, combiner=combine.conditional(jnp.zeros((1, 1))), solver=make()
    ).images
    np.testing.assert_allclose(made, x if end == "own" else x / np.sqrt(abar[0]), rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: step.ddpm(),
        lambda: step.ddpm(x0_rule=step.threshold()),
        lambda: step.condition(step.ddpm(), jnp.zeros((4, 4, 3)), lambda x: 0.5 * x),
    ],
)
def test_a_variance_that_overflows_does_not_matter_where_no_noise_is_added(make):
    """0 * exp(overflow) is NaN. The last step to a clean image must be finite for every learned variance."""
    wild = lambda x, t, told: Prediction(x * 0, x * 0 + jnp.where(t == 0, 400.0, 0.0)[:, None, None, None])
    image_keys = sample.image_keys(jax.random.key(0), 1)
    made = sample.sample(
        wild, image_keys, jnp.zeros((1, 4, 4, 3)), schedule.levels(schedule.cosine(), [500, 0]),
        combiner=combine.conditional(jnp.zeros((1, 1))), solver=make(),
    )  # fmt: skip
    assert np.isfinite(made.images).all()
