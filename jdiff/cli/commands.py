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
from jdiff.cli.drawing import File, Fitted, Prompted, Shown, Size, Sourced, check_stage, under
from jdiff.cli.errors import accepted, demand
from jdiff.cli.flags import MODEL_DEFAULT, OPTIONAL, REQUIRED, Number, PlaceOrNone, TextOrNone, Whole, WholeOrNone

if TYPE_CHECKING:
    import jax

    from jdiff.model import Model
    from jdiff.scan import Samples


@dataclasses.dataclass
class Generate(Prompted):
    """Draws pictures of prompts: a sheet with a row for each prompt, or a square of one prompt's pictures."""

    name = "generate"
    example = "jdiff generate 'a red three'"
    own = {"stage2": (str, NoneType)}

    stage2: Annotated[TextOrNone, tyro.conf.arg(metavar="NAME|FOLDER", help_behavior_hint=OPTIONAL)] = None
    """A stage-2 model that enlarges each picture by its own settings: mini-upscaler (to 64 pixels) or another."""

    def fit(self, model: "Model", files: dict[str, File]) -> "Model | None":
        super().fit(model, files)
        name = self.stage2
        if name is None:
            return None
        from jdiff.model import load

        # both stages of IF read the embeddings of stage 1, so no encoder is loaded beside the second network
        texts = [self.negative, *self.texts()]
        known = accepted(lambda: dict(zip(texts, np.asarray(model.embed(texts)), strict=True)))
        second = accepted(lambda: load(name, dtype=self.dtype, known=known), "--stage2: ")
        demand(second.config.upscales, f"--stage2 must be a stage-2 model, got {name}, which is of stage 1")
        return second

    def hash(self, model: "Model", fitted: "Model | None") -> str:
        if fitted is None:
            return model.hash
        return hashlib.sha256(f"{model.hash} {fitted.hash}".encode()).hexdigest()

    def draw(self, model: "Model", fitted: "Model | None", key: "jax.Array", **how: Any) -> "Samples":
        from jdiff.sample import cascade, generate

        if fitted is None:
            return generate(model, self.prompts, key, **how)
        first, second = cascade(model, fitted, self.prompts, key, **how)
        return second._replace(way=first.way)

    def size(self, model: "Model", fitted: "Model | None") -> Size:
        small = model.config.sample_size
        side = small if fitted is None else _enlarged(min(small, fitted.defaults.low_res), fitted)
        return side, side

    def moving(self, model: "Model", fitted: "Model | None") -> tuple[list[str], Size]:
        return self.labels(fitted), super().size(model, fitted)


@dataclasses.dataclass
class Edit(Prompted, Sourced):
    """Adds noise to a picture and denoises it under each prompt (SDEdit): the original, then a row for each prompt."""

    name = "edit"
    example = "jdiff edit three.png 'a red eight'"
    own = {"strength": (int, float)}

    strength: Annotated[Number, tyro.conf.arg(metavar="FLOAT")] = 0.7
    """How much changes, from above 0 to 1. At 1 nothing of the original is left."""

    def check(self) -> None:
        super().check()
        demand(0 < self.strength <= 1, f"--strength must be above 0 and at most 1, got {self.strength}")

    def draw(self, model: "Model", fitted: np.ndarray, key: "jax.Array", **how: Any) -> "Samples":
        from jdiff.sample import edit

        return edit(model, fitted, self.prompts, key, strength=self.strength, **how)


@dataclasses.dataclass
class Inpaint(Prompted, Sourced):
    """Redraws the part of a picture where a mask is white: the original, then a row for each prompt."""

    name = "inpaint"
    example = "jdiff inpaint three.png 'a red eight' --mask mask.png"
    files = ("source", "mask")
    own = {"resamplings": int, "jump_length": int, "clean": bool}

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

    def fit(self, model: "Model", files: dict[str, File]) -> tuple[np.ndarray, np.ndarray]:
        image = super().fit(model, files)
        mask = images.square(files["mask"].pixels[..., None], len(image), Image.Resampling.BOX)[..., 0] > 0.5
        found = f"got {self.mask}, which is all {'white' if mask.all() else 'black'} there"
        wanted = "--mask must be white where the picture is redrawn and black where it is kept, in the middle square"
        demand(bool(mask.any() and not mask.all()), f"{wanted}, {found}")
        return image, mask.astype(np.float32)

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
    own = {"noise_level": (int, NoneType)}

    model: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")] = "mini-upscaler"
    """The stage-2 model: mini-upscaler, the folder of a converted one, or OWNER/NAME of one on the hub."""

    source: Annotated[
        tyro.conf.Positional[PlaceOrNone], tyro.conf.arg(metavar="IMAGE", help_behavior_hint=REQUIRED)
    ] = None  # fmt: skip
    """The picture to enlarge: a file, or https://... of one. Its middle square is reduced first to what the model
    enlarges, 32 pixels for mini-upscaler and 64 for IF's, if it is larger."""
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[PROMPT]", help_behavior_hint=OPTIONAL)] = ""
    """What the picture shows, in quotes."""
    noise_level: Annotated[WholeOrNone, tyro.conf.arg(metavar="INT", help_behavior_hint=MODEL_DEFAULT)] = None
    """Timestep to which the original is noised, 0 to 999. With more the model invents more."""

    def texts(self) -> tuple[str, ...]:
        return (self.prompt,)

    def flags(self, texts: Sequence[str]) -> dict[str, Any]:
        (prompt,) = texts
        return {"prompt": prompt}

    def check(self) -> None:
        level = self.noise_level
        demand(level is None or 0 <= level <= 999, f"--noise-level must be between 0 and 999, got {level}")

    def fit(self, model: "Model", files: dict[str, File]) -> np.ndarray:
        check_stage(self, model, 2)
        pixels = files["source"].pixels
        return images.square(pixels, min(*pixels.shape[:2], model.defaults.low_res), Image.Resampling.BOX)

    def draw(self, model: "Model", fitted: np.ndarray, key: "jax.Array", **how: Any) -> "Samples":
        from jdiff.sample import upscale

        how |= {"noise_level": self.noise_level, "side": _enlarged(len(fitted), model)}
        return upscale(model, fitted, [self.prompt], key, **how)

    def size(self, model: "Model", fitted: np.ndarray) -> Size:
        side = _enlarged(len(fitted), model)
        return side, side

    def shown(self, made: np.ndarray, fitted: np.ndarray) -> Shown:
        near = np.arange(made.shape[2]) * len(fitted) // made.shape[2]
        return super().shown(made, fitted[near][:, near])


def _enlarged(side: int, model: "Model") -> int:
    """The side of what a stage-2 model makes of a square picture: its own size, or more for a larger picture."""
    return max(model.config.sample_size, model.defaults.factor * side)
