"""A progress bar that never stops the work: output that cannot be written is dropped."""

import os
import select
import sys
import threading
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm


class Bar:
    """A progress bar on stderr. It is a context manager, which closes the bar.

    Args:
        total: amount of work.
        unit: name of what is counted.
        label: text before the numbers.
        quiet: whether to show nothing.
        delay: seconds until the bar is first shown.
        leave: whether the bar stays on the screen at the end; otherwise it is cleared.

    Example:
        >>> with Bar(8, unit="step", quiet=True) as bar:
        ...     bar.update(4)
    """

    def __init__(
        self, total: int, *, unit: str, label: str = "", quiet: bool = False, delay: float = 0.0, leave: bool = False
    ):
        self._bar = tqdm(
            total=total, unit=unit, desc=label, disable=quiet, delay=delay, leave=leave, dynamic_ncols=True,
            file=_Lossy(sys.stderr),
        )  # fmt: skip
        self._timer = threading.Timer(delay, self._show)
        self._timer.daemon = True
        if delay > 0 and not quiet:
            self._timer.start()

    def _show(self) -> None:
        self._bar.delay = 0  # or tqdm takes it for a bar that was never shown, and does not clear it away
        self._bar.refresh()

    def update(
        self, done: int, total: int | None = None, *, label: str = "", numbers: Mapping[str, str] | None = None
    ) -> None:
        """Shows that `done` of `total` is done.

        Args:
            done: amount of finished work, counted from the start.
            total: the new total, if it has changed.
            label: the new label, if it has changed.
            numbers: names and values that are shown behind the bar.
        """
        if total is not None:
            self._bar.total = total
        if label:
            self._bar.set_description(label, refresh=False)
        if numbers:
            self._bar.set_postfix(numbers, refresh=False)
        self._bar.update(int(done) - self._bar.n)

    def close(self) -> None:
        """Ends the bar."""
        self._timer.cancel()
        self._bar.close()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Lossy:
    """A stream that drops what cannot be written: its file is closed or full, or nobody reads the pipe."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "ascii"

    def write(self, text: str) -> int:
        stream = self._stream
        if stream is None:
            return len(text)
        try:
            descriptor = _descriptor(stream)
            if descriptor is None:
                stream.write(text)
                stream.flush()
            elif not _would_block(descriptor):
                # not by stream.write, which would buffer the text and raise when Python exits
                os.write(descriptor, text.encode(self.encoding, "replace"))
        except Exception:  # no error of the bar may stop the work
            self._stream = None
        return len(text)

    def flush(self) -> None:
        """Does nothing: `write` has flushed."""

    def fileno(self) -> int:
        """Returns the stream's file descriptor, from which the terminal's width is read."""
        if self._stream is None:
            raise OSError("no stream")
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Returns whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # closed, or a stream in memory
        return None


def _would_block(descriptor: int) -> bool:
    """Whether a write would wait for the reader of a pipe."""
    try:
        return not select.select([], [descriptor], [], 0)[1]
    except (OSError, ValueError):  # `select` cannot check this descriptor, as on Windows
        return False
