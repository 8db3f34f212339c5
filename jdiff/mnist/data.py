"""MNIST by TensorFlow Datasets, read without TensorFlow once it is prepared."""

from pathlib import Path
from typing import Any

import numpy as np


def mnist(split: str, data_dir: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(images [n 28 28] uint8, labels [n] int32) of `split`, "train" or "test", in the order of the data set.

    `data_dir` is where TFDS keeps its data sets; None is TFDS's own choice. Raises ValueError where MNIST is not
    prepared there and cannot be.
    """
    import tensorflow_datasets as tfds

    where = f"in {data_dir}" if data_dir is not None else "in TFDS's own folder"
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ValueError(f"data_dir is {data_dir}, accepted is a folder that holds a prepared 'mnist'")
    try:
        builder = tfds.builder("mnist", data_dir=data_dir, file_format="array_record")
        if not builder.data_path.exists():
            builder.download_and_prepare()
        read: Any = builder.as_data_source
        source = read(split=split)
        labels = np.array([row["label"] for row in source], np.int32)
        return np.stack([row["image"][..., 0] for row in source]), labels
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
