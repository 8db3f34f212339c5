"""Makes every figure that part B of the course asks for, and docs/mnist.md with them.

    python scripts/reproduce_mnist.py --data-dir FOLDER_OF_TFDS --train              # the course's full length
    python scripts/reproduce_mnist.py --data-dir FOLDER_OF_TFDS --train --minutes 3  # of each network
    python scripts/reproduce_mnist.py --data-dir FOLDER_OF_TFDS                      # of the weights that are there

With --train, networks that are not finished are trained on, from their checkpoints in --runs if there are any, and
written to --weights; `python scripts/measure_mnist.py` then measures them, and this script shows what it found.
Figures after an epoch need the weights kept then, in --runs; where there are none, the figure is left out.
"""

import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro
from measure_mnist import last_loss

from jdiff import images as pictures
from jdiff.mesh import over_devices, use_cores
from jdiff.mnist import fit, model, recipes
from jdiff.mnist.data import mnist
from jdiff.parts import beside
from jdiff.training import log
from jdiff.types import Conditioning

matplotlib.use("Agg")
SIGMAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
EPOCHS = (1, 5, 10, 15, 20, 30)  # after which weights are kept and shown
ORDER = (("denoise", "spec"), ("time", "spec"), ("class", "spec"), ("flow-time", "spec"), ("flow-class", "spec"),
         ("time", "best"), ("class", "best"))  # fmt: skip
PURE = ("denoise-pure", "spec")
REPORTED = {  # final training loss of the write-up, and of the staff's curve, read off the plot
    ("denoise", "spec"): ("about .01", ".0084"),
    ("time", "spec"): ("about .02", ".026 to .035"),
    ("class", "spec"): ("about .02", ".026 to .034"),
    ("flow-time", "spec"): ("", ".070 to .101"),
    ("flow-class", "spec"): ("", ".070 to .101"),
}


class Figure(NamedTuple):
    """A figure: where it stands, what it shows, the picture [h w 3] uint8, and its frames [m h w 3] if it moves."""

    part: str
    title: str
    text: str
    page: np.ndarray
    frames: np.ndarray | None = None


class Kept(NamedTuple):
    """One network as it is on disk."""

    kind: str
    recipe: str
    folder: Path  # of the final weights
    run: Path  # with log.csv and epoch-N.safetensors, if it was trained here

    @property
    def name(self) -> str:
        return self.run.name

    def exists(self) -> bool:
        return (self.folder / "model.safetensors").is_file()

    def epochs(self) -> Iterator[tuple[str, model.Digits]]:
        """(what to call it, the network) after each epoch whose weights were kept, and, by no name, in the end."""
        done = model.load(self.folder)
        for epoch in (epoch for epoch in EPOCHS if epoch < done.facts["epochs_done"]):
            if (path := self.run / f"epoch-{epoch}.safetensors").is_file():
                yield f"after epoch {epoch}", model.load(self.folder, path)
        yield "", done  # so that what it is called, and its file, stay the same as it is trained on


def signed(x: Any) -> np.ndarray:
    """[... 28 28 1] in [0, 1] as `grid` has it, in [-1, 1]."""
    return 2 * np.clip(np.asarray(x), 0, 1) - 1


def denoised(digits: model.Digits, z: Any) -> Any:
    nothing = Conditioning(jnp.zeros((len(z), 1, 10)))
    return jax.jit(lambda d, z: d(z, jnp.zeros(len(z)), nothing).estimate)(digits.network, z)


def noising(kept: dict, test: tuple) -> Iterator[Figure]:
    x = jnp.asarray(test[0][:5, ..., None] / np.float32(255))
    eps = jax.random.normal(jax.random.key(0), x.shape)
    rows = np.stack([signed(x + sigma * eps) for sigma in SIGMAS], axis=1)
    page = pictures.grid(rows, column_labels=[f"sigma {s:g}" for s in SIGMAS], cell=80)
    yield Figure("1 The single-step denoiser", "Noising", "z = x + sigma eps, five test digits (1.2).", page)


def denoising(kept: dict, test: tuple) -> Iterator[Figure]:
    one, part = kept["denoise", "spec"], "1 The single-step denoiser"
    if not one.exists():
        return
    x = jnp.asarray(test[0][:3, ..., None] / np.float32(255))
    eps = jax.random.normal(jax.random.key(0), x.shape)
    named = list(one.epochs())
    columns = [signed(x), signed(x + 0.5 * eps), *(signed(denoised(d, x + 0.5 * eps)) for _, d in named)]
    labels = ["digit", "sigma 0.5", *(name or f"after {d.facts['epochs_done']:g} epochs" for name, d in named)]
    page = pictures.grid(np.stack(columns, axis=1), column_labels=labels, cell=112)
    yield Figure(part, "Test digits denoised", "At the sigma it was trained on (1.2.1).", page)
    z = jnp.stack([x[0] + sigma * eps[0] for sigma in SIGMAS])
    rows = np.stack([signed(z), signed(denoised(named[-1][1], z))])
    page = pictures.grid(rows, ["noisy", "denoised"], column_labels=[f"sigma {s:g}" for s in SIGMAS], cell=80)
    yield Figure(part, "Out of distribution", "One test digit at sigmas that it was not trained on (1.2.2).", page)


def from_noise(kept: dict, test: tuple) -> Iterator[Figure]:
    one = kept[PURE]
    if not one.exists():
        return
    z = jax.random.normal(jax.random.key(0), (5, 28, 28, 1))
    digits = model.load(one.folder)
    mean = test[0].mean(0)[None, ..., None] / 255
    rows = np.stack([signed(z), signed(denoised(digits, z)), np.repeat(signed(mean), 5, axis=0)])
    page = pictures.grid(rows, ["pure noise", "denoised", "mean of the test digits"], cell=80)
    text = (
        f"Trained to make digits of pure noise in one step (1.2.3), D = {digits.facts['width']}, "
        f"{digits.facts['updates']:,} updates. The noise says nothing of the digit, so the least "
        "squared error is the mean of all digits, whatever the noise."
    )
    yield Figure("1 The single-step denoiser", "From pure noise", text, page)


def samples(kind: str, recipe: str, part: str, kept: dict, test: tuple) -> Iterator[Figure]:
    one = kept[kind, recipe]
    if not one.exists() or model.load(one.folder).facts["epochs_done"] < 1:  # before that, samples are noise
        return
    told = "class" in kind
    classes = np.tile(np.arange(10), 4) if told else np.full(40, -1)
    labels = [str(d) for d in range(10)] if told else ()
    sheet = lambda x, cell: pictures.grid(signed(x).reshape(4, 10, 28, 28, 1), column_labels=labels, cell=cell)
    for name, digits in one.epochs():
        made = model.draw(digits, classes, jax.random.key(0), keep=20)
        frames = np.stack([sheet(frame, 28) for frame in np.swapaxes(np.asarray(made.way), 0, 1)])
        calls, scale = digits.recipe.steps, digits.recipe.guidance
        text = f"40 samples, {calls} calls" + (f", guidance {scale:g}" if told else "")
        done = digits.facts["epochs_done"]
        text += "." if name else f", after {done:g} epoch{'s' * (done != 1)}."
        yield Figure(part, f"{one.name} {name}".strip(), text, sheet(made.images, 56), frames)


def guidance(kept: dict, test: tuple) -> Iterator[Figure]:
    one = next((kept[key] for key in (("class", "spec"), ("class", "best")) if finished(kept[key])), None)
    one = one or next((kept[key] for key in (("class", "best"), ("class", "spec")) if kept[key].exists()), None)
    if one is None:
        return
    digits, scales = model.load(one.folder), (0.0, 1.0, 5.0, 10.0)
    rows = []
    for scale in scales:
        made = model.draw(digits, np.arange(10), jax.random.key(0), guidance=scale)
        rows.append(signed(made.images))
    page = pictures.grid(np.stack(rows), [f"guidance {s:g}" for s in scales],
                         column_labels=[str(d) for d in range(10)], cell=56)  # fmt: skip
    text = f"{one.name}: the same noise without the class (0), with it (1), and led towards it (5, 10)."
    yield Figure("3 Told the class", "Guidance", text, page)


def finished(one: Kept) -> bool:
    return one.exists() and bool(json.loads((one.folder / "training.json").read_text())["finished"])


PARTS: tuple[Callable[[dict, tuple], Iterator[Figure]], ...] = (
    noising,
    denoising,
    from_noise,
    partial(samples, "time", "spec", "2 Told the time"),
    partial(samples, "time", "best", "2 Told the time"),
    partial(samples, "class", "spec", "3 Told the class"),
    partial(samples, "class", "best", "3 Told the class"),
    guidance,
    partial(samples, "flow-time", "spec", "4 Flow matching"),
    partial(samples, "flow-class", "spec", "4 Flow matching"),
)


def curves(path: Path, kept: dict) -> None:
    """Writes the training losses of all networks, y logarithmic, each with the running mean of about an epoch."""
    import matplotlib.pyplot as plt

    shown = [one for one in kept.values() if one.exists()]
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
    with beside(path) as file:
        figure.savefig(file, format="png", dpi=80)
    plt.close(figure)


def table(kept: dict) -> list[str]:
    """What measure_mnist.py found, beside what others reported."""
    head = ("network", "epochs", "training loss", "test loss", "the write-up", "the staff's curve",
            "samples right, or sure", "Frechet distance")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    real: dict[str, Any] = {}
    for key in ORDER:
        one = kept[key]
        if not (one.exists() and (one.folder / "quality.json").is_file()):
            continue
        facts, found = (json.loads((one.folder / name).read_text()) for name in ("training.json", "quality.json"))
        real = found["real"]
        ours, theirs = REPORTED.get(key, ("", ""))
        share = ""
        if "samples" in found:
            n = found["right" if "right" in found else "sure"]
            share = f"{100 * n / found['samples']:.1f} % {'right' if 'right' in found else 'sure'}"
        epochs = f"{facts['epochs_done']:g}" + ("" if facts["finished"] else f" of {facts['epochs']}, unfinished")
        loss = last_loss(facts)
        distance = f"{found['frechet']:.2f}" if "frechet" in found else ""
        cells = (
            f"{one.name}, D = {facts['width']}",
            epochs,
            f"{loss:.4f}",
            f"{found['test_loss']:.4f}",
            ours,
            theirs,
            share,
            distance,
        )
        lines.append("| " + " | ".join(cells) + " |")
    if real:
        lines += [
            "",
            f"Real digits: of {real['samples']:,} training digits the judge reads "
            f"{real['right'] / real['samples']:.1%} right, of the test digits {real['right_of_test']:.1%}; it is "
            f"at least 0.9 sure of {real['sure_of_test']:.1%} of the test digits. The Frechet distance of as many "
            f"training digits to the test digits is {real['frechet']:.2f}, of all 60,000 {real['frechet_of_all']:.2f}.",
        ]
    return lines


INTRO = """\
# Part B: MNIST

The course's networks for MNIST and an edition of our own, all through the library's one `train` and one `sample`:
`jdiff mnist train KIND` and `jdiff mnist sample KIND`. Every figure here is made by `python scripts/reproduce_mnist.py`
on {machine}, at seed 0, none picked.

`spec` is the course's recipe; `best`, for `time` and `class`, is a flow that ends in nothing but noise (the course's
schedule leaves abar_300 = 0.048 of the image), by IF's own UNet on squares of 2 x 2 pixels, sampled in {steps} calls of
a second-order solver, with the running mean of the weights. On two CPU cores the course's full length is days; what is
marked unfinished was trained for less, and the same command makes all of it where there is an accelerator. Samples of
networks that have not seen every digit once are left out: they are noise.

## What was measured

By `python scripts/measure_mnist.py`: 1,000 samples of each network by its recipe's own sampler and guidance (100 of
each digit where it is told one), read by the digit judge (`weights/judge`); "sure" is the share of samples without a
class in which the judge gives one digit 0.9 or more. The Frechet distance is that of the judge's features to the test
digits'.

{table}

![Training losses](mnist/losses.png)

"""


def write(out: Path, intro: str, figures: Sequence[Figure]) -> None:
    """Writes mnist.md and mnist/*.png, GIFs and MP4s under `out`."""
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
            moving = f" ([the way there](mnist/{name}.gif))"
            if pictures.has_video():
                pictures.save_mp4(folder / f"{name}.mp4", figure.frames)
                moving = f" ([the way there](mnist/{name}.gif), [as a video](mnist/{name}.mp4))"
        lines += [f"**{figure.title}.** {figure.text}{moving}", "", f"![{figure.title}](mnist/{name}.png)", ""]
    with beside(out / "mnist.md") as file:
        file.write("\n".join(lines).rstrip().encode() + b"\n")


def teach(one: Kept, recipe: recipes.Recipe, train: tuple, minutes: float) -> None:
    """Trains one network on from its checkpoints, and writes it."""
    run = fit.Run(one.kind, one.recipe, recipe.width, recipe.batch, recipe.epochs, recipe.rate, 0)
    images, labels = train
    state, done = fit.fit(
        recipe, run, images, labels, one.run, minutes=minutes, keep_epochs=EPOCHS, mesh=over_devices()
    )
    fit.export(one.folder, run, state, done, one.run, len(images))


def main(
    data_dir: Path | None = None,
    train: bool = False,
    minutes: float = float("inf"),
    only: tuple[str, ...] = (),
    width: int | None = None,
    runs: Path = Path("runs/mnist"),
    weights: Path = Path("weights/mnist"),
    out: Path = Path("docs"),
    machine: str = "",
) -> None:
    """Trains what is to be trained, then writes `out`/mnist.md and its figures.

    Args:
        data_dir: where TFDS keeps its data sets; its own choice if not given.
        train: train networks that are not finished.
        minutes: at most, of each of them.
        only: names such as class-best, of those to train; all unless given.
        width: channels D of what is trained, where it is not to be the recipe's own.
        runs: folder of checkpoints, logs and weights kept after epochs.
        weights: folder of the trained networks.
        out: folder to write to.
        machine: what the page says it was made on; found out if not given.
    """
    if train:
        use_cores(min(recipe.batch for recipe in recipes.recipes().values()))
    machine = machine or f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}"
    table_of = recipes.recipes() | {PURE: recipes.denoiser(0.0, 1.0)}
    kept = {key: Kept(*key, *(at / model.name(*key) for at in (weights, runs))) for key in (*ORDER, PURE)}
    kept[PURE] = kept[PURE]._replace(kind="denoise", folder=runs / model.name(*PURE) / "model")  # it does not ship
    if train:
        digits = mnist("train", data_dir)
        for key, one in kept.items():
            if (not only or one.name in only) and not finished(one):
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
    intro = INTRO.format(machine=machine, steps=table_of["class", "best"].steps, table="\n".join(table(kept)))
    write(out, intro, figures)
    print(f"wrote {out / 'mnist.md'}")


if __name__ == "__main__":
    tyro.cli(main)
