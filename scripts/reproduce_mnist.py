"""Draws every figure that part B of the course asks for, and writes docs/mnist.md with them.

    python scripts/reproduce_mnist.py                      # with the weights in weights/mnist
    python scripts/reproduce_mnist.py --train              # trains networks that are not finished first
    python scripts/reproduce_mnist.py --train --minutes 3  # at most 3 minutes for each of them

With --train, training continues from the checkpoints in --runs if there are any, and the networks are written to
--weights. `python scripts/measure_mnist.py` measures them, and this script shows the results. A figure that shows a
network after an epoch needs the weights of that epoch in --runs. If they are missing, the figure is left out.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro
from measure_mnist import USUAL, last_loss

from jdiff import images as pictures
from jdiff.mesh import over_devices, use_cores
from jdiff.mnist import fit, model, recipes
from jdiff.mnist.data import mnist
from jdiff.parts import path_beside, write_text
from jdiff.results import machine as this_machine
from jdiff.results import table as markdown_table
from jdiff.training import log
from jdiff.types import Conditioning

matplotlib.use("Agg")
SIGMAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
EPOCHS = (1, 5, 10, 15, 20, 30)  # after these epochs, weights are kept and shown
ORDER = (("denoise", "spec"), ("time", "spec"), ("class", "spec"), ("flow-time", "spec"), ("flow-class", "spec"),
         ("time", "best"), ("class", "best"))  # fmt: skip
PURE = ("denoise", "pure")
# Final training losses that others report: in the write-up, and in the staff's curve, read off its plot.
REPORTED = {
    ("denoise", "spec"): ("about .01", ".0084"),
    ("time", "spec"): ("about .02", ".026 to .035"),
    ("class", "spec"): ("about .02", ".026 to .034"),
    ("flow-time", "spec"): ("", ".070 to .101"),
    ("flow-class", "spec"): ("", ".070 to .101"),
}


class Figure(NamedTuple):
    """A figure of the page."""

    part: str  # heading of its section
    title: str
    text: str
    page: np.ndarray  # [h w 3] uint8
    frames: np.ndarray | None = None  # [m h w 3] of an animation


class Kept(NamedTuple):
    """A network on disk."""

    kind: str
    recipe: str
    folder: Path  # of the final weights
    run: Path  # of its training, with log.csv and epoch-N.safetensors

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def exists(self) -> bool:
        """Whether the network has any weights."""
        return (self.folder / "model.safetensors").is_file()

    @property
    def finished(self) -> bool:
        """Whether its training is finished."""
        return self.exists and bool(json.loads((self.folder / "training.json").read_text())["finished"])

    def epochs(self) -> Iterator[tuple[str, model.Digits]]:
        """Yields (name, network) for each epoch whose weights were kept, and at last ("", the final network)."""
        done = model.load(self.folder)
        for epoch in (epoch for epoch in EPOCHS if epoch < done.facts["epochs_done"]):
            if (path := self.run / f"epoch-{epoch}.safetensors").is_file():
                yield f"after epoch {epoch}", model.load(self.folder, path)
        yield "", done  # no number of epochs, so that its file keeps its name while it is trained further


def signed(x: Any) -> np.ndarray:
    """Converts digits from [0, 1] to [-1, 1], which `images.grid` takes."""
    return 2 * np.clip(np.asarray(x), 0, 1) - 1


def denoised(digits: model.Digits, z: Any) -> Any:
    """Denoises digits z [n 28 28 1] in one step."""
    nothing = Conditioning(jnp.zeros((len(z), 1, 10)))
    return jax.jit(lambda d, z: d(z, jnp.zeros(len(z)), nothing).estimate)(digits.network, z)


def noising(kept: dict, test: tuple) -> Iterator[Figure]:
    """Course part B, 1.2: noise of several levels."""
    x = jnp.asarray(test[0][:5, ..., None] / np.float32(255))
    eps = jax.random.normal(jax.random.key(0), x.shape)
    rows = np.stack([signed(x + sigma * eps) for sigma in SIGMAS], axis=1)
    page = pictures.grid(rows, column_labels=[f"sigma {s:g}" for s in SIGMAS], cell=80)
    yield Figure("1 The single-step denoiser", "Noising", "z = x + sigma eps, five test digits (1.2).", page)


def denoising(kept: dict, test: tuple) -> Iterator[Figure]:
    """Course part B, 1.2.1 and 1.2.2: denoised digits, at the noise of training and at other noise."""
    one, part = kept["denoise", "spec"], "1 The single-step denoiser"
    if not one.exists:
        return
    x = jnp.asarray(test[0][:3, ..., None] / np.float32(255))
    eps = jax.random.normal(jax.random.key(0), x.shape)
    named = list(one.epochs())
    columns = [signed(x), signed(x + 0.5 * eps), *(signed(denoised(d, x + 0.5 * eps)) for _, d in named)]
    labels = ["digit", "sigma 0.5", *(name or f"after {d.facts['epochs_done']:g} epochs" for name, d in named)]
    page = pictures.grid(np.stack(columns, axis=1), column_labels=labels, cell=112)
    yield Figure(part, "Test digits denoised", "With sigma = 0.5, as in training (1.2.1).", page)
    z = jnp.stack([x[0] + sigma * eps[0] for sigma in SIGMAS])
    rows = np.stack([signed(z), signed(denoised(named[-1][1], z))])
    page = pictures.grid(rows, ["noisy", "denoised"], column_labels=[f"sigma {s:g}" for s in SIGMAS], cell=80)
    yield Figure(part, "Out of distribution", "One test digit with other sigmas than in training (1.2.2).", page)


def from_noise(kept: dict, test: tuple) -> Iterator[Figure]:
    """Course part B, 1.2.3: the denoiser of pure noise."""
    one = kept[PURE]
    if not one.exists:
        return
    z = jax.random.normal(jax.random.key(0), (5, 28, 28, 1))
    digits = model.load(one.folder)
    mean = test[0].mean(0)[None, ..., None] / 255
    rows = np.stack([signed(z), signed(denoised(digits, z)), np.repeat(signed(mean), 5, axis=0)])
    page = pictures.grid(rows, ["pure noise", "denoised", "mean of the test digits"], cell=80)
    text = (
        f"The network is trained to turn pure noise into digits in one step (1.2.3), with D = "
        f"{digits.facts['width']} and {digits.facts['updates']:,} updates. The noise says nothing about the digit. So "
        "the output with the least squared error is the mean of all digits, whatever the noise is."
    )
    yield Figure("1 The single-step denoiser", "From pure noise", text, page)


def samples(kind: str, recipe: str, part: str, kept: dict, test: tuple) -> Iterator[Figure]:
    """Samples after each epoch that was kept, and at the end. There is no figure before the end of the first epoch."""
    one = kept[kind, recipe]
    if not one.exists or model.load(one.folder).facts["epochs_done"] < 1:
        return
    conditional = "class" in kind
    classes = np.tile(np.arange(10), 4) if conditional else np.full(40, -1)
    labels = [str(d) for d in range(10)] if conditional else ()
    sheet = lambda x, cell: pictures.grid(signed(x).reshape(4, 10, 28, 28, 1), column_labels=labels, cell=cell)
    for name, digits in one.epochs():
        made = model.draw(digits, classes, jax.random.key(0), keep=20, mesh=model.mesh_for(len(classes)))
        frames = np.stack([sheet(frame, 28) for frame in np.swapaxes(np.asarray(made.way), 0, 1)])
        calls, scale = digits.recipe.steps, digits.recipe.guidance
        text = f"40 samples, {calls} steps" + (f", guidance scale {scale:g}" if conditional else "")
        done = digits.facts["epochs_done"]
        text += "." if name else f", after {done:g} epoch{'s' * (done != 1)}."
        yield Figure(part, f"{one.name} {name}".strip(), text, sheet(made.images, 56), frames)


def guidance(kept: dict, test: tuple) -> Iterator[Figure]:
    """Samples of the same noise with several guidance scales, by the course's network if finished, else by ours."""
    course, ours = kept["class", "spec"], kept["class", "best"]
    choices = [one for one in (course, ours) if one.finished] + [one for one in (ours, course) if one.exists]
    if not choices:
        return
    one = choices[0]
    digits, scales = model.load(one.folder), (0.0, 1.0, 5.0, 10.0)
    rows = []
    for scale in scales:
        made = model.draw(digits, np.arange(10), jax.random.key(0), guidance=scale)
        rows.append(signed(made.images))
    page = pictures.grid(np.stack(rows), [f"guidance {s:g}" for s in scales],
                         column_labels=[str(d) for d in range(10)], cell=56)  # fmt: skip
    text = f"{one.name}, the same noise: without the class (scale 0), with the class (1), with guidance (5, 10)."
    yield Figure("3 Class conditioning", "Guidance", text, page)


PARTS: tuple[Callable[[dict, tuple], Iterator[Figure]], ...] = (
    noising,
    denoising,
    from_noise,
    partial(samples, "time", "spec", "2 Time conditioning"),
    partial(samples, "time", "best", "2 Time conditioning"),
    partial(samples, "class", "spec", "3 Class conditioning"),
    partial(samples, "class", "best", "3 Class conditioning"),
    guidance,
    partial(samples, "flow-time", "spec", "4 Flow matching"),
    partial(samples, "flow-class", "spec", "4 Flow matching"),
)


def curves(path: Path, kept: dict) -> None:
    """Writes a plot of the training losses of all networks, with a logarithmic y axis."""
    import matplotlib.pyplot as plt

    shown = [one for one in kept.values() if one.exists]
    figure, axes = plt.subplots(2, 4, figsize=(14, 6), layout="constrained")
    for axis, one in zip(axes.flat, shown):  # noqa: B905, more axes than networks
        rows = log.read(one.run / "log.csv")
        facts = json.loads((one.folder / "training.json").read_text())
        curve = np.array([[row["update"], row["loss"]] for row in rows] or facts["curve"])
        axis.plot(curve[:, 0], curve[:, 1], linewidth=0.8)
        axis.set(yscale="log", title=one.name, xlabel="update", ylabel="mean squared error")
        axis.grid(True, which="both", alpha=0.3)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    with path_beside(path) as file:
        figure.savefig(file, format="png", dpi=80)
    plt.close(figure)


HEAD = (
    "network", "epochs", "training loss", "test loss", "training loss in the write-up", "in the staff's curve",
    "samples right, or sure", "Frechet distance",
)  # fmt: skip


def table(kept: dict) -> str:
    """Returns the results of measure_mnist.py as Markdown, with the losses that others report."""
    rows, real = [], None
    for key in ORDER:
        one = kept[key]
        if not (one.exists and (one.folder / "quality.json").is_file()):
            continue
        facts, found = (json.loads((one.folder / name).read_text()) for name in ("training.json", "quality.json"))
        real = found["real"]
        share = distance = ""
        if "samples" in found:
            name = "right" if "right" in found else "sure"
            share = f"{100 * found[name] / found['samples']:.1f} % {name}"
            distance = f"{found['frechet']:.2f}"
            if found["samples"] != USUAL:
                share += f" of {found['samples']:,}"
                distance += f" (of as many real digits: {real['frechet']:.2f})"
        unfinished = "" if facts["finished"] else f" of {facts['epochs']}, unfinished"
        rows.append((
            f"{one.name}, D = {facts['width']}", f"{facts['epochs_done']:g}{unfinished}", f"{last_loss(facts):.4f}",
            f"{found['test_loss']:.4f}", *REPORTED.get(key, ("", "")), share, distance,
        ))  # fmt: skip
    text = markdown_table(HEAD, rows)
    if real is not None:
        right = 100 * np.array([real["right"] / real["samples"], real["right_of_test"], real["sure_of_test"]])
        text += REAL.format(*right, **real)
    return text


REAL = """

For comparison, real digits: the judge reads {:.1f} % of {samples:,} training digits right, and {:.1f} % of the test
digits. It is sure of {:.1f} % of the test digits. The Frechet distance to the test digits is {frechet:.2f} for
{samples:,} training digits, and {frechet_of_all:.2f} for all 60,000."""
INTRO = """\
# Part B: MNIST

These are the course's networks for MNIST, and an edition of our own. All of them use the library's one `train` and one
`sample`. `jdiff mnist train KIND` trains a network, and `jdiff mnist sample KIND` draws with it. How to get the data is
in [training.md](training.md). `python scripts/reproduce_mnist.py` drew every figure on this page, on
{machine}, at seed 0, none picked.

The recipe `spec` is the course's. The recipe `best` is ours, for the kinds `time` and `class`. It is a flow, which
starts from pure noise, whereas the course's noise schedule leaves abar_300 = 0.048 of the image. Its network is IF's
UNet on patches of 2 x 2 pixels. It is sampled in {steps} steps of a second-order solver, with an EMA of the weights.

On two CPU cores, the full training of class-spec took 2.4 hours. Networks that are marked as unfinished were trained
for a shorter time. The same command trains them in full. Networks that have not seen the whole data set once have no
samples here, because their samples are noise.

## What was measured

`python scripts/measure_mnist.py` drew {n:,} samples of each network, if the table has no other number, with its
recipe's own sampler and guidance scale (as many of each digit if the network is told the class). The digit judge
(`weights/judge`) read them. "Right" is the share that it reads as the digit asked for. "Sure" is the share of samples
without a class to which it gives a probability of 0.9 or more. The Frechet distance compares the judge's features of
the samples with those of the test digits; it is larger for fewer samples.

{table}

![Training losses](mnist/losses.png)
"""


def write(out: Path, intro: str, figures: Sequence[Figure]) -> None:
    """Writes mnist.md, and its pictures, GIFs and MP4s in mnist/, into the folder `out`."""
    folder = out / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    lines, part = [intro], None
    for figure in figures:
        name = "".join(c if c.isalnum() else "-" for c in figure.title.lower())
        pictures.save(folder / f"{name}.png", figure.page)
        if figure.part != part:
            lines += [f"## {figure.part}", ""]
            part = figure.part
        moving = ""
        if figure.frames is not None:
            pictures.save_gif(folder / f"{name}.gif", figure.frames)
            moving = f" ([Animation](mnist/{name}.gif).)"
            if pictures.has_video():
                pictures.save_mp4(folder / f"{name}.mp4", figure.frames)
                moving = f" ([Animation](mnist/{name}.gif), [video](mnist/{name}.mp4).)"
        lines += [f"**{figure.title}.** {figure.text}{moving}", "", f"![{figure.title}](mnist/{name}.png)", ""]
    write_text(out / "mnist.md", "\n".join(lines).rstrip() + "\n")


def teach(one: Kept, recipe: recipes.Recipe, train: tuple, minutes: float) -> None:
    """Trains a network from its newest checkpoint, and writes it."""
    run = fit.Run(one.kind, one.recipe, recipe.width, recipe.batch, recipe.epochs, recipe.rate, 0)
    images, labels = train
    state, done = fit.fit(
        recipe, run, images, labels, one.run, minutes=minutes, keep_epochs=EPOCHS, mesh=over_devices()
    )
    fit.export(one.folder, run, state, done, one.run, len(images))


def main(
    data_dir: Path = Path("data/tensorflow_datasets"),
    train: bool = False,
    minutes: float = float("inf"),
    only: tuple[str, ...] = (),
    width: int | None = None,
    runs: Path = Path("runs/mnist"),
    weights: Path = Path("weights/mnist"),
    out: Path = Path("docs"),
    machine: str = "",
) -> None:
    """Writes `out`/mnist.md and its figures, after training networks if asked to.

    Args:
        data_dir: folder of TensorFlow Datasets, with MNIST; see docs/training.md.
        train: train networks that are not finished.
        minutes: longest time for each of them.
        only: names of the networks to train, such as class-best; all if not given.
        width: channels D of the networks to train; the recipe's default if not given.
        runs: folder of checkpoints, logs and the weights of epochs.
        weights: folder of the trained networks.
        out: folder to write to.
        machine: description of the machine for the page; detected if not given.
    """
    use_cores(40)  # samples of a figure; each batch of a training is a multiple of 8, too
    table_of = recipes.recipes()
    kept = {key: Kept(*key, *(at / model.name(*key) for at in (weights, runs))) for key in (*ORDER, PURE)}
    if train:
        digits = mnist("train", data_dir)
        for key, one in kept.items():
            if (not only or one.name in only) and not one.finished:
                print(one.name, flush=True)
                recipe = table_of[key]
                teach(one, recipe if width is None else recipe._replace(width=width), digits, minutes)
    test = mnist("test", data_dir)
    figures = []
    for part in PARTS:
        for figure in part(kept, test):
            figures.append(figure)
            print(figure.part, "-", figure.title, flush=True)
    (out / "mnist").mkdir(parents=True, exist_ok=True)
    curves(out / "mnist" / "losses.png", kept)
    steps = table_of["class", "best"].steps
    intro = INTRO.format(machine=machine or this_machine(), steps=steps, n=USUAL, table=table(kept))
    write(out, intro, figures)
    print(f"wrote {out / 'mnist.md'}")


if __name__ == "__main__":
    tyro.cli(main)
