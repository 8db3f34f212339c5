"""From the words of a command line to a command. Whatever is wrong with them is one line."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union

import tyro

from jdiff.cli import ladders, settings
from jdiff.cli.bulk import Bulk
from jdiff.cli.commands import Edit, Generate, Inpaint, Upscale
from jdiff.cli.drawing import Drawing
from jdiff.cli.errors import BadInput
from jdiff.cli.illusions import Anagram, Hybrid
from jdiff.cli.letters import Ambigram
from jdiff.cli.mnist import Mnist
from jdiff.cli.studio import Studio
from jdiff.cli.weights import Convert, Embed

DRAWING: tuple[type[Drawing], ...] = (Generate, Edit, Inpaint, Anagram, Hybrid, Upscale)
OTHERS = (Ambigram, Bulk, Studio, Embed, Convert, Mnist)
# Columns below which tyro's help never ends.
NARROWEST = 40
# Characters of a line about words that cannot be read.
LONGEST = 400

# tyro's errors, and what we say.
WORDS = {
    r"Error parsing (\S+?)(?:/\S+)?: (must .*)": r"\1 \2",
    r"Missing value for argument '([^'/]+).*": r"\1 needs a value; see jdiff --help",
    r"Expected one of \{(.*)\}.*": r"a command is missing; give one of \1",
    r"Unrecognized options: (.*)": r"unknown flag or command: \1; see jdiff COMMAND --help",
}

Command = Drawing | Ambigram | Bulk | Studio | Embed | Convert | Mnist


def parse(args: Sequence[str]) -> Command:
    """Returns the command of these words. With --like, the settings of that picture are the defaults.

    Raises:
        BadInput: the words are no command, in one line.
        SystemExit: help was asked for, and is printed.

    Example:
        >>> parse(["generate", "a red three", "-n", "2"]).n
        2
    """
    args = ladders.joined(args) if args and args[0] in [kind.name for kind in DRAWING] else args
    command = _parse(args)
    if not isinstance(command, Drawing) or command.like is None:
        return command
    return _parse(args, settings.like(command, command.like))


def _parse(args: Sequence[str], *defaults: Drawing) -> Any:  # tyro's type of a union is none that a checker knows
    default = {type(command): command for command in defaults}
    drawing = [Annotated[kind, tyro.conf.subcommand(kind.name, default=default.get(kind, kind()))] for kind in DRAWING]
    others = [Annotated[kind, tyro.conf.subcommand(kind.__name__.lower())] for kind in OTHERS]
    commands = Union[*drawing, *others]  # noqa: UP007, the members are computed
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)
    about = "Draws pictures by DeepFloyd IF and its samplers in JAX."
    said = io.StringIO()
    try:
        with _terminal(), contextlib.redirect_stderr(said):
            return tyro.cli(commands, prog="jdiff", description=about, args=list(args), config=config)  # type: ignore
    except BrokenPipeError:  # nobody reads the help
        raise SystemExit(0) from None
    except SystemExit as ended:
        if ended.code in (None, 0):
            raise
        raise BadInput(_line(said.getvalue())) from None


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """Tells tyro of no terminal narrower than it can bear, and of none with colours where NO_COLOR is set."""
    now = {}
    if shutil.get_terminal_size().columns < NARROWEST:
        now["COLUMNS"] = str(NARROWEST)
    if os.environ.get("NO_COLOR"):  # https://no-color.org
        now["TERM"] = "dumb"
    before = {name: os.environ.get(name) for name in now}
    os.environ.update(now)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _line(box: str) -> str:
    """What tyro's error says, in one line. The box has borders, or none where they cannot be printed.

    >>> _line("╭─ Value error ───╮\\n│ Error parsing -n/--n: must be │\\n│ small │\\n│ ───── │\\n│ Help │")
    '-n must be small'
    >>> _line(" Missing subcommand  \\n --- \\n Expected one of {a, b}. \\n --- \\n For full helptext")
    'a command is missing; give one of a, b'
    """
    title, parts = "", [[]]
    for line in box.splitlines():
        text = line.strip().strip("│|").strip()
        if found := re.match(r"\s*[╭+][─-] ?(.*?) ?[─-]*[╮+]\s*$", line):
            title = found[1]
        elif re.fullmatch("[─-]{3,}", text):
            parts.append([])
        elif text and not re.fullmatch("[╰╯─+-]+", text):
            parts[-1].append(text)
    if not title and len(parts) > 1:
        title = " ".join(parts.pop(0))
    text = " ".join(" ".join(parts[0]).split())
    for pattern, ours in WORDS.items():
        if found := re.fullmatch(pattern, text):
            return found.expand(ours)[:LONGEST]
    text = text if text.startswith(title) else f"{title}: {text}"
    return f"{(text or 'the command line cannot be read')[:LONGEST].rstrip('.')}; see jdiff --help"
