"""What a page asks for: a command of jdiff with its files, and the same in words and in Python. No Gradio here."""

import dataclasses
import hashlib
import io
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jdiff import images
from jdiff.cli.commands import Edit, Generate, Inpaint
from jdiff.cli.drawing import Drawing, File, check_values
from jdiff.cli.errors import demand
from jdiff.cli.illusions import Anagram, Hybrid
from jdiff.cli.letters import Ambigram
from jdiff.cli.mnist import Sample as Digits

Command = Drawing | Ambigram | Digits

# Fields of commands that are written without a flag, in this order.
POSITIONAL = ("source", "kind", "words", "prompts")
# Fields that say where files go and how a command reports; a page has no use for them.
APART = ("output", "separate", "gif", "mp4", "npz", "svg", "like", "quiet", "embeddings")
# Strengths of the ladder of edits.
LADDER = (0.3, 0.45, 0.6, 0.7, 0.8, 0.9)
# Steps that RePaint jumps back, or half of them where there are fewer: a jump over all of them would be none.
JUMP = 10
# Most pictures of a page, over all prompts.
MOST = 64
# Most bytes and megapixels of an upload.
LARGEST_FILE, LARGEST = 20 * 2**20, 24
# Letters of a file's digest in its name.
DIGEST = 8


class Task(NamedTuple):
    """What a page asks for."""

    command: Command
    files: Mapping[str, File] = {}  # by the command's field: "source" and "mask"
    data: Mapping[str, bytes] = {}  # the same as PNG, by file name
    strengths: Sequence[float] = ()  # of a ladder of edits; the command's own stands alone where there are none


class Common(NamedTuple):
    """What all pages that draw from prompts ask for."""

    model: str = "mini"
    n: int = 4
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    negative: str = ""


def prompts_of(text: str) -> tuple[str, ...]:
    """Returns the prompts of a text box, one a line.

    Example:
        >>> prompts_of("a red three\\n\\n a blue 4 ")
        ('a red three', 'a blue 4')
    """
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def generate(common: Common, prompts: Sequence[str]) -> Task:
    """Returns the task of drawing prompts.

    Raises:
        BadInput: a value is wrong, in one line; so do the other tasks.

    Example:
        >>> words(generate(Common(n=2, steps=8), ["a red three"]))
        "jdiff generate 'a red three' -n 2 --steps 8"
    """
    return checked(Task(Generate(prompts=tuple(prompts), **common._asdict())))


def edit(
    common: Common, image: np.ndarray, prompts: Sequence[str], strength: float, ladder: bool = False
) -> Task:  # fmt: skip
    """Returns the task of editing a picture [h w 3], at one strength or at those of `LADDER`."""
    file, data = as_file("picture", image)
    command = Edit(source=file.path, prompts=tuple(prompts), strength=strength, **common._asdict())
    return checked(Task(command, {"source": file}, data, LADDER if ladder else ()))


def inpaint(
    common: Common, image: np.ndarray, mask: np.ndarray, prompts: Sequence[str], resamplings: int = 1
) -> Task:  # fmt: skip
    """Returns the task of redrawing a picture [h w 3] where a mask [h w] is 1."""
    demand(bool(mask.any()), "the mask is empty; paint over the part of the picture that is to be redrawn")
    demand(not mask.all(), "the mask covers the whole picture; leave a part of it that is kept")
    source, data = as_file("picture", image)
    painted, more = as_file("mask", mask)
    jump = min(JUMP, max(1, (common.steps or 2 * JUMP) // 2))
    how: dict[str, Any] = common._asdict() | {"resamplings": resamplings, "jump_length": jump}
    command = Inpaint(source=source.path, mask=painted.path, prompts=tuple(prompts), **how)
    return checked(Task(command, {"source": source, "mask": painted}, {**data, **more}))


def anagram(common: Common, prompts: Sequence[str], views: Sequence[str]) -> Task:
    """Returns the task of drawing one picture that shows each prompt in its view."""
    return checked(Task(Anagram(prompts=tuple(prompts), view=tuple(views), **common._asdict())))


def hybrid(common: Common, low: str, high: str, sigma: float) -> Task:
    """Returns the task of drawing one picture with one prompt from afar and another from near."""
    demand(bool(low.strip() and high.strip()), "a prompt is missing; give what is seen from afar and from near")
    return checked(Task(Hybrid(low=low.strip(), high=high.strip(), sigma=sigma, **common._asdict())))


def ambigram(words: Sequence[str], *, view: str, style: str, n: int, steps: int, seed: int, model: str) -> Task:
    """Returns the task of drawing a word that reads the same, or as another word, when it is turned."""
    given = tuple(word.strip() for word in words if word.strip())
    command = Ambigram(words=given, view=view, style=style or None, n=n, steps=steps, seed=seed, model=model)
    command.settings()  # raises for values that are out of range
    return Task(command)


def digits(kind: str, *, n: int, steps: int | None, guidance: float | None, seed: int) -> Task:
    """Returns the task of drawing MNIST's digits."""
    guidance = guidance if "class" in kind else None  # the others know no class
    command = Digits(kind=kind, n=n, steps=steps, guidance=guidance, seed=seed, output=Path("digits.png"))
    demand(1 <= 10 * n <= MOST, f"pictures of each digit must be between 1 and {MOST // 10}, got {n}")
    return Task(command)


def checked(task: Task) -> Task:
    """Returns a task whose values are right.

    Raises:
        BadInput: one is wrong, or it asks for more than `MOST` pictures.
    """
    command = task.command
    assert isinstance(command, Drawing)
    check_values(command)
    wanted = command.count(command.texts()) * command.n * max(1, len(task.strengths))
    demand(wanted <= MOST, f"a page draws at most {MOST} pictures at once, got {wanted}; ask for fewer")
    return task


def each(task: Task) -> list[Command]:
    """Returns the commands of a task: one, or one for each strength of a ladder."""
    if not task.strengths or not isinstance(task.command, Edit):
        return [task.command]
    return [dataclasses.replace(task.command, strength=strength) for strength in task.strengths]


def words(task: Task) -> str:
    """Returns a task as a line of a shell, without the file that is written.

    Example:
        >>> words(anagram(Common(n=4, seed=7), ["a red six", "a red nine"], ["identity", "flip"]))
        "jdiff anagram 'a red six' 'a red nine' --seed 7 --view identity --view flip"
    """
    command = task.command
    if task.strengths and isinstance(command, Edit):
        one = words(task._replace(command=dataclasses.replace(command, strength=-1.0), strengths=()))
        line = one.replace("--strength=-1.0", '--strength "$s"')
        return f'for s in {" ".join(map(str, task.strengths))}; do {line} -o "edit-$s.png"; done'
    return shlex.join(_words(command))


def _words(command: Command) -> list[str]:
    name = command.name if isinstance(command, Drawing) else "ambigram"
    line = ["jdiff", "mnist", "sample"] if isinstance(command, Digits) else ["jdiff", name]
    fields = {field.name: field for field in dataclasses.fields(command)}
    positional: list[str] = []
    for name in POSITIONAL:
        value = getattr(command, name, ())
        positional += [str(entry) for entry in (value if isinstance(value, tuple) else (value,))]
    last = any(word.startswith("-") for word in positional)  # a parser would take it for a flag
    line += [] if last else positional
    for name, field in fields.items():
        value = getattr(command, name)
        own_output = isinstance(command, Digits) and name == "output"  # it writes nothing without
        if name in POSITIONAL or name in APART and not own_output or value in (field.default, None):
            continue
        flag = {"n": "-n", "output": "-o"}.get(name, "--" + name.replace("_", "-"))
        if value is True:
            line.append(flag)
            continue
        for entry in value if isinstance(value, tuple) else (value,):
            line += [f"{flag}={entry}"] if str(entry).startswith("-") else [flag, str(entry)]
    return [*line, "--", *positional] if last else line


def as_file(name: str, image: np.ndarray) -> tuple[File, dict[str, bytes]]:
    """Returns a picture [h w 3] in [-1, 1], or a mask [h w] in {0, 1}, as a command reads it from a file.

    Args:
        name: what the file is called; a part of its digest is added.
        image: the picture.

    Returns:
        The file as it is read, and its bytes by its name.
    """
    is_mask = image.ndim == 2
    data = images.png(2 * image[..., None] - 1 if is_mask else image)
    sha256 = hashlib.sha256(data).hexdigest()
    path = Path(f"{name}-{sha256[:DIGEST]}.png")
    picture = images.decode(data, path.name)
    pixels = images.mask_of(picture.colour, picture.alpha, path.name) if is_mask else images.on_white(picture)
    return File(path, sha256, pixels), {path.name: data}


def uploaded(data: bytes, name: str, side: int) -> np.ndarray:
    """Returns the middle square of an uploaded picture, [side side 3] in [-1, 1].

    Raises:
        ValueError: it has too many bytes or pixels, or is no picture, in one line.
    """
    if len(data) > LARGEST_FILE:
        raise ValueError(f"{name} must have at most {LARGEST_FILE // 2**20} megabytes, got {len(data) / 2**20:.0f}")
    wanted = f"{name} must have at most {LARGEST} megapixels, got"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise ValueError(f"{wanted} many more; make it smaller") from error
    except Exception:  # `decode` says what is wrong
        width = height = 0
    if width * height > LARGEST * 10**6:
        raise ValueError(f"{wanted} {width} x {height}; make it smaller")
    return images.square(images.on_white(images.decode(data, name)), side)
