"""The files that a command writes. They are checked before anything is drawn. If one fails, the others are written."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jdiff import images
from jdiff.cli import ladders
from jdiff.cli.drawing import Drawing, Fitted, alone
from jdiff.cli.errors import accepted, demand, explained, one_line
from jdiff.cli.settings import Settings
from jdiff.images.read import LARGEST

if TYPE_CHECKING:
    from jdiff.model import Model

# Pixels that a picture on a sheet is enlarged to: few pictures of one prompt, and all others.
FEW, LARGE, SMALL = 4, 192, 128


class Done(NamedTuple):
    """What a command has done: a line for stdout, and one for stderr for each file that could not be written."""

    line: str
    failed: Sequence[str] = ()


class Output(NamedTuple):
    """A file to write."""

    path: Path
    write: Callable[[], None]


class Arranged(NamedTuple):
    """How rows of pictures lie on a sheet."""

    rows: int
    columns: int
    how: dict[str, Any]  # keywords of `jdiff.images.grid`


def write(outputs: Sequence[Output], what: str) -> Done:
    """Writes files in this order. One that fails is told, and the others are still written.

    Args:
        outputs: the files.
        what: is in them, such as "4 pictures, 32 x 32".
    """
    written, failed = [], []
    for path, save in outputs:
        try:
            save()
            written.append(str(path))
        except Exception as error:  # whatever happens to one file, the pictures must not be lost
            _, why = explained(error) or (None, f"{type(error).__name__}: {one_line(error)}")
            failed.append(f"{path} could not be written: {why.removeprefix(f'{path}: ')}")
    return Done(f"wrote {', '.join(written)}: {what}" if written else "", failed)


def check_sizes(command: Drawing, model: "Model", fitted: Fitted) -> None:
    """Checks that the sheet and the animation do not become too large for their files.

    Raises:
        BadInput: one does.
    """
    n = command.n
    advice = f"draw fewer than {n} pictures in a row" if n > 1 else "draw fewer rows, or at a smaller --size"
    labels, title = ladders.labels(command, fitted)
    height, width = _sheet_size(labels, n, *command.picture_size(model, fitted), title=title)
    accepted(lambda: images.check_size(command.output, height, width), "-o: ")
    found = f"got {width} x {height}; {advice}"
    demand(height * width <= LARGEST * 10**6, f"-o: the sheet must have at most {LARGEST} megapixels, {found}")
    labels, size = command.moving(model, fitted)
    height, width = _sheet_size(labels, n, *size)
    for flag, path in (("--gif", command.gif), ("--mp4", command.mp4)):
        if path is not None:
            accepted(lambda path=path: images.check_size(path, height, width), f"{flag}: ")


def of(command: Drawing, settings: Settings, fitted: Fitted, made: np.ndarray, way: np.ndarray | None) -> list[Output]:
    """Returns the files of a command, the sheet first.

    Args:
        command: that drew.
        settings: what the PNGs tell.
        fitted: of the command.
        made: images [p n h w c]; one of NaN is left out.
        way: [p n m h w c].
    """
    p, n = made.shape[:2]
    only = settings["image"]
    finite = np.asarray(np.isfinite(made).all(axis=(2, 3, 4)))

    def whole() -> None:
        picture = sheet(*ladders.shown(command, made, fitted)) if only is None else made[only[0], only[1]]
        images.save(command.output, picture, settings)

    def save_alone(path: Path, i: int, j: int) -> None:
        images.save(path, made[i, j], settings | {"image": [i, j]})

    def arrays(path: Path) -> None:
        texts, rungs, ladder = command.texts(), ladders.rungs(command), ladders.of(command)
        rows = [text for text in (texts if len(texts) * rungs == p else [texts]) for _ in range(rungs * n)]
        values: Settings = {}
        if ladder is not None:
            values[ladder.name] = np.tile(np.repeat(ladder.values, n), p // rungs)
        with images.beside(path) as file:
            np.savez_compressed(file, images=made.reshape(p * n, *made.shape[2:]), prompts=np.array(rows), **values)

    frames: list[np.ndarray] = []  # drawn once, for the first file that needs them

    def animation(path: Path, save: Callable[..., None]) -> None:
        if not frames:
            still = np.where(finite[..., None, None, None], made, np.float32(-1))
            shown = command.frames(still, None if way is None else np.nan_to_num(way, nan=-1.0), fitted)
            frames.append(np.stack([sheet(*frame) for frame in shown]))
        save(path, frames[0], seconds=max(3.0, len(frames[0]) / 20))

    outputs = [Output(command.output, whole)]
    if command.separate:
        for i, j in np.argwhere(finite):
            path = alone(command.output, i, j)
            outputs.append(Output(path, lambda path=path, i=int(i), j=int(j): save_alone(path, i, j)))
    if (npz := command.npz) is not None:
        outputs.append(Output(npz, lambda: arrays(npz)))
    if (gif := command.gif) is not None:
        outputs.append(Output(gif, lambda: animation(gif, images.save_gif)))
    if (mp4 := command.mp4) is not None:
        outputs.append(Output(mp4, lambda: animation(mp4, images.save_mp4)))
    return outputs


def sheet(rows: np.ndarray, labels: Sequence[str], title: str | None = None) -> np.ndarray:
    """Returns a labelled sheet [h w 3] uint8: a row of pictures for each label, or a square under the only one.

    A ladder of single pictures is one row.

    Args:
        rows: [r n h w c].
        labels: [r].
        title: of a ladder.

    Example:
        >>> sheet(np.zeros((1, 4, 32, 32, 3)), ["a red three"]).dtype
        dtype('uint8')
    """
    arranged = _arranged(labels, rows.shape[1], title)
    cells = np.full((arranged.rows * arranged.columns, *rows.shape[2:]), np.nan, np.float32)
    cells[: rows.shape[0] * rows.shape[1]] = rows.reshape(-1, *rows.shape[2:])
    return images.grid(cells.reshape(arranged.rows, arranged.columns, *rows.shape[2:]), **arranged.how)


def _arranged(labels: Sequence[str], n: int, title: str | None) -> Arranged:
    labels = [label.strip() or "(no prompt)" for label in labels]
    if title is not None:
        if n == 1 and title:
            return Arranged(1, len(labels), {"column_labels": labels, "title": title, "cell": SMALL})
        return Arranged(len(labels), n, {"row_labels": labels, "title": title, "cell": SMALL})
    if len(labels) > 1:
        return Arranged(len(labels), n, {"row_labels": labels, "cell": SMALL})
    root = math.isqrt(n - 1) + 1
    columns = next((c for c in range(root, 2 * root) if n % c == 0), root)
    return Arranged(-(-n // columns), columns, {"title": labels[0], "cell": LARGE if n <= FEW else SMALL})


def _sheet_size(labels: Sequence[str], n: int, height: int, width: int, title: str | None = None) -> tuple[int, int]:
    rows, columns, how = _arranged(labels, n, title)
    return images.sheet_size((rows, columns, height, width), **how)
