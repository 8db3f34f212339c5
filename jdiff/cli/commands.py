"""What each command of `jdiff` is: its flags, what it reads, how it draws, what its sheet shows. JAX comes late."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import tyro
from PIL import Image

from jdiff import images as pictures

Dtype = Literal["float32", "bfloat16", "float16"]
KEPT = 20  # pictures of the way in a GIF
MOVING = 20  # frames from one reading of an anagram to the next, and for as long each stands still
MODEL_DEFAULT = "(default: the model's own)"


class BadInput(Exception):
    """What the user gave cannot be done; its text says what was given and what is accepted."""


class File(NamedTuple):
    """A picture that was read."""

    path: Path
    sha256: str
    pixels: np.ndarray  # [h w 3]


class Shown(NamedTuple):
    """What a sheet shows."""

    rows: np.ndarray  # [r n h w 3]; a cell of NaN stays empty
    labels: Sequence[str]  # [r]


def demand(holds: bool, message: str) -> None:
    """Nothing; raises BadInput with `message` unless it holds."""
    if not holds:
        raise BadInput(message)


def accepted(function: Callable[[], Any], about: str = "") -> Any:
    """What `function()` returns; a ValueError, or a file that cannot be read, becomes one line of BadInput."""
    try:
        return function()
    except (ValueError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        first, *rest = lines or ["bad input"]
        raise BadInput(about + " ".join([first, "; ".join(rest)]).strip()) from error


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8."""
    try:
        return bool(text.encode()) or True
    except UnicodeEncodeError:
        return False


def check_output(flag: str, path: Path, suffix: str) -> None:
    """Nothing; raises BadInput unless `path` can be written as a file of that kind."""
    demand(not path.is_dir(), f"{flag} is {path}, a folder, accepted is a file that ends in {suffix}")
    demand(path.suffix.lower() == suffix, f"{flag} is {path}, accepted is a file that ends in {suffix}")
    folder = path.parent
    demand(folder.is_dir(), f"{flag} is {path}, but there is no folder {folder}, accepted is a folder that exists")
    writable = os.access(folder, os.W_OK | os.X_OK)
    demand(writable, f"{flag} is {path}, but {folder} cannot be written to, accepted is a folder that can")


@dataclasses.dataclass
class Drawing:
    """The flags of every command that draws, and what it does unless it says otherwise."""

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()  # flags that name pictures to read
    own: ClassVar[dict[str, Any]] = {}  # flags that go into the settings, and their type there

    model: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")] = "mini"
    """A model that ships with jdiff, the folder of a converted one, or OWNER/NAME of one on the hub."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 4
    """Pictures of each prompt, or of prompts that share a picture."""
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=MODEL_DEFAULT)] = None
    """Steps of the sampler, 1 to 1000."""
    guidance: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=MODEL_DEFAULT)] = None
    """How strongly the prompt is followed; 1 is no guidance."""
    negative: Annotated[str, tyro.conf.arg(metavar="PROMPT")] = ""
    """What to keep away from."""
    sampler: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint=MODEL_DEFAULT)] = None
    """Named sampler: diffusers, deepfloyd, course or another; a wrong name gets the list."""
    seed: int = 0
    """Picks the noise; picture k of a prompt is the same however many are made (to rounding)."""
    dtype: Dtype = "float32"
    """Of the network; everything else is float32."""
    embeddings: Annotated[
        Path | None, tyro.conf.arg(name="prompts", metavar="FILE", help_behavior_hint="(optional)")
    ] = None
    """File of prompts whose embeddings are known, so that they need no text encoder: .safetensors of `jdiff embed`,
    the course's .pth, .npy or .npz."""
    encoder: Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: the model's own)")] = (
        None
    )
    """A text encoder that `jdiff convert` wrote, for all other prompts."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.png")] = Path("out.png")
    """Where the sheet goes; with --like, unless given, beside that picture under NAME-again.png."""
    separate: bool = False
    """Also write each picture alone, beside the sheet: NAME-0-1.png is prompt 0, picture 1."""
    gif: Annotated[Path | None, tyro.conf.arg(metavar="FILE.gif", help_behavior_hint="(optional)")] = None
    """Also write the way from noise to picture, as an animation."""
    mp4: Annotated[Path | None, tyro.conf.arg(metavar="FILE.mp4", help_behavior_hint="(optional)")] = None
    """The same animation as a video; needs the extra `video`."""
    npz: Annotated[Path | None, tyro.conf.arg(metavar="FILE.npz", help_behavior_hint="(optional)")] = None
    """Also write the arrays: images [n h w c] float32 in [-1, 1], and prompts, one row each."""
    like: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png", help_behavior_hint="(optional)")] = None
    """Make a picture of jdiff again: its settings are the defaults of all the others."""
    quiet: bool = False
    """No progress bar."""

    def texts(self) -> tuple[str, ...]:
        """The prompts, in the order of the settings."""
        raise NotImplementedError

    def flags(self, texts: Sequence[str]) -> dict[str, Any]:
        """The flags that hold prompts; raises ValueError where there are too many or too few of them."""
        raise NotImplementedError

    @staticmethod
    def count(texts: Sequence[str]) -> int:
        """How many different pictures these prompts ask for."""
        return len(texts)

    def kept(self) -> int:
        """How many pictures of the way are wanted."""
        return KEPT if self.gif or self.mp4 else 0

    def check(self) -> None:
        """Nothing; raises BadInput for what is wrong with flags of its own."""

    def read(self) -> dict[str, File]:
        """The pictures that the command starts from."""
        return {name: _read(self, name) for name in self.files}

    def hash(self, model: Any, fitted: Any) -> str:
        """What tells the weights that draw from all others."""
        del fitted
        return model.hash

    def fit(self, model: Any, files: dict[str, File]) -> Any:
        """What `draw` and `shown` get of the files and flags, at the size of the model."""
        del model, files

    def draw(self, model: Any, fitted: Any, key: Any, **how: Any) -> Any:
        """Samples [p n h w c]; `how` are the keywords of `jdiff.sample.generate`."""
        raise NotImplementedError

    def shown(self, made: np.ndarray, fitted: Any) -> Shown:
        """What the sheet shows of images [p n h w c]."""
        del fitted
        return Shown(made, self.texts())

    def frames(self, made: np.ndarray, way: np.ndarray | None, fitted: Any) -> list[Shown]:
        """The sheets of the animation: of the way [p n m h w c]."""
        del made
        return [] if way is None else [self.shown(way[:, :, i], fitted) for i in range(way.shape[2])]


@dataclasses.dataclass
class Prompted(Drawing):
    """A command with any number of prompts."""

    example: ClassVar[str]

    prompts: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PROMPT...", help_behavior_hint="(one or more)")
    ] = ()
    """What to draw, each prompt in quotes, such as "a red three"."""

    def texts(self) -> tuple[str, ...]:
        return self.prompts

    def flags(self, texts: Sequence[str]) -> dict[str, Any]:
        return {"prompts": tuple(texts)}

    def check(self) -> None:
        demand(len(self.prompts) > 0, f"no prompt is given, accepted is one or more, such as {self.example}")


@dataclasses.dataclass
class Sourced(Drawing):
    """A command that starts from a picture."""

    files = ("source",)

    source: Annotated[
        tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="IMAGE", help_behavior_hint="(a file)")
    ] = None
    """Picture to start from, of any size: the middle square of it, at the model's size."""

    def fit(self, model: Any, files: dict[str, File]) -> Any:
        return pictures.square(files["source"].pixels, _side(self, model))

    def shown(self, made: np.ndarray, fitted: Any) -> Shown:
        return _under({"original": fitted}, Shown(made, self.texts()))


@dataclasses.dataclass
class Generate(Prompted):
    """Pictures of prompts, in a labelled sheet: one row a prompt, or a square of one prompt's."""

    name = "generate"
    example = "jdiff generate 'a red three'"
    own = {"stage2": (str, NoneType)}

    stage2: Annotated[str | None, tyro.conf.arg(metavar="NAME|FOLDER", help_behavior_hint="(optional)")] = None
    """A model of stage 2 that draws each picture anew, larger, its own way: mini-upscaler (to 64 pixels) or another."""

    def fit(self, model: Any, files: dict[str, File]) -> Any:
        del files
        name = self.stage2
        if name is None:
            return None
        from jdiff.model import load

        # both stages of IF read the same text: the first's embeddings, so that no encoder is loaded beside its network
        texts = [self.negative, *self.texts()]
        known = accepted(lambda: dict(zip(texts, np.asarray(model.embed(texts)), strict=True)))
        second = accepted(lambda: load(name, dtype=self.dtype, known=known), "--stage2: ")
        given = f"--stage2 is {name}, a stage-1 model, accepted is the name or folder of a stage-2 model"
        demand(second.config.upscales, given)
        return second

    def hash(self, model: Any, fitted: Any) -> str:
        if fitted is None:
            return model.hash
        return hashlib.sha256(f"{model.hash} {fitted.hash}".encode()).hexdigest()

    def draw(self, model: Any, fitted: Any, key: Any, **how: Any) -> Any:
        from jdiff.sample import generate

        if fitted is None:
            return generate(model, self.prompts, key, **how)
        from jdiff.sample import cascade

        first, second = cascade(model, fitted, self.prompts, key, **how)
        return second._replace(way=first.way)


@dataclasses.dataclass
class Edit(Prompted, Sourced):
    """A picture noised and denoised again under each prompt (SDEdit): the original, then one row a prompt."""

    name = "edit"
    example = "jdiff edit three.png 'a red eight'"
    own = {"strength": (int, float)}

    strength: Annotated[float, tyro.conf.arg(metavar="FLOAT")] = 0.7
    """How much is made new: more than 0, and up to 1, which leaves nothing."""

    def check(self) -> None:
        super().check()
        demand(0 < self.strength <= 1, f"--strength is {self.strength}, accepted is more than 0, up to 1")

    def draw(self, model: Any, fitted: Any, key: Any, **how: Any) -> Any:
        from jdiff.sample import edit

        return edit(model, fitted, self.prompts, key, strength=self.strength, **how)


@dataclasses.dataclass
class Inpaint(Prompted, Sourced):
    """A picture made new where a mask is white, as each prompt says: the original, then one row a prompt."""

    name = "inpaint"
    example = "jdiff inpaint three.png 'a red eight' --mask mask.png"
    files = ("source", "mask")
    own = {"resamplings": int, "jump_length": int, "clean": bool}

    mask: Annotated[Path | None, tyro.conf.arg(metavar="MASK", help_behavior_hint="(a file)")] = None
    """Picture of the same size: what is white is made new, what is black is kept."""
    resamplings: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """How often each stretch of steps is made (RePaint); 1 is without jumps, more blends the new in better."""
    jump_length: Annotated[int, tyro.conf.arg(metavar="INT")] = 10
    """Steps in such a stretch."""
    clean: bool = False
    """Keep what is known clean at every step, as diffusers does, and not as noisy as the rest is."""

    def check(self) -> None:
        super().check()
        again, jump = self.resamplings, self.jump_length
        demand(1 <= again <= 1000, f"--resamplings is {again}, accepted is 1 to 1000")
        demand(1 <= jump <= 1000, f"--jump-length is {jump}, accepted is 1 to 1000, and up to the number of steps")

    def read(self) -> dict[str, File]:
        files = super().read()
        (h, w), (height, width) = (files[name].pixels.shape[:2] for name in ("mask", "source"))
        message = f"--mask is {self.mask}, {w} x {h} pixels, accepted is a mask of the image's {width} x {height}"
        demand((h, w) == (height, width), message)
        return files

    def fit(self, model: Any, files: dict[str, File]) -> tuple[np.ndarray, np.ndarray]:
        image = super().fit(model, files)
        painted = files["mask"].pixels[..., None]
        mask = pictures.square(painted, len(image), Image.Resampling.BOX)[..., 0] > 0.5
        what = f"all {'white' if mask.all() else 'black'} in the middle square"
        wanted = "accepted is white where the picture is made new and black where it is kept"
        demand(bool(mask.any() and not mask.all()), f"--mask is {self.mask}, {what}, {wanted}")
        return image, mask.astype(np.float32)

    def draw(self, model: Any, fitted: Any, key: Any, **how: Any) -> Any:
        from jdiff.sample import inpaint

        image, mask = fitted
        how |= {"noised": not self.clean, "resamplings": self.resamplings, "jump_length": self.jump_length}
        return inpaint(model, image, mask, self.prompts, key, **how)

    def shown(self, made: np.ndarray, fitted: Any) -> Shown:
        image, mask = fitted
        originals = {"original": image, "what is kept of it": image * (1 - mask[..., None])}
        return _under(originals, Shown(made, self.texts()))


@dataclasses.dataclass
class Anagram(Prompted):
    """Pictures that are another one in each view (Visual Anagrams): one row a view, under its prompt."""

    name = "anagram"
    example = "jdiff anagram --view flip 'a red six' 'a red nine'"
    own = {"view": list}

    view: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME", help_behavior_hint="(repeatable)")
    ] = ()
    """What shows the picture of each prompt, in their order: flip, rotate_cw, negate, jigsaw or another; a wrong name
    gets the list. With one fewer than prompts, the first prompt's is identity."""
    gif: Annotated[Path | None, tyro.conf.arg(metavar="FILE.gif", help_behavior_hint="(optional)")] = None
    """Also write how one reading becomes the next, as an animation: every pixel travels straight to its new place."""

    @staticmethod
    def count(texts: Sequence[str]) -> int:
        del texts
        return 1

    def kept(self) -> int:
        return 0

    def check(self) -> None:
        super().check()
        from jdiff.views import VIEWS

        p, given = len(self.prompts), len(self.view)
        demand(p > 1, f"one prompt is given, accepted are two or more, such as {self.example}")
        for name in self.view:
            demand(name in VIEWS, f"--view is {name}, accepted are {', '.join(VIEWS)}")
        enough = f"accepted for {p} prompts is {p} times, or {p - 1} times with identity for the first"
        demand(given in (p - 1, p), f"--view is given {given} times, {enough}")

    def fit(self, model: Any, files: dict[str, File]) -> list[tuple[Any, np.ndarray, np.ndarray]]:
        del files
        from jdiff.views import VIEWS

        side = _side(self, model)
        fitted = []
        for name in ["identity"][len(self.view) + 1 - len(self.prompts) :] + list(self.view):
            view = VIEWS[name](grid=min(64, side)) if name == "pixel_permute" else VIEWS[name]()
            fitted.append((view, *accepted(lambda view=view: _places(view, side), f"--view is {name}: ")))
        return fitted

    def draw(self, model: Any, fitted: Any, key: Any, **how: Any) -> Any:
        from jdiff import combine
        from jdiff.sample import generate

        guided = model.guided(self.prompts, how.pop("guidance"), how.pop("negative"))
        views = [view for view, *_ in fitted]
        return generate(model, combine.mean([*map(combine.view, views, guided)]), key, **how)

    def shown(self, made: np.ndarray, fitted: Any) -> Shown:
        import jax

        return Shown(np.stack([jax.vmap(view.apply)(made[0]) for view, *_ in fitted]), self.prompts)

    def frames(self, made: np.ndarray, way: np.ndarray | None, fitted: Any) -> list[Shown]:
        del way
        shares = (1 - np.cos(np.pi * np.arange(1, MOVING + 1) / MOVING)) / 2  # starts and arrives slowly
        label = [" / ".join(self.prompts)]
        frames = []
        for here, there in zip(fitted, [*fitted[1:], fitted[0]], strict=True):
            moving = [_between(made[0], here[1:], there[1:], share) for share in shares]
            frames += [*moving, *[moving[-1]] * (0 if there is fitted[0] else MOVING)]  # the last stays by itself
        return [Shown(frame[None], label) for frame in frames]


@dataclasses.dataclass
class Hybrid(Drawing):
    """Pictures that are one thing from afar and another from near: a row as they are, one from afar, one from near."""

    name = "hybrid"
    own = {"sigma": (int, float)}

    low: Annotated[str | None, tyro.conf.arg(metavar="PROMPT", help_behavior_hint="(required)")] = None
    """What is seen from afar: the low frequencies."""
    high: Annotated[str | None, tyro.conf.arg(metavar="PROMPT", help_behavior_hint="(required)")] = None
    """What is seen from near: the high frequencies."""
    sigma: Annotated[float, tyro.conf.arg(metavar="FLOAT")] = 2.0
    """Of the blur that parts the two, at 64 pixels a side: more than 0, and up to 7. More leaves more to near."""

    def texts(self) -> tuple[str, ...]:
        return tuple(text for text in (self.low, self.high) if text is not None)

    def flags(self, texts: Sequence[str]) -> dict[str, Any]:
        low, high = texts
        return {"low": low, "high": high}

    @staticmethod
    def count(texts: Sequence[str]) -> int:
        del texts
        return 1

    def check(self) -> None:
        for flag, text in (("--low", self.low), ("--high", self.high)):
            demand(text is not None, f"{flag} is not given, accepted is a prompt, such as {flag} 'a red three'")
        demand(0 < self.sigma <= 7, f"--sigma is {self.sigma}, accepted is more than 0, up to 7")

    def fit(self, model: Any, files: dict[str, File]) -> None:
        del files
        _side(self, model)

    def draw(self, model: Any, fitted: Any, key: Any, **how: Any) -> Any:
        from jdiff import combine, views
        from jdiff.sample import generate

        guided = model.guided(self.texts(), how.pop("guidance"), how.pop("negative"))
        parts = zip(views.low_and_high(self.sigma), guided, strict=True)
        return generate(model, combine.components(list(parts)), key, **how)

    def shown(self, made: np.ndarray, fitted: Any) -> Shown:
        import jax

        from jdiff import views

        rows = [made[0], *(jax.vmap(part)(made[0]) for part in views.low_and_high(self.sigma))]
        return Shown(np.stack(rows), ["as it is", f"from afar: {self.low}", f"near: {self.high}"])


@dataclasses.dataclass
class Upscale(Sourced):
    """A picture drawn anew, larger, by a stage-2 model: the original, then the larger ones."""

    name = "upscale"
    own = {"noise_level": (int, NoneType)}

    model: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")] = "mini-upscaler"
    """A model of stage 2 that ships with jdiff, or the folder of a converted one."""

    source: Annotated[
        tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="IMAGE", help_behavior_hint="(a file)")
    ] = None
    """Picture to enlarge: the middle square of it, reduced first where it is larger than what the model enlarges (32
    pixels for mini-upscaler, 64 for IF's)."""
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[PROMPT]")] = ""
    """What it shows, in quotes."""
    noise_level: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=MODEL_DEFAULT)] = None
    """Timestep to which the original is noised, 0 to 999: more lets the model invent more."""

    def texts(self) -> tuple[str, ...]:
        return (self.prompt,)

    def flags(self, texts: Sequence[str]) -> dict[str, Any]:
        (prompt,) = texts
        return {"prompt": prompt}

    def check(self) -> None:
        level = self.noise_level
        demand(level is None or 0 <= level <= 999, f"--noise-level is {level}, accepted is 0 to 999")

    def fit(self, model: Any, files: dict[str, File]) -> np.ndarray:
        _side(self, model, stage=2)
        return _reduced(files["source"].pixels, model)

    def draw(self, model: Any, fitted: Any, key: Any, **how: Any) -> Any:
        from jdiff.sample import upscale

        how |= {"noise_level": self.noise_level, "side": _enlarged(fitted, model)}
        return upscale(model, fitted, [self.prompt], key, **how)

    def shown(self, made: np.ndarray, fitted: Any) -> Shown:
        near = np.arange(made.shape[2]) * len(fitted) // made.shape[2]
        return super().shown(made, fitted[near][:, near])


@dataclasses.dataclass
class Embed:
    """Embeddings of prompts, in a file that every command takes as --prompts; or what prompts a file has."""

    prompts: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PROMPT...", help_behavior_hint="(optional)")
    ] = ()
    """What to embed, each prompt in quotes."""
    encoder: Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(optional)")] = None
    """A text encoder that `jdiff convert` wrote."""
    embeddings: Annotated[
        Path | None, tyro.conf.arg(name="prompts", metavar="FILE", help_behavior_hint="(optional)")
    ] = None
    """File whose embeddings are written too: the course's .pth, .npy, .npz or .safetensors."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.safetensors")] = Path("prompts.safetensors")
    """Where the embeddings go."""
    dtype: Dtype = "float32"
    """What the encoder computes in; embeddings are written in float32, those of a file as they are in it."""
    clean: Literal["none", "lower", "caption"] = "lower"
    """What is done to a prompt first: nothing, lower case, or the caption cleaning of deep-floyd (extra `text`)."""
    list: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """Only show which prompts this file has."""


COMMANDS: tuple[type[Drawing], ...] = (Generate, Edit, Inpaint, Anagram, Hybrid, Upscale)


def _read(command: Drawing, name: str) -> File:
    path, flag = getattr(command, name), "IMAGE" if name == "source" else f"--{name}"
    demand(path is not None, f"{flag} is not given, accepted is the path of a picture")
    demand(is_unicode(str(path)), f"{flag} is {str(path)!a}, accepted is a path in UTF-8")
    load = pictures.load_mask if name == "mask" else pictures.load
    pixels = accepted(lambda: load(path), f"{flag}: ")
    return File(path, hashlib.sha256(path.read_bytes()).hexdigest(), pixels)


def _side(command: Drawing, model: Any, stage: int = 1) -> int:
    """The model's size; raises BadInput where it is of another stage."""
    given = 1 + model.config.upscales
    wanted = f"accepted for jdiff {command.name} is the name or folder of a stage-{stage} model"
    demand(given == stage, f"--model is {command.model}, a stage-{given} model, {wanted}")
    return model.config.sample_size


def _reduced(image: np.ndarray, model: Any) -> np.ndarray:
    """The middle square of an image [h w 3], no larger than what a stage-2 `model` enlarges: means of its pixels."""
    return pictures.square(image, min(*image.shape[:2], model.defaults.low_res), Image.Resampling.BOX)


def _enlarged(image: np.ndarray, model: Any) -> int:
    """The side of what a stage-2 `model` makes of a square image: its own size, or more for a larger image."""
    return max(model.config.sample_size, model.defaults.factor * len(image))


def _under(originals: dict[str, np.ndarray], shown: Shown) -> Shown:
    """The same with `originals` [h w c] above it, each the first of a row of its own."""
    rows = np.full((len(originals), *shown.rows.shape[1:]), np.nan, np.float32)
    rows[:, 0] = [*originals.values()]
    return Shown(np.concatenate([rows, shown.rows]), [*originals, *shown.labels])


def _places(view: Any, side: int) -> tuple[np.ndarray, np.ndarray]:
    """([side^2 2], [side^2 1]): where `view`, a signed permutation, shows each pixel of a square; with which sign."""
    numbers = np.arange(1, side**2 + 1, dtype=np.float32).reshape(side, side, 1)
    moved = np.asarray(view.apply(numbers)).ravel()
    order = np.argsort(np.abs(moved))
    return np.stack(np.unravel_index(order, (side, side)), axis=-1), np.sign(moved)[order, None]


def _between(images: np.ndarray, here: tuple, there: tuple, share: float) -> np.ndarray:
    """Enlarged images [n h' w' c] of square images [n h w c], each pixel by `share` of its way from here to there."""
    n, h, w, c = images.shape
    zoom = math.ceil(192 / h)
    place, sign = ((1 - share) * a + share * b for a, b in zip(here, there, strict=True))
    y, x = np.round(zoom * place).astype(int).T[:, :, None, None]
    page = np.ones((n, zoom * h, zoom * w, c), np.float32)
    pixels = sign * images.reshape(n, h * w, c)
    page[:, y + np.arange(zoom)[:, None], x + np.arange(zoom)] = pixels[:, :, None, None]
    return page
