"""What the commands that start from a picture have in common."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from PIL import Image

from jdiff import images
from jdiff.cli.drawing import Drawing, File, Fitted, Shown, Size, check_stage, in_words, size_of
from jdiff.cli.errors import accepted
from jdiff.cli.flags import REQUIRED, PlaceOrNone, one_of
from jdiff.cli.process import note

if TYPE_CHECKING:
    from jdiff.model import Model


@dataclasses.dataclass
class Sourced(Drawing):
    """A command that starts from a picture."""

    files = ("source",)
    originals = 1

    source: Annotated[
        tyro.conf.Positional[PlaceOrNone], tyro.conf.arg(metavar="IMAGE", help_behavior_hint=REQUIRED)
    ] = None  # fmt: skip
    """The picture to start from: a file, or https://... of one."""
    fit: Annotated[str, one_of(*images.FITS)] = "crop"
    """How a picture of another shape is used: crop takes its middle, pad adds borders, and stretch squeezes it."""

    def prepare(self, model: "Model", files: dict[str, File]) -> Fitted:
        check_stage(self, model, 1)
        return self.fitted(files["source"], size_of(self, model))

    def fitted(self, file: File, size: Size, resampling: Image.Resampling = Image.Resampling.BILINEAR) -> np.ndarray:
        """Returns a picture at a size, and notes which part of it is used."""
        height, width = file.pixels.shape[:2]
        h, w = images.cropped((height, width), size)
        if self.fit == "crop" and (h, w) != (height, width):
            used = f"{file.path} is {in_words((height, width))}; its middle, {in_words((h, w))}, is used"
            note(f"{used} (--fit pad or stretch uses the whole)")
        return accepted(lambda: images.fit(file.pixels, size, self.fit, resampling))

    def labels(self, fitted: Fitted) -> list[str]:
        return ["original", *self.texts()]

    def shown(self, made: np.ndarray, fitted: Fitted) -> Shown:
        return Shown(under([fitted], made), self.labels(fitted))


def under(originals: Sequence[np.ndarray], made: np.ndarray) -> np.ndarray:
    """Returns rows [r n h w c] with each of `originals` [h w c] first in a row of its own, above `made`."""
    rows = np.full((len(originals), *made.shape[1:]), np.nan, np.float32)
    if made.shape[-1] == 1:  # the model draws in grey
        originals = [original.mean(axis=-1, keepdims=True) for original in originals]
    rows[:, 0] = np.stack(originals)
    return np.concatenate([rows, made])
