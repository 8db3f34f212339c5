"""Odd and damaged pictures of every format, a few of each; scripts/fuzz_pictures.py reads many."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import fuzz_pictures  # noqa: E402
import odd_files  # noqa: E402

from jdiff import images  # noqa: E402
from jdiff.images import pixels, read  # noqa: E402

COUNT = 24


@pytest.mark.parametrize("name", fuzz_pictures.MAKERS)
def test_pictures_of_every_format_are_right_or_one_line(name, tmp_path):
    found = fuzz_pictures.fuzz(name, COUNT, 5, tmp_path)
    assert found.bad == [] and found.slowest < fuzz_pictures.LONGEST
    assert found.whole.total() + found.damaged.total() == COUNT and found.whole["right"] >= COUNT // 4


def raised(*args):
    raise KeyError(262)


FAULTS = {
    "orientation": (read, "turned", lambda picture, orientation: picture, "wrong"),
    "profile": (pixels, "_is_srgb", lambda source, mode: True, "wrong"),
    "alpha": (pixels, "_alpha", lambda image: None, "wrong"),
    "exception": (read, "on_white", raised, "raised"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_fuzz_sees_faults(name, tmp_path, monkeypatch):
    module, function, fault, outcome = FAULTS[name]
    monkeypatch.setattr(module, function, fault)
    found = fuzz_pictures.fuzz("PNG", 48, 0, tmp_path)
    assert found.whole[outcome] > 0 and found.bad


def test_a_slow_decoder_is_seen(tmp_path, monkeypatch):
    def forever(path):
        while True:
            pass

    monkeypatch.setattr(fuzz_pictures, "LONGEST", 0.05)
    monkeypatch.setattr(images, "load", forever)
    assert fuzz_pictures.fuzz("PNG", 1, 0, tmp_path).whole == {"slow": 1}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("tag", odd_files.OTHER_TAGS)
def test_an_odd_tag_beside_the_orientation_does_not_matter(tag, order):
    """Of every type and several counts, in a TIFF, and in EXIF data."""
    stored = np.random.default_rng(tag).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    turned = odd_files.turned(stored / 255, 6)
    for kind in range(15):
        for count, value in ((0, b"\0\0\0\0"), (1, b"\1\2\3\4"), (9, b"\xff\xff\xff\x7f"), (70000, b"\x08\0\0\0")):
            odd = [odd_files.Tag(tag, kind, count, value)]
            data = odd_files.tiff(odd, stored, 2, 1, 6, order)
            np.testing.assert_allclose(images.decode(data).colour, turned, atol=1e-6)
            assert pixels.exif_orientation({"exif": b"Exif\0\0" + odd_files.exif(odd, 6, order)}) == 6
