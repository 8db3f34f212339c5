"""From a task to its pictures: the models that are loaded, the drawing, and what is shown of it. No Gradio here."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import jdiff
from jdiff import images
from jdiff.cli import cache, make, outputs
from jdiff.cli.drawing import Drawing, Fitted
from jdiff.cli.errors import accepted, demand
from jdiff.cli.illusions import Anagram
from jdiff.cli.letters import SETTINGS, TAKEN, Ambigram
from jdiff.cli.mnist import Sample as Digits
from jdiff.cli.mnist import sheet as digits_sheet
from jdiff.images import Settings
from jdiff.studio import reading
from jdiff.studio.runs import Watch
from jdiff.studio.tasks import Task, each

if TYPE_CHECKING:
    from jdiff.letters.ambigrams import Ambigram as MadeAmbigram
    from jdiff.mnist.model import Digits as Network
    from jdiff.model import Model

# Most pictures of the way from noise that a result keeps.
KEPT = 24
# Bytes of the pictures of the way beyond which they are thinned out.
LARGEST_WAY = 2**23


class Result(NamedTuple):
    """What was drawn for a task."""

    task: Task
    images: np.ndarray  # [r n h w c] in [-1, 1]; a row for each prompt, strength or digit
    labels: Sequence[str]  # [r]
    settings: Settings
    sheet: np.ndarray  # [h w 3] uint8, the picture that the command writes
    way: np.ndarray | None = None  # [m r n h w c] uint8, from noise to the pictures
    fitted: Fitted = None  # of the command
    chances: np.ndarray | None = None  # [p n] that the judge reads a prompt in its view
    word: "MadeAmbigram | None" = None


class Models:
    """The models that a studio has loaded, by name. They never change, so all sessions share them."""

    def __init__(self, name: str = "mini", ready: "dict[str, Model] | None" = None):
        self.name = name
        self._lock = threading.Lock()
        self._models: dict[str, Model] = dict(ready or {})
        self._digits: dict[str, Network] = {}

    def get(self, name: str | None = None) -> "Model":
        """Returns a model, which is loaded when it is asked for the first time.

        Raises:
            BadInput: there is none of this name.
        """
        from jdiff.model import load

        name = self.name if name is None else name
        with self._lock:
            if name not in self._models:
                self._models[name] = accepted(lambda: load(name, cache=cache.usable("prompts")))
            return self._models[name]

    def digits(self, kind: str) -> "Network":
        """Returns the network of MNIST that `jdiff mnist sample KIND` takes."""
        from jdiff.mnist import model
        from jdiff.mnist.recipes import recipes

        name = model.name(kind, "best" if (kind, "best") in recipes() else "spec")
        with self._lock:
            if name not in self._digits:
                self._digits[name] = accepted(lambda: model.load(name))
            return self._digits[name]


def draw(models: Models, task: Task, watch: Watch) -> Result:
    """Draws a task.

    Args:
        models: where the networks come from.
        task: what to draw.
        watch: called with (rows done, rows in all, images or None) after every row.

    Raises:
        BadInput: the task cannot be drawn, in one line.
    """
    if isinstance(task.command, Ambigram):
        return _ambigram(models, task, task.command, watch)
    if isinstance(task.command, Digits):
        return _digits(models, task, task.command, watch)
    return _pictures(models, task, task.command, watch)


class _Way:
    """The images of a run as they go by, as uint8."""

    def __init__(self, watch: Watch, before: int = 0, runs: int = 1):
        self.watch, self.before, self.runs = watch, before, runs
        self.frames: list[np.ndarray] = []

    def __call__(self, done: int, total: int, x: np.ndarray) -> None:
        self.frames.append(images.to_uint8(np.clip(np.nan_to_num(x), -1, 1)))
        self.watch(self.before * total + done, self.runs * total, x)

    def thinned(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """[m *shape] with few enough frames; None where the images were drawn in several groups."""
        if not self.frames or any(frame.shape[0] != shape[0] * shape[1] for frame in self.frames):
            return None
        most = max(2, min(KEPT, LARGEST_WAY // self.frames[-1].size))
        places = np.unique(np.linspace(0, len(self.frames) - 1, most).round().astype(int))
        return np.stack([self.frames[i] for i in places]).reshape(len(places), *shape)


def _pictures(models: Models, task: Task, command: Drawing, watch: Watch) -> Result:
    model, commands = models.get(command.model), each(task)
    made, ways = [], []
    for i, one in enumerate(commands):
        assert isinstance(one, Drawing)
        one = dataclasses.replace(one, quiet=True)
        way = _Way(watch, i, len(commands))
        made.append(make.draw(one, model, dict(task.files), watch=way))
        ways.append(way.thinned(made[-1].images.shape))
    first = made[0]
    if task.strengths:
        rows = np.concatenate([one.images for one in made])
        labels = [f"{text}, strength {s:g}" for s in task.strengths for text in command.texts()]
        settings = first.settings | {"strength": list(task.strengths)}
        sheet = images.grid(rows, labels)
        return Result(task, rows, labels, settings, sheet, fitted=first.fitted)  # the ways are of several lengths
    shown = command.shown(first.images, first.fitted)
    read = None
    if isinstance(command, Anagram):
        read = reading.chances(model.name, command.texts(), np.asarray(shown.rows))
    labels = list(command.texts()) if first.images.shape[0] == len(command.texts()) else [" / ".join(command.texts())]
    return Result(
        task, first.images, labels, first.settings, outputs.sheet(*shown), ways[0], first.fitted, chances=read
    )


def _digits(models: Models, task: Task, command: Digits, watch: Watch) -> Result:
    import jax

    from jdiff.mnist import model

    kind = command.kind or "class"
    network = models.digits(kind)
    classes = np.repeat(np.arange(10), command.n) if "class" in kind else np.full(10 * command.n, -1)
    way = _Way(lambda done, total, x: watch(done, total, x))
    grey: Callable[[int, int, np.ndarray], None] = lambda done, total, x: way(done, total, 2 * x - 1)
    how = {"steps": command.steps, "guidance": command.guidance, "mesh": model.mesh_for(len(classes)), "watch": grey}
    made = accepted(lambda: model.draw(network, classes, jax.random.key(command.seed), **how))
    finite = bool(np.isfinite(made.images).all())
    demand(finite, "pictures are not finite; try less guidance, or more steps")
    rows = 2 * made.images.reshape(10, command.n, *made.images.shape[1:]) - 1
    settings = command.settings(network)
    labels = [str(digit) if "class" in kind else "" for digit in range(10)]
    return Result(task, rows, labels, settings, digits_sheet(made.images, classes), way.thinned(rows.shape))


def _ambigram(models: Models, task: Task, command: Ambigram, watch: Watch) -> Result:
    import jax

    from jdiff import mesh
    from jdiff.letters import ambigrams, page

    told = command.settings()
    words = told["words"]
    demand(len(words) in (1, 2), f"an ambigram has one word or two, got {len(words)}")
    model = models.get(told["model"])
    demand(ambigrams.is_letters(model), f"ambigrams need a model of letters, got {told['model']!r}")
    how = {name: told[name] for name in TAKEN}
    how["mesh"] = mesh.over_devices()
    how["watch"] = lambda done, total, x: watch(done, total, -x)  # dark ink
    made = accepted(lambda: ambigrams.ambigram(model, words[0], words[-1], key=jax.random.key(told["seed"]), **how))
    settings = told | {"hash": model.hash, "command": "ambigram", "verdict": made.verdict}
    settings |= {"scores": made.scores.tolist(), "versions": {"jdiff": jdiff.__version__}}
    colours = [page.colour(told[name], f"--{name}") for name in ("paper", "ink")]
    assert set(SETTINGS) <= set(settings)
    label = f"{made.word} / {made.turned}"
    return Result(task, made.glyphs[None], [label], settings, page.page(made, *colours), word=made)
