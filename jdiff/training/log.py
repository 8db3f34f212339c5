"""What training tells: a progress bar, log.csv, and TensorBoard's files."""

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jdiff.parts import beside
from jdiff.progress import Bar


class Log:
    """A `report` for `train`, and a context: means of every report in `folder`/log.csv, and on a bar.

    A row has the update's number, the mean of each metric since the last row, and the images a second since the first.
    Rows of updates that are made again, after a run was killed, are taken out first. With `tensorboard` the same goes
    to files that TensorBoard reads, by tensorboardX (the extra `train`).
    """

    def __init__(self, folder: str | Path, steps: int, batch: int, *, tensorboard: bool = False, quiet: bool = False):
        self.folder, self.batch = Path(folder), batch
        self.folder.mkdir(parents=True, exist_ok=True)
        self.bar = Bar(steps, unit="update", quiet=quiet, leave=True)
        self.board: Any = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(self.folder / "tensorboard"))
        self.first: tuple[int, float] | None = None
        self.speed = 0.0

    def __call__(self, step: int, metrics: Mapping[str, Any]) -> None:
        means = {name: float(np.mean(values)) for name, values in metrics.items()}
        before = step - len(metrics["loss"])
        if self.first is None:
            self.first = step, time.monotonic()
            self._go_on(before, ["update", *means, "images_per_second"])
        elif step > self.first[0]:
            self.speed = (step - self.first[0]) * self.batch / (time.monotonic() - self.first[1])
        with (self.folder / "log.csv").open("a", newline="") as file:
            csv.writer(file).writerow([step, *(f"{mean:.6g}" for mean in means.values()), f"{self.speed:.4g}"])
        if self.board is not None:
            for name, mean in means.items():
                self.board.add_scalar(name, mean, step)
            self.board.flush()
        shown = {name: f"{mean:.4f}" for name, mean in means.items()} | {"images/s": f"{self.speed:.1f}"}
        self.bar.update(step, **shown)

    def _go_on(self, step: int, header: list[str]) -> None:
        """Leaves of log.csv what is up to that update, a half-written last row aside."""
        kept = [row for row in read(self.folder / "log.csv") if row["update"] <= step]
        with beside(self.folder / "log.csv") as file:
            lines = [header, *([f"{row.get(name, float('nan')):.6g}" for name in header] for row in kept)]
            file.write("".join(",".join(line) + "\r\n" for line in lines).encode())

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()


def read(path: str | Path) -> list[dict[str, float]]:
    """The rows of a log.csv, in order, without those that are not whole; none where there is no file."""
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    whole = []
    for row in rows:
        try:
            numbers = list(map(float, row))
        except ValueError:
            continue
        if len(numbers) == len(header):
            whole.append(dict(zip(header, numbers, strict=True)))
    return whole
