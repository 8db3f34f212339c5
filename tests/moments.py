"""Moments at which a test kills a process. They are counted and not timed, so a fast machine is not past them."""

import itertools
import os
import signal
import sys
from pathlib import Path

# In front of the code of a process. The folder of this file has to be on its path.
KILL = "import moments\nmoments.kill_at({uses}, {folder!r})\n"


def kill_at(uses: int, folder: str) -> None:
    """Kills this process right before it uses files or folders below `folder` for the `uses`-th time.

    A use is whatever Python tells its audit hooks: an open, a rename, a removal, a new folder. Files that a library
    writes without Python do not count, so a kill can also find one of them half-written.
    """
    inside, count = os.path.abspath(folder), itertools.count(1)

    def hook(event: str, args: tuple) -> None:
        if not args or not isinstance(args[0], str | os.PathLike):
            return
        path = Path(os.path.abspath(os.fsdecode(args[0])))
        if path.is_relative_to(inside) and next(count) >= uses:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
