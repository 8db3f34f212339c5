"""Makes the font of the labels, a part of DejaVu Sans: the scripts and symbols in `RANGES`.

    python scripts/prepare_label_font.py --source /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf

Needs fontTools, which comes with the extra `figures`. DejaVu's licence allows a part of it under another name; see
jdiff/images/fonts/LICENSE_DEJAVU.
"""

from pathlib import Path

import tyro
from fontTools import subset
from fontTools.ttLib import TTFont

OUT = Path(__file__).parents[1] / "jdiff" / "images" / "fonts" / "labels.ttf"
NAME = "jdiff labels"
# First and last code point of: Latin, accents, Greek and Cyrillic, Armenian, Hebrew, Arabic, Georgian, more Latin and
# Greek, punctuation, currencies, letter-like symbols, arrows, mathematics, shapes, symbols, Hebrew and Arabic forms.
RANGES = (
    (0x20, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x531, 0x58F), (0x591, 0x5FF), (0x600, 0x6FF), (0x10A0, 0x10FF),
    (0x1E00, 0x1FFF), (0x2010, 0x206F), (0x20A0, 0x20BF), (0x2100, 0x214F), (0x2190, 0x21FF), (0x2200, 0x22FF),
    (0x25A0, 0x25FF), (0x2600, 0x266F), (0xFB1D, 0xFDFF), (0xFE70, 0xFEFF), (0xFFFD, 0xFFFD),
)  # fmt: skip


def main(source: Path) -> None:
    """Writes the font.

    Args:
        source: path of DejaVuSans.ttf.
    """
    font = TTFont(source, recalcTimestamp=False)
    options = subset.Options(hinting=False, layout_features=["*"], name_IDs=[0, 1, 2, 4, 6, 13], drop_tables=["FFTM"])
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=[letter for first, last in RANGES for letter in range(first, last + 1)])
    cutter.subset(font)
    names, letters = font["name"].names, font.getBestCmap()  # type: ignore[attr-defined]
    for record in names:
        if record.nameID in (1, 4, 6):
            record.string = NAME.replace(" ", "-") if record.nameID == 6 else NAME  # type: ignore[assignment]
    OUT.parent.mkdir(exist_ok=True)
    font.save(OUT)
    print(f"wrote {OUT}: {OUT.stat().st_size / 1000:.0f} kB, {len(letters or ())} letters")


if __name__ == "__main__":
    tyro.cli(main)
