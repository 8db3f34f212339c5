"""The prompt embeddings of a job. They are made once, in the job's folder, and all processes read them there."""

import json
import shutil
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdiff.bulk.prompts import Prompts
from jdiff.checkpoints import files
from jdiff.parts import beside

FOLDER = "embeddings"
ABOUT, ROWS = "embeddings.json", "rows.npy"  # the first is written last
FILE = 2**28  # bytes of embeddings in one file, about
MOST = 4096  # embeddings in one file
OPEN = 64  # files that are open at once
CACHE = 2**16  # KiB that SQLite keeps in memory; it puts the rest into a temporary file
WARNED = 3  # warnings about prompts that are shown
NEGATIVE = 0  # row of the negative prompt


class About(NamedTuple):
    """What embeddings.json says."""

    rows: int  # different prompts, with the negative one
    each: int  # rows in a file
    length: int
    width: int
    encoder: str | None  # hash of the text encoder; None where no prompt needed one


class Embedded:
    """Embeddings in a folder, read as they are needed.

    Args:
        folder: of the job.

    Raises:
        ValueError: they are missing or damaged.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder) / FOLDER
        try:
            self.about = About(**json.loads((self._folder / ABOUT).read_text()))
            self._rows = np.load(self._folder / ROWS, mmap_mode="r")
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{self._folder} is damaged ({error}); remove it, and it is made again") from error
        self._opened: dict[int, np.ndarray] = {}

    def of_prompts(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the embeddings of prompts by their line numbers, float32 [n l d]."""
        return np.stack([self._row(int(row)) for row in self._rows[numbers]])

    def negative(self) -> np.ndarray:
        """Returns the embedding of the negative prompt, float32 [l d]."""
        return self._row(NEGATIVE)

    def _row(self, row: int) -> np.ndarray:
        number = row // self.about.each
        if number not in self._opened:
            states = self._open(number)
            if len(self._opened) >= OPEN:
                del self._opened[next(iter(self._opened))]
            self._opened[number] = states
        return np.array(self._opened[number][row % self.about.each])

    def _open(self, number: int) -> np.ndarray:
        path = self._folder / _name(number)
        entries, _ = files.read_header(path)
        files.check_small([path])
        if "states" not in entries:
            raise ValueError(f"{path} must hold the tensor states, got {', '.join(entries)}; remove it")
        return files.read(entries["states"])


def exist(folder: str | Path) -> bool:
    """Returns whether the folder of a job has all its embeddings."""
    return (Path(folder) / FOLDER / ABOUT).is_file()


def remove(folder: str | Path) -> None:
    """Removes the embeddings of a job."""
    shutil.rmtree(Path(folder) / FOLDER, ignore_errors=True)


def make(
    folder: str | Path,
    prompts: Prompts,
    negative: str,
    embed: Callable[[Sequence[str]], Any],
    encoder: Callable[[], str | None],
    told: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Embeds each prompt once, into files. What an earlier run has written is not made again.

    Args:
        folder: of the job.
        prompts: their file. It is read line by line, and no more than one file of embeddings is in memory.
        negative: the negative prompt, which becomes row 0.
        embed: prompts -> embeddings [n l d].
        encoder: returns the hash of the text encoder.
        told: called with (lines done, lines in all).

    Raises:
        ValueError: a prompt has no embedding, or the embeddings are not of one size.
        OSError: a file cannot be written.
    """
    place = Path(folder) / FOLDER
    place.mkdir(exist_ok=True)
    (first,) = np.asarray(embed([negative]), np.float32)
    each = max(1, min(MOST, FILE // first.nbytes))
    number, texts, rows, said = 0, [negative], 1, []

    def flush() -> None:
        nonlocal number
        path = place / _name(number)
        if not path.exists():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                states = np.asarray(embed(texts), np.float32)
            said.extend(str(warning.message) for warning in caught[: WARNED + 1 - len(said)])
            if states.shape[1:] != first.shape:
                raise ValueError(
                    f"embeddings must be of one size, got {list(first.shape)} and {list(states.shape[1:])}"
                )
            files.save(path, {"states": states})
        texts.clear()
        number += 1

    with beside(place / ROWS) as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<u4", "fortran_order": False, "shape": (prompts.count,)}
        )  # fmt: skip
        for done, (text, row) in enumerate(_numbered(prompts.each(), negative)):
            if row == rows:  # a prompt that was not there before
                if len(texts) == each:
                    flush()
                    told(done, prompts.count)
                texts.append(text)
                rows += 1
            file.write(row.to_bytes(4, "little"))
        if texts:
            flush()
    for message in said[:WARNED]:
        warnings.warn(message, stacklevel=2)
    if len(said) > WARNED:
        warnings.warn("and more prompts likewise", stacklevel=2)
    length, width = first.shape
    about = About(rows, each, length, width, encoder())
    with beside(place / ABOUT) as file:
        file.write(json.dumps(about._asdict(), indent=2).encode() + b"\n")
    told(prompts.count, prompts.count)


def _numbered(texts: Iterator[str], negative: str) -> Iterator[tuple[str, int]]:
    """Yields each text and the number of its embedding. Equal texts have equal numbers; `negative` has 0."""
    seen = sqlite3.connect("", isolation_level=None)
    try:
        seen.execute(f"pragma cache_size = -{CACHE}")
        seen.execute("pragma journal_mode = off")
        seen.execute("create table seen (text text primary key, row integer) without rowid")
        seen.execute("begin")
        seen.execute("insert into seen values (?, 0)", (negative,))
        count = 1
        for text in texts:
            new = seen.execute("insert or ignore into seen values (?, ?)", (text, count)).rowcount
            row = count if new else seen.execute("select row from seen where text = ?", (text,)).fetchone()[0]
            count += new
            yield text, row
    finally:
        seen.close()


def _name(number: int) -> str:
    return f"{number:05d}.safetensors"
