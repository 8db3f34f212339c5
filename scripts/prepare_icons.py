"""Draws the one-colour icons of the npm package @iconify/json as arrays, to train a model of icons on.

    npm pack @iconify/json && tar xf iconify-json-*.tgz
    python scripts/prepare_icons.py package/json --out data/icons --size 64

It writes icons.npz (`icons` [n size size] uint8) and icons.jsonl, which has a row for each icon. It keeps icon sets
with one colour and a licence in `LICENCES`, without logos, flags and file types. Of these it keeps icons that are about
square, and only the first of icons with the same pixels. Needs resvg-py, from the extra `prepare-letters`.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from jdiff.parts import beside

LICENCES = {"MIT", "Apache-2.0", "ISC", "CC0-1.0", "BSD-3-Clause", "Unlicense", "OFL-1.1"}
UNWANTED = ("logo", "brand", "flag", "file-type", "fileicon", "emoji", "crypto")
STYLES = {
    "outline", "outlined", "filled", "fill", "bold", "thin", "light", "duotone", "rounded", "round", "sharp", "line",
    "solid", "twotone", "regular",
}  # fmt: skip
MARGIN = 0.06  # around the icon, as a part of the side
SQUARE = 1.25  # largest ratio of the two sides


def sets(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the contents of the sets that are kept."""
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        info = found.get("info", {})
        licence = info.get("license", {}).get("spdx")
        names = f"{path.stem} {info.get('category', '')} {info.get('name', '')}".lower()
        if licence in LICENCES and not info.get("palette", False) and not any(word in names for word in UNWANTED):
            yield found


def named(name: str) -> tuple[str, str]:
    """Splits the name of an icon into its words and the words for its style.

    >>> named("arrow-up-outline")
    ('arrow up', 'outline')
    """
    words = [word for word in name.split("-") if not word.isdigit()]
    return " ".join(w for w in words if w not in STYLES), " ".join(w for w in words if w in STYLES)


def drawn(body: str, width: float, height: float, size: int) -> np.ndarray:
    """Draws an icon: its ink [size size] uint8."""
    import resvg_py  # pyright: ignore[reportMissingImports]  # of the extra `prepare-letters`

    side = max(width, height) / (1 - 2 * MARGIN)
    left, top = (width - side) / 2, (height - side) / 2
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {side} {side}" color="black">{body}</svg>'
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * size, height=4 * size))
    alpha = Image.open(io.BytesIO(png)).convert("RGBA").getchannel("A")
    return np.asarray(alpha.resize((size, size), Image.Resampling.BOX))


def main(folder: tyro.conf.Positional[Path], out: Path = Path("data/icons"), size: int = 32) -> None:
    """Draws the icons of a folder, and writes icons.npz and icons.jsonl.

    Args:
        folder: the folder `json` of the npm package @iconify/json.
        out: folder to write icons.npz and icons.jsonl to.
        size: height and width in pixels.
    """
    icons, rows, seen = [], [], set()
    for found in tqdm(list(sets(folder)), unit="set"):
        for name, icon in found["icons"].items():
            width, height = (icon.get(side, found.get(side, 16)) for side in ("width", "height"))
            if icon.get("hidden") or max(width, height) > SQUARE * min(width, height):
                continue
            try:
                ink = drawn(icon["body"], width, height, size)
            except Exception as error:  # resvg does not say which errors it raises
                tqdm.write(f"skipped {found['prefix']}:{name}: {error}")
                continue
            if not ink.any() or ink.tobytes() in seen:
                continue
            seen.add(ink.tobytes())
            said, style = named(name)
            icons.append(ink)
            rows.append({"set": found["prefix"], "name": said, "style": style})
    if not rows:
        raise SystemExit(f"FOLDER must have sets of one-colour icons with a free licence, got none in {str(folder)!r}")
    out.mkdir(parents=True, exist_ok=True)
    with beside(out / "icons.npz") as file:
        np.savez_compressed(file, icons=np.stack(icons))
    with beside(out / "icons.jsonl") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    print(f"wrote {len(rows)} icons of {len({row['set'] for row in rows})} sets to {out}")


if __name__ == "__main__":
    tyro.cli(main)
