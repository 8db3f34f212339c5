"""Pictures from files: the right brightness, colour, alpha and orientation, or one line that says what is wrong."""

import io
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms

from jdiff.images.values import mask_of

# Key of the PNG text chunk that holds the settings.
KEY = "jdiff"
# Megapixels that are read.
LARGEST = 100
# Formats whose 16-bit integers run from 0 (black) to 65535 (white), and those whose floats run from 0 to 1.
FULL_16_BITS = ("PNG", "PPM", "JPEG2000", "TIFF", "IM", "SGI")
# EXIF tag of the orientation, and the turns of NumPy that its values ask for: (mirror left-right first, quarter turns).
ORIENTATION = 0x0112
TURNS = {1: (0, 0), 2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 3), 7: (1, 3), 8: (0, 1)}
# First bytes of an ISO media file: brands of HEIC, which Pillow reads with a plugin only.
HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
# TIFF's tags, and two of their values.
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, SIGNED = 0, 2
# Name among Pillow's facts under which `_opened` keeps the bits a channel that a PNG's header declares.
DEPTH = "jdiff-depth"
# Largest difference, of 255, at which a profile counts as sRGB.
SAME_COLOUR = 2


class Picture(NamedTuple):
    """What a file shows."""

    colour: np.ndarray  # [h w 3] float32 in [0, 1], sRGB
    alpha: np.ndarray | None  # [h w] float32 in [0, 1], where the file has transparency


def load(path: str | Path) -> np.ndarray:
    """Reads a picture, turned as its EXIF orientation says, in sRGB, with white where it is transparent.

    Integers are scaled by the depth that the file declares, floats must lie in [0, 1], and ICC profiles are followed.

    Args:
        path: of the file, in any format that Pillow reads.

    Returns:
        [h w 3] float32 in [-1, 1].

    Raises:
        ValueError: there is no such file, it cannot be read, is no picture, has more than 100 megapixels, or its
            numbers have no defined black and white.

    Warns:
        UserWarning: the file's ICC profile cannot be used.
    """
    return on_white(decode(read_bytes(path), path))


def load_mask(path: str | Path) -> np.ndarray:
    """Reads a mask [h w] float32: 1 where the picture is made new (painted), 0 where it is black or transparent.

    Raises:
        ValueError: as `load`, and for a photo; see `mask_of`.
    """
    found = decode(read_bytes(path), path)
    return mask_of(found.colour, found.alpha, str(path))


def on_white(picture: Picture) -> np.ndarray:
    """Returns a picture as [h w 3] float32 in [-1, 1], with white where it is transparent."""
    colour = picture.colour
    if picture.alpha is not None:
        alpha = picture.alpha[..., None]
        colour = colour * alpha + (1 - alpha)
    return 2 * colour - 1


def read_bytes(path: str | Path) -> bytes:
    """Returns the bytes of a file.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ValueError(f"{path}: this is a folder; give the path of a picture")
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: this is no regular file; give the path of a picture")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file; give the path of a picture") from error
    except PermissionError as error:
        raise ValueError(f"{path}: no permission to read this file") from error
    except OSError as error:
        raise ValueError(f"{path}: this file cannot be read ({error.strerror or error})") from error


def decode(data: bytes, name: str | Path = "picture") -> Picture:
    """Decodes the bytes of a picture's file.

    Args:
        data: of the whole file.
        name: what errors call it.

    Returns:
        Its colours in sRGB, and its alpha if it has any.

    Raises:
        ValueError: as `load`.
    """
    with _opened(data, name) as image:
        profile = image.info.get("icc_profile")
        if image.mode.startswith("I") or image.mode == "F":
            grey, alpha = _deep_grey(image, name)
            colour = _by_profile_16(grey, profile, name)[..., None].repeat(3, axis=2)
        else:
            alpha = _alpha(image)
            colour = np.asarray(_in_srgb(image, profile, name), np.float32) / 255
        turn = _orientation(image)
        return Picture(_turned(colour, turn), None if alpha is None else _turned(alpha, turn))


def _deep_grey(image: Image.Image, name: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(grey [h w] in [0, 1], alpha) of a picture in 16 or 32 bits, or floats, by the depth that its file declares."""
    values, kind, tags = np.asarray(image), image.format, dict(getattr(image, "tag_v2", {}))
    declared = tags.get(BITS, (16,))
    bits = declared[0] if isinstance(declared, tuple) else declared
    sample = tags.get(SAMPLE_FORMAT, (1,))
    signed = (sample[0] if isinstance(sample, tuple) else sample) == SIGNED
    if image.mode == "F":
        least, most = values.min(), values.max()
        if not 0 <= least <= most <= 1:  # NaN too
            raise ValueError(
                f"{name}: the picture has floats from {least:.4g} to {most:.4g}, which have no defined black and "
                "white; scale them to [0, 1], or save it in 8 or 16 bits"
            )
        grey = values.astype(np.float32)
    elif image.mode.startswith("I;16") and kind in FULL_16_BITS:
        grey = values.astype(np.float32) / (2**bits - 1 if kind == "TIFF" else 65535)
    elif kind == "PPM":
        grey = values.astype(np.float32) / 65535  # Pillow scales by the file's largest value
    elif kind == "TIFF" and bits in (16, 32) and not signed:
        grey = (values.view(np.uint32) / (2**bits - 1)).astype(np.float32)
    else:
        what = "signed integers" if signed else f"integers in a {kind} file"
        raise ValueError(
            f"{name}: the picture has {what}, {values.min()} to {values.max()}, which have no defined black and "
            "white; save it in 8 or 16 bits without sign"
        )
    clear = image.info.get("transparency")
    alpha = (values != clear).astype(np.float32) if isinstance(clear, int) else None
    return (1 - grey if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey), alpha


def _alpha(image: Image.Image) -> np.ndarray | None:
    """[h w] in [0, 1] of a picture in 8 bits a channel, or None where it has no transparency."""
    if not image.has_transparency_data:
        return None
    clear = image.info.get("transparency")
    if image.mode in ("1", "L", "RGB") and clear is not None:
        # Pillow compares pixels scaled to 8 bits with a colour in the file's own depth
        pixels = np.asarray(image.convert("L" if image.mode == "1" else image.mode))
        clear = _to_8_bits(clear, image.info.get(DEPTH, 8))
        same = pixels == np.asarray(clear)
        return 1 - (same.all(axis=-1) if same.ndim == 3 else same).astype(np.float32)
    return np.asarray(image.convert("RGBA").getchannel("A"), np.float32) / 255


def _to_8_bits(value: int | tuple[int, ...], bits: int) -> int | tuple[int, ...]:
    if isinstance(value, tuple):
        return tuple(v >> 8 if bits == 16 else v for v in value)
    return value >> 8 if bits == 16 else value * 255 // (2**bits - 1)


def _in_srgb(image: Image.Image, profile: bytes | None, name: str | Path) -> Image.Image:
    """The picture as RGB in sRGB, without its alpha."""
    bare = _without_alpha(image)
    if bare.mode == "LAB":
        return _transformed(bare, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = str(getattr(source.profile, "xcolor_space", "")).strip()
            if space == "RGB":
                bare = bare.convert("RGB")
            elif space == "GRAY" and bare.mode in ("1", "LA"):
                bare = bare.convert("L")
            if {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}.get(bare.mode) != space:
                raise ValueError(f"it is for {space}, and the pixels are {bare.mode}")
            if not _is_srgb(source, bare.mode):
                return _transformed(bare, source)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
            warnings.warn(f"{name}: its ICC profile cannot be used ({error}); colours are read as sRGB", stacklevel=2)
    return bare.convert("RGB")


def _without_alpha(image: Image.Image) -> Image.Image:
    """The same colours with no alpha channel, not blended with anything."""
    if image.mode in ("P", "PA", "RGBA", "RGBa", "RGBX"):
        return image.convert("RGBA").convert("RGB") if image.mode != "RGBX" else image.convert("RGB")
    if image.mode in ("LA", "La"):
        return (image if image.mode == "LA" else image.convert("LA")).getchannel("L")
    if image.mode == "1":
        return image.convert("L")
    return image


def _transformed(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    target = ImageCms.createProfile("sRGB")
    made = ImageCms.profileToProfile(
        image, source, target, renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip
    assert made is not None  # it is, without inPlace
    return made


def _is_srgb(source: ImageCms.ImageCmsProfile, mode: str) -> bool:
    """Whether a profile changes no colour by more than rounding, so that a picture can stay as it is to the bit."""
    if mode == "CMYK":
        return False
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    if mode == "L":
        cube = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        cube = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3))
    before, after = (np.asarray(a.convert("RGB"), int) for a in (cube, _transformed(cube, source)))
    return int(np.abs(before - after).max()) <= SAME_COLOUR


def _by_profile_16(grey: np.ndarray, profile: bytes | None, name: str | Path) -> np.ndarray:
    """Grey [h w] in [0, 1] of more than 8 bits, by a profile's curve at 256 places."""
    if not profile:
        return grey
    levels = np.arange(256, dtype=np.uint8)
    curve = np.asarray(_in_srgb(Image.fromarray(levels[None]), profile, name), np.float32)[0, :, 1] / 255
    if np.array_equal(curve, levels / np.float32(255)):
        return grey
    return np.interp(grey, levels / 255, curve).astype(np.float32)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or it cannot be read; no other tag is looked at."""
    with suppress(Exception):  # a damaged tag beside it raises whatever it likes
        found = image.getexif().get(ORIENTATION, 1)
        return found if found in TURNS else 1
    return 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    mirrored, quarters = TURNS[orientation]
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, quarters))


@contextmanager
def _opened(data: bytes, name: str | Path) -> Iterator[Image.Image]:
    """The first frame, decoded; whatever a decoder raises becomes one ValueError with the file's name."""
    large = f"{name}: the picture has more than {LARGEST} megapixels; make it smaller"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ValueError(large) from error
    except Exception as error:  # decoders raise what they like
        if data[4:8] == b"ftyp" and data[8:12] in HEIC:
            raise ValueError(
                f"{name}: HEIC pictures are not read; save it as JPEG or PNG, by pillow-heif for example"
            ) from error
        raise ValueError(f"{name}: this is no picture that can be read") from error
    with image:
        if math.prod(image.size) > LARGEST * 10**6:
            raise ValueError(large)
        if image.format == "PNG" and data[12:16] == b"IHDR":
            image.info[DEPTH] = data[24]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.load()
        except Exception as error:
            raise ValueError(f"{name}: the picture is damaged ({_one_line(error)})") from error
        try:
            yield image
        except (ValueError, MemoryError):
            raise
        except Exception as error:
            raise ValueError(f"{name}: the picture cannot be read ({_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_settings(path: str | Path) -> dict[str, Any]:
    """Returns the settings that `save` wrote into a PNG.

    Raises:
        ValueError: the file is no such PNG.
    """
    with _opened(read_bytes(path), path) as image:
        text = getattr(image, "text", {}).get(KEY)
    if text is None:
        raise ValueError(f"{path} has no settings of jdiff in it; give a PNG that jdiff wrote")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has settings that are no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} has settings that are a {type(settings).__name__}, not a JSON object")
    return settings
