"""The process around a command: its streams, its signals, and how it ends.

A signal has to end the command at once and leave nothing behind, whatever is going on: imports, a compilation that
does not hand signals on, a file that is being written. So the work is done in a thread, and the main thread waits for
signals. It never leaves by Python's own exit while XLA is computing, which crashes.
"""

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TextIO

# Signals that ask a process to end, where the system has them.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Seconds between two looks at signals that another thread has received.
PATIENCE = 0.5


def run(work: Callable[[], int]) -> int:
    """Runs a command as a process of its own.

    Args:
        work: does everything, and returns the exit status.

    Returns:
        The exit status. A signal ends the process instead, with 128 and its number: 130 for Ctrl-C.
    """
    outcome: dict[str, Any] = {}  # "status" or "error"
    ended = threading.Event()

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        for other in STOPPING:
            signal.signal(other, signal.SIG_IGN)
        if "status" in outcome:  # all is written
            os._exit(outcome["status"])
        parts = sys.modules.get("jdiff.parts")
        getattr(parts, "discard", lambda: None)()
        os._exit(128 + number)

    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` and a shell's background jobs set it
            signal.signal(number, stop)
    open_streams()

    def call() -> None:
        try:
            outcome["status"] = work()
        except BaseException as error:  # SystemExit too
            outcome["error"] = error
        ended.set()

    threading.Thread(target=call, name="jdiff", daemon=True).start()
    while not ended.wait(PATIENCE):
        pass
    if "error" in outcome and not isinstance(outcome["error"], SystemExit):
        raise outcome["error"]
    status = outcome["error"].code if "error" in outcome else outcome["status"]
    outcome["status"] = status if isinstance(status, int) else int(status is not None)
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    for number in STOPPING:  # all is done, and Python's own end must not turn into another status
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # otherwise Python looks for cycles among all of JAX's objects when it ends, for 0.2 s
    return outcome["status"]


def open_streams() -> None:
    """Makes the standard streams safe to write to.

    Closed ones become /dev/null: otherwise the next file that is opened gets their number, and the messages of a
    library go into it. Letters that the terminal does not have are written as escapes.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def tell(text: str, stream: TextIO | None = None) -> None:
    """Prints a line. A report that cannot be printed changes nothing: what was made is made.

    Args:
        text: the line.
        stream: where it goes; stdout if None.
    """
    stream = sys.stdout if stream is None else stream
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError, ValueError):
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    _flush(stream)


def note(text: str) -> None:
    """Prints a note on stderr."""
    tell(f"jdiff: note: {text}", sys.stderr)


def _flush(stream: TextIO | None) -> None:
    """Writes out what a stream has kept; where that fails, its file becomes /dev/null, so that it cannot fail again."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
