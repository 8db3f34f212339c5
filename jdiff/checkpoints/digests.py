"""Digests of files, computed once for each version of a file."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# Files of up to this many bytes are read anew each time; larger ones are known by size and time of change.
SMALL = 2**26
_known: dict[str, str] = {}


def sha256(path: str | Path, cache: str | Path | None = None) -> str:
    """Returns the sha256 of a file in hex, as `sha256sum` prints it.

    The digest of a large file is remembered by its path, size and time of change, and not computed again.

    Args:
        path: of the file.
        cache: folder in which digests of large files are kept between processes.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(path).resolve()
    found = path.stat()
    if found.st_size <= SMALL:
        return _digest(path)
    version = f"{path} {found.st_size} {found.st_mtime_ns}"
    place = None if cache is None else Path(cache) / f"{hashlib.sha256(version.encode()).hexdigest()}.json"
    if version not in _known and place is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):  # an unreadable cache is computed anew
            _known[version] = str(json.loads(place.read_text())["sha256"])
    if version not in _known:
        _known[version] = _digest(path)
        if place is not None:
            with suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(json.dumps({"file": str(path), "sha256": _known[version]}))
    return _known[version]


def together(files: Iterable[str | Path], cache: str | Path | None = None) -> str:
    """Returns one digest of several files' contents, in their order."""
    return hashlib.sha256(" ".join(sha256(path, cache) for path in files).encode()).hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
