"""Measures part B's networks by the digit judge, and writes what it found beside each, with a card.

    python scripts/measure_mnist.py --data-dir FOLDER_OF_TFDS

Of each folder: the loss on the test digits; of 1,000 samples by the recipe's own sampler (100 of each digit where the
network is told one) the share that the judge reads as asked, or is sure of; and the Frechet distance of its features to
those of the test digits, beside that of as many training digits. One seed, none picked.
"""

import json
import os
import platform
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial
from measure_mini import score

from jdiff.mnist import judge, model, objectives
from jdiff.mnist.data import mnist, pad32
from jdiff.mnist.recipes import recipes
from jdiff.parts import beside

SURE = 0.9
FOLDERS = tuple(Path("weights/mnist") / name for name in ("denoise-spec", "time-spec", "class-spec", "flow-time-spec",
                                                          "flow-class-spec", "time-best", "class-best"))  # fmt: skip


def read(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(chances [n 10], features [n 128]) that the judge finds in images [n 28 28] in [0, 1]."""
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
    """Frechet distance of two Gaussians with the means and covariances of features a [n d] and b [m d].

    Source: Heusel et al. 2017 (FID), eq. 6.
    """
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0, dtype=np.float64), np.cov(x.astype(np.float64).T)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def loss(digits: model.Digits, images: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared error on images uint8 [n 28 28] with labels [n], levels and noise drawn once, weights as kept."""
    recipe = digits.recipe
    apply, params = digits.network.apply, digits.network.params
    still = Partial(partial(_evaluate, apply))
    objective = Partial(objectives.regression, *map(Partial, (recipe.levels, recipe.target)))
    parts = np.array_split(np.arange(len(images)), max(len(images) // 250, 1))
    one = jax.jit(lambda o, s, p, key, x, y: o(jnp.float32(recipe.dropout == 1), s, p, key, (recipe.scale(x), y))[0])
    keys = jax.random.split(jax.random.key(0), len(parts))
    losses = [one(objective, still, params, key, images[i], labels[i]) for key, i in zip(keys, parts, strict=True)]
    return float(np.mean(losses))


def _evaluate(apply: Any, params: Any, x: Any, t: Any, conditioning: Any) -> Any:
    return apply(params, x, t, conditioning), 0.0


def measure(digits: model.Digits, test: tuple, features: np.ndarray, n: int, **how: Any) -> dict[str, Any]:
    """What is measured of one network, with n samples; `features` are the test digits'."""
    kind = digits.facts["kind"]
    found: dict[str, Any] = {"test_loss": loss(digits, *test)}
    if kind == "denoise" or not n:
        return found
    told = "class" in kind
    classes = np.repeat(np.arange(10), n // 10) if told else np.full(n, -1)
    made = model.draw(digits, classes, jax.random.key(1), **how)
    chances, theirs = read(made.images[..., 0])
    right = chances.argmax(1) == classes if told else chances.max(1) >= SURE
    found |= {"samples": n, "right" if told else "sure": int(right.sum()), "frechet": frechet(theirs, features)}
    if told:
        found["right_of_each"] = [int(part.sum()) for part in np.split(right, 10)]
    return found


def reference(train: tuple, test: tuple, features: np.ndarray, n: int) -> dict[str, Any]:
    """What real digits have: as many training digits as there are samples, and all of them."""
    images = train[0] / np.float32(255)
    some = np.random.default_rng(0).permutation(len(images))[:n]
    chances, theirs = read(images[some])
    all_chances, _ = read(test[0] / np.float32(255))
    _, all_theirs = read(images)
    return {
        "samples": n,
        "frechet": frechet(theirs, features),
        "frechet_of_all": frechet(all_theirs, features),
        "right": int((chances.argmax(1) == train[1][some]).sum()),
        "sure_of_test": float((all_chances.max(1) >= SURE).mean()),
        "right_of_test": float((all_chances.argmax(1) == test[1]).mean()),
    }


CARD = """\
# {title}

One of the course's networks for MNIST (part B), trained here: {use}

| | |
|---|---|
| training | {state}: {updates:,} updates of {batch}, {epochs_done:g} of {epochs} epochs |
| by | `jdiff mnist train {kind}{flag}{width}`, seed {seed}, {dtype}, {images_per_second:.0f} images/s on {device} |
| training loss, its last tenth | {loss:.4f} |
{rows}
Measured by `python scripts/measure_mnist.py` on {machine}, after the fact, at one seed, none picked. The data is MNIST
(Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0); the weights are licensed as the library is (Apache-2.0).
"""


def last_loss(facts: dict[str, Any]) -> float:
    """The mean training loss of the last tenth of what was logged."""
    curve = [row[1] for row in facts["curve"]]
    return float(np.mean(curve[-max(len(curve) // 10, 1) :]))


def card(facts: dict[str, Any], found: dict[str, Any], machine: str) -> str:
    """README.md of a network's folder."""
    flag = "" if facts["recipe"] == "spec" else f" --recipe {facts['recipe']}"
    use = f"`jdiff mnist sample {facts['kind']}{flag}` draws with it."
    if facts["kind"] == "denoise":
        use = f'`jdiff.mnist.model.load("{model.name(facts["kind"], facts["recipe"])}")` has it.'
    usual = recipes()[facts["kind"], facts["recipe"]].width
    rows = [("test loss", f"{found['test_loss']:.4f}")]
    if "samples" in found:
        name = "right" if "right" in found else "sure"
        what = "read by the judge as asked" if name == "right" else f"of which the judge is {SURE} sure"
        found_score = score(np.arange(found["samples"]) < found[name])
        share = "{percent:.1f} % ({low:.1f} to {high:.1f}) of {n:,}".format(**found_score)
        rows += [(f"samples {what}", share), ("Frechet distance to the test digits", f"{found['frechet']:.2f}")]
    return CARD.format(
        title=f"MNIST: {facts['kind']}, {facts['recipe']}",
        flag=flag,
        use=use,
        width="" if facts["width"] == usual else f" --width {facts['width']}",
        state="finished" if facts["finished"] else "**unfinished**; the same command makes all of it",
        loss=last_loss(facts),
        rows="".join(f"| {name} | {value} |\n" for name, value in rows),
        machine=machine,
        **{k: facts[k] for k in ("kind", "updates", "batch", "epochs", "epochs_done", "seed", "dtype", "device",
                                 "images_per_second")},
    )  # fmt: skip


def main(
    data_dir: Path | None = None,
    folders: tuple[Path, ...] = FOLDERS,
    n: int = 1000,
    losses_alone: tuple[str, ...] = (),
    machine: str = "",
) -> None:
    """Measures.

    Args:
        data_dir: where TFDS keeps its data sets; its own choice if not given.
        folders: of networks; those that are not there are left out.
        n: samples of each.
        losses_alone: names, such as class-spec, of networks whose samples are not measured: 1,000 by the course's 300
            guided steps are an hour on two cores.
        machine: what the cards say it was measured on; found out if not given.
    """
    machine = machine or f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}"
    train, test = (mnist(split, data_dir) for split in ("train", "test"))
    _, features = read(test[0] / np.float32(255))
    real = reference(train, test, features, n)
    print("real digits", json.dumps(real))
    for folder in (folder for folder in folders if (folder / "model.safetensors").is_file()):
        digits = model.load(folder)
        found = measure(digits, test, features, 0 if folder.name in losses_alone else n)
        print(folder, json.dumps(found), flush=True)
        for name, text in (
            ("quality.json", json.dumps(found | {"real": real}, indent=1) + "\n"),
            ("README.md", card(digits.facts, found, machine)),
        ):
            with beside(folder / name) as file:
                file.write(text.encode())


if __name__ == "__main__":
    tyro.cli(main)
