"""The prompts and masks of part A's figures: the course's for IF, others for the mini model, or the user's."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import images, views
from jdiff.types import Array


class Edition(NamedTuple):
    """The prompts and masks of all figures: the course's for IF, and others that the mini model knows."""

    sampling: tuple[str, ...]  # part 0
    neutral: str  # for pictures without a prompt of their own
    pictures: tuple[tuple[str, str], ...]  # name and prompt of pictures that the model draws in the place of photos
    drawings: tuple[str, ...]  # prompts of the two drawings
    edits: tuple[str, ...]  # part 1.7.3, one for each picture
    boxes: tuple[tuple[int, int, int, int], ...]  # part 1.7.2: top, bottom, left, right of each mask, at 64 pixels
    anagrams: tuple[tuple[str, str, str], ...]  # view, prompt upright, prompt under the view
    hybrids: tuple[tuple[str, str], ...]  # far prompt, near prompt
    sigmas: tuple[float, ...]  # standard deviation of each hybrid's blur, at 64 pixels
    guidance: float | None  # None is the model's default


ASKED = (
    "sampling",
    "neutral",
    "pictures",
    "drawings",
    "edits",
    "anagrams",
    "hybrids",
)  # fields that --prompts can replace
COURSE_BOX = (2, 20, 24, 42)  # the top of the tower in the course's picture
IF = Edition(
    ("an oil painting of a snowy mountain village", "a man wearing a hat", "a rocket ship"),
    "a high quality photo",
    (("a picture", "a photo of a dog"), ("another", "a lithograph of waterfalls"),
     ("a third", "an oil painting of an old man")),
    ("a high quality photo", "a high quality photo"),
    ("a rocket ship", "a pencil", "a photo of a hipster barista"),
    (COURSE_BOX, (16, 48, 16, 48), (32, 64, 0, 64)),
    (("flip", "an oil painting of an old man", "an oil painting of people around a campfire"),
     ("rotate_180", "a lithograph of waterfalls", "a photo of a dog"),
     ("negate", "a lithograph of a skull", "a man wearing a hat")),
    (("a lithograph of a skull", "a lithograph of waterfalls"),
     ("an oil painting of an old man", "an oil painting of a snowy mountain village"),
     ("a photo of a dog", "a rocket ship")),
    (2.0, 2.0, 2.0),
    7.0,
)  # fmt: skip
MINI = Edition(
    ("a red three", "the digit 8 in cyan", "a blue five on white"),
    "a red three",
    (("a picture", "a red three"), ("another", "a yellow eight"), ("a third", "a blue five on white")),
    ("a magenta four", "a green zero"),
    ("a blue eight", "a green two", "a red nine on white"),
    ((0, 64, 32, 64), (32, 64, 0, 64), (16, 48, 16, 48)),
    (("rotate_180", "a red six", "a red nine"), ("flip", "a green two", "a green five"),
     ("negate", "a yellow three", "a blue three on white")),
    (("a white one", "a white eight"), ("a yellow three", "a yellow eight"), ("a cyan nine", "a cyan four")),
    (2.5, 3.5, 2.5),  # as in docs/results.md
    None,
)  # fmt: skip
DRAWN = (
    ((190, 20, 190), [[(36, 8), (14, 38), (50, 38)], [(40, 22), (38, 56)]]),  # a four
    ((20, 160, 40), [[(30, 10), (18, 22), (16, 40), (28, 54), (42, 50), (48, 32), (42, 14), (30, 10)]]),
)  # colour and strokes of each drawing, at 64 pixels


def boxes(edition: Edition, side: int) -> list[Array]:
    """Returns the masks [side side] of an edition."""
    masks = []
    for box in edition.boxes:
        top, bottom, left, right = (n * side // 64 for n in box)
        masks.append(jnp.zeros((side, side)).at[top:bottom, left:right].set(1))
    return masks


def read_mask(path: Path, side: int) -> Array:
    """Reads a mask [side side]: 1 where the picture is white, otherwise 0.

    Raises:
        ValueError: the picture is all white or all black.
    """
    mask = (images.square(images.load(path), side).mean(-1) > 0).astype(np.float32)
    if mask.min() == mask.max():
        raise ValueError(
            f"--mask must be partly white and partly black, got {path}, all {'white' if mask.max() else 'black'}"
        )
    return jnp.asarray(mask)


def read_prompts(path: Path, edition: Edition) -> Edition:
    """Returns an edition with some prompts replaced by those of a JSON file.

    Args:
        path: path of a file that holds a JSON object. Its keys are in `ASKED`.
        edition: the edition. The new prompts must have the same structure as the old ones.

    Raises:
        ValueError: the file cannot be read, or a key, a value or a view is wrong.
    """
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--prompts cannot be read as JSON, got {path}: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(given).__name__}")
    for name, prompts in given.items():
        if name not in ASKED:
            raise ValueError(f"{path}: keys must be of {', '.join(ASKED)}, got {name!r}")
        before = getattr(edition, name)
        given[name] = as_tuples(prompts)
        same = jax.tree.structure(given[name]) == jax.tree.structure(before)
        if not same or not all(isinstance(a, str) for a in jax.tree.leaves(given[name])):
            raise ValueError(
                f"{path}: {name} must have the structure of {json.dumps(before)}, got {json.dumps(prompts)}"
            )
    edition = edition._replace(**given)
    if unknown := {view for view, *_ in edition.anagrams} - views.VIEWS.keys():
        raise ValueError(f"{path}: views must be of {', '.join(views.VIEWS)}, got {', '.join(sorted(unknown))}")
    return edition


def as_tuples(value: Any) -> Any:
    """Returns nested lists as nested tuples."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value
