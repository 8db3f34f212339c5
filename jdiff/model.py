"""A model that is ready to sample: `load` by name or from a folder, `save`, and guidance of prompts."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import checks, combine, step
from jdiff.checkpoints import digests, files, places, scheduler, sources
from jdiff.checkpoints.folder import write_model
from jdiff.checkpoints.places import find as find
from jdiff.checkpoints.places import shipped as shipped
from jdiff.networks import config as config_json
from jdiff.networks import unet
from jdiff.text import embeddings
from jdiff.text import encoder as encoders
from jdiff.types import Array, Json, Network, Params

DTYPES = ("float32", "bfloat16", "float16", "float64")  # of a network; float64 only where JAX has it enabled


class Defaults(NamedTuple):
    """Default settings of a model's sampling. The values here are those of diffusers for IF's stage 1."""

    sampler: str = "diffusers"
    steps: int = 100
    guidance: float = 7.0
    noise_level: int = 250  # stage 2: timestep to which the low-res picture is noised
    factor: int = 4  # stage 2: size of the result divided by that of the low-res picture
    low_res: int = 64  # stage 2: shorter side of the low-res picture


STAGE2 = Defaults(steps=50, guidance=4.0)


class Loaded(NamedTuple):
    """Parameters as they were loaded, and the files by which their digest is cached."""

    params: Params
    files: list[Path]
    dtype: str
    cache: Path | None  # folder that keeps digests between processes


class Model(NamedTuple):
    """A network that is ready to sample, with everything that the tasks need to know about it."""

    network: Network  # predicts for x [n h w c], t [n] and Conditioning [n ...]
    embed: Callable[[Sequence[str]], Array]  # prompts -> embeddings [n l d]
    schedule: np.ndarray  # noise schedule abar [steps], float64
    config: unet.Config
    x0_rule: Callable[[Array], Array]  # applied to the clean estimate: a rule of `jdiff.step`
    defaults: Defaults
    name: str
    predicts: Callable[..., Array] = step.noise  # what the network estimates: a parametrisation of `jdiff.step`
    variance: Callable[..., Array] = step.learned  # of ancestral sampling: `step.learned`, `small` or `large`
    encoder: encoders.Encoder | None = None  # embeds the prompts that have no known embedding
    loaded: Loaded | None = None  # where the parameters came from, so that their digest can be cached

    @property
    def hash(self) -> str:
        """The sha256 of everything that decides the model's predictions, in hex. It does not depend on the file format.

        Everything is: the parameters in the dtype of the network (names, shapes and values), the config, the noise
        schedule, the rules for estimates, and the text encoder. So a network in diffusers' files and the same network
        converted have the same hash. The digest of files above 64 MiB is cached by path, size and time: between
        processes if the model was loaded with a `cache`, otherwise within this process.

        Example:
            >>> model = load("mini")
            >>> doubled = jax.tree.map(lambda a: 2 * a, model.network.params)
            >>> model._replace(network=model.network.bind(doubled)).hash == model.hash
            False
        """
        params, loaded = self.network.params, self.loaded
        if loaded is not None and loaded.params is params:
            digest = digests.of_files(loaded.files, loaded.dtype, lambda: digests.of_params(params), loaded.cache)
        else:
            digest = digests.of_params(params)
        rules = [_name(rule) for rule in (self.x0_rule, self.predicts, self.variance)]
        told = [digest, dataclasses.asdict(self.config), np.float32(self.schedule).tolist(), rules]
        told.append(None if self.encoder is None else self.encoder.hash)
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes the model to a folder, which `load` reads.

        The folder holds `unet/`, `text_encoder/` if the model has an encoder, `scheduler/` and `defaults.json`. The
        safetensors files contain a digest of their content, which `load` and `jdiff.checkpoints.files.check` verify.

        Args:
            folder: a new folder, or one with a saved model. That model is replaced, and other files stay.

        Raises:
            ValueError: a part cannot be written to files, such as a custom `x0_rule`; or the folder holds something
                else.
            OSError: a file cannot be written. The folder is then unchanged.

        Example:
            >>> import tempfile
            >>> model = load("mini")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save(f"{folder}/copy")
            ...     load(f"{folder}/copy").hash == model.hash
            True
        """
        noise = scheduler.written(scheduler.Scheduler(self.schedule, self.x0_rule, self.predicts, self.variance))
        own = None if self.encoder is None else self.encoder.folder
        write_model(
            folder,
            self.config,
            self.network.params,
            scheduler=noise,
            defaults=self.defaults._asdict(),
            text_encoder=own,
        )

    def guided(
        self, prompts: Sequence[str], guidance: combine.Scale | None = None, negative: str = ""
    ) -> list[combine.Combiner]:
        """Returns the classifier-free guidance of each prompt, which other combiners can use.

        Args:
            prompts: a list of prompts.
            guidance: guidance scale, or a function of the level such as `combine.between`; the model's default if None.
            negative: prompt that guidance leads away from.

        Returns:
            `combine.guided` of each prompt.

        Raises:
            ValueError: `prompts` is a single string, a prompt cannot be embedded, or `guidance` is not a finite number.

        Example:
            >>> model = load("mini")
            >>> six, nine = model.guided(["a red six", "a red nine"])
            >>> combine.size(combine.mean([six, nine]))
            4
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a list of prompts, got {prompts!r}; write [{prompts!r}]")
        nothing, *texts = self.embed([negative, *prompts])
        scale = self.defaults.guidance if guidance is None else guidance
        scale = scale if callable(scale) else checks.number("guidance", scale)
        return [combine.guided(text, scale, nothing) for text in texts]


def load(
    name_or_folder: str | Path,
    dtype: files.DTypeLike = "float32",
    *,
    known: Mapping[str, Array | np.ndarray] = embeddings.NONE,
    encoder: str | Path | None = None,
    texts: Sequence[str] = (),
    cache: str | Path | None = None,
) -> Model:
    """Loads a model.

    Args:
        name_or_folder: a shipped model ("mini", "mini-upscaler", "letters"), a folder that `Model.save`, `jdiff
            convert` or diffusers wrote, or OWNER/NAME on the hub, such as "DeepFloyd/IF-I-L-v1.0". The licence of
            DeepFloyd's models must first be accepted on the hub.
        dtype: dtype of the network: float32, bfloat16 or float16. The text encoder computes in float32.
        known: {prompt: embedding [l d]}, as `embeddings.read` returns it. These prompts need no encoder.
        encoder: the text encoder for all other prompts: a folder that `jdiff convert` or transformers wrote, or
            OWNER/NAME/text_encoder on the hub. The model's own if None.
        texts: prompts to embed before the network's weights are read, so that the weights of the encoder and of the
            network are never in memory together. The model keeps these embeddings.
        cache: folder that keeps embeddings, and digests of large files, between processes.

    Returns:
        The model.

    Raises:
        ValueError: there is no such model, its files are wrong, or an argument is.

    Example:
        >>> model = load("mini", texts=["a red three"])
        >>> model.embed(["a red three"]).shape, model.config.sample_size
        ((1, 40, 128), 32)
    """
    name = str(getattr(dtype, "name", None) or (dtype if isinstance(dtype, str) else np.dtype(dtype).name))
    if name not in DTYPES:
        raise ValueError(f"dtype must be {', '.join(DTYPES[:3])}, got {name!r}")
    if name == "float64" and jnp.result_type(float) != jnp.float64:
        raise ValueError("dtype float64 needs 64 bits in JAX; set jax.config.update('jax_enable_x64', True)")
    cache = None if cache is None else Path(cache)
    half = jnp.dtype(name).itemsize == 2
    folder = places.find(name_or_folder, half)
    config = unet.read_config(folder / "unet")
    noise = scheduler.read(_json(folder / "scheduler" / "scheduler_config.json"), config.upscales)
    defaults = _defaults(folder / "defaults.json", STAGE2 if config.upscales else Defaults())

    found, why = _encoder(folder / "text_encoder", encoder, cache)
    embed = embeddings.embedder(known, found, cache, why)
    if texts:  # before the network's weights are read, which must not be in memory beside the encoder's
        known = {**known, **dict(zip(texts, embed(list(texts)), strict=True))}
        embed = embeddings.embedder(known, found, cache, why)
    network = unet.unet(config)
    source = sources.find("unet", folder / "unet", network.params, half)
    copied = lambda x: jax.block_until_ready(jax.device_put(x, may_alias=False))  # one array at a time
    flat = {path: copied(x) for path, x in source.arrays(jnp.dtype(name))}
    network = network.bind(files.unflatten(flat, network.params))
    return Model(
        network=network,
        embed=partial(_embedded, embed, config.encoder_hid_dim),
        config=config,
        **noise._asdict(),
        defaults=defaults,
        name=folder.resolve().name if Path(name_or_folder).is_dir() else Path(name_or_folder).name,
        encoder=found,
        loaded=Loaded(network.params, source.paths, name, cache),
    )


def _encoder(own: Path, given: str | Path | None, cache: Path | None) -> tuple[encoders.Encoder | None, str]:
    """Returns the given text encoder, or the model's own, or None; and the reason if there is none."""
    if given is not None:
        return encoders.find(given, cache=cache), ""
    if not any(own.glob("model*.safetensors")):
        return None, "the model's folder has no text encoder that reads prompts"
    try:
        return encoders.find(own, cache=cache), ""
    except ValueError as error:
        return None, f"the model's text encoder cannot be used: {error}"


def _embedded(embed: Callable[[Sequence[str]], np.ndarray], width: int, prompts: Sequence[str]) -> Array:
    states = jnp.asarray(embed(prompts))
    if len(states) and states.shape[-1] != width:
        raise ValueError(
            f"embeddings must be {width} wide for this model, got {states.shape[-1]}; use those of its own text encoder"
        )
    return states


def _json(path: Path) -> Json:
    """Returns the contents of a JSON file, or an empty dict if there is no file."""
    return config_json.read(path) if path.is_file() else {}


def _defaults(path: Path, defaults: Defaults) -> Defaults:
    """Returns the defaults, with the values of a file replacing theirs."""
    given = dict(_json(path))
    if unknown := [key for key in given if key not in Defaults._fields]:
        raise ValueError(f"{path} must hold only {', '.join(Defaults._fields)}, got {unknown[0]!r}")
    try:
        for key in given.keys() & {"steps", "factor", "low_res"}:
            given[key] = checks.whole(key, given[key], 1)
        if "noise_level" in given:
            given["noise_level"] = checks.whole("noise_level", given["noise_level"], 0)
        if "guidance" in given:
            given["guidance"] = checks.number("guidance", given["guidance"])
        if not isinstance(given.get("sampler", ""), str):
            raise ValueError(f"sampler must be a name, got {given['sampler']!r}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return defaults._replace(**given)


def _name(rule: Callable) -> list[object]:
    """Returns a function as JSON: its module, its name, and the arguments of a partial."""
    function, args = getattr(rule, "func", rule), getattr(rule, "args", ())
    told = [_name(x) if callable(x) else np.asarray(x).tolist() for x in args]
    return [getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(function)), told]
