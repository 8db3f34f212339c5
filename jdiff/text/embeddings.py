"""Embeddings of prompts: in files, in a folder of those made before, and of an encoder only for what is in neither."""

import difflib
import hashlib
import json
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jdiff.checkpoints import convert
from jdiff.text import cleaning
from jdiff.text import encoder as encoders

NONE: Mapping[str, np.ndarray] = MappingProxyType({})
REMEMBERED = 64  # prompts whose embeddings stay in memory; 77 x 4096 numbers are 1.3 MB
NEAREST = 3  # prompts that an error shows for each that is not known


def _torch(path: Path) -> Mapping[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} needs torch to be read: pip install torch, or where it is, `jdiff embed --prompts {path}`"
        ) from error
    try:
        with warnings.catch_warnings():  # it warns of pickles that are not its own, and refuses them or not
            warnings.simplefilter("ignore")
            table = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is refused, accepted is a dict of tensors and nothing else, by torch.save") from error
    if not isinstance(table, Mapping):
        raise ValueError(f"{path} holds a {type(table).__name__}, accepted is a dict of prompts and their tensors")
    bad = [key for key, x in table.items() if not isinstance(key, str) or not isinstance(x, torch.Tensor)]
    if bad:
        raise ValueError(f"{path} has {bad[0]!r}, accepted is a dict of prompts and their tensors")
    plain = lambda x: x.float() if x.dtype == torch.bfloat16 else x
    return {prompt: plain(x.detach()).numpy() for prompt, x in table.items()}


def _numpy(path: Path) -> Mapping[str, np.ndarray]:
    try:
        found = np.load(path, allow_pickle=False)
        return {"": found} if isinstance(found, np.ndarray) else {prompt: found[prompt] for prompt in found.files}
    except (ValueError, EOFError, OSError, KeyError) as error:  # what is cut, and what is pickled
        raise ValueError(f"{path} is no file of arrays of numbers alone, as numpy writes it: {error}") from error


def _safetensors(path: Path) -> Mapping[str, np.ndarray]:
    entries, metadata = convert.read_header(path)
    if strange := [f"{name} of {e.dtype}" for name, e in entries.items() if e.dtype not in convert.DTYPES]:
        raise ValueError(f"{path} has {strange[0]}, accepted are {', '.join(convert.DTYPES)}")
    names = {name: name for name in entries}
    if "prompts" in metadata:
        try:
            names = {str(i): prompt for i, prompt in enumerate(json.loads(metadata["prompts"]))}
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} has no readable list of prompts in its metadata: {error}") from error
        if set(names) != set(entries) or not all(isinstance(prompt, str) for prompt in names.values()):
            raise ValueError(f"{path} has {len(entries)} tensors, accepted is one for each of its {len(names)} prompts")
    return {prompt: np.array(convert.read(entries[name])) for name, prompt in names.items()}


READERS: dict[str, Callable[[Path], Mapping[str, np.ndarray]]] = {
    ".safetensors": _safetensors,
    ".pth": _torch,
    ".pt": _torch,
    ".npy": _numpy,
    ".npz": _numpy,
}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """{prompt: embedding [l d]} of a file, in the dtype it is stored in.

    It is one that `write` wrote; any other .safetensors, or an .npz, whose names are the prompts; an .npy, which is
    the empty prompt's, as deep-floyd publishes it; or a .pth, as the course hands out: a dict that torch saved, of
    prompts and tensors [1 l d]. Nothing in a file is run: a pickle of anything but tensors is refused. Only .pth needs
    torch. Raises ValueError with what is wrong.

    Source: the course's `prompt_embeds_dict.pth`; deep-floyd/IF's `zero_t5-v1_1-xxl_vector.npy`.
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path} is no file of embeddings, accepted are {', '.join(READERS)}")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file, accepted is a file of embeddings")
    table = {}
    for prompt, x in READERS[path.suffix.lower()](path).items():
        table[prompt] = x[0] if x.ndim == 3 and len(x) == 1 else x
    _check(table, str(path))
    return table


def write(path: str | Path, table: Mapping[str, Any]) -> None:
    """Nothing: `path` then holds the embeddings {prompt: [l d]} as safetensors, one tensor each, in their own dtypes.

    They are named by their number; the prompts are in the metadata. On failure what was at `path` is still there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(f"{folder}/a.safetensors", {"a red three": np.zeros((77, 8), np.float16)})
    ...     {prompt: x.shape for prompt, x in read(f"{folder}/a.safetensors").items()}
    {'a red three': (77, 8)}
    """
    arrays = {prompt: np.asarray(x) for prompt, x in table.items()}
    _check(arrays, "table")
    told = {"kind": "embeddings", "prompts": json.dumps(list(arrays))}
    convert.save(path, {str(i): x for i, x in enumerate(arrays.values())}, told)


def _check(table: Mapping[str, np.ndarray], name: str) -> None:
    """Nothing; raises ValueError unless these are embeddings [l d], all of one size."""
    if not table:
        raise ValueError(f"{name} holds no embeddings, accepted is one prompt or more")
    first = next(iter(table.values())).shape
    for prompt, x in table.items():
        if x.ndim != 2 or 0 in x.shape or x.shape != first:
            given = f"{name} has shape {list(x.shape)} for {prompt!r}"
            raise ValueError(f"{given}, accepted is [l d], as tokens and their width, the same for all")
        if x.dtype not in convert.DTYPES.values():
            raise ValueError(f"{name} has {x.dtype} for {prompt!r}, accepted are {', '.join(convert.DTYPES)}")
        if not np.isfinite(x).all():
            raise ValueError(f"{name} has values that are not finite for {prompt!r}, accepted are finite ones")


def embedder(
    known: Mapping[str, Any] = NONE,
    encoder: encoders.Encoder | None = None,
    cache: str | Path | None = None,
    why: str = "there is no text encoder",
) -> Callable[[Sequence[str]], np.ndarray]:
    """prompts -> embeddings, float32 [n l d]: those `known`, those kept in the folder `cache`, and the `encoder`'s.

    A prompt is known as it is, or to case and the space around it. The encoder is loaded only for prompts that
    are in neither, for all of them at once, and its memory is free again when they are made; then they are kept in
    `cache` (None keeps none), under its hash, its way of cleaning and the text. Without an encoder such prompts are a
    ValueError that says `why` and shows the nearest there are.

    >>> embed = embedder({"a red three": np.zeros((77, 8))})
    >>> embed(["A red three"]).shape
    (1, 77, 8)
    >>> embed(["a tree"])
    Traceback (most recent call last):
    ...
    ValueError: there is no text encoder, and no embedding of 'a tree' (nearest: 'a red three'); accepted are prompts
    of the embeddings given
    """
    folder = None if cache is None else Path(cache)
    remembered: dict[str, np.ndarray] = {}  # of the encoder's, the newest last: it is not loaded for these again
    alike = {_lower(prompt): prompt for prompt in known}

    def embed(prompts: Sequence[str]) -> np.ndarray:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        found = {p: known[alike[_lower(p)]] for p in prompts if _lower(p) in alike}
        found |= {p: known[p] for p in prompts if p in known}
        missing = [p for p in dict.fromkeys(prompts) if p not in found]
        if missing and encoder is None:
            raise ValueError(_unknown(missing, known, why))
        found |= {p: remembered[p] for p in missing if p in remembered}
        if encoder is not None and (unknown := [p for p in missing if p not in remembered]):
            found |= _made(unknown, encoder, folder)
        remembered.update({p: found[p] for p in missing})
        for prompt in list(remembered)[: -REMEMBERED or None]:
            del remembered[prompt]
        if not prompts:
            return np.zeros((0, *(encoder[2:4] if encoder else (0, 0))), np.float32)
        arrays = [np.asarray(found[p], np.float32) for p in prompts]
        if len({x.shape for x in arrays}) > 1:
            sizes = ", ".join(f"{list(x.shape)} for {p!r}" for p, x in zip(prompts, arrays, strict=True))
            raise ValueError(f"the embeddings have different sizes: {sizes}; accepted are those of one text encoder")
        return np.stack(arrays)

    return embed


def _lower(prompt: Any) -> Any:
    return cleaning.lower(prompt) if isinstance(prompt, str) else prompt


def _unknown(missing: Sequence[str], known: Mapping[str, Any], why: str) -> str:
    if not known:
        return f"{why}, given {missing!r}; accepted are embeddings [l d] of them, in a file or as `known`"
    near = lambda prompt: ", ".join(map(repr, difflib.get_close_matches(str(prompt), known, NEAREST, cutoff=0)))
    each = ", ".join(f"{prompt!r} (nearest: {near(prompt)})" for prompt in missing)
    return f"{why}, and no embedding of {each}; accepted are prompts of the embeddings given"


def _made(prompts: Sequence[str], encoder: encoders.Encoder, cache: Path | None) -> dict[str, np.ndarray]:
    """{prompt: embedding [l d]}, of the cache where they are there; what was not is there then."""
    if cache is None:
        return dict(zip(prompts, encoder.encode(prompts), strict=True))
    cleaned = {prompt: encoders.cleaned(encoder.clean, prompt) for prompt in prompts}
    places = {text: cache / f"{_key(encoder, text)}.safetensors" for text in cleaned.values()}
    made = {text: x for text, place in places.items() if (x := _kept(place, encoder)) is not None}
    lacking = {text: prompt for prompt, text in cleaned.items() if text not in made}
    if lacking:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            states = encoder.encode(list(lacking.values()))
        for warning in said:
            warnings.warn(str(warning.message), stacklevel=3)
        for text, x in zip(lacking, states, strict=True):
            made[text] = x
            cut = [str(w.message) for w in said if str(w.message).endswith(f" of {text!r}")]
            _keep(places[text], x, text, cut)
    return {prompt: made[text] for prompt, text in cleaned.items()}


def _key(encoder: encoders.Encoder, text: str) -> str:
    return hashlib.sha256(json.dumps([encoder.hash, encoder.clean, text]).encode()).hexdigest()


def _kept(path: Path, encoder: encoders.Encoder) -> np.ndarray | None:
    """What is kept there, with the warnings it was made with; None for nothing, and for what is damaged."""
    if not path.is_file():
        return None
    try:
        (entry,) = convert.fit(
            path, {"states": np.broadcast_to(np.float32(0), (encoder.length, encoder.width))}
        ).values()
        warned = json.loads(convert.read_header(path)[1].get("warnings", "[]"))
        states = np.array(convert.read(entry))
    except (ValueError, OSError):
        return None
    for message in warned:
        warnings.warn(message, stacklevel=4)
    return states


def _keep(path: Path, states: np.ndarray, text: str, warned: Sequence[str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        convert.save(path, {"states": states}, {"prompt": text, "warnings": json.dumps(warned)})
    except OSError as error:
        warnings.warn(f"{text!r} is not kept in {path.parent}: {error}", stacklevel=5)
