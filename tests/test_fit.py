"""Pictures that are not square: what is used of them, what is said about it, and sizes that a model takes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import main

from jdiff import images
from jdiff.cli.parse import parse

FAST = ["-n", "1", "--steps", "2", "--seed", "3", "--quiet"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a wide picture whose left, middle and right thirds are red, green and blue, and a mask of the left
    half."""
    monkeypatch.setenv("JDIFF_CACHE", "")
    monkeypatch.chdir(tmp_path)
    images.save("wide.png", thirds(48, 144))
    images.save("tall.png", thirds(48, 144).swapaxes(0, 1))
    images.save("square.png", thirds(48, 48))
    mask = np.zeros((48, 144), np.uint8)
    mask[:, :72] = 255
    Image.fromarray(mask).save("mask.png")


def thirds(height, width):
    """A picture [h w 3]: red, green and blue from left to right."""
    third = np.arange(width) * 3 // width
    return np.broadcast_to(2.0 * np.eye(3)[third] - 1, (height, width, 3)).astype(np.float32)


def shares(picture):
    """How much of a picture is red, green, blue and none of them, in quarters."""
    colours = [np.argmax(picture, axis=-1) == k for k in range(3)]
    return [round(4 * float(found.mean()), 1) for found in colours]


@pytest.mark.parametrize("shape, size, how, expected", [
    ((48, 144), (16, 16), "crop", [0, 4, 0]),  # the middle third, which is green
    ((48, 144), (16, 48), "crop", [1.3, 1.3, 1.3]),  # all of it
    ((48, 144), (16, 32), "crop", [1, 2, 1]),  # two thirds
    ((48, 144), (16, 16), "stretch", [1.2, 1.5, 1.2]),
    ((48, 144), (48, 48), "pad", [1.3, 1.3, 1.3]),  # borders go on in the colours of the edge
    ((96, 48), (16, 16), "crop", [1.2, 1.5, 1.2]),  # rows go, columns stay
])  # fmt: skip
def test_what_of_a_picture_is_used(shape, size, how, expected):
    made = images.fit(thirds(*shape), size, how, Image.Resampling.BOX)
    assert made.shape == (*size, 3)
    np.testing.assert_allclose(shares(made), expected, atol=0.25)


@pytest.mark.parametrize("shape", [(48, 144), (144, 48), (7, 300), (301, 2), (48, 48)])
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 8)])
def test_pad_keeps_the_shape_of_what_is_shown(shape, size):
    """A picture of white on borders of black is white on the part whose shape is its own, to a pixel."""
    made = images.fit(np.ones((*shape, 1)), size, "pad", fill=-1)[..., 0]
    rows, columns = (np.flatnonzero((made > 0).any(axis=axis)) for axis in (1, 0))
    scale = min(size[0] / shape[0], size[1] / shape[1])
    assert abs(len(rows) - max(1, scale * shape[0])) <= 0.5 and abs(len(columns) - max(1, scale * shape[1])) <= 0.5
    assert (made == np.where(np.outer((made > 0).any(axis=1), (made > 0).any(axis=0)), 1, -1)).all()
    for found, length in ((rows, size[0]), (columns, size[1])):
        assert abs(found[0] - (length - 1 - found[-1])) <= 1, "in the middle"


@pytest.mark.parametrize("shape", [(12, 24), (24, 12), (7, 31), (200, 100), (9, 9)])
def test_a_square_is_what_it_was(shape):
    """torchvision's resize and center_crop, as before there was any other fit."""
    picture = np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)
    side, (height, width) = 8, shape
    box = []
    for length in (width, height):
        resized = side * length // min(shape)
        first = round((resized - side) / 2)
        box.append((first * length / resized, (first + side) * length / resized))
    edges = (box[0][0], box[1][0], box[0][1], box[1][1])
    planes = [Image.fromarray(picture[..., k]).resize((8, 8), Image.Resampling.BILINEAR, edges) for k in range(3)]
    np.testing.assert_array_equal(images.square(picture, side), np.stack([np.asarray(p) for p in planes], -1))
    np.testing.assert_array_equal(images.fit(picture, (side, side)), images.square(picture, side))


@pytest.mark.parametrize("given, why", [
    ((np.zeros((4, 4)), (2, 2)), "image must have shape"), ((np.zeros((4, 4, 3)), (0, 2)), "size must be 1 or more"),
    ((np.zeros((4, 4, 3)), (2, 2), "squash"), "fit must be one of crop, pad, stretch, got 'squash'"),
])  # fmt: skip
def test_what_fits_nothing(given, why):
    with pytest.raises(ValueError, match=why):
        images.fit(*given)


# --- in the commands


@pytest.mark.parametrize("command", ["edit", "inpaint", "upscale"])
@pytest.mark.parametrize("flags, said", [
    ([], "wide.png is 144 wide and 48 high; its middle, 48 x 48, is used (--fit pad or stretch uses the whole)"),
    (["--size", "32x64"], "its middle, 96 wide and 48 high, is used"),
    (["--size", "32x96"], None), (["--fit", "pad"], None), (["--fit", "stretch"], None),
])  # fmt: skip
def test_what_is_used_is_said_in_one_line(here, capsys, command, flags, said):
    mask = ["--mask", "mask.png"] if command == "inpaint" else []
    assert main(command, "wide.png", "a red three", *mask, *flags, *FAST, "--npz", "a.npz") == 0
    told = capsys.readouterr().err
    assert told.count("\n") == (said is not None) and (said is None or told.startswith("jdiff: note: "))
    assert said is None or said in told
    size = (64, 64) if command == "upscale" and "--size" not in flags else (32, 32)
    if "--size" in flags:
        size = tuple(map(int, flags[-1].split("x")))
    assert np.load("a.npz")["images"].shape == (1, *size, 3)
    assert not flags or main(command, "--like", "out.png", "--quiet") == 0
    assert not flags or Path("out-again.png").read_bytes() == Path("out.png").read_bytes()


def test_a_picture_of_the_right_shape_needs_no_word(here, capsys):
    assert main("edit", "square.png", "a red three", *FAST) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fit, redrawn", [("crop", slice(0, 16)), ("stretch", slice(0, 16)), ("pad", slice(0, 16))])
def test_picture_and_mask_fit_alike(here, fit, redrawn):
    """Where the mask is black, the picture is as it was, at the same place, borders and all."""
    words = ["a red three", "--mask", "mask.png", "--fit", fit, "--sampler", "ddim", "--npz", "a.npz"]
    assert main("inpaint", "wide.png", *words, *FAST) == 0
    (made,) = np.load("a.npz")["images"]
    original = images.fit(images.load("wide.png"), (32, 32), fit)
    new = np.abs(made - original).max(axis=-1) > 1e-3
    assert new[11:21, redrawn].mean() > 0.9 and not new[:, 16:].any()
    assert fit != "pad" or not (new[:10].any() or new[22:].any()), "the borders are kept"


def test_upscaling_does_not_squeeze(here):
    """A tall picture, drawn at its own shape, has its colours where they were."""
    assert main("upscale", "tall.png", "", "--size", "192x64", "-n", 1, "--noise-level", 0, "--steps", 4,
                "--npz", "a.npz", "--quiet") == 0  # fmt: skip
    (made,) = np.load("a.npz")["images"]
    found = [made[64 * k : 64 * k + 64].mean(axis=(0, 1)) for k in range(3)]
    assert [np.argmax(colour) for colour in found] == [0, 1, 2] and np.ptp(found) > 0.5


@pytest.mark.parametrize("words, size", [
    (["generate", "a red three"], (32, 48)), (["hybrid", "--low", "a red one", "--high", "a red two"], (32, 48)),
    (["anagram", "a red six", "a red nine", "--view", "rotate_cw", "--gif", "a.gif"], (48, 48)),
    (["generate", "a red three", "--stage2", "mini-upscaler"], (32, 48)),
])  # fmt: skip
def test_sizes_of_other_commands(here, words, size):
    given = "x".join(map(str, size)) if size[0] != size[1] else str(size[0])
    assert main(*words, "--size", given, *FAST, "--npz", "a.npz") == 0
    drawn = (64, 96) if "--stage2" in words else size
    assert np.load("a.npz")["images"].shape == (1, *drawn, 3)
    assert images.read_settings("out.png")["size"] == f"{size[0]}x{size[1]}"
    assert main(words[0], "--like", "out.png", "--quiet") == 0
    assert Path("out-again.png").read_bytes() == Path("out.png").read_bytes()


def test_the_models_own_size_changes_nothing(here):
    assert main("generate", "a red three", *FAST, "--separate", "-o", "a.png") == 0
    assert main("generate", "a red three", *FAST, "--separate", "--size", "32", "-o", "b.png") == 0
    np.testing.assert_array_equal(images.load("a-0-0.png"), images.load("b-0-0.png"))


@pytest.mark.parametrize("words, why", [
    (["generate", "a", "--size", "30x64"], "--size must be multiples of 4 for mini, got 30x64; try 32x64"),
    (["edit", "wide.png", "a", "--size", "1"], "--size must be multiples of 4 for mini, got 1x1; try 4x4"),
    (["upscale", "wide.png", "--size", "62x64"], "--size must be multiples of 4 for mini-upscaler, got 62x64; try 64x"),
    (["generate", "a", "--size", "0"], "--size must be from 1 to 4096 on each side, got 0x0"),
    (["generate", "a", "--size", "32x5000"], "--size must be from 1 to 4096 on each side, got 32x5000"),
    (["generate", "a", "--size", "wide"], "--size must be a height and a width, such as 48x32, or one number, got 'wi"),
    (["generate", "a", "--size", "32x"], "--size must be a height and a width, such as 48x32, or one number, got '32"),
    (["anagram", "a", "b", "--view", "flip", "--size", "8x4"], "--size must be a square for jdiff anagram, got 8x4"),
    (["edit", "wide.png", "a", "--fit", "squash"], "--fit must be one of crop, pad, stretch, got 'squash'"),
    (["generate", "a", "--stage2", "mini-upscaler", "--size", "36x44"], "--size must lead to multiples of 4 for mini-"),
])  # fmt: skip
def test_wrong_sizes_are_one_line(here, capsys, words, why):
    before = sorted(Path().iterdir())
    assert main(*words, "--quiet") == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith(f"jdiff: {why}") and sorted(Path().iterdir()) == before


def test_pictures_of_older_versions_are_drawn_again(here):
    assert main("edit", "wide.png", "a red three", *FAST) == 0
    found = images.read_settings("out.png")
    old = {name: value for name, value in found.items() if name not in ("size", "fit")}
    images.save("old.png", images.load("out.png"), old)
    assert main("edit", "--like", "old.png", "--quiet") == 0
    assert Path("old-again.png").read_bytes() == Path("out.png").read_bytes()


@pytest.mark.parametrize("word, size", [("32", "32x32"), ("48X32", "48x32"), ("016x8", "16x8"), ("64×96", "64x96")])
def test_sizes_are_read(word, size):
    assert parse(["generate", "a", "--size", word]).size == size  # type: ignore[union-attr]
