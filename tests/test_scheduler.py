"""diffusers' scheduler_config.json: every key is honoured as diffusers honours it, or refused by name."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import jdiff
from jdiff import model, sample, step
from jdiff.checkpoints import scheduler

IF = {  # as IF's own files have it
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.16.0.dev0",
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.95,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.5,
    "thresholding": True,
    "trained_betas": None,
    "variance_type": "learned_range",
    "timestep_spacing": "leading",
}


def same(a, b):
    np.testing.assert_allclose(a.schedule, b.schedule, rtol=1e-12)
    rules = [(getattr(s.x0_rule, "func", s.x0_rule), getattr(s.x0_rule, "args", ())) for s in (a, b)]
    return rules[0] == rules[1] and a[2:] == b[2:]


@pytest.mark.parametrize(("stage2", "most"), [(False, 1.5), (True, 1.0)])
def test_no_config_is_ifs(stage2, most):
    assert same(scheduler.read({}, stage2), scheduler.read(IF | {"sample_max_value": most}))


@pytest.mark.parametrize(
    ("config", "x0"),
    [
        ({}, 1.0),
        ({"clip_sample_range": 2.0}, 2.0),
        ({"clip_sample": False}, 3.0),
        ({"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 1.0}, 1.0),
    ],
)
def test_the_rule_for_clean_estimates(config, x0):
    found = scheduler.read({"variance_type": "learned_range"} | config)
    assert found.x0_rule(jnp.full((2, 2, 3), 3.0)) == pytest.approx(x0)


@pytest.mark.parametrize(
    ("config", "predicts", "variance"),
    [
        (IF, step.noise, step.learned),
        ({"clip_sample": False}, step.noise, step.small),  # diffusers' default
        ({"variance_type": "fixed_large", "prediction_type": "v_prediction"}, step.v_prediction, step.large),
        ({"prediction_type": "sample"}, step.clean, step.small),
    ],
)
def test_the_parametrisation_and_the_variance_reach_the_sampler(config, predicts, variance, tmp_path):
    found = scheduler.read(config)
    assert (found.predicts, found.variance) == (predicts, variance)
    folder = shutil.copytree(model.shipped("mini"), tmp_path / "copy")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    loaded = jdiff.load(folder)
    solver = sample.SAMPLERS["diffusers"].solver(loaded)
    assert [f.func for f in solver.step.args[:3:2]] == [variance, predicts]
    loaded.save(tmp_path / "again")
    again = jdiff.load(tmp_path / "again")
    assert again.hash == loaded.hash and (again.predicts, again.variance) == (predicts, variance)


CONFIGS = [
    IF,
    {"variance_type": "fixed_small"},
    {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012, "variance_type": "fixed_large"},
    {"trained_betas": np.linspace(1e-4, 0.03, 1000).tolist(), "clip_sample": False, "variance_type": "fixed_large"},
    {"prediction_type": "v_prediction", "variance_type": "fixed_small", "clip_sample": False},
    {"prediction_type": "sample", "variance_type": "fixed_large", "clip_sample_range": 0.8},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 3.0},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_written_is_read_the_same(config):
    found = scheduler.read(config)
    assert same(scheduler.read(json.loads(json.dumps(scheduler.written(found)))), found)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("writes", [False, True])
def test_a_step_is_diffusers(config, writes):
    """The mean and the variance of a step, of the config as it is given, and as it is written again."""
    diffusers = pytest.importorskip("diffusers", reason="the oracle is not installed")
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    found = scheduler.read(config)
    theirs = diffusers.DDPMScheduler.from_config(scheduler.written(found) if writes else config)
    np.testing.assert_allclose(theirs.alphas_cumprod.numpy(), found.schedule, rtol=2e-4)
    theirs.set_timesteps(50)
    levels = jdiff.schedule.levels(found.schedule, theirs.timesteps.numpy())
    solver = step.ddpm(found.variance, x0_rule=found.x0_rule, predicts=found.predicts)
    rows = solver.table(levels)
    rng = np.random.default_rng(0)
    x, estimate = (rng.normal(size=(8, 8, 3)).astype(np.float32) for _ in range(2))
    raw = rng.uniform(-1, 1, size=(8, 8, 3)).astype(np.float32)
    prediction = jdiff.Prediction(jnp.asarray(estimate), jnp.asarray(raw))
    for row in (1, 25, 48):
        one = jdiff.scan.one(rows, row)
        mean, info = step.ddpm(step.small, x0_rule=found.x0_rule, predicts=found.predicts).step(
            None, step.State(jnp.asarray(x)), one._replace(constants=one.constants._replace(noisy=None)),
            lambda *_: prediction,
        )  # fmt: skip
        learned = config.get("variance_type") == "learned_range"
        torched = [torch.as_tensor(np.moveaxis(a, -1, 0)[None].copy()) for a in (estimate, raw, x)]
        output = torch.cat(torched[:2], 1) if learned else torched[0]
        t = theirs.timesteps[row]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda shape, **_: torch.zeros(tuple(shape))
            )
            stepped = theirs.step(output, t, torched[2])
        numpy = lambda a: np.moveaxis(a[0].numpy(), 0, -1)
        np.testing.assert_allclose(info.x0, numpy(stepped.pred_original_sample), atol=2e-3)
        np.testing.assert_allclose(mean.x, numpy(stepped.prev_sample), atol=2e-3)
        variance = theirs._get_variance(t, torched[1] if learned else None)
        ours = found.variance(jnp.asarray(raw), one.constants)
        theirs_log = numpy(variance) if learned else np.log(variance.numpy())
        np.testing.assert_allclose(np.broadcast_to(ours, raw.shape), np.broadcast_to(theirs_log, raw.shape), atol=2e-3)


REFUSED = [
    ("_class_name", "DDIMScheduler", "'DDPMScheduler'"),
    ("num_train_timesteps", 4000, "1000"),
    ("variance_type", "fixed_small_log", "'learned_range' or 'fixed_small' or 'fixed_large'"),
    ("variance_type", None, "'learned_range'"),
    ("timestep_spacing", "trailing", "'leading'"),
    ("timestep_spacing", "linspace", "'leading'"),
    ("steps_offset", 1, "0"),
    ("steps_offset", False, "0"),
    ("rescale_betas_zero_snr", True, "False"),
    ("rescale_betas_zero_snr", 0, "False"),
    ("beta_schedule", "scaled_linear", "'squaredcos_cap_v2' or 'linear'"),
    ("beta_schedule", ["linear"], "'squaredcos_cap_v2' or 'linear'"),
    ("beta_start", "small", "a finite number"),
    ("prediction_type", "flow", "'epsilon' or 'sample' or 'v_prediction'"),
    ("thresholding", "true", "true or false"),
    ("clip_sample", 1, "true or false"),
]


@pytest.mark.parametrize(("key", "value", "accepted"), REFUSED)
def test_what_is_not_covered_is_refused_by_name(key, value, accepted):
    with pytest.raises(ValueError) as caught:
        scheduler.read({"variance_type": "learned_range", key: value})
    said = str(caught.value)
    assert f"{key} must be {accepted}" in said and f"got {value!r}" in said and "\n" not in said


def test_all_keys_that_are_not_covered_are_listed_at_once():
    config = {"algorithm_type": "dpmsolver++", "steps_offset": 1, "prediction_type": "flow", "solver_order": 2}
    config |= {"trained_betas": [0.1], "sample_max_value": 0.5, "thresholding": True}
    with pytest.raises(ValueError) as caught:
        scheduler.read(config)
    for key in ("algorithm_type is not known", "solver_order is not known", "steps_offset", "prediction_type"):
        assert key in str(caught.value)
    assert "trained_betas must be 1000 numbers" in str(caught.value) and "sample_max_value must be" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x0_rule": jnp.tanh}, "x0_rule must be step.untouched"),
        ({"predicts": step.velocity}, "predicts must be step.noise or step.clean or step.v_prediction"),
        ({"variance": lambda v, c: 0}, "variance must be step.learned or step.small or step.large"),
        ({"schedule": np.linspace(0.9, 0.1, 300)}, "the noise schedule must be 1000 falling numbers"),
    ],
)
def test_what_has_no_name_at_diffusers_is_not_written(change, message):
    with pytest.raises(ValueError, match=message):
        scheduler.written(scheduler.read(IF)._replace(**change))
