"""Odd but valid picture files of every format, with the pictures that they show; for fuzz_pictures.py and tests."""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from odd_files import PROFILES, exif, in_profile, odd_tags, over_white, png, profile, scene, tiff, turned, written
from PIL import Image

Maker = Callable[[np.random.Generator], "Odd"]


class Odd(NamedTuple):
    """A file and the picture that it shows."""

    data: bytes
    shown: np.ndarray | None  # [h w 3] in [0, 1] on a white background; None if the file must be refused
    error: float = 1.0  # largest difference that is allowed, out of 255


def by_pillow(kind: str, error: float = 0.51, turns: bool = False, **how: Any) -> Maker:
    """Returns a maker of RGB files of one kind; with `turns` they have EXIF data with an orientation."""

    def make(rng: np.random.Generator) -> Odd:
        colour = scene(rng).colour
        if not turns:
            return Odd(written(Image.fromarray(colour), kind, **how), over_white(colour), error)
        orientation = int(rng.integers(1, 9))
        others = 0 if kind == "AVIF" else 3  # Pillow cannot write odd tags in AVIF
        facts = exif(odd_tags(rng, others), orientation, str(rng.choice(["<", ">"])))
        data = written(Image.fromarray(colour), kind, exif=b"Exif\0\0" + facts, **how)
        return Odd(data, turned(over_white(colour), orientation), error)

    return make


def coloured(kind: str, error: float, **how: Any) -> Maker:
    """Returns a maker of files with an ICC profile."""

    def make(rng: np.random.Generator) -> Odd:
        name = str(rng.choice(list(PROFILES)))
        colour = scene(rng).colour
        if PROFILES[name][0] is None:
            colour = colour[..., :1].repeat(3, 2)
        stored = in_profile(colour, name)
        image = Image.fromarray(stored[..., 0] if PROFILES[name][0] is None else stored)
        return Odd(written(image, kind, icc_profile=profile(name), **how), over_white(colour), error)

    return make


def clear(kind: str, error: float = 1.01, mode: str = "RGBA", **how: Any) -> Maker:
    """Returns a maker of files with an alpha channel."""

    def make(rng: np.random.Generator) -> Odd:
        colour, alpha = scene(rng)
        if mode == "LA":
            colour = colour[..., :1].repeat(3, 2)
        image = Image.fromarray(np.dstack([colour[..., : len(mode) - 1], alpha]), mode)
        return Odd(written(image, kind, **how), over_white(colour, alpha), error)

    return make


def grey_png(rng: np.random.Generator) -> Odd:
    """Makes a PNG in grey with 1 to 16 bits or RGB with 8 or 16 bits. One of its colours may be transparent."""
    bits, kind = int(rng.choice([1, 2, 4, 8, 16])), 0
    if bits >= 8:
        kind = int(rng.choice([0, 2]))
    blocks = rng.integers(0, 2**bits, (3, 4, 3) if kind else (3, 4))
    pixels = blocks.repeat(8, 0).repeat(8, 1)
    shown = (pixels if kind else pixels[..., None].repeat(3, 2)) / (2**bits - 1)
    chunks = {}
    if rng.integers(2):
        hidden = blocks[0, 0]
        chunks[b"tRNS"] = struct.pack(f">{hidden.size}H", *np.atleast_1d(hidden))
        same = (pixels == hidden).reshape(*pixels.shape[:2], -1).all(-1)
        if kind and bits == 16:  # colours that are equal in 8 bits count as equal
            same = (pixels >> 8 == hidden >> 8).all(-1)
        shown = np.where(same[..., None], 1.0, shown)
    return Odd(png(pixels, bits, kind, chunks), shown, 1.01)


DTYPES = {"uint8": 1, "uint16": 1, "uint32": 1, "int16": 2, "int32": 2, "float32": 3}


def deep_tiff(rng: np.random.Generator) -> Odd:
    """Makes a grey TIFF of any dtype, turned and with odd tags. Signed integers have no defined range."""
    name, white, orientation = str(rng.choice(list(DTYPES))), int(rng.integers(2)), int(rng.integers(1, 9))
    share = rng.uniform(0, 1, (3, 4)).repeat(8, 0).repeat(8, 1)
    most = 1 if name == "float32" else np.iinfo(name).max
    stored = share if name == "float32" else np.round(share * most)
    shown = stored / most if white else 1 - stored / most
    order = str(rng.choice(["<", ">"]))
    data = tiff(odd_tags(rng), stored.astype(name), white, DTYPES[name], orientation, order)
    # Pillow does not know WhiteIsZero in 32 bits and in big-endian 16 bits, nor big-endian unsigned 32 bits
    unknown = {("uint32", "<", 0), ("uint32", ">", 0), ("uint32", ">", 1), ("uint16", ">", 0)}
    refused = name in ("int16", "int32") or (name, order, white) in unknown
    return Odd(data, None if refused else turned(shown[..., None].repeat(3, 2), orientation))


def wild_floats(rng: np.random.Generator) -> Odd:
    """Makes a TIFF of floats, one of which is outside of [0, 1] or not finite."""
    values = rng.uniform(0, 1, (8, 8)).astype(np.float32)
    values[0, 0] = rng.choice([np.nan, np.inf, -0.1, 1.1, 255])
    return Odd(tiff(odd_tags(rng), values, 1, 3), None)


def rgb_tiff(rng: np.random.Generator) -> Odd:
    """Makes an RGB TIFF with 8 or 16 bits, turned and with odd tags."""
    colour, orientation = scene(rng).colour, int(rng.integers(1, 9))
    stored = colour.astype(np.uint16) * 257 if rng.integers(2) else colour
    order = str(rng.choice(["<", ">"]))
    return Odd(tiff(odd_tags(rng), stored, 2, 1, orientation, order), turned(over_white(colour), orientation))


def any_pnm(rng: np.random.Generator) -> Odd:
    """Makes a PNM (P1 to P6) with any largest value, or a PFM."""
    kind, most = int(rng.integers(1, 8)), int(rng.choice([1, 3, 100, 255, 256, 1000, 65535]))
    if kind == 7:
        share = rng.uniform(0, 1, (6, 9)).astype("<f4")
        return Odd(b"Pf\n9 6\n-1.0\n" + share[::-1].tobytes(), share[..., None].repeat(3, 2))
    most = 1 if kind in (1, 4) else most
    shape = (6, 9, 3) if kind in (3, 6) else (6, 9)
    pixels = rng.integers(0, most + 1, shape)
    shown = 1 - pixels if kind in (1, 4) else pixels / most
    head = f"P{kind}\n# a comment\n9 6\n" + ("" if kind in (1, 4) else f"{most}\n")
    if kind <= 3:
        body = " ".join(map(str, pixels.reshape(-1))).encode() + b"\n"
    elif kind == 4:
        body = b"".join(np.packbits(row.astype(np.uint8)).tobytes() for row in pixels)
    else:
        body = pixels.astype(np.uint8 if most < 256 else ">u2").tobytes()
    return Odd(head.encode() + body, shown if len(shape) == 3 else shown[..., None].repeat(3, 2))


def palette(kind: str, clear: bool = True) -> Maker:
    """Returns a maker of files with a palette. One of its colours may be transparent."""

    def make(rng: np.random.Generator) -> Odd:
        colours = rng.integers(0, 256, (12, 3)).astype(np.uint8)
        index = np.arange(12, dtype=np.uint8).reshape(3, 4).repeat(8, 0).repeat(8, 1)
        image = Image.fromarray(index)
        image.putpalette(colours.tobytes())
        shown, hidden = colours[index] / 255, int(rng.integers(12))
        if not clear or not rng.integers(2):
            return Odd(written(image, kind), shown)
        shown = np.where((index == hidden)[..., None], 1.0, shown)
        return Odd(written(image, kind, transparency=hidden), shown)

    return make


def cmyk(kind: str, error: float, **how: Any) -> Maker:
    """Returns a maker of CMYK files without a profile, whose picture is (1 - ink) (1 - black)."""

    def make(rng: np.random.Generator) -> Odd:
        ink = rng.integers(0, 256, (3, 4, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        shown = (1 - ink[..., :3] / 255) * (1 - ink[..., 3:] / 255)
        return Odd(written(Image.fromarray(ink, "CMYK"), kind, **how), shown, error)

    return make


def icon(rng: np.random.Generator) -> Odd:
    """Makes an icon of one size, which contains a PNG or a BMP."""
    colour = np.tile(scene(rng).colour, (1, 2, 1))[
        :, :32
    ]  # Pillow writes a BMP's mask correctly for a width of 32 only
    size = colour.shape[1::-1]
    data = written(Image.fromarray(colour), "ICO", sizes=[size], bitmap_format=str(rng.choice(["png", "bmp"])))
    return Odd(data, over_white(colour))


def xmp_jpeg(rng: np.random.Generator) -> Odd:
    """Makes a JPEG whose orientation is only in its XMP data."""
    colour, orientation = scene(rng).colour, int(rng.integers(1, 9))
    xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()
    data = written(Image.fromarray(colour), "JPEG", quality=100, subsampling=0, xmp=xmp)
    return Odd(data, turned(over_white(colour), orientation), 4)


def one_bit(kind: str) -> Maker:
    """Returns a maker of black-and-white files."""

    def make(rng: np.random.Generator) -> Odd:
        shown = rng.integers(0, 2, (3, 4)).repeat(8, 0).repeat(8, 1)
        return Odd(written(Image.fromarray(shown.astype(bool)), kind), shown[..., None].repeat(3, 2))

    return make


def fits(rng: np.random.Generator) -> Odd:
    """Makes a FITS file, whose first row is at the bottom. With 16 and 32 bits it has no defined range."""
    bits = int(rng.choice([8, 16, 32, -32]))
    share = np.round(255 * rng.uniform(0, 1, (6, 9))) / 255
    stored = (share * (255 if bits == 8 else 1 if bits < 0 else 1000)).astype(
        {8: "u1", 16: ">i2", 32: ">i4", -32: ">f4"}[bits]
    )
    cards = {"SIMPLE": "T", "BITPIX": bits, "NAXIS": 2, "NAXIS1": 9, "NAXIS2": 6}
    head = "".join(f"{name:8}= {value:>20}".ljust(80) for name, value in cards.items()) + "END".ljust(80)
    data = head.ljust(2880).encode() + stored[::-1].tobytes().ljust(2880, b"\0")
    return Odd(data, share[..., None].repeat(3, 2) if bits in (8, -32) else None)


def spider(rng: np.random.Generator) -> Odd:
    """Makes a SPIDER file of floats."""
    share = rng.uniform(0, 1, (6, 9)).astype(np.float32)
    return Odd(written(Image.fromarray(share), "SPIDER"), share[..., None].repeat(3, 2))


BEST: dict[str, Any] = {"quality": 100, "subsampling": 0}
FULL: dict[str, Any] = {"quality": 100, "subsampling": "4:4:4"}
MAKERS: dict[str, tuple[Maker, ...]] = {
    "PNG": (
        by_pillow("PNG", turns=True), coloured("PNG", 4), clear("PNG"), clear("PNG", mode="LA"), grey_png,
        palette("PNG"),
    ),
    "JPEG": (by_pillow("JPEG", 4, True, **BEST), coloured("JPEG", 9, **BEST), cmyk("JPEG", 5, **BEST), xmp_jpeg),
    "TIFF": (
        rgb_tiff, deep_tiff, wild_floats, by_pillow("TIFF", compression="tiff_lzw"), coloured("TIFF", 4),
        clear("TIFF", compression="tiff_deflate"), cmyk("TIFF", 2), by_pillow("TIFF", compression="packbits"),
    ),
    "WebP": (
        by_pillow("WEBP", 1, True, lossless=True), coloured("WEBP", 4, lossless=True),
        clear("WEBP", 2, lossless=True, exact=True),
    ),
    "AVIF": (by_pillow("AVIF", 6, True, **FULL), clear("AVIF", 6, **FULL)),
    "JPEG 2000": (by_pillow("JPEG2000"), clear("JPEG2000")),
    "GIF": (palette("GIF"),),
    "PNM and PFM": (any_pnm,),
    "BMP": (by_pillow("BMP"), palette("BMP", clear=False), one_bit("BMP"), by_pillow("DIB")),
    "TGA": (by_pillow("TGA"), clear("TGA"), by_pillow("TGA", compression="tga_rle")),
    "ICO": (icon,),
    "PCX": (by_pillow("PCX"), one_bit("PCX")),
    "SGI": (by_pillow("SGI"),),
    "DDS": (by_pillow("DDS"), clear("DDS")),
    "QOI": (by_pillow("QOI"), clear("QOI")),
    "IM": (by_pillow("IM"),),
    "FITS, SPIDER": (fits, spider),
    "XBM, MSP": (one_bit("XBM"), one_bit("MSP")),
}  # fmt: skip
Image.init()
for _name in {"AVIF", "QOI", "IM"} - set(Image.SAVE):  # some versions of Pillow cannot write these
    del MAKERS[_name]
