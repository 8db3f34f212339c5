"""Trains every network of the project that is not trained yet, one after the other, and measures each.

    python scripts/train_all.py --list    # prints what is done, and how many hours are left
    python scripts/train_all.py           # trains all networks that are left

A command that was stopped or killed continues from its newest checkpoint when it is started again. Each network has
its own command, which can also be started alone; `--list` prints them. When all commands of a network have succeeded,
done.json is written into its folder of checkpoints, and the network is not trained again.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from jdiff.mnist import data, model, recipes
from jdiff.parts import write_text
from jdiff.training import log

KEPT_EPOCHS = (1, 5, 10, 15, 20)  # after these epochs, weights are kept for the figures
DIGITS = 60_000  # images in MNIST's training set
# Large pages, because page faults are slow on virtual machines. They have an effect with glibc only.
LARGE_PAGES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:"
    "glibc.malloc.trim_threshold=17179869184"
}


class Item(NamedTuple):
    """A network of the queue."""

    name: str
    run: Path  # folder of its checkpoints, log.csv and done.json
    batch: int
    updates: int  # in all
    train: Sequence[str]  # arguments of Python
    measure: Sequence[Sequence[str]] = ()  # commands that run after training


def digits(runs: Path, data_dir: Path, weights: Path, kind: str, recipe: str = "spec", **changed: int) -> Item:
    """Returns one of part B's networks.

    Args:
        runs: folder of checkpoints and logs. Part B has the folder mnist there.
        data_dir: folder of TensorFlow Datasets.
        weights: folder of trained networks.
        kind: of the network.
        recipe: name of its recipe.
        changed: numbers that replace the recipe's, such as epochs=30.
    """
    name = model.name(kind, recipe)
    own = recipes.recipes()[kind, recipe]._replace(**changed)
    flags = [word for flag, value in changed.items() for word in (f"--{flag}", str(value))]
    kept = [word for epoch in KEPT_EPOCHS if epoch <= own.epochs for word in ("--keep-epochs", str(epoch))]
    run, out = runs / "mnist" / name, weights / "mnist" / name
    train = ["-m", "jdiff", "mnist", "train", kind, "--recipe", recipe, "--run", str(run), "--out", str(out)]
    train += ["--data-dir", str(data_dir), "--save-every", "100", *flags, *kept]
    measure = ["scripts/measure_mnist.py", "--data-dir", str(data_dir), "--folders", str(out)]
    updates = own.epochs * data.per_epoch(DIGITS, own.batch)
    return Item(name, run, own.batch, updates, train, () if recipe == "pure" else (measure,))


def queue(runs: Path, data_folder: Path, weights: Path) -> list[Item]:
    """Returns all networks in their order."""
    tfds, glyphs = data_folder / "tensorflow_datasets", data_folder / "glyphs"
    of_digits = (runs, tfds, weights)
    letters = ["scripts/train_letters.py", "--data-folder", str(glyphs)]
    first, letters_out = runs / "letters-first" / "model", str(weights / "letters")
    mini = [
        "scripts/train_mini.py",
        "--data-dir",
        str(tfds),
        "--run",
        str(runs / "mini"),
        "--start-from",
        "weights/mini",
    ]
    mini_out = str(weights / "mini")
    return [
        digits(*of_digits, "class"),
        digits(*of_digits, "time"),
        Item(
            "letters-first", runs / "letters-first", 32, 3600,
            [*letters, "--run", str(runs / "letters-first"), "--steps", "3600", "--out", str(first)],
        ),
        Item(
            "letters", runs / "letters", 32, 7600,
            [*letters, "--run", str(runs / "letters"), "--start-from", str(first), "--steps", "7600",
             "--rate", "1e-3", "--decay", "0.999", "--seed", "1", "--out", letters_out],
        ),
        digits(*of_digits, "flow-class"),
        digits(*of_digits, "flow-time"),
        digits(*of_digits, "denoise"),
        digits(*of_digits, "time", "best", epochs=30),
        Item(
            "mini", runs / "mini", 24, 6000,
            [*mini, "--white", "0.6", "--rate", "4e-4", "--steps", "6000", "--out", mini_out],
            (["scripts/measure_mini.py", "--model", mini_out, "--out", f"{mini_out}/quality.json"],
             ["scripts/mini_card.py", "--folder", mini_out]),
        ),
        digits(*of_digits, "denoise", "pure", width=64, epochs=1),
    ]  # fmt: skip


class Progress(NamedTuple):
    """The progress of a network's training, from its log."""

    done: bool
    updates: int  # so far
    images_per_second: float  # median; 0 if the log has none
    hours_left: float  # of training; NaN if the log has no speed


def progress(item: Item) -> Progress:
    """Reads the progress of a network's training."""
    rows = log.read(item.run / "log.csv")
    updates = int(rows[-1]["update"]) if rows else 0
    speeds = [row["images_per_second"] for row in rows if row["images_per_second"]]
    speed = float(np.median(speeds)) if speeds else 0.0
    done = (item.run / "done.json").is_file()
    hours = 0.0 if done else (item.updates - updates) * item.batch / speed / 3600 if speed else float("nan")
    return Progress(done, updates, speed, hours)


def show(items: Sequence[Item]) -> None:
    """Prints the state and the command of each network."""
    found = [progress(item) for item in items]
    for item, at in zip(items, found, strict=True):
        state = "done" if at.done else "not started" if not at.updates else f"{at.hours_left:.1f} hours left"
        rate = f"{at.images_per_second:.0f} images/s" if at.updates else ""
        print(f"{item.name:16}{at.updates:>7,} of {item.updates:>7,} updates of {item.batch:>3}  {rate:>13}  {state}")
        print(f"    {command(item.train)}")
    known = [at.hours_left for at in found if np.isfinite(at.hours_left)]
    print(f"\n{sum(known):.1f} hours left for the {len(known)} networks whose speed is known")


def command(words: Sequence[str]) -> str:
    """Returns a command as it is typed in a shell."""
    return shlex.join(["python", *words])


def run(item: Item) -> None:
    """Trains and measures a network.

    Raises:
        SystemExit: a command failed, or was interrupted.
    """
    commands = (item.train, *item.measure)
    for words in commands:
        print(f"\n{item.name}: {command(words)}", flush=True)
        try:
            status = subprocess.run([sys.executable, *words], env=LARGE_PAGES | os.environ).returncode
        except KeyboardInterrupt:
            status = 130
        if status:
            raise SystemExit(f"{item.name} stopped with status {status}; start this command again to continue")
    write_text(item.run / "done.json", json.dumps({"commands": list(map(command, commands))}, indent=1) + "\n")


def main(
    only: tyro.conf.Positional[tuple[str, ...]] = (),
    show_list: Annotated[bool, tyro.conf.arg(name="list")] = False,
    runs: Path = Path("runs"),
    data_folder: Path = Path("data"),
    weights: Path = Path("weights"),
) -> None:
    """Trains the networks that are not trained yet.

    Args:
        only: names of networks; all if none is given.
        show_list: print what is done and how many hours are left, and train nothing.
        runs: folder of checkpoints and logs, with one folder for each network.
        data_folder: folder of the training data, with tensorflow_datasets/ and glyphs/; see docs/training.md.
        weights: folder that trained networks are written to.
    """
    items = queue(runs, data_folder, weights)
    names = [item.name for item in items]
    if unknown := [name for name in only if name not in names]:
        raise SystemExit(f"ONLY must be names of {', '.join(names)}, got {unknown[0]!r}")
    items = [item for item in items if not only or item.name in only]
    if show_list:
        show(items)
        return
    for item in items:
        if not progress(item).done:
            run(item)


if __name__ == "__main__":
    tyro.cli(main)
