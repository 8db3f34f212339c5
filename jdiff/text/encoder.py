"""A text encoder in a folder: prompts to embeddings, its weights in memory only meanwhile, or layer by layer."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.checkpoints import convert, digests, int8
from jdiff.networks import t5
from jdiff.text import tokens as text

STREAMED = 2**30  # bytes of weights, in the dtype computed in, above which they are read one layer at a time
ROWS = 1  # prompts at once: so the states of one are the same to the bit whatever is encoded beside it
DTYPES = ("float32", "bfloat16", "float16")


class Encoder(NamedTuple):
    """A text encoder that lies in a folder: nothing is loaded until it encodes, and freed when it has."""

    hash: str  # sha256 in hex of the contents of its files, and of the dtype it computes in
    clean: str  # name of the cleaning mode, a key of text.CLEANING
    length: int  # tokens of a prompt
    width: int  # d_model
    encode: Callable[[Sequence[str]], np.ndarray]  # prompts, which it cleans -> states, float32 [n length width]
    folder: Path


def find(
    folder: str | Path, *, clean: str | None = None, stream: bool | None = None, dtype: str | None = None,
    cache: str | Path | None = None,
) -> Encoder:  # fmt: skip
    """The Encoder in a folder that `jdiff convert` wrote: a model's, with `text_encoder/`, or the encoder's own.

    `clean` names how prompts are cleaned; None takes the folder's own, the key `clean` of its config.json, or "lower".
    `dtype` it computes in: float32 (None), bfloat16 or float16. With `stream` its weights are read one layer at a
    time; None does so above 1 GiB of weights. Raises ValueError with what is missing, and what is accepted.

    >>> from jdiff.model import shipped
    >>> encoder = find(shipped("mini"))
    >>> encoder.length, encoder.width, encoder.encode(["a red three", "a blue two"]).shape
    (40, 128, (2, 40, 128))
    """
    dtype = "float32" if dtype is None else dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, accepted are {', '.join(DTYPES)}")
    given, folder = folder, Path(folder)
    folder = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    if missing := [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]:
        raise ValueError(
            f"the encoder is {str(given)!r}, but {folder} has no {' and no '.join(missing)}, accepted is a folder that "
            "`jdiff convert` wrote of a T5 encoder"
        )
    config = t5.read_config(folder)
    settings = json.loads((folder / "config.json").read_text())
    clean = settings.get("clean", "lower") if clean is None else clean
    if clean not in text.CLEANING:
        raise ValueError(f"clean is {clean!r}, accepted are {', '.join(text.CLEANING)}")
    length, tokens, vocabulary = _tokenizer(folder, settings)
    entries, metadata = convert.read_header(folder / "model.safetensors")
    _, abstract = t5.t5(config)
    stored = int8.shapes(abstract) if metadata.get("dtype") == "int8" else abstract
    convert.fit(folder, stored)
    if stream is None:
        stream = sum(a.size for a in jax.tree.leaves(abstract)) * jnp.dtype(dtype).itemsize > STREAMED
    states = _streamed if stream else _whole

    def encode(prompts: Sequence[str]) -> np.ndarray:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        ids, mask = tokens([cleaned(clean, prompt) for prompt in prompts], length)
        if ids.max(initial=0) >= config.vocab_size:
            raise ValueError(
                f"{folder}'s tokens go up to {ids.max()}, accepted by its weights is {config.vocab_size - 1}"
            )
        return states(config, dtype, folder / "model.safetensors", stored, ids, mask)

    told = [sorted((name, e.dtype, e.shape) for name, e in entries.items()), metadata, settings, length, dtype]
    return Encoder(
        _hash(told, [folder / "model.safetensors", *vocabulary], cache), clean, length, config.d_model, encode, folder
    )


def cleaned(mode: str, prompt: Any) -> str:
    """`prompt` as an encoder with that way of cleaning reads it; raises ValueError where it is no text.

    >>> cleaned("lower", "A red three ")
    'a red three'
    """
    if not isinstance(prompt, str) or any("\ud800" <= c <= "\udfff" for c in prompt):
        raise ValueError(f"prompt is {prompt!a}, accepted is text in UTF-8")
    return text.CLEANING[mode](prompt)


def _tokenizer(folder: Path, settings: Mapping[str, Any]) -> tuple[int, Callable, list[Path]]:
    """(tokens of a prompt, (prompts, length) -> (tokens, mask), files of the vocabulary)"""
    if settings.get("tokenizer_class") == "ByT5Tokenizer":
        if not isinstance(length := settings.get("max_length"), int) or length < 1:
            raise ValueError(f"{folder}/config.json has max_length {length!r}, accepted is a whole number from 1")
        return length, text.byte_tokens, []
    path = folder / text.PIECES
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {text.PIECES}, accepted is a folder with the tokenizer's {text.PIECES} beside its weights"
        )
    beside = folder / "tokenizer_config.json"
    extra = text.EXTRA
    if beside.is_file():
        try:
            extra = json.loads(beside.read_text()).get("extra_ids", text.EXTRA)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{beside} is no readable object of JSON: {error}") from error
        if not isinstance(extra, int) or extra < 0:
            raise ValueError(f"{beside} has extra_ids {extra!r}, accepted is a whole number from 0")
    opened = functools.cache(lambda: text.piece_tokens(path, extra))
    return (
        text.LENGTH,
        lambda prompts, length: opened()(prompts, length),
        [path, *([beside] if beside.is_file() else [])],
    )


def _hash(told: Any, files: Sequence[Path], cache: str | Path | None) -> str:
    """sha256 of the header of the weights and of the files' contents."""
    contents = [digests.sha256(path, cache) for path in files]
    return hashlib.sha256(json.dumps([told, contents], sort_keys=True).encode()).hexdigest()


@functools.cache
def _programs(config: t5.Config, dtype: str) -> tuple[Callable, Callable, Callable]:
    """(all, layer, norm), compiled for weights as they are stored."""
    apply, _ = t5.t5(config)
    layer, norm = t5.layers(config)
    wide = lambda params: int8.restore(params, dtype)
    return (
        jax.jit(lambda params, ids, mask: apply(wide(params), ids, mask).astype(jnp.float32)),
        jax.jit(
            lambda params, table, x, mask: layer(wide(params), jnp.asarray(table, dtype), x, mask), donate_argnums=2
        ),
        jax.jit(lambda params, x: norm(wide(params), x).astype(jnp.float32)),
    )


def _chunks(ids: np.ndarray, mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, mask) of at most ROWS prompts each, of one size, so that one program does; the last is filled up."""
    n = len(ids)
    size = -(-n // max(1, -(-n // ROWS)))
    at = [np.arange(k, k + size) % n for k in range(0, n, size or 1)]
    return [(ids[i], mask[i]) for i in at]


def _whole(config: t5.Config, dtype: str, path: Path, stored: Mapping, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """States, float32 [n l d], with all weights in memory."""
    everything, _, _ = _programs(config, dtype)
    params = jax.tree.map(jnp.asarray, convert.load(path, stored))
    states = _joined([everything(params, *chunk) for chunk in _chunks(ids, mask)], ids, config)
    _free(params)
    return states


def _streamed(
    config: t5.Config, dtype: str, path: Path, stored: Mapping, ids: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """States, float32 [n l d], with one layer's weights in memory, and of the vocabulary the rows of these tokens."""
    _, layer, norm = _programs(config, dtype)
    entries, chunks = convert.fit(path, stored), _chunks(ids, mask)

    def weights(prefix: str, shapes: Mapping) -> dict:
        flat = {name: _on_device(entries[f"{prefix}.{name}"]) for name in convert.flatten(shapes)}
        return convert.unflatten(flat, shapes)

    vocabulary = convert.read(entries["shared.embedding"])
    xs = [jnp.asarray(vocabulary[ids], dtype) for ids, _ in chunks]
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


def _on_device(entry: convert.Entry) -> jax.Array:
    """The tensor, copied once its file is read: without waiting, all of a layer would be in memory twice."""
    return jax.block_until_ready(jnp.array(convert.read(entry)))


def _free(params: Mapping) -> None:
    """Nothing; the memory of arrays that no computation waits for is free now: dropped alone, it lingers."""
    for array in jax.tree.leaves(params):
        array.delete()


def _joined(states: Sequence[Any], ids: np.ndarray, config: t5.Config) -> np.ndarray:
    empty = np.zeros((0, ids.shape[1], config.d_model), np.float32)
    return np.concatenate([empty, *map(np.asarray, states)])[: len(ids)]
