"""`jdiff mnist train` and `jdiff mnist sample`: part B of the course. JAX is imported late."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

import numpy as np
import tyro

from jdiff import images
from jdiff.cli.drawing import MOST
from jdiff.cli.errors import BadInput, accepted, check_output, demand, is_unicode, one_line
from jdiff.cli.flags import (
    LARGEST_SEED,
    OPTIONAL,
    REPEATABLE,
    REQUIRED,
    Number,
    NumberOrNone,
    PathOrNone,
    Whole,
    WholeOrNone,
    one_of,
)  # fmt: skip
from jdiff.cli.make import start_jax
from jdiff.cli.outputs import Done, Output, write
from jdiff.progress import Bar

if TYPE_CHECKING:
    from jdiff.mnist.model import Digits, Drawn
    from jdiff.mnist.recipes import Recipe

KINDS = ("denoise", "time", "class", "flow-time", "flow-class")
RECIPES = ("spec", "best")
OWN = "(default: the recipe's own)"
# Flags that stand in the place of a recipe's numbers.
NUMBERS = ("epochs", "width", "batch", "rate")
# Columns of a sheet, and pictures of the way that an animation shows.
SHOWN, KEPT = 20, 30


@dataclasses.dataclass
class Train:
    """Trains one of part B's networks on MNIST. The same command continues a training that was stopped."""

    kind: Annotated[
        tyro.conf.Positional[Annotated[str | None, one_of(*KINDS)]],
        tyro.conf.arg(metavar="KIND", help_behavior_hint=REQUIRED),
    ] = None
    """The network: denoise, the single-step denoiser; time or class, the DDPM conditioned on time, or on class too;
    flow-time or flow-class, their flow-matching versions."""
    recipe: Annotated[str, one_of(*RECIPES)] = "spec"
    """The course's recipe, or (for time and class) our own."""
    epochs: Annotated[WholeOrNone, tyro.conf.arg(metavar="INT", help_behavior_hint=OWN)] = None
    """Passes over the data."""
    width: Annotated[WholeOrNone, tyro.conf.arg(metavar="INT", help_behavior_hint=OWN)] = None
    """Channels of the network: the course's D."""
    batch: Annotated[WholeOrNone, tyro.conf.arg(metavar="INT", help_behavior_hint=OWN)] = None
    """Batch size."""
    rate: Annotated[NumberOrNone, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=OWN)] = None
    """Adam's highest learning rate."""
    dtype: Annotated[str, one_of("float32", "bfloat16")] = "float32"
    """Number type of the network's arithmetic. The weights are float32."""
    seed: Annotated[Whole, tyro.conf.arg(metavar="INT")] = 0
    """Random seed."""
    data_dir: Annotated[PathOrNone, tyro.conf.arg(metavar="FOLDER", help_behavior_hint=OPTIONAL)] = None
    """Folder of TFDS's data sets. By default it is TFDS's own, to which MNIST is downloaded."""
    run: Annotated[PathOrNone, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: runs/mnist/NAME)")] = None
    """Folder of checkpoints and log.csv. A run that is there is continued."""
    out: Annotated[PathOrNone, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: RUN/model)")] = None
    """Folder of the trained network."""
    keep_epochs: Annotated[
        tyro.conf.UseAppendAction[tuple[Whole, ...]], tyro.conf.arg(metavar="INT", help_behavior_hint=REPEATABLE)
    ] = ()
    """Also keep the weights after this epoch, in RUN/epoch-N.safetensors."""
    save_every: Annotated[WholeOrNone, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: an epoch)")] = None
    """Updates between checkpoints."""
    minutes: Annotated[Number, tyro.conf.arg(metavar="FLOAT")] = math.inf
    """Stop after this time. The same command continues."""
    first: Annotated[WholeOrNone, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Train on the first digits only, for a quick try."""
    tensorboard: bool = False
    """Also write TensorBoard's files, in RUN/tensorboard."""
    quiet: bool = False
    """Show no progress bar."""

    def __call__(self) -> str:
        """Trains; returns a line that says what was written."""
        recipe = self.check()
        numbers = {name: getattr(self, name) or getattr(recipe, name) for name in NUMBERS}
        start_jax(cores=True, batch=numbers["batch"])
        from jdiff.mnist import data, fit, model

        pixels, labels = accepted(lambda: data.mnist("train", self.data_dir))
        pixels, labels = pixels[: self.first], labels[: self.first]
        mesh = _mesh(numbers["batch"], len(pixels))
        assert self.kind is not None  # `check` has seen to it
        place = self.run or Path("runs") / "mnist" / model.name(self.kind, self.recipe)
        out = self.out or place / "model"
        run = fit.Run(self.kind, self.recipe, **numbers, seed=self.seed, dtype=self.dtype)
        for logger in ("absl", "asyncio"):  # Orbax tells at length there what it also raises
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        try:
            state, finished = fit.fit(
                recipe, run, pixels, labels, place, minutes=self.minutes, keep_epochs=self.keep_epochs,
                save_every=self.save_every, mesh=mesh, tensorboard=self.tensorboard, quiet=self.quiet,
            )  # fmt: skip
        except ValueError as error:
            raise BadInput(one_line(error)) from error
        except FloatingPointError as error:
            raise BadInput(
                f"--rate is too high, got {run.rate}: {one_line(error)}; give a lower one. The last good checkpoint is "
                f"in {place}"
            ) from error
        fit.export(out, run, state, finished, place, len(pixels))
        how = "" if finished else ", not finished; the same command continues"
        return f"wrote {out}: {int(state.step)} updates{how}"

    def check(self) -> "Recipe":
        """Checks the flags without the data, and returns the recipe."""
        demand(self.kind is not None, f"KIND is missing; give one of {', '.join(KINDS)}")
        for name in (*NUMBERS, "save_every", "first"):
            given = getattr(self, name)
            flag = "--" + name.replace("_", "-")
            good = given is None or (math.isfinite(given) and 0 < given < 2**31)
            demand(good, f"{flag} must be above 0, and below {2**31}, got {given}")
        demand(self.minutes > 0, f"--minutes must be above 0, got {self.minutes}")
        demand(0 <= self.seed <= LARGEST_SEED, f"--seed must be between 0 and {LARGEST_SEED}, got {self.seed}")
        for flag, path in (("--data-dir", self.data_dir), ("--run", self.run), ("--out", self.out)):
            if path is not None:
                _check_folder(flag, path)
        from jdiff.mnist.recipes import recipes

        recipe = recipes().get((self.kind or "", self.recipe))
        kinds = " and ".join(kind for kind, name in recipes() if name == self.recipe)
        demand(recipe is not None, f"--recipe must be spec for {self.kind}, got {self.recipe}, which is for {kinds}")
        assert recipe is not None
        most = self.epochs or recipe.epochs
        for epoch in self.keep_epochs:
            demand(1 <= epoch <= most, f"--keep-epochs must be between 1 and {most}, the last epoch, got {epoch}")
        width, multiple = self.width or recipe.width, 16 if self.recipe == "best" else 1
        demand(width % multiple == 0, f"--width must be a multiple of {multiple}, got {width}")
        return recipe


@dataclasses.dataclass
class Sample:
    """Draws digits by one of part B's networks."""

    kind: Annotated[
        tyro.conf.Positional[Annotated[str | None, one_of(*KINDS[1:])]],
        tyro.conf.arg(metavar="KIND", help_behavior_hint=REQUIRED),
    ] = None
    """The network: time, class, flow-time or flow-class. Those conditioned on class draw each digit, the others any."""
    n: Annotated[Whole, tyro.conf.arg(aliases=["-n"], metavar="INT")] = 4
    """Pictures of each digit. A network without classes draws ten times as many in all."""
    recipe: Annotated[
        str | None, one_of(*RECIPES), tyro.conf.arg(help_behavior_hint="(default: best where there is one)")
    ] = None  # fmt: skip
    """Which of the shipped weights."""
    model: Annotated[PathOrNone, tyro.conf.arg(metavar="FOLDER", help_behavior_hint=OPTIONAL)] = None
    """Weights that `jdiff mnist train` wrote, instead of shipped ones."""
    steps: Annotated[WholeOrNone, tyro.conf.arg(metavar="INT", help_behavior_hint=OWN)] = None
    """Steps of the sampler."""
    guidance: Annotated[NumberOrNone, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=OWN)] = None
    """Guidance scale: how strongly the picture follows the class. 1 is no guidance."""
    seed: Annotated[Whole, tyro.conf.arg(metavar="INT")] = 0
    """Random seed. A network with classes draws other pictures for another -n."""
    output: Annotated[
        PathOrNone, tyro.conf.arg(aliases=["-o"], metavar="FILE.png", help_behavior_hint=OPTIONAL)
    ] = None  # fmt: skip
    """A sheet with a row for each digit, of at most 20 pictures."""
    gif: Annotated[PathOrNone, tyro.conf.arg(metavar="FILE.gif", help_behavior_hint=OPTIONAL)] = None
    """An animation of the way from noise to that sheet."""
    npz: Annotated[PathOrNone, tyro.conf.arg(metavar="FILE.npz", help_behavior_hint=OPTIONAL)] = None
    """Arrays: images [n 28 28] float32 in [0, 1], and labels [n], -1 for none."""
    quiet: bool = False
    """Show no progress bar."""

    def __call__(self) -> Done:
        """Draws and writes; returns what was written."""
        self.check()
        start_jax(cores=True, batch=10 * self.n)
        import jax

        from jdiff.mnist import model
        from jdiff.mnist.recipes import recipes

        assert self.kind is not None  # `check` has seen to it
        best = "best" if (self.kind, "best") in recipes() else "spec"
        digits = accepted(lambda: model.load(self.model or model.name(self.kind or "", self.recipe or best)))
        kind = digits.facts["kind"]
        demand(kind == self.kind, f"--model must be a network of {self.kind}, got {self.model}, one of {kind}")
        classes = np.repeat(np.arange(10), self.n) if "class" in kind else np.full(10 * self.n, -1)
        with Bar(len(classes), unit="picture", quiet=self.quiet) as bar:
            made = accepted(
                lambda: model.draw(
                    digits, classes, jax.random.key(self.seed), steps=self.steps, guidance=self.guidance,
                    keep=KEPT if self.gif else 0, mesh=model.mesh_for(len(classes)),
                    progress=lambda done, total: bar.update(done, total),
                )
            )  # fmt: skip
        finite = bool(np.isfinite(made.images).all())
        demand(finite, "pictures are not finite; try less --guidance, or more --steps")
        return write(self.outputs(made, classes, self.settings(digits)), f"{len(classes)} digits")

    def settings(self, digits: "Digits") -> images.Settings:
        """Returns all settings of digits that this network draws, as JSON."""
        settings = {"command": "mnist sample", "kind": self.kind, "n": self.n, "seed": self.seed}
        settings |= {"recipe": digits.facts["recipe"], "steps": self.steps or digits.recipe.steps}
        settings |= {"guidance": digits.recipe.guidance if self.guidance is None else self.guidance}
        return settings | {"model": self.model and str(self.model)}

    def check(self) -> None:
        """Checks the flags without the network."""
        demand(self.kind is not None, f"KIND is missing; give one of {', '.join(KINDS[1:])}")
        demand(1 <= self.n <= MOST // 10, f"-n must be between 1 and {MOST // 10}, got {self.n}")
        demand(0 <= self.seed <= LARGEST_SEED, f"--seed must be between 0 and {LARGEST_SEED}, got {self.seed}")
        guidance, steps = self.guidance, self.steps
        demand(guidance is None or math.isfinite(guidance), f"--guidance must be a finite number, got {guidance}")
        demand(steps is None or 1 <= steps <= 1000, f"--steps must be between 1 and 1000, got {steps}")
        if self.model is not None:
            demand(is_unicode(str(self.model)), f"--model must be a path in UTF-8, got {str(self.model)!a}")
        outputs = [("-o", self.output, ".png"), ("--gif", self.gif, ".gif"), ("--npz", self.npz, ".npz")]
        demand(any(path for _, path, _ in outputs), "no file to write is given; give -o, --gif or --npz")
        for flag, path, suffix in outputs:
            if path is not None:
                check_output(flag, path, suffix)

    def outputs(self, made: "Drawn", classes: np.ndarray, settings: images.Settings) -> list[Output]:
        """Returns the files to write. `settings` are JSON."""

        def arrays(path: Path) -> None:
            with images.beside(path) as file:
                np.savez_compressed(file, images=made.images[..., 0], labels=classes)

        def animation(path: Path) -> None:
            assert made.way is not None  # it is kept for a GIF
            frames = [sheet(frame, classes) for frame in made.way.swapaxes(0, 1).clip(0, 1)]
            images.save_gif(path, np.stack(frames))

        outputs = []
        if (png := self.output) is not None:
            outputs.append(Output(png, lambda: images.save(png, sheet(made.images, classes), settings)))
        if (npz := self.npz) is not None:
            outputs.append(Output(npz, lambda: arrays(npz)))
        if (gif := self.gif) is not None:
            outputs.append(Output(gif, lambda: animation(gif)))
        return outputs


@dataclasses.dataclass
class Mnist:
    """Trains and samples the networks for MNIST of the course's part B."""

    command: Union[  # noqa: UP007, tyro reads the names from here
        Annotated[Train, tyro.conf.subcommand("train")], Annotated[Sample, tyro.conf.subcommand("sample")]
    ]

    def __call__(self) -> str | Done:
        """Runs the subcommand; returns what it did."""
        return self.command()


def sheet(digits: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns a sheet [h w 3] uint8 of ten rows, each labelled with its class, if there are any.

    Args:
        digits: [10 n, 28 28 1] in [0, 1].
        classes: [10 n], -1 for none.
    """
    rows = 2 * digits.reshape(10, -1, *digits.shape[1:])[:, :SHOWN] - 1
    labels = [str(digit) for digit in range(10)] if classes.max() >= 0 else []
    return images.grid(rows, labels, cell=56)


def _mesh(batch: int, pictures: int) -> Any:  # a mesh of JAX, or None
    """A mesh of all devices, which must divide the batch, or None where there is one."""
    import jax

    from jdiff.mesh import over_devices

    demand(batch <= pictures, f"--batch must be at most {pictures}, the number of pictures, got {batch}")
    devices = jax.device_count()
    demand(batch % devices == 0, f"--batch must be a multiple of {devices}, the number of devices, got {batch}")
    return over_devices()


def _check_folder(flag: str, path: Path) -> None:
    demand(is_unicode(str(path)), f"{flag} must be a path in UTF-8, got {str(path)!a}")
    nearest = accepted(lambda: next(place for place in (path, *path.absolute().parents) if place.exists()), f"{flag}: ")
    demand(nearest.is_dir(), f"{flag} must be a folder, got {path}, but {nearest} is a file")
