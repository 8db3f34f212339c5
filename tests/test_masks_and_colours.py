"""What pictures from files mean: brightness by their depth, colour by their profile, masks by what is painted."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from jdiff import images

RAMP = np.linspace(0, 1, 16)[None].repeat(4, 0)


def saved(tmp_path, name, image, **how):
    image.save(tmp_path / name, **how)
    return tmp_path / name


DEPTHS = {
    "8 bits": ("a.png", lambda: Image.fromarray(np.round(255 * RAMP).astype(np.uint8)), {}),
    "16 bits, PNG": ("b.png", lambda: Image.fromarray(np.round(65535 * RAMP).astype(np.uint16)), {}),
    "16 bits, TIFF": ("c.tif", lambda: Image.fromarray(np.round(65535 * RAMP).astype(np.uint16)), {}),
    "floats, TIFF": ("d.tif", lambda: Image.fromarray(RAMP.astype(np.float32)), {}),
    "palette": ("e.png", lambda: Image.fromarray(np.round(255 * RAMP).astype(np.uint8)).convert("P"), {}),
    "1 bit": ("f.png", lambda: Image.fromarray(RAMP > 0.5), {}),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_the_same_ramp_has_the_same_brightness_in_every_depth(name, tmp_path):
    file, make, how = DEPTHS[name]
    read = images.load(saved(tmp_path, file, make(), **how))
    want = 2.0 * (RAMP > 0.5) - 1 if name == "1 bit" else 2 * RAMP - 1
    np.testing.assert_allclose(read, want[..., None].repeat(3, 2), atol=0.005)


@pytest.mark.parametrize("least, most", [(-1.0, 1.0), (0.0, 255.0), (0.0, np.nan)])
def test_floats_without_a_defined_range_are_refused(least, most, tmp_path):
    path = saved(tmp_path, "a.tif", Image.fromarray(np.array([[least, most]], np.float32)))
    with pytest.raises(ValueError, match="a.tif: the picture has floats .* black and white are not defined"):
        images.load(path)


def test_a_profile_is_followed(tmp_path):
    """LAB is far from sRGB: a picture in its colours, and the same turned into sRGB by littleCMS."""
    shown = Image.new("RGB", (4, 4), (200, 30, 30))
    srgb, lab = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    as_lab = ImageCms.profileToProfile(shown, srgb, lab, outputMode="LAB")
    read = images.load(saved(tmp_path, "lab.tif", as_lab))
    np.testing.assert_allclose(read, images.load(saved(tmp_path, "rgb.png", shown)), atol=0.04)
    profile = ImageCms.ImageCmsProfile(srgb).tobytes()
    plain = images.load(saved(tmp_path, "own.png", shown, icc_profile=profile))
    np.testing.assert_array_equal(plain, images.load(tmp_path / "rgb.png"))
    with pytest.warns(UserWarning, match="its ICC profile cannot be used"):
        broken = images.load(saved(tmp_path, "broken.png", shown, icc_profile=b"no profile"))
    np.testing.assert_array_equal(broken, plain)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_says(orientation, tmp_path):
    """Against Pillow's own turning, with an odd tag beside."""
    picture = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(3, 6) * 14).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x9286] = b"odd"
    path = saved(tmp_path, "a.png", picture, exif=exif)
    want = np.asarray(ImageOps.exif_transpose(Image.open(path)), np.float32) / 127.5 - 1
    np.testing.assert_allclose(images.load(path), want, atol=1e-6)


DEEP = {
    "16 bits": ("a.png", lambda: Image.fromarray(np.round(65535 * RAMP).astype(np.uint16))),
    "floats": ("a.tif", lambda: Image.fromarray(RAMP.astype(np.float32))),
    "alpha": ("a.png", lambda: Image.fromarray(np.round(255 * np.dstack([RAMP] * 4)).astype(np.uint8))),
    "palette": ("a.gif", lambda: Image.fromarray(np.round(255 * RAMP).astype(np.uint8)).convert("P")),
    "CMYK": ("a.tif", lambda: Image.fromarray(np.round(255 * np.dstack([RAMP] * 4)).astype(np.uint8), "CMYK")),
    "LAB": ("a.tif", lambda: Image.new("LAB", (4, 4), (100, 200, 60))),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_a_pillow_picture_means_what_its_file_means(name, tmp_path):
    file, make = DEEP[name]
    path = saved(tmp_path, file, make())
    want = images.load(path)
    with Image.open(path) as opened:
        for picture in (opened, make()):
            np.testing.assert_allclose(images.as_picture(picture), want, atol=1e-6)
            np.testing.assert_array_equal(images.to_uint8(picture), images.to_uint8(want))
            np.testing.assert_allclose(images.as_picture([picture, picture])[1], want, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
def test_an_opened_photo_is_turned_and_a_changed_one_is_not(kind, orientation, tmp_path):
    picture = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(3, 6) * 14).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, f"a.{kind}", picture, exif=exif)
    with Image.open(path) as opened:
        np.testing.assert_allclose(images.as_picture(opened), images.load(path), atol=1e-6)
        by_hand = ImageOps.exif_transpose(opened)
        np.testing.assert_allclose(images.as_picture(by_hand), images.load(path), atol=1e-6)


def test_an_opened_tiff_is_turned_once_where_xmp_says_it_too(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[700], tags[700], tags[0x0112] = 1, b'<x tiff:Orientation="6"/>', 6
    path = saved(tmp_path, "a.tif", Image.new("RGB", (6, 3)), tiffinfo=tags)
    with Image.open(path) as opened:
        assert images.as_picture(opened).shape == images.load(path).shape == (6, 3, 3)


def test_floats_in_other_units_are_refused():
    pixels = np.ones((1, 2), "<f4").tobytes()
    assert images.decode(b"Pf\n2 1\n-1.0\n" + pixels).colour.min() == 1
    with pytest.raises(ValueError, match="floats in units of 2, so its black and white are not defined"):
        images.decode(b"Pf\n2 1\n-2.0\n" + pixels)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_pillow_picture_without_a_defined_range_is_refused(mode):
    with pytest.raises(ValueError, match="photo: the picture has .* black and white are not defined"):
        images.as_picture(Image.new(mode, (2, 2), 200), "photo")


def strokes(colour, ground=(0, 0, 0, 0), half=slice(8, None)):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:] = ground
    pixels[:, half] = (*colour, 255)
    return Image.fromarray(pixels)


RIGHT = np.zeros((16, 16), np.float32)
RIGHT[:, 8:] = 1
MASKS = {
    "white on black": lambda: Image.fromarray((255 * RIGHT).astype(np.uint8)),
    "1 on 0": lambda: Image.fromarray(RIGHT.astype(np.uint8)),
    "16 bits": lambda: Image.fromarray((65535 * RIGHT).astype(np.uint16)),
    "1 bit": lambda: Image.fromarray(RIGHT > 0),
    "white strokes on nothing": lambda: strokes((255, 255, 255)),
    "red strokes on nothing": lambda: strokes((200, 10, 10)),
    "white on black, opaque": lambda: strokes((255, 255, 255), (0, 0, 0, 255)),
    "red on transparent white": lambda: strokes((200, 10, 10), (255, 255, 255, 0)),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_is_painted_is_made_new(name, tmp_path):
    np.testing.assert_array_equal(images.load_mask(saved(tmp_path, "mask.png", MASKS[name]())), RIGHT)


def test_a_photo_is_no_mask(tmp_path):
    photo = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    erased = np.dstack([photo, np.full((32, 32), 255, np.uint8)])
    erased[:, 16:, 3] = 0
    for name, pixels in (("photo", photo), ("erased", erased)):
        with pytest.raises(ValueError, match=f"{name}.png has .*a mask is white where the picture is redrawn"):
            images.load_mask(saved(tmp_path, f"{name}.png", Image.fromarray(pixels)))


def test_a_nearly_black_picture_is_no_mask(tmp_path):
    pixels = np.random.default_rng(0).choice([0, 0, 0, 0, 0, 0, 1, 3], (32, 32)).astype(np.uint8)
    with pytest.raises(ValueError, match="a.png is nearly black, with a largest value of 3 of 255"):
        images.load_mask(saved(tmp_path, "a.png", Image.fromarray(pixels)))


ARRAYS = {
    "bool": RIGHT > 0,
    "uint8": (255 * RIGHT).astype(np.uint8),
    "uint8 of 0 and 1": RIGHT.astype(np.uint8),
    "int64": RIGHT.astype(np.int64),
    "float32": RIGHT,
    "float64": RIGHT.astype(np.float64),
    "PIL, 16 bits": Image.fromarray((65535 * RIGHT).astype(np.uint16)),
    "PIL, 1 bit": Image.fromarray(RIGHT > 0),
    "PIL, red": strokes((200, 10, 10)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_every_kind_of_mask_means_the_same(name):
    np.testing.assert_array_equal(images.as_mask(ARRAYS[name]), RIGHT)


@pytest.mark.parametrize(
    "wrong", [2 * RIGHT, -RIGHT, np.nan * RIGHT, 255 * RIGHT.astype(int), "mask.png", None, [[0], [0, 1]]]
)
def test_what_is_no_mask_is_refused(wrong):
    with pytest.raises(ValueError, match="hole must"):
        images.as_mask(wrong, "hole")


VALUES = {
    "uint8": np.array([[[0, 255, 51]]], np.uint8),
    "PIL": Image.fromarray(np.array([[[0, 255, 51]]], np.uint8)),
    "float32": np.array([[[-1, 1, -0.6]]], np.float32),
    "float64": np.array([[[-1, 1, -0.6]]]),
}


@pytest.mark.parametrize("name", VALUES)
def test_every_kind_of_picture_means_the_same(name):
    np.testing.assert_allclose(images.as_picture(VALUES[name]), VALUES["float32"], atol=1e-6)
    np.testing.assert_array_equal(images.to_uint8(VALUES[name]), VALUES["uint8"])
    if name != "PIL":
        sheet = images.grid(VALUES[name][None, None].repeat(32, 2).repeat(32, 3))
        assert (sheet[len(sheet) // 2, sheet.shape[1] // 2] == [0, 255, 51]).all()


@pytest.mark.parametrize(
    "wrong", [np.full((2, 2, 3), np.nan), np.full((2, 2, 3), 255.0), np.zeros((2, 2, 3), np.int32), "picture.png", None]
)
def test_what_is_no_picture_is_refused(wrong):
    with pytest.raises(ValueError, match="photo must"):
        images.as_picture(wrong, "photo")


BYTES = np.linspace(0, 255, 48).reshape(4, 4, 3)


@pytest.mark.parametrize(
    "wrong", [BYTES, BYTES - 1.5, np.full((4, 4, 3), np.nan), np.full((4, 4, 3), np.inf), BYTES.astype(int)]
)
def test_sheets_and_files_refuse_what_is_no_picture(wrong, tmp_path):
    for attempt in (
        images.to_uint8, lambda x: images.square(x, 2), lambda x: images.save(tmp_path / "a.png", x),
        lambda x: images.save_gif(tmp_path / "a.gif", x[None]), lambda x: images.save_mp4(tmp_path / "a.mp4", x[None]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="must"):
            attempt(wrong)
    if not np.isnan(wrong).all():  # which is an empty cell
        with pytest.raises(ValueError, match="must"):
            images.strip(wrong[None])
    assert not list(tmp_path.iterdir())


def test_noisy_pictures_are_shown():
    noisy = 3 * np.random.default_rng(0).normal(size=(32, 32, 3))
    np.testing.assert_array_equal(images.to_uint8(noisy), images.to_uint8(noisy.clip(-1, 1)))


def test_a_bright_pillow_picture_gets_no_warning():
    assert images.as_picture(Image.fromarray(np.full((2, 2, 3), [200, 250, 255], np.uint8))).min() > 0


def test_a_picture_in_0_to_1_gets_a_warning():
    with pytest.warns(UserWarning, match=r"looks like \[0, 1\]"):
        images.as_picture(np.linspace(0, 1, 12).reshape(2, 2, 3))


def test_a_file_is_replaced_as_the_user_would_expect(tmp_path):
    """Links are followed, modes are kept, read-only files are refused, and nothing half-written stays."""
    target, link = tmp_path / "target.png", tmp_path / "link.png"
    images.save(target, np.zeros((2, 2, 3)))
    target.chmod(0o640)
    link.symlink_to(target)
    images.save(link, np.ones((2, 2, 3)))
    assert link.is_symlink() and images.load(target).max() == 1 and target.stat().st_mode & 0o777 == 0o640
    target.chmod(0o444)
    before = target.read_bytes()
    with pytest.raises(PermissionError, match="read-only"):
        images.save(target, np.zeros((2, 2, 3)))
    assert target.read_bytes() == before
    with pytest.raises(KeyboardInterrupt), images.beside(tmp_path / "new") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    long = tmp_path / ("a" * 251 + ".png")
    images.save(long, np.zeros((2, 2, 3)))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([long.name, "link.png", "target.png"])


def test_a_long_label_is_wrapped_in_no_time():
    assert images.grid(np.zeros((1, 1, 8, 8, 3)), ["x" * 2000]).shape[2] == 3


def test_a_damaged_file_is_one_line(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "GIF")
    (tmp_path / "a.gif").write_bytes(buffer.getvalue()[:40])
    with pytest.raises(ValueError, match="a.gif: ") as caught:
        images.load(tmp_path / "a.gif")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_says_why(tmp_path, monkeypatch):
    for name, data, message in (
        ("empty.png", b"", "this file is empty"),
        ("a.heic", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "pip install pillow-heif"),
        ("text.png", b"not a picture", "this is no picture that can be read"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", "EPS .* save it as PNG"),
    ):
        (tmp_path / name).write_bytes(data)
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=f"{name}: .*{message}"):
            patch.setattr("jdiff.images.read.find_spec", lambda name: None)
            images.load(tmp_path / name)
    avif = b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif"
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match="a.avif: this is AVIF.* -U pillow"),
    ):
        patch.setattr("PIL.features.check", lambda name: False)
        images.decode(avif, "a.avif")
    with pytest.raises(ValueError, match="this is a folder"):
        images.load(tmp_path)

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refused)
    with pytest.raises(ValueError, match="text.png: no permission to read this file"):
        images.load(tmp_path / "text.png")


def test_heic_is_read_where_its_plugin_is(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is in the extra heic")
    pixels = np.full((32, 48, 3), 90, np.uint8)
    pixels[:16] = 200
    heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "a.heic", quality=100, chroma=444)
    np.testing.assert_allclose(images.load(tmp_path / "a.heic"), pixels / 127.5 - 1, atol=0.05)
