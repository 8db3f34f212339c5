"""Schedules and timesteps against the figures of the papers and, where it is installed, diffusers."""

import numpy as np
import pytest

from jdiff import sample, schedule, step


def test_abar_has_the_published_values():
    want = {0: 0.9999587, 30: 0.9964658, 250: 0.8458880, 500: 0.4922850, 690: 0.2145230, 750: 0.1431787}
    want |= {960: 0.00368961, 990: 0.000196717, 999: 2.42877e-9}
    abar = schedule.cosine()
    for t, value in want.items():
        assert abs(abar[t] / value - 1) < 3e-6, t  # the published ones were computed in float32


def test_learned_variance_has_the_oracles_values():
    rows = step.ddpm().table(schedule.levels(schedule.cosine(), range(990, -1, -30)))
    want = {990: (-0.05829, -0.05654, -0.05479), 690: (-1.9112, -1.8854, -1.8595), 30: (-10.1062, -7.8816, -5.6570)}
    for t, values in want.items():
        c = step.Constants(*(column[list(rows.level.t).index(t)] for column in rows.constants))
        for v, value in zip((-1, 0, 1), values, strict=True):
            assert abs(step.learned(np.float64(v), c) - value) < 6e-4  # a float32 table: 5.4e-4 at t = 30


def test_counts_and_ends_of_the_named_samplers():
    levels = {name: s.table(schedule.cosine(), s.steps) for name, s in sample.SAMPLERS.items()}
    assert levels["course"].t.tolist() == list(range(990, 0, -30))
    assert levels["course"].noise_to[-1] ** 2 == pytest.approx(1 - schedule.cosine()[0])
    assert levels["diffusers"].t[[0, -1]].tolist() == [990, 0]
    assert [schedule.leading(n)[0] for n in (30, 50, 100)] == [957, 980, 990]
    assert levels["deepfloyd"].t[[0, -1]].tolist() == [999, 0]
    for name, table in levels.items():
        np.testing.assert_allclose(table.signal**2 + table.noise**2, 1, atol=1e-15)
        np.testing.assert_array_equal(table.signal[1:], table.signal_to[:-1])
        assert len(table.t) == sample.SAMPLERS[name].steps
        if name != "course":
            assert (table.signal_to[-1], table.noise_to[-1]) == (1, 0)


def test_sections_are_diffusers_lists():
    lists = pytest.importorskip("diffusers.pipelines.deepfloyd_if.timesteps", reason="the oracle is not installed")
    for name, counts in schedule.SECTIONS.items():
        assert schedule.respaced(counts).tolist() == list(getattr(lists, f"{name}_timesteps")), name


@pytest.mark.parametrize("beta_schedule", ["squaredcos_cap_v2", "linear"])
def test_schedules_are_diffusers(beta_schedule):
    diffusers = pytest.importorskip("diffusers", reason="the oracle is not installed")
    theirs = diffusers.DDPMScheduler(beta_schedule=beta_schedule).alphas_cumprod.double().numpy()
    ours = {"squaredcos_cap_v2": schedule.cosine, "linear": schedule.linear}[beta_schedule]()
    assert np.abs(ours / theirs - 1)[:-1].max() < 5e-5  # theirs is a float32 product


@pytest.mark.parametrize("steps", [1, 7, 30, 50, 100, 1000])
def test_leading_is_diffusers(steps):
    diffusers = pytest.importorskip("diffusers", reason="the oracle is not installed")
    scheduler = diffusers.DDPMScheduler()
    scheduler.set_timesteps(steps)
    assert schedule.leading(steps).tolist() == scheduler.timesteps.tolist()


def test_each_number_of_steps_of_the_even_samplers_starts_from_pure_noise():
    for name in ("deepfloyd", "ddim", "dpmpp_2m", "unipc"):
        for steps in (1, 2, 7, 1000):
            levels = sample.SAMPLERS[name].table(schedule.cosine(), steps)
            assert levels.t[0] == 999 and len(levels.t) == steps
            advice = "one step from t = 999 returns noise; use more steps" if steps == 1 else ""
            assert sample.start_advice(levels) == advice


@pytest.mark.parametrize("levels", [schedule.karras(5), schedule.flow([0, 0.5, 1])])
def test_tables_that_start_from_noise_need_no_advice(levels):
    assert sample.start_advice(levels) == ""


def test_a_table_that_starts_late_gets_advice():
    levels = schedule.levels(schedule.cosine(), [500, 0])
    assert "the first timestep, 500, is not pure noise" in sample.start_advice(levels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedule.leading(0), "steps must be a whole number between 1 and 1000, got 0"),
        (lambda: schedule.leading(1001), "steps must be .* got 1001"),
        (lambda: schedule.course(991), "steps must be a whole number between 1 and 990, got 991"),
        (lambda: schedule.respaced([0, 3]), "counts must be .* got 0"),
        (lambda: schedule.respaced([]), "counts must have a number for each section, got none"),
        (lambda: schedule.karras(5, rho=0), "rho must be above 0, got 0"),
        (lambda: schedule.karras(5, rho=-1), "rho must be a finite number of at least 0, got -1"),
        (
            lambda: schedule.transition(*(np.array(a) for a in ([0.1, 0.5], [1.0, 0.5], [0.2, 0.4], [0.9, 0.6]))),
            "got signal 0.5 and noise 0.5 to signal 0.4 and noise 0.6, step 1$",
        ),
        (lambda: schedule.levels(schedule.cosine(), []), "timesteps must be falling"),
        (lambda: schedule.levels(schedule.cosine(), [1000]), r"between 0 and 999, got \[1000\]"),
        (lambda: schedule.levels(schedule.cosine(), [1, 2]), r"falling .* got \[1, 2\]"),
        (lambda: sample.find_sampler("euler"), "sampler must be one of diffusers, deepfloyd, course.* got 'euler'"),
        (
            lambda: sample.SAMPLERS["fast27"].table(schedule.cosine(), 20),
            "steps must be 27 for the sampler 'fast27', got 20",
        ),
    ],
)
def test_errors_name_what_was_given_and_what_is_accepted(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_flow_goes_from_noise_to_the_image():
    table = schedule.flow(np.array([0.0, 0.2, 0.7, 1.0]))
    np.testing.assert_allclose(table.signal + table.noise, 1)
    np.testing.assert_array_equal(table.signal[1:], table.signal_to[:-1])
    np.testing.assert_array_equal(table.noise[1:], table.noise_to[:-1])
    assert (table.signal[0], table.noise_to[-1], table.t[0]) == (0, 0, 0)


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.0, 1.0], [0.5, 0.2], [-0.1, 1.0], [0.0, 1.1], [0.0, np.nan]])
def test_times_that_do_not_rise_are_refused(times):
    with pytest.raises(ValueError, match="times must be two or more rising numbers"):
        schedule.flow(times)
