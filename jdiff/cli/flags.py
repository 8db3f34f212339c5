"""Kinds of values that flags take. A wrong value is one line: the flag must be this, got that."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

from tyro.constructors import PrimitiveConstructorSpec

from jdiff.images import web

T = TypeVar("T")

# Largest number of a flag. Numbers of JSON may be larger.
LARGEST_NUMBER = sys.float_info.max
# What the help says in the place of a default.
MODEL_DEFAULT = "(default: the model's own)"
OPTIONAL = "(optional)"
REQUIRED = "(required)"
REPEATABLE = "(repeatable)"

DTYPES = ("float32", "bfloat16", "float16")
LARGEST_SEED = 2**32 - 1
LONGEST_NUMBER = 30  # digits; Python refuses to read thousands of them, and no flag takes them


def _spec(metavar: str, read: Callable[[str], T], wanted: str) -> PrimitiveConstructorSpec[T]:
    def parsed(words: list[str]) -> T:
        try:
            return read(words[0])
        except ValueError as error:
            raise ValueError(f"must be {wanted}, got {words[0]!r}") from error

    return PrimitiveConstructorSpec(
        nargs=1, metavar=metavar, instance_from_str=parsed, is_instance=lambda value: True,
        str_from_instance=lambda value: [",".join(map(str, value)) if isinstance(value, tuple) else str(value)],
    )  # fmt: skip


def one_of(*names: str) -> PrimitiveConstructorSpec[str]:
    """Returns the kind of a flag that takes one of these words."""

    def read(word: str) -> str:
        if word not in names:
            raise ValueError
        return word

    return _spec("{" + ",".join(names) + "}", read, f"one of {', '.join(names)}")


def _whole(word: str) -> int:
    if len(word) > LONGEST_NUMBER:
        raise ValueError
    return int(word)


def place(word: str) -> Path | str:
    """Returns where a file lies: a URL as it is, and otherwise a path.

    Example:
        >>> place("https://example.org/a.png"), str(place("a.png"))
        ('https://example.org/a.png', 'a.png')
    """
    return word if web.is_url(word) else Path(word)


def _several(read: Callable[[str], T]) -> Callable[[str], T | tuple[T, ...]]:
    """Reads one value, or several with commas between them, as `jdiff.cli.ladders` joins them."""

    def parsed(word: str) -> T | tuple[T, ...]:
        found = tuple(read(part) for part in word.split(","))
        return found[0] if len(found) == 1 else found

    return parsed


def _size(word: str) -> str:
    found = re.fullmatch(r"(\d{1,5})(?:[xX×](\d{1,5}))?", word)
    if found is None:
        raise ValueError
    return f"{int(found[1])}x{int(found[2] or found[1])}"


_WHOLE = _spec("INT", _whole, "a whole number")
_NUMBER = _spec("FLOAT", float, "a number")
_WHOLES = _spec("INT", _several(_whole), "a whole number")
_NUMBERS = _spec("FLOAT", _several(float), "a number")
Whole = Annotated[int, _WHOLE]
WholeOrNone = Annotated[int | None, _WHOLE]
Number = Annotated[float, _NUMBER]
NumberOrNone = Annotated[float | None, _NUMBER]
WholesOrNone = Annotated[int | tuple[int, ...] | None, _WHOLES]
Numbers = Annotated[float | tuple[float, ...], _NUMBERS]
NumbersOrNone = Annotated[float | tuple[float, ...] | None, _NUMBERS]
PathOrNone = Annotated[Path | None, _spec("FILE", Path, "a path")]
PlaceOrNone = Annotated[Path | str | None, _spec("FILE", place, "a path or a URL")]
TextOrNone = Annotated[str | None, _spec("TEXT", str, "a text")]
SizeOrNone = Annotated[str | None, _spec("HxW", _size, "a height and a width, such as 48x32, or one number")]
Dtype = Annotated[str, one_of(*DTYPES)]
