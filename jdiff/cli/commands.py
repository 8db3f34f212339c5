"""The commands that draw from prompts and pictures: generate, edit, inpaint and upscale."""

import dataclasses
import hashlib
from collections.abc import Sequence
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from PIL import Image

from jdiff import images
from jdiff.cli import ladders
from jdiff.cli.drawing import File, Fitted, Prompted, Shown, Size, check_stage, in_words, size_of
from jdiff.cli.errors import accepted, demand
from jdiff.cli.flags import MODEL_DEFAULT, OPTIONAL, REQUIRED, Numbers, PlaceOrNone, TextOrNone, Whole, WholeOrNone
from jdiff.cli.sourced import Sourced, under

if TYPE_CHECKING:
    import jax

    from jdiff.model import Model
    from jdiff.scan import Samples
    from jdiff.types import Level


@dataclasses.dataclass
class Generate(Prompted):
    """Draws pictures of prompts: a sheet with a row for each prompt, or a square of one prompt's pictures."""

    name = "generate"
    example = "jdiff generate 'a red three'"
    own = {"stage2": (str, NoneType)}

    stage2: Annotated[TextOrNone, tyro.conf.arg(metavar="NAME|FOLDER", help_behavior_hint=OPTIONAL)] = None
    """A stage-2 model that enlarges each picture by its own settings: mini-upscaler (to 64 pixels) or another.
    --size then sets the size of the stage-1 pictures."""

    def prepare(self, model: "Model", files: dict[str, File]) -> "Model | None":
        super().prepare(model, files)
        name = self.stage2
        if name is None:
            return None
        from jdiff.model import load

        # both stages of IF read the embeddings of stage 1, so no encoder is loaded beside the second network
        texts = [self.negative, *self.texts()]
        known = accepted(lambda: dict(zip(texts, np.asarray(model.embed(texts)), strict=True)))
        second = accepted(lambda: load(name, dtype=self.dtype, known=known), "--stage2: ")
        demand(second.config.upscales, f"--stage2 must be a stage-2 model, got {name}, which is of stage 1")
        size, step = self.picture_size(model, second), second.config.divisor
        whole = all(length % step == 0 for length in size)
        enlarged = f"--size must lead to multiples of {step} for {name}, got {self.size}, which is enlarged to"
        demand(whole, f"{enlarged} {in_words(size)}; give a square, or sides of which one divides the other")
        return second

    def hash(self, model: "Model", fitted: "Model | None") -> str:
        if fitted is None:
            return model.hash
        return hashlib.sha256(f"{model.hash} {fitted.hash}".encode()).hexdigest()

    def draw(self, model: "Model", fitted: "Model | None", key: "jax.Array", **how: Any) -> "Samples":
        from jdiff.sample import cascade, generate

        how["size"] = size_of(self, model)
        if fitted is None:
            return generate(model, self.prompts, key, **how)
        first, second = cascade(model, fitted, self.prompts, key, **how)
        return second._replace(way=first.way)

    def picture_size(self, model: "Model", fitted: "Model | None") -> Size:
        h, w = size_of(self, model)
        if fitted is None:
            return h, w
        return _enlarged((h, w), fitted)

    def moving(self, model: "Model", fitted: "Model | None") -> tuple[list[str], Size]:
        return self.labels(fitted), super().picture_size(model, fitted)


@dataclasses.dataclass
class Edit(Prompted, Sourced):
    """Adds noise to a picture and denoises it under each prompt (SDEdit): the original, then a row for each prompt."""

    name = "edit"
    example = "jdiff edit three.png 'a red eight'"
    own = {"strength": (int, float, list), "fit": str}

    strength: Annotated[Numbers, tyro.conf.arg(metavar="FLOAT...")] = 0.7
    """How much changes, from above 0 to 1. At 1 nothing of the original is left. Several draw a row for each."""

    def check(self) -> None:
        super().check()
        for strength in ladders.values(self.strength):
            demand(0 < strength <= 1, f"--strength must be above 0 and at most 1, got {strength}")

    def check_levels(self, levels: "Level") -> None:
        from jdiff.sample import first_row

        first_row(levels, *ladders.values(self.strength))

    def draw(self, model: "Model", fitted: np.ndarray, key: "jax.Array", **how: Any) -> "Samples":
        from jdiff.sample import edit

        (strength,) = ladders.values(self.strength)
        return edit(model, fitted, self.prompts, key, strength=strength, **how)


@dataclasses.dataclass
class Inpaint(Prompted, Sourced):
    """Redraws the part of a picture where a mask is white: the original, then a row for each prompt."""

    name = "inpaint"
    example = "jdiff inpaint three.png 'a red eight' --mask mask.png"
    files = ("source", "mask")
    originals = 2
    own = {"resamplings": int, "jump_length": int, "clean": bool, "fit": str}

    mask: Annotated[PlaceOrNone, tyro.conf.arg(metavar="MASK", help_behavior_hint=REQUIRED)] = None
    """A picture of the same size, a file or https://... of one. White is redrawn; black or transparent is kept."""
    resamplings: Annotated[Whole, tyro.conf.arg(metavar="INT")] = 1
    """How often each stretch of steps is walked (RePaint). 1 is once; more blends the new part in better."""
    jump_length: Annotated[Whole, tyro.conf.arg(metavar="INT")] = 10
    """Steps in a stretch, fewer than --steps. It has no effect at --resamplings 1."""
    clean: bool = False
    """Keep the known part free of noise at every step, as diffusers does."""

    def check(self) -> None:
        super().check()
        for flag, value in (("--resamplings", self.resamplings), ("--jump-length", self.jump_length)):
            demand(1 <= value <= 1000, f"{flag} must be between 1 and 1000, got {value}")

    def read(self) -> dict[str, File]:
        files = super().read()
        (h, w), (height, width) = (files[name].pixels.shape[:2] for name in ("mask", "source"))
        wanted = f"--mask must have the picture's size, {width} x {height} pixels"
        demand((h, w) == (height, width), f"{wanted}, got {self.mask} with {w} x {h}")
        return files

    def prepare(self, model: "Model", files: dict[str, File]) -> tuple[np.ndarray, np.ndarray]:
        image = super().prepare(model, files)
        painted = files["mask"].pixels[..., None]
        mask = images.fit(painted, image.shape[:2], self.fit, Image.Resampling.BOX, fill=0)[..., 0] > 0.5
        found = f"got {self.mask}, which is all {'white' if mask.all() else 'black'} there"
        wanted = "--mask must be white where the picture is redrawn and black where it is kept, in the part used"
        demand(bool(mask.any() and not mask.all()), f"{wanted}, {found}")
        return image, mask.astype(np.float32)

    def check_levels(self, levels: "Level") -> None:
        from jdiff.schedule import resample

        resample(levels, self.jump_length, self.resamplings)

    def draw(self, model: "Model", fitted: tuple[np.ndarray, np.ndarray], key: "jax.Array", **how: Any) -> "Samples":
        from jdiff.sample import inpaint

        image, mask = fitted
        how |= {"noised": not self.clean, "resamplings": self.resamplings, "jump_length": self.jump_length}
        return inpaint(model, image, mask, self.prompts, key, **how)

    def labels(self, fitted: Fitted) -> list[str]:
        return ["original", "what is kept of it", *self.texts()]

    def shown(self, made: np.ndarray, fitted: tuple[np.ndarray, np.ndarray]) -> Shown:
        image, mask = fitted
        return Shown(under([image, image * (1 - mask[..., None])], made), self.labels(fitted))


@dataclasses.dataclass
class Upscale(Sourced):
    """Draws a picture again, larger, by a stage-2 model: the original, then the larger pictures."""

    name = "upscale"
    own = {"noise_level": (int, NoneType), "fit": str}

    model: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")] = "mini-upscaler"
    """The stage-2 model: mini-upscaler, the folder of a converted one, or OWNER/NAME of one on the hub."""

    source: Annotated[
        tyro.conf.Positional[PlaceOrNone], tyro.conf.arg(metavar="IMAGE", help_behavior_hint=REQUIRED)
    ] = None  # fmt: skip
    """The picture to enlarge: a file, or https://... of one. It is reduced first to what the model enlarges, 32 pixels
    for mini-upscaler and 64 for IF's, if it is larger."""
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[PROMPT]", help_behavior_hint=OPTIONAL)] = ""
    """What the picture shows, in quotes."""
    noise_level: Annotated[WholeOrNone, tyro.conf.arg(metavar="INT", help_behavior_hint=MODEL_DEFAULT)] = None
    """Timestep to which the original is noised, 0 to 999. With more the model invents more."""

    def texts(self) -> tuple[str, ...]:
        return (self.prompt,)

    def flags(self, texts: Sequence[str]) -> images.Settings:
        (prompt,) = texts
        return {"prompt": prompt}

    def check(self) -> None:
        level = self.noise_level
        demand(level is None or 0 <= level <= 999, f"--noise-level must be between 0 and 999, got {level}")

    def prepare(self, model: "Model", files: dict[str, File]) -> np.ndarray:
        check_stage(self, model, 2)
        h, w = files["source"].pixels.shape[:2]
        side = min(max(h, w) if self.fit == "pad" else min(h, w), model.defaults.low_res)
        small = (side, side)
        if self.size is not None:
            height, width = size_of(self, model)
            small = (height // model.defaults.factor, width // model.defaults.factor)
        reduced = small[0] <= h and small[1] <= w
        return self.fitted(files["source"], small, Image.Resampling.BOX if reduced else Image.Resampling.BILINEAR)

    def draw(self, model: "Model", fitted: np.ndarray, key: "jax.Array", **how: Any) -> "Samples":
        from jdiff.sample import upscale

        how |= {"noise_level": self.noise_level, "side": min(self.picture_size(model, fitted))}
        return upscale(model, fitted, [self.prompt], key, **how)

    def picture_size(self, model: "Model", fitted: np.ndarray) -> Size:
        return size_of(self, model) if self.size is not None else _enlarged(fitted.shape[:2], model)

    def shown(self, made: np.ndarray, fitted: np.ndarray) -> Shown:
        (h, w), (height, width) = fitted.shape[:2], made.shape[2:4]
        rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
        return super().shown(made, fitted[rows][:, columns])


def _enlarged(size: Size, model: "Model") -> Size:
    """Returns the size to which a stage-2 model enlarges a picture."""
    from jdiff.sample import second_size

    return second_size(model, size)[1]
