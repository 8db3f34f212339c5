"""Captions of letters: the character, and words for its style."""

import itertools
from typing import NamedTuple

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
# Words for the weight, by the least width of the capital I's stem as a part of its height.
WEIGHTS = {"thin": 0.0, "light": 0.075, "regular": 0.112, "bold": 0.165, "heavy": 0.22}
SLANTS = ("italic",)
KINDS = ("serif", "sans", "typewriter")
# What a style may say, in the order in which a caption says it; None says nothing.
STYLE_WORDS: tuple[tuple[str | None, ...], ...] = ((None, *WEIGHTS), (None, *SLANTS), (None, *KINDS))
LENGTH = 40  # bytes with the end: the longest caption has 39
VOWEL_SOUNDS = "AEFHILMNORSXaefhilmnorsx8"


class Style(NamedTuple):
    """What a caption says of a typeface; None where it says nothing."""

    weight: str | None = None
    slant: str | None = None
    kind: str | None = None


PLAIN = Style()


def caption(character: str, style: Style = PLAIN, *, spelled: bool = False) -> str:
    """Returns the caption of a character in a style. The character always comes last.

    Args:
        character: one of `CHARACTERS`.
        style: what the caption says of the typeface.
        spelled: whether it also says "capital", "small" or "digit".

    Example:
        >>> bold = Style("bold", None, "serif")
        >>> caption("A"), caption("a", Style("thin", "italic")), caption("A", bold, spelled=True)
        ('an A', 'a thin italic a', 'a bold serif capital A')
    """
    case = "digit" if character.isdigit() else "capital" if character.isupper() else "small"
    words = [word for word in style if word] + [case] * spelled + [character]
    vowel = words[0] in VOWEL_SOUNDS if len(words) == 1 else words[0][0] in "aeiou"
    return " ".join(["an" if vowel else "a", *words])


def styles() -> list[Style]:
    """Returns every style that a caption can ask for, the empty one first.

    Example:
        >>> len(styles()), styles()[0]
        (48, Style(weight=None, slant=None, kind=None))
    """
    return [Style(*words) for words in itertools.product(*STYLE_WORDS)]


def read_style(words: str) -> Style:
    """Reads a style from words in any order.

    Raises:
        ValueError: a word that the model does not know, or two words of one kind.

    Example:
        >>> read_style("serif bold")
        Style(weight='bold', slant=None, kind='serif')
    """
    found: list[str | None] = [None] * len(STYLE_WORDS)
    for word in words.lower().split():
        place = next((i for i, known in enumerate(STYLE_WORDS) if word in known), None)
        if place is None:
            known = ", ".join(word for group in STYLE_WORDS for word in group if word)
            raise ValueError(f"--style knows the words {known}, got {word!r}")
        if found[place] not in (None, word):
            raise ValueError(f"--style takes one of {found[place]!r} and {word!r}, got both")
        found[place] = word
    return Style(*found)


def style_of(stem: float, italic: bool, mono: bool, serif: bool) -> Style:
    """Returns all that a caption can say of a typeface.

    Args:
        stem: width of the capital I's stem as a part of its height.
        italic: whether it slants.
        mono: whether all its characters are equally wide.
        serif: whether its capital I has serifs.

    Example:
        >>> style_of(0.2, False, False, True)
        Style(weight='bold', slant=None, kind='serif')
    """
    weight = [word for word, least in WEIGHTS.items() if stem >= least][-1]
    return Style(weight, "italic" if italic else None, "typewriter" if mono else "serif" if serif else "sans")
