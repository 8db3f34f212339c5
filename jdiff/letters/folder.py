"""Writing the letters model to a folder, which `jdiff.load` reads."""

from pathlib import Path

import jax
import numpy as np

from jdiff.checkpoints.folder import ByteEncoder, write_model
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
STORED = np.float16  # dtype of the weights in the files, for half the size; computation is in float32
DEFAULTS = {"sampler": "dpmpp_2m", "steps": 25, "guidance": 3.0}


def write(
    out: Path, unet_config: unet.Config, text_config: t5.Config, unet_params: Params, text_params: Params
) -> None:
    """Writes a UNet and its text encoder to a model's folder, in diffusers' layout.

    Args:
        out: a new folder, or one with a model, which is replaced.
        unet_config: sizes of the UNet.
        text_config: sizes of the text encoder.
        unet_params: weights of the UNet.
        text_params: weights of the text encoder.
    """
    stored = lambda tree: jax.tree.map(lambda a: np.asarray(a, STORED), tree)
    encoder = ByteEncoder(text_config, stored(text_params), captions.LENGTH, clean="none")
    write_model(out, unet_config, stored(unet_params), scheduler=SCHEDULER, defaults=DEFAULTS, text_encoder=encoder)
