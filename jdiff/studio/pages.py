"""The pages of the studio, one tab each: what is asked for, and where the result appears."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gradio as gr  # pyright: ignore[reportMissingImports]  # of the extra `studio`

from jdiff.cli import letters
from jdiff.cli.errors import BadInput, demand
from jdiff.mnist.recipes import recipes
from jdiff.model import shipped
from jdiff.studio import show, tasks
from jdiff.studio.canvas import COLOURS, MASK, THICK, canvas, flat, painted, sources, watched
from jdiff.studio.flow import Page, Studio
from jdiff.views import VIEWS

# Prompts of an illusion that a page has room for.
MOST_VIEWS = 8
# The views by those names.
SEEN = [(show.NAMES.get(view, view), view) for view in VIEWS]
KINDS = ("class", "time", "flow-class", "flow-time")


class Settings(NamedTuple):
    """The inputs that all pages of prompts have."""

    n: gr.Slider
    steps: gr.Slider
    guidance: gr.Slider
    seed: gr.Number
    negative: gr.Textbox

    @staticmethod
    def common(model: str, n: float, steps: float, guidance: float, seed: float | None, negative: str) -> tasks.Common:
        """Returns what the inputs say."""
        return tasks.Common(model, int(n), int(steps), float(guidance), whole_seed(seed), negative.strip())


def whole_seed(seed: float | None) -> int:
    """Returns a seed from a field of numbers, which may be empty."""
    demand(seed is not None and float(seed).is_integer(), f"the seed must be a whole number, got {seed}")
    return int(seed or 0)


def settings(studio: Studio, n: int, most: int, label: str = "Pictures of each prompt", least: int = 1) -> Settings:
    """Draws the inputs of all pages of prompts."""
    defaults = studio.model.defaults
    count = gr.Slider(least, most, n, step=1, label=label)
    with gr.Accordion("More settings", open=False):
        steps = gr.Slider(2, 100, min(defaults.steps, 100), step=1, label="Steps")
        guidance = gr.Slider(1, 15, defaults.guidance, step=0.5, label="Guidance scale", info="1 is no guidance")
        negative = gr.Textbox("", label="Negative prompt", info="What the picture should not show")
    return Settings(count, steps, guidance, seed_field(), negative)


def seed_field() -> gr.Number:
    """Draws the field of the seed, with a button for a new one."""
    with gr.Row(elem_classes="jd-tight"):
        seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed", scale=2, min_width=90)
        new = gr.Button("New seed", scale=1, min_width=90, size="sm", elem_classes="jd-new")
    new.click(None, None, seed, js="() => Math.floor(Math.random() * 100000)", api_visibility="private")
    return seed


def words_of(studio: Studio, box: gr.Textbox) -> None:
    """Draws the words that the model knows, as buttons that write the last line of a text box."""
    known = studio.grammar
    if known is None:
        return
    with gr.Accordion("Words that this model knows", open=True):
        groups = [
            gr.Dropdown(list(group.words), value=group.first, label=group.name)
            if len(group.words) > 12
            else gr.Radio(list(group.words), value=group.first, label=group.name, elem_classes="jd-choices")
            for group in known.groups
        ]
        gr.HTML('<p class="jd-note">The buttons write the last line of the prompts.</p>')

    def written(text: str, *chosen: str) -> str:
        lines = text.splitlines() or [""]
        return "\n".join([*lines[:-1], known.prompt(*chosen)])

    for group in groups:
        group.input(written, [box, *groups], box, show_progress="hidden", queue=False, api_visibility="private")


def prompts_box(studio: Studio, value: str, lines: int = 2) -> gr.Textbox:
    """Draws the box of prompts, one a line."""
    return gr.Textbox(value, lines=lines, max_lines=8, label="Prompts, one a line", elem_classes="jd-prompts")


def generate_tab(studio: Studio) -> None:
    """Pictures of prompts."""
    with gr.Tab("Generate", id="generate"), Page(studio) as page:
        with page.inputs():
            prompts = prompts_box(studio, "\n".join(studio.examples[:1]))
            words_of(studio, prompts)
            common = settings(studio, 4, 16)
        page.finish(
            "Draw",
            lambda text, *rest: tasks.generate(Settings.common(studio.name, *rest), tasks.prompts_of(text)),
            [prompts, *common],
            "Pictures appear here, step by step.",
        )


def edit_tab(studio: Studio) -> None:
    """Edits of a picture (SDEdit)."""
    side = studio.model.config.sample_size
    with gr.Tab("Edit", id="edit"), Page(studio) as page:
        with page.inputs():
            editor = canvas(gr.Brush(THICK, COLOURS, COLOURS[0], "fixed"), "Draw, or open a picture")
            sources(studio, editor, page.last)
            prompts = prompts_box(studio, "\n".join(studio.examples[:1]), 1)
            strength = gr.Slider(0.05, 1, 0.7, step=0.05, label="Strength", info="How much changes; at 1 all of it")
            common = settings(studio, 4, 8)

        def task(ladder: bool) -> Callable[..., tasks.Task]:
            def make(value: Any, text: str, strength: float, *rest: Any) -> tasks.Task:
                image = flat(value, side)
                if image is None:
                    raise BadInput("there is no picture; draw one, or open one")
                given = Settings.common(studio.name, *rest)
                given = given._replace(n=1) if ladder else given
                return tasks.edit(given, image, tasks.prompts_of(text), strength, ladder)

            return make

        look = page.finish(
            "Edit", task(False), [editor, prompts, strength, *common], "Draw something on the canvas, then press Edit.",
            also=("Strength ladder", task(True)), look=show.seen(None, side),
        )  # fmt: skip
        watched(editor, lambda value: show.seen(flat(value, side), side), look)


def inpaint_tab(studio: Studio) -> None:
    """Parts of a picture made new (RePaint)."""
    side = studio.model.config.sample_size
    with gr.Tab("Inpaint", id="inpaint"), Page(studio) as page:
        with page.inputs():
            brush = gr.Brush(2 * THICK, [(MASK, 0.7)], (MASK, 0.7), "fixed")
            editor = canvas(brush, "Paint over what is to be redrawn")
            sources(studio, editor, page.last)
            prompts = prompts_box(studio, "\n".join(studio.examples[:1]), 1)
            again = gr.Checkbox(
                False, label="RePaint's resampling", info="Walks each stretch four times: slower, fits better"
            )
            common = settings(studio, 4, 8)

        def make(value: Any, text: str, resample: bool, *rest: Any) -> tasks.Task:
            image, mask = painted(value, side)
            if image is None:
                raise BadInput("there is no picture; open one, or take the one drawn last")
            given = Settings.common(studio.name, *rest)
            return tasks.inpaint(given, image, mask, tasks.prompts_of(text), 4 if resample else 1)

        def looked(value: Any) -> str:
            image, mask = painted(value, side)
            return show.seen(image, side, mask)

        look = page.finish(
            "Inpaint", make, [editor, prompts, again, *common],
            "Open a picture, paint over a part of it, then press Inpaint.", look=show.seen(None, side),
        )  # fmt: skip
        watched(editor, looked, look)


def illusions_tab(studio: Studio) -> None:
    """One picture, another prompt in each view (Visual Anagrams)."""
    first = studio.pair
    with gr.Tab("Illusions", id="illusions"), Page(studio) as page:
        with page.inputs():
            shown = gr.State(2)
            rows, texts, views = [], [], []
            for i in range(MOST_VIEWS):
                with gr.Row(visible=i < 2, elem_classes="jd-tight") as row:
                    texts.append(gr.Textbox(first[i] if i < 2 else "", label=f"Prompt {i + 1}", scale=3, min_width=130))
                    start = ("identity", "rotate_180", "rotate_cw", "rotate_ccw", "flip", "jigsaw", "negate", "mirror")[
                        i
                    ]
                    views.append(gr.Dropdown(SEEN, value=start, label="is seen", scale=2, min_width=110))
                rows.append(row)
            with gr.Row(elem_classes="jd-tight"):
                more = gr.Button("Add a prompt", size="sm", min_width=90)
                fewer = gr.Button("Remove the last", size="sm", min_width=90)
            common = settings(studio, 8, 32, "Pictures to choose from", 4)

        def resized(by: int) -> Callable[[int], list[Any]]:
            def change(count: int) -> list[Any]:
                count = min(max(count + by, 2), MOST_VIEWS)
                return [count, *(gr.update(visible=i < count) for i in range(MOST_VIEWS))]

            return change

        how: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        more.click(resized(1), shown, [shown, *rows], **how)
        fewer.click(resized(-1), shown, [shown, *rows], **how)

        def make(count: int, *values: Any) -> tasks.Task:
            written, chosen = values[:MOST_VIEWS], values[MOST_VIEWS : 2 * MOST_VIEWS]
            pairs = [(text.strip(), view) for text, view in zip(written[:count], chosen, strict=False) if text.strip()]
            given = Settings.common(studio.name, *values[2 * MOST_VIEWS :])
            demand(len(pairs) > 1, "an illusion needs two prompts or more, got one or none")
            return tasks.anagram(given, [text for text, _ in pairs], [view for _, view in pairs])

        page.finish("Draw", make, [shown, *texts, *views, *common], "Pictures that turn appear here, the best first.")


def hybrids_tab(studio: Studio) -> None:
    """One prompt from afar, another from near (Factorized Diffusion)."""
    with gr.Tab("Hybrids", id="hybrids"), Page(studio) as page:
        with page.inputs():
            low = gr.Textbox(studio.hybrid[0], label="Seen from afar (low frequencies)")
            high = gr.Textbox(studio.hybrid[1], label="Seen from near (high frequencies)")
            sigma = gr.Slider(0.5, 7, 2, step=0.25, label="Sigma", info="Blur that separates the two, of 64 pixels")
            common = settings(studio, 4, 16, "Pictures")
        page.finish(
            "Draw",
            lambda low, high, sigma, *rest: tasks.hybrid(Settings.common(studio.name, *rest), low, high, sigma),
            [low, high, sigma, *common],
            "Pictures appear here, with a slider for the distance.",
        )


def ambigrams_tab(studio: Studio) -> None:
    """Words that read both ways, by the letters model."""
    from jdiff.letters.captions import STYLE_WORDS

    with gr.Tab("Ambigrams", id="ambigrams"), Page(studio) as page:
        with page.inputs():
            word = gr.Textbox("swims", label="Word")
            other = gr.Textbox("", label="What it reads as when it is turned", info="Empty: the same word")
            view = gr.Radio(
                list(letters.VIEWS), value=letters.VIEWS[0], label="How it is turned", elem_classes="jd-choices"
            )
            known = [style for group in STYLE_WORDS for style in group if style]
            style = gr.Dropdown(known, value=["bold"], multiselect=True, label="Style")
            n = gr.Slider(4, 64, max(letters.CANDIDATES.values()), step=4, label="Candidates of each letter")
            with gr.Accordion("More settings", open=False):
                steps = gr.Slider(2, 50, letters.SETTINGS["steps"], step=1, label="Steps")
            seed = seed_field()

        def make(
            word: str, other: str, view: str, style: Sequence[str], n: float, steps: float, seed: float | None
        ) -> tasks.Task:
            told = {"view": view, "style": " ".join(style), "n": int(n), "steps": int(steps)}
            return tasks.ambigram([word, other], **told, seed=whole_seed(seed), model=studio.letters or "letters")

        page.finish(
            "Draw", make, [word, other, view, style, n, steps, seed], "The word appears here, and can be turned."
        )


def mnist_tab(studio: Studio) -> None:
    """MNIST's digits, by the networks of the course's part B."""
    from jdiff.mnist.model import name

    named = {kind: recipes().get((kind, "best"), recipes()[kind, "spec"]) for kind in KINDS}
    there = [
        kind
        for kind in KINDS
        if shipped(f"mnist/{name(kind, 'best' if (kind, 'best') in recipes() else 'spec')}").is_dir()
    ]
    if not there:
        return
    with gr.Tab("MNIST", id="mnist"), Page(studio) as page:
        with page.inputs():
            kind = gr.Radio(there, value=there[0], label="Network", elem_classes="jd-choices",
                            info="class: each digit; time: any digit; flow: by flow matching")  # fmt: skip
            n = gr.Slider(1, tasks.MOST // 10, 1, step=1, label="Pictures of each digit")
            steps = gr.Slider(2, 300, named[there[0]].steps, step=1, label="Steps")
            guidance = gr.Slider(0, 10, named[there[0]].guidance, step=0.5, label="Guidance scale",
                                 info="1 is no guidance; time networks have none")  # fmt: skip
            seed = seed_field()

        def make(kind: str, n: float, steps: float, guidance: float, seed: float | None) -> tasks.Task:
            return tasks.digits(kind, n=int(n), steps=int(steps), guidance=guidance, seed=whole_seed(seed))

        kind.input(
            lambda kind: (min(named[kind].steps, 300), named[kind].guidance), kind, [steps, guidance],
            show_progress="hidden", queue=False, api_visibility="private",
        )  # fmt: skip
        page.finish("Draw", make, [kind, n, steps, guidance, seed], "Ten digits appear here, denoised step by step.")


def build(studio: Studio) -> gr.Blocks:
    """Returns the whole page."""
    with gr.Blocks(title="jdiff studio", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True) as blocks:
        studio.last = gr.State(None, time_to_live=3600)
        side = studio.model.config.sample_size
        gr.HTML(
            f'<div class="jd-head"><strong>jdiff studio</strong> <span>model {studio.name}, {side} x {side} pixels'
            "</span></div>"
        )
        with gr.Tabs():
            generate_tab(studio)
            edit_tab(studio)
            inpaint_tab(studio)
            illusions_tab(studio)
            hybrids_tab(studio)
            if studio.letters:
                ambigrams_tab(studio)
            mnist_tab(studio)
        blocks.unload(studio.leave)
    return blocks
