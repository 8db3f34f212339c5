"""diffusers' scheduler_config.json: the noise schedule and the parametrisation of a model."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.tree_util import Partial

from jdiff import schedule, step
from jdiff.types import Array

# What `prediction_type` calls the parametrisations.
PREDICTS = {"epsilon": step.noise, "sample": step.clean, "v_prediction": step.v_prediction}
# What `variance_type` calls the variances of ancestral sampling.
VARIANCES = {"learned_range": step.learned, "fixed_small": step.small, "fixed_large": step.large}
# Keys with the values that the samplers cover, and diffusers' default.
COVERED: dict[str, tuple[tuple[Any, ...], Any]] = {
    "beta_schedule": (("squaredcos_cap_v2", "linear"), "linear"),
    "prediction_type": (tuple(PREDICTS), "epsilon"),
    "trained_betas": ((None,), None),
    "rescale_betas_zero_snr": ((False,), False),
    "variance_type": (tuple(VARIANCES), "fixed_small"),
    "timestep_spacing": (("leading",), "leading"),
    "steps_offset": ((0,), 0),
}


class Scheduler(NamedTuple):
    """What a scheduler_config.json says of a model."""

    schedule: np.ndarray  # abar [steps], float64
    x0_rule: Callable[[Array], Array]  # what is done to the clean estimate
    predicts: Callable[..., Array]  # a parametrisation of `jdiff.step`
    variance: Callable[..., Array]  # of ancestral sampling: `step.learned`, `small` or `large`


def read(config: Mapping[str, Any], stage2: bool = False) -> Scheduler:
    """Reads the contents of a scheduler_config.json.

    Args:
        config: the contents; empty means IF's own.
        stage2: whether the model is one of stage 2, which matters where `config` is empty.

    Raises:
        ValueError: the config asks for what the samplers do not have; the message names every such key.

    Example:
        >>> found = read({})
        >>> found.schedule.size, found.x0_rule.args, found.predicts is step.noise
        (1000, (0.95, 1.5), True)

    Reference:
        IF's scheduler_config.json: squaredcos_cap_v2, dynamic thresholding up to 1.5 (stage 1) or 1 (stage 2).
    """
    if not config:
        return Scheduler(schedule.cosine(), step.threshold(0.95, 1.0 if stage2 else 1.5), step.noise, step.learned)
    bad = [
        f"{key} must be {' or '.join(map(repr, covered))}, got {config[key]!r}"
        for key, (covered, _) in COVERED.items()
        if key in config and config[key] not in covered
    ]
    if bad:
        raise ValueError("scheduler_config.json asks for what the samplers do not have:\n  " + "\n  ".join(bad))
    value = {key: config.get(key, default) for key, (_, default) in COVERED.items()}
    total = config.get("num_train_timesteps", 1000)
    if value["beta_schedule"] == "linear":
        abar = schedule.linear(total, config.get("beta_start", 1e-4), config.get("beta_end", 0.02))
    else:
        abar = schedule.cosine(total)
    return Scheduler(abar, _x0_rule(config), PREDICTS[value["prediction_type"]], VARIANCES[value["variance_type"]])


def _x0_rule(config: Mapping[str, Any]) -> Callable[[Array], Array]:
    if config.get("thresholding", False):
        return step.threshold(config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0))
    if config.get("clip_sample", True):
        most = config.get("clip_sample_range", 1.0)
        return Partial(step.clip, -most, most)
    return step.untouched
