"""Shards as Parquet files or folders of PNGs. A shard appears under its name only when it is complete."""

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdiff.bulk.shards import Layout
from jdiff.images.write import as_pil
from jdiff.parts import beside, new_folder

GROUP = 100  # rows of a Parquet file's row group
# Types of a Parquet file's columns, except the image's. The names are also the keys in a folder's metadata.jsonl.
COLUMNS = {"prompt": "string", "prompt_index": "int64", "index": "int64", "seed": "int64", "settings": "string"}
METADATA = "metadata.jsonl"


class Row(NamedTuple):
    """A picture, and where it comes from."""

    png: bytes | None  # None where the picture is not finite
    prompt: str
    prompt_index: int
    index: int


class About(NamedTuple):
    """The values that all rows of a folder share."""

    seed: int
    settings: str  # the hash of the settings


# Adds rows to a shard that is being written.
Add = Callable[[Sequence[Row]], None]


def path_of(folder: str | Path, layout: Layout, shard: int, format: str) -> Path:
    """Returns the file of a shard, or its folder where the format is png.

    Example:
        >>> path_of("out", Layout(10, 64, 100), 3, "parquet").as_posix()
        'out/shard-00003-of-00007.parquet'
    """
    suffix = ".parquet" if format == "parquet" else ""
    return Path(folder) / f"shard-{shard:05d}-of-{layout.shards:05d}{suffix}"


def encode(image: np.ndarray) -> bytes | None:
    """Returns an image [h w c] in [-1, 1] as the bytes of a PNG; None if it is not finite.

    Example:
        >>> encode(np.zeros((2, 2, 3)))[1:4], encode(np.full((2, 2, 3), np.nan))
        (b'PNG', None)
    """
    if not np.isfinite(image).all():
        return None
    file = io.BytesIO()
    as_pil(np.clip(image, -1, 1)).save(file, "PNG")
    return file.getvalue()


@contextlib.contextmanager
def shard(path: Path, half: Path, format: str, about: About) -> Iterator[Add]:
    """Writes a shard. It appears under its name if the block ends without an exception.

    Args:
        path: from `path_of`.
        half: folder for unfinished files, on the same file system.
        format: a key of `WRITERS`.
        about: the values that all rows share.

    Yields:
        A function that adds rows, in order.

    Raises:
        OSError: it cannot be written. The error names the shard.
    """
    part = half / path.name
    try:
        with WRITERS[format](part, about) as add:
            yield add
        if not (path.exists() and part.is_dir()):  # another process may have made the same shard
            os.replace(part, path)
    except OSError as error:
        if error.errno is None or (error.filename is not None and str(half) not in str(error.filename)):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def _parquet(path: Path, about: About) -> Iterator[Add]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    types = {name: getattr(pa, kind)() for name, kind in COLUMNS.items()}
    schema = pa.schema({"image": image, **types}, metadata={"huggingface": json.dumps(_features())})
    rows: list[Row] = []

    def flush(writer: pq.ParquetWriter, n: int) -> None:
        table = pa.Table.from_pylist([_record(row, about) for row in rows[:n]], schema)
        writer.write_table(table, row_group_size=GROUP)
        del rows[:n]

    how = {"compression": "none", "use_dictionary": ["prompt", "settings"], "write_statistics": ["index"]}
    with beside(path) as file, pq.ParquetWriter(file, schema, **how) as writer:

        def add(more: Sequence[Row]) -> None:
            rows.extend(more)
            while len(rows) >= GROUP:
                flush(writer, GROUP)

        yield add
        if rows:
            flush(writer, len(rows))


def _record(row: Row, about: About) -> dict[str, Any]:
    image = None if row.png is None else {"bytes": row.png, "path": file_name(row.index)}
    return {
        "image": image, "prompt": row.prompt, "prompt_index": row.prompt_index, "index": row.index, **about._asdict(),
    }  # fmt: skip


def file_name(index: int) -> str:
    """Returns the name of a picture's file.

    Example:
        >>> file_name(12)
        '0000000012.png'
    """
    return f"{index:010d}.png"


def _features() -> dict[str, Any]:
    """The columns as the library `datasets` describes them, so that it opens the images."""
    values = {name: {"dtype": kind, "_type": "Value"} for name, kind in COLUMNS.items()}
    return {"info": {"features": {"image": {"_type": "Image"}, **values}}}


@contextlib.contextmanager
def _folder(path: Path, about: About) -> Iterator[Add]:
    """PNGs, and a metadata.jsonl beside them, which `datasets` reads as a folder of images."""
    with new_folder(path) as part, open(part / METADATA, "wb") as metadata:

        def add(rows: Sequence[Row]) -> None:
            for row in rows:
                told = _record(row, about)
                del told["image"]
                if row.png is not None:
                    told = {"file_name": file_name(row.index), **told}
                    with open(part / file_name(row.index), "xb") as file:
                        file.write(row.png)
                        file.flush()
                        os.fsync(file.fileno())
                metadata.write(json.dumps(told, ensure_ascii=False).encode() + b"\n")

        yield add
        metadata.flush()
        os.fsync(metadata.fileno())


# By name: how a shard is written.
WRITERS: dict[str, Callable[[Path, About], contextlib.AbstractContextManager[Add]]] = {
    "parquet": _parquet,
    "png": _folder,
}


def lacking(format: str) -> str:
    """Returns what has to be installed before this format can be written; empty if nothing."""
    return "pip install pyarrow" if format == "parquet" and find_spec("pyarrow") is None else ""
