"""Compares jdiff's tasks with diffusers' six IF pipelines: whole sampling loops with the same noise.

`python scripts/parity.py` writes the numbers to docs/parity.md. Needs the extra `torch`.
"""

import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import parity_rungs as parity
import torch
from jax.tree_util import Partial

from jdiff import combine, sample, schedule, step, views
from jdiff.checkpoints import names
from jdiff.networks import unet
from jdiff.types import Level, Network, Solver

with warnings.catch_warnings():  # these libraries warn when they are imported
    warnings.simplefilter("ignore")
    import diffusers
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers import scheduling_ddpm

SIZE = (16, 24)  # height and width
SMALL = (4, 6)  # of the low-res image
IMAGES = 2  # a batch
LENGTH = 7  # tokens of a prompt
MOST = {1: 1.5, 2: 1.0}  # largest dynamic threshold of each stage


class Task(NamedTuple):
    """A pipeline of diffusers, and the settings of both sides."""

    pipeline: str
    stage: int
    steps: int
    guidance: float
    strength: float = 1.0  # share of the table's rows that is used
    edits: bool = False  # whether it starts from a noised picture
    masked: bool = False  # whether it inpaints
    noise_level: int = 0  # timestep of the low-res image of stage 2


TASKS = {
    "generate": Task("IFPipeline", 1, 6, 7.0),
    "edit": Task("IFImg2ImgPipeline", 1, 8, 10.0, 0.7, edits=True),
    "inpaint": Task("IFInpaintingPipeline", 1, 6, 7.0, 1.0, edits=True, masked=True),
    "upscale": Task("IFSuperResolutionPipeline", 2, 6, 4.0, noise_level=250),
    "edit, stage 2": Task("IFImg2ImgSuperResolutionPipeline", 2, 8, 4.0, 0.8, edits=True, noise_level=250),
    "inpaint, stage 2": Task("IFInpaintingSuperResolutionPipeline", 2, 8, 4.0, 0.8, edits=True, masked=True),
}


class Inputs(NamedTuple):
    """Text, pictures and noise of both sides, in float64 and channels last."""

    text: np.ndarray  # [n l d]
    negative: np.ndarray
    image: np.ndarray  # [n h w 3] in [-1, 1]
    mask: np.ndarray  # [h w], 1 is made new
    low: np.ndarray  # [n h' w' 3]
    noises: list[np.ndarray]  # [n h w 3], in the order in which diffusers draws them


def inputs() -> Inputs:
    """Draws the inputs."""
    draw = lambda *shape, seed: parity.normal(IMAGES, *shape, seed=seed)
    d = parity.COMMON["encoder_hid_dim"]
    mask = np.zeros(SIZE)
    mask[3:11, 5:20] = 1
    return Inputs(
        draw(LENGTH, d, seed=1),
        draw(LENGTH, d, seed=2),
        np.tanh(draw(*SIZE, 3, seed=3)),
        mask,
        np.tanh(draw(*SMALL, 3, seed=4)),
        [draw(*SIZE, 3, seed=10 + i) for i in range(12)],
    )


def network(stage: int) -> tuple[Any, Network]:
    """Returns torch's network in float64, and ours, with the same random weights."""
    module: Any = parity.randomise(UNet2DConditionModel(**{1: parity.STAGE1, 2: parity.STAGE2}[stage]).double())
    made = unet.unet(unet.read_config(dict(module.config)))
    weights = {k: v.numpy() for k, v in module.state_dict().items()}
    return module, made.bind(names.translate(weights, made.params))


def scheduler(stage: int, dtype: torch.dtype) -> Any:
    """Returns IF's DDPMScheduler with its float32 table cast to a dtype, so that it computes in that dtype."""
    made: Any = scheduling_ddpm.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=MOST[stage],
    )
    made.alphas_cumprod = made.alphas_cumprod.to(dtype)
    made.one = made.one.to(dtype)
    return made


def theirs(task: Task, module: Any, given: Inputs, dtype: torch.dtype) -> np.ndarray:
    """Returns images [n h w 3] of diffusers' pipeline, which draws its noise from `given`."""
    tensor = lambda a: torch.as_tensor(a).to(dtype)
    image = lambda a: parity.nchw(tensor(a)).contiguous()
    noises: Iterator[torch.Tensor] = iter([image(a) for a in given.noises])
    kind = getattr(diffusers, task.pipeline)
    parts = {"unet": parity.quietly(module, dtype), "scheduler": scheduler(task.stage, dtype)}
    if task.stage == 2:
        parts["image_noising_scheduler"] = scheduler(2, dtype)
    none = dict.fromkeys(("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker"))
    pipeline = kind(**none, **parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {
        "prompt_embeds": tensor(given.text),
        "negative_prompt_embeds": tensor(given.negative),
        "num_inference_steps": task.steps,
        "guidance_scale": task.guidance,
        "output_type": "pt",
    }
    if task.stage == 2:
        settings |= {"image": image(given.low), "noise_level": task.noise_level}
    if task.edits:
        settings |= {"original_image" if task.stage == 2 else "image": image(given.image), "strength": task.strength}
    else:
        settings |= {"height": SIZE[0], "width": SIZE[1]}
    if task.masked:
        settings["mask_image"] = tensor(given.mask)[None, None]
    draw = lambda shape, **_: next(noises).expand(shape)
    with (
        mock.patch.object(sys.modules[kind.__module__], "randn_tensor", draw),
        mock.patch.object(scheduling_ddpm, "randn_tensor", draw),
        torch.no_grad(),
    ):
        return parity.nhwc(pipeline(**settings).images).double().numpy()


def ours(task: Task, made: Network, given: Inputs, dtype: str) -> np.ndarray:
    """Returns images [n h w 3] of jdiff's steps in a loop. Their `draw` returns the same noise."""
    cast = lambda a: jnp.asarray(a, dtype)
    params = jax.tree.map(cast, made.params)
    network = Partial(jax.jit(made.apply), params)
    noises = iter([cast(a) for a in given.noises])
    abar = scheduler(task.stage, torch.float32).alphas_cumprod.double().numpy()
    levels = schedule.levels(abar, schedule.leading(task.steps))
    levels = jax.tree.map(lambda a: a[task.steps - int(task.steps * task.strength) :], levels)
    noised = lambda images, level: cast(level.signal) * images + cast(level.noise) * next(noises)
    if task.edits:
        x = noised(cast(given.image), sample.one(levels, 0))
    else:
        x = next(noises)
    low, told = None, None
    if task.stage == 2:
        level = sample.one(schedule.levels(abar, [task.noise_level]), 0)
        low, told = noised(sample.resized(cast(given.low), SIZE), level), float(task.noise_level)

    def solver(image: Any, draw: Any = jax.random.normal) -> Solver:
        made = step.ddpm(x0_rule=step.threshold(0.95, MOST[task.stage]), draw=draw)
        return step.condition(made, image, views.unmasked(cast(given.mask)), noised=False) if task.masked else made

    rows = solver(None).table(levels)
    states = [solver(cast(given.image[j])).init(x[j]) for j in range(IMAGES)]
    for i in range(len(levels.t)):
        row = jax.tree.map(lambda a, i=i: a[i] if a.dtype == bool else cast(a[i]), rows)
        level: Level = row.level
        noise = next(noises) if level.noise_to > 0 else jnp.zeros_like(x)
        for j in range(IMAGES):
            combiner = combine.cfg(cast(given.text[j]), task.guidance, cast(given.negative[j]))
            denoise = combine.denoiser(network, combiner, None if low is None else low[j], noise_level=told)
            draw = lambda key, shape, dtype, j=j, noise=noise: noise[j]
            states[j], _ = solver(cast(given.image[j]), draw).step(None, states[j], row, denoise)
    return np.stack([np.asarray(state.x, np.float64) for state in states])


def measure(name: str) -> tuple[float, parity.Errors]:
    """Measures a task. Returns jdiff's error in float64, and the errors of both sides in float32; see `relative`."""
    task, given = TASKS[name], inputs()
    module, made = network(task.stage)
    with parity.lifted():
        truth = theirs(task, module, given, torch.float64)
    with jax.enable_x64(True):
        double = parity.relative(ours(task, made, given, "float64"), truth)
    single = parity.relative(ours(task, made, given, "float32"), truth)
    return double, parity.Errors(single, parity.relative(theirs(task, module, given, torch.float32), truth))


if __name__ == "__main__":
    for name in TASKS:
        print(name, measure(name))
