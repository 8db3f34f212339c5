"""A network's config.json, from a file, a folder or as it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """What a `config.json` holds: of its path, of its folder, or its contents, which are returned as they are.

    Raises ValueError where the file is no JSON object.

    >>> read({"num_layers": 24})
    {'num_layers': 24}
    """
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no readable config.json: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} is no readable config.json: it holds a {type(found).__name__}")
    return found
