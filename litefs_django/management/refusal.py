"""A command that writes on a replica ends with one line that says where to run it, in place of a traceback."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from litefs_django.exceptions import NotPrimaryError


def say_where_to_write() -> None:
    """From now on a NotPrimaryError that ends this program is told as that line. `--traceback` shows all of it."""
    before = sys.excepthook
    if getattr(before, "__module__", None) == __name__:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
        refused = _refused(error)
        if refused is None or "--traceback" in sys.argv:
            return before(kind, error, trace)
        sys.stderr.write(f"{line(refused, sys.argv)}\n")
        return None

    sys.excepthook = hook


def line(error: NotPrimaryError, arguments: list[str]) -> str:
    """What to say of a program with these arguments."""
    program = [Path(arguments[0]).name, *arguments[1:]]
    if program[0] == "__main__.py":
        program[:1] = ["python", "-m", "django"]
    elif program[0].endswith(".py"):
        program.insert(0, "python")
    command = shlex.join(program)
    if error.primary is None:
        return f"Nothing was written: node {error.node.name!r} is not the primary, and no primary is known now. {error}"
    return (
        f"Node {error.node.name!r} is a replica, and only the primary {error.primary.name!r} "
        f"({error.primary.address}) writes. Run it there: {command}"
    )


def _refused(error: BaseException | None) -> NotPrimaryError | None:
    """The error itself, or what it was raised from."""
    while error is not None and not isinstance(error, NotPrimaryError):
        error = error.__cause__
    return error
