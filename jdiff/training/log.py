"""The log of a training: a progress bar, log.csv, and files for TensorBoard."""

import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from jdiff.parts import beside
from jdiff.progress import Bar


class Log:
    """Writes each report of `train` to log.csv and to a progress bar. It is a context manager and a `report` function.

    A row of log.csv has the number of the last update, the mean of each metric since the previous row, and the images
    per second since this process's first row. A run that was killed repeats some updates. Their old rows are removed.

    Args:
        folder: folder of log.csv, which is made if it does not exist.
        steps: total number of updates.
        batch: images per update.
        tensorboard: whether to write files for TensorBoard too, with tensorboardX from the extra `train`.
        quiet: whether to show no progress bar.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Log(folder, 20, 8, quiet=True) as report:
        ...     report(10, {"loss": np.linspace(1.0, 0.0, 10)})
        ...     read(Path(folder) / "log.csv")[0]["loss"]
        0.5
    """

    def __init__(self, folder: str | Path, steps: int, batch: int, *, tensorboard: bool = False, quiet: bool = False):
        self.folder, self.batch = Path(folder), batch
        self.folder.mkdir(parents=True, exist_ok=True)
        self.bar = Bar(steps, unit="update", quiet=quiet, leave=True)
        self.board: Any = None  # tensorboardX's writer, which is imported only if it is used
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(self.folder / "tensorboard"))
        self.first: tuple[int, float] | None = None
        self.speed = 0.0

    def __call__(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Writes a row.

        Args:
            step: number of the last update.
            metrics: "loss" and other metrics, with one value for each update since the previous report.
        """
        means = {name: float(np.mean(values)) for name, values in metrics.items()}
        before = step - len(metrics["loss"])
        if self.first is None:
            self.first = step, time.monotonic()
            self._remove_after(before, ["update", *means, "images_per_second"])
        elif step > self.first[0]:
            self.speed = (step - self.first[0]) * self.batch / (time.monotonic() - self.first[1])
        with (self.folder / "log.csv").open("a", newline="") as file:
            csv.writer(file).writerow([step, *(f"{mean:.6g}" for mean in means.values()), f"{self.speed:.4g}"])
        if self.board is not None:
            for name, mean in means.items():
                self.board.add_scalar(name, mean, step)
            self.board.flush()
        shown = {name: f"{mean:.4f}" for name, mean in means.items()} | {"images/s": f"{self.speed:.1f}"}
        self.bar.update(step, numbers=shown)

    def _remove_after(self, step: int, header: list[str]) -> None:
        """Removes the rows of later updates, and rows that are not complete."""
        kept = [row for row in read(self.folder / "log.csv") if row["update"] <= step]
        with beside(self.folder / "log.csv") as file:
            lines = [header, *([f"{row.get(name, float('nan')):.6g}" for name in header] for row in kept)]
            file.write("".join(",".join(line) + "\r\n" for line in lines).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()


def read(path: str | Path) -> list[dict[str, float]]:
    """Reads the complete rows of a log.csv.

    Args:
        path: path of log.csv.

    Returns:
        The rows in their order, as dicts by column name; an empty list if there is no file.

    Example:
        >>> read("no-such-folder/log.csv")
        []
    """
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


def summary(path: str | Path, every: int, names: Sequence[str]) -> dict[str, Any]:
    """Summarises a log.csv for a model's card, as JSON.

    Args:
        path: path of log.csv.
        every: the curve has the rows whose update is a multiple of this, and the last row.
        names: metrics of the curve. Names that the log does not have are left out.

    Returns:
        A dict of updates (their number), images_per_second (the median), metrics (names of the curve's columns, the
        first of which is "update") and curve (rows of numbers).

    Example:
        >>> summary("no-such-folder/log.csv", 100, ["loss"])["updates"]
        0
    """
    rows = read(path)
    kept = [row for row in rows if row["update"] % every == 0 or row is rows[-1]]
    names = [name for name in ("update", *names) if rows and name in rows[0]]
    speeds = [row["images_per_second"] for row in rows if row["images_per_second"]]  # the first row of a run has none
    return {
        "updates": int(rows[-1]["update"]) if rows else 0,
        "images_per_second": round(float(np.median(speeds)), 1) if speeds else 0.0,
        "metrics": names,
        "curve": [[row[name] for name in names] for row in kept],
    }
