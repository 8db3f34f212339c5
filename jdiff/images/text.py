"""Labels of a sheet: a font that has their letters, lines that fit, and numbers where no font has them.

The fonts are Pillow's own, a part of DejaVu Sans that ships with jdiff, and those of the system with wide coverage.
"""

import functools
import math
import os
import sys
import unicodedata
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# Letters of labels, in RGB.
INK = (40, 40, 40)
# Pixels of the smallest font; below, letters run into each other.
SMALLEST = 11
# Height of a line, in font sizes.
LEADING = 1.3
# Letters of a word that are measured, for each pixel of the width. No letter is narrower than a third of a pixel.
LETTERS = 3
# The part of DejaVu Sans that ships; see scripts/prepare_label_font.py.
CARRIED = Path(__file__).with_name("fonts") / "labels.ttf"
# Names of fonts with wide coverage, looked for in this order; the first that has all letters of a label is used.
WIDE = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "NotoSansHebrew-Regular.ttf",
    "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "unifont.otf", "unifont.ttf",
    "DroidSansFallbackFull.ttf", "wqy-microhei.ttc", "Arial Unicode.ttf", "arialuni.ttf", "msgothic.ttc", "arial.ttf",
)  # fmt: skip
# Most folders of the system's fonts that are looked at.
FOLDERS = 2000


class Text:
    """Labels wrapped to a width, in the largest font that keeps each of them within width and height."""

    def __init__(self, labels: Sequence[str], size: int, *, width: int, height: int):
        self.labels = tuple(labels)
        self.font_size, self.blocks = _fitted(self.labels, size, width, height)
        self.line = math.ceil(LEADING * self.font_size)
        self.height = self.line * max((len(lines) for _, lines in self.blocks), default=0)
        lengths = [_length(font, line) for font, lines in self.blocks for line in lines]
        self.width = math.ceil(max(lengths, default=0))

    def draw(self, draw: ImageDraw.ImageDraw, i: int, x: int, y: int, anchor: str) -> None:
        """Draws label i at (x, y); the anchor's letters are Pillow's (l, m, r across; a, m, d: top, middle, bottom)."""
        if i >= len(self.blocks):
            return
        font, lines = self.blocks[i]
        y -= {"a": 0, "m": len(lines) * self.line // 2, "d": len(lines) * self.line}[anchor[1]]
        for k, line in enumerate(lines):
            draw.text((x, y + (k + 0.5) * self.line), line, INK, font, anchor=anchor[0] + "m")


@functools.lru_cache(64)
def _fitted(
    labels: tuple[str, ...], size: int, width: int, height: int
) -> tuple[int, tuple[tuple[Font, tuple[str, ...]], ...]]:
    """(pixels of the font, (font, lines) of each label). Kept, since every frame of an animation asks again."""
    shown = [_drawable(label, i, len(labels)) for i, label in enumerate(labels)]
    pixels, blocks = size, []
    for pixels in range(max(size, SMALLEST), SMALLEST - 1, -1):
        most = max(1, height // math.ceil(LEADING * pixels))
        fonts = [_font(name, pixels) for name, _ in shown]
        blocks = [(font, _wrap(label, font, width, most + 1)) for font, (_, label) in zip(fonts, shown, strict=True)]
        if all(len(lines) <= most for _, lines in blocks):
            break
    most = max(1, height // math.ceil(LEADING * pixels))
    return pixels, tuple((font, tuple(_cut(lines, most, font, width))) for font, lines in blocks)


def _drawable(label: str, i: int, count: int) -> tuple[str, str]:
    """(a font's file, "" for Pillow's own; the label as it can be drawn in it).

    Where no font has all its letters, a label gets its number, so that it can be told from the others.
    """
    composed = " ".join(unicodedata.normalize("NFC", label[: 2**16]).split())
    fonts = ["", *_wide_fonts()]
    if not _is_complex(composed) or features.check("raqm"):
        for name in fonts:
            if not _missing(name, composed):
                return name, composed
    plain = "".join(c for c in unicodedata.normalize("NFKD", composed) if not unicodedata.combining(c))
    name = min(fonts, key=lambda name: len(_missing(name, plain)))
    missing = _missing(name, plain) | ({c for c in plain if _is_complex(c)} if not features.check("raqm") else set())
    if not missing:
        return name, plain
    letters = "".join(sorted(missing))
    warnings.warn(
        f"no font has {letters[:16]!r} of the label {composed[:40]!r}, which is shown by its number; "
        "install a font with these letters, such as Noto Sans",
        stacklevel=2,
    )
    number = f"no. {i + 1}" if count > 1 else "(no font has these letters)"
    rest = " ".join("".join(" " if c in missing else c for c in plain).split())
    return name, f"{number}: {rest}" if any(c.isalnum() for c in rest) else number


def _is_complex(text: str) -> bool:
    """Whether letters are joined, reordered or written from right to left, which needs Pillow's raqm."""
    return any(unicodedata.bidirectional(c) in ("R", "AL") or "\u0900" <= c <= "\u0dff" for c in text)


@functools.lru_cache(256)
def _missing(name: str, text: str) -> frozenset[str]:
    """Characters of `text` that a font has no letter for."""
    try:
        font = _font(name, 16)
    except OSError:
        return frozenset(text) | {"\uffff"}
    return frozenset(c for c in set(text) if not c.isspace() and not _has(font, name, c))


@functools.lru_cache(4096)
def _has(font: Font, name: str, character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Cs", "Cn", "Co"):
        return False
    if unicodedata.combining(character) or unicodedata.category(character) == "Cf":
        return True  # drawn on the letter before, or not at all
    return _shape(font, character) != _blank(font, name)


@functools.lru_cache(64)
def _blank(font: Font, name: str) -> tuple[tuple[int, int], bytes]:
    """What a font draws where it has no letter."""
    del name
    return _shape(font, "\uffff")


def _shape(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character, "L")
    return mask.size, bytes(Image.Image()._new(mask).tobytes()) if 0 not in mask.size else b""


@functools.lru_cache(64)
def _font(name: str, pixels: int) -> Font:
    return ImageFont.truetype(name, pixels) if name else ImageFont.load_default(pixels)


@functools.lru_cache(1)
def _wide_fonts() -> tuple[str, ...]:
    """Files of fonts with wide coverage: the one that ships, those of the system, and matplotlib's."""
    folders = ["/usr/share/fonts", "/usr/local/share/fonts", "/System/Library/Fonts", "/Library/Fonts"]
    folders += [os.path.expanduser(f"~/{name}") for name in (".fonts", ".local/share/fonts", "Library/Fonts")]
    if sys.platform == "win32":
        folders.append(os.path.join(os.environ.get("WINDIR", "C:\\Windows"), "Fonts"))
    found: dict[str, str] = {}
    seen = 0
    for folder in folders:
        for place, _, names in os.walk(folder):
            seen += 1
            if seen > FOLDERS:
                break
            for name in names:
                found.setdefault(name, os.path.join(place, name))
    spec = find_spec("matplotlib")
    if spec is not None and spec.origin:
        own = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if own.is_file():
            found.setdefault(own.name, str(own))
    carried = [str(CARRIED)] if CARRIED.is_file() else []
    return (*carried, *(found[name] for name in WIDE if name in found))


def _length(font: Font, text: str) -> float:
    return font.getlength(text)


def _wrap(label: str, font: Font, width: int, most: int) -> list[str]:
    """`label` in lines of at most `width` pixels, no more than `most` of them, in time linear in their length.

    Lines are broken at spaces, and within words that are too long alone.
    """
    lines: list[str] = []
    line = ""
    for word in label.split():
        if line and _fits(f"{line} {word}", font, width):
            line = f"{line} {word}"
            continue
        if line:
            lines.append(line)
        while len(lines) <= most and len(word) > 1 and not _fits(word, font, width):
            first = _prefix(word, font, width)
            lines.append(word[:first])
            word = word[first:]
        line = word[: LETTERS * width + 1]
        if len(lines) > most:
            break
    return [*lines, line][: max(most, 1)]


def _fits(text: str, font: Font, width: int) -> bool:
    return len(text) <= LETTERS * width and _length(font, text) <= width


def _prefix(word: str, font: Font, width: int) -> int:
    """How many letters of a word fit, at least one: by halving."""
    low, high = 1, min(len(word), LETTERS * width)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _length(font, word[:middle]) <= width else (low, middle - 1)
    return low


def _cut(lines: list[str], most: int, font: Font, width: int) -> list[str]:
    """At most `most` of the lines; where some are left out, the last one says so."""
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and not _fits(last + " ...", font, width):
        last = last[:-1]
    return [*lines[: most - 1], last + " ..."]
