"""Files of prompts, one a line, of any length: they are read in one pass, and never held."""

import array
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

BOM = b"\xef\xbb\xbf"
EVERY = 1024  # the place of every so many lines is remembered
LONGEST = 2**16  # bytes of a line
LISTED = 5  # empty lines that an error shows


class Prompts(NamedTuple):
    """A file of prompts that was read once."""

    path: Path
    count: int
    sha256: str  # of its prompts, whatever ends the lines
    places: array.array  # where every `EVERY`-th line begins, in bytes

    def read(self, first: int, stop: int) -> list[str]:
        """Returns the prompts of lines `first` to `stop`, counted from 0.

        Raises:
            ValueError: the file has been changed since `scan` read it.
            OSError: it cannot be read.
        """
        if not 0 <= first <= stop <= self.count:
            raise ValueError(f"lines must be between 0 and {self.count}, got {first} to {stop}")
        if first == stop:
            return []
        with open(self.path, "rb") as file:
            file.seek(self.places[first // EVERY])
            lines = _lines(file)
            for _ in range(first % EVERY):
                next(lines, None)
            found = [line for _, line in zip(range(stop - first), lines, strict=False)]
        try:
            texts = [_text(line) for line in found]
        except UnicodeDecodeError:
            texts = []
        if len(texts) < stop - first or "" in texts:
            raise ValueError(f"{self.path} has been changed while it was in use; restore it, or start a new folder")
        return texts

    def each(self) -> Iterator[str]:
        """Yields all prompts, in order."""
        for first in range(0, self.count, EVERY):
            yield from self.read(first, min(first + EVERY, self.count))


def scan(path: str | Path) -> Prompts:
    """Reads a file of prompts once: counts and checks its lines.

    Args:
        path: of a text file in UTF-8, one prompt a line. The memory that this takes does not depend on its length,
            but for 8 bytes every 1024 lines.

    Raises:
        ValueError: there is no such file, or a line is empty, too long or not in UTF-8.
        OSError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "prompts.txt")
        ...     _ = path.write_text("a red three\\na blue six\\n")
        ...     prompts = scan(path)
        ...     prompts.count, prompts.read(1, 2)
        (2, ['a blue six'])
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise ValueError(f"the prompts must be a text file with a prompt on each line, got {path}, which {what}")
    digest, places, empty, count = hashlib.sha256(), array.array("Q"), [], 0
    with open(path, "rb") as file:
        at = len(BOM) if file.read(len(BOM)) == BOM else 0
        file.seek(at)
        for line in _lines(file):
            if count % EVERY == 0:
                places.append(at)
            if len(line) > LONGEST:
                raise ValueError(f"{path}: line {count + 1} must have at most {LONGEST} bytes; shorten it")
            try:
                text = _text(line)
            except UnicodeDecodeError:
                raise ValueError(f"{path}: line {count + 1} must be in UTF-8, got {line[:20]!r}") from None
            if not text:
                empty.append(count + 1)
                if len(empty) > LISTED:
                    break
            digest.update(text.encode() + b"\n")
            at += len(line)
            count += 1
    if empty:
        numbers = ", ".join(map(str, empty[:LISTED])) + (" and more" if len(empty) > LISTED else "")
        what = "line {} is" if len(empty) == 1 else "lines {} are"
        raise ValueError(f"{path}: {what.format(numbers)} empty; remove empty lines, or write a prompt there")
    if not count:
        raise ValueError(f"{path} must hold a prompt or more, one on each line, got an empty file")
    return Prompts(path, count, digest.hexdigest(), places)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines of at most LONGEST bytes; of a longer one, its beginning with one more byte."""
    while line := file.readline(LONGEST + 1):
        yield line


def _text(line: bytes) -> str:
    """A line's prompt, without the space around it."""
    return line.decode().strip()
