"""The digits, and the mini model's world of coloured ones."""

import gzip

import jax
import numpy as np
import pytest

from jdiff.mnist import captions
from jdiff.mnist.data import mnist, pad32

pytestmark = pytest.mark.filterwarnings("ignore")  # of TFDS and what it imports


@pytest.fixture(scope="module")
def digits(data):
    pytest.importorskip("tensorflow_datasets", reason="reading MNIST needs the extra `train`")
    return mnist("test", data / "tensorflow_datasets")


def test_tfds_reads_the_original_digits(data, digits):
    images, labels = digits
    raw = np.frombuffer(gzip.decompress((data / "mnist_idx" / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    names = np.frombuffer(
        gzip.decompress((data / "mnist_idx" / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8
    )
    theirs = sorted(zip(raw.reshape(-1, 784).tolist(), names.tolist(), strict=True))
    assert sorted(zip(images.reshape(-1, 784).tolist(), labels.tolist(), strict=True)) == theirs


def test_a_wrong_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="data_dir must be a folder .*, got .*none"):
        mnist("test", tmp_path / "none")


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets", reason="reading MNIST needs the extra `train`")

    def builder(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(tfds, "builder", builder)
    with pytest.raises(ValueError, match="MNIST cannot be read from .* no network.*; prepare it once.*pip install"):
        mnist("test", tmp_path)


def test_captions_are_all_different_and_fit():
    rows = captions.captions()
    assert len({row.text for row in rows}) == len(rows) == 600
    assert max(len(row.text.encode()) for row in rows) < captions.LENGTH
    assert not any(row.text.startswith("a white") and "on white" in row.text for row in rows)


def test_drawn_pictures_show_what_their_captions_say():
    strokes = np.zeros((10, 28, 28), np.uint8)
    strokes[:, 10:18, 10:18] = 255
    world = captions.world(pad32(strokes), np.arange(10, dtype=np.int32))
    batch = captions.draw(world, jax.random.key(0), 2000, 0.1)
    rgb, behind = np.array(list(captions.COLOURS.values())), np.array(list(captions.BACKGROUNDS.values()))
    digit, colour, background = np.asarray(batch.labels).T
    np.testing.assert_allclose(batch.images[:, 16, 16], rgb[colour])
    np.testing.assert_allclose(batch.images[:, 0, 0], behind[background])
    said = ["".join(map(chr, row[row >= 3] - 3)) for row in np.asarray(batch.tokens)]
    table = {row.text: (row.digit, row.colour, row.background) for row in captions.captions()}
    told = [i for i, s in enumerate(said) if s]
    assert all(table[said[i]] == (digit[i], colour[i], background[i]) for i in told)
    assert 0.86 < len(told) / 2000 < 0.94
    assert not ((colour == 7) & (background == 1)).any()
    assert abs(background[colour != 7].mean() - 1 / 3) < 0.05
    assert len({said[i] for i in told}) > 500
