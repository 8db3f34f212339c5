"""`jdiff mnist train` and `jdiff mnist sample`: their flags, what they check and write. JAX comes late."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union

import numpy as np
import tyro

from jdiff import images as pictures
from jdiff.cli.commands import BadInput, accepted, check_output, demand

Kind = Literal["denoise", "time", "class", "flow-time", "flow-class"]
OWN = "(default: the recipe's own)"
SHOWN = 20  # columns of a sheet


@dataclasses.dataclass
class Train:
    """Trains one of part B's networks on MNIST; stopped at any moment, the same command goes on from where it was."""

    name: ClassVar[str] = "train"

    kind: tyro.conf.Positional[Annotated[Kind, tyro.conf.arg(metavar="{denoise,time,class,flow-time,flow-class}")]]
    """The single-step denoiser, the DDPMs told the time and the class too, or their flow-matching editions."""
    recipe: Literal["spec", "best"] = "spec"
    """The course's, or (for time and class) our own."""
    epochs: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=OWN)] = None
    """Times that every digit is seen."""
    width: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=OWN)] = None
    """Channels D of the network."""
    batch: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=OWN)] = None
    """Pictures an update."""
    rate: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=OWN)] = None
    """Adam's highest learning rate."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the network while it trains; the weights stay in float32."""
    seed: int = 0
    """Of everything random."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(optional)")] = None
    """Where TFDS keeps its data sets; MNIST is downloaded and prepared in TFDS's own place otherwise."""
    run: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: runs/mnist/NAME)")] = None
    """Checkpoints and log.csv; what is there is gone on from."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: RUN/model)")] = None
    """What the trained network is written to."""
    keep_epochs: Annotated[
        tyro.conf.UseAppendAction[tuple[int, ...]], tyro.conf.arg(metavar="INT", help_behavior_hint="(repeatable)")
    ] = ()
    """Also keep the weights as they are after this epoch, in RUN/epoch-N.safetensors."""
    save_every: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: an epoch)")] = None
    """Updates between checkpoints."""
    minutes: float = math.inf
    """Stop after so many; the same command goes on."""
    first: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Train on so many digits of the set alone, for a quick try."""
    tensorboard: bool = False
    """Also write what TensorBoard reads, in RUN/tensorboard."""
    quiet: bool = False
    """No progress bar."""

    def __call__(self) -> str:
        """One line that says what was written."""
        from jdiff.mnist import model
        from jdiff.mnist.recipes import recipes

        recipe = recipes().get((self.kind, self.recipe))
        if recipe is None:
            kinds = " and ".join(kind for kind, name in recipes() if name == self.recipe)
            demand(False, f"--recipe is {self.recipe} for {self.kind}, accepted is spec; {self.recipe} is for {kinds}")
        assert recipe is not None
        numbers = {name: getattr(self, name) or getattr(recipe, name) for name in ("epochs", "width", "batch", "rate")}
        for name in ("epochs", "width", "batch", "rate", "save_every", "first"):
            given = getattr(self, name)
            flag = "--" + name.replace("_", "-")
            good = given is None or (math.isfinite(given) and given > 0)
            demand(good, f"{flag} is {given}, accepted is more than 0")
        for epoch in self.keep_epochs:
            demand(
                1 <= epoch <= numbers["epochs"],
                f"--keep-epochs is {epoch}, accepted is 1 to {numbers['epochs']}, --epochs",
            )
        demand(self.minutes > 0, f"--minutes is {self.minutes}, accepted is more than 0")
        demand(0 <= self.seed < 2**32, f"--seed is {self.seed}, accepted is 0 to {2**32 - 1}")
        multiple = 16 if self.recipe == "best" else 1
        width = numbers["width"]
        demand(width % multiple == 0, f"--width is {width}, accepted is a multiple of {multiple}")

        import jax

        from jdiff.mesh import over_devices, use_cores
        from jdiff.mnist import fit
        from jdiff.mnist.data import mnist

        images, labels = accepted(lambda: mnist("train", self.data_dir))
        images, labels = images[: self.first], labels[: self.first]
        batch, n = numbers["batch"], len(images)
        use_cores(batch)
        devices = jax.device_count()
        demand(batch <= n, f"--batch is {batch}, accepted is up to the {n} pictures")
        demand(batch % devices == 0, f"--batch is {batch}, accepted is a multiple of the {devices} devices")
        place = self.run or Path("runs") / "mnist" / model.name(self.kind, self.recipe)
        out = self.out or place / "model"
        run = fit.Run(self.kind, self.recipe, **numbers, seed=self.seed, dtype=self.dtype)
        for logger in ("absl", "asyncio"):  # where Orbax tells at length what it raises too
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        try:
            state, finished = fit.fit(
                recipe, run, images, labels, place, minutes=self.minutes, keep_epochs=self.keep_epochs,
                save_every=self.save_every, mesh=over_devices(), tensorboard=self.tensorboard, quiet=self.quiet,
            )  # fmt: skip
        except ValueError as error:
            raise BadInput(" ".join(str(error).split())) from error
        except FloatingPointError as error:
            why = f"--rate is {run.rate}, with which {error}, accepted is a lower one"
            raise BadInput(f"{why}; the last good checkpoint is kept in {place}") from error
        fit.export(out, run, state, finished, place, len(images))
        how = "" if finished else ", not finished: the same command goes on"
        return f"wrote {out}: {int(state.step)} updates{how}"


@dataclasses.dataclass
class Sample:
    """Draws digits by one of part B's networks."""

    name: ClassVar[str] = "sample"

    kind: tyro.conf.Positional[Annotated[Kind, tyro.conf.arg(metavar="{time,class,flow-time,flow-class}")]]
    """Which network: those told a class draw each digit, the others any."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 4
    """Pictures of each digit, or, where there are no classes, ten times as many in all."""
    recipe: Annotated[
        Literal["spec", "best"] | None, tyro.conf.arg(help_behavior_hint="(default: best where there is one)")
    ] = None
    """Whose weights of those that ship."""
    model: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(optional)")] = None
    """The weights that `jdiff mnist train` wrote, in place of those that ship."""
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=OWN)] = None
    """Network calls."""
    guidance: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=OWN)] = None
    """How strongly the class is followed; 1 is no guidance."""
    seed: int = 0
    """Picks the noise; picture k is the same however many are made (to rounding)."""
    output: Annotated[
        Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE.png", help_behavior_hint="(optional)")
    ] = None
    """A sheet of them, one row a digit."""
    gif: Annotated[Path | None, tyro.conf.arg(metavar="FILE.gif", help_behavior_hint="(optional)")] = None
    """The way from noise to that sheet."""
    npz: Annotated[Path | None, tyro.conf.arg(metavar="FILE.npz", help_behavior_hint="(optional)")] = None
    """The arrays: images [n 28 28] float32 in [0, 1], and labels [n], -1 where none was asked for."""
    quiet: bool = False
    """No progress bar."""

    def __call__(self) -> str:
        """One line that names the files written."""
        demand(self.kind != "denoise", "KIND is denoise, accepted are time, class, flow-time and flow-class")
        demand(self.n >= 1, f"-n is {self.n}, accepted is 1 or more")
        demand(0 <= self.seed < 2**32, f"--seed is {self.seed}, accepted is 0 to {2**32 - 1}")
        guidance, steps = self.guidance, self.steps
        demand(guidance is None or math.isfinite(guidance), f"--guidance is {guidance}, accepted is a finite number")
        demand(steps is None or 1 <= steps <= 1000, f"--steps is {steps}, accepted is 1 to 1000")
        outputs = {"-o": (self.output, ".png"), "--gif": (self.gif, ".gif"), "--npz": (self.npz, ".npz")}
        demand(any(path for path, _ in outputs.values()), "no file is given, accepted are -o, --gif and --npz")
        for flag, (path, suffix) in outputs.items():
            if path is not None:
                check_output(flag, path, suffix)

        import jax
        from tqdm import tqdm

        from jdiff.mnist import model
        from jdiff.mnist.recipes import recipes

        best = "best" if (self.kind, "best") in recipes() else "spec"
        digits = accepted(lambda: model.load(self.model or model.name(self.kind, self.recipe or best)))
        kind = digits.facts["kind"]
        demand(kind == self.kind, f"--model is {self.model}, a network of {kind}, accepted is one of {self.kind}")
        classes = np.repeat(np.arange(10), self.n) if "class" in kind else np.full(10 * self.n, -1)
        with tqdm(total=len(classes), unit="picture", disable=self.quiet, leave=False) as bar:
            made = accepted(
                lambda: model.draw(
                    digits, classes, jax.random.key(self.seed), steps=steps, guidance=guidance,
                    keep=30 if self.gif else 0, progress=lambda done, _: bar.update(done - bar.n),
                )
            )  # fmt: skip
        demand(bool(np.isfinite(made.images).all()), "pictures are not finite, accepted are less guidance, more steps")
        how = {"recipe": digits.facts["recipe"], "steps": steps or digits.recipe.steps}
        how |= {"guidance": digits.recipe.guidance if guidance is None else guidance}
        return self.write(made, classes, how)

    def write(self, made: Any, classes: np.ndarray, how: dict[str, Any]) -> str:
        written = []
        if self.npz:
            with pictures.beside(self.npz) as file:
                np.savez_compressed(file, images=made.images[..., 0], labels=classes)
            written.append(self.npz)
        if self.gif:
            frames = np.stack([sheet(frame, classes) for frame in made.way.swapaxes(0, 1).clip(0, 1)])
            pictures.save_gif(self.gif, frames)
            written.append(self.gif)
        if self.output:
            settings = {"command": "mnist sample", "kind": self.kind, "n": self.n, "seed": self.seed}
            settings |= how | {"model": self.model and str(self.model)}
            pictures.save(self.output, sheet(made.images, classes), settings)
            written.append(self.output)
        return f"wrote {', '.join(map(str, written))}: {len(classes)} digits"


def sheet(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Sheet [h w 3] uint8 of images [10 n, 28 28 1] in [0, 1]: ten rows, each labelled with its class, if any."""
    rows = 2 * images.reshape(10, -1, *images.shape[1:])[:, :SHOWN] - 1
    labels = [str(digit) for digit in range(10)] if classes.max() >= 0 else []
    return pictures.grid(rows, labels, cell=56)


@dataclasses.dataclass
class Mnist:
    """Part B of the course: its networks for MNIST, trained and sampled."""

    command: Union[  # noqa: UP007, tyro reads the names from here
        Annotated[Train, tyro.conf.subcommand("train")], Annotated[Sample, tyro.conf.subcommand("sample")]
    ]

    def __call__(self) -> str:
        return self.command()
