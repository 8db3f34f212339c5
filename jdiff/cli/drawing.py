"""The base of all commands that draw: their common flags and default methods.

A command draws in steps that `jdiff.cli.make` walks: `check` its flags, `read` its files, `prepare` them for the model,
`draw`, and lay out what is `shown`. JAX is imported late, so that `jdiff --help` does not wait for it.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
import tyro

from jdiff import images
from jdiff.cli import ladders
from jdiff.cli.errors import accepted, check_distinct, check_local, check_output, demand, is_unicode
from jdiff.cli.flags import (
    LARGEST_NUMBER,
    LARGEST_SEED,
    MODEL_DEFAULT,
    OPTIONAL,
    Dtype,
    NumbersOrNone,
    PathOrNone,
    SizeOrNone,
    TextOrNone,
    Whole,
    WholesOrNone,
)  # fmt: skip

if TYPE_CHECKING:
    import jax

    from jdiff.model import Model
    from jdiff.scan import Samples
    from jdiff.types import Level

# Pictures of the way from noise that an animation shows.
KEPT = 20
# Most pictures that one command draws.
MOST = 10_000
# Largest height or width of a picture in pixels.
LARGEST = 4096
# What a command's `prepare` returns for its own `draw` and `shown`. Each command has a type of its own.
Fitted = Any
# Height and width in pixels.
Size = tuple[int, int]


class File(NamedTuple):
    """A picture that was read."""

    path: Path | str  # or a URL
    sha256: str
    pixels: np.ndarray  # [h w 3] in [-1, 1], or [h w] in [0, 1] for a mask


class Shown(NamedTuple):
    """What a sheet shows."""

    rows: np.ndarray  # [r n h w 3]; a picture of NaN leaves its cell empty
    labels: Sequence[str]  # [r]
    title: str | None = None  # of a ladder's sheet


@dataclasses.dataclass
class Drawing:
    """The flags of every command that draws."""

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()  # flags that name pictures to read
    originals: ClassVar[int] = 0  # rows of the sheet above what is drawn
    own: ClassVar[dict[str, Any]] = {}  # flags of its own that go into a picture's settings: {name: type in JSON}

    model: Annotated[str, tyro.conf.arg(metavar="NAME|FOLDER")] = "mini"
    """The model: mini, the folder of a converted one, or OWNER/NAME of one on the hub."""
    n: Annotated[Whole, tyro.conf.arg(aliases=["-n"], metavar="INT")] = 4
    """Pictures of each prompt."""
    steps: Annotated[WholesOrNone, tyro.conf.arg(metavar="INT...", help_behavior_hint=MODEL_DEFAULT)] = None
    """Steps of the sampler, 1 to 1000. Several, such as --steps 5 10 20, draw a row of the same seeds for each."""
    guidance: Annotated[NumbersOrNone, tyro.conf.arg(metavar="FLOAT...", help_behavior_hint=MODEL_DEFAULT)] = None
    """Guidance scale: how strongly the picture follows the prompt. 1 is no guidance. Several draw a row for each."""
    size: Annotated[SizeOrNone, tyro.conf.arg(metavar="HxW", help_behavior_hint=MODEL_DEFAULT)] = None
    """Height and width of a picture in pixels, such as 48x32, or one number for a square."""
    negative: Annotated[str, tyro.conf.arg(metavar="PROMPT", help_behavior_hint=OPTIONAL)] = ""
    """Negative prompt: what the picture should not show."""
    sampler: Annotated[TextOrNone, tyro.conf.arg(metavar="NAME", help_behavior_hint=MODEL_DEFAULT)] = None
    """Sampler, such as diffusers, deepfloyd or course. A wrong name lists them all."""
    seed: Annotated[Whole, tyro.conf.arg(metavar="INT")] = 0
    """Random seed. Picture k of a prompt is the same for every -n, up to rounding."""
    dtype: Dtype = "float32"
    """Number type of the network. Everything else is float32."""
    embeddings: Annotated[PathOrNone, tyro.conf.arg(name="prompts", metavar="FILE", help_behavior_hint=OPTIONAL)] = None
    """A file of prompt embeddings, for prompts that then need no text encoder: .safetensors from `jdiff embed`, or
    .pth, .npy or .npz."""
    encoder: Annotated[TextOrNone, tyro.conf.arg(metavar="FOLDER|NAME", help_behavior_hint=MODEL_DEFAULT)] = None
    """The text encoder for all other prompts: a folder that `jdiff convert` or transformers wrote, or
    OWNER/NAME/text_encoder on the hub."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.png")] = Path("out.png")
    """The sheet of all pictures. With --like the default is NAME-again.png beside the given picture."""
    separate: bool = False
    """Also write each picture into a file of its own: NAME-0-1.png is picture 1 of row 0."""
    gif: Annotated[PathOrNone, tyro.conf.arg(metavar="FILE.gif", help_behavior_hint=OPTIONAL)] = None
    """Also write an animation of the way from noise to the pictures."""
    mp4: Annotated[PathOrNone, tyro.conf.arg(metavar="FILE.mp4", help_behavior_hint=OPTIONAL)] = None
    """Also write this animation as a video. Needs the extra `video`."""
    npz: Annotated[PathOrNone, tyro.conf.arg(metavar="FILE.npz", help_behavior_hint=OPTIONAL)] = None
    """Also write arrays: images [n h w c] float32 in [-1, 1], and prompts, one for each image."""
    like: Annotated[PathOrNone, tyro.conf.arg(metavar="FILE.png", help_behavior_hint=OPTIONAL)] = None
    """Draw a picture of jdiff again: its settings become the defaults of all other flags."""
    quiet: bool = False
    """Show no progress bar."""

    def texts(self) -> tuple[str, ...]:
        """Returns the prompts, in the order of the settings."""
        raise NotImplementedError

    def flags(self, texts: Sequence[str]) -> images.Settings:
        """Returns the flags that hold these prompts; raises ValueError where there are too many or too few."""
        raise NotImplementedError

    @staticmethod
    def count(texts: Sequence[str]) -> int:
        """Returns how many different pictures these prompts ask for."""
        return len(texts)

    def kept(self) -> int:
        """Returns how many pictures of the way are wanted."""
        return KEPT if self.gif or self.mp4 else 0

    def check(self) -> None:
        """Raises BadInput for what is wrong with flags of its own."""

    def read(self) -> dict[str, File]:
        """Returns the pictures that the command starts from."""
        return {name: self.opened(name) for name in self.files}

    def opened(self, name: str) -> File:
        """Returns the picture that a flag names."""
        path, flag = getattr(self, name), flag_of(name)
        demand(path is not None, f"{flag} is missing; give the path of a picture")
        data = accepted(lambda: images.read_bytes(path), f"{flag}: ")
        found = accepted(lambda: images.decode(data, path), f"{flag}: ")
        if name == "mask":
            pixels = accepted(lambda: images.mask_of(found.colour, found.alpha, str(path)), f"{flag}: ")
        else:
            pixels = images.on_white(found)
        return File(path, hashlib.sha256(data).hexdigest(), pixels)

    def hash(self, model: "Model", fitted: Fitted) -> str:
        """Returns what identifies the weights that draw."""
        del fitted
        return model.hash

    def prepare(self, model: "Model", files: dict[str, File]) -> Fitted:
        """Returns what `draw` and `shown` need of the files and flags, at the size of the pictures."""
        del files
        check_stage(self, model, 1)
        size_of(self, model)

    def check_levels(self, levels: "Level") -> None:
        """Raises ValueError where the flags do not fit a sampler's table of levels."""

    def draw(self, model: "Model", fitted: Fitted, key: "jax.Array", **how: Any) -> "Samples":
        """Returns samples [p n h w c]. `how` are keywords of `jdiff.sample.generate`, each of its own type."""
        raise NotImplementedError

    def labels(self, fitted: Fitted) -> list[str]:
        """Returns the labels of the sheet's rows."""
        del fitted
        return list(self.texts())

    def picture_size(self, model: "Model", fitted: Fitted) -> Size:
        """Returns the size of a picture."""
        del fitted
        return size_of(self, model)

    def shown(self, made: np.ndarray, fitted: Fitted) -> Shown:
        """Returns what the sheet shows of images [p n h w c]."""
        return Shown(made, self.labels(fitted))

    def moving(self, model: "Model", fitted: Fitted) -> tuple[list[str], Size]:
        """Returns the labels of the animation's rows, and the size of its pictures."""
        return self.labels(fitted), self.picture_size(model, fitted)

    def frames(self, made: np.ndarray, way: np.ndarray | None, fitted: Fitted) -> list[Shown]:
        """Returns the sheets of the animation, from the way [p n m h w c]."""
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

    def flags(self, texts: Sequence[str]) -> images.Settings:
        return {"prompts": tuple(texts)}

    def check(self) -> None:
        demand(len(self.prompts) > 0, f"no prompt is given; give one or more, such as {self.example}")


def check(command: Drawing) -> None:
    """Checks all that can be checked without the model and without reading files.

    Raises:
        BadInput: the first thing that is wrong.
    """
    check_values(command)
    count = command.count(command.texts()) * ladders.rungs(command)
    named = [("-o", command.output, ".png"), ("--npz", command.npz, ".npz")]
    named += [("--gif", command.gif, ".gif"), ("--mp4", command.mp4, ".mp4")]
    outputs = []
    moving, ladder = command.gif or command.mp4, ladders.of(command)
    if ladder is not None:
        several = f"--{ladder.name} must have one value for an animation, got {len(ladder.values)}"
        demand(moving is None, f"{several}; leave out {moving}")
    for flag, path, suffix in named:
        if path is not None:
            check_output(flag, path, suffix)
            outputs.append((flag, path))
    if command.separate:
        places = [alone(command.output, i, j) for i in range(count) for j in range(command.n)]
        for path in places:
            check_output("--separate", path, ".png")
        outputs += [("--separate", path) for path in places]
    flags = [(flag_of(name), getattr(command, name)) for name in (*command.files, "embeddings", "like")]
    inputs = [(flag, path) for flag, path in flags if path is not None]
    for flag, path in inputs:
        check_local(flag, path)
        demand(is_unicode(str(path)), f"{flag} must be a path in UTF-8, got {str(path)!a}")
    check_distinct(outputs, [(flag, path) for flag, path in inputs if isinstance(path, Path)])
    video = command.mp4 is None or images.has_video()
    demand(video, f"--mp4 needs imageio, got {command.mp4}; install it by pip install 'imageio[ffmpeg]'")


def check_values(command: Drawing) -> None:
    """Checks the flags that decide what is drawn, and no file.

    Raises:
        BadInput: the first thing that is wrong.
    """
    command.check()
    texts = command.texts()
    for name, text in [("a prompt", text) for text in texts] + [("--negative", command.negative)]:
        demand(is_unicode(text), f"{name} must be text in UTF-8, got {text!a}")
    count = command.count(texts) * ladders.rungs(command)
    most = MOST // max(count, 1)
    what = "prompts" if ladders.of(command) is None else "rows"
    each = f" for {count} {what}" if count > 1 else ""
    demand(count <= MOST, f"there must be at most {MOST} {what}, got {count}")
    demand(1 <= command.n <= most, f"-n must be between 1 and {most}{each}, got {command.n}")
    for steps in ladders.values(command.steps):
        demand(1 <= steps <= 1000, f"--steps must be between 1 and 1000, got {steps}")
    for guidance in ladders.values(command.guidance):
        demand(abs(guidance) <= LARGEST_NUMBER, f"--guidance must be a finite number, got {str(guidance)[:40]}")
    demand(0 <= command.seed <= LARGEST_SEED, f"--seed must be between 0 and {LARGEST_SEED}, got {command.seed}")
    size = command.size or "1x1"
    sized = re.fullmatch(r"\d{1,5}x\d{1,5}", size) is not None and all(1 <= int(a) <= LARGEST for a in size.split("x"))
    demand(sized, f"--size must be from 1 to {LARGEST} on each side, got {size[:40]}")
    demand(command.model != "", "--model must be the name or folder of a model, got ''")
    demand(command.encoder != "", "--encoder must be the folder of a text encoder, got ''")


def check_stage(command: Drawing, model: "Model", stage: int) -> None:
    """Raises BadInput where the model is of the other stage."""
    found = 1 + model.config.upscales
    wanted = f"--model must be of stage {stage} for jdiff {command.name}"
    demand(found == stage, f"{wanted}, got {command.model}, which is of stage {found}")


def size_of(command: Drawing, model: "Model") -> Size:
    """Returns the height and width that --size gives, or the model's own.

    Raises:
        BadInput: the model cannot draw this size.
    """
    side = model.config.sample_size
    if command.size is None:
        return side, side
    h, w = map(int, command.size.split("x"))
    step = model.config.divisor
    if model.config.upscales:
        step = math.lcm(step, model.defaults.factor)
    near = "x".join(str(max(step, round(length / step) * step)) for length in (h, w))
    wanted = f"--size must be multiples of {step} for {command.model}"
    demand(h % step == 0 and w % step == 0, f"{wanted}, got {command.size}; try {near}")
    return h, w


def in_words(size: Size) -> str:
    """Returns a size in words.

    Example:
        >>> in_words((32, 32)), in_words((32, 48))
        ('32 x 32', '48 wide and 32 high')
    """
    h, w = size
    return f"{w} x {h}" if h == w else f"{w} wide and {h} high"


def flag_of(name: str) -> str:
    """Returns how the command line calls a field.

    Example:
        >>> flag_of("noise_level")
        '--noise-level'
    """
    return {"source": "IMAGE", "embeddings": "--prompts"}.get(name, "--" + name.replace("_", "-"))


def alone(output: Path, i: int, j: int) -> Path:
    """Returns the file of picture j of prompt i.

    Example:
        >>> alone(Path("out.png"), 0, 2).name
        'out-0-2.png'
    """
    return output.with_name(f"{output.stem}-{i}-{j}{output.suffix}")
