"""Words and the places of their letters: what each glyph of an ambigram reads as, upright and turned."""

import json
from functools import cache
from itertools import islice, product
from typing import NamedTuple

from jdiff.checkpoints.places import shipped
from jdiff.letters import captions

# The ways of turning a word, and whether its letters then come in the opposite order.
TURNS = {"rotate_180": True, "flip": False, "mirror": True}
LONGEST = 20
WAYS = 8  # in which two words are set into equally many places
# Two letters that can stand in one place, and the letter that they are taken for.
TWO_IN_ONE = {"rn": "m", "vv": "w", "cl": "d"}


class Pair(NamedTuple):
    """What one glyph reads as, with its case. Either is a character, or a key of `TWO_IN_ONE`."""

    upright: str
    turned: str


def check(word: str, name: str = "WORD") -> str:
    """Returns a word that can be drawn.

    Raises:
        ValueError: it is empty, too long, or has characters that the model does not know.

    Example:
        >>> check("swims")
        'swims'
    """
    if not isinstance(word, str) or not word:
        raise ValueError(f"{name} must have at least one letter, got {word!r}")
    if bad := [character for character in word if character not in captions.CHARACTERS]:
        raise ValueError(f"{name} must have letters A-Z, a-z and digits only, got {bad[0]!r} in {word!r}")
    if len(word) > LONGEST:
        raise ValueError(f"{name} must have at most {LONGEST} letters, got {len(word)}")
    return word


def places(word: str, turned: str, view: str) -> list[tuple[str, str]]:
    """Returns what each place of the upright word reads as, upright and turned: the first of `ways`.

    Raises:
        ValueError: the words cannot be brought to one length.

    Example:
        >>> places("dog", "bag", "rotate_180")
        [('d', 'g'), ('o', 'a'), ('g', 'b')]
        >>> places("corn", "abc", "flip")
        [('c', 'a'), ('o', 'b'), ('rn', 'c')]
    """
    return ways(word, turned, view)[0]


def ways(word: str, turned: str, view: str) -> list[list[tuple[str, str]]]:
    """Returns the ways to set two words into equally many places, at most `WAYS`, those with the most places first.

    Two letters may stand in one place, as "rn": see `TWO_IN_ONE`. A word that reads as itself is set equally both ways.

    Raises:
        ValueError: the words cannot be brought to one length.

    Example:
        >>> ways("on", "on", "flip"), ways("barn", "barn", "rotate_180")[1]
        ([[('o', 'o'), ('n', 'n')]], [('b', 'rn'), ('a', 'a'), ('rn', 'b')])
    """
    if view not in TURNS:
        raise ValueError(f"--view must be {', '.join(TURNS)}, got {view!r}")
    first, second = divisions(word), divisions(turned)
    if word.lower() == turned.lower():
        found = ((one, one) for one in first)
    else:
        lengths = sorted({len(one) for one in first}, reverse=True)
        found = ((a, b) for n in lengths for a in first if len(a) == n for b in second if len(b) == n)
    both = list(islice(found, WAYS))
    if not both:
        raise ValueError(
            f"the words must have equally many letters, got {word!r} with {len(word)} and {turned!r} with "
            f"{len(turned)}; two letters may stand in one place only as {', '.join(TWO_IN_ONE)}"
        )
    return [list(zip(a, b[::-1] if TURNS[view] else b, strict=True)) for a, b in both]


def divisions(word: str) -> list[tuple[str, ...]]:
    """Returns the ways to divide a word into places, some of them with two letters. Those with most places come first.

    Example:
        >>> divisions("corn"), len(divisions("rnrn"))
        ([('c', 'o', 'r', 'n'), ('c', 'o', 'rn')], 4)
    """
    found: list[list[tuple[str, ...]]] = [[()]]  # of the first letters of the word, as many as the place in this list
    for i, letter in enumerate(word):
        two = word[i - 1 : i + 1].lower() if i else ""
        found.append([(*some, letter) for some in found[i]])
        found[-1] += [(*some, two) for some in found[i - 1]] if two in TWO_IN_ONE else []
    return sorted(found[-1], key=len, reverse=True)


def drawn_as(reading: str) -> str:
    """Returns the character that a reading is drawn and judged as.

    The judge does not tell upper from lower case, so a capital M counts as "rn" too.

    Example:
        >>> drawn_as("rn"), drawn_as("R")
        ('m', 'R')
    """
    return TWO_IN_ONE.get(reading, reading)


def cases(upright: str, turned: str) -> list[Pair]:
    """Returns every choice of upper and lower case for two readings, those with equal case first.

    Two letters in one place are lower case, in which they look like the letter that they are taken for.

    Example:
        >>> len(cases("a", "b")), cases("7", "L")
        (4, [Pair(upright='7', turned='l'), Pair(upright='7', turned='L')])
        >>> cases("rn", "b")
        [Pair(upright='rn', turned='b'), Pair(upright='rn', turned='B')]
    """
    options = [[c] if c in TWO_IN_ONE else sorted({c.upper(), c.lower()}) for c in (upright, turned)]
    return sorted((Pair(a, b) for a, b in product(*options)), key=lambda pair: pair[0].isupper() != pair[1].isupper())


def best_cases(upright: str, turned: str, view: str) -> list[Pair]:
    """Returns the choice of case that reads best; all of `cases` where this was not measured.

    Every pair of letters was measured under half a turn, in weights/letters/cases.json. Digits were not, and neither
    were other views.

    Example:
        >>> best_cases("a", "b", "rotate_180"), best_cases("7", "v", "rotate_180")
        ([Pair(upright='A', turned='b')], [Pair(upright='7', turned='v'), Pair(upright='7', turned='V')])
    """
    measured, options = _measured().get(view, {}), cases(upright, turned)
    names = ["".join(sorted(pair, key=str.lower)) for pair in options]  # a pair turned is the same glyph
    if any(name not in measured for name in names):
        return options
    # Of equal scores, the first name counts, so that a pair turned has the same choice
    return [min(zip(options, names, strict=True), key=lambda both: (-measured[both[1]], both[1]))[0]]


@cache
def _measured() -> dict[str, dict[str, float]]:
    """Returns the score of every choice of case by view, such as {"rotate_180": {"Ab": 0.5}}, letters in order."""
    return json.loads((shipped("letters") / "cases.json").read_text())


def kind_of(pair: tuple[str, str]) -> Pair:
    """Returns a pair of letters in lower case and in order: a pair and the same pair turned are one glyph."""
    return Pair(*sorted(map(str.lower, pair)))
