"""Writes the card of the letters model, weights/letters/README.md, from training.json and quality.json.

python scripts/letters_card.py --glyphs FOLDER_OF_GLYPHS --machine "..."
"""

import json
import re
from collections import Counter
from pathlib import Path

import tyro

import jdiff
from jdiff.letters import data
from jdiff.parts import write_text

SHOWN = 400  # updates between two rows of the curve
CARD = """# The letters model

A text-to-image model of letters and digits in DeepFloyd IF's architecture, trained by this repository. It draws type
from captions, and, as two readings of one picture, ambigrams: `jdiff ambigram swims`.

| | |
|---|---|
| UNet | IF stage 1's over patches of 2 x 2 pixels: 32 x 32, grey, channels {channels}, attention at 8 x 8 and 4 x 4, \
{parameters:,} parameters, stored in float16 |
| text | bytes (ByT5's numbering, 40 at most, case kept) through two layers of T5 v1.1, 96 wide, trained first, alone, \
to name character and style |
| schedule | squaredcos_cap_v2, 1000 timesteps, v-prediction; trained at logit-normal noise levels |
| captions | a character A-Z, a-z, 0-9, last; before it any of thin, light, regular, bold, heavy; italic; serif, sans, \
typewriter; and capital, small or digit: "a bold serif capital A", "a thin italic g", "an A" |
| default sampler | {sampler}, {steps} steps, guidance {guidance:g} |
| data | {fonts:,} typefaces. {held_out} more, of whole families, were held out to test the judges. All are below |
| licence | Apache-2.0, as the library |

## Training
`python scripts/train_letters.py`, on {machine}. The optimizer
is Adam. The learning rate falls from its highest value to a hundredth of it, by a cosine. What is stored is the EMA of
the weights.

| run | updates | glyphs | highest learning rate | decay of the EMA |
|---|---|---|---|---|
{runs}

| run | update | mean squared error of v |
|---|---|---|
{curve}

## Quality
{quality}

## Judges
Three judges rank the candidates of an ambigram: `judge`, `third-judge` and `fourth-judge`. The second judge ranks
nothing and measures. The gradient of the guide pushes the first steps of an ambigram. Each has a card in its folder.

## Where the typefaces are from
Drawn from the fonts in Debian 12's packages, which are all free by Debian's guidelines: mostly under the SIL Open Font
License 1.1, some under Apache-2.0, the GUST licence, or the GPL with the font exception. No font is in this
repository. `scripts/prepare_letters.py` draws the same arrays from any folder of fonts.

{packages}
"""


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def quality(found: dict) -> str:
    """Returns the results in quality.json as Markdown."""
    parts = []
    if samples := found.get("samples"):
        parts.append(
            f"{samples['samples']:,} samples, 20 of each character, drawn in {samples['seconds']:.0f} s "
            "(`python scripts/measure_letters.py samples`):\n\n| | right | worst characters |\n|---|---|---|"
        )
        for kind in ("judge", "second-judge"):
            worst = ", ".join(f"{c} {100 * v:.0f} %" for c, v in samples[f"worst by the {kind}"].items() if v < 1)
            parts[-1] += f"\n| {kind} | {share(samples[f'right by the {kind}'])} | {worst or 'all 100 %'} |"
        if near := samples.get("distance to the nearest training glyph"):
            parts.append(
                f"Root mean square distance of a sample to the nearest training glyph of its character: median "
                f"{near['median']}, least {near['least']}; of a typeface's A to the nearest other one's "
                f"{near['median between typefaces']} (on a scale from -1 to 1)."
            )
    if styles := found.get("styles"):
        rows = [
            f"| {word} | {row['stem in pixels']:.2f} | {row['slant in degrees'] + 0:.1f} | "
            f"{share(row['with serifs'])} |"
            for word, row in styles.items()
            if isinstance(row, dict)
        ]
        head = "| caption says | stem of I, pixels | slant, degrees | with serifs |\n|---|---|---|---|\n"
        parts.append("Style words, measured on 20 capital I each:\n\n" + head + "\n".join(rows))
    for name, row in found.items():
        if name.startswith(("pairs", "words")):
            told = "; ".join(f"{key} {value}" for key, value in row.items())
            parts.append(f"**{name}**: {told}.")
    return "\n\n".join(parts)


def runs_of(training: dict) -> list[dict]:
    """Returns the runs of training.json, the first one first. Each run but the first started from the one before."""
    return [*(runs_of(training["before"]) if "before" in training else []), training]


def main(
    folder: Path = Path("weights/letters"),
    glyphs: Path = Path("data/glyphs"),
    machine: str = "a virtual machine with two cores, shared with other jobs",
) -> None:
    """Writes the card.

    Args:
        folder: folder of the model.
        glyphs: folder of the training glyphs. Its fonts.jsonl names the fonts' packages.
        machine: description of the machine for the card.
    """
    model = jdiff.load(folder)
    runs = runs_of(json.loads((folder / "training.json").read_text()))
    path = folder / "quality.json"
    training, held_out = (part.fonts for part in data.split(data.read(glyphs)))
    packages = Counter(re.sub(r"\W+", "-", font["package"]).strip("-") for font in [*training, *held_out])
    import jax

    card = CARD.format(
        channels="/".join(map(str, model.config.block_out_channels)),
        parameters=sum(a.size for a in jax.tree.leaves(model.network.params)), fonts=len(training),
        held_out=len(held_out),
        machine=machine,
        runs="\n".join(
            f"| {i} | {run['updates']:,} | {run['updates'] * run['batch']:,} | {run['rate']:g} | {run['decay']:g} |"
            for i, run in enumerate(runs, 1)
        ),
        curve="\n".join(
            f"| {i} | {row['update']:,.0f} | {row['loss']:.4f} |"
            for i, run in enumerate(runs, 1) for row in run["curve"]
            if row["update"] % SHOWN == 0 or row is run["curve"][-1]
        ),
        quality=quality(json.loads(path.read_text())) if path.is_file() else "Not measured yet.",
        packages=", ".join(f"{name} ({n})" for name, n in packages.most_common()),
        **{name: getattr(model.defaults, name) for name in ("sampler", "steps", "guidance")},
    )  # fmt: skip
    write_text(folder / "README.md", card)


if __name__ == "__main__":
    tyro.cli(main)
