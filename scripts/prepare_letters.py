"""Draws the letters and digits of every typeface in a folder, as training data of the letters model.

    python scripts/prepare_letters.py /usr/share/fonts --out data/glyphs

It writes glyphs.npz (`glyphs` [typefaces 62 64 64] uint8 with bright ink, in the order A-Z a-z 0-9) and fonts.jsonl,
which describes each typeface in a row. Needs fontTools, from the extra `prepare-letters`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from fontTools.ttLib import TTCollection, TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from jdiff import images
from jdiff.letters.captions import CHARACTERS

SIDE, CAPITAL = 256, 160  # pixels of the square in which a character is drawn, and of a capital H's height in it
REDUCE = 4  # factor by which the square is reduced, to 64 x 64
SUFFIXES = (".ttf", ".otf", ".ttc")
FOOT = 1.4  # a capital I has serifs if its ends are wider than its middle by this factor
COPYRIGHT, LICENCE, LICENCE_URL = 0, 13, 14  # numbers in the name table
ITALIC_BIT, OBLIQUE_BIT = 1, 1 << 9  # in fsSelection of the OS/2 table
STRAIGHT = 2.0  # degrees of slant up to which a typeface counts as upright


class Unusable(ValueError):
    """A typeface cannot be drawn."""


def faces(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yields (file, index in the file) of every typeface below a folder, in the order of their paths."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        count = 1
        if path.suffix.lower() == ".ttc":
            try:
                with path.open("rb") as file:
                    count = len(TTCollection(file).fonts)
            except (TTLibError, OSError):
                pass  # `known` reports what is wrong
        yield from ((path, index) for index in range(count))


def known(path: Path, index: int) -> dict[str, Any]:
    """Reads a typeface's names, weight, slant and licence from its file.

    Raises:
        Unusable: the file cannot be read, or a character is missing.
    """
    try:
        with path.open("rb") as file, TTFont(file, fontNumber=index) as font:
            cmap = font.getBestCmap() or {}
            if missing := [character for character in CHARACTERS if ord(character) not in cmap]:
                raise Unusable(f"it has no {missing[0]!r}")
            names, advances = font["name"], font["hmtx"]
            os2: Any = font.get("OS/2")  # fontTools' tables have no typed fields
            post: Any = font.get("post")
            widths = {advances[cmap[ord(character)]][0] for character in CHARACTERS}
            slanted = bool(os2 and os2.fsSelection & (ITALIC_BIT | OBLIQUE_BIT))
            return {
                "font": names.getDebugName(4) or path.stem,
                "family": names.getDebugName(16) or names.getDebugName(1) or path.stem,
                "weight": os2.usWeightClass if os2 else 400,
                "italic": slanted or bool(post and abs(post.italicAngle) > STRAIGHT),
                "mono": len(widths) == 1,
                "licence": names.getDebugName(LICENCE_URL) or names.getDebugName(LICENCE) or "",
                "copyright": names.getDebugName(COPYRIGHT) or "",
                "package": path.parent.name,
            }
    except (TTLibError, OSError, KeyError, AttributeError) as error:
        raise Unusable(f"it cannot be read: {error}") from None


def drawn(path: Path, index: int = 0) -> np.ndarray:
    """Draws the 62 characters of a typeface, each centred by its bounding box.

    Args:
        path: font file.
        index: of the typeface in the file.

    Returns:
        [62 64 64] uint8 with bright ink.

    Raises:
        Unusable: a character is empty, or larger than the square.
    """
    try:
        top, bottom = (ImageFont.truetype(path, SIDE, index).getbbox("H", anchor="ls")[i] for i in (1, 3))
        if bottom <= top:
            raise Unusable("its 'H' is empty")
        font = ImageFont.truetype(path, SIDE * CAPITAL / (bottom - top), index)
        return np.stack([_character(font, character) for character in CHARACTERS])
    except OSError as error:
        raise Unusable(f"it cannot be drawn: {error}") from None


def _character(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    left, top, right, bottom = font.getbbox(character, anchor="ls")  # its right side includes the advance
    if font.getmask(character).getbbox() is None:
        raise Unusable(f"its {character!r} is empty")
    if right - left > SIDE or bottom - top > SIDE:
        raise Unusable(f"its {character!r} is larger than {SIDE / CAPITAL:.1f} times the height of a capital")
    square = Image.new("L", (SIDE, SIDE))
    place = (SIDE - (right - left)) // 2 - left, (SIDE - (bottom - top)) // 2 - top
    ImageDraw.Draw(square).text(place, character, 255, font, anchor="ls")
    return np.asarray(square.reduce(REDUCE))


def stem_and_serif(capital_i: np.ndarray) -> tuple[float, bool]:
    """Measures a capital I.

    Args:
        capital_i: [h w] uint8 with bright ink.

    Returns:
        The width of its stem as a part of its height, and whether it has serifs, which make both ends wider.

    Raises:
        Unusable: it is empty.
    """
    ink = capital_i.astype(np.float64) / 255
    rows = np.flatnonzero(ink.max(axis=1) > 0.5)
    if not rows.size:
        raise Unusable("its 'I' is empty")
    widths = ink[rows[0] : rows[-1] + 1].sum(axis=1)
    height, edge = len(widths), max(1, len(widths) // 8)
    stem = float(np.median(widths[height // 3 : height - height // 3]))
    ends = min(widths[:edge].max(), widths[-edge:].max())
    return round(stem / height, 3), bool(ends > FOOT * stem)


def main(folder: tyro.conf.Positional[Path], out: Path = Path("data/glyphs")) -> None:
    """Draws the typefaces below a folder and writes glyphs.npz and fonts.jsonl.

    Args:
        folder: folder with .ttf, .otf or .ttc files at any depth.
        out: folder to write to.
    """
    if not folder.is_dir():
        raise SystemExit(f"FOLDER must be a folder, got {str(folder)!r}")
    glyphs, rows, seen = [], [], set()
    for path, index in tqdm(list(faces(folder)), unit="typeface", disable=None):
        try:
            row, pictures = known(path, index), drawn(path, index)
            if pictures.tobytes() in seen:
                raise Unusable("another typeface looks the same")
            row["stem"], row["serif"] = stem_and_serif(pictures[CHARACTERS.index("I")])
        except Unusable as error:
            tqdm.write(f"skipped {path.name}: {error}")
            continue
        seen.add(pictures.tobytes())
        glyphs.append(pictures)
        rows.append(row)
    if not rows:
        raise SystemExit(f"FOLDER must have typefaces with all of A-Z a-z 0-9, got none in {str(folder)!r}")
    out.mkdir(parents=True, exist_ok=True)
    with images.beside(out / "glyphs.npz") as file:
        np.savez_compressed(file, glyphs=np.stack(glyphs))
    with images.beside(out / "fonts.jsonl") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    print(f"wrote {len(rows)} typefaces of {len({row['family'] for row in rows})} families to {out}")


if __name__ == "__main__":
    tyro.cli(main)
