"""Reading a network's config.json."""

import json
from collections.abc import Mapping
from pathlib import Path

from jdiff.types import Json


def read(source: str | Path | Json) -> Json:
    """Reads a JSON object.

    Args:
        source: path of the file, folder of a config.json, or the contents themselves.

    Returns:
        The contents.

    Raises:
        ValueError: the file cannot be read, or does not hold a JSON object.

    Example:
        >>> read({"num_layers": 24})
        {'num_layers': 24}
    """
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} must hold a JSON object, got a {type(found).__name__}")
    return found
