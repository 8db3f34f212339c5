"""Writes the mini model's card, weights/mini/README.md, from what its training and its measurement left there.

python scripts/mini_card.py --trained "..." --machine "..."
"""

import json
from pathlib import Path

import tyro

TEXT = """# The mini model

A small text-to-image model in DeepFloyd IF's architecture, trained by this repository, so that everything in the
library runs and can be seen without IF's own weights.

| | |
|---|---|
| UNet | IF stage 1's, 32x32, channels 32/32/96, one layer a block, attention at 16x16 and 8x8; 8 groups in GroupNorm, \
four channels each, where IF has six: with one channel a group every colour cast would be normalised away |
| text | bytes (ByT5's numbering, 40 at most) through two layers of T5 v1.1, 128 wide, trained with the UNet |
| schedule | squaredcos_cap_v2, 1000 timesteps, epsilon, learned range |
| captions | "a red three", "a red 3", "the digit 3 in red", "the digit three in red", each also "... on white"; \
digits zero to nine; red, green, blue, yellow, cyan, magenta, orange, white (white not on white); anything \
else is unknown to it |
| default sampler | {sampler}, {steps} calls, guidance {guidance:g} |
| data | MNIST's 60,000 training digits (Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0), by TensorFlow Datasets, \
padded to 32x32 and painted; the empty caption for 10 % |
| licence | Apache-2.0, as the library |

## Training
{updates:,} updates of {batch} pictures, Adam, highest rate {rate:g} with a cosine to a hundredth of it, a running mean
of the weights ({decay:g}; what is stored), {speed:g} images/s in the median, on {machine}.
{trained}

| update | noise error | weighted | colour cast | bits | anchor |
|---|---|---|---|---|---|
{curve}

Each row is the mean of 25 updates: the noise error over all levels alike, the two terms of
`jdiff.training.objectives.hybrid` that teach the estimate, the bound that teaches the variances,
and what is left of the text encoder's warm-up.

## Quality
{images} guided pictures, one by each of {seeds} seeds for {captions} captions drawn from the grammar's {of}, read by
the [judge](../judge/README.md): `python scripts/measure_mini.py`, {seconds:.0f} s on that machine, in `quality.json`.
In brackets the 95 % interval; the aim is 95 % for digits and for colours.

| | right |
|---|---|
{right}

| digit asked for, or background | digit right |
|---|---|
{digits}
{backgrounds}
"""


def percent(score: dict) -> str:
    return f"{score['percent']:.1f} % ({score['low']:.1f} to {score['high']:.1f})"


def main(
    trained: str = "",
    machine: str = "a virtual machine with two cores (AMD EPYC)",
    folder: Path = Path("weights/mini"),
) -> None:
    """Writes README.md into `folder`.

    Args:
        trained: a sentence on how the training went.
        machine: what it was trained and measured on.
        folder: of the model, with training.json and quality.json.
    """
    training, quality = (json.loads((folder / f"{name}.json").read_text()) for name in ("training", "quality"))
    shown = [
        row for row in training["curve"] if row[0] % 1000 == 0 or row[0] in (250, 500) or row is training["curve"][-1]
    ]
    text = TEXT.format(
        **{name: quality[name] for name in ("sampler", "steps", "guidance", "images", "seeds", "seconds")},
        **{name: training[name] for name in ("updates", "batch", "rate", "decay")},
        speed=training["images_per_second"],
        captions=quality["captions"]["n"],
        of=quality["captions"]["of"],
        machine=machine,
        trained=trained,
        curve="\n".join(f"| {row[0]:.0f} | {' | '.join(f'{value:.4f}' for value in row[1:])} |" for row in shown),
        right="\n".join(f"| {what} | {percent(score)} |" for what, score in quality["right"].items()),
        backgrounds="\n".join(f"| on {name} | {percent(s['digit'])} |" for name, s in quality["by_background"].items()),
        digits="\n".join(f"| {digit} | {percent(s['digit'])} |" for digit, s in quality["by_digit"].items()),
    )
    (folder / "README.md").write_text(text)


if __name__ == "__main__":
    tyro.cli(main)
