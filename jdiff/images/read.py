"""Pictures from files and URLs: right in brightness, colour, alpha and orientation, or one line on what is wrong."""

import io
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from jdiff.images import web
from jdiff.images.masks import mask_of
from jdiff.images.pixels import (
    DEPTH,
    Picture,
    RangeError,
    as_declared,
    exif_orientation,
    on_white,
    one_line,
    split_tiff,
    turned,
)

# Key of the PNG text chunk that holds the settings.
KEY = "jdiff"
# The settings of a picture, as its file keeps them: JSON, whose values are of many types.
Settings = dict[str, Any]
# Megapixels, and gigabytes of a file, that are read.
LARGEST, LARGEST_FILE = 100, 4
# Megapixels of a picture from the web, of which a small file can have many.
LARGEST_WEB = 24
# Brands of ISO media files: AVIF, and HEIC for files with no brand of AVIF.
AVIF = {b"avif", b"avis"}
HEIC = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
# First bytes of TIFF files.
TIFF = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+")


def load(path: str | Path) -> np.ndarray:
    """Reads a picture, turned as its EXIF orientation says, in sRGB, with white where it is transparent.

    Integers are scaled by the depth that the file declares, floats must lie in [0, 1], and ICC profiles are followed.

    Args:
        path: of the file, in any format that Pillow reads, or its address: https://... or http://...; see `web.fetch`.

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


def read_bytes(path: str | Path) -> bytes:
    """Returns the bytes of a file, which a URL may name.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    if web.is_url(path):
        return web.fetch(str(path))
    path = Path(path)
    try:
        if path.is_dir():
            raise ValueError(f"{path}: this is a folder; give the path of a picture")
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: this is no regular file; give the path of a picture")
        if path.stat().st_size > LARGEST_FILE * 10**9:
            raise ValueError(f"{path}: this file has more than {LARGEST_FILE} gigabytes; make it smaller")
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
    name, orientation = str(name), None
    if data[:4] in TIFF:
        data, orientation = split_tiff(data)[0], split_tiff(data)[1] or exif_orientation({"xmp": data})
    with _opened(data, name) as image:
        try:
            found = as_declared(image, name)
        except RangeError:
            raise
        except Exception as error:
            raise ValueError(f"{name}: the picture is damaged ({one_line(error)})") from error
        return turned(found, exif_orientation(image.info) if orientation is None else orientation)


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """The first frame, decoded; whatever a decoder raises becomes one ValueError with the file's name."""
    most = LARGEST_WEB if web.is_url(name) else LARGEST
    large = f"{name}: the picture has more than {most} megapixels; make it smaller"
    try:
        image = _identified(data)
    except Image.DecompressionBombError as error:
        raise ValueError(large) from error
    except Exception as error:  # decoders raise what they like
        raise ValueError(f"{name}: {_not_a_picture(data)}") from error
    with image:
        if image.format == "EPS":
            raise ValueError(f"{name}: EPS is a program for printers, which is not run; save it as PNG")
        if math.prod(image.size) > most * 10**6:
            raise ValueError(large)
        if image.format == "PNG" and data[12:16] == b"IHDR":
            image.info[DEPTH] = data[24]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.load()
        except Exception as error:
            raise ValueError(f"{name}: the picture is damaged ({one_line(error)})") from error
        yield image


def _identified(data: bytes) -> Image.Image:
    """The picture, not decoded yet; HEIC by pillow-heif, where that is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Image.open(io.BytesIO(data))
        except Image.UnidentifiedImageError:
            if _media(data) != "HEIC":
                raise
            import pillow_heif  # type: ignore[import-not-found]

            pillow_heif.register_heif_opener()
            return Image.open(io.BytesIO(data))


def _not_a_picture(data: bytes) -> str:
    """Why Pillow does not know a file, and what helps."""
    if not data:
        return "this file is empty"
    kind = _media(data)
    if kind == "HEIC" and find_spec("pillow_heif") is None:
        return "this is HEIC, which needs pillow-heif: pip install pillow-heif, or save it as JPEG or PNG"
    if kind == "AVIF" and not features.check("avif"):
        return "this is AVIF, which this Pillow does not read: pip install -U pillow, or save it as JPEG or PNG"
    if data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "this is a web page and no picture; give the address of the picture itself"
    return "this is no picture that can be read, or it is damaged"


def _media(data: bytes) -> str:
    """AVIF, HEIC, or nothing: what the brands of an ISO media file say."""
    if data[4:8] != b"ftyp":
        return ""
    listed = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    brands = {listed[i : i + 4] for i in range(0, len(listed), 4)}
    return "AVIF" if brands & AVIF else "HEIC" if brands & HEIC else ""


def read_settings(path: str | Path) -> Settings:
    """Returns the settings that `save` wrote into a PNG.

    Raises:
        ValueError: the file is no such PNG.
    """
    with _opened(read_bytes(path), str(path)) as image:
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
