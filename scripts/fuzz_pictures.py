"""Reads odd and damaged pictures, and counts what happens.

    python scripts/fuzz_pictures.py --count 1000

Half of the files are odd but whole: their depth, profile, alpha, orientation and tags vary. What they show is known,
since it was there before the file. The other half are such files with a damage. A damaged file that can still be read
is compared with another reading: its orientation is found by its bytes, and Pillow turns it and blends its alpha.
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

# Seconds that reading a picture may take.
LONGEST = 10
# Largest difference, of 255, between a damaged picture and Pillow's reading of it, where both round.
CLOSE = 3.5
# Heads of EXIF data, its order of bytes, and how an entry of the orientation looks; and how XMP tells it.
ENTRIES: dict[bytes, tuple[Literal["little", "big"], re.Pattern[bytes]]] = {
    b"II*\0\x08\0\0\0": ("little", re.compile(rb"\x12\x01\x03\0\x01\0\0\0(.)\0", re.DOTALL)),
    b"MM\0*\0\0\0\x08": ("big", re.compile(rb"\x01\x12\0\x03\0\0\0\x01\0(.)", re.DOTALL)),
}
XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
# What each orientation asks for.
T = Image.Transpose
METHODS = {
    2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_270, 7: T.TRANSVERSE,
    8: T.ROTATE_90,
}  # fmt: skip
OUTCOMES = ("right", "refused", "no reference", "wrong", "raised", "slow")
BAD = ("wrong", "raised", "slow")


class Late(BaseException):
    """Reading took too long. No Exception, so that nothing takes it for one of a decoder."""


class Seen(NamedTuple):
    """What became of a file."""

    outcome: str  # one of OUTCOMES
    said: str = ""


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Returns a file with one damage of a kind drawn at random."""
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
    """Returns a PNG whose chunks have the right checksums, so that a damage gets past them; other files as they are."""
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
    """Returns the orientation, found by the bytes of its entry; None where the head of the EXIF data is damaged."""
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
    """Returns what Pillow's own tools make of a file, [h w 3] in [0, 1]; None where they cannot."""
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
            return None  # of a format without grey, where the library looks whether the pixels are
        rgb = image.convert("RGBA").convert("RGB") if alpha else image.convert("RGB")
        if profile:
            with suppress(Exception):  # a broken profile is left out
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
    """Writes a file, reads it by the library, and compares."""
    path.write_bytes(odd.data)
    want = odd.shown if whole else reference(odd.data)

    def late(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error")
            warnings.filterwarnings("ignore", ".*ICC profile cannot be used")
            found = (images.load(path) + 1) / 2
    except ValueError as error:
        line = str(error)
        if str(path) not in line or "\n" in line:
            return Seen("raised", line)
        return Seen("wrong" if whole and want is not None else "refused", line)
    except Late:
        return Seen("slow")
    except BaseException as error:  # whatever it is, it is what is looked for
        return Seen("raised", f"{type(error).__name__}: {error}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if not (
        found.ndim == 3 and found.shape[2] == 3 and np.isfinite(found).all() and 0 <= found.min() <= found.max() <= 1
    ):
        return Seen("wrong", f"{found.shape}, {found.min()} to {found.max()}")
    if want is None:
        return Seen("wrong", "it should be refused") if whole else Seen("no reference")
    if found.shape != want.shape:
        return Seen("wrong", f"{found.shape}, wanted {want.shape}")
    error = 255 * float(np.abs(found - want).max())
    most = odd.error if whole else CLOSE
    return Seen("right") if error <= most else Seen("wrong", f"differs by {error:.1f} of 255, allowed is {most}")


def fuzz(name: str, count: int, seed: int, folder: Path) -> tuple[dict[bool, Counter[str]], list[str]]:
    """Reads `count` files of one format, one half of them damaged.

    Returns:
        (how often each of OUTCOMES happened, of whole files under True and of damaged ones under False; what was said
        where that was bad).
    """
    rng = np.random.default_rng([seed, *name.encode()])
    seen: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    said = []
    for i in range(count):
        whole, maker = i % 2 == 0, MAKERS[name][i // 2 % len(MAKERS[name])]
        odd = maker(rng)
        if not whole:
            odd = odd._replace(data=damaged(odd.data, rng))
        result = outcome(folder / "picture", odd, whole)
        seen[whole][result.outcome] += 1
        if result.outcome in BAD:
            said.append(f"{name} {i}, {'whole' if whole else 'damaged'}: {result.outcome}: {result.said}")
            (folder / f"bad-{name}-{i}").write_bytes(odd.data)
    return seen, said


def main(count: int = 1000, seed: int = 0, keep: Path | None = None) -> None:
    """Reads odd and damaged pictures of every format, and prints a table; exits with 1 if any is bad.

    Args:
        count: files in all, shared between the formats.
        seed: of the files.
        keep: a folder for the files that are bad.
    """
    print("| format | whole | right | refused | damaged | right | refused | no reference | bad | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    said, total = [], Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        for k, name in enumerate(MAKERS):
            began = time.monotonic()
            # every format has its share; the first ones what is left over
            share = count // len(MAKERS) + (k < count % len(MAKERS))
            seen, bad = fuzz(name, share, seed, folder)
            row = [seen[True].total(), seen[True]["right"], seen[True]["refused"], seen[False].total()]
            row += [seen[False][kind] for kind in ("right", "refused", "no reference")] + [len(bad)]
            total.update(dict(enumerate(row)))
            print(f"| {name} | {' | '.join(map(str, row))} | {time.monotonic() - began:.0f} |", flush=True)
            said += bad
    print(f"| all | {' | '.join(str(total[i]) for i in range(8))} | |")
    for line in said:
        print(line)
    if said:
        raise SystemExit(1)


if __name__ == "__main__":
    tyro.cli(main)
