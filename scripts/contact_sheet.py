"""Draws the README's pictures with the mini model: every digit in every colour, and the results of its code.

python scripts/contact_sheet.py
"""

import re
from pathlib import Path

import jax
import numpy as np

import jdiff
from jdiff import images, sample
from jdiff.mnist.captions import COLOURS

PICTURES = Path("docs/pictures")


def main() -> None:
    """Writes docs/pictures/contact-sheet.png, on-white.png, halves.png and anagram.png."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    model = jdiff.load("mini")
    made_by = {"model": model.name, "hash": model.hash}
    for name, behind in (("contact-sheet", ""), ("on-white", " on white")):
        colours = [c for c in COLOURS if not (behind and c == "white")]
        articles = {c: "an" if c == "orange" else "a" for c in colours}
        prompts = [f"{articles[c]} {c} {digit}{behind}" for c in colours for digit in range(10)]
        drawn = np.asarray(sample.generate(model, prompts, jax.random.key(0)).images)[:, 0]
        sheet = images.grid(
            drawn.reshape(len(colours), 10, *drawn.shape[1:]),
            [f"{c}{behind}" for c in colours],
            column_labels=[str(digit) for digit in range(10)],
            cell=64,
        )
        images.save(PICTURES / f"{name}.png", sheet, made_by | {"prompts": prompts})

    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S):
        exec(compile(code, "README.md", "exec"), names)
    halves = images.grid(np.asarray(names["pictures"])[None], [""], cell=96)
    images.save(PICTURES / "halves.png", halves, made_by)
    illusions = np.asarray(names["illusions"])
    both = images.grid(np.stack([illusions, illusions[:, ::-1, ::-1]]), ["upright", "turned"], cell=64)
    images.save(PICTURES / "anagram.png", both, made_by)


if __name__ == "__main__":
    main()
