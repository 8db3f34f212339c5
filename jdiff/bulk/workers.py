"""Shares: which shards a process makes, and the lock by which no other process makes the same ones."""

import contextlib
import errno
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# What a file system says that has no locks.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
LONGEST = 12  # digits of a share's number
PATIENCE = 0.2  # seconds between two tries to get a lock


class Share(NamedTuple):
    """Share `index` of `count` of the shards, and what said so."""

    index: int = 0
    count: int = 1
    source: str = ""


def share(given: str | None, environment: Mapping[str, str]) -> Share:
    """Returns which share of the shards this process makes.

    Args:
        given: "i/n" is share i of n, counted from 0. With "n" alone, the environment says which. With None, the
            environment says both; if it says nothing there is one share.
        environment: environment variables. These are read, in this order: JOB_COMPLETION_INDEX (Kubernetes, with
            JOB_COMPLETIONS), SLURM_ARRAY_TASK_ID (with SLURM_ARRAY_TASK_COUNT, _MIN and _STEP), SLURM_PROCID (with
            SLURM_NTASKS). The last two multiply: each task of a job array may have several processes.

    Raises:
        ValueError: the numbers are missing, no numbers, or out of range.

    Example:
        >>> share("3/8", {})
        Share(index=3, count=8, source='--shards')
        >>> share(None, {"SLURM_PROCID": "1", "SLURM_NTASKS": "4"})
        Share(index=1, count=4, source='SLURM_PROCID')
    """
    if given is not None and "/" in given:
        found = re.fullmatch(rf"(\d{{1,{LONGEST}}})/(\d{{1,{LONGEST}}})", given)
        if not found:
            raise ValueError(f"--shards must be i/n, such as 0/8, or n, got {given!r}")
        return _checked(int(found[1]), int(found[2]), "--shards", f"--shards {given}")
    count = None
    if given is not None:
        if not re.fullmatch(rf"\d{{1,{LONGEST}}}", given):
            raise ValueError(f"--shards must be i/n, such as 0/8, or n, got {given!r}")
        count = int(given)
    number = lambda name: _number(environment, name)
    if (index := number("JOB_COMPLETION_INDEX")) is not None:
        count = number("JOB_COMPLETIONS") if count is None else count
        if count is None:
            raise ValueError(
                "JOB_COMPLETION_INDEX needs the number of completions; give it as --shards n, or set JOB_COMPLETIONS"
            )
        return _checked(index, count, "JOB_COMPLETION_INDEX")
    task, process = number("SLURM_ARRAY_TASK_ID"), number("SLURM_PROCID")
    if task is not None and count is not None:
        return _checked(task, count, "SLURM_ARRAY_TASK_ID")
    shares = []
    if task is not None:
        tasks = number("SLURM_ARRAY_TASK_COUNT")
        if tasks is None:
            raise ValueError("SLURM_ARRAY_TASK_ID needs SLURM_ARRAY_TASK_COUNT; set it, or give --shards i/n")
        first, step = number("SLURM_ARRAY_TASK_MIN") or 0, number("SLURM_ARRAY_TASK_STEP") or 1
        if (task - first) % step or not 0 <= (task - first) // step < tasks:
            raise ValueError(
                f"SLURM_ARRAY_TASK_ID must be one of an even array of {tasks} from {first} by {step}, got {task}; give "
                "--shards n with the number of all shares"
            )
        shares.append(Share((task - first) // step, tasks, "SLURM_ARRAY_TASK_ID"))
    if process is not None:
        processes = count or number("SLURM_STEP_NUM_TASKS") or number("SLURM_NTASKS")
        if processes is None:
            raise ValueError("SLURM_PROCID needs SLURM_NTASKS; set it, or give --shards i/n")
        if processes > 1:
            shares.append(_checked(process, processes, "SLURM_PROCID"))
    if count is not None and not shares:
        if count == 1:
            return Share(0, 1, "--shards")
        raise ValueError(
            f"--shards {count} needs the number of this share: give --shards i/{count}, or start by SLURM or Kubernetes"
        )
    total = Share()
    for one in shares:
        source = " and ".join(filter(None, (total.source, one.source)))
        total = Share(total.index * one.count + one.index, total.count * one.count, source)
    return total


@contextlib.contextmanager
def holding(folder: str | Path, share: Share) -> Iterator[Path]:
    """Holds a share of a folder, and yields an empty folder in it for unfinished files.

    The lock ends when its process ends, also when it is killed. Unfinished files of an earlier process are removed.

    Raises:
        ValueError: another process holds the share.
        OSError: the folder cannot be written to.
    """
    name = f".share-{share.index}-of-{share.count}"
    told = f"{folder}: share {share.index} of {share.count} is being made by "
    with locked(Path(folder) / f"{name}.lock", told):
        half = Path(folder) / f"{name}.part"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        try:
            yield half
        finally:
            shutil.rmtree(half, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, told: str = "", waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds a lock file.

    Args:
        path: of the lock file. It is removed at the end, unless its process is killed.
        told: the beginning of the error if another process holds the lock.
        waiting: called once with the holder, before this waits for it. If None, a held lock is an error.

    Raises:
        ValueError: another process holds the lock.
        OSError: the file cannot be written.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(descriptor, path):
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                if waiting is None:
                    raise ValueError(f"{told}{holder}; wait for it, or end it")
                waiting(holder)
                waiting = lambda holder: None
                time.sleep(PATIENCE)
                continue
            if not _same(descriptor, path):  # its last holder has taken it away
                continue
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
            return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(f"the file system of {path.parent} has no locks: start each share once", stacklevel=4)
    return True


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    if not text:
        return None
    if not re.fullmatch(rf"\d{{1,{LONGEST}}}", text):
        raise ValueError(f"{name} must be a whole number, got {text!r}; unset it, or give --shards i/n")
    return int(text)


def _checked(index: int, count: int, source: str, shown: str = "") -> Share:
    if not 0 <= index < count:
        least = f"{source} must be i/n with i from 0 to n - 1" if shown else f"{source} must be from 0 to {count - 1}"
        got = shown.removeprefix("--shards ") or f"{index}; give --shards i/n"
        raise ValueError(f"{least}, got {got}")
    return Share(index, count, source)
