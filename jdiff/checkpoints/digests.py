"""The digest that identifies a set of parameters: of their names, shapes, dtypes and values, in any file format.

The digest is of the content alone. It does not trust what a file's metadata says, and it does not depend on how the
file is laid out: a network in PyTorch's layout and the same network converted have one digest.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from jdiff.parts import beside
from jdiff.types import Params

SMALL = 2**26  # bytes of parameters up to which a digest is computed anew each time, which takes 0.1 s
WORKERS = 8  # tensors hashed at once; hashlib works without the interpreter's lock
_remembered: dict[str, str] = {}  # of this process


def sha256(path: str | Path) -> str:
    """Returns the sha256 of a file in hex, as `sha256sum` prints it.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def together(paths: Iterable[str | Path]) -> str:
    """Returns one digest of the contents of several files, in their order."""
    return hashlib.sha256(" ".join(map(sha256, paths)).encode()).hexdigest()


def of_arrays(arrays: Mapping[str, Callable[[], np.ndarray]]) -> str:
    """Returns the digest of arrays, each of which is made when it is needed.

    Args:
        arrays: {name: function that returns the array}. A few of them are in memory at once.

    Returns:
        sha256 in hex, the same in any order of the arrays.

    Example:
        >>> of_arrays({"a": lambda: np.ones(2)}) == of_arrays({"a": lambda: 2 * np.ones(2)})
        False
    """

    def line(name: str) -> str:
        x = np.asarray(arrays[name]())
        data = np.ascontiguousarray(x).reshape(-1).view(np.uint8).data
        return f"{name} {x.dtype} {list(x.shape)} {hashlib.sha256(data).hexdigest()}"

    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        lines = list(pool.map(line, sorted(arrays)))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def of_params(params: Params) -> str:
    """Returns the digest of a pytree of arrays: of their paths, shapes, dtypes and values.

    Example:
        >>> of_params({"a": {0: np.ones(2)}}) == of_arrays({"a.0": lambda: np.ones(2)})
        True
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    return of_arrays({name: (lambda leaf=leaf: np.asarray(leaf)) for name, leaf in named.items()})


def of_files(paths: Iterable[Path], how: object, compute: Callable[[], str], cache: Path | None = None) -> str:
    """Returns what `compute` makes of files, without computing it again while the files stay as they are.

    The digest is cached, in this process and in a folder, by the files' paths, sizes, times and inodes. Files of at
    most `SMALL` bytes together are not cached but read again.

    Args:
        paths: the files.
        how: what else the result depends on, such as a dtype; something that JSON can hold.
        compute: returns the digest.
        cache: folder that remembers between processes; None remembers within this process.
    """
    states = [(path.resolve(), path.stat()) for path in sorted(paths)]
    if math.fsum(state.st_size for _, state in states) <= SMALL:
        return compute()
    told = [[str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for path, s in states]
    key = hashlib.sha256(json.dumps([1, told, how]).encode()).hexdigest()
    place = None if cache is None else cache / "digests" / key
    if key not in _remembered:
        kept = _kept(place)
        _remembered[key] = compute() if kept is None else kept
        if kept is None:
            _keep(place, _remembered[key])
    return _remembered[key]


def _kept(place: Path | None) -> str | None:
    try:
        text = "" if place is None else place.read_text()
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _keep(place: Path | None, digest: str) -> None:
    """Writes a digest down. Where that is not possible it is computed again next time."""
    try:
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            with beside(place) as file:
                file.write(digest.encode())
    except OSError:
        return
