"""From a folder or a name to a Model: the network with its parameters, prompts to embeddings, schedule and config."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jdiff import convert, encoder, schedule, step, unet
from jdiff.types import Array

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class Defaults(NamedTuple):
    """How a model is sampled unless told otherwise; the values are diffusers' for IF's stage 1."""

    sampler: str = "diffusers"
    steps: int = 100
    guidance: float = 7.0
    noise_level: int = 250  # stage 2: timestep to which the picture that it enlarges is noised
    factor: int = 4  # stage 2: how many times larger than that picture its own is
    low_res: int = 64  # stage 2: the largest side of that picture


STAGE2 = Defaults(steps=50, guidance=4.0)


class Model(NamedTuple):
    """A network that is ready to sample."""

    denoise: Partial  # (x [n h w c], t [n], Conditioning [n ...]) -> Prediction
    embed: Callable[[Sequence[str]], Array]  # prompts -> [n l d]
    schedule: np.ndarray  # abar [steps], float64
    config: unet.Config
    x0_rule: Callable  # what the model's own samplers do with the clean estimate
    defaults: Defaults
    name: str
    hash: str  # sha256, in hex, of what its weight files say they hold


def shipped(name: str) -> Path:
    """Folder of weights that came with the library, in a wheel or in a checkout.

    >>> (shipped("mini") / "unet" / "config.json").is_file()
    True
    """
    package = Path(__file__).resolve().parent
    return next((p for p in (package / "weights" / name, package.parent / "weights" / name) if p.is_dir()), Path(name))


def load(name_or_folder: str | Path, dtype: Any = "float32") -> Model:
    """The Model of that name ("mini" and "mini-upscaler" are shipped), or of a folder that `jdiff convert` wrote.

    `dtype` of the network: float32, bfloat16 or float16; the text encoder stays in float32. Raises ValueError, in one
    message, where there is no such folder or its files are no model's.

    >>> model = load("mini")
    >>> model.embed(["a red three"]).shape, model.config.sample_size
    ((1, 40, 128), 32)
    """
    folder = Path(name_or_folder)
    if not folder.is_dir():
        folder = shipped(str(name_or_folder))
    if not folder.is_dir():
        raise ValueError(
            f"model is {str(name_or_folder)!r}, accepted are mini, mini-upscaler and folders written by `jdiff convert`"
        )
    if not (folder / "unet" / "model.safetensors").is_file():
        why = "holds no unet/model.safetensors, as `jdiff convert` writes it"
        if any(folder.glob("**/diffusion_pytorch_model*")):
            why = "is diffusers' own: first use `jdiff convert`"
        raise ValueError(
            f"model is {str(name_or_folder)!r}, which {why}; accepted are folders written by `jdiff convert`"
        )
    name = str(getattr(dtype, "name", None) or (dtype if isinstance(dtype, str) else np.dtype(dtype).name))
    if name not in DTYPES and name != "float64":
        raise ValueError(f"dtype is {name!r}, accepted are {', '.join(DTYPES)}")

    config = unet.read_config(folder / "unet")
    apply, abstract = unet.unet(config)
    params = convert.load(folder / "unet" / "model.safetensors", abstract, dtype=DTYPES.get(name, np.float64))
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    stage2 = config.class_embed_type is not None
    abar, rule = read_scheduler(scheduler, stage2)
    defaults = STAGE2 if stage2 else Defaults()
    files = [p for p in (folder / "unet", folder / "text_encoder") if (p / "model.safetensors").is_file()]
    return Model(
        denoise=Partial(apply, jax.tree.map(jnp.asarray, params)),
        embed=_embedder(folder / "text_encoder"),
        schedule=abar,
        config=config,
        x0_rule=rule,
        defaults=defaults._replace(**_json(folder / "defaults.json")),
        name=folder.resolve().name,
        hash=_hash([p / "model.safetensors" for p in files]),
    )


def read_scheduler(config: Mapping[str, Any], stage2: bool = False) -> tuple[np.ndarray, Callable]:
    """(abar [steps], rule for clean estimates) of diffusers' scheduler_config.json; of nothing, IF's for that stage.

    Raises ValueError with every key that asks for something the samplers do not have.

    >>> abar, rule = read_scheduler({})
    >>> abar.size, [float(a) for a in rule.args]
    (1000, [0.95, 1.5])

    Source: IF's scheduler_config.json: squaredcos_cap_v2, dynamic thresholding up to 1.5 (stage 1) or 1 (stage 2).
    """
    if not config:
        return schedule.cosine(), step.threshold(0.95, 1.0 if stage2 else 1.5)
    bad = []
    total = config.get("num_train_timesteps", 1000)
    betas = {
        "squaredcos_cap_v2": lambda: schedule.cosine(total),
        "linear": lambda: schedule.linear(total, config.get("beta_start", 1e-4), config.get("beta_end", 0.02)),
    }
    for key, accepted, default in (
        ("beta_schedule", tuple(betas), "linear"),
        ("prediction_type", ("epsilon",), "epsilon"),
        ("trained_betas", (None,), None),
        ("rescale_betas_zero_snr", (False,), False),
    ):
        if (value := config.get(key, default)) not in accepted:
            bad.append(f"{key} is {value!r}, accepted: {', '.join(map(repr, accepted))}")
    if bad:
        raise ValueError("scheduler_config.json asks for what the samplers do not have:\n  " + "\n  ".join(bad))
    abar = betas[config.get("beta_schedule", "linear")]()
    if config.get("thresholding", False):
        ratio, most = config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0)
        return abar, step.threshold(ratio, most)
    if config.get("clip_sample", True):
        most = config.get("clip_sample_range", 1.0)
        return abar, Partial(step.clip, -most, most)
    return abar, step.untouched


def _embedder(folder: Path) -> Callable[[Sequence[str]], Array]:
    """Prompts, cleaned -> embeddings [n l d], by the encoder in `folder`, or an error that says why there is none."""
    if not (folder / "model.safetensors").is_file():
        return partial(_no_encoder, "the model's folder has no text encoder that reads prompts")
    try:
        found = encoder.find(folder)
    except ValueError as error:
        return partial(_no_encoder, f"the model's text encoder cannot be used: {error}")
    return lambda prompts: jnp.asarray(found.encode(prompts))


def _no_encoder(why: str, prompts: Sequence[str]) -> Array:
    raise ValueError(
        f"{why}, given {list(prompts)!r}; accepted are embeddings [l d], by jdiff.combine.cfg and jdiff.sample.sample"
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, accepted is an object")
    return value


def _hash(files: Sequence[Path]) -> str:
    """sha256 of the files' names, shapes, dtypes and of the sha256 of their source: not of gigabytes."""
    digest = hashlib.sha256()
    for path in files:
        entries, metadata = convert.read_header(path)
        digest.update(json.dumps([path.parent.name, sorted(entries), sorted(metadata.items())]).encode())
    return digest.hexdigest()
