"""The glyph model as a folder that `jdiff.load` reads."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jdiff.checkpoints import convert
from jdiff.letters import captions
from jdiff.networks import t5, unet
from jdiff.types import Params

SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "thresholding": False,
    "variance_type": "fixed_small",
}
DEFAULTS = {"sampler": "dpmpp_2m", "steps": 25, "guidance": 3.0}


def write(
    out: Path, unet_config: unet.Config, text_config: t5.Config, unet_params: Params, text_params: Params
) -> None:
    """Writes a UNet and its text encoder as a model's folder, in diffusers' layout.

    Args:
        out: the folder; what it holds already is replaced file by file.
        unet_config: sizes of the UNet.
        text_config: sizes of the text encoder.
        unet_params: weights of the UNet.
        text_params: weights of the text encoder.
    """
    configs: dict[str, Any] = {
        "unet": {"_class_name": "UNet2DConditionModel"}
        | {key: value for key, (value, _) in unet.FIXED.items()}
        | dataclasses.asdict(unet_config),
        "text_encoder": {"model_type": "t5", "feed_forward_proj": "gated-gelu"}
        | {"tokenizer_class": "ByT5Tokenizer", "max_length": captions.LENGTH, "clean": "none"}
        | dataclasses.asdict(text_config),
    }
    for name, kind, tree in (("unet", "unet", unet_params), ("text_encoder", "t5", text_params)):
        (out / name).mkdir(parents=True, exist_ok=True)
        flat = {path: np.asarray(a, np.float32) for path, a in convert.flatten(tree).items()}
        digest = hashlib.sha256(b"".join(path.encode() + flat[path].tobytes() for path in sorted(flat))).hexdigest()
        convert.save(out / name / "model.safetensors", flat, {"kind": kind, "dtype": "float32", "sha256": digest})
        (out / name / "config.json").write_text(json.dumps(configs[name], indent=2) + "\n")
    (out / "scheduler").mkdir(exist_ok=True)
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2) + "\n")
    (out / "defaults.json").write_text(json.dumps(DEFAULTS, indent=2) + "\n")
