"""Measures part B's networks by the digit judge, and writes quality.json and a card into each network's folder.

    python scripts/measure_mnist.py

For each network it measures the loss on the test digits, and 1,000 samples by the recipe's own sampler. A
class-conditional network draws 100 of each digit, and the share that the judge reads right is measured. For the others,
it is the share of which the judge is sure. The Frechet distance compares the judge's features of the samples with those
of the test digits. 1,000 training digits are measured for comparison. There is one seed, and no sample is picked.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial

from jdiff.mesh import use_cores
from jdiff.mnist import judge, model, objectives
from jdiff.mnist.data import mnist, pad32
from jdiff.mnist.recipes import recipes
from jdiff.parts import write_text
from jdiff.results import machine as this_machine
from jdiff.results import percent, share
from jdiff.types import Array, Conditioning, Params, Prediction

USUAL = 1000  # samples of a network
SURE = 0.9  # probability from which the judge counts as sure
FOLDERS = tuple(Path("weights/mnist") / name for name in ("denoise-spec", "time-spec", "class-spec", "flow-time-spec",
                                                          "flow-class-spec", "time-best", "class-best"))  # fmt: skip


def read(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the judge's probabilities [n 10] and features [n 128] of images [n 28 28] in [0, 1]."""
    apply, _ = judge.network()
    params = judge.load_params()
    both = jax.jit(lambda p, x: (jax.nn.softmax(apply(p, x)), apply.at("features")(p, x)))
    parts = [
        both(params, jnp.asarray(pad32(part), jnp.float32))
        for part in np.array_split(images, max(len(images) // 1000, 1))
    ]
    chances, features = zip(*parts, strict=True)
    return np.concatenate(chances), np.concatenate(features)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the Frechet distance between two Gaussians with the means and covariances of features [n d] and [m d].

    Reference:
        Heusel et al. 2017 (FID), eq. 6.
    """
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0, dtype=np.float64), np.cov(x.astype(np.float64).T)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def loss(digits: model.Digits, images: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean squared error on images [n 28 28] uint8 with labels [n], each at a random noise level."""
    recipe = digits.recipe
    apply, params = digits.network.apply, digits.network.params
    objective = Partial(objectives.regression, *map(Partial, (recipe.levels, recipe.target)))
    parts = np.array_split(np.arange(len(images)), max(len(images) // 250, 1))
    evaluate = Partial(partial(_evaluate, apply))
    one = jax.jit(lambda o, e, p, key, x, y: o(jnp.float32(recipe.dropout == 1), e, p, key, (recipe.scale(x), y))[0])
    keys = jax.random.split(jax.random.key(0), len(parts))
    losses = [one(objective, evaluate, params, key, images[i], labels[i]) for key, i in zip(keys, parts, strict=True)]
    return float(np.mean(losses))


def _evaluate(
    apply: Any, params: Params, x: Array, t: Array, conditioning: Conditioning
) -> tuple[Prediction, float]:  # fmt: skip
    """Calls the network as in sampling, with BatchNorm's running statistics."""
    return apply(params, x, t, conditioning), 0.0


def measure(digits: model.Digits, test: tuple, features: np.ndarray, n: int, **how: Any) -> dict[str, Any]:
    """Measures one network.

    Args:
        digits: the network.
        test: images and labels of the test digits.
        features: the judge's features of the test digits.
        n: number of samples; with 0 only the loss is measured.
        how: settings of `model.draw`.
    """
    kind = digits.facts["kind"]
    found: dict[str, Any] = {"test_loss": loss(digits, *test)}
    if kind == "denoise" or not n:
        return found
    conditional = "class" in kind
    classes = np.repeat(np.arange(10), n // 10) if conditional else np.full(n, -1)
    made = model.draw(digits, classes, jax.random.key(1), mesh=model.mesh_for(n), **how)
    chances, own = read(made.images[..., 0])
    right = chances.argmax(1) == classes if conditional else chances.max(1) >= SURE
    name = "right" if conditional else "sure"
    found |= {"samples": n, name: int(right.sum()), "frechet": frechet(own, features)}
    if conditional:
        found["right_of_each"] = [int(part.sum()) for part in np.split(right, 10)]
    return found


def reference(train: tuple, test: tuple, features: np.ndarray, n: int) -> dict[str, Any]:
    """Measures real digits: n training digits, all training digits, and the test digits."""
    images = train[0] / np.float32(255)
    some = np.random.default_rng(0).permutation(len(images))[:n]
    chances, some_features = read(images[some])
    test_chances, _ = read(test[0] / np.float32(255))
    _, all_features = read(images)
    return {
        "samples": n,
        "frechet": frechet(some_features, features),
        "frechet_of_all": frechet(all_features, features),
        "right": int((chances.argmax(1) == train[1][some]).sum()),
        "sure_of_test": float((test_chances.max(1) >= SURE).mean()),
        "right_of_test": float((test_chances.argmax(1) == test[1]).mean()),
    }


CARD = """\
# MNIST: {title}

One of the course's networks for MNIST (part B), trained by this repository. {use}

| | |
|---|---|
| training | {state}: {updates:,} updates of {batch}, {epochs_done:g} of {epochs} epochs |
| command | `jdiff mnist train {kind}{flags}`, seed {seed}, {dtype}, {images_per_second:.0f} images/s on {device} |
| training loss, mean of the last tenth | {loss:.4f} |
{rows}
Measured by `python scripts/measure_mnist.py` on {machine}, at one seed, no sample picked. The data is MNIST (Y. LeCun,
C. Cortes, C. Burges; CC BY-SA 3.0). The weights have the library's licence (Apache-2.0).
"""


def last_loss(facts: dict[str, Any]) -> float:
    """Returns the mean training loss of the last tenth of the log."""
    curve = [row[1] for row in facts["curve"]]
    return float(np.mean(curve[-max(len(curve) // 10, 1) :]))


def card(facts: dict[str, Any], found: dict[str, Any], machine: str) -> str:
    """Returns the README.md of a network's folder.

    Args:
        facts: contents of training.json.
        found: from `measure`.
        machine: description of the machine.
    """
    kind, recipe = facts["kind"], facts["recipe"]
    recipe_flag = "" if recipe == "spec" else f" --recipe {recipe}"
    width_flag = "" if facts["width"] == recipes()[kind, recipe].width else f" --width {facts['width']}"
    use = f"`jdiff mnist sample {kind} --recipe {recipe}` draws with it."
    if kind == "denoise":
        use = f'`jdiff.mnist.model.load("{model.name(kind, recipe)}")` loads it.'
    rows = [("test loss", f"{found['test_loss']:.4f}")]
    if "samples" in found:
        name = "right" if "right" in found else "sure"
        what = "that the judge reads as asked" if name == "right" else f"with a probability of {SURE} or more"
        right = share(np.arange(found["samples"]) < found[name])
        rows.append((f"samples {what}", f"{percent(right)} of {found['samples']:,}"))
        rows.append(("Frechet distance to the test digits", f"{found['frechet']:.2f}"))
    return CARD.format(
        title=f"{kind}, {recipe}",
        use=use,
        flags=recipe_flag + width_flag,
        state="finished" if facts["finished"] else "**unfinished** (the same command trains all of it)",
        loss=last_loss(facts),
        rows="".join(f"| {name} | {value} |\n" for name, value in rows),
        machine=machine,
        **{name: facts[name] for name in ("kind", "updates", "batch", "epochs", "epochs_done", "seed", "dtype",
                                          "device", "images_per_second")},
    )  # fmt: skip


def main(
    data_dir: Path = Path("data/tensorflow_datasets"),
    folders: tuple[Path, ...] = FOLDERS,
    n: int = USUAL,
    losses_alone: tuple[str, ...] = (),
    machine: str = "",
) -> None:
    """Measures networks.

    Args:
        data_dir: folder of TensorFlow Datasets, with MNIST; see docs/training.md.
        folders: folders of networks. Those that do not exist are left out.
        n: number of samples of each network.
        losses_alone: names, such as class-spec, of networks that are measured without samples. On two cores, 1,000
            samples with the course's 300 guided steps take 20 minutes.
        machine: description of the machine for the cards; detected if not given.
    """
    use_cores(n or None)
    machine = machine or this_machine()
    train, test = (mnist(split, data_dir) for split in ("train", "test"))
    _, features = read(test[0] / np.float32(255))
    real = reference(train, test, features, n)
    print("real digits", json.dumps(real))
    for folder in (folder for folder in folders if (folder / "model.safetensors").is_file()):
        digits = model.load(folder)
        found = measure(digits, test, features, 0 if folder.name in losses_alone else n)
        print(folder, json.dumps(found), flush=True)
        write_text(folder / "quality.json", json.dumps(found | {"real": real}, indent=1) + "\n")
        write_text(folder / "README.md", card(digits.facts, found, machine))


if __name__ == "__main__":
    tyro.cli(main)
