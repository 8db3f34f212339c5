"""A text encoder in a folder: its weights are in memory only while it encodes, all at once or layer by layer."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import checks
from jdiff.checkpoints import convert, digests, files, hub, int8, places, sources
from jdiff.checkpoints.sources import Source, Tensor
from jdiff.networks import config as config_json
from jdiff.networks import t5
from jdiff.parts import is_folder
from jdiff.text import cleaning, tokens
from jdiff.types import Array, Json, Params

STREAMED = 2**30  # bytes of weights, in the dtype computed in, above which they are read one layer at a time
ROWS = 1  # prompts at once: a prompt's states are then the same to the bit, whatever is encoded beside it
DTYPES = ("float32", "bfloat16", "float16")
ACCEPTED = "a folder that `jdiff convert` or transformers wrote of a T5 encoder, or OWNER/NAME/text_encoder on the hub"


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A text encoder in a folder. Nothing is loaded until it encodes, and all is freed afterwards.

    Attributes:
        folder: the encoder's own folder, with its config.json.
        clean: name of the cleaning mode, a key of `cleaning.CLEANING`.
        length: tokens of a prompt.
        width: width of the states.
        encode: prompts, which it cleans, -> states, float32 [n length width].
        identify: returns the hash.
    """

    folder: Path
    clean: str
    length: int
    width: int
    encode: Callable[[Sequence[str]], np.ndarray]
    identify: Callable[[], str]

    @property
    def hash(self) -> str:
        """sha256 in hex of what decides the states: the weights as stored, the tokenizer, the config and the dtype.

        Weights above 64 MiB are read once for it; then their digest is remembered, as `find` says.
        """
        return self.identify()


def find(
    folder: str | Path,
    *,
    clean: str | None = None,
    stream: bool | None = None,
    dtype: str = "float32",
    cache: str | Path | None = None,
) -> Encoder:
    """Finds a text encoder.

    Args:
        folder: a folder that `jdiff convert`, `Model.save` or transformers wrote: a model's, with `text_encoder/`, or
            the encoder's own; a shipped model's name; or OWNER/NAME/text_encoder on the hub, which is downloaded.
        clean: how prompts are cleaned: none, lower or caption. None takes the folder's own, the key `clean` of its
            config.json, or else lower.
        stream: whether weights are read one layer at a time; None does so above 1 GiB of weights.
        dtype: what it computes in: float32, bfloat16 or float16.
        cache: folder that remembers the digests of large files between processes; within this process only if None.

    Raises:
        ValueError: what is missing or wrong.

    Example:
        >>> encoder = find("mini")
        >>> encoder.length, encoder.width, encoder.encode(["a red three", "a blue two"]).shape
        (40, 128, (2, 40, 128))
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be {', '.join(DTYPES)}, got {dtype!r}")
    own = _folder(folder, jnp.dtype(dtype).itemsize == 2)
    config = t5.read_config(own)
    settings = config_json.read(own)
    clean = settings.get("clean", "lower") if clean is None else clean
    if not isinstance(clean, str) or clean not in cleaning.CLEANING:
        raise ValueError(f"clean must be {', '.join(cleaning.CLEANING)}, got {clean!r}")
    length, tokenize, vocabulary = _tokenizer(own, settings)
    _, shapes = t5.t5(config)
    source = sources.find("t5", own, shapes)
    if stream is None:
        stream = sum(a.size for a in jax.tree.leaves(shapes)) * jnp.dtype(dtype).itemsize > STREAMED
    states, mode = (_streamed if stream else _whole), clean

    def encode(prompts: Sequence[str]) -> np.ndarray:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        ids, mask = tokenize([cleaned(mode, prompt) for prompt in prompts], length)
        if ids.max(initial=0) >= config.vocab_size:
            raise ValueError(
                f"{own}'s tokenizer goes up to token {ids.max()}, but its weights end at {config.vocab_size - 1}; use "
                "the tokenizer that belongs to them"
            )
        return states(config, dtype, source, ids, mask)

    def identify() -> str:
        weights = digests.of_files(
            source.paths, "t5", lambda: digests.of_arrays({k: v.read for k, v in source.tensors.items()}), _path(cache)
        )
        told = [weights, dataclasses.asdict(config), length, dtype, digests.together(vocabulary)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    return Encoder(own, clean, length, config.d_model, encode, identify)


def cleaned(mode: str, prompt: Any) -> str:
    """Returns a prompt as an encoder with this cleaning mode reads it.

    Raises:
        ValueError: the prompt is no text, or not in UTF-8.

    Example:
        >>> cleaned("lower", "A red three ")
        'a red three'
    """
    if not isinstance(prompt, str) or any("\ud800" <= c <= "\udfff" for c in prompt):
        raise ValueError(f"a prompt must be text in UTF-8, got {prompt!a}")
    return cleaning.CLEANING[mode](prompt)


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder)


def _folder(given: str | Path, half: bool) -> Path:
    """The encoder's own folder."""
    folder = Path(given)
    folder = folder if is_folder(folder) else places.shipped(str(given))
    if not is_folder(folder) and hub.is_name(given):
        if not str(given).endswith("/text_encoder"):
            raise ValueError(f"the encoder must be {ACCEPTED}, got {str(given)!r}; add /text_encoder")
        return hub.find(str(given), half)
    if not is_folder(folder):
        raise ValueError(places.missing("the encoder", given, ACCEPTED))
    own = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    lacking = [] if (own / "config.json").is_file() else ["config.json"]
    lacking += [] if any(own.glob("model*.safetensors")) else ["model.safetensors"]
    if lacking:
        raise ValueError(f"the encoder must be {ACCEPTED}, got {str(given)!r}; {own} has no {' and no '.join(lacking)}")
    return own


def _tokenizer(folder: Path, settings: Json) -> tuple[int, tokens.Tokenizer, list[Path]]:
    """(tokens of a prompt, the tokenizer, its files)."""
    if settings.get("tokenizer_class") == "ByT5Tokenizer":
        return checks.whole(f"{folder}/config.json: max_length", settings.get("max_length"), 1), tokens.byte_tokens, []
    paths = convert.tokenizer(folder)
    if not paths:
        raise ValueError(f"{folder} has no {tokens.PIECES}; copy the tokenizer's {tokens.PIECES} beside the weights")
    opened = functools.cache(lambda: tokens.piece_tokens(paths[0].parent))  # reading it takes a second
    return tokens.LENGTH, lambda prompts, length: opened()(prompts, length), paths


@functools.cache
def _programs(config: t5.Config, dtype: str) -> tuple[Callable, Callable, Callable]:
    """(all, layer, norm), compiled for weights as they are stored."""
    apply, shapes = t5.t5(config)
    shapes = t5.in_dtype(shapes, dtype)
    layer, norm = t5.layers(config)

    def whole(params: Params, ids: Array, mask: Array) -> Array:
        return apply(int8.restore(params, shapes), ids, mask).astype(jnp.float32)

    def one(params: Params, table: Array, x: Array, mask: Array) -> Array:
        return layer(int8.restore(params, shapes["block"][0]), jnp.asarray(table, dtype), x, mask)

    def last(params: Params, x: Array) -> Array:
        return norm(int8.restore(params, shapes["final_layer_norm"]), x).astype(jnp.float32)

    return jax.jit(whole), jax.jit(one, donate_argnums=2), jax.jit(last)


def _chunks(ids: np.ndarray, mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, mask) of at most ROWS prompts each. All chunks have one size, so that one program runs them."""
    n = len(ids)
    size = -(-n // max(1, -(-n // ROWS)))
    at = [np.arange(k, k + size) % n for k in range(0, n, size or 1)]
    return [(ids[i], mask[i]) for i in at]


def _whole(config: t5.Config, dtype: str, source: Source, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """States, float32 [n l d], with all weights in memory."""
    everything, _, _ = _programs(config, dtype)
    params = files.unflatten({path: _on_device(tensor) for path, tensor in source.tensors.items()}, source.stored)
    states = _joined([everything(params, *chunk) for chunk in _chunks(ids, mask)], ids, config)
    _free(params)
    return states


def _streamed(config: t5.Config, dtype: str, source: Source, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """States, float32 [n l d], with one layer's weights in memory, and of the vocabulary the rows of these tokens."""
    _, layer, norm = _programs(config, dtype)
    stored, chunks = source.stored, _chunks(ids, mask)

    def weights(prefix: str, shapes: Mapping) -> dict:
        flat = {name: _on_device(source.tensors[f"{prefix}.{name}"]) for name in files.flatten(shapes)}
        return files.unflatten(flat, shapes)

    vocabulary = source.tensors["shared.embedding"].read()
    xs = [jnp.asarray(vocabulary[ids], dtype).astype(t5.residual_dtype(dtype)) for ids, _ in chunks]
    del vocabulary
    table = weights("relative_attention_bias", stored["relative_attention_bias"])["embedding"]
    for i, shapes in stored["block"].items():
        params = weights(f"block.{i}", shapes)
        xs = [layer(params, table, x, mask) for x, (_, mask) in zip(xs, chunks, strict=True)]
        jax.block_until_ready(xs)
        _free(params)
    params = weights("final_layer_norm", stored["final_layer_norm"])
    states = _joined([norm(params, x) for x in xs], ids, config)
    _free({"norm": params, "table": table})
    return states


def _on_device(tensor: Tensor) -> jax.Array:
    """The tensor, copied once its file is read: without waiting, all of a layer would be in memory twice."""
    return jax.block_until_ready(jnp.array(tensor.read()))


def _free(params: Params) -> None:
    """Frees arrays that no computation waits for. If they were only dropped, their memory would linger."""
    for array in jax.tree.leaves(params):
        array.delete()


def _joined(states: Sequence[Array], ids: np.ndarray, config: t5.Config) -> np.ndarray:
    empty = np.zeros((0, ids.shape[1], config.d_model), np.float32)
    return np.concatenate([empty, *map(np.asarray, states)])[: len(ids)]
