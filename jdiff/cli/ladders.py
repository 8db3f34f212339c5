"""Ladders: one setting at several values, and a row of pictures from the same seeds for each."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jdiff.cli.errors import BadInput, demand

if TYPE_CHECKING:
    from jdiff.cli.drawing import Drawing, Fitted, Shown

# Settings that take several values, and how a row is labelled.
LABELS = {"steps": "{} steps", "guidance": "guidance {:g}", "strength": "strength {:g}"}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Ladder(NamedTuple):
    """A setting and its values."""

    name: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> list[str]:
        """What the rows are called."""
        return [f"1 {self.name[:-1]}" if (self.name, v) == ("steps", 1) else LABELS[self.name].format(v)
                for v in self.values]  # fmt: skip


def joined(words: Sequence[str]) -> list[str]:
    """Returns the words of a command line with the numbers after a flag that takes several in one word.

    If the parser took any number of values, it would also take the prompts behind them.

    Raises:
        BadInput: --size has two numbers with a space between them.

    Example:
        >>> joined(["edit", "a.png", "--steps", "5", "10", "a red 3", "--strength", "1"])
        ['edit', 'a.png', '--steps', '5,10', 'a red 3', '--strength', '1']
    """
    made: list[str] = []
    flag = 0  # words since such a flag
    several = tuple(f"--{name}=" for name in LABELS)
    words = [part for word in words for part in (word.split("=", 1) if word.startswith(several) else (word,))]
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        if before == "--size" and NUMBER.fullmatch(word) and NUMBER.fullmatch(after):
            raise BadInput(f"--size must be one word, got {word} {after}; write {word}x{after}")
        flag = 1 if word in [f"--{name}" for name in LABELS] else flag + 1 if flag and NUMBER.fullmatch(word) else 0
        if flag > 2:
            made[-1] += f",{word}"
        else:
            made.append(word)
    return made


def values(given: Any) -> tuple[Any, ...]:
    """Returns the values of a flag or a setting: none, one or several.

    Example:
        >>> values(None), values(5), values([5, 10])
        ((), (5,), (5, 10))
    """
    return tuple(given) if isinstance(given, tuple | list) else () if given is None else (given,)


def of(settings: "Drawing | Mapping[str, Any]") -> Ladder | None:
    """Returns the ladder of a command or of a picture's settings, if there is one.

    Raises:
        BadInput: there are two.
    """
    found = settings if isinstance(settings, Mapping) else vars(settings)
    ladders = [Ladder(name, values(found.get(name))) for name in LABELS if isinstance(found.get(name), tuple | list)]
    flags = " and ".join(f"--{ladder.name}" for ladder in ladders)
    demand(len(ladders) < 2, f"only one flag may have several values, got {flags}; give one value to the others")
    return ladders[0] if ladders else None


def rungs(settings: "Drawing | Mapping[str, Any]") -> int:
    """Returns how many values the ladder has; 1 where there is none."""
    ladder = of(settings)
    return 1 if ladder is None else len(ladder.values)


def each(command: "Drawing", told: dict[str, Any]) -> "list[tuple[Drawing, dict[str, Any], str]]":
    """Returns the commands of a ladder with one value each, with their settings and labels; or the one command."""
    ladder = of(command)
    if ladder is None:
        return [(command, told, "")]
    changes: list[dict[str, Any]] = [{ladder.name: value} for value in ladder.values]
    return [
        (dataclasses.replace(command, **change), told | change, label)
        for change, label in zip(changes, ladder.labels, strict=True)
    ]


def labels(command: "Drawing", fitted: "Fitted") -> tuple[list[str], str | None]:
    """Returns the labels of the sheet's rows, and the title of a ladder's sheet: the prompt, if there is one only."""
    ladder, rows = of(command), command.labels(fitted)
    if ladder is None:
        return rows, None
    first, rest = rows[: command.originals], rows[command.originals :]
    if len(rest) == 1:
        return [*first, *ladder.labels], rest[0]
    return [*first, *(f"{row}, {label}" for row in rest for label in ladder.labels)], ""


def shown(command: "Drawing", made: np.ndarray, fitted: "Fitted") -> "Shown":
    """Returns what the sheet shows of images [p*r n h w c], r in turn for each of p prompts."""
    from jdiff.cli.drawing import Shown

    r, first = rungs(command), command.originals
    parts = np.stack([command.shown(made[i::r], fitted).rows for i in range(r)], axis=1)
    rows = parts[first:].reshape(-1, *parts.shape[2:])
    return Shown(np.concatenate([parts[:first, 0], rows]), *labels(command, fitted))
