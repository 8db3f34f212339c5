"""Embeddings that an encoder made, kept in memory and in a folder, so that a prompt is encoded once."""

import functools
import hashlib
import json
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jdiff.checkpoints import files
from jdiff.text.encoder import Encoder, cleaned

REMEMBERED = 2**27  # bytes of embeddings in memory; one of T5 XXL takes 1.3 MB


class Made(NamedTuple):
    """One embedding, and the warnings that it was made with."""

    states: np.ndarray  # float32 [l d]
    warned: list[str]


class Kept:
    """Embeddings of an encoder: from memory, from a folder, or made.

    Args:
        encoder: makes what is in neither, all at once; its weights are then freed again.
        folder: where embeddings are kept between processes, under the encoder's hash, its cleaning mode and the text.
            None keeps none. A folder that cannot be read or written is a warning.
    """

    def __init__(self, encoder: Encoder, folder: Path | None):
        self._encoder, self._folder = encoder, folder
        self._memory: OrderedDict[str, Made] = OrderedDict()  # by cleaned text, oldest first
        self._lock = threading.Lock()

    def __call__(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns {prompt: embedding [l d]}. A warning that a prompt is cut is repeated each time."""
        texts = {prompt: cleaned(self._encoder.clean, prompt) for prompt in prompts}
        with self._lock:
            found = {text: made for text in texts.values() if (made := self._found(text)) is not None}
            lacking: dict[str, str] = {}
            for prompt, text in texts.items():
                if text not in found:
                    lacking.setdefault(text, prompt)
            if lacking:
                found |= self._make(lacking)
            self._remember(found)
        for made in found.values():
            for message in made.warned:
                warnings.warn(message, stacklevel=4)
        return {prompt: found[text].states for prompt, text in texts.items()}

    def _found(self, text: str) -> Made | None:
        if text in self._memory:
            return self._memory[text]
        return None if self._folder is None else self._read(self._place(text))

    def _make(self, lacking: dict[str, str]) -> dict[str, Made]:
        """Encodes {cleaned text: prompt}."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            states = self._encoder.encode(list(lacking.values()))
        messages = [str(warning.message) for warning in said]
        made = {}
        for text, x in zip(lacking, states, strict=True):
            made[text] = Made(np.array(x), [message for message in messages if message.endswith(f" of {text!r}")])
            if self._folder is not None:
                self._write(self._place(text), text, made[text])
        for message in messages:
            if not any(message in one.warned for one in made.values()):
                warnings.warn(message, stacklevel=5)
        return made

    def _remember(self, found: dict[str, Made]) -> None:
        for text, made in found.items():
            self._memory[text] = made
            self._memory.move_to_end(text)
        size = sum(made.states.nbytes for made in self._memory.values())
        while size > REMEMBERED:
            _, made = self._memory.popitem(last=False)
            size -= made.states.nbytes

    @functools.cached_property
    def _hash(self) -> str:
        return self._encoder.hash  # reads the weights

    def _place(self, text: str) -> Path:
        told = [self._hash, self._encoder.clean, text]
        return Path(str(self._folder)) / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()}.safetensors"

    def _read(self, path: Path) -> Made | None:
        """What is kept in a file; None if there is none, or if it is damaged."""
        shape = np.broadcast_to(np.float32(0), (self._encoder.length, self._encoder.width))
        try:
            if not path.is_file():
                return None
            states = files.load(path, {"states": shape})["states"]
            warned = json.loads(files.read_header(path)[1].get("warnings", "[]"))
        except (ValueError, OSError):
            return None
        return Made(states, [str(message) for message in warned])

    def _write(self, path: Path, text: str, made: Made) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.save(path, {"states": made.states}, {"prompt": text, "warnings": json.dumps(made.warned)})
        except OSError as error:
            warnings.warn(f"the embedding of {text!r} cannot be kept in {path.parent}: {error}", stacklevel=6)
