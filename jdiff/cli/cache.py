"""Where commands keep what they have compiled and encoded. A cache that cannot be used is a note, and no error."""

import os
from pathlib import Path

from jdiff.cli.process import note

# Folders whose note is printed already.
_told: set[Path] = set()


def folder(name: str) -> Path | None:
    """Returns the folder that keeps what is made of one kind.

    It lies in $JDIFF_CACHE, in $XDG_CACHE_HOME/jdiff, or in ~/.cache/jdiff, whichever is set first. XLA's programs
    lie in $JDIFF_CACHE itself.

    Args:
        name: "xla" or "prompts".

    Returns:
        None where $JDIFF_CACHE is empty, or there is no home.
    """
    given = os.environ.get("JDIFF_CACHE")
    if given == "":
        return None
    try:
        if given:
            return Path(given).expanduser() / ("" if name == "xla" else name)
        base = os.environ.get("XDG_CACHE_HOME", "")
        above = Path(base) if os.path.isabs(base) else Path.home() / ".cache"  # its specification ignores others
        return above / "jdiff" / name
    except RuntimeError:  # no home
        return None


def usable(name: str) -> Path | None:
    """Returns that folder if it can be read and written, and otherwise prints a note and returns None."""
    place = folder(name)
    if place is None:
        return None
    try:
        place.mkdir(parents=True, exist_ok=True)
        with os.scandir(place):
            pass
        why = "" if os.access(place, os.R_OK | os.W_OK | os.X_OK) else "no permission to write"
    except OSError as error:
        why = error.strerror or str(error)
    if why and place not in _told:
        _told.add(place)
        note(f"the cache {place} cannot be used ({why}); set JDIFF_CACHE to another folder, or to nothing for none")
    return None if why else place


def keep_compilations() -> None:
    """Has XLA keep its programs in the cache, if there is one that can be used."""
    place = usable("xla")
    if place is None:
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
