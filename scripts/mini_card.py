"""Writes the mini model's card, weights/mini/README.md, from the results of its training and its measurement.

python scripts/mini_card.py --trained "..." --machine "..."
"""

import json
from pathlib import Path

import tyro

from jdiff.parts import write_text
from jdiff.results import machine as this_machine
from jdiff.results import percent

TEXT = """# The mini model

A small text-to-image model in DeepFloyd IF's architecture. This repository trained it, so that everything in the
library runs without IF's own weights.

| | |
|---|---|
| UNet | IF's stage 1 at 32 x 32, channels 32/32/96, one layer a block, attention at 16 x 16 and 8 x 8. GroupNorm has \
8 groups, with at least four channels each (IF has six): with one channel a group it would remove every colour cast |
| text encoder | two layers of T5 v1.1, 128 wide, trained with the UNet; tokens are bytes, at most 40 |
| noise schedule | squaredcos_cap_v2, 1000 timesteps; the network predicts epsilon and a learned variance |
| captions | "a red three", "a red 3", "the digit 3 in red", "the digit three in red", each also with "on white". \
Digits are zero to nine; colours are red, green, blue, yellow, cyan, magenta, orange and white (white not on white). \
The model knows nothing else |
| default sampler | {sampler}, {steps} steps, guidance scale {guidance:g} |
| data | MNIST's 60,000 training digits (Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0) from TensorFlow Datasets, \
padded to 32 x 32 and painted; 10 % have the empty caption |
| licence | Apache-2.0, like the library |

## Training
{updates:,} updates of {batch} pictures by Adam, with a highest learning rate of {rate:g} and a cosine decay to a
hundredth of it. The stored weights are an EMA with decay {decay:g}. The median speed was {speed:g} images/s on
{machine}. {trained}

| update | noise error | weighted | colour cast | bits | anchor |
|---|---|---|---|---|---|
{curve}

Each row is the mean of 25 updates. The columns are the noise error over all levels; the two terms of
`jdiff.training.objectives.hybrid` that train the estimate; the variational bound, which trains the variances; and the
text encoder's own objective, which keeps it from forgetting the captions.

## Quality
{images} guided pictures: one for each of {seeds} seeds and {captions} captions, drawn from the grammar's {of}. They are
read by the [judge](../judge/README.md) (`python scripts/measure_mini.py`, {seconds:.0f} s on that machine; all results
are in `quality.json`). In brackets is the 95 % interval. The aim is 95 % for digits and for colours.

| | right |
|---|---|
{right}

| digit asked for, or background | digit right |
|---|---|
{digits}
{backgrounds}
"""


def main(trained: str = "", machine: str = "", folder: Path = Path("weights/mini")) -> None:
    """Writes README.md into `folder`.

    Args:
        trained: a sentence about the training.
        machine: description of the machine for the card; detected if not given.
        folder: the model's folder, with training.json and quality.json.
    """
    training, quality = (json.loads((folder / f"{name}.json").read_text()) for name in ("training", "quality"))
    curve = training["curve"]
    shown = [row for row in curve if row[0] % 1000 == 0 or row[0] in (250, 500) or row is curve[-1]]
    text = TEXT.format(
        **{name: quality[name] for name in ("sampler", "steps", "guidance", "images", "seeds", "seconds")},
        **{name: training[name] for name in ("updates", "batch", "rate", "decay")},
        speed=training["images_per_second"],
        captions=quality["captions"]["n"],
        of=quality["captions"]["of"],
        machine=machine or this_machine(),
        trained=trained,
        curve="\n".join(f"| {row[0]:.0f} | {' | '.join(f'{value:.4f}' for value in row[1:])} |" for row in shown),
        right="\n".join(f"| {what} | {percent(found)} |" for what, found in quality["right"].items()),
        backgrounds="\n".join(f"| on {name} | {percent(s['digit'])} |" for name, s in quality["by_background"].items()),
        digits="\n".join(f"| {digit} | {percent(s['digit'])} |" for digit, s in quality["by_digit"].items()),
    )
    write_text(folder / "README.md", text)


if __name__ == "__main__":
    tyro.cli(main)
