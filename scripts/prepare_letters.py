"""Draws A-Z, a-z and 0-9 of every typeface in a folder, which the letters model learns from.

    python scripts/prepare_letters.py /usr/share/fonts --out data/glyphs

Needs fonttools beside Pillow. A typeface that lacks one of the characters, or cannot be read, is left out and named.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from jdiff.images import beside
from jdiff.letters.captions import CHARACTERS

LARGE, CAPITAL, SIZE = 256, 160, 64  # side that glyphs are drawn at, height of capitals there, side they are reduced to
SERIF = 1.6  # times the stem's width that a capital I with serifs is wide at its top
SUFFIXES = (".ttf", ".otf")


def paths(folder: Path) -> Iterator[Path]:
    """Font files below a folder, in the order of their names."""
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES)


def capital_sized(path: Path) -> ImageFont.FreeTypeFont:
    """The font at the size at which its capital H is `CAPITAL` pixels high."""
    trial = ImageFont.truetype(path, LARGE)
    _, top, _, bottom = trial.getbbox("H")
    if bottom <= top:
        raise ValueError("its capital H is empty")
    return ImageFont.truetype(path, LARGE * CAPITAL / (bottom - top))


def drawn(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """A character, white on black, centred by its bounding box."""
    picture = Image.new("L", (LARGE, LARGE))
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        raise ValueError(f"its {character} is empty")
    place = ((LARGE - left - right) / 2, (LARGE - top - bottom) / 2)
    ImageDraw.Draw(picture).text(place, character, 255, font)
    return picture


def of_capital_i(picture: Image.Image) -> tuple[float, bool]:
    """(width of the stem as a part of its height, whether it has serifs), read off a capital I."""
    ink = np.asarray(picture) > 127
    rows = np.flatnonzero(ink.any(axis=1))
    widths = ink[rows[0] : rows[-1] + 1].sum(axis=1)
    height = len(widths)
    stem = float(np.median(widths[height // 4 : -height // 4]))
    ends = [widths[: height // 8 + 1].max(), widths[-height // 8 - 1 :].max()]
    return stem / height, bool(min(ends) > SERIF * stem)


def facts(path: Path) -> dict[str, Any]:
    """What a font file says of itself, as fonts.jsonl has it."""
    from fontTools.ttLib import TTFont

    with TTFont(path, lazy=True) as font:
        covered, names = font.getBestCmap() or {}, font["name"]
        if missing := [character for character in CHARACTERS if ord(character) not in covered]:
            raise ValueError(f"it has no {missing[0]}")
        widths = {font["hmtx"][covered[ord(character)]][0] for character in "iMW1"}
        family = names.getBestFamilyName() or path.stem
        return {
            "font": names.getBestFullName() or path.stem,
            "family": family,
            "weight": font["OS/2"].usWeightClass,
            "italic": bool(font["head"].macStyle & 2) or font["post"].italicAngle != 0,
            "mono": len(widths) == 1,
            "licence": names.getDebugName(14) or names.getDebugName(13) or "",
            "copyright": names.getDebugName(0) or "",
            "package": path.parent.name,
        }


def main(folder: tyro.conf.Positional[Path], out: Path = Path("data/glyphs")) -> None:
    """Draws the typefaces below a folder.

    Args:
        folder: folder of .ttf and .otf files, searched to the bottom.
        out: folder to write glyphs.npz and fonts.jsonl to.
    """
    glyphs, rows, seen = [], [], set()
    for path in tqdm(list(paths(folder)), unit="font"):
        try:
            row = facts(path)
            font = capital_sized(path)
            pictures = [drawn(font, character) for character in CHARACTERS]
        except Exception as error:  # whatever fontTools and FreeType raise on damaged files
            tqdm.write(f"{path} is left out: {error}")
            continue
        small = np.stack([np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX)) for picture in pictures])
        if small.tobytes() in seen:
            continue
        seen.add(small.tobytes())
        row["stem"], row["serif"] = of_capital_i(pictures[CHARACTERS.index("I")])
        glyphs.append(small)
        rows.append(row)
    if not rows:
        raise SystemExit(f"{folder} has no typeface with A-Z, a-z and 0-9")
    out.mkdir(parents=True, exist_ok=True)
    with beside(out / "glyphs.npz") as file:
        np.savez_compressed(file, glyphs=np.stack(glyphs))
    with beside(out / "fonts.jsonl") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    print(f"wrote {len(rows)} typefaces of {len({row['family'] for row in rows})} families to {out}")


if __name__ == "__main__":
    tyro.cli(main)
