"""Writers of odd but valid picture files. They share no code with the library's readers; see odd_pictures.py."""

import io
import struct
import warnings
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

# The columns are red, green and blue of sRGB, Display P3 and Adobe RGB in XYZ, adapted to D50.
SRGB = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
P3 = np.array(
    [[0.5151187, 0.2919778, 0.1571035], [0.2411892, 0.6922441, 0.0665668], [-0.0010505, 0.0418791, 0.7840713]]
)
ADOBE = np.array(
    [[0.6097559, 0.2052401, 0.1492240], [0.3111242, 0.6256560, 0.0632197], [0.0194811, 0.0608902, 0.7448387]]
)
PROFILES = {"P3": (P3, 2.2), "Adobe": (ADOBE, 2.19921875), "grey": (None, 1.8)}
# EXIF tags that have no effect on the picture; the last one has no meaning.
OTHER_TAGS = (270, 271, 282, 283, 296, 305, 306, 315, 700, 33432, 34665, 34853, 36867, 37510, 40965, 51111)


class Tag(NamedTuple):
    """An entry of a TIFF directory."""

    tag: int
    kind: int  # 3: 16 bits, 4: 32 bits, ...
    count: int
    value: bytes  # four bytes: the value, or its offset in the file


class Scene(NamedTuple):
    """A picture of a few different colours, which a palette can hold exactly."""

    colour: np.ndarray  # [h w 3] uint8
    alpha: np.ndarray  # [h w] uint8


def scene(rng: np.random.Generator) -> Scene:
    """Draws blocks of colours. The picture is not square, so every turn of it is noticed."""
    h, w = (int(n) for n in rng.integers(3, 6, 2))
    colour = rng.integers(40, 216, (h, w + 1, 3)).astype(np.uint8)
    alpha = rng.choice([0, 128, 255], (h, w + 1)).astype(np.uint8)
    return Scene(*(a.repeat(8, 0).repeat(8, 1) for a in (colour, alpha)))


def over_white(colour: np.ndarray, alpha: np.ndarray | None = None) -> np.ndarray:
    """Returns an 8-bit picture over a white background: [h w 3] in [0, 1]."""
    colour, share = colour / 255, 1.0 if alpha is None else alpha[..., None] / 255
    return colour * share + 1 - share


def turned(shown: np.ndarray, orientation: int) -> np.ndarray:
    """Returns the picture of stored pixels with an orientation, by the table of the EXIF standard."""
    if orientation in (5, 6, 7, 8):
        shown = shown.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return shown[::rows, ::columns]


def odd_tags(rng: np.random.Generator, most: int = 3) -> list[Tag]:
    """Draws up to `most` tags that have no effect on the picture, with any type and count, valid or not."""
    names = rng.choice(OTHER_TAGS, rng.integers(most + 1), replace=False)
    return [
        Tag(int(name), int(rng.integers(0, 14)), int(rng.choice([0, 1, 2, 9, 70000])), rng.bytes(4)) for name in names
    ]


def exif(tags: list[Tag], orientation: int, order: str = "<") -> bytes:
    """Returns EXIF data with an orientation and these tags."""
    return folder(order, [Tag(274, 3, 1, struct.pack(f"{order}HH", orientation, 0)), *tags])


def folder(order: str, tags: list[Tag], after: bytes = b"") -> bytes:
    """Returns a TIFF with one directory of these tags, followed by `after`."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, 8)
    packed = b"".join(struct.pack(f"{order}HHL", *tag[:3]) + tag.value for tag in sorted(tags))
    return head + struct.pack(f"{order}H", len(tags)) + packed + bytes(4) + after


def tiff(
    tags: list[Tag], pixels: np.ndarray, how: int = 1, sample: int = 1, orientation: int = 1, order: str = "<"
) -> bytes:
    """Returns an uncompressed TIFF.

    Args:
        tags: more tags.
        pixels: [h w] or [h w 3] of any dtype.
        how: photometric interpretation: 0 is white at zero, 1 is black at zero, 2 is RGB.
        sample: sample format: 1 is unsigned, 2 is signed, 3 is float.
        orientation: 1 to 8.
        order: byte order, as in `struct`.
    """
    h, w, *channels = pixels.shape
    n = channels[0] if channels else 1
    bits, raw = 8 * pixels.itemsize, pixels.astype(np.dtype(f"{order}{pixels.dtype.str[1:]}")).tobytes()
    shorts = {256: w, 257: h, 259: 1, 262: how, 274: orientation, 277: n, 278: h}
    shorts |= {258: bits, 339: sample} if n == 1 else {}
    longs = {279: len(raw), 273: 0} | ({258: 0} if n > 1 else {})
    start = 8 + 2 + 12 * (len(tags) + len(shorts) + len(longs)) + 4  # offset of the data behind the directory
    depths = struct.pack(f"{order}{n}H", *[bits] * n) if n > 1 else b""
    longs |= {273: start + len(depths)} | ({258: start} if n > 1 else {})
    own = [Tag(tag, 3, 1, struct.pack(f"{order}HH", value, 0)) for tag, value in shorts.items()]
    own += [Tag(tag, 4, 1, struct.pack(f"{order}L", value)) for tag, value in longs.items()]
    own = [tag._replace(kind=3, count=n) if tag.tag == 258 else tag for tag in own]
    return folder(order, [*own, *tags], depths + raw)


def png(pixels: np.ndarray, bits: int, kind: int, chunks: dict[bytes, bytes] | None = None) -> bytes:
    """Returns a PNG.

    Args:
        pixels: [h w] or [h w c], unsigned.
        bits: 1 to 16 for each channel.
        kind: PNG's colour type: 0 is grey, 2 is RGB, 4 and 6 are the same with alpha.
        chunks: more chunks.
    """
    rows = pixels.reshape(len(pixels), -1)
    if bits == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        digits = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = [np.packbits(row.reshape(-1)).tobytes() for row in digits.astype(np.uint8)]
    made = b"\x89PNG\r\n\x1a\n"
    head = struct.pack(">LLBBBBB", pixels.shape[1], pixels.shape[0], bits, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in packed))
    for name, data in {b"IHDR": head, **(chunks or {}), b"IDAT": body, b"IEND": b""}.items():
        made += struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))
    return made


def profile(name: str) -> bytes:
    """Returns an ICC profile of version 2, with a gamma and three primaries or grey."""
    matrix, gamma = PROFILES[name]
    xyz = lambda values: b"XYZ \0\0\0\0" + struct.pack(">3l", *(round(65536 * v) for v in values))
    curve = b"curv\0\0\0\0" + struct.pack(">LH", 1, round(256 * gamma)) + bytes(2)
    text = b"desc\0\0\0\0" + struct.pack(">L", 5) + b"test\0" + bytes(78 + 1)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0free\0\0\0\0", b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    if matrix is None:
        tags[b"kTRC"] = curve
    else:
        tags |= {b"rXYZ": xyz(matrix[:, 0]), b"gXYZ": xyz(matrix[:, 1]), b"bXYZ": xyz(matrix[:, 2])}
        tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += tag + struct.pack(">LL", at + len(body), len(data))
        body += data
    space = b"GRAY" if matrix is None else b"RGB "
    head = (
        struct.pack(">L4sL4s4s4s", at + len(body), bytes(4), 0x02100000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp"
    )
    head += bytes(28) + struct.pack(">3l", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">L", len(tags)) + table + body


def in_profile(colour: np.ndarray, name: str) -> np.ndarray:
    """Converts an sRGB picture [h w 3] uint8 to the colours of a profile, as a file with this profile stores it."""
    matrix, gamma = PROFILES[name]
    shares = colour / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    linear = linear if matrix is None else linear @ (np.linalg.inv(matrix) @ SRGB).T
    return np.round(255 * linear.clip(0, 1) ** (1 / gamma)).astype(np.uint8)


def written(image: Image.Image, kind: str, **how: Any) -> bytes:
    """Returns the file that Pillow writes of a picture."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # for formats that Pillow will drop
        image.save(file, kind, **how)
    return file.getvalue()
