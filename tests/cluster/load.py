"""Processes that write without pause, and what became of each row that they wrote."""

from __future__ import annotations

import itertools
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from litefs_django.db.backends.litefs.base import DatabaseWrapper
from tests.cluster.library import authors
from tests.cluster.nodes import LiteFSNode
from tests.machine import wait_until

Start = Callable[..., "subprocess.Popen[str]"]

# Rows one by one, every other one in a transaction that also reads; each row's name tells who wrote it.
WRITER = """
import itertools, os, sys, time
from pathlib import Path
from django.db import OperationalError, connection, transaction
from litefs_django.exceptions import CommitOutcomeUnknown, NotPrimaryError
from tests.cluster.models import Author, Tag

def write(name, is_atomic):
    if not is_atomic:
        Author.objects.create(name=name)
        return
    with transaction.atomic():
        Author.objects.count()
        Author.objects.create(name=name)
        if {size}:
            Tag.objects.create(name="x" * {size})

log = open({log!r}, "a", buffering=1)
for n in itertools.count():
    if Path({stop!r}).exists():
        break
    connection.close_if_unusable_or_obsolete()
    name = f"{who}-{{os.getpid()}}-{{n}}"
    begun, why = time.monotonic(), ""
    try:
        write(name, n % 2)
    except CommitOutcomeUnknown:
        outcome = "unknown"
    except NotPrimaryError:
        outcome = "refused"
    except OperationalError as error:
        outcome, why = "failed", error
    else:
        outcome = "done"
    log.write(f"{{outcome}} {{name}} {{time.monotonic() - begun:.3f}} {{why}}\\n")
    if outcome != "done":
        # A replica whose processes read without pause applies nothing.
        time.sleep(0.05)
"""


class Load:
    """Writers on some nodes; `stop` it before reading what it did.

    With a `size` each transaction of theirs also writes that many bytes, so that it is committing most of the time.
    """

    def __init__(self, start: Start, directory: Path, database: str, size: int = 0) -> None:
        self._size = size
        self._start = start
        self._directory = directory
        self._database = database
        self._stop = directory / "stop"
        self._processes: dict[subprocess.Popen[str], tuple[LiteFSNode, dict[str, Any]]] = {}
        self._numbers = itertools.count()
        self.killed_by_sigbus = 0

    def add(self, node: LiteFSNode, count: int, **options: Any) -> None:
        """`count` processes; one that dies of SIGBUS is replaced, as its server would do.

        SQLite maps the -shm file, which goes away with LiteFS.
        """
        for _ in range(count):
            log = self._directory / f"writer{next(self._numbers)}"
            log.touch()
            code = WRITER.format(log=str(log), stop=str(self._stop), who=node.name, size=self._size)
            self._processes[self._start(node, code, self._database, **options)] = node, options

    def outcomes(self, outcome: str) -> set[str]:
        """The rows of which their writer was told this: done, refused, unknown or failed."""
        return {name for said, name, *_ in self._lines() if said == outcome}

    def reasons(self) -> set[str]:
        """What the writers of failed rows were told."""
        return {" ".join(why) for said, _, _, *why in self._lines() if said == "failed"}

    def longest(self) -> float:
        """The seconds that the slowest write took."""
        return max(float(seconds) for _, _, seconds, *_ in self._lines())

    def wait_for_more(self, count: int = 20) -> None:
        """Until so many more rows are done."""
        before = len(self.outcomes("done"))

        def are_done() -> bool:
            self._replace_killed()
            return len(self.outcomes("done")) >= before + count

        wait_until(are_done, f"{count} more rows are written", context=lambda: "\n".join(sorted(self.reasons())))

    def _replace_killed(self) -> None:
        for process, (node, options) in list(self._processes.items()):
            if process.poll() == -signal.SIGBUS:
                del self._processes[process]
                self.killed_by_sigbus += 1
                self.add(node, 1, **options)

    def stop(self) -> None:
        """Fails with the error of a writer that did not end well."""
        self._stop.touch()
        for process in self._processes:
            _, error = process.communicate(timeout=60)
            assert process.returncode in (0, -signal.SIGBUS), f"status {process.returncode}\n{error}"

    def check(self, connection: DatabaseWrapper) -> None:
        """Each acknowledged row is there, and none that was refused."""
        there = set(authors(connection).values_list("name", flat=True))
        assert not self.outcomes("done") - there, "acknowledged, and lost"
        assert not self.outcomes("refused") & there, "refused, and written"

    def _lines(self) -> list[list[str]]:
        lines = []
        for log in self._directory.glob("writer*"):
            lines += [line.split() for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return lines
