"""What a model's prompts can say, as groups of words to choose from; and how well pictures read as their prompts."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

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


def chances(model: str, texts: Sequence[str], seen: np.ndarray) -> np.ndarray | None:
    """Returns how likely a judge reads pictures as their prompts.

    Args:
        model: its name.
        texts: prompts [p].
        seen: pictures of each prompt, as they look in its view [p n h w c] in [-1, 1].

    Returns:
        Chances [p n] in [0, 1]; None where no judge knows the model's pictures, or a prompt is not in its grammar.
    """
    asked = [_asked(model, text) for text in texts]
    if any(one is None for one in asked):
        return None
    p, n = seen.shape[:2]
    read = _judge(model)(seen.reshape(p * n, *seen.shape[2:])).reshape(p, n, -1)
    return (read * np.stack([one for one in asked if one is not None])[:, None]).sum(axis=-1)


def _asked(model: str, text: str) -> np.ndarray | None:
    """Which classes of the judge a prompt asks for: ones and zeros [classes]."""
    if model == "mini":
        digit = _digits().get(text)
        return None if digit is None else np.eye(10)[digit]
    if model == "letters" and text and text[-1] in letters.CHARACTERS and text[-2:-1] in ("", " "):
        from jdiff.letters import judge

        return judge.accepted(text[-1])
    return None


@cache
def _digits() -> dict[str, int]:
    return {caption.text: caption.digit for caption in digits.captions()}


@cache
def _judge(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """Pictures [n h w c] -> chances [n classes]."""
    import jax

    if model == "letters":
        from jdiff.letters import judge as reader

        read, compute = reader.load_judge(), jax.jit(lambda judge, x: judge(x))
        return lambda pictures: np.asarray(compute(read, pictures))
    from jdiff.mnist import judge

    params, apply = judge.load_params(), judge.network()[0]
    compute = jax.jit(lambda params, x: jax.nn.softmax(apply(params, judge.strokes(x))))
    return lambda pictures: np.asarray(compute(params, pictures))
