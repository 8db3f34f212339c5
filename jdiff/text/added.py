"""Tokens that a folder adds to T5's vocabulary, such as `<sks>` of a fine-tuned model, read as transformers reads them.

They stand in `added_tokens_decoder` or the lists of special tokens of tokenizer_config.json, in added_tokens.json, or
in tokenizer.json. What cannot be read as transformers 5 reads it is refused by name.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jdiff import checks
from jdiff.networks import config as config_json
from jdiff.types import Json

EXTRA = 100  # T5's marks <extra_id_0> to <extra_id_99>, the last of the vocabulary, backwards
BASE = ("<pad>", "</s>", "<unk>")  # T5's tokens 0, 1 and 2
NAMED: dict[str, str] = dict(zip(("pad_token", "eos_token", "unk_token"), BASE, strict=True))
CONFIG, MAP, ADDED, WHOLE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"
LISTS = ("additional_special_tokens", "extra_special_tokens")  # transformers 4's name for it and 5's


class Mark(NamedTuple):
    """A token that is found in a prompt before SentencePiece reads the rest."""

    content: str
    number: int  # the token
    normalized: bool = False  # found in the normalised prompt, not in the prompt as it is
    single_word: bool = False  # found only where no letter or digit is beside it


def read(folder: Path, vocabulary: Mapping[str, int]) -> list[Mark]:
    """Reads the marks of a tokenizer's folder: T5's own and those that the folder adds.

    Args:
        folder: folder with the tokenizer's files.
        vocabulary: {piece: number} of SentencePiece, after which the marks are numbered.

    Raises:
        ValueError: a token cannot be read as transformers reads it, or a file cannot be read.
    """
    found = {name: config_json.read(folder / name) for name in (CONFIG, MAP, ADDED, WHOLE) if (folder / name).is_file()}
    config = found.get(CONFIG, {})
    extra = checks.whole(f"{folder / CONFIG}: extra_ids", config.get("extra_ids", EXTRA), 0)
    own: dict[str, int] = dict(zip(BASE, range(3), strict=True)) | {
        f"<extra_id_{i}>": len(vocabulary) + extra - 1 - i for i in range(extra)
    }
    marks = {content: Mark(content, number) for content, number in own.items()}
    own = {**vocabulary, **own}
    lists = {(name, key): _contents(folder / name, key, found.get(name, {})) for name in (CONFIG, MAP) for key in LISTS}
    special = [content for key in LISTS for content in lists[CONFIG, key]]
    for mark in _stated(folder, found, special):
        if own.get(mark.content, mark.number) != mark.number:
            raise ValueError(
                f"{folder} gives {mark.content!r} the number {mark.number}, but in T5's vocabulary it is "
                f"{own[mark.content]}; use a T5 tokenizer"
            )
        marks[mark.content] = mark
    new = [content for content in dict.fromkeys(special) if content not in marks]
    if new and extra and not any(content in marks for content in special):
        raise ValueError(
            f"{folder / CONFIG} has special tokens ({new[0]!r}) without the {extra} <extra_id_...>. transformers then "
            "reads those as words; add them to the list"
        )
    first = len(vocabulary) + extra
    for content in new:
        marks[content] = Mark(content, own.get(content, first + sum(content not in own for content in marks)))
    named = {(name, key): value for name in (CONFIG, MAP) for key, value in _named(found.get(name, {}))}
    for (name, key), content in named.items():
        if content not in marks or NAMED.get(key, content) != content:
            accepted = repr(NAMED[key]) if key in NAMED else "one of the tokens added"
            raise ValueError(f"{folder / name}: {key} must be {accepted}, got {content!r}")
    for (name, key), contents in lists.items():
        if lost := [content for content in contents if content not in marks]:
            raise ValueError(f"{folder / name}: {key} has {lost[0]!r}, which no file gives a number")
    added = sorted(mark.number for content, mark in marks.items() if content not in own)
    if added != list(range(first, first + len(added))):
        raise ValueError(
            f"{folder} must number its added tokens from {first} without gaps, got {added[:5]}; transformers "
            "5 would number them in another way"
        )
    return list(marks.values())


def splitter(marks: Iterable[Mark], normalise: Callable[[str], str]) -> Callable[[str], Iterator[str | int]]:
    """Returns a function that splits a prompt into the numbers of marks and the text between them.

    The longest mark is taken where several begin. Marks in the normalised prompt come second, in what the others left.

    Args:
        marks: from `read`.
        normalise: SentencePiece's normalisation of characters.

    Example:
        >>> list(splitter([Mark("<sks>", 130)], str)("a <sks> dog"))
        ['a ', 130, ' dog']
    """
    plain = {mark.content: mark for mark in marks if not mark.normalized and mark.content}
    normal = {normalise(mark.content): mark for mark in marks if mark.normalized and normalise(mark.content)}

    def split(prompt: str) -> Iterator[str | int]:
        for part in _split(prompt, plain):
            if isinstance(part, int) or not normal:
                yield part
            else:
                yield from _split(normalise(part), normal)

    return split


def _split(text: str, marks: Mapping[str, Mark]) -> Iterator[str | int]:
    pattern = "|".join(map(re.escape, sorted(marks, key=len, reverse=True)))
    start = 0
    for hit in re.finditer(pattern, text) if marks else ():
        mark = marks[hit[0]]
        if mark.single_word and (_in_word(text[: hit.start()][-1:]) or _in_word(text[hit.end() :][:1])):
            continue
        if hit.start() > start:
            yield text[start : hit.start()]
        yield mark.number
        start = hit.end()
    if start < len(text):
        yield text[start:]


def _in_word(c: str) -> bool:
    """Whether a character is part of a word to the regular expressions of Rust: `\\w` with marks and joiners."""
    return bool(c) and (c.isalnum() or unicodedata.category(c) in ("Mn", "Mc", "Me", "Pc") or c in "\u200c\u200d")


def _stated(folder: Path, found: Mapping[str, Json], special: Sequence[str]) -> Iterator[Mark]:
    """The tokens whose numbers the files state; added_tokens.json counts where nothing newer is there."""
    config, whole, added = (found.get(name, {}) for name in (CONFIG, WHOLE, ADDED))
    tokens = dict(config.get("added_tokens_decoder") or {})
    for token in whole.get("added_tokens") or ():
        number = token.get("id") if isinstance(token, Mapping) else None
        tokens[number] = token
    flags = ("normalized", "single_word")
    stated = set()
    for number, token in tokens.items():
        content = token.get("content") if isinstance(token, Mapping) else None
        if not isinstance(content, str) or not str(number).isdecimal():
            raise ValueError(f"{folder}: an added token must have a number and a content, got {number!r}: {token!r}")
        stated.add(content)
        yield Mark(content, int(number), *(bool(token.get(flag, False)) for flag in flags))
    for content, number in added.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"{folder / ADDED}: {content!r} must have a number, got {number!r}")
        if content not in stated and "added_tokens_decoder" in config:
            raise ValueError(f"{folder / ADDED} has {content!r}, which added_tokens_decoder in {CONFIG} does not have")
        if content not in stated:
            yield Mark(content, number, normalized=content not in special)


def _named(config: Json) -> Iterator[tuple[str, str]]:
    """Special tokens that have a key of their own, such as eos_token."""
    for key, value in config.items():
        content = value.get("content") if isinstance(value, Mapping) else value
        if key.endswith("_token") and isinstance(content, str):
            yield key, content
    if isinstance(tokens := config.get(LISTS[1]), Mapping):
        yield from _named({f"{key.removesuffix('_token')}_token": value for key, value in tokens.items()})


def _contents(path: Path, key: str, config: Json) -> list[str]:
    tokens = config.get(key) or []
    if isinstance(tokens, Mapping):  # named ones
        return []
    contents = []
    for token in tokens:
        content = token.get("content") if isinstance(token, Mapping) else token
        if not isinstance(content, str):
            raise ValueError(f"{path}: {key} must be a list of tokens, got {token!r} in it")
        contents.append(content)
    return contents
