"""A page's course: a click makes a task, the task is drawn step by step, and the result can be drawn again."""

import hashlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr  # pyright: ignore[reportMissingImports]  # of the extra `studio`
import numpy as np

from jdiff import images
from jdiff.cli import grammar
from jdiff.cli.errors import BadInput, explained, one_line
from jdiff.images.text import CARRIED
from jdiff.model import Model
from jdiff.studio import show
from jdiff.studio.listing import python
from jdiff.studio.results import Models, Result, draw
from jdiff.studio.runs import Done, Step, Stops, run
from jdiff.studio.tasks import Task, each, words

# Most runs that wait for the network.
WAITING = 32
NO_RESULT = "nothing is drawn yet; draw something first"


class Kept(NamedTuple):
    """What a session keeps of a page's last result."""

    task: Task
    digest: str  # of its pictures


class Studio:
    """What all pages and sessions share: models, which never change, and the stop signals of runs.

    Args:
        models: of which the first one is drawn with.
        letters: the name of a model of letters, if there is one.
    """

    last: gr.State  # the picture that a session drew last, [h w 3]

    def __init__(self, models: Models, letters: str | None):
        self.models, self.letters = models, letters
        self.name, self.model = models.name, models.get()
        self.grammar = grammar.of(self.model.name)
        self.stops = Stops()
        free = ("an oil painting of a snowy mountain village", "a pencil sketch of a lighthouse")
        self.examples = self.grammar.examples if self.grammar else free
        self.pair = self.grammar.pair if self.grammar else free
        self.hybrid = ("a yellow three", "a yellow eight") if self.model.name == "mini" else self.pair
        self.example = _example(self.model)

    def leave(self, request: gr.Request) -> None:
        """Stops what a closed tab has asked for."""
        self.stops.stop(str(request.session_hash))


class Page:
    """One tab: inputs on the left; on the right the result, and how to get it by a command or in Python."""

    def __init__(self, studio: Studio):
        self.studio, self.last = studio, studio.last
        self._row = gr.Row()

    def __enter__(self) -> "Page":
        self._row.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._row.__exit__(*error)

    def inputs(self) -> gr.Column:
        """Returns the column of the inputs."""
        return gr.Column(scale=4, min_width=320)

    def finish(
        self,
        label: str,
        make: Callable[..., Task],
        inputs: Sequence[Any],
        nothing: str,
        also: tuple[str, Callable[..., Task]] | None = None,
        look: str | None = None,
    ) -> gr.HTML:
        """Draws the buttons and the place of the result, and connects them.

        Args:
            label: of the button that draws.
            make: the values of `inputs` -> task.
            inputs: components.
            nothing: what stands there before there is a result.
            also: label and task of a second button.
            look: HTML that stands above the result, where there is any.

        Returns:
            The component of `look`.
        """
        with gr.Column(scale=6, min_width=320):
            with gr.Row(elem_classes="jd-tight"):
                buttons = [(gr.Button(label, variant="primary", min_width=100, elem_classes="jd-go"), make)]
                if also is not None:
                    buttons.append((gr.Button(also[0], min_width=100, elem_classes="jd-also"), also[1]))
                again = gr.Button("Make it again", min_width=100, elem_classes="jd-again")
                stop = gr.Button("Stop", variant="stop", min_width=70, elem_classes="jd-stop")
            above = gr.HTML(look or "", visible=look is not None, elem_classes="jd-look")
            result = gr.HTML(show.empty(nothing), elem_classes="jd-place")
            kept = gr.State(None, time_to_live=3600)
            with gr.Accordion("The same as a command, and in Python", open=False):
                buttons_of_code: Any = {"interactive": False, "wrap_lines": True, "lines": 1, "buttons": ["copy"]}
                command = gr.Code("", language="shell", label="Command", **buttons_of_code)
                listing = gr.Code("", language="python", label="Python", **buttons_of_code)
        outputs = [result, command, listing, kept, self.last]
        how: dict[str, Any] = {
            "concurrency_id": "network", "concurrency_limit": 1, "show_progress": "hidden",
            "api_visibility": "private",
        }  # fmt: skip
        now: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        events: list[Any] = [
            button.click(self._waiting, None, result, **now).then(self._starter(given), [*inputs], outputs, **how)
            for button, given in buttons
        ]
        events.append(again.click(self._waiting, None, result, **now).then(self._again, kept, outputs, **how))
        stop.click(self._stop, None, result, cancels=events, **now)
        return above

    def _waiting(self, request: gr.Request) -> str:
        """Ends what this session is drawing: a new click takes its place."""
        mine = self.studio.stops.stop(str(request.session_hash))
        return show.starting(self.studio.stops.going_on() - mine)

    def _starter(self, make: Callable[..., Task]) -> Callable[..., Iterator[Any]]:
        def start(request: gr.Request, *values: Any) -> Iterator[Any]:
            try:
                task = make(*values)
            except (BadInput, ValueError) as error:
                yield _only(show.trouble(one_line(error)))
                return
            yield from self._draw(task, str(request.session_hash), None)

        return start

    def _again(self, kept: Kept | None, request: gr.Request) -> Iterator[Any]:
        if kept is None:
            yield _only(show.trouble(NO_RESULT))
            return
        yield from self._draw(kept.task, str(request.session_hash), kept.digest)

    def _stop(self, request: gr.Request) -> str:
        self.studio.stops.stop(str(request.session_hash))
        return show.empty("Stopped.")

    def _draw(self, task: Task, session: str, before: str | None) -> Iterator[Any]:
        """Yields the outputs of a page while a task is drawn."""
        stops, event = self.studio.stops, self.studio.stops.start(session)
        yield (show.starting(), words(task), python(task), gr.skip(), gr.skip())
        try:
            for at in run(lambda watch: draw(self.studio.models, task, watch), event):
                if isinstance(at, Step):
                    yield _only(show.step(at, _columns(task, at)))
                elif isinstance(at, Done) and at.value is not None:
                    yield _finished(at.value, before)
                elif isinstance(at, Done):
                    yield _only(_ended(at.error))
        finally:
            event.set()
            stops.end(session, event)


def _only(html: str) -> tuple[Any, ...]:
    return (html, gr.skip(), gr.skip(), gr.skip(), gr.skip())


def _finished(made: Result, before: str | None) -> tuple[Any, ...]:
    digest = hashlib.sha256(made.images.tobytes()).hexdigest()
    same = None if before is None else before == digest
    picture = np.broadcast_to(made.images[0, 0], (*made.images.shape[2:4], 3))
    return (show.result(made, same), gr.skip(), gr.skip(), Kept(made.task, digest), picture)


def _ended(error: Exception | None) -> str:
    if error is None:
        return show.empty("Stopped.")
    found = explained(error)
    if found is not None:
        return show.trouble(found[1])
    traceback.print_exception(error, file=sys.stderr)
    return show.trouble(f"this is a fault of jdiff, told in full on the terminal: {one_line(error)}")


def _columns(task: Task, at: Step) -> int:
    """How many pictures of a running task stand in a row."""
    command = each(task)[0]
    n = getattr(command, "n", None) or 1
    return n if at.images is None or at.images.shape[0] % n == 0 else at.images.shape[0]


def _example(model: Model) -> np.ndarray:
    """A picture to start from, [side side 3]: a red three, or a white R for a model that draws in grey."""
    from PIL import Image, ImageDraw, ImageFont

    side, grey = model.config.sample_size, model.config.channels == 1
    page = Image.new("RGB", (4 * side, 4 * side))
    font = ImageFont.truetype(CARRIED, round(3.2 * side))
    ink = (255, 255, 255) if grey else (255, 0, 0)
    ImageDraw.Draw(page).text((2 * side, 2 * side), "R" if grey else "3", ink, font, anchor="mm")
    return images.square(page, side)
