"""From a prompt to the tokens that a text encoder reads."""

import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jdiff.text.cleaning import CLEANING as CLEANING

PAD, END, UNKNOWN, FIRST_BYTE = 0, 1, 2, 3  # ByT5's bytes come fourth; T5's pieces have the same first three
BYTE_VOCABULARY = FIRST_BYTE + 256
LENGTH = 77  # tokens IF was trained with
PIECES = "spiece.model"  # SentencePiece's file, under the name transformers gives it
EXTRA = 100  # T5's marks <extra_id_0> to <extra_id_99>, the last of the vocabulary, backwards


def _fill(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask), both int32 [n length], of rows of fewer than `length` tokens: an end token, then padding."""
    tokens = np.full((len(rows), length), PAD, np.int32)
    for row, given in zip(tokens, rows, strict=True):
        row[: len(given)] = given
        row[len(given)] = END
    ends = np.array([len(row) for row in rows], np.int32)
    return tokens, (np.arange(length)[None] <= ends[:, None]).astype(np.int32)


def byte_tokens(prompts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask), both int32 [n l]: the UTF-8 bytes of each prompt, an end token, padding; mask 1 up to the end.

    A prompt of more than `length` - 1 bytes is cut, with a warning that shows what was lost.

    >>> tokens, mask = byte_tokens(["hi"], 4)
    >>> tokens.tolist(), mask.tolist()
    ([[107, 108, 1, 0]], [[1, 1, 1, 0]])

    Source: ByT5 (Xue et al. 2021), section 3.1: bytes as they are, no vocabulary file.
    """
    rows = []
    for prompt in prompts:
        data = prompt.encode()
        if len(data) >= length:
            lost = data[length - 1 :].decode(errors="replace")
            warnings.warn(f"the prompt is cut at {length - 1} bytes: {lost!r} is lost of {prompt!r}", stacklevel=2)
        rows.append([byte + FIRST_BYTE for byte in data[: length - 1]])
    return _fill(rows, length)


def piece_tokens(path: str | Path, extra: int = EXTRA) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """(prompts, length=77) -> (tokens, mask), both int32 [n length], by the SentencePiece model at `path`.

    An end token, then padding; mask 1 up to the end. `<pad>`, `</s>`, `<unk>` and `<extra_id_0>` up to `extra` - 1 in
    a prompt are those tokens. A prompt of more than `length` - 1 tokens is cut, with a warning that shows what was
    lost. Needs sentencepiece (the extra `text`); raises ValueError without it, and where the file is none of T5's.

    Two rare kinds of prompts have other tokens in transformers 5, whose T5Tokenizer has its own normalisation where
    4's had SentencePiece's, as here: U+0085, to which that gives no space, and a combining mark on a character that is
    itself normalised away. Where a prompt ends in `</s>`, 5 and this add another, 4 did not.

    Source: T5 (Raffel et al. 2020), section 3.1; transformers' `T5Tokenizer`.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise ValueError(f"{path} needs sentencepiece to be read: pip install 'jdiff[text]'") from error
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} is no SentencePiece model: {' '.join(str(error).split())}") from error
    first = (model.pad_id(), model.eos_id(), model.unk_id())
    if first != (PAD, END, UNKNOWN):
        raise ValueError(f"{path} has padding, end and unknown at {first}, accepted are T5's {(PAD, END, UNKNOWN)}")
    marks = {"<pad>": PAD, "</s>": END, "<unk>": UNKNOWN}
    marks |= {f"<extra_id_{i}>": model.vocab_size() + extra - 1 - i for i in range(extra)}
    names = {token: mark for mark, token in marks.items()}
    split = re.compile(f"({'|'.join(marks)})")

    def read(prompts: Sequence[str], length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for prompt in prompts:
            parts = ([marks[part]] if part in marks else model.encode(part) for part in split.split(prompt))
            row = list(itertools.chain.from_iterable(parts))
            if len(row) >= length:
                lost = "".join(names.get(token) or model.id_to_piece(token) for token in row[length - 1 :])
                lost = lost.replace("\u2581", " ").strip()
                warnings.warn(f"the prompt is cut at {length - 1} tokens: {lost!r} is lost of {prompt!r}", stacklevel=2)
            rows.append(row[: length - 1])
        return _fill(rows, length)

    return read
