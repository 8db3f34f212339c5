"""Files of embeddings in the formats of others and ours, each read into {prompt: array}.

A decoder raises `Refused` for what it knows to be wrong. Whatever else a damaged file makes a library raise is caught
by the caller, `embeddings.read`.
"""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jdiff.checkpoints import files

Table = Mapping[str, np.ndarray]


class Refused(ValueError):
    """What is wrong with a file, in one line that names it."""


def torch_dict(path: Path) -> Table:
    """Reads a dict of prompts and tensors that `torch.save` wrote; nothing else is unpickled, and no code is run."""
    try:
        import torch
    except ImportError as error:
        raise Refused(
            f"{path} needs torch to be read: pip install torch, or convert it on a machine with torch "
            f"by `jdiff embed --prompts {path}`"
        ) from error
    if zipfile.is_zipfile(path):
        _members(path)  # compares checksums, which torch does not
    with warnings.catch_warnings():  # torch warns of pickles that are not its own
        warnings.simplefilter("ignore")
        table = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(table, Mapping):
        raise Refused(f"{path} must hold a dict of prompts and tensors, got a {type(table).__name__}")
    bad = [key for key, x in table.items() if not isinstance(key, str) or not isinstance(x, torch.Tensor)]
    if bad:
        raise Refused(f"{path} must hold a dict of prompts and tensors, got something else at {bad[0]!r}")
    plain = lambda x: x.float() if x.dtype == torch.bfloat16 else x
    return {prompt: plain(x.detach()).numpy() for prompt, x in table.items()}


def numpy_array(path: Path) -> Table:
    """Reads an .npy, which is the embedding of the empty prompt, as deep-floyd publishes it."""
    return {"": _array(path, path.read_bytes())}


def numpy_arrays(path: Path) -> Table:
    """Reads an .npz, whose names are the prompts."""
    members = _members(path)
    if bad := [name for name in members if not name.endswith(".npy")]:
        raise Refused(f"{path} must hold NumPy arrays alone, got {bad[0]!r}")
    return {name.removesuffix(".npy"): _array(path, data) for name, data in members.items()}


def safetensors(path: Path) -> Table:
    """Reads a file of `embeddings.write`, whose digest is compared; or another's, whose names are the prompts."""
    try:
        entries, metadata = files.read_header(path)
        files.check_small([path])
    except ValueError as error:
        raise Refused(str(error)) from error
    if strange := [f"{e.dtype} for {name!r}" for name, e in entries.items() if e.dtype not in files.FLOATS]:
        raise Refused(f"{path} must hold tensors of {', '.join(files.FLOATS)}, got {strange[0]}")
    names = {name: name for name in entries}
    if metadata.get("format") == files.FORMAT or "prompts" in metadata:
        names = _names(path, metadata)
        if set(names) != set(entries):
            raise Refused(f"{path} must hold one tensor for each of its {len(names)} prompts, got {len(entries)}")
    return {prompt: np.array(files.read(entries[name])) for name, prompt in names.items()}


DECODERS: dict[str, Callable[[Path], Table]] = {
    ".safetensors": safetensors,
    ".pth": torch_dict,
    ".pt": torch_dict,
    ".npy": numpy_array,
    ".npz": numpy_arrays,
}


def _names(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    """{name of the tensor: prompt} of a file that `embeddings.write` wrote."""
    try:
        prompts = json.loads(metadata.get("prompts", ""))
    except ValueError as error:
        raise Refused(f"{path} has no readable list of prompts in its metadata: {error}") from error
    unknown = metadata.keys() - {"format", "kind", "prompts", files.DIGEST, *files.VERSION}
    if not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts) or unknown:
        raise Refused(f"{path} must have a list of prompts in its metadata, got something else")
    if len(set(prompts)) < len(prompts):
        raise Refused(f"{path} must hold each prompt once, got one twice")
    return {str(i): prompt for i, prompt in enumerate(prompts)}


def _members(path: Path) -> dict[str, bytes]:
    """The files in a zip archive. Reading each to its end compares its checksum."""
    with zipfile.ZipFile(path) as archive:
        found = {info.filename: archive.read(info) for info in archive.infolist()}
        if len(found) < len(archive.infolist()):
            raise Refused(f"{path} must hold each name once, got one twice")
    if (count := _count(path)) not in (len(found), 0xFFFF):
        raise Refused(f"{path} is damaged: it says that it holds {count} files, got {len(found)}")
    return found


def _count(path: Path) -> int:
    """How many files a zip archive says it holds, in the record at its end; 0xFFFF says that they are more."""
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 2**16 - 22))  # a comment of up to 64 KiB may follow the record
        tail = file.read()
    start = tail.rindex(b"PK\x05\x06")
    return int.from_bytes(tail[start + 10 : start + 12], "little")


def _array(path: Path, data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise Refused(f"{path} must hold one NumPy array under each name, got an archive")
    if rest := len(file.read()):
        raise Refused(f"{path} is damaged: {rest} bytes follow an array")
    return array
