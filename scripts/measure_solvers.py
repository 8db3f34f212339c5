"""Measures how far the pictures of few steps are from those of 1,000, for each solver that draws no noise.

    python scripts/measure_solvers.py

All pictures start from the same noise. The distance is the root mean square over all pixels, in [-1, 1], to DDIM with
1,000 steps. Each step is one call of the network with guidance. Prints a table, and plots it in
docs/pictures/solvers.png.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import matplotlib
import numpy as np
import tyro

import jdiff
from jdiff import results, sample, step
from jdiff.parts import path_beside
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


def main(
    models: tyro.conf.Positional[tuple[str, ...]] = tuple(PROMPTS),
    calls: tuple[int, ...] = (5, 10, 20, 50, 100),
    most: int = 1000,
    n: int = 4,
    out: Path = Path("docs/pictures/solvers.png"),
) -> None:
    """Measures the solvers on the shipped models.

    Args:
        models: names of models.
        calls: numbers of steps.
        most: steps of the reference.
        n: pictures of each of four prompts.
        out: file of the plot.
    """
    found = {name: distances(name, calls, most, n) for name in models}
    for name, solvers in found.items():
        print(f"\n{name} model\n")
        print(results.table(["solver", *(f"{steps} calls" for steps in calls)], [[s, *v] for s, v in solvers.items()]))
    plot(out, calls, most, found)


if __name__ == "__main__":
    tyro.cli(main)
