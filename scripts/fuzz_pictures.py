"""Reads odd and damaged pictures, and counts what happens.

    python scripts/fuzz_pictures.py --count 1000

Half of the files are odd but undamaged: their depth, profile, alpha, orientation and tags vary. The picture that they
show is known, because they were made from it. The other half are such files with damage. If a damaged file can still be
read, the result is compared with a second reading of the file, which finds the orientation by its own search of the
bytes and lets Pillow turn the picture and blend its alpha.
"""

import io
import re
import signal
import struct
import tempfile
import time
import warnings
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro
from odd_pictures import MAKERS, Odd
from PIL import Image, ImageCms

from jdiff import images

# Seconds that it may take to read a picture.
LONGEST = 10
# Largest difference, out of 255, between the two readings of a damaged picture, which round differently.
CLOSE = 3.5
# First bytes of EXIF data -> (byte order, entry of the orientation); and the orientation in XMP.
ENTRIES: dict[bytes, tuple[Literal["little", "big"], re.Pattern[bytes]]] = {
    b"II*\0\x08\0\0\0": ("little", re.compile(rb"\x12\x01\x03\0\x01\0\0\0(.)\0", re.DOTALL)),
    b"MM\0*\0\0\0\x08": ("big", re.compile(rb"\x01\x12\0\x03\0\0\0\x01\0(.)", re.DOTALL)),
}
XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
# How a picture is turned for each orientation.
T = Image.Transpose
METHODS = {
    2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_270, 7: T.TRANSVERSE,
    8: T.ROTATE_90,
}  # fmt: skip
OUTCOMES = ("right", "refused", "no reference", "wrong", "raised", "slow")
BAD = ("wrong", "raised", "slow")


class Late(BaseException):
    """Reading took too long. This is not an Exception, so that no code handles it as a decoder's error."""


class Seen(NamedTuple):
    """The result of reading a file."""

    outcome: str  # one of OUTCOMES
    said: str = ""  # error message
    seconds: float = 0.0


class Found(NamedTuple):
    """The results of all files of one format."""

    whole: Counter[str]  # how often each of OUTCOMES happened for undamaged files
    damaged: Counter[str]  # the same for damaged files
    bad: list[str]  # messages of the bad ones
    slowest: float  # seconds of the slowest reading


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Damages a file in one of seven ways, drawn at random."""
    out, n = bytearray(data), len(data)
    # headers and tags stand at the start
    at, size = int(rng.integers(n if rng.integers(2) else min(n, 200))), int(rng.integers(1, 33))
    kind = rng.integers(7)
    if kind == 0:
        out[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        out[at] = int(rng.integers(256))
    elif kind == 2:
        for i in rng.integers(n, size=int(rng.integers(2, 9))):
            out[i] = int(rng.integers(256))
    elif kind == 3:
        del out[at:]
    elif kind == 4:
        del out[at : at + size]
    elif kind == 5:
        out[at:at] = out[at : at + size]
    else:
        out[at : at + size] = bytes([int(rng.choice([0, 255]))]) * len(out[at : at + size])
    return checked(bytes(out)) if rng.integers(2) else bytes(out)


def checked(data: bytes) -> bytes:
    """Corrects the checksums of a PNG, so that they do not reveal damage in its chunks. Other files do not change."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    made, at = data[:8], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + size]
        if at + 12 + size > len(data):
            break
        made += data[at : at + 4] + body + struct.pack(">L", zlib.crc32(body))
        at += 12 + size
    return made + data[at:]


def orientation(info: dict) -> int | None:
    """Finds the orientation by a search of the bytes. Returns None if the head of the EXIF data is damaged."""
    exif = (info.get("exif") or b"").removeprefix(b"Exif\0\0")
    if exif and exif[:8] not in ENTRIES:
        return None
    if exif:
        order, mark = ENTRIES[exif[:8]]
        count = int.from_bytes(exif[8:10], order)
        for found in mark.finditer(exif):
            place, rest = divmod(found.start() - 10, 12)
            if place < count and rest == 0 and found[1][0] in range(1, 9):
                return found[1][0]
    told = XMP.search(info.get("xmp") or b"")
    return int(told[1]) if told else 1


def reference(data: bytes) -> np.ndarray | None:
    """Reads a file by Pillow's own tools: [h w 3] in [0, 1], or None if they cannot read it."""
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            profile, tags, kind = image.info.get("icc_profile"), dict(getattr(image, "tag_v2", {})), image.format
            if kind == "PNG" and "transparency" in image.info and image.mode in ("1", "L", "RGB"):
                return None  # Pillow compares a colour of one depth with pixels of another
            told = 1 if kind == "TIFF" else orientation(image.info)  # a TIFF is turned while it is read
            if told is None:
                return None
            image = image.transpose(METHODS[told]) if told in METHODS else image
        if image.mode[0] in "IF":
            values = np.asarray(image, np.float64)
            bits = int(np.max(tags.get(258, 16)))
            values = values % 2**32 if image.mode == "I" else values
            most = 1 if image.mode == "F" else 2**bits - 1 if kind == "TIFF" else 65535
            grey = values / most if tags.get(262) != 0 else 1 - values / most
            return None if profile or "transparency" in image.info else grey[..., None].repeat(3, 2)
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        if profile and (image.mode in ("P", "PA", "1", "LA", "RGBA") or image.mode == "CMYK"):
            return None
        if profile and image.mode == "RGB" and profile[16:20] == b"GRAY":
            return None  # formats without grey pictures: the library then checks the pixels
        rgb = image.convert("RGBA").convert("RGB") if alpha else image.convert("RGB")
        if profile:
            with suppress(Exception):  # a broken profile is ignored
                source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
                transform = ImageCms.buildTransform(
                    source, ImageCms.createProfile("sRGB"), image.mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC,
                    ImageCms.Flags.BLACKPOINTCOMPENSATION,
                )  # fmt: skip
                rgb = ImageCms.applyTransform(image, transform) or rgb
        page = Image.new("RGB", rgb.size, "white")
        page.paste(rgb, mask=alpha)
        return np.asarray(page, np.float64) / 255
    return None


def outcome(path: Path, odd: Odd, whole: bool) -> Seen:
    """Writes a file, reads it by the library, and compares the picture."""
    path.write_bytes(odd.data)
    want = odd.shown if whole else reference(odd.data)
    began = time.monotonic()
    found = read(path)
    seconds = time.monotonic() - began
    if isinstance(found, np.ndarray):
        found = compared(found, want, whole, odd.error if whole else CLOSE)
    elif found.outcome == "refused" and whole and want is not None:
        found = Seen("wrong", found.said)
    return found._replace(seconds=seconds)


def read(path: Path) -> np.ndarray | Seen:
    """Reads a file by the library: [h w 3] in [0, 1], or the result if that fails."""

    def late(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error")
            warnings.filterwarnings("ignore", ".*ICC profile cannot be used")
            return (images.load(path) + 1) / 2
    except ValueError as error:
        line = str(error)
        return Seen("refused" if str(path) in line and "\n" not in line else "raised", line)
    except Late:
        return Seen("slow")
    except BaseException as error:  # any other exception is a failure
        return Seen("raised", f"{type(error).__name__}: {error}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def compared(found: np.ndarray, want: np.ndarray | None, whole: bool, most: float) -> Seen:
    """Compares two pictures; `most` is the largest difference that is allowed, out of 255."""
    if found.ndim != 3 or found.shape[2] != 3 or not ((found >= 0) & (found <= 1)).all():  # NaN too
        return Seen("wrong", f"{found.shape}, {found.min()} to {found.max()}")
    if want is None:
        return Seen("wrong", "read, though it must be refused") if whole else Seen("no reference")
    if found.shape != want.shape:
        return Seen("wrong", f"{found.shape}, wanted {want.shape}")
    error = 255 * float(np.abs(found - want).max())
    return Seen("right") if error <= most else Seen("wrong", f"differs by {error:.1f} of 255, allowed is {most}")


def fuzz(name: str, count: int, seed: int, folder: Path) -> Found:
    """Reads `count` files of one format, half of them damaged. Files with a bad result are kept in the folder."""
    rng = np.random.default_rng([seed, *name.encode()])
    whole_seen, damaged_seen, bad, slowest = Counter(), Counter(), [], 0.0
    for i in range(count):
        whole, maker = i % 2 == 0, MAKERS[name][i // 2 % len(MAKERS[name])]
        odd = maker(rng)
        if not whole:
            odd = odd._replace(data=damaged(odd.data, rng))
        result = outcome(folder / "picture", odd, whole)
        (whole_seen if whole else damaged_seen)[result.outcome] += 1
        slowest = max(slowest, result.seconds)
        if result.outcome in BAD:
            bad.append(f"{name} {i}, {'whole' if whole else 'damaged'}: {result.outcome}: {result.said}")
            (folder / f"bad-{name}-{i}").write_bytes(odd.data)
    return Found(whole_seen, damaged_seen, bad, slowest)


def main(count: int = 1000, seed: int = 0, keep: Path | None = None) -> None:
    """Reads odd and damaged pictures of every format and prints a table. The status is 1 if a result is bad.

    Args:
        count: number of files, over all formats.
        seed: of everything random.
        keep: folder for the files with a bad result.
    """
    print("| format | whole | right | refused | damaged | right | refused | no reference | bad | slowest, s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    said, total, slowest = [], Counter(), 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        for k, name in enumerate(MAKERS):
            # the first formats get the remainder
            found = fuzz(name, count // len(MAKERS) + (k < count % len(MAKERS)), seed, folder)
            row = [found.whole.total(), found.whole["right"], found.whole["refused"], found.damaged.total()]
            row += [found.damaged[kind] for kind in ("right", "refused", "no reference")] + [len(found.bad)]
            total.update(dict(enumerate(row)))
            slowest = max(slowest, found.slowest)
            print(f"| {name} | {' | '.join(map(str, row))} | {found.slowest:.1f} |", flush=True)
            said += found.bad
    print(f"| all | {' | '.join(str(total[i]) for i in range(8))} | {slowest:.1f} |")
    for line in said:
        print(line)
    if said:
        raise SystemExit(1)


if __name__ == "__main__":
    tyro.cli(main)
