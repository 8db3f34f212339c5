"""Safetensors files in and out: read one tensor at a time, written whole or not at all, with a digest of their content.

A file that this module writes carries the digest of its own bytes in its metadata. Reading checks it at once in files
of up to `CHECKED` bytes; `check` checks files of any size.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from jdiff.parts import beside

FORMAT = "jdiff"  # metadata "format" of our own files
DIGEST = "jdiff_digest"  # metadata key: sha256 of the file's bytes, with this digest's own characters as zeros
BLANK = "0" * 64
VERSION = {"version": "2"}  # metadata of files that must carry a digest; files of the first version carry none
LISTED = 12  # mistakes that an error shows
CHECKED = 2**26  # bytes of a file up to which reading checks its digest

FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
READ = FLOATS | {"I8": np.dtype(np.int8)}  # what our own files may hold; other programs' files hold FLOATS
CODES = {dtype: code for code, dtype in READ.items()}

# Numpy's name for a dtype, or anything that numpy takes for one.
DTypeLike = Any
# Name and shape of every tensor of a file that is to be written.
Leaves = Mapping[str, tuple[np.dtype, tuple[int, ...]]]


class Entry(NamedTuple):
    """Where one tensor lies in a file."""

    file: Path
    dtype: str  # safetensors' name for it, a key of READ
    shape: tuple[int, ...]
    start: int  # first byte in the file


def flatten(tree: Mapping) -> dict[str, Any]:
    """Returns {dotted path: leaf} of a nested dict; a flat dict is returned as it is.

    Example:
        >>> flatten({"down_blocks": {0: {"kernel": 1}}, "bias": 2})
        {'down_blocks.0.kernel': 1, 'bias': 2}
    """
    return {".".join(map(str, path)): leaf for path, leaf in traverse_util.flatten_dict(dict(tree)).items()}


def unflatten(flat: Mapping[str, Any], like: Mapping) -> dict:
    """Returns the leaves of `flat` as a nested dict of the structure of `like`.

    Args:
        flat: {dotted path: leaf}.
        like: nested dict whose leaves do not matter, such as a network's parameter shapes.

    Raises:
        ValueError: the two have different names; all of them are listed.

    Example:
        >>> unflatten({"a.0.b": 1}, {"a": {0: {"b": None}}})
        {'a': {0: {'b': 1}}}
    """
    paths = {".".join(map(str, path)): path for path in traverse_util.flatten_dict(dict(like))}
    bad = [f"{name} is missing" for name in paths if name not in flat]
    if bad := bad + [f"{name} is unknown" for name in flat if name not in paths]:
        raise ValueError(listed("the parameters do not belong to this network", bad))
    return traverse_util.unflatten_dict({path: flat[name] for name, path in paths.items()})


def listed(what: str, bad: Sequence[str]) -> str:
    """Returns one line with the mistakes, as far as they can be read at once.

    Example:
        >>> listed("a.safetensors does not fit", ["a is missing", "b is unknown"])
        'a.safetensors does not fit: a is missing; b is unknown'
    """
    more = f"; and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    return f"{what}: {'; '.join(bad[:LISTED])}{more}"


# --- reading


def read_header(path: str | Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Reads the header of a safetensors file.

    Returns:
        ({name: entry}, metadata).

    Raises:
        ValueError: the file is missing, truncated, or no safetensors file.
    """
    path = Path(path)
    try:
        with safe_open(path, "numpy"):  # compares the header with the length of the file
            pass
        with open(path, "rb") as file:
            text = _header(file)
        header = json.loads(text)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is missing or is not a complete safetensors file: {error}") from error
    metadata = header.pop("__metadata__", {})
    start = 8 + len(text)
    return {
        name: Entry(path, e["dtype"], tuple(e["shape"]), start + e["data_offsets"][0]) for name, e in header.items()
    }, metadata


def read(entry: Entry) -> np.ndarray:
    """Returns a tensor as it is stored, mapped into memory: only the parts that are used are read from the disk."""
    if 0 in entry.shape:
        return np.empty(entry.shape, READ[entry.dtype])  # nothing can be mapped
    return np.memmap(entry.file, READ[entry.dtype], "r", entry.start, entry.shape)


def fit(path: str | Path, shapes: Mapping) -> dict[str, Entry]:
    """Finds a network's parameters in a file that `save` or `convert` wrote. Only the header is read.

    Args:
        path: the file, or a folder that holds it as `model.safetensors`.
        shapes: the network's parameter shapes, as a nested dict.

    Returns:
        {dotted path: entry}.

    Raises:
        ValueError: the file is damaged, another program wrote it, or names, shapes or dtypes do not fit.
    """
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    entries, metadata = read_header(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} must have the format {FORMAT!r}, got {metadata.get('format')!r}; use `jdiff convert` first"
        )
    wanted = {name: tuple(leaf.shape) for name, leaf in flatten(shapes).items()}
    bad = [f"{name} {shape} is missing" for name, shape in wanted.items() if name not in entries]
    for name, entry in entries.items():
        if name not in wanted:
            bad.append(f"{name} {entry.shape} is not of this network")
        elif entry.shape != wanted[name]:
            bad.append(f"{name} must have shape {wanted[name]}, got {entry.shape}")
        elif entry.dtype not in READ:
            bad.append(f"{name} must have one of the dtypes {', '.join(READ)}, got {entry.dtype}")
    if bad:
        raise ValueError(listed(f"{path} does not fit the network", bad))
    return entries


def load(path: str | Path, shapes: Mapping, dtype: DTypeLike = None) -> dict:
    """Reads a network's parameters from a file that `save` or `convert` wrote.

    Args:
        path: as in `fit`.
        shapes: as in `fit`.
        dtype: what floats are cast to; as they are stored if None. Tensors of int8 stay so.

    Returns:
        Nested dict of NumPy arrays.

    Raises:
        ValueError: as `fit`; or the content of a file of up to `CHECKED` bytes is not what its digest says.
    """
    kept = lambda e: READ[e.dtype] if dtype is None or e.dtype not in FLOATS else np.dtype(dtype)
    entries = fit(path, shapes)
    check_small({entry.file for entry in entries.values()})
    return unflatten({name: np.array(read(e), kept(e), order="C") for name, e in entries.items()}, shapes)


# --- writing


def write(path: str | Path, leaves: Leaves, arrays: Iterable[np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, one array at a time, beside `path` and then renamed.

    Args:
        path: the file. On failure it stays as it was.
        leaves: {name: (dtype, shape)}.
        arrays: the tensors, in the same order.
        metadata: what else the header holds. The format and the digest are added.

    Raises:
        ValueError: an array is not what `leaves` says.
        OSError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT} | VERSION | dict(metadata) | {DIGEST: BLANK}}
    start = 0
    for name, (dtype, shape) in leaves.items():
        stop = start + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    text = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(text)
    with beside(path) as file:
        file.write(text)
        for (name, leaf), array in zip(leaves.items(), arrays, strict=True):
            if (array.dtype, array.shape) != leaf:
                raise ValueError(
                    f"{name} must be {leaf[0]}{leaf[1]}, as its header says, got {array.dtype}{array.shape}"
                )
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            digest.update(data)
            file.write(data)
        file.seek(0)
        file.write(text.replace(_told(BLANK), _told(digest.hexdigest()), 1))


def save(path: str | Path, params: Mapping, metadata: Mapping[str, str] | None = None) -> None:
    """Writes parameters so that `load` reads them.

    Args:
        path: the file. On failure it stays as it was.
        params: nested or flat dict of arrays, which keep their dtypes.
        metadata: what else the header holds.

    Raises:
        ValueError: a leaf is neither a float of 16 to 64 bits nor int8.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/a.safetensors", {"scale": np.float32([1, 2])})
        ...     load(f"{folder}/a.safetensors", {"scale": np.zeros(2)})
        {'scale': array([1., 2.], dtype=float32)}
    """
    flat = flatten(params)
    leaves = {name: (np.dtype(x.dtype), tuple(x.shape)) for name, x in flat.items()}
    if bad := [f"{name} is {dtype}" for name, (dtype, _) in leaves.items() if dtype not in CODES]:
        raise ValueError(f"the parameters must be of {', '.join(map(str, CODES))}; {', '.join(bad)}")
    leaves = dict(sorted(leaves.items(), key=lambda leaf: (-leaf[1][0].itemsize, leaf[0])))  # keeps all aligned
    write(path, leaves, (np.asarray(flat[name]) for name in leaves), metadata or {})


# --- digests of files


def check(path: str | Path) -> tuple[list[Path], list[Path]]:
    """Checks the content of safetensors files, of any size, against the digests that they carry.

    Args:
        path: a file, or a folder with files in it at any depth.

    Returns:
        (intact, without): files whose digest is right, and files that carry none, such as other programs'.

    Raises:
        ValueError: there is no such file, or a file is damaged; all damaged ones are listed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/a.safetensors", {"scale": np.float32([1, 2])})
        ...     [file.name for file in check(folder)[0]]
        ['a.safetensors']
    """
    path = Path(path)
    paths = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    if not paths:
        raise ValueError(f"{path} must be a safetensors file or a folder with some, got a folder without any")
    intact: list[Path] = []
    without: list[Path] = []
    bad: list[str] = []
    for file in paths:
        try:
            _, metadata = read_header(file)
            (intact if DIGEST in metadata else without).append(file)
            _verify(file, metadata)
        except ValueError as error:
            bad.append(str(error))
    if bad:
        raise ValueError("; ".join(bad))
    return intact, without


def check_small(paths: Iterable[Path]) -> None:
    """Checks files of up to `CHECKED` bytes against the digests that they carry, as `check` does."""
    for path in paths:
        if path.stat().st_size <= CHECKED:
            _verify(path, read_header(path)[1])


def _verify(path: Path, metadata: Mapping[str, str]) -> None:
    """Compares a file with the digest in its metadata, if there must be one."""
    if DIGEST not in metadata and not VERSION.items() <= metadata.items():
        return
    with open(path, "rb") as file:
        text = _header(file)
        told = metadata.get(DIGEST, "")
        blank = text.replace(_told(told), _told(BLANK), 1)
        digest = hashlib.sha256(len(text).to_bytes(8, "little") + blank)
        _update(digest, file)
    if digest.hexdigest() != told:
        raise ValueError(
            f"{path} is damaged: its content is not what the digest in its header says; write or fetch it again"
        )


def _header(file: IO[bytes]) -> bytes:
    return file.read(int.from_bytes(file.read(8), "little"))


def _told(digest: str) -> bytes:
    """The digest as it stands in the header. Quotes in other values are escaped there, so it stands there once."""
    return f'"{DIGEST}": "{digest}"'.encode()


def _update(digest: Any, file: IO[bytes]) -> None:  # Any: hashlib has no public type for its objects
    while block := file.read(1 << 20):
        digest.update(block)
