"""MNIST by TensorFlow Datasets, read without TensorFlow once it is prepared."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from PIL import Image

from jdiff.training.loop import Batches
from jdiff.types import Array


def mnist(split: str, data_dir: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(images [n 28 28] uint8, labels [n] int32) of `split`, "train" or "test", in the order of the data set.

    `data_dir` is where TFDS keeps its data sets; None is TFDS's own choice. Raises ValueError where MNIST is not
    prepared there and cannot be.
    """
    where = f"in {data_dir}" if data_dir is not None else "in TFDS's own folder"
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ValueError(f"data_dir is {data_dir}, accepted is a folder that holds a prepared 'mnist'")
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder("mnist", data_dir=data_dir, file_format="array_record")
        if not builder.data_path.exists():
            builder.download_and_prepare()
        read: Any = builder.as_data_source
        source = read(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        rows = source.__getitems__(range(len(source)))  # PNGs, all at once: over four times as fast as one by one
        images = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]))) for row in rows])
        return images, np.array([row["label"] for row in rows], np.int32)
    except Exception as error:
        raise ValueError(
            f"MNIST is not to be had {where} ({type(error).__name__}: {error}); prepare it once with a network and "
            "TensorFlow: pip install 'jdiff[train,prepare]' && "
            "python -c \"import tensorflow_datasets as t; t.builder('mnist', file_format='array_record')"
            '.download_and_prepare()"'
        ) from error


def pad32(images: np.ndarray) -> np.ndarray:
    """[n 28 28] -> [n 32 32], two rows and columns of background on each side.

    >>> pad32(np.ones((1, 28, 28), np.uint8)).sum()
    np.uint64(784)
    """
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))


def to_floats(images: Array) -> Array:
    """[n h w 1] in [0, 1], the course's range, of uint8 [n h w]."""
    return images[..., None].astype(jnp.float32) / 255


def to_signed(images: Array) -> Array:
    """[n h w 1] in [-1, 1] of uint8 [n h w]."""
    return images[..., None].astype(jnp.float32) / 127.5 - 1


def per_epoch(n: int, batch: int) -> int:
    """Updates in an epoch of n pictures: the last ones, too few for a batch, wait for another epoch.

    >>> per_epoch(60000, 128)
    468
    """
    if not 1 <= batch <= n:
        raise ValueError(f"batch is {batch}, accepted is 1 to {n}, the number of pictures")
    return n // batch


def on_device(images: np.ndarray, labels: np.ndarray, batch: int, key: Array, scale: Callable = to_floats) -> Batches:
    """Batches (images [n h w 1], labels [n]) of a data set that lies whole on the device, shuffled anew each epoch.

    Epoch e has the order permutation(fold_in(key, e)), so that update u has the same pictures however training was
    cut into calls.

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


def _rows(scale, images, labels, key, ahead, i):
    del key
    return scale(images[ahead[i]]), labels[ahead[i]]


def from_source(
    source: Any, batch: int, seed: int, to_arrays: Callable = lambda row: row, *, process: int = 0, processes: int = 1
) -> Batches:
    """Batches of any source with a length and random access, such as `tfds.data_source`, read and stacked on the host.

    Rows are shuffled anew each epoch by grain (the extra `train`), and found by the update's number alone, so that a
    run that is stopped resumes at the right ones. `to_arrays` makes arrays of a row; batches are trees of them
    [batch ...]. With several `processes` each reads its own `batch` rows of every update.

    >>> batches = from_source([{"x": np.float32(i)} for i in range(6)], 2, seed=0)
    >>> batches.ahead(1, 3)["x"].shape
    (3, 2)

    Source: grain's MapDataset.
    """
    import grain

    n, whole = len(source), batch * processes
    updates = per_epoch(n, whole)
    rows: Any = grain.MapDataset.source(range(n)).seed(seed).shuffle().repeat()

    def ahead(first: int, count: int) -> Any:
        def one(update: int) -> Any:
            at = update // updates * n + update % updates * whole + process * batch
            picked = [to_arrays(source[int(rows[at + i])]) for i in range(batch)]
            return jax.tree.map(lambda *arrays: np.stack(arrays), *picked)

        return jax.tree.map(lambda *batches: np.stack(batches), *map(one, range(first, first + count)))

    return Batches(ahead, _at)


def _at(key, ahead, i):
    del key
    return jax.tree.map(lambda a: a[i], ahead)
