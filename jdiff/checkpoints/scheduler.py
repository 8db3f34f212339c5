"""diffusers' scheduler_config.json: read into a noise schedule and its rules, and written from them.

Every key is used or refused by name. The sampler chooses the timesteps, not the model, so a key that asks for other
timesteps is refused.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.tree_util import Partial

from jdiff import checks, schedule, step
from jdiff.checkpoints import files
from jdiff.types import Array, Json

STEPS = 1000  # timesteps of the noise schedules that the samplers walk
# What `prediction_type` calls the parametrisations, and `variance_type` the variances of ancestral sampling.
PREDICTS = {"epsilon": step.noise, "sample": step.clean, "v_prediction": step.v_prediction}
VARIANCES = {"learned_range": step.learned, "fixed_small": step.small, "fixed_large": step.large}
# Keys with one accepted value, and the value that diffusers takes where the key is absent.
FIXED: dict[str, tuple[Any, Any]] = {
    "_class_name": ("DDPMScheduler", "DDPMScheduler"),
    "num_train_timesteps": (STEPS, STEPS),
    "timestep_spacing": ("leading", "leading"),
    "steps_offset": (0, 0),
    "rescale_betas_zero_snr": (False, False),
}
# Keys that are honoured, and diffusers' defaults.
HONOURED: dict[str, Any] = {
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "trained_betas": None,
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "clip_sample": True,
    "clip_sample_range": 1.0,
}


class Scheduler(NamedTuple):
    """What a model knows of its noise."""

    schedule: np.ndarray  # noise schedule abar [steps], float64
    x0_rule: Callable[[Array], Array]  # what is done to the estimate of the clean image
    predicts: Callable[..., Array]  # what the network estimates: a parametrisation of `jdiff.step`
    variance: Callable[..., Array]  # of ancestral sampling: `step.learned`, `small` or `large`


def read(config: Json, stage2: bool = False) -> Scheduler:
    """Reads diffusers' scheduler_config.json.

    Args:
        config: its contents. An empty one stands for IF's.
        stage2: whether that is IF's second stage.

    Raises:
        ValueError: keys ask for what the samplers do not have; all of them are listed.

    Example:
        >>> found = read({})
        >>> found.schedule.size, found.x0_rule.args, found.predicts is step.noise
        (1000, (0.95, 1.5), True)

    Reference:
        IF's scheduler_config.json: squaredcos_cap_v2, learned_range, dynamic thresholding up to 1.5 (stage 1) or 1
        (stage 2); diffusers' DDPMScheduler.
    """
    if not config:
        return Scheduler(schedule.cosine(), step.threshold(0.95, 1.0 if stage2 else 1.5), step.noise, step.learned)
    bad = []
    for key, (wanted, default) in FIXED.items():
        value = config.get(key, default)
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            absent = "" if key in config else ", which is diffusers' default where the key is absent"
            bad.append(f"{key} must be {wanted!r}, got {value!r}{absent}")
    known = {key for key in config if key in FIXED or key in HONOURED or key.startswith("_")}
    bad += [
        f"{key} is not known, got {value!r}" for key, value in config.items() if key not in known and value is not None
    ]
    given = HONOURED | {key: value for key, value in config.items() if key in HONOURED}
    found = [
        _listed(bad, make, given)
        for make in (
            _abar,
            _x0_rule,
            lambda given: _one_of("prediction_type", given, PREDICTS),
            lambda given: _one_of("variance_type", given, VARIANCES),
        )
    ]
    if bad:
        raise ValueError(files.listed("scheduler_config.json asks for what the samplers do not have", bad))
    return Scheduler(*found)


def written(scheduler: Scheduler) -> dict[str, Any]:
    """Returns the scheduler_config.json that `read` reads as this scheduler, for jdiff and for diffusers.

    Raises:
        ValueError: diffusers has no name for a part of it.

    Example:
        >>> written(read({}))["beta_schedule"]
        'squaredcos_cap_v2'
    """
    abar, x0_rule, predicts, variance = scheduler
    config = {key: wanted for key, (wanted, _) in FIXED.items()} | _betas(abar)
    config["prediction_type"] = _name_of("predicts", predicts, PREDICTS)
    config["variance_type"] = _name_of("variance", variance, VARIANCES)
    threshold, clip = step.threshold().func, step.clip
    args: tuple[Any, ...] = getattr(x0_rule, "args", ())
    if x0_rule is step.untouched:
        return config | {"clip_sample": False, "thresholding": False}
    if getattr(x0_rule, "func", None) is threshold:
        ratio, most = map(float, args)
        rule = {"thresholding": True, "dynamic_thresholding_ratio": ratio, "sample_max_value": most}
        return config | {"clip_sample": False} | rule
    if getattr(x0_rule, "func", None) is clip and args[0] == -args[1]:
        return config | {"thresholding": False, "clip_sample": True, "clip_sample_range": float(args[1])}
    raise ValueError(
        "x0_rule must be step.untouched, step.threshold() or a symmetric step.clip, to be written, got " + repr(x0_rule)
    )


def _name_of(what: str, function: Callable, names: Mapping[str, Callable]) -> str:
    if (name := next((name for name, named in names.items() if named is function), None)) is None:
        accepted = " or ".join(f"step.{named.__name__}" for named in names.values())
        raise ValueError(f"{what} must be {accepted}, to be written, got {function!r}")
    return name


def _listed(bad: list[str], make: Callable[[Json], Any], given: Json) -> Any:
    try:
        return make(given)
    except (ValueError, TypeError) as error:
        bad.append(str(error))


def _one_of(key: str, given: Json, accepted: Mapping[str, Any]) -> Any:
    if not isinstance(given[key], str) or given[key] not in accepted:
        raise ValueError(f"{key} must be {' or '.join(map(repr, accepted))}, got {given[key]!r}")
    return accepted[given[key]]


def _abar(given: Json) -> np.ndarray:
    if given["trained_betas"] is not None:
        betas = np.asarray(given["trained_betas"], np.float64)
        if betas.shape != (STEPS,) or not ((betas > 0) & (betas < 1)).all():
            raise ValueError(f"trained_betas must be {STEPS} numbers between 0 and 1, got others")
        return np.cumprod(1 - betas)
    first, last = (checks.number(key, given[key], 0, 1) for key in ("beta_start", "beta_end"))
    betas = {
        "squaredcos_cap_v2": schedule.cosine,
        "linear": lambda: schedule.linear(STEPS, first, last),
    }
    return _one_of("beta_schedule", given, betas)()


def _betas(abar: np.ndarray) -> dict[str, Any]:
    """The noise schedule under diffusers' name for it, or as a list of betas."""
    if np.array_equal(abar, schedule.cosine()):
        return {"beta_schedule": "squaredcos_cap_v2"}
    betas = 1 - np.asarray(abar, np.float64) / np.concatenate([[1.0], abar[:-1]])
    if betas.shape != (STEPS,) or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(
            f"the noise schedule must be {STEPS} falling numbers between 0 and 1, to be written, got others"
        )
    first, last = (float(f"{beta:.12g}") for beta in betas[[0, -1]])
    if np.array_equal(abar, schedule.linear(STEPS, first, last)):
        return {"beta_schedule": "linear", "beta_start": first, "beta_end": last}
    return {"trained_betas": betas.tolist()}


def _x0_rule(given: Json) -> Callable[[Array], Array]:
    for key in ("thresholding", "clip_sample"):
        if not isinstance(given[key], bool):
            raise ValueError(f"{key} must be true or false, got {given[key]!r}")
    if given["thresholding"]:
        ratio = checks.number("dynamic_thresholding_ratio", given["dynamic_thresholding_ratio"], 0, 1)
        return step.threshold(ratio, checks.number("sample_max_value", given["sample_max_value"], 1))
    if given["clip_sample"]:
        most = checks.number("clip_sample_range", given["clip_sample_range"], 0)
        return Partial(step.clip, -most, most)
    return step.untouched
