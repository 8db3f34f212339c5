"""From a prompt to the tokens that a text encoder reads."""

import warnings
from collections.abc import Sequence

import numpy as np

PAD, END, FIRST_BYTE = 0, 1, 3  # ByT5's: padding, end of text, (2 is unknown,) then the 256 bytes
BYTE_VOCABULARY = FIRST_BYTE + 256


def clean(prompt: str) -> str:
    """`prompt` in lower case without space around it, as diffusers' `encode_prompt` has it.

    >>> clean("  A Red Three ")
    'a red three'
    """
    return prompt.lower().strip()


def byte_tokens(prompts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, mask), both int32 [n l]: the UTF-8 bytes of each prompt, an end token, padding; mask 1 up to the end.

    A prompt of more than `length` - 1 bytes is cut, with a warning that shows what was lost.

    >>> tokens, mask = byte_tokens(["hi"], 4)
    >>> tokens.tolist(), mask.tolist()
    ([[107, 108, 1, 0]], [[1, 1, 1, 0]])

    Source: ByT5 (Xue et al. 2021), section 3.1: bytes as they are, no vocabulary file.
    """
    tokens = np.full((len(prompts), length), PAD, np.int32)
    mask = np.zeros_like(tokens)
    for row, keep, prompt in zip(tokens, mask, prompts, strict=True):
        data = prompt.encode()
        if len(data) >= length:
            lost = data[length - 1 :].decode(errors="replace")
            warnings.warn(f"the prompt is cut at {length - 1} bytes: {lost!r} is lost of {prompt!r}", stacklevel=2)
            data = data[: length - 1]
        row[: len(data)] = np.frombuffer(data, np.uint8).astype(np.int32) + FIRST_BYTE
        row[len(data)] = END
        keep[: len(data) + 1] = 1
    return tokens, mask
