"""What the numbers of a Pillow picture mean: brightness by declared depth, colour by profile, alpha, orientation."""

import io
import re
import struct
import warnings
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageFile

# Formats whose 16-bit integers run from 0 (black) to 65535 (white). None: made in memory.
FULL_16_BITS = ("PNG", "PPM", "JPEG2000", "TIFF", "IM", "SGI", None)
# The turns of NumPy that an EXIF orientation asks for: (mirror left-right first, quarter turns).
TURNS = {1: (0, 0), 2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 3), 7: (1, 3), 8: (0, 1)}
# TIFF's tags, and two of their values.
BITS, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 258, 262, 274, 339
WHITE_IS_ZERO, SIGNED = 0, 2
# TIFF's tags that pixels depend on: layout, compression, palette, alpha, sample format, YCbCr, ICC profile.
PIXEL_TAGS = frozenset(
    (*range(254, 260), 262, 266, 273, *range(277, 282), 284, 292, 293, 317, *range(320, 326), 332, 334, 338, 339, 347,
     *range(512, 522), *range(529, 533), 34675, 50674)
)  # fmt: skip
# The types of whole numbers in TIFF: their codes for `struct`.
WHOLE = {1: "B", 3: "H", 4: "L"}
# Name among Pillow's facts of the bits a channel that a PNG's header declares.
DEPTH = "jdiff-depth"
# Largest difference, of 255, at which a profile counts as sRGB.
SAME_COLOUR = 2


class Picture(NamedTuple):
    """What a file or a Pillow picture shows."""

    colour: np.ndarray  # [h w 3] float32 in [0, 1], sRGB
    alpha: np.ndarray | None  # [h w] float32 in [0, 1], where there is transparency


def on_white(picture: Picture) -> np.ndarray:
    """Returns a picture as [h w 3] float32 in [-1, 1], with white where it is transparent."""
    colour = picture.colour
    if picture.alpha is not None:
        alpha = picture.alpha[..., None]
        colour = colour * alpha + (1 - alpha)
    shown = 2 * colour
    shown -= 1  # in place: a large picture has gigabytes
    return shown


def turned(picture: Picture, orientation: int) -> Picture:
    """Returns a picture turned as an EXIF orientation says."""
    mirrored, quarters = TURNS[orientation]
    turn = lambda a: np.ascontiguousarray(np.rot90(a[:, ::-1] if mirrored else a, quarters))
    return Picture(turn(picture.colour), None if picture.alpha is None else turn(picture.alpha))


def of_pil(image: Image.Image, name: str) -> Picture:
    """Converts a Pillow picture of any mode. A picture that Pillow opened is turned by its EXIF orientation.

    Args:
        image: in any mode.
        name: what errors call it.

    Raises:
        ValueError: it cannot be decoded, or its numbers have no defined black and white.

    Warns:
        UserWarning: its ICC profile cannot be used.
    """
    try:
        image.load()
        if 0 in image.size:
            raise ValueError(f"it has {image.width} x {image.height} pixels")
        found = as_declared(image, name)
    except RangeError:
        raise
    except Exception as error:  # decoders raise what they like
        raise ValueError(f"{name} cannot be read: {one_line(error)}") from error
    # Pillow turns a TIFF itself and removes the orientation. A picture that was changed may be turned already.
    is_opened = isinstance(image, ImageFile.ImageFile)
    return turned(found, exif_orientation(image.info)) if is_opened else found


class RangeError(ValueError):
    """The numbers of a picture have no defined black and white."""


def as_declared(image: Image.Image, name: str) -> Picture:
    """Returns the colours of a decoded picture in sRGB, by the depth and profile that it declares, and its alpha."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        grey, alpha = _deep_grey(image, name)
        return Picture(_by_profile_16(grey, profile, name)[..., None].repeat(3, axis=2), alpha)
    alpha = _alpha(image)
    colour = np.array(_in_srgb(image, profile, name), np.float32)
    colour /= 255
    return Picture(colour, alpha)


def _deep_grey(image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(grey [h w] in [0, 1], alpha) of a picture in 16 or 32 bits, or floats, by the depth that its file declares."""
    values, kind, tags = np.asarray(image), image.format, dict(getattr(image, "tag_v2", {}))
    declared = tags.get(BITS, (16,))
    bits = declared[0] if isinstance(declared, tuple) else declared
    sample = tags.get(SAMPLE_FORMAT, (1,))
    signed = (sample[0] if isinstance(sample, tuple) else sample) == SIGNED
    where = "in memory" if kind is None else f"in a {kind} file"
    if image.mode == "F":
        least, most = values.min(), values.max()
        if not 0 <= least <= most <= 1:  # NaN too
            raise RangeError(
                f"{name}: the picture has floats from {least:.4g} to {most:.4g}, so its black and white are not "
                "defined: scale them to [0, 1], or save it in 8 or 16 bits"
            )
        if image.info.get("scale", 1) != 1:
            raise RangeError(
                f"{name}: the picture has floats in units of {image.info['scale']:.4g}, so its black and white are "
                "not defined: write the scale 1, or save it in 8 or 16 bits"
            )
        grey = values.astype(np.float32)
    elif image.mode.startswith("I;16") and kind in FULL_16_BITS:
        grey = values.astype(np.float32) / (2**bits - 1 if kind == "TIFF" else 65535)
    elif kind == "PPM":
        grey = values.astype(np.float32) / 65535  # Pillow scales by the file's largest value
    elif kind == "TIFF" and bits in (16, 32) and not signed:
        grey = (values.view(np.uint32) / (2**bits - 1)).astype(np.float32)
    else:
        what = "signed integers" if signed else f"integers {where}"
        raise RangeError(
            f"{name}: the picture has {what}, {values.min()} to {values.max()}, so its black and white "
            "are not defined: save it in 8 or 16 bits without sign"
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


def _in_srgb(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
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
            elif space == "GRAY" and (bare.mode in ("1", "LA") or bare.mode == "RGB" and _is_grey(bare)):
                bare = bare.convert("L")
            if {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}.get(bare.mode) != space:
                raise ValueError(f"it is for {space}, and the pixels are {bare.mode}")
            if not _is_srgb(source, bare.mode):
                return _transformed(bare, source)
        except Exception as error:  # of a broken profile, by littleCMS or Pillow
            why = one_line(error)
            warnings.warn(f"{name}: its ICC profile cannot be used ({why}); colours are read as sRGB", stacklevel=2)
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


def _is_grey(image: Image.Image) -> bool:
    """Whether an RGB picture is grey, as of a format without grey, such as WebP."""
    red, green, blue = np.moveaxis(np.asarray(image), -1, 0)
    return bool((red == green).all() and (green == blue).all())


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


def _by_profile_16(grey: np.ndarray, profile: bytes | None, name: str) -> np.ndarray:
    """Grey [h w] in [0, 1] of more than 8 bits, by a profile's curve at 256 places."""
    if not profile:
        return grey
    levels = np.arange(256, dtype=np.uint8)
    curve = np.asarray(_in_srgb(Image.fromarray(levels[None]), profile, name), np.float32)[0, :, 1] / 255
    if np.array_equal(curve, levels / np.float32(255)):
        return grey
    return np.interp(grey, levels / 255, curve).astype(np.float32)


def exif_orientation(info: dict) -> int:
    """Returns the orientation, 1 to 8, that a picture's EXIF or XMP gives; 1 where there is none. No other tag counts.

    Args:
        info: Pillow's facts of the picture.
    """
    with suppress(Exception):  # of facts of any type, from a damaged file
        exif = info.get("exif")
        if exif is None and (profile := info.get("Raw profile type exif")):
            exif = bytes.fromhex("".join(profile.split("\n")[3:]))
        found = split_tiff(exif.removeprefix(b"Exif\0\0"))[1] if exif else None
        if found is not None:
            return found
        xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
        xmp = xmp.encode() if isinstance(xmp, str) else xmp
        told = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)
        return int(told[1]) if told else 1
    return 1


def split_tiff(data: bytes) -> tuple[bytes, int | None]:
    """Splits TIFF or EXIF data into what its pixels need and its orientation.

    Pillow stops or fails at the first odd tag of a TIFF. So such tags are removed before Pillow reads the file.

    Returns:
        (the data whose first folder has none but PIXEL_TAGS, the orientation if there is a valid one). What is not
        understood is returned as it is.
    """
    order, big = "<" if data[:2] == b"II" else ">", data[2:4] in (b"+\0", b"\0+")
    count, entry, offset = ("Q", "HHQ8s", "Q") if big else ("H", "HHL4s", "L")
    size = struct.calcsize(order + entry)
    try:
        (at,) = struct.unpack_from(order + offset, data, 8 if big else 4)
        (n,) = struct.unpack_from(order + count, data, at)
        first = at + struct.calcsize(count)
        there = min(n, max(0, len(data) - first) // size)
        tags = [struct.unpack_from(order + entry, data, first + i * size) for i in range(there)]
        after = data[first + n * size :][: struct.calcsize(offset)]
    except struct.error:
        return data, None
    orientation = None
    for tag, kind, number, value in tags:
        if tag == ORIENTATION and kind in WHOLE and number == 1:
            (found,) = struct.unpack_from(order + WHOLE[kind], value)
            orientation = found if found in TURNS else orientation
    kept = [struct.pack(order + entry, *tag) for tag in tags if tag[0] in PIXEL_TAGS]
    if len(kept) == there or there < n:
        return data, orientation
    folder = struct.pack(order + count, len(kept)) + b"".join(kept) + after
    return data[:at] + folder + data[at + len(folder) :], orientation


def one_line(error: BaseException) -> str:
    """Returns what an error says in one line, or its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
