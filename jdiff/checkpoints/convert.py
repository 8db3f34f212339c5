"""Weights of DeepFloyd IF and T5 from torch's safetensors into ours: a table of names, streamed; and load and save."""

import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from einops import EinopsError, rearrange
from safetensors import SafetensorError, safe_open

from jdiff.checkpoints import digests, int8
from jdiff.networks import t5, unet

Rule = tuple[str, str, str]  # name in torch (a regex that is to match in full), path here, layout
LINEAR, CONV, SAME = "o i -> i o", "o i h w -> h w i o", "... -> ..."

_BLOCK = r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)"
_RESNET = rf"(?:{_BLOCK}\.resnets\.\d+|down_blocks\.\d+\.downsamplers\.\d+|up_blocks\.\d+\.upsamplers\.\d+)"
_ATTENTION = rf"{_BLOCK}\.attentions\.\d+"
_EMBEDDING = r"(?:time_embedding|class_embedding)"

RULES: tuple[Rule, ...] = (
    (r"(conv_in|conv_out)\.weight", r"\1.kernel", CONV),
    (r"(conv_in|conv_out|conv_norm_out|encoder_hid_proj)\.bias", r"\1.bias", SAME),
    (r"conv_norm_out\.weight", r"conv_norm_out.scale", SAME),
    (r"encoder_hid_proj\.weight", r"encoder_hid_proj.kernel", LINEAR),
    (rf"({_EMBEDDING}\.linear_[12])\.weight", r"\1.kernel", LINEAR),
    (rf"({_EMBEDDING}\.linear_[12])\.bias", r"\1.bias", SAME),
    (r"(add_embedding\.norm[12])\.weight", r"\1.scale", SAME),
    (r"(add_embedding\.(?:proj|pool\.[qkv]_proj))\.weight", r"\1.kernel", LINEAR),
    (r"(add_embedding\.(?:norm[12]|proj|pool\.[qkv]_proj))\.bias", r"\1.bias", SAME),
    (r"add_embedding\.pool\.positional_embedding", r"add_embedding.pool.positional_embedding", SAME),
    (rf"({_RESNET}\.norm[12])\.weight", r"\1.scale", SAME),
    (rf"({_RESNET}\.(?:conv[12]|conv_shortcut))\.weight", r"\1.kernel", CONV),
    (rf"({_RESNET}\.time_emb_proj)\.weight", r"\1.kernel", LINEAR),
    (rf"({_RESNET}\.(?:norm[12]|conv[12]|conv_shortcut|time_emb_proj))\.bias", r"\1.bias", SAME),
    (rf"({_ATTENTION}\.(?:group_norm|norm_cross))\.weight", r"\1.scale", SAME),
    (rf"({_ATTENTION}\.(?:to_[qkv]|add_[kv]_proj))\.weight", r"\1.kernel", LINEAR),
    (rf"({_ATTENTION}\.(?:group_norm|norm_cross|to_[qkv]|add_[kv]_proj))\.bias", r"\1.bias", SAME),
    (rf"({_ATTENTION}\.to_out)\.0\.weight", r"\1.kernel", LINEAR),
    (rf"({_ATTENTION}\.to_out)\.0\.bias", r"\1.bias", SAME),
)

_LAYER = r"encoder\.block\.(\d+)\.layer"
T5_RULES: tuple[Rule, ...] = (
    (r"shared\.weight", r"shared.embedding", SAME),
    (
        r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
        r"relative_attention_bias.embedding",
        SAME,
    ),
    (rf"{_LAYER}\.0\.SelfAttention\.([qkvo])\.weight", r"block.\1.\2.kernel", LINEAR),
    (rf"{_LAYER}\.0\.layer_norm\.weight", r"block.\1.attention_norm.scale", SAME),
    (rf"{_LAYER}\.1\.DenseReluDense\.(wi_0|wi_1|wo)\.weight", r"block.\1.\2.kernel", LINEAR),
    (rf"{_LAYER}\.1\.layer_norm\.weight", r"block.\1.ff_norm.scale", SAME),
    (r"encoder\.final_layer_norm\.weight", r"final_layer_norm.scale", SAME),
)
T5_DROPPED = ("encoder.embed_tokens.weight",)  # shared.weight once more


class Kind(NamedTuple):
    """Where one kind of network lies in a diffusers folder, and how it becomes ours."""

    folder: str
    stem: str  # of the weights' file names
    rules: Sequence[Rule]
    dropped: Sequence[str]
    shapes: Callable[[Path], dict]  # config.json -> abstract parameters


KINDS = {
    "unet": Kind("unet", "diffusion_pytorch_model", RULES, (), lambda c: unet.unet(unet.read_config(c)).params),
    "t5": Kind("text_encoder", "model", T5_RULES, T5_DROPPED, lambda c: t5.t5(t5.read_config(c))[1]),
}
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {dtype: code for code, dtype in DTYPES.items()} | {np.dtype(np.int8): "I8"}
READ = {code: dtype for dtype, code in CODES.items()}  # of our own files; DTYPES of others'
STORED = ("float32", "bfloat16", "float16")  # what `convert` writes of any network
TOKENIZER = ("spiece.model", "tokenizer_config.json")


class Entry(NamedTuple):
    """Where one tensor lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # byte in the file


def flatten(tree: Mapping) -> dict[str, Any]:
    """{dotted path: leaf} of a nested dict; a flat one is its own.

    >>> flatten({"down_blocks": {0: {"kernel": 1}}, "bias": 2})
    {'down_blocks.0.kernel': 1, 'bias': 2}
    """
    flat = {}
    for key, value in tree.items():
        deeper = {f"{key}.{name}": leaf for name, leaf in flatten(value).items()} if isinstance(value, Mapping) else {}
        flat |= deeper if isinstance(value, Mapping) else {str(key): value}
    return flat


def unflatten(flat: Mapping[str, Any], abstract: Mapping) -> dict:
    """Nested dict of the structure of `abstract`, with the leaves of `flat`.

    Raises ValueError where the two have different names.

    >>> unflatten({"a.0.b": 1}, {"a": {0: {"b": None}}})
    {'a': {0: {'b': 1}}}
    """
    names = flatten(abstract)
    bad = [f"{name} is missing" for name in names if name not in flat]
    if bad := bad + [f"{name} is unknown" for name in flat if name not in names]:
        raise ValueError("the parameters are not the network's:\n  " + "\n  ".join(bad))

    def build(tree: Mapping, prefix: str) -> dict:
        return {
            key: build(value, f"{prefix}{key}.") if isinstance(value, Mapping) else flat[f"{prefix}{key}"]
            for key, value in tree.items()
        }

    return build(abstract, "")


def match(
    shapes: Mapping[str, tuple[int, ...]], abstract: Mapping, rules: Sequence[Rule] = RULES, dropped: Sequence[str] = ()
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """({path: (source name, layout)}, mistakes): a bijection of the shapes onto `abstract` if no mistake."""
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten(abstract).items()}
    found: dict[str, tuple[str, str]] = {}
    bad = []
    for name, shape in shapes.items():
        if name in dropped:
            continue
        hits = [(m.expand(path), layout) for regex, path, layout in rules if (m := re.fullmatch(regex, name))]
        if len(hits) != 1:
            bad.append(f"{name} fits {len(hits)} rules, not one" if hits else f"{name} is unknown")
            continue
        path, layout = hits[0]
        if path not in wanted:
            bad.append(f"{name} would be {path}, which the network does not have")
        elif path in found:
            bad.append(f"{path} is set twice, by {found[path][0]} and by {name}")
        else:
            found[path] = name, layout
            if _turn(shape, layout) != wanted[path]:
                bad.append(f"{name} has shape {tuple(shape)}, accepted is one that gives {path} {wanted[path]}")
    return found, bad + [f"{path} {shape} is never set" for path, shape in wanted.items() if path not in found]


def _turn(shape: Sequence[int], layout: str) -> tuple[int, ...] | None:
    try:
        return rearrange(np.broadcast_to(np.float32(0), shape), layout).shape  # a view: nothing is allocated
    except EinopsError:
        return None


def translate(
    tensors: Mapping[str, np.ndarray], abstract: Mapping, rules: Sequence[Rule] = RULES, dropped: Sequence[str] = ()
) -> dict:
    """Nested parameters from torch's names and layouts, in the dtype given: a state dict as numpy arrays.

    Raises ValueError with every name, shape and value that is wrong.
    """
    found, bad = match({name: x.shape for name, x in tensors.items()}, abstract, rules, dropped)
    bad += [f"{name} is not finite" for name, _ in found.values() if not np.isfinite(tensors[name]).all()]
    if bad:
        raise ValueError("the weights are not the network's:\n  " + "\n  ".join(bad))
    flat = {path: np.ascontiguousarray(rearrange(tensors[name], layout)) for path, (name, layout) in found.items()}
    return unflatten(flat, abstract)


def read_header(path: str | Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """({name: entry}, metadata) of a safetensors file; ValueError where it is truncated or no such file."""
    path = Path(path)
    try:
        with safe_open(path, "numpy"):  # checks the header, and it against the file's length
            pass
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    metadata = header.pop("__metadata__", {})
    return {
        name: Entry(path, e["dtype"], tuple(e["shape"]), 8 + size + e["data_offsets"][0]) for name, e in header.items()
    }, metadata


def read(entry: Entry) -> np.ndarray:
    """The tensor as it is stored, mapped: only what is used of it is read, and stays in memory while it is held."""
    if 0 in entry.shape:
        return np.empty(entry.shape, READ[entry.dtype])  # which no file can be mapped to
    return np.memmap(entry.file, READ[entry.dtype], "r", entry.start, entry.shape)


def _cast(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
        return np.asarray(x, dtype=dtype, order="C")


def _write(
    path: Path, leaves: Mapping[str, tuple[np.dtype, tuple[int, ...]]], arrays: Iterable[np.ndarray], metadata: Mapping
) -> None:
    """Header first, then one array at a time, beside `path`; renamed when all is on the disk."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name, (dtype, shape) in leaves.items():
        stop = start + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for (name, leaf), array in zip(leaves.items(), arrays, strict=True):
                if (array.dtype, array.shape) != leaf:
                    raise ValueError(f"{name} is {array.dtype}{array.shape}, the header says {leaf[0]}{leaf[1]}")
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def save(path: str | Path, params: Mapping, metadata: Mapping[str, str] | None = None) -> None:
    """Nothing: `path` then holds the parameters (nested or flat) in their own dtypes, as `load` reads them.

    Raises ValueError for leaves that are no floats of 16 to 64 bits; on any failure what was at `path` is still there.
    """
    flat = flatten(params)
    leaves = {name: (np.dtype(x.dtype), tuple(x.shape)) for name, x in flat.items()}
    if bad := [f"{name} is {dtype}" for name, (dtype, _) in leaves.items() if dtype not in CODES]:
        raise ValueError(f"accepted are {', '.join(map(str, CODES))}; " + ", ".join(bad))
    leaves = dict(sorted(leaves.items(), key=lambda leaf: (-leaf[1][0].itemsize, leaf[0])))  # keeps all aligned
    _write(Path(path), leaves, (np.asarray(flat[name]) for name in leaves), {"format": "jdiff"} | dict(metadata or {}))


def content(flat: Mapping[str, np.ndarray]) -> str:
    """Returns the sha256, in hex, of the names, shapes, dtypes and values of arrays.

    Example:
        >>> content({"a": np.zeros(2)}) == content({"a": np.zeros(2)}) != content({"a": np.ones(2)})
        True
    """
    told = hashlib.sha256()
    for name in sorted(flat):
        told.update(f"{name} {flat[name].dtype} {flat[name].shape}".encode())
        told.update(np.ascontiguousarray(flat[name]).reshape(-1).view(np.uint8).data)
    return told.hexdigest()


def fit(path: str | Path, abstract: Mapping) -> dict[str, Entry]:
    """{dotted path: entry} of a file that `save` or `convert` wrote, or of `model.safetensors` in a folder.

    Nothing but its header is read. Raises one ValueError, which names the file, where it is truncated, of another
    kind, or has other names or shapes than `abstract`.
    """
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    entries, metadata = read_header(path)
    if metadata.get("format") != "jdiff":
        raise ValueError(
            f"{path} has format {metadata.get('format')!r}, accepted is 'jdiff': use `jdiff convert` first"
        )
    wanted = {name: tuple(leaf.shape) for name, leaf in flatten(abstract).items()}
    bad = [f"{name} {shape} is missing" for name, shape in wanted.items() if name not in entries]
    for name, entry in entries.items():
        if name not in wanted:
            bad.append(f"{name} {entry.shape} is not of this network")
        elif entry.shape != wanted[name]:
            bad.append(f"{name} has shape {entry.shape}, accepted is {wanted[name]}")
        elif entry.dtype not in READ:
            bad.append(f"{name} has dtype {entry.dtype}, accepted are {', '.join(READ)}")
    if bad:
        raise ValueError(f"{path} does not fit the network:\n  " + "\n  ".join(bad))
    return entries


def load(path: str | Path, abstract: Mapping, dtype: Any = None) -> dict:
    """Nested parameters, numpy arrays, of a file that `fit` accepts; what it refuses is the same ValueError here.

    `dtype` None leaves them as they are stored; otherwise floats are cast, and int8 stays.
    """
    kept = lambda e: READ[e.dtype] if dtype is None or e.dtype not in DTYPES else np.dtype(dtype)
    entries = fit(path, abstract)
    return unflatten({name: np.array(read(e), kept(e), order="C") for name, e in entries.items()}, abstract)


class Weights(NamedTuple):
    """A network's parameters in a folder, not read yet."""

    files: list[Path]
    arrays: Iterator[tuple[str, np.ndarray]]  # dotted path and array, one in memory at a time


def weights(folder: str | Path, abstract: Mapping, dtype: Any) -> Weights:
    """The Weights of a UNet in `dtype`: of our own `model.safetensors`, or else of diffusers' files.

    Of diffusers' variants the one in 16 bits is read for a `dtype` of 16 bits, where it is there. Raises one ValueError
    with everything that is wrong with names and shapes; what is not finite is one when all is read.
    """
    folder, dtype = Path(folder), np.dtype(dtype)
    if (folder / "model.safetensors").is_file():
        own = ((name, np.array(read(entry), dtype, order="C")) for name, entry in fit(folder, abstract).items())
        return Weights([folder / "model.safetensors"], own)
    plan, bad = _plan("unet", folder, abstract, half=dtype.itemsize == 2)
    if plan is None or bad:
        raise ValueError(_list(folder, bad))

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        yield from zip(plan.tensors, _stream(plan, dtype.name, bad), strict=True)
        if bad:
            raise ValueError(_list(folder, bad))

    return Weights(plan.files, arrays())


def forms(path: str, shape: tuple[int, ...], dtype: str) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """{path: (dtype, shape)} of what one tensor of a network is written as.

    In int8 that is a kernel [i o] and its scale [o]; then the vocabulary is float16, and what is small float32.

    >>> [(path, str(dtype), shape) for path, (dtype, shape) in forms("q.kernel", (3, 2), "int8").items()]
    [('q.kernel', 'int8', (3, 2)), ('q.scale', 'float32', (2,))]
    """
    if dtype != "int8":
        return {path: (np.dtype(dtype), shape)}
    if path.endswith(".kernel"):
        scale = path.removesuffix("kernel") + "scale"
        return {path: (np.dtype(np.int8), shape), scale: (np.dtype(np.float32), shape[-1:])}
    return {path: (np.dtype(np.float16 if path == "shared.embedding" else np.float32), shape)}


class _Plan(NamedTuple):
    """What is to be written of one network."""

    kind: str
    config: Path
    files: list[Path]
    tensors: dict[str, tuple[Entry, str]]  # path here -> where from, layout


def _config(folder: Path) -> dict:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _networks(src: Path) -> dict[str, Path]:
    """{kind: folder} of what `src` holds."""
    if (src / "config.json").exists():
        config = _config(src)
        is_t5 = config.get("model_type") == "t5" or "T5EncoderModel" in (config.get("architectures") or ())
        return {"t5" if is_t5 else "unet": src}
    found = {"unet": src / "unet"} if (src / "unet").is_dir() else {}
    encoder = src / "text_encoder"
    return found | ({"t5": encoder} if any(encoder.glob("*.safetensors")) else {})


def _entries(folder: Path, stem: str, half: bool = False) -> tuple[dict[str, Entry], list[Path], list[str]]:
    """({name: entry}, files, mistakes) of the weights in a folder; of several, those of full precision or in half."""
    full = [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    halves = [f"{stem}.fp16.safetensors", f"{stem}.safetensors.index.fp16.json"]
    halves += [f"{stem}.fp16.safetensors.index.json"]  # as older ones are named
    names = [*halves, *full] if half else [*full, *halves]
    hits = [folder / name for name in names if (folder / name).is_file()]
    if not hits:
        return {}, [], [f"{folder} has no weights: accepted are {', '.join(names)}"]
    index, bad = {}, []
    files = [hits[0]]
    if hits[0].suffix == ".json":
        try:
            index = dict(json.loads(hits[0].read_text())["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            return {}, [], [f"{hits[0]} is no readable index of shards: {error!r}"]
        names = sorted({str(name) for name in index.values()})
        bad = [f"{hits[0]} names {name}, which is not in its folder" for name in names if not _is_in(folder, name)]
        files = [folder / name for name in names if _is_in(folder, name)]
    entries: dict[str, Entry] = {}
    for file in files:
        try:
            header, _ = read_header(file)
        except ValueError as error:
            bad.append(str(error))
            index = {name: shard for name, shard in index.items() if shard != file.name}  # said once is enough
            continue
        bad += [f"{name} is in {entries[name].file.name} and in {file.name}" for name in header if name in entries]
        entries |= header
    there = {file.name for file in files}
    bad += [f"{name} is not in {shard}" for name, shard in index.items() if shard in there and name not in entries]
    return entries, files, bad


def _is_in(folder: Path, name: str) -> bool:
    return Path(name).name == name and (folder / name).is_file()


def _plan(
    kind: str, folder: Path, abstract: Mapping | None = None, half: bool = False
) -> tuple[_Plan | None, list[str]]:
    network, config = KINDS[kind], folder / "config.json"
    entries, files, bad = _entries(folder, network.stem, half)
    strange = [name for name, entry in entries.items() if entry.dtype not in DTYPES and name not in network.dropped]
    bad += [f"{name} has dtype {entries[name].dtype}, accepted are {', '.join(DTYPES)}" for name in strange]
    try:
        abstract = network.shapes(config) if abstract is None else abstract
    except (ValueError, TypeError) as error:
        return None, bad + [str(error)]
    if not entries:
        return None, bad
    found, mistakes = match({n: e.shape for n, e in entries.items()}, abstract, network.rules, network.dropped)
    tensors = {path: (entries[name], layout) for path, (name, layout) in found.items() if name not in strange}
    return _Plan(kind, config, files, {path: tensors[path] for path in flatten(abstract) if path in tensors}), (
        bad + mistakes
    )


def _stream(plan: _Plan, dtype: str, bad: list[str]) -> Iterator[np.ndarray]:
    """What each tensor is written as, one at a time; what is not finite is added to `bad`."""
    for path, (entry, layout) in plan.tensors.items():
        x = read(entry)
        leaves = forms(path, x.shape, dtype)
        (target, _), quantised = leaves[path], len(leaves) > 1
        x = rearrange(x, layout) if _turn(x.shape, layout) else x
        y = _cast(x, np.dtype(np.float32) if quantised else target)
        if not np.isfinite(y).all():
            finite = np.isfinite(x).all()
            bad.append(f"{path} {f'has values beyond {y.dtype}' if finite else 'is not finite'}, in {entry.file.name}")
            y = np.zeros_like(y)  # in a file that is thrown away
        yield from int8.quantise(y) if quantised else (y,)


def _metadata(plan: _Plan, dtype: str) -> dict[str, str]:
    return {"format": "jdiff", "dtype": dtype, "kind": plan.kind, "sha256": digests.together(plan.files)}


def convert(src: str | Path, dst: str | Path, dtype: str = "float32") -> Path:
    """`dst`, a new folder with the networks of a diffusers or transformers folder as jdiff loads them.

    `src` is a diffusers folder, its `unet/` or `text_encoder/`, or a folder of a T5 encoder, with weights in
    safetensors: one file, shards, or an fp16 variant, which is taken where there is no other. `dst` gets `unet/` and
    `text_encoder/`, each with config.json and model.safetensors in `dtype` (float32, bfloat16, float16, or for T5 alone
    int8), the tokenizer's files beside the encoder's, and `scheduler/`. Memory: about the largest tensor. Raises one
    ValueError with everything that is wrong, and leaves nothing behind.
    """
    src, dst = Path(src), Path(dst)
    if dtype not in (*STORED, "int8"):
        raise ValueError(f"dtype is {dtype!r}, accepted are {', '.join(STORED)}, and int8 for a T5 encoder")
    if dst.exists():
        raise ValueError(f"dst is {dst}, which exists: give a new folder")
    if not (networks := _networks(src)):
        raise ValueError(f"src is {src}, accepted is a folder with config.json or unet/ in it")
    if dtype == "int8" and "unet" in networks:
        alone = f": first give {networks['t5']}, and the rest in another dtype" if "t5" in networks else ""
        raise ValueError(f"dtype is 'int8', accepted for the UNet in {src} are {', '.join(STORED)}{alone}")
    bad, plans = [], []
    for kind, folder in networks.items():
        plan, mistakes = _plan(kind, folder)
        bad += mistakes
        plans += [plan] if plan else []
    if bad:
        for plan in plans:
            for _ in _stream(plan, dtype, bad):
                pass
        raise ValueError(_list(src, bad))
    part = dst.with_name(f".{dst.name}.{uuid.uuid4().hex}.part")
    try:
        for plan in plans:
            folder = part / KINDS[plan.kind].folder
            folder.mkdir(parents=True)
            shutil.copyfile(plan.config, folder / "config.json")
            leaves = {}
            for path, (entry, layout) in plan.tensors.items():
                leaves |= forms(path, _turn(entry.shape, layout) or (), dtype)
            _write(folder / "model.safetensors", leaves, _stream(plan, dtype, bad), _metadata(plan, dtype))
        if bad:
            raise ValueError(_list(src, bad))
        if "t5" in networks:
            for file in _tokenizer(networks["t5"]):
                shutil.copyfile(file, part / "text_encoder" / file.name)
        above = [src.parent] if networks.get("unet") == src else []
        for folder in [src, *above]:
            if "unet" in networks and (settings := folder / "scheduler" / "scheduler_config.json").is_file():
                (part / "scheduler").mkdir()
                shutil.copyfile(settings, part / "scheduler" / settings.name)
                break
        os.rename(part, dst)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return dst


def _tokenizer(encoder: Path) -> list[Path]:
    """The tokenizer's files: beside a T5's weights, or in the `tokenizer/` of a pipeline that has it."""
    beside = [encoder.parent / "tokenizer"] if encoder.absolute().name == KINDS["t5"].folder else []
    found = next((folder for folder in [encoder, *beside] if (folder / TOKENIZER[0]).is_file()), None)
    return [found / name for name in TOKENIZER if (found / name).is_file()] if found else []


def _list(src: Path, bad: Iterable[str]) -> str:
    return f"{src} is not what this network converts:\n  " + "\n  ".join(bad)
