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

from jdiff import checks, combine, schedule, step
from jdiff.checkpoints import convert, hub
from jdiff.networks import unet
from jdiff.text import embeddings
from jdiff.text import encoder as encoders
from jdiff.types import Array, Network

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
    """A network that is ready to sample, with all that the tasks need to know of it."""

    network: Network  # predicts for x [n h w c], t [n] and Conditioning [n ...]
    embed: Callable[[Sequence[str]], Array]  # prompts -> embeddings [n l d]
    schedule: np.ndarray  # noise schedule abar [steps], float64
    config: unet.Config
    x0_rule: Callable[[Array], Array]  # what the model's own samplers do with the clean estimate
    defaults: Defaults
    name: str
    hash: str  # sha256 in hex of the weights
    predicts: Callable[..., Array] = step.noise  # what the network estimates: a parametrisation of `jdiff.step`

    def guided(
        self, prompts: Sequence[str], guidance: float | None = None, negative: str = ""
    ) -> list[combine.Combiner]:
        """Returns the classifier-free guidance of each prompt, to be combined further.

        Args:
            prompts: a list of prompts.
            guidance: guidance scale; the model's own if None.
            negative: prompt that guidance leads away from.

        Returns:
            One Combiner for each prompt.

        Raises:
            ValueError: `prompts` is a single string, or `guidance` is no number.

        Example:
            >>> model = load("mini")
            >>> six, nine = model.guided(["a red six", "a red nine"])
            >>> combine.size(combine.mean([six, nine]))
            4
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a list of prompts, got {prompts!r}; write [{prompts!r}]")
        nothing, *texts = self.embed([negative, *prompts])
        scale = checks.number("guidance", self.defaults.guidance if guidance is None else guidance)
        return [combine.cfg(text, scale, nothing) for text in texts]


def shipped(name: str) -> Path:
    """Folder of weights that came with the library, in a wheel or in a checkout.

    >>> (shipped("mini") / "unet" / "config.json").is_file()
    True
    """
    package = Path(__file__).resolve().parent
    return next((p for p in (package / "weights" / name, package.parent / "weights" / name) if p.is_dir()), Path(name))


def load(
    name_or_folder: str | Path,
    dtype: Any = "float32",
    *,
    known: Mapping[str, Any] = embeddings.NONE,
    encoder: str | Path | None = None,
    texts: Sequence[str] = (),
    cache: str | Path | None = None,
) -> Model:
    """The Model of that name ("mini" and "mini-upscaler" are shipped), or of a folder that `jdiff convert` wrote.

    A folder of diffusers' own is read too, tensor by tensor; and a hub's OWNER/NAME, "DeepFloyd/IF-I-L-v1.0", by
    `jdiff.checkpoints.hub.find`, whose licence is to be accepted there first.

    Args:
        name_or_folder: of the model.
        dtype: of the network: float32, bfloat16 or float16; the text encoder computes in float32.
        known: {prompt: embedding [l d]}, as `embeddings.read` has it: prompts that need no encoder.
        encoder: folder of the text encoder for all others; None is the model's own `text_encoder/`.
        texts: prompts that are embedded before the network's weights are read, so that its encoder's and they are
            never in memory together, however large; they are known from then on.
        cache: folder where what the encoder made is kept, and found again.

    Raises ValueError, in one message, where there is no such folder or its files are no model's.

    >>> model = load("mini", texts=["a red three"])
    >>> model.embed(["a red three"]).shape, model.config.sample_size
    ((1, 40, 128), 32)
    """
    name = str(getattr(dtype, "name", None) or (dtype if isinstance(dtype, str) else np.dtype(dtype).name))
    if name not in DTYPES and name != "float64":
        raise ValueError(f"dtype is {name!r}, accepted are {', '.join(DTYPES)}")
    folder = find(name_or_folder, half=np.dtype(DTYPES.get(name, np.float64)).itemsize == 2)
    config = unet.read_config(folder / "unet")
    network = unet.unet(config)
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    abar, rule = read_scheduler(scheduler, config.upscales)
    defaults = (STAGE2 if config.upscales else Defaults())._replace(**_json(folder / "defaults.json"))

    found, why = _encoder(folder / "text_encoder", encoder)
    embed = embeddings.embedder(known, found, cache, why)
    if texts:  # before the network, whose weights are not to be in memory with the encoder's
        known = {**known, **dict(zip(texts, embed(list(texts)), strict=True))}
        embed = embeddings.embedder(known, found, cache, why)
    weights = convert.weights(folder / "unet", network.params, DTYPES.get(name, np.float64))
    params = {path: jax.block_until_ready(jnp.array(x)) for path, x in weights.arrays}  # one by one: not all twice
    digest = _hash(folder, weights)
    return Model(
        network=network.bind(convert.unflatten(params, network.params)),
        embed=partial(_embedded, embed, config.encoder_hid_dim),
        schedule=abar,
        config=config,
        x0_rule=rule,
        defaults=defaults,
        name=folder.resolve().name if Path(name_or_folder).is_dir() else Path(name_or_folder).name,
        hash=hashlib.sha256(f"{digest} {found.hash}".encode()).hexdigest() if encoder and found else digest,
        predicts=PREDICTIONS[scheduler.get("prediction_type", "epsilon")],
    )


def find(name_or_folder: str | Path, half: bool = False) -> Path:
    """Folder of the model: the one given, one that is shipped, or one that `hub.find` downloads.

    Raises ValueError where it holds no UNet, and with what is accepted where there is none.

    >>> find("mini") == shipped("mini")
    True
    """
    folder = Path(name_or_folder)
    if not folder.is_dir():
        folder = shipped(str(name_or_folder))
    if not folder.is_dir() and hub.is_name(name_or_folder):
        folder = hub.find(str(name_or_folder), half)
    accepted = "folders written by `jdiff convert` or diffusers"
    if not folder.is_dir():
        raise ValueError(
            f"model is {str(name_or_folder)!r}, accepted are mini, mini-upscaler, {accepted}, and OWNER/NAME on the hub"
        )
    names = ("model*.safetensors", "diffusion_pytorch_model*.safetensors")
    if not any(path for name in names for path in (folder / "unet").glob(name)):
        raise ValueError(
            f"model is {str(name_or_folder)!r}, which holds no unet/model.safetensors, accepted are {accepted}"
        )
    return folder


# What a network estimates, under diffusers' names.
PREDICTIONS = {"epsilon": step.noise, "v_prediction": step.v_prediction, "sample": step.clean}


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
        ("prediction_type", tuple(PREDICTIONS), "epsilon"),
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


def _encoder(own: Path, given: str | Path | None) -> tuple[encoders.Encoder | None, str]:
    """(the text encoder `given`, or the model's `own`, or None; why there is none)."""
    if given is not None:
        return encoders.find(given), ""
    if not (own / "model.safetensors").is_file():
        return None, "the model's folder has no text encoder that reads prompts"
    try:
        return encoders.find(own), ""
    except ValueError as error:
        return None, f"the model's text encoder cannot be used: {error}"


def _embedded(embed: Callable[[Sequence[str]], np.ndarray], width: int, prompts: Sequence[str]) -> Array:
    states = jnp.asarray(embed(prompts))
    if len(states) and states.shape[-1] != width:
        raise ValueError(f"the prompts' embeddings are {states.shape[-1]} wide, accepted by this model are {width}")
    return states


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


def _hash(folder: Path, weights: convert.Weights) -> str:
    """sha256 of the files' names, shapes, dtypes and of the sha256 of their source: not of gigabytes."""
    told = [["unet", weights.names, sorted(weights.metadata.items())]]
    if (own := folder / "text_encoder" / "model.safetensors").is_file():
        entries, metadata = convert.read_header(own)
        told.append(["text_encoder", sorted(entries), sorted(metadata.items())])
    return hashlib.sha256("".join(map(json.dumps, told)).encode()).hexdigest()
