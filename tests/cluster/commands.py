"""Management commands on any node of a cluster, each a process of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.cluster.connections import python
from tests.cluster.nodes import LiteFSNode


def manage(node: LiteFSNode, *arguments: object) -> dict[str, Any]:
    """Arguments for subprocess.Popen or run: this management command on that node."""
    command = python(node, "")
    command["args"][1:] = ["-m", "django", *map(str, arguments)]
    return command


def run(node: LiteFSNode, *arguments: object, answer: str = "", **options: Any) -> tuple[int, str, str]:
    """Runs a management command and types `answer`. Returns its exit code, output and error output."""
    command = {**manage(node, *arguments), "stdin": None, **options}
    result = subprocess.run(**command, input=answer, capture_output=True, timeout=120, check=False)
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, result.stdout, result.stderr


def succeed(node: LiteFSNode, *arguments: object, **options: Any) -> str:
    """The output of a command that has to end with exit code 0."""
    code, output, errors = run(node, *arguments, **options)
    assert code == 0, f"exit code {code}\n{output}\n{errors}"
    return output


def fail(node: LiteFSNode, *arguments: object, **options: Any) -> str:
    """The error output of a command that has to end with exit code 1."""
    code, output, errors = run(node, *arguments, **options)
    assert code == 1, f"exit code {code}\n{output}\n{errors}"
    return errors


class Running:
    """A management command that runs; at the end of the block it is killed if it still does."""

    def __init__(self, node: LiteFSNode, *arguments: object, **options: Any) -> None:
        command = {**manage(node, *arguments), **options}
        self._process = subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Polls until the condition holds, as fast as it can; the command has to be running then."""

        def holds() -> bool:
            with suppress(FileNotFoundError):
                return bool(condition())
            return False

        deadline = time.monotonic() + 100
        while not holds():
            assert self._process.poll() is None, f"It has ended before {what}: {self._process.communicate()}"
            assert time.monotonic() < deadline, f"Not within 100 s: {what}"
        assert self._process.poll() is None, f"It has ended, when {what}"

    def wait_for_question(self, question: str) -> None:
        """Until its output ends with `question`."""
        assert self._process.stdout is not None
        said = ""
        while not said.endswith(question):
            read = self._process.stdout.read(1)
            assert read, f"It has ended: {said}"
            said += read

    def end_with_answer(self, answer: str) -> tuple[int, str]:
        """`end`, after this has been typed; its stdin has to be a pipe."""
        output, _ = self._process.communicate(answer, timeout=60.0)
        return self._process.returncode, output

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self, timeout: float = 60.0) -> tuple[int, str]:
        """Exit code and output, when it has ended."""
        output, _ = self._process.communicate(timeout=timeout)
        return self._process.returncode, output

    def next_line(self) -> str:
        """The next line of its output."""
        assert self._process.stdout is not None
        line: str = self._process.stdout.readline()
        assert line, f"It has ended: {self._process.wait()}"
        return line.rstrip("\n")
