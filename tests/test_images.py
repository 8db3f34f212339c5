"""Pictures in and out of files, and sheets: what is written is what comes back, and nothing is half written."""

import json
import subprocess
import zlib

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jdiff import images

rng = np.random.default_rng(0)


def noise(*shape):
    return rng.uniform(-1, 1, shape).astype(np.float32)


def test_every_pixel_value_survives_a_round_trip(tmp_path):
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    images.save(tmp_path / "a.png", every)
    loaded = images.load(tmp_path / "a.png")
    assert loaded.dtype == np.float32 and loaded.min() == -1 and loaded.max() == 1
    np.testing.assert_array_equal(images.to_uint8(loaded), every)


def test_floats_are_rounded_and_clipped(tmp_path):
    image = 1.5 * noise(8, 9, 3)
    images.save(tmp_path / "a.png", image)
    np.testing.assert_allclose(images.load(tmp_path / "a.png"), image.clip(-1, 1), atol=1 / 255 + 1e-6)


def test_load_turns_by_exif_and_puts_alpha_over_white(tmp_path):
    picture = Image.new("RGB", (4, 2), "red")
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    assert images.load(tmp_path / "turned.png").shape == (4, 2, 3)
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    np.testing.assert_array_equal(images.load(tmp_path / "clear.png"), 1.0)
    Image.new("L", (2, 2), 0).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(images.load(tmp_path / "grey.png"), -np.ones((2, 2, 3)))


def test_grey_of_16_bits_keeps_its_steps(tmp_path):
    grey = np.arange(0, 65536, 257 * 5, dtype=np.uint16)[:50].reshape(5, 10)
    for name, array in (("a.png", grey), ("a.tif", grey)):
        Image.fromarray(array).save(tmp_path / name)
        expected = (grey / 32767.5 - 1)[..., None].repeat(3, axis=2)
        np.testing.assert_allclose(images.load(tmp_path / name), expected, atol=1e-6)
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(ValueError, match="b.tif: the picture has signed integers, 0 to .* white are not defined"):
        images.load(tmp_path / "b.tif")


@pytest.mark.parametrize("width, height, refused", [(10001, 10000, True), (30000, 30000, True), (10000, 10000, False)])
def test_more_than_100_megapixels_are_refused_before_they_are_decoded(width, height, refused, tmp_path):
    images.save(tmp_path / "a.png", noise(2, 2, 3))
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    if refused:
        with pytest.raises(ValueError, match="a.png: the picture has more than 100 megapixels"):
            images.load(tmp_path / "a.png")
    else:
        with pytest.raises(ValueError, match="a.png: the picture is damaged"):  # which only decoding can tell
            images.load(tmp_path / "a.png")


@pytest.mark.parametrize("h, w, side", [(40, 70, 16), (70, 41, 16), (5, 9, 16), (16, 16, 16)])
def test_square_is_resize_and_then_centre_crop(h, w, side):
    picture = noise(h, w, 3)
    size = side * w // min(h, w), side * h // min(h, w)
    planes = [Image.fromarray(picture[..., k]).resize(size, Image.Resampling.BILINEAR) for k in range(3)]
    whole = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    y, x = round((size[1] - side) / 2), round((size[0] - side) / 2)
    np.testing.assert_allclose(images.square(picture, side), whole[y : y + side, x : x + side], atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    )
)
def test_settings_survive_in_the_png(tmp_path_factory, settings):
    path = tmp_path_factory.mktemp("settings") / "a.png"
    images.save(path, noise(2, 2, 3), settings)
    assert images.read_settings(path) == settings


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"not a picture"), "no picture that can be read"),
        (lambda path: images.save(path, noise(2, 2, 3)), "no settings of jdiff"),
        (lambda path: images.save(path, noise(64, 64, 3), {}) or path.write_bytes(path.read_bytes()[:4000]), "damaged"),
    ],
)
def test_settings_that_are_not_there_are_named(tmp_path, make, message):
    make(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message) as error:
        images.read_settings(tmp_path / "a.png")
    assert "a.png" in str(error.value)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    images.save(path, noise(4, 4, 3), {"old": True})
    old = path.read_bytes()

    def half_written(self, file, *args, **kwargs):
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", half_written)
        for write in (images.save, lambda p, x: images.save_gif(p, x[None])):
            with pytest.raises(OSError, match="disk full"):
                write(path, noise(4, 4, 3))
    with pytest.raises(ValueError, match="not finite"):
        images.save(path, np.full((4, 4, 3), np.nan))
    with pytest.raises(ValueError, match="JSON"):
        images.save(path, noise(4, 4, 3), {"guidance": float("nan")})
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["a.png"]


def cells(sheet, r, c, size, gap_at_least=2):
    """Top left corners of the r x c cells of black images on a sheet, found by looking."""
    black = (sheet == 0).all(axis=2)
    ys, xs = np.flatnonzero(black.sum(1) >= c * size), np.flatnonzero(black.sum(0) >= r * size)
    assert len(ys) == r * size and len(xs) == c * size
    return ys[::size], xs[::size]


@pytest.mark.parametrize("h, cell, side", [(32, 128, 128), (32, 100, 128), (64, 128, 128), (200, 128, 200)])
def test_grid_enlarges_by_a_whole_number(h, cell, side):
    made = -np.ones((2, 3, h, h, 3), np.float32)
    sheet = images.grid(made, ["one", "two"], cell=cell)
    ys, xs = cells(sheet, 2, 3, side)
    assert sheet.dtype == np.uint8 and np.diff(xs)[0] > side and xs[0] > 16 and sheet.shape[1] - xs[-1] - side >= 14
    image = noise(2, 3, h, h, 3)
    sheet = images.grid(image, ["one", "two"], cell=cell)
    zoomed = images.to_uint8(image[1, 2]).repeat(side // h, 0).repeat(side // h, 1)
    np.testing.assert_array_equal(sheet[ys[1] : ys[1] + side, xs[2] : xs[2] + side], zoomed)


def test_labels_are_drawn_within_the_page_and_outside_the_pictures():
    made = -np.ones((2, 2, 32, 32, 3), np.float32)
    bare = images.grid(made)
    long = "a very long prompt that will not stop " * 20 + "Donaudampfschiffahrtsgesellschaft" * 5
    for labels in (["a red three", ""], ["é ä", " "], [long, long]):
        sheet = images.grid(made, labels, column_labels=labels, title=labels[0])
        ys, xs = cells(sheet, 2, 2, 128)
        for side in (sheet[:, : xs[0] - 2], sheet[: ys[0] - 2]):
            assert (side < 128).any(), "no letters"
        for edge in (sheet[:8], sheet[-8:], sheet[:, :8], sheet[:, -8:]):
            np.testing.assert_array_equal(edge, 255)
        assert sheet.shape[0] < 3 * bare.shape[0] and sheet.shape[1] < 2 * bare.shape[1]
    blank = images.grid(np.full((1, 2, 32, 32, 3), np.nan))
    np.testing.assert_array_equal(blank, 255)


def test_grid_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"row_labels must have 2 entries, or none, got 3"):
        images.grid(noise(2, 1, 8, 8, 3), ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"images must have shape \[r c h w 3\] .* got \[2, 8, 8, 3\]"):
        images.grid(noise(2, 8, 8, 3))


def test_strip_is_a_grid_of_one_row():
    made = noise(3, 8, 8, 3)
    np.testing.assert_array_equal(images.strip(made, "abc"), images.grid(made[None], column_labels="abc"))


def test_gif_has_its_frames_and_holds_the_last(tmp_path):
    path = tmp_path / "a.gif"
    images.save_gif(path, noise(5, 16, 16, 3), seconds=1, hold=2)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (5, (16, 16), 0)
        times = []
        for i in range(5):
            gif.seek(i)
            times.append(gif.info["duration"])
    assert times == [200] * 4 + [2200]
    for frames, seconds in ((noise(0, 4, 4, 3), 1), (noise(4, 4, 3), 1), (noise(1, 4, 4, 3), 0)):
        with pytest.raises(ValueError, match="must "):
            images.save_gif(tmp_path / "b.gif", frames, seconds)
    assert not (tmp_path / "b.gif").exists()


def test_mp4_has_its_frames_and_holds_the_last(tmp_path):
    path, frames = tmp_path / "a.mp4", np.linspace(-1, 1, 10)[:, None, None, None] * np.ones((1, 33, 48, 3))
    images.save_mp4(path, frames, seconds=1, hold=0.5)
    read = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(read, check=True, capture_output=True).stdout
    back = np.frombuffer(raw, np.uint8).reshape(-1, 34, 48, 3)
    assert len(back) == 15
    want = images.to_uint8(frames).mean((1, 2, 3))
    np.testing.assert_allclose(back[:, :33].mean((1, 2, 3)), [*want, *[want[-1]] * 5], atol=3)
    assert back[:, 33].min() > 150
    with pytest.raises(ValueError, match="frames must have shape"):
        images.save_mp4(tmp_path / "b.mp4", frames[0])
    assert not (tmp_path / "b.mp4").exists()


def test_mp4_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("jdiff.images.write.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'imageio\[ffmpeg\]'"):
        images.save_mp4(tmp_path / "a.mp4", np.zeros((1, 8, 8, 3)))


def test_settings_are_plain_json_under_their_key(tmp_path):
    images.save(tmp_path / "a.png", noise(2, 2, 1), {"prompts": ["drei é"]})
    with Image.open(tmp_path / "a.png") as picture:
        assert json.loads(picture.text["jdiff"]) == {"prompts": ["drei é"]}
