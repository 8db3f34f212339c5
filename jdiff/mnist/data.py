"""MNIST from TensorFlow Datasets, and batches. Reading MNIST needs no TensorFlow, only preparing it does."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from PIL import Image

from jdiff.training.loop import Batches
from jdiff.types import Array

# A row of a source, or a pytree of arrays. Its type is the caller's.
Row = Any


class Source(Protocol):
    """A data set with random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Row: ...


def as_it_is(row: Row) -> Row:
    """Returns the row unchanged."""
    return row


def mnist(split: str, data_dir: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reads MNIST in the order of the data set. It is prepared first if that is possible.

    Args:
        split: "train" or "test".
        data_dir: folder where TensorFlow Datasets keeps its data sets; the default of TensorFlow Datasets if None.

    Returns:
        Images [n 28 28] uint8, and labels [n] int32.

    Raises:
        ValueError: MNIST is not prepared there and cannot be prepared now. The message says how to prepare it.
    """
    where = "the default folder of TensorFlow Datasets" if data_dir is None else str(data_dir)
    folder = "" if data_dir is None else f"data_dir='{data_dir}', "
    how = (
        "prepare it once, with an internet connection and TensorFlow: pip install tensorflow-datasets tensorflow && "
        f"python -c \"import tensorflow_datasets as t; t.builder('mnist', {folder}file_format='array_record')"
        '.download_and_prepare()"'
    )
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ValueError(f"data_dir must be a folder with a prepared 'mnist', got {data_dir}; {how}")
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder("mnist", data_dir=data_dir, file_format="array_record")
        if not builder.data_path.exists():
            builder.download_and_prepare()
        read: Any = builder.as_data_source  # its type has no `split`
        source = read(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        rows = source.__getitems__(range(len(source)))  # all at once is over four times as fast as one by one
        images = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]))) for row in rows])
        return images, np.array([row["label"] for row in rows], np.int32)
    except Exception as error:
        raise ValueError(f"MNIST cannot be read from {where} ({type(error).__name__}: {error}); {how}") from error


def pad32(images: np.ndarray) -> np.ndarray:
    """Pads images [n 28 28] to [n 32 32] with zeros on all sides.

    Example:
        >>> pad32(np.ones((1, 28, 28), np.uint8)).sum()
        np.uint64(784)
    """
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))


def to_floats(images: Array) -> Array:
    """Converts uint8 images [n h w] to floats [n h w 1] in [0, 1], the course's range."""
    return images[..., None].astype(jnp.float32) / 255


def to_signed(images: Array) -> Array:
    """Converts uint8 images [n h w] to floats [n h w 1] in [-1, 1]."""
    return images[..., None].astype(jnp.float32) / 127.5 - 1


def per_epoch(n: int, batch: int) -> int:
    """Returns the number of updates in an epoch. Images that do not fill a batch are left out.

    Args:
        n: number of images.
        batch: images per update.

    Raises:
        ValueError: `batch` is below 1 or above `n`.

    Example:
        >>> per_epoch(60000, 128)
        468
    """
    if not 1 <= batch <= n:
        raise ValueError(f"batch must be between 1 and {n}, the number of images, got {batch}")
    return n // batch


def on_device(
    images: np.ndarray, labels: np.ndarray, batch: int, key: Array, scale: Callable[[Array], Array] = to_floats
) -> Batches:
    """Returns batches of a data set that is kept on the device and shuffled in each epoch.

    The order of epoch e is permutation(fold_in(key, e)). So an update has the same images, however the updates are
    divided into calls of `train`.

    Args:
        images: [n 28 28] uint8.
        labels: [n].
        batch: images per update.
        key: random key of the order.
        scale: converts uint8 images to the network's input.

    Returns:
        Batches of (images [batch h w 1], labels [batch]).

    Raises:
        ValueError: `batch` is below 1 or above n.

    Example:
        >>> batches = on_device(np.zeros((10, 28, 28), np.uint8), np.arange(10), 4, jax.random.key(0))
        >>> rows = batches.ahead(1, 3)  # update 1, the last of epoch 0, and both of epoch 1
        >>> rows.shape, len(set(rows[1:].ravel().tolist()))
        ((3, 4), 8)
    """
    n, updates = len(images), per_epoch(len(images), batch)

    def ahead(first: int, count: int) -> Array:
        epochs = range(first // updates, (first + count - 1) // updates + 1)
        rows = jnp.concatenate([_order(jax.random.fold_in(key, e), n, batch) for e in epochs])
        return rows[first % updates :][:count]

    return Batches(ahead, Partial(partial(_rows, scale), jnp.asarray(images), jnp.asarray(labels)))


@partial(jax.jit, static_argnums=(1, 2))
def _order(key: Array, n: int, batch: int) -> Array:
    return jax.random.permutation(key, n)[: n // batch * batch].reshape(-1, batch)


def _rows(
    scale: Callable[[Array], Array], images: Array, labels: Array, key: Array, ahead: Array, i: Array
) -> tuple[Array, Array]:
    del key
    return scale(images[ahead[i]]), labels[ahead[i]]


def from_source(
    source: Source,
    batch: int,
    seed: int,
    to_arrays: Callable[[Row], Row] = as_it_is,
    *,
    process: int = 0,
    processes: int = 1,
) -> Batches:
    """Returns batches that the host reads from a data set with random access, by grain (the extra `train`).

    Rows are shuffled in each epoch and read by several threads. The rows of an update depend only on its number and the
    seed, so a resumed run continues with the right rows.

    Args:
        source: a data set with a length and `[i]`, such as `tfds.data_source`.
        batch: number of rows that this process reads for an update.
        seed: seed of the order.
        to_arrays: converts a row to a pytree of arrays.
        process: index of this process, such as `jax.process_index()`.
        processes: number of processes, such as `jax.process_count()`.

    Returns:
        Batches of such pytrees [batch ...]. With several processes, each reads its own rows.

    Raises:
        ValueError: `batch` times `processes` is below 1 or above the number of rows.

    Example:
        >>> rows = [{"x": np.float32(i)} for i in range(6)]
        >>> from_source(rows, 2, seed=0).ahead(1, 3)["x"].shape
        (3, 2)
    """
    import grain

    n, whole = len(source), batch * processes
    order = grain.MapDataset.source(range(n)).seed(seed).shuffle()[: per_epoch(n, whole) * whole]
    mine = slice(process * batch, (process + 1) * batch)

    def read(rows: np.ndarray) -> Row:
        return _stack([to_arrays(source[int(row)]) for row in rows[mine]])

    updates: Any = order.batch(whole).repeat().map(read)  # grain's slices have no type

    def ahead(first: int, count: int) -> Row:
        return _stack(list(updates[first : first + count].to_iter_dataset()))

    return Batches(ahead, _at, per_process=processes > 1)


def _stack(trees: list[Row]) -> Row:
    return jax.tree.map(lambda *arrays: np.stack(arrays), *trees)


def _at(key: Array, ahead: Row, i: Array) -> Row:
    del key
    return jax.tree.map(lambda a: a[i], ahead)
