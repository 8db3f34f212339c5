"""Embeddings of prompts: in files, and from an encoder for the prompts that no file has."""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jdiff.checkpoints import files
from jdiff.text import cleaning
from jdiff.text.decoders import DECODERS, Refused
from jdiff.text.encoder import Encoder
from jdiff.text.kept import Kept

NONE: Mapping[str, np.ndarray] = MappingProxyType({})
NEAREST = 3  # prompts that an error shows for each that is not known


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a file of embeddings.

    Nothing in a file is run: a pickle of anything but tensors is refused. A file that `write` wrote carries a digest
    of its content, which is compared (above 64 MiB by `jdiff.checkpoints.files.check` alone).

    Args:
        path: a .safetensors that `write` wrote; another .safetensors or an .npz, whose names are the prompts; an .npy,
            which is the empty prompt's, as deep-floyd publishes it; or a .pth or .pt, as the course hands out: a dict
            of prompts and tensors [1 l d] that torch saved. Only the last needs torch.

    Returns:
        {prompt: embedding [l d]}, in the dtype that it is stored in.

    Raises:
        ValueError: what is wrong with the file, in one line.

    Reference:
        The course's `prompt_embeds_dict.pth`; deep-floyd/IF's `zero_t5-v1_1-xxl_vector.npy`.
    """
    path = Path(path)
    if path.suffix.lower() not in DECODERS:
        raise ValueError(f"{path} must be a file of embeddings that ends in {', '.join(DECODERS)}")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give a file of embeddings")
    try:
        decoded = DECODERS[path.suffix.lower()](path)
        table = {prompt: x[0] if x.ndim == 3 and len(x) == 1 else x for prompt, x in decoded.items()}
        _check(table, str(path))
    except Refused:
        raise
    except Exception as error:  # of a damaged file, a decoder may raise anything
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} is damaged, or no file of embeddings alone ({said[:200]})") from error
    return table


def write(path: str | Path, table: Mapping[str, Any]) -> None:
    """Writes embeddings as safetensors, one tensor for each prompt, in their own dtypes.

    The tensors are named by their numbers; the prompts are in the metadata, with a digest of the content.

    Args:
        path: the file. On failure it stays as it was.
        table: {prompt: embedding [l d]}.

    Raises:
        ValueError: the table is empty, or its embeddings are not finite or not of one size.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/a.safetensors", {"a red three": np.zeros((77, 8), np.float16)})
        ...     {prompt: x.shape for prompt, x in read(f"{folder}/a.safetensors").items()}
        {'a red three': (77, 8)}
    """
    arrays = {prompt: np.asarray(x) for prompt, x in table.items()}
    _check(arrays, "table")
    told = {"kind": "embeddings", "prompts": json.dumps(list(arrays))}
    files.save(path, {str(i): x for i, x in enumerate(arrays.values())}, told)


def embedder(
    known: Mapping[str, Any] = NONE,
    encoder: Encoder | None = None,
    cache: str | Path | None = None,
    why: str = "there is no text encoder",
) -> Callable[[Sequence[str]], np.ndarray]:
    """Returns a function from prompts to embeddings, float32 [n l d].

    A prompt is looked up as it is, then without regard to case and surrounding space. The encoder embeds all unknown
    prompts in one call; its weights are read for that and then freed. Its results stay in memory, up to 128 MiB, and in
    the cache.

    Args:
        known: {prompt: embedding [l d]}.
        encoder: makes the embeddings of all other prompts. Without one they are an error.
        cache: folder that keeps what the encoder made between processes; None keeps none.
        why: what the error says if there is no encoder.

    Example:
        >>> embed = embedder({"a red three": np.zeros((77, 8))})
        >>> embed(["A red three"]).shape
        (1, 77, 8)
        >>> embed(["a tree"])
        Traceback (most recent call last):
        ...
        ValueError: there is no text encoder, and no embedding of 'a tree' (nearest: 'a red three'); give prompts that
        have an embedding, or an encoder
    """
    kept = None if encoder is None else Kept(encoder, None if cache is None else Path(cache))
    alike = {_lower(prompt): prompt for prompt in known}

    def embed(prompts: Sequence[str]) -> np.ndarray:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        found = {p: known[alike[_lower(p)]] for p in prompts if _lower(p) in alike}
        found |= {p: known[p] for p in prompts if p in known}
        missing = [p for p in dict.fromkeys(prompts) if p not in found]
        if missing and kept is None:
            raise ValueError(_unknown(missing, known, why))
        if missing and kept is not None:
            found |= kept(missing)
        if not prompts:
            return np.zeros((0, *((encoder.length, encoder.width) if encoder else (0, 0))), np.float32)
        arrays = [np.asarray(found[p], np.float32) for p in prompts]
        if len({x.shape for x in arrays}) > 1:
            sizes = ", ".join(f"{list(x.shape)} for {p!r}" for p, x in zip(prompts, arrays, strict=True))
            raise ValueError(f"embeddings must be of one size, that of one text encoder, got {sizes}")
        return np.stack(arrays)

    return embed


def _check(table: Mapping[str, np.ndarray], name: str) -> None:
    """Raises an error unless these are embeddings [l d], all of one size."""
    if not table:
        raise Refused(f"{name} must hold an embedding or more, got none")
    first = next(iter(table.values())).shape
    for prompt, x in table.items():
        if x.ndim != 2 or 0 in x.shape or x.shape != first:
            raise Refused(f"{name} must hold embeddings [l d], all of one size, got {list(x.shape)} for {prompt!r}")
        if x.dtype not in files.FLOATS.values():
            raise Refused(f"{name} must hold numbers of {', '.join(files.FLOATS)}, got {x.dtype} for {prompt!r}")
        if not np.isfinite(x).all():
            raise Refused(f"{name} must hold finite numbers, got others for {prompt!r}")


def _lower(prompt: Any) -> Any:  # Any: known is the user's, and what is no text is refused later
    return cleaning.lower(prompt) if isinstance(prompt, str) else prompt


def _unknown(missing: Sequence[str], known: Mapping[str, Any], why: str) -> str:
    if not known:
        return f"{why}, got {missing!r}; give an encoder, or their embeddings [l d] in a file or as `known`"
    near = lambda prompt: ", ".join(map(repr, difflib.get_close_matches(str(prompt), known, NEAREST, cutoff=0)))
    each = ", ".join(f"{prompt!r} (nearest: {near(prompt)})" for prompt in missing)
    return f"{why}, and no embedding of {each}; give prompts that have an embedding, or an encoder"
