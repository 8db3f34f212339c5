"""Captions of letters: a character, and words for its style."""

import itertools
from typing import NamedTuple

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
# Words for the weight, and the smallest stem of a capital I for each: its width as a part of its height.
WEIGHTS = {"thin": 0.0, "light": 0.075, "regular": 0.112, "bold": 0.165, "heavy": 0.22}
SLANTS = ("italic",)
KINDS = ("serif", "sans", "typewriter")
# The words of a style in the order of a caption. None is no word.
STYLE_WORDS: tuple[tuple[str | None, ...], ...] = ((None, *WEIGHTS), (None, *SLANTS), (None, *KINDS))
LENGTH = 40  # tokens of a caption: its bytes and an end token; the longest caption has 38
VOWEL_SOUNDS = "AEFHILMNORSXaefhilmnorsx8"  # characters whose names start with a vowel, as in "an F"


class Style(NamedTuple):
    """The words of a caption for a typeface. None is no word."""

    weight: str | None = None
    slant: str | None = None
    kind: str | None = None


PLAIN = Style()


def caption(character: str, style: Style = PLAIN, *, spelled: bool = False) -> str:
    """Returns the caption of a character in a style. The character is always the last word.

    Args:
        character: one of `CHARACTERS`.
        style: words for the typeface.
        spelled: whether the caption also contains "capital", "small" or "digit".

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
    """Returns all styles, the empty one first.

    Example:
        >>> len(styles()), styles()[0]
        (48, Style(weight=None, slant=None, kind=None))
    """
    return [Style(*words) for words in itertools.product(*STYLE_WORDS)]


def read_style(words: str) -> Style:
    """Reads a style from words in any order.

    Args:
        words: separated by spaces.

    Raises:
        ValueError: the model does not know a word, or two words are of one kind.

    Example:
        >>> read_style("serif bold")
        Style(weight='bold', slant=None, kind='serif')
    """
    found: list[str | None] = [None] * len(STYLE_WORDS)
    for word in words.lower().split():
        place = next((i for i, known in enumerate(STYLE_WORDS) if word in known), None)
        if place is None:
            known = ", ".join(word for group in STYLE_WORDS for word in group if word)
            raise ValueError(f"--style must be words of {known}, got {word!r}")
        if found[place] not in (None, word):
            raise ValueError(f"--style must have one of {found[place]!r} and {word!r}, got both")
        found[place] = word
    return Style(*found)


def style_of(stem: float, italic: bool, mono: bool, serif: bool) -> Style:
    """Returns the words for a typeface.

    Args:
        stem: width of the stem of a capital I, as a part of its height.
        italic: whether the typeface is slanted.
        mono: whether all characters have the same width.
        serif: whether the capital I has serifs.

    Example:
        >>> style_of(0.2, False, False, True)
        Style(weight='bold', slant=None, kind='serif')
    """
    weight = [word for word, least in WEIGHTS.items() if stem >= least][-1]
    return Style(weight, "italic" if italic else None, "typewriter" if mono else "serif" if serif else "sans")
