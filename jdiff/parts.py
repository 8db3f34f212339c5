"""Files and folders that appear under their name only when they are complete.

A file is written under another name beside its own, and renamed at the end. The names of unfinished files are kept, so
that an interrupted process can remove them.
"""

import contextlib
import errno
import itertools
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# Bytes of the longest file name, on every common file system.
LONGEST_NAME = 255

# What is being written, and the processes that write some of it.
_parts: set[Path] = set()
_processes: set[subprocess.Popen] = set()
_lock = threading.RLock()
_count = itertools.count()


@contextlib.contextmanager
def beside(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a binary file that becomes `path` when the block ends well; otherwise `path` stays as it was.

    Links are followed, and a file that is replaced keeps its mode.

    Args:
        path: of the file.

    Yields:
        The open file.

    Raises:
        OSError: the file cannot be written; see `check_writable`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with beside(Path(folder, "a.txt")) as file:
        ...         _ = file.write(b"complete")
        ...     os.listdir(folder)
        ['a.txt']
    """
    with path_beside(path) as part:
        with _lock:  # not after `discard`
            file = open(part, "xb")
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())


def write_text(path: str | Path, text: str) -> None:
    """Writes text in UTF-8 to a file, which is replaced only when all of it is written.

    Args:
        path: of the file.
        text: what it will hold.

    Raises:
        OSError: the file cannot be written; see `check_writable`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(Path(folder, "a.txt"), "complete")
        ...     Path(folder, "a.txt").read_text()
        'complete'
    """
    with beside(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def path_beside(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path, for writers that open files themselves. It is renamed to `path` if the block succeeds.

    Raises:
        OSError: as `beside`.
    """
    target = _target(path)
    mode = _mode(path, target)
    part = _name(target)
    with _listed(part):
        try:
            yield part
            if mode is not None:
                with contextlib.suppress(OSError):
                    os.chmod(part, mode)
            os.replace(part, target)
        except OSError as error:
            if error.errno is not None and error.filename in (None, str(part)):  # named by what the user asked for
                raise type(error)(error.errno, error.strerror, str(path)) from error
            raise


def check_writable(path: str | Path) -> None:
    """Checks that a file can be written, before the work whose result goes there. A link stands for its target.

    Raises:
        OSError: the name is too long, the folder does not exist or cannot be written to, or what is there is a
            folder, no regular file, or read-only.

    Example:
        >>> check_writable("no-such-folder/a.png")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no-such-folder/a.png: there is no folder no-such-folder
    """
    _mode(path, _target(path))


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Makes a folder that becomes `path` when the block ends well; otherwise nothing is left of it.

    Args:
        path: of the folder, which must not exist.

    Yields:
        The folder, under another name.

    Raises:
        OSError: it cannot be written, or `path` exists.
    """
    part = _name(Path(path))
    with _listed(part):
        with _lock:
            part.mkdir()
        yield part
        os.rename(part, path)


@contextlib.contextmanager
def running(command: list[str], stdin: int) -> Iterator[subprocess.Popen]:
    """Starts a process that writes a part. It is killed at the end of the block, if it is still there.

    Args:
        command: the program and its arguments.
        stdin: as of `subprocess.Popen`. What the process prints goes into pipes.

    Yields:
        The process. It is in a group of its own, so that Ctrl-C in a terminal reaches this process alone.
    """
    with _lock:
        process = subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=os.name == "posix"
        )
        _processes.add(process)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        _processes.discard(process)


def discard() -> None:
    """Takes away what is half written, and ends the processes that write it. For a process that is about to end.

    It keeps the lock, so that no other thread begins to write.
    """
    _lock.acquire(timeout=5)  # another thread holds it only while it opens a file
    for process in list(_processes):
        with contextlib.suppress(OSError):
            process.kill()
            process.wait()
    for part in list(_parts):
        _remove(part)


@contextlib.contextmanager
def _listed(part: Path) -> Iterator[None]:
    _parts.add(part)
    try:
        yield
    finally:
        _remove(part)
        _parts.discard(part)


def _name(target: Path) -> Path:
    """Short, since a file's own name may be as long as a name can be."""
    return target.with_name(f".jdiff-{os.getpid()}-{next(_count)}.part")


def _remove(part: Path) -> None:
    with contextlib.suppress(OSError):
        part.unlink()
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)


def _target(path: str | Path) -> Path:
    """The file that `path` stands for: a link's target."""
    if os.path.islink(path):
        with contextlib.suppress(FileNotFoundError):  # the target is not there yet
            os.stat(path)  # a loop of links raises
    return Path(os.path.realpath(path))


def _mode(path: str | Path, target: Path) -> int | None:
    """The mode of the file that will be replaced, None where there is none; raises OSError if it must not be."""
    size = len(os.fsencode(target.name))
    if size > LONGEST_NAME:
        raise OSError(f"{path}: the file name has {size} bytes; give one of at most {LONGEST_NAME}")
    folder = target.parent if os.path.islink(path) else Path(path).parent
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {folder}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: no permission to write to the folder {folder}")
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path}: this is a folder; give the name of a file")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path}: this is no regular file, and it is not replaced")
    if not mode & 0o222 or not os.access(target, os.W_OK):
        raise PermissionError(f"{path}: the file is read-only; give another name, or allow writing")
    return stat.S_IMODE(mode)


def is_folder(path: str | Path) -> bool:
    """Returns whether a path is a folder. A name that is too long for the file system is none.

    Raises:
        OSError: the path cannot be looked at.

    Example:
        >>> is_folder("."), is_folder("a" * 1000)
        (True, False)
    """
    try:
        return Path(path).is_dir()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False
