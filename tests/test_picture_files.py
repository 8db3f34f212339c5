"""Writing pictures: nothing of the user's is lost, what cannot be written is known before, labels can be read."""

import errno
import os
import time

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from jdiff import images
from jdiff.images import text, write

BLACK = -np.ones((8, 8, 3))
FRAMES = np.stack([BLACK, -BLACK])
WRITERS = {
    "a.png": lambda path: images.save(path, BLACK),
    "a.gif": lambda path: images.save_gif(path, FRAMES),
    "a.mp4": lambda path: images.save_mp4(path, FRAMES, hold=0),
}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def locked(folder):
    (folder / "a.png").write_bytes(b"old")
    (folder / "a.png").chmod(0o444)
    return folder / "a.png"


def linked(folder, target, name="link.png"):
    (folder / name).symlink_to(target)
    return folder / name


def special(folder):
    os.mkfifo(folder / "pipe")
    return linked(folder, "pipe")


def folder_named(folder):
    (folder / "a.png").mkdir()
    return folder / "a.png"


REFUSED = {
    "no folder": (lambda f: f / "none" / "a.png", FileNotFoundError, "none/a.png: there is no folder .*none"),
    "read-only": (locked, PermissionError, "a.png: the file is read-only"),
    "link to read-only": (lambda f: linked(f, locked(f)), PermissionError, "link.png: the file is read-only"),
    "a folder": (folder_named, IsADirectoryError, "a.png: this is a folder"),
    "a pipe behind a link": (special, OSError, "link.png: this is no regular file"),
    "a link into no folder": (lambda f: linked(f, "none/a.png"), FileNotFoundError, "link.png: there is no folder"),
    "a loop of links": (lambda f: linked(f, "link.png"), OSError, "link.png"),
    "a name too long": (lambda f: f / ("é" * 126 + ".png"), OSError, "the file name has 256 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_known_before(name, tmp_path):
    make, kind, message = REFUSED[name]
    path = make(tmp_path)
    before = names(tmp_path)
    for attempt in (images.check_writable, WRITERS["a.png"]):
        with pytest.raises(kind, match=message):
            attempt(path)
    assert names(tmp_path) == before


@pytest.mark.parametrize("length", [5, 250, 254, 255])
def test_names_of_every_length_and_links_are_written(length, tmp_path):
    path = tmp_path / ("a" * (length - 4) + ".png")
    images.check_writable(path)
    assert names(tmp_path) == []
    images.save(path, BLACK)
    link = linked(tmp_path, "new.png")  # its target is not there yet
    images.check_writable(link)
    images.save(link, BLACK)
    assert link.is_symlink() and names(tmp_path) == sorted([path.name, "link.png", "new.png"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("name", WRITERS)
def test_an_interrupted_write_leaves_the_old_file_and_no_part(name, error, tmp_path, monkeypatch):
    path = tmp_path / name
    WRITERS[name](path)
    old = path.read_bytes()

    def interrupted(self, file, *args, **how):
        file.write(b"half")
        raise error

    def interrupted_ffmpeg(command, frames, path):
        with open(command[-1], "wb") as file:
            file.write(b"half")
        raise error

    def interrupted_disk(descriptor):
        raise error

    if name == "a.png":  # encoded in memory, then written at once
        monkeypatch.setattr(os, "fsync", interrupted_disk)
    monkeypatch.setattr(Image.Image, "save", Image.Image.save if name == "a.png" else interrupted)
    monkeypatch.setattr(write, "_run", interrupted_ffmpeg)
    with pytest.raises(error if isinstance(error, type) else OSError) as caught:
        WRITERS[name](path)
    assert path.read_bytes() == old and names(tmp_path) == [name]
    if isinstance(error, OSError):
        assert str(path) in str(caught.value)


# Scripts in the place of ffmpeg: what each does instead of writing a file (its last argument), and what the error says.
FFMPEGS = {
    "fails": ('printf half >"$last"; echo "disk full" >&2; exit 1', "disk full"),
    "writes half": ('printf half >"$last"; exit 0', "ffmpeg failed"),
    "loses frames": ('exec REAL -v quiet -f lavfi -i color=s=8x8:r=1:d=1 -f mp4 -y "$last"', "wrote 1 of 2 frames"),
}
FAKE = """#!/bin/sh
for last do :; done
case "$*" in *" -y "*) cat >/dev/null; WRITE;; esac
exec REAL "$@"
"""


@pytest.mark.parametrize("name", FFMPEGS)
def test_a_failing_ffmpeg_does_not_replace_a_good_video(name, tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    WRITERS["a.mp4"](path)
    old = path.read_bytes()
    does, message = FFMPEGS[name]
    fake = tmp_path / "ffmpeg"
    fake.write_text(FAKE.replace("WRITE", does).replace("REAL", imageio_ffmpeg.get_ffmpeg_exe()))
    fake.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(fake))
    with pytest.raises(OSError, match=f"a.mp4: .*{message}"):
        WRITERS["a.mp4"](path)
    assert path.read_bytes() == old and names(tmp_path) == ["a.mp4", "ffmpeg"]


def test_no_ffmpeg_is_one_line(tmp_path, monkeypatch):
    def missing():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(ValueError, match="an MP4 needs ffmpeg, which imageio does not find"):
        WRITERS["a.mp4"](tmp_path / "a.mp4")


@pytest.mark.parametrize("suffix, most", [(".mp4", 16384), (".gif", 65535), (".GIF", 65535)])
def test_sizes_that_a_format_cannot_have_are_known_before(suffix, most, tmp_path):
    images.check_size(f"a{suffix}", 8, most)
    for height, width in ((8, most + 1), (most + 1, 8)):
        message = f"a{suffix}: .* at most {most} pixels a side, got {width} x {height}"
        with pytest.raises(ValueError, match=message):
            images.check_size(f"a{suffix}", height, width)
    frames = np.broadcast_to(np.uint8(0), (1, 1, most + 1, 3))
    with pytest.raises(ValueError, match=f"at most {most} pixels"):
        (images.save_mp4 if suffix == ".mp4" else images.save_gif)(tmp_path / f"a{suffix}", frames)
    assert names(tmp_path) == []


@pytest.mark.parametrize("labels", [(), ("a red three", "б" * 300)])
def test_the_size_of_a_sheet_is_known_before_it_is_drawn(labels):
    made = np.zeros((2, 3, 16, 24, 3))
    assert (
        images.sheet_size(made.shape, labels, title="a title") == images.grid(made, labels, title="a title").shape[:2]
    )


@pytest.mark.parametrize("seconds, hold", [(1, 1000), (1, np.inf), (np.inf, 1), (np.nan, 1), (0, 1), (1, -1)])
def test_times_that_a_gif_cannot_have_are_refused(seconds, hold, tmp_path):
    with pytest.raises(ValueError, match="must"):
        images.save_gif(tmp_path / "a.gif", FRAMES, seconds, hold)
    assert names(tmp_path) == []


@pytest.mark.parametrize("wrong", [{"a": object()}, {"a": float("inf")}, {"a": "\ud800"}])
def test_settings_that_are_no_json_are_refused(wrong, tmp_path):
    with pytest.raises(ValueError, match="settings must be JSON"):
        images.save(tmp_path / "a.png", BLACK, wrong)
    assert names(tmp_path) == []


def row_labels(labels, **how):
    """The pixels of each row's label."""
    sheet = images.grid(-np.ones((len(labels), 1, 32, 32, 3)), labels, **how)
    black = (sheet == 0).all(axis=2)
    left, top = np.flatnonzero(black.sum(0) >= 32)[0], np.flatnonzero(black.sum(1) >= 32)[0]
    step = (len(sheet) - 2 * top) // len(labels)
    return [sheet[top + i * step : top + i * step + 100, : left - 2] for i in range(len(labels))]


SCRIPTS = ["красная тройка", "зелёная семёрка", "κόκκινο τρία", "שלוש אדום", "ثلاثة حمراء", "três vermelho", "₽ € → ☆"]


def test_labels_of_many_scripts_are_drawn_with_the_font_that_ships(monkeypatch):
    assert text._wide_fonts()[0] == str(text.CARRIED) and text.CARRIED.stat().st_size < 300_000
    monkeypatch.setattr(text, "_wide_fonts", lambda: (str(text.CARRIED),))
    text._fitted.cache_clear()
    blocks = row_labels(SCRIPTS)
    assert all((block < 128).any() for block in blocks)
    assert len({block.tobytes() for block in blocks}) == len(SCRIPTS)
    for label in SCRIPTS:
        assert text._drawable(label, 0, 2)[1] == label
        assert not text._missing(str(text.CARRIED), label)


def test_labels_that_no_font_has_are_numbered_with_a_warning(monkeypatch):
    monkeypatch.setattr(text, "_wide_fonts", lambda: (str(text.CARRIED),))
    text._fitted.cache_clear()
    with pytest.warns(UserWarning, match="no font has .* shown by its number; install a font"):
        blocks = row_labels(["赤い三", "青い五", "a 三"])
    assert len({block.tobytes() for block in blocks}) == 3
    text._fitted.cache_clear()
    with pytest.warns(UserWarning):
        shown = [text._drawable(label, i, 3)[1] for i, label in enumerate(["赤い三", "青い五", "a 三"])]
    assert shown == ["no. 1", "no. 2", "no. 3: a"]


@pytest.mark.parametrize("letter", "aяא")
def test_a_label_without_spaces_is_wrapped_in_linear_time(letter):
    began = time.monotonic()
    for n in range(20):
        images.grid(np.zeros((1, 1, 8, 8, 3)), [letter * (50_000 + n)])
    assert time.monotonic() - began < 20  # with the cube of the length it took 100 s for one of 1,000


@pytest.mark.parametrize("label", ["a red three on a blue ground " * 3, "Donaudampfschiffahrt" * 4, "a", "б" * 60])
def test_wrapped_lines_fit_and_lose_nothing(label):
    font = text._font(str(text.CARRIED), 14)
    lines = text._wrap(label, font, 100, 1000)
    assert all(font.getlength(line) <= 100 for line in lines)
    assert "".join(lines).replace(" ", "") == label.replace(" ", "")
