"""From a prompt to the tokens that a text encoder reads."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jdiff.text import added

PAD, END, UNKNOWN, FIRST_BYTE = 0, 1, 2, 3  # of T5's vocabulary and of ByT5's, whose bytes follow
BYTE_VOCABULARY = FIRST_BYTE + 256
LENGTH = 77  # tokens that IF was trained with
PIECES = "spiece.model"  # transformers' name for SentencePiece's file

# (prompts, length) -> (tokens, mask), both int32 [n length].
Tokenizer = Callable[[Sequence[str], int], tuple[np.ndarray, np.ndarray]]


def byte_tokens(prompts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the UTF-8 bytes of prompts as tokens: bytes, an end token, padding.

    Args:
        prompts: any text. A prompt of more than `length` - 1 bytes is cut, with a warning that shows what is lost.
        length: tokens of a prompt.

    Returns:
        (tokens, mask), both int32 [n length]. The mask is 1 up to the end token.

    Example:
        >>> tokens, mask = byte_tokens(["hi"], 4)
        >>> tokens.tolist(), mask.tolist()
        ([[107, 108, 1, 0]], [[1, 1, 1, 0]])

    Reference:
        Xue et al. 2021 (ByT5), section 3.1.
    """
    rows = []
    for prompt in prompts:
        data = prompt.encode()
        if len(data) >= length:
            lost = data[length - 1 :].decode(errors="replace")
            warnings.warn(f"the prompt is cut at {length - 1} bytes: {lost!r} is lost of {prompt!r}", stacklevel=2)
        rows.append([byte + FIRST_BYTE for byte in data[: length - 1]])
    return _fill(rows, length)


def piece_tokens(folder: str | Path) -> Tokenizer:
    """Returns a function that reads prompts as T5's tokens: pieces, an end token, padding.

    `</s>`, `<extra_id_0>` and their like, and the tokens that the folder adds, are read as those tokens. A prompt of
    more than `length` - 1 tokens is cut, with a warning that shows what is lost.

    The tokens are those of transformers 4 and 5, except in three rare cases. transformers 5 normalises by its own code
    in the place of SentencePiece's: there U+0085 is no space, and a combining mark stays on a character that is
    normalised away. transformers 4 adds no second `</s>` to a prompt that ends in one; this and transformers 5 do.

    Args:
        folder: folder with the tokenizer's files; spiece.model is needed, and the extra `text` to read it.

    Returns:
        (prompts, length) -> (tokens, mask), both int32 [n length]. The mask is 1 up to the end token.

    Raises:
        ValueError: sentencepiece is not installed, spiece.model is not T5's, or the folder adds tokens in a way that
            transformers reads differently.

    Reference:
        Raffel et al. 2020 (T5), section 3.1; transformers' `T5Tokenizer`.
    """
    folder = Path(folder)
    path = folder / PIECES
    try:
        import sentencepiece
    except ImportError as error:
        raise ValueError(f"{path} needs sentencepiece to be read: pip install sentencepiece") from error
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        characters = sentencepiece.SentencePieceNormalizer(
            model_file=str(path), add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=False
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as a SentencePiece model: {' '.join(str(error).split())}") from error
    first = (model.pad_id(), model.eos_id(), model.unk_id())
    if first != (PAD, END, UNKNOWN):
        raise ValueError(f"{path} must number padding, end and unknown {(PAD, END, UNKNOWN)}, as T5 does, got {first}")
    marks = added.read(folder, {model.id_to_piece(i): i for i in range(model.vocab_size())})
    contents = {mark.number: mark.content for mark in marks}
    split = added.splitter(marks, characters.Normalize)

    def read(prompts: Sequence[str], length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for prompt in prompts:
            parts = ([part] if isinstance(part, int) else model.encode(part) for part in split(prompt))
            row = list(itertools.chain.from_iterable(parts))
            if len(row) >= length:
                lost = "".join(contents.get(token) or model.id_to_piece(token) for token in row[length - 1 :])
                lost = lost.replace("\u2581", " ").strip()
                warnings.warn(f"the prompt is cut at {length - 1} tokens: {lost!r} is lost of {prompt!r}", stacklevel=2)
            rows.append(row[: length - 1])
        return _fill(rows, length)

    return read


def _fill(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask), both int32 [n length], of rows of fewer than `length` tokens: an end token, then padding."""
    tokens = np.full((len(rows), length), PAD, np.int32)
    for row, given in zip(tokens, rows, strict=True):
        row[: len(given)] = given
        row[len(given)] = END
    ends = np.array([len(row) for row in rows], np.int32)
    return tokens, (np.arange(length)[None] <= ends[:, None]).astype(np.int32)
