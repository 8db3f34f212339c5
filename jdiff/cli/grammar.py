"""What the prompts of the shipped models can say, as groups of words to choose from."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from jdiff.cli.process import note
from jdiff.letters import captions as letters
from jdiff.mnist import captions as digits

NOTHING = "any"


class Group(NamedTuple):
    """Words of which a prompt has one."""

    name: str
    words: Sequence[str]
    first: str  # what is chosen at first


class Grammar(NamedTuple):
    """The prompts that a model knows."""

    groups: Sequence[Group]
    prompt: Callable[..., str]  # a word of each group -> prompt
    examples: Sequence[str]
    pair: tuple[str, str]  # prompts of an illusion that often works


def _digit(digit: str, colour: str, background: str) -> str:
    """The mini model's caption of a digit.

    >>> _digit("three", "orange", "white")
    'an orange three on white'
    """
    return f"{'an' if colour == 'orange' else 'a'} {colour} {digit}{' on white' if background == 'white' else ''}"


def _letter(character: str, weight: str, slant: str, kind: str) -> str:
    """The letters model's caption of a character.

    >>> _letter("R", "bold", NOTHING, "serif")
    'a bold serif R'
    """
    return letters.caption(
        character, letters.Style(*(None if word == NOTHING else word for word in (weight, slant, kind)))
    )


GRAMMARS: dict[str, Grammar] = {
    "mini": Grammar(
        [
            Group("Digit", digits.DIGITS, "three"),
            Group("Colour", tuple(digits.COLOURS), "red"),
            Group("Background", ("black", "white"), "black"),
        ],
        _digit,
        ("a red three", "a blue seven on white"),
        ("a yellow six", "a yellow nine"),
    ),
    "letters": Grammar(
        [
            Group("Character", tuple(letters.CHARACTERS), "R"),
            Group("Weight", (NOTHING, *letters.WEIGHTS), "bold"),
            Group("Slant", (NOTHING, *letters.SLANTS), NOTHING),
            Group("Kind", (NOTHING, *letters.KINDS), NOTHING),
        ],
        _letter,
        ("a bold R", "a thin italic serif g"),
        ("a bold M", "a bold W"),
    ),
}


def of(model: str) -> Grammar | None:
    """Returns the grammar of a model's name; None where its prompts are free.

    Example:
        >>> of("mini").prompt("three", "red", "black")
        'a red three'
    """
    return GRAMMARS.get(model)


def unknown(model: str, texts: Sequence[str]) -> list[str]:
    """Returns the words of prompts that no caption of the model's training had, without duplicates.

    Args:
        model: its name.
        texts: prompts.

    Returns:
        The words; none where the model's prompts are free.

    Example:
        >>> unknown("mini", ["a red cat", "the digit 5 in blue"]), unknown("IF-I-M-v1.0", ["a cat"])
        (['cat'], [])
    """
    if model not in GRAMMARS:
        return []
    return list(dict.fromkeys(word for text in texts for word in text.split() if word not in _known(model)))


def note_unknown(model: str, texts: Sequence[str]) -> None:
    """Tells which words of prompts a small model has never seen. It draws something all the same.

    Args:
        model: its name.
        texts: prompts.
    """
    if words := unknown(model, texts):
        shown = ", ".join(map(repr, words[:5])) + ", ..." * (len(words) > 5)
        first, second = GRAMMARS[model].examples
        note(f"the model {model} does not know {shown}; its prompts are like {first!r} and {second!r}")


@cache
def _known(model: str) -> set[str]:
    """The words of all captions that a shipped model was trained on."""
    if model == "mini":
        texts = [caption.text for caption in digits.captions()]
    else:
        both = (False, True)
        texts = [letters.caption(c, s, spelled=b) for c in letters.CHARACTERS for s in letters.styles() for b in both]
    return {word for text in texts for word in text.split()}
