"""A page's task as a few lines of Python, which draw the same pictures."""

from collections.abc import Callable, Sequence
from typing import Any

from jdiff.cli.commands import Edit, Generate, Inpaint
from jdiff.cli.drawing import Drawing
from jdiff.cli.illusions import Anagram, Hybrid
from jdiff.cli.letters import SETTINGS, TAKEN, Ambigram
from jdiff.cli.mnist import Sample as Digits
from jdiff.studio.tasks import Task, each

SAVE = 'jdiff.images.save("made.png", jdiff.images.grid(made.images))'


def python(task: Task) -> str:
    """Returns lines that draw a task's pictures as `made.images` and write them to a file.

    Example:
        >>> from jdiff.studio import tasks
        >>> print(python(tasks.generate(tasks.Common(n=2, steps=8), ["a red three"])))
        import jax
        import jdiff
        model = jdiff.load("mini")
        made = jdiff.sample.generate(model, ['a red three'], jax.random.key(0), n=2, steps=8)
        jdiff.images.save("made.png", jdiff.images.grid(made.images))
    """
    command = task.command
    if isinstance(command, Edit) and task.strengths:
        return "\n".join(_ladder(task, command))
    return "\n".join(LISTINGS[type(command)](command))


def _call(start: str, arguments: Sequence[str], how: dict[str, Any]) -> str:
    given = [f"{name}={value!r}" for name, value in how.items() if value not in (None, "")]
    return f"made = {start}({', '.join([*arguments, *given])})"


def _head(command: Drawing) -> list[str]:
    dtype = "" if command.dtype == "float32" else f', dtype="{command.dtype}"'
    return ["import jax", "import jdiff", f'model = jdiff.load("{_escaped(command.model)}"{dtype})']


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _shared(command: Drawing, *left_out: str) -> dict[str, Any]:
    names = [name for name in ("n", "steps", "guidance", "negative", "sampler") if name not in left_out]
    return {name: getattr(command, name) for name in names}


def _key(command: Drawing | Ambigram | Digits) -> str:
    return f"jax.random.key({command.seed or 0})"


def _generate(command: Generate) -> list[str]:
    arguments = ["model", repr(list(command.prompts)), _key(command)]
    return [*_head(command), _call("jdiff.sample.generate", arguments, _shared(command)), SAVE]


def _edit(command: Edit) -> list[str]:
    arguments = ["model", "image", repr(list(command.prompts)), _key(command)]
    how = {"strength": command.strength, **_shared(command)}
    read = f'image = jdiff.images.load("{command.source}")'
    return [*_head(command), read, _call("jdiff.sample.edit", arguments, how), SAVE]


def _ladder(task: Task, command: Edit) -> list[str]:
    strengths = [one.strength for one in each(task) if isinstance(one, Edit)]
    *head, call, _ = _edit(command)
    call = call.replace(f"strength={command.strength!r}", "strength=s")
    loop = [f"for s in {strengths}:", f"    {call}"]
    return [*head, *loop, '    jdiff.images.save(f"edit-{s}.png", jdiff.images.grid(made.images))']


def _inpaint(command: Inpaint) -> list[str]:
    arguments = ["model", "image", "mask", repr(list(command.prompts)), _key(command)]
    walked = {"resamplings": command.resamplings, "jump_length": command.jump_length}
    how = (walked if command.resamplings > 1 else {}) | _shared(command)
    read = [f'{name} = jdiff.images.{load}("{path}")' for name, load, path in (
        ("image", "load", command.source), ("mask", "load_mask", command.mask)
    )]  # fmt: skip
    return [*_head(command), *read, _call("jdiff.sample.inpaint", arguments, how), SAVE]


def _guided(command: Anagram | Hybrid) -> str:
    how = [repr(list(command.texts())), *([] if command.guidance is None else [repr(command.guidance)])]
    how += [f"negative={command.negative!r}"] if command.negative else []
    return f"model.guided({', '.join(how)})"


def _combined(command: Anagram | Hybrid, parts: list[str], combiner: str) -> list[str]:
    made = _call("jdiff.sample.generate", ["model", combiner, _key(command)], _shared(command, "guidance", "negative"))
    return [*_head(command), *parts, made, SAVE]


def _anagram(command: Anagram) -> list[str]:
    names = ["identity"][len(command.view) + 1 - len(command.prompts) :] + list(command.view)
    view = [
        f"jdiff.views.{name}({'grid=min(64, model.config.sample_size)' if name == 'pixel_permute' else ''})"
        for name in names
    ]
    parts = [
        f"views = [{', '.join(view)}]",
        f"parts = [jdiff.combine.view(v, one) for v, one in zip(views, {_guided(command)})]",
    ]
    return _combined(command, parts, "jdiff.combine.mean(parts)")


def _hybrid(command: Hybrid) -> list[str]:
    parts = [f"parts = list(zip(jdiff.views.low_and_high({command.sigma!r}), {_guided(command)}))"]
    return _combined(command, parts, "jdiff.combine.components(parts)")


def _ambigram(command: Ambigram) -> list[str]:
    told = SETTINGS | {name: value for name in SETTINGS if (value := getattr(command, name)) not in (None, ())}
    how = {name: told[name] for name in TAKEN}
    words = [repr(word) for word in command.words]
    return [
        "import jax",
        "import jdiff",
        "from jdiff.letters import ambigrams, page",
        f'model = jdiff.load("{_escaped(told["model"])}")',
        _call("ambigrams.ambigram", ["model", *words, f"key={_key(command)}"], how),
        'jdiff.images.save("ambigram.png", page.page(made))',
    ]


def _digits(command: Digits) -> list[str]:
    from jdiff.mnist.recipes import recipes

    recipe = command.recipe or ("best" if (command.kind, "best") in recipes() else "spec")
    several = f"[digit for digit in range(10) for _ in range({command.n})]"
    classes = several if "class" in (command.kind or "") else f"[-1] * {10 * command.n}"
    call = _call(
        "model.draw", ["digits", classes, _key(command)], {"steps": command.steps, "guidance": command.guidance}
    )
    rows = f"2 * made.images.reshape(10, {command.n}, 28, 28, 1) - 1"
    return [
        "import jax",
        "import jdiff",
        "from jdiff.mnist import model",
        f'digits = model.load("{command.kind}-{recipe}")',
        call,
        f'jdiff.images.save("digits.png", jdiff.images.grid({rows}))',
    ]


LISTINGS: dict[type, Callable[[Any], list[str]]] = {
    Generate: _generate, Edit: _edit, Inpaint: _inpaint, Anagram: _anagram, Hybrid: _hybrid, Ambigram: _ambigram,
    Digits: _digits,
}  # fmt: skip
