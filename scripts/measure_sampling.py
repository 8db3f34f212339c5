"""Measures how far pictures of few steps, or of a network in 16 bits, are from pictures of many steps in float32.

    python scripts/measure_sampling.py steps        # each solver that draws no noise, against DDIM with 1,000 steps
    python scripts/measure_sampling.py precision    # bfloat16 and float16 against float32: both stages, and T5

All pictures start from the same noise. The distance is the root mean square over all pixels, in [-1, 1]. Each step is
one call of the network with guidance. Prints tables, and plots the first one in docs/pictures/solvers.png.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import matplotlib
import numpy as np
import tyro

import jdiff
from jdiff import results, sample, step
from jdiff.model import shipped
from jdiff.parts import path_beside
from jdiff.text import encoder
from jdiff.types import Solver

matplotlib.use("Agg")

PROMPTS = {
    "mini": ["a red three", "a green seven on white", "a blue eight", "the digit 5 in yellow"],
    "letters": ["a bold serif capital A", "a thin italic g", "a heavy sans 7", "a typewriter R"],
}


def _sampler(solver: Callable[..., Solver], order: int | None = None) -> sample.Sampler:
    """Returns a sampler with the timesteps of `ddim`, and a solver with the model's rules."""
    how = {} if order is None else {"order": order}
    make = lambda model: solver(x0_rule=model.x0_rule, predicts=model.predicts, **how)
    return sample.SAMPLERS["ddim"]._replace(solver=make)


SOLVERS = {
    "ddim": _sampler(step.ddim),
    "dpmpp_2m": _sampler(step.dpmpp_2m),
    "unipc, order 2": _sampler(step.unipc, 2),
    "unipc, order 3": _sampler(step.unipc, 3),
}


def distances(name: str, calls: tuple[int, ...], most: int, n: int) -> dict[str, list[float]]:
    """Returns the distance of each solver at each number of calls.

    Args:
        name: of the model.
        calls: numbers of steps.
        most: steps of the reference.
        n: pictures of each prompt.
    """
    model, key = jdiff.load(name), jax.random.key(0)
    draw = lambda solver, steps: np.asarray(
        sample.generate(model, PROMPTS[name], key, n=n, steps=steps, sampler=SOLVERS[solver]).images
    )
    reference = draw("ddim", most)
    distance = lambda made: round(float(np.sqrt(np.mean((made - reference) ** 2))), 4)
    return {solver: [distance(draw(solver, steps)) for steps in calls] for solver in SOLVERS}


def plot(path: Path, calls: tuple[int, ...], most: int, found: dict[str, dict[str, list[float]]]) -> None:
    """Writes a plot for each model."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(5 * len(found), 4), layout="constrained", squeeze=False)
    for axis, (name, solvers) in zip(axes[0], found.items(), strict=True):
        for solver, values in solvers.items():
            axis.plot(calls, values, marker="o", markersize=4, label=solver)
        axis.set(xscale="log", yscale="log", title=f"{name} model", xlabel="network calls",
                 ylabel=f"distance to {most} steps")  # fmt: skip
        axis.set_xticks(calls, list(map(str, calls)))
        axis.minorticks_off()
        axis.grid(True, alpha=0.3)
        axis.legend()
    with path_beside(path) as file:
        figure.savefig(file, format="png", dpi=90)
    plt.close(figure)


def precision(n: int) -> list[tuple[object, ...]]:
    """Returns the rows of a table: how far 16 bits are from float32, in the network and in the text encoder.

    Args:
        n: pictures of each prompt.
    """
    key, prompts, rows = jax.random.key(0), PROMPTS["mini"], []
    rms = lambda made, wanted: float(np.sqrt(np.mean((made - wanted) ** 2)))
    small = np.asarray(sample.generate(jdiff.load("mini"), prompts, key, n=n).images)
    for name in ("mini", "mini-upscaler"):
        pictures = {}
        for dtype in ("float32", "bfloat16", "float16"):
            model = jdiff.load(name, dtype)
            if model.config.upscales:
                known = jdiff.load("mini").guided(prompts, model.defaults.guidance)
                made = sample.upscale(model, small, known, key, n=n, steps=20, side=64).images
            else:
                made = sample.generate(model, prompts, key, n=n).images
            pictures[dtype] = np.asarray(made)
        whole = pictures.pop("float32")
        for dtype, made in pictures.items():
            levels = np.abs(made - whole) * 127.5
            share = f"{100 * np.mean(levels > 8):.1f} %"
            rows.append(
                (f"{name}, a loop of 20 steps", dtype, f"{rms(made, whole):.4f}", f"{np.median(levels):.1f}", share)
            )
    folder = shipped("mini") / "text_encoder"
    states = {dtype: np.asarray(encoder.find(folder, dtype=dtype).encode(prompts), np.float32) for dtype in
              ("float32", "bfloat16", "float16")}  # fmt: skip
    whole = states.pop("float32")
    for dtype, made in states.items():
        rows.append(
            ("T5 of the mini model, relative to its states", dtype, f"{rms(made, whole) / whole.std():.4f}", "", "")
        )
    return rows


def main(
    parts: tyro.conf.Positional[tuple[Literal["steps", "precision"], ...]],
    models: tuple[str, ...] = tuple(PROMPTS),
    calls: tuple[int, ...] = (5, 10, 20, 50, 100),
    most: int = 1000,
    n: int = 4,
    out: Path = Path("docs/pictures/solvers.png"),
) -> None:
    """Measures the shipped models.

    Args:
        parts: what to measure.
        models: names of the models whose solvers are measured.
        calls: numbers of steps.
        most: steps of the reference.
        n: pictures of each of four prompts.
        out: file of the plot.
    """
    if "precision" in parts:
        head = ["", "dtype", "distance to float32", "median, in levels of 255", "values off by more than 8"]
        print(results.table(head, precision(n)))
    if "steps" not in parts:
        return
    found = {name: distances(name, calls, most, n) for name in models}
    for name, solvers in found.items():
        print(f"\n{name} model\n")
        print(results.table(["solver", *(f"{steps} calls" for steps in calls)], [[s, *v] for s, v in solvers.items()]))
    plot(out, calls, most, found)


if __name__ == "__main__":
    tyro.cli(main)
