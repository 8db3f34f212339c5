"""The `jdiff` command. Its exit statuses: 0 done, 1 failed, 2 bad input, 128 + N ended by signal N.

Nothing else is imported here, so that Ctrl-C works from the first moment.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jdiff.cli import process

if TYPE_CHECKING:
    from jdiff.cli.outputs import Done


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        args: words of the command line. The process's own if None; then signals end the process, too.

    Returns:
        The exit status.
    """
    return process.run(lambda: run(sys.argv[1:])) if args is None else run(args)


def run(args: Sequence[str]) -> int:
    """Carries out a command line in this process and returns the exit status. Errors are lines on stderr."""
    from jdiff.cli.errors import DONE, FAILED, explained

    try:
        done = carry_out(args)
    except Exception as error:
        found = explained(error)
        if found is None:
            raise
        status, line = found
        process.tell(f"jdiff: {line}", sys.stderr)
        return status
    line, failed = done if isinstance(done, tuple) else (done, ())
    if line:
        process.tell(line)
    for problem in failed:
        process.tell(f"jdiff: {problem}", sys.stderr)
    return FAILED if failed else DONE


def carry_out(args: Sequence[str]) -> "str | Done":
    """Returns what a command says that it did: a line, or a Done."""
    from jdiff.cli.drawing import Drawing
    from jdiff.cli.parse import parse

    command = parse(args)
    if isinstance(command, Drawing):
        from jdiff.cli.make import make

        return make(command)
    import warnings

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: process.note(" ".join(str(message).split()))
        return command()


if __name__ == "__main__":
    sys.exit(main())
