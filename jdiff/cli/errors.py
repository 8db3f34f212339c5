"""What goes wrong in a command, as one line on stderr and an exit status."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Exit statuses. Interrupted is 128 and the signal's number.
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
# Most bytes of a file's name where the file system does not say.
LONGEST_NAME = 255
# What JAX's errors say where memory is short. Its kinds of errors say nothing: most are a RuntimeError.
NO_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|bad_alloc|[Ff]ailed to allocate|[Cc]annot allocate")
ADVICE = "draw fewer pictures, use a smaller model, or try --dtype bfloat16"


class BadInput(Exception):
    """What the user gave cannot be done. The text is one line: what is wrong, the value, and what to do."""


class Failure(Exception):
    """What the user gave is right, but it could not be done. The text is one line."""


def demand(holds: bool, message: str) -> None:
    """Raises `BadInput` with this message unless `holds`."""
    if not holds:
        raise BadInput(message)


def accepted(function: Callable[[], T], about: str = "") -> T:
    """Returns what `function()` returns, and turns its errors about the user's input into `BadInput`.

    Args:
        function: may raise ValueError, or OSError for a file that cannot be read.
        about: what stands before its message, such as "--prompts: ".
    """
    try:
        return function()
    except (ValueError, OSError) as error:
        raise BadInput(about + one_line(error)) from error


def one_line(error: BaseException) -> str:
    """Returns an error's text in one line.

    Example:
        >>> one_line(ValueError("2 things are wrong:\\n  a is missing\\n  b is unknown"))
        '2 things are wrong: a is missing; b is unknown'
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join([lines[0], "; ".join(lines[1:])]).strip()


def explained(error: Exception) -> tuple[int, str] | None:
    """Returns the exit status and the line of an error that a user can do something about.

    Args:
        error: anything that a command raised.

    Returns:
        None for an error in jdiff itself, whose traceback belongs into a report.

    Example:
        >>> explained(MemoryError())
        (1, 'out of memory; draw fewer pictures, use a smaller model, or try --dtype bfloat16')
    """
    if isinstance(error, BadInput):
        return BAD_INPUT, one_line(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        return FAILED, f"out of memory; {ADVICE}"
    if isinstance(error, OSError | Failure):
        return FAILED, one_line(error)
    if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
        return FAILED, f"the computation failed on this device: {one_line(error)[:300]}"
    return None


def is_unicode(text: str) -> bool:
    """Returns whether a text can be written as UTF-8, and has no zero byte, which ends the name of a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def check_output(flag: str, path: Path, suffix: str) -> None:
    """Checks that a file of this kind can be written to `path`.

    Raises:
        BadInput: it ends in something else, or it cannot be written there.
    """
    demand(is_unicode(str(path)), f"{flag} must be a path in UTF-8, got {str(path)!a}")
    ends = f"{flag} must be a file that ends in {suffix}, got {path}"
    longest, length = _longest_name(path.parent), len(os.fsencode(path.name))
    demand(length <= longest, f"{flag} must have a name of at most {longest} bytes, got {length} in {path}")
    real = Path(os.path.realpath(path))
    exists, is_folder, is_file = accepted(lambda: (real.exists(), real.is_dir(), real.is_file()), f"{flag}: ")
    demand(not is_folder, f"{ends}, which is a folder")
    demand(path.suffix.lower() == suffix, ends)
    folder = real.parent
    demand(folder.is_dir(), f"{flag} must be in a folder that exists, got {path}")
    demand(not exists or is_file, f"{flag} must be a file, got {path}, which is a device or a pipe")
    read_only = exists and not real.stat().st_mode & 0o222
    demand(not read_only, f"{flag} must be a file that can be replaced, got {path}, which is read-only")
    writable = os.access(folder, os.W_OK | os.X_OK)
    demand(writable, f"{flag} must be in a folder that you can write to, got {path}")


def check_distinct(outputs: Sequence[tuple[str, Path]], inputs: Sequence[tuple[str, Path]] = ()) -> None:
    """Checks that no output is another output or an input, links followed.

    Args:
        outputs: flags and their paths.
        inputs: the same of files that are read.

    Raises:
        BadInput: two are one file.
    """
    taken = {os.path.realpath(path): f"{flag} reads" for flag, path in inputs}
    for flag, path in outputs:
        place = os.path.realpath(path)
        demand(place not in taken, f"{flag} must be another file than {taken.get(place)}, got {path}")
        taken[place] = f"{flag} writes"


def check_local(flag: str, path: object) -> None:
    """Checks that a path is not a URL, whose slashes a path has lost.

    Raises:
        BadInput: it is one.
    """
    is_url = isinstance(path, Path) and path.parts[:1] and path.parts[0].lower() in ("http:", "https:")
    demand(not is_url, f"{flag} must be a file on this machine, got {path}; save that file first")


def _longest_name(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):
        return LONGEST_NAME
