"""Finds the parameters of a network in the files of jdiff, diffusers or transformers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange

from jdiff.checkpoints import files, int8, names
from jdiff.networks import config as config_json
from jdiff.types import Params

OURS = "model.safetensors"


class Tensor(NamedTuple):
    """One parameter in a file."""

    entry: files.Entry
    layout: str = names.SAME  # from the layout of the file to ours

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in our layout."""
        return names.turned(self.entry.shape, self.layout) or self.entry.shape

    def read(self) -> np.ndarray:
        """Returns the parameter in our layout and in the dtype of the file, mapped into memory."""
        x = files.read(self.entry)
        return x if self.layout == names.SAME else rearrange(x, self.layout)


class Source(NamedTuple):
    """The parameters of one network, not read yet."""

    kind: str  # a key of names.KINDS
    folder: Path
    paths: list[Path]
    tensors: dict[str, Tensor]  # dotted path -> tensor
    ours: bool  # whether `save` or `convert` wrote it
    stored: Params  # shapes as they are stored: those of the network, and with int8 those of the scales

    def arrays(self, dtype: files.DTypeLike) -> Iterator[tuple[str, np.ndarray]]:
        """Reads the parameters in a dtype, one at a time.

        Args:
            dtype: of all parameters.

        Returns:
            Pairs of dotted path and array.

        Raises:
            ValueError: at the end, a parameter is not finite or has values beyond the dtype; all of them are listed.
        """
        bad: list[str] = []
        for path, tensor in self.tensors.items():
            yield path, finite(path, tensor, np.dtype(dtype), bad)
        if bad:
            raise ValueError(listed(self.folder, bad))


def find(kind: str, folder: str | Path, shapes: Params | None = None, half: bool = False) -> Source:
    """Finds the parameters of a network in a folder.

    That is `model.safetensors` if `save` or `convert` wrote it, otherwise what diffusers or transformers wrote: one
    file, shards with an index, or an fp16 variant of either.

    Args:
        kind: "unet" or "t5".
        folder: the network's own folder, with its config.json.
        shapes: the network's parameter shapes; those of config.json if None.
        half: whether the fp16 variant is preferred where there are several.

    Raises:
        ValueError: names, shapes or dtypes do not fit, or a file is damaged; everything that is wrong is listed.
    """
    folder = Path(folder)
    if is_ours(folder):
        wanted: Params = names.KINDS[kind].shapes(folder / "config.json") if shapes is None else shapes
        _, metadata = files.read_header(folder / OURS)
        stored = int8.shapes(wanted) if metadata.get("dtype") == "int8" else wanted
        entries = files.fit(folder, stored)
        files.check_small([folder / OURS])
        tensors = {path: Tensor(entries[path]) for path in files.flatten(stored)}
        return Source(kind, folder, [folder / OURS], tensors, True, stored)
    source, bad = plan(kind, folder, shapes, half)
    if source is None or bad:
        raise ValueError(listed(folder, bad))
    return source


def is_ours(folder: Path) -> bool:
    """Whether the folder holds a network's parameters that `save` or `convert` wrote."""
    try:
        return files.read_header(folder / OURS)[1].get("format") == files.FORMAT
    except ValueError:
        return False


def plan(kind: str, folder: Path, shapes: Params | None = None, half: bool = False) -> tuple[Source | None, list[str]]:
    """Finds the parameters that diffusers or transformers wrote.

    Returns:
        (source, mistakes). The source is None if its tensors cannot be listed.
    """
    network = names.KINDS[kind]
    entries, paths, bad = _entries(folder, network.stem, half)
    strange = [name for name, e in entries.items() if e.dtype not in files.FLOATS and name not in network.dropped]
    bad += [
        f"{name} must have one of the dtypes {', '.join(files.FLOATS)}, got {entries[name].dtype}" for name in strange
    ]
    try:
        wanted: Params = network.shapes(folder / "config.json") if shapes is None else shapes
    except (ValueError, TypeError) as error:
        return None, bad + [str(error)]
    if not entries:
        return None, bad
    found, mistakes = names.match({n: e.shape for n, e in entries.items()}, wanted, network.rules, network.dropped)
    tensors = {path: Tensor(entries[name], layout) for path, (name, layout) in found.items() if name not in strange}
    tensors = {path: tensors[path] for path in files.flatten(wanted) if path in tensors}
    return Source(kind, folder, paths, tensors, False, wanted), bad + mistakes


def finite(path: str, tensor: Tensor, dtype: np.dtype, bad: list[str]) -> np.ndarray:
    """Returns a parameter in a dtype; adds to `bad` if it is not finite there."""
    x = files.read(tensor.entry)
    x = rearrange(x, tensor.layout) if names.turned(x.shape, tensor.layout) else x
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not finite below
        y = np.asarray(x, dtype=dtype, order="C")
    if y.dtype.kind != "i" and not np.isfinite(y).all():
        beyond = f"has values beyond {dtype}" if np.isfinite(x).all() else "is not finite"
        bad.append(f"{path} {beyond}, in {tensor.entry.file.name}")
    return y


def networks(folder: Path) -> dict[str, Path]:
    """Returns {kind: folder} of the networks in a pipeline's folder, or of the one network whose folder it is."""
    if (folder / "config.json").exists():
        try:
            config = config_json.read(folder)
        except ValueError:  # said later, with what else is wrong
            config = {}
        is_t5 = config.get("model_type") == "t5" or "T5EncoderModel" in (config.get("architectures") or ())
        return {"t5" if is_t5 else "unet": folder}
    found = {"unet": folder / "unet"} if (folder / "unet").is_dir() else {}
    encoder = folder / "text_encoder"
    return found | ({"t5": encoder} if any(encoder.glob("*.safetensors")) else {})


def listed(folder: Path, bad: Sequence[str]) -> str:
    """Returns one line with the mistakes in a folder of weights."""
    return files.listed(f"{folder} does not hold the weights of this network", bad)


def _entries(folder: Path, stem: str, half: bool = False) -> tuple[dict[str, files.Entry], list[Path], list[str]]:
    """({name: entry}, files, mistakes) of the weights in a folder: of one variant, if there are several."""
    full = [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    halves = [f"{stem}.fp16.safetensors", f"{stem}.safetensors.index.fp16.json"]
    halves += [f"{stem}.fp16.safetensors.index.json"]  # the older name
    wanted = [*halves, *full] if half else [*full, *halves]
    hits = [folder / name for name in wanted if (folder / name).is_file()]
    if not hits:
        return {}, [], [f"{folder} must hold one of {', '.join(wanted)}, got none of them"]
    index, bad, paths = _index(folder, hits[0]) if hits[0].suffix == ".json" else ({}, [], [hits[0]])
    entries: dict[str, files.Entry] = {}
    for file in paths:
        try:
            header, _ = files.read_header(file)
        except ValueError as error:
            bad.append(str(error))
            index = {name: shard for name, shard in index.items() if shard != file.name}  # said once is enough
            continue
        bad += [f"{name} is in {entries[name].file.name} and in {file.name}" for name in header if name in entries]
        entries |= header
    there = {file.name for file in paths}
    bad += [f"{name} is not in {shard}" for name, shard in index.items() if shard in there and name not in entries]
    return entries, paths, bad


def _index(folder: Path, path: Path) -> tuple[Mapping[str, str], list[str], list[Path]]:
    """({name: shard}, mistakes, shards) of an index of shards, none of which may lie outside of its folder."""
    try:
        index = dict(json.loads(path.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, [f"{path} is no readable index of shards: {error!r}"], []
    shards = sorted({str(name) for name in index.values()})
    there = {name: Path(name).name == name and (folder / name).is_file() for name in shards}
    bad = [f"{path} names {name}, which is not in its folder" for name in shards if not there[name]]
    return index, bad, [folder / name for name in shards if there[name]]
