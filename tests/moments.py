"""Moments at which a test kills a process. They are counted and not timed, so a fast machine is not past them."""

import os
import signal
import sys
from pathlib import Path

# In front of the code of a process. The folder of this file has to be on its path.
KILL = "import moments\nmoments.kill_at({uses}, {folder!r})\n"


def kill_at(uses: int, folder: str) -> None:
    """Kills this process right before it uses files or folders below `folder` for the `uses`-th time.

    A use is an open, a rename, a removal, a new folder or a listing, by whichever thread. What a kill leaves differs
    only from one use to the next.
    """
    inside, left = os.path.abspath(folder), uses

    def hook(event: str, args: tuple) -> None:
        nonlocal left
        if not args or not isinstance(args[0], str | os.PathLike):
            return
        path = Path(os.path.abspath(os.fsdecode(args[0])))
        left -= path.is_relative_to(inside)
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
