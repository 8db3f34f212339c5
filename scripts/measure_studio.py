"""Measures the time until the first frame and until the finished pictures, for each of the studio's tabs.

    python scripts/measure_studio.py

Each tab runs in its own process with an empty compilation cache: first cold, then warm with another seed. The model is
loaded before. The browser's time is not included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from jdiff import results
from jdiff.cli.letters import CANDIDATES, SETTINGS
from jdiff.studio import results as studio
from jdiff.studio import tasks
from jdiff.studio.tasks import Common, Task


def _edit(seed: int, ladder: bool = False) -> Task:
    picture = np.full((64, 64, 3), -1, np.float32)
    picture[8:56, 28:36] = (1, -1, -1)
    return tasks.edit(Common(seed=seed), picture, ["a red three"], 0.6, ladder)


def _inpaint(seed: int) -> Task:
    picture, mask = np.full((64, 64, 3), -1, np.float32), np.zeros((64, 64), np.float32)
    picture[8:56, 28:36], mask[:, 32:] = (1, -1, -1), 1
    return tasks.inpaint(Common(seed=seed), picture, mask, ["a red three"])


MOST = max(CANDIDATES.values())  # as the page has it at first
# What each tab draws, from a seed.
TABS: dict[str, Callable[[int], Task]] = {
    "Generate, 4 pictures": lambda seed: tasks.generate(Common(seed=seed), ["a red three"]),
    "Edit, 4 pictures": _edit,
    "Edit, the ladder of 6 strengths": lambda seed: _edit(seed, ladder=True),
    "Inpaint, 4 pictures": _inpaint,
    "Illusions, 8 pictures": lambda seed: tasks.anagram(
        Common(n=8, seed=seed), ["a red six", "a red nine"], ["identity", "rotate_180"]
    ),
    "Hybrids, 4 pictures": lambda seed: tasks.hybrid(Common(seed=seed), "a white one", "a white eight", 2.5),
    f"Ambigrams, {MOST} candidates": lambda seed: tasks.ambigram(
        ["swims"],
        n=MOST,
        seed=seed,
        **{name: SETTINGS[name] for name in ("view", "style", "steps", "model")},
    ),
    "MNIST, 10 digits": lambda seed: tasks.digits("class", n=1, steps=None, guidance=None, seed=seed),
}


def measure(task: Task, models: studio.Models) -> tuple[float, float]:
    """Draws a task; returns the seconds until its first frame and until its end."""
    began, first = time.perf_counter(), []

    def watch(done: int, total: int, images: np.ndarray | None) -> None:
        del done, total, images
        if not first:
            first.append(time.perf_counter() - began)

    studio.draw(models, task, watch)
    return first[0], time.perf_counter() - began


def one_tab(name: str) -> None:
    """Measures one tab, cold and then warm, and prints the seconds as JSON."""
    from jdiff.cli.make import start_jax

    start_jax(cores=True)
    models = studio.Models("letters" if name.startswith("Ambigrams") else "mini")
    models.get()
    print(json.dumps([*measure(TABS[name](0), models), *measure(TABS[name](1), models)]))


def main() -> None:
    """Measures all tabs, each in a process of its own, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tab", choices=TABS, help="measure this tab alone, in this process")
    args = parser.parse_args()
    if args.tab is not None:
        return one_tab(args.tab)
    print("| tab | first frame, cold | finished, cold | first frame, warm | finished, warm |\n|---|---|---|---|---|")
    for name in TABS:
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "JDIFF_CACHE": cache}
            done = subprocess.run(
                [sys.executable, __file__, "--tab", name], env=environment, check=True, stdout=subprocess.PIPE
            )
        print(f"| {name} | " + " | ".join(f"{seconds:.1f} s" for seconds in json.loads(done.stdout)) + " |", flush=True)
    print(f"\n{results.machine()}")


if __name__ == "__main__":
    main()
