"""Processes that write to whichever node is the primary, as a site with several nodes does.

`python -m tests.cluster.run.writing LOG PAUSE NODE ...`: each NODE is the LITEFS of one, as JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.cluster.run.nodes import DATABASE, ROOT, SupervisedNode
from tests.machine import wait_until

# Seconds that a transaction is idle between its write and its commit. Nobody else can write meanwhile.
IDLE = 0.05


@dataclass(frozen=True, slots=True)
class Write:
    """What became of one row, and when: `time.monotonic()` when it was known."""

    outcome: str
    name: str
    at: float


class Writers:
    """As a context manager they end with it."""

    def __init__(self, directory: Path, nodes: Sequence[SupervisedNode], count: int, idle: int = 0) -> None:
        """`count` writers, of whom `idle` stay inside their transactions for a while."""
        directory.mkdir()
        self._logs = [directory / str(number) for number in range(count)]
        self._nodes = nodes
        self._idle = idle
        self._processes: list[subprocess.Popen[bytes]] = []
        self.killed_by_sigbus = 0
        self._read = dict.fromkeys(self._logs, 0)  # bytes of each
        self._found: dict[Path, list[Write]] = {log: [] for log in self._logs}

    def __enter__(self) -> Writers:
        for number in range(len(self._logs)):
            self._logs[number].touch()
            self._processes.append(self._start(number))
        return self

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        pause = IDLE if number < self._idle else 0
        arguments = [str(self._logs[number]), str(pause), *(node.litefs_json() for node in self._nodes)]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.run.writing", *arguments],
            cwd=ROOT,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
            stdin=subprocess.DEVNULL,
        )

    def _replace_killed(self) -> None:
        """SQLite maps the -shm file, which goes away with LiteFS: who dies of that is its server's to replace."""
        for number, process in enumerate(self._processes):
            if process.poll() == -signal.SIGBUS:
                self.killed_by_sigbus += 1
                self._processes[number] = self._start(number)

    def __exit__(self, *error: object) -> None:
        self._replace_killed()
        for process in self._processes:
            process.terminate()
        codes = [process.wait() for process in self._processes]
        assert codes == [-signal.SIGTERM] * len(codes), "a writer has ended by itself"

    def writes(self) -> list[Write]:
        return sorted(itertools.chain.from_iterable(self._by_writer().values()), key=lambda write: write.at)

    def _by_writer(self) -> dict[Path, list[Write]]:
        """Each writer's, by its log."""
        for log in self._logs:
            with log.open("rb") as file:
                file.seek(self._read[log])
                whole, line_feed, _ = file.read().rpartition(b"\n")
            self._read[log] += len(whole + line_feed)
            for line in whole.decode().splitlines():
                outcome, name, at = line.split()
                self._found[log].append(Write(outcome, name, float(at)))
        return self._found

    def wait_for_more(self, count: int) -> None:
        """Until so many more writes are acknowledged."""
        before = len(self.done())

        def are_done() -> bool:
            self._replace_killed()
            return len(self.done()) >= before + count

        wait_until(are_done, f"{count} more writes are acknowledged")

    def wait_until_all_write(self) -> None:
        """Until each has written once more: none hangs on the mount of a LiteFS that was killed (docs/backend.rst)."""
        before = {log: len(found) for log, found in self._by_writer().items()}

        def do_all_write() -> bool:
            self._replace_killed()
            return all(len(found) > before[log] for log, found in self._by_writer().items())

        wait_until(do_all_write, "each writer writes")

    def done(self) -> list[Write]:
        return [write for write in self.writes() if write.outcome == "done"]

    def longest_pause(self, begin: float, end: float) -> float:
        """The longest time without an acknowledged write, of those that touch this interval."""
        times = [write.at for write in self.done()]
        pauses = ((before, after) for before, after in itertools.pairwise(times) if after >= begin and before <= end)
        return max(after - before for before, after in pauses)

    def longest_wait(self) -> float:
        """The longest time for which one of them had no write acknowledged."""
        times = [[write.at for write in found if write.outcome == "done"] for found in self._by_writer().values()]
        return max(after - before for each in times for before, after in itertools.pairwise(each))


def _main(log: str, pause: float, nodes: list[dict[str, Any]]) -> None:
    import django

    django.setup()
    from litefs_django._litefs.reading import read_settings
    from tests.cluster.connections import open_connection

    for node in nodes:
        settings = read_settings(node, {"default": DATABASE})
        fake: Any = SimpleNamespace(name=settings.cluster.node, settings=settings)
        open_connection(fake, DATABASE)
    aliases = itertools.cycle([node["NODE"] for node in nodes])
    alias = next(aliases)
    with open(log, "a", buffering=1) as file:
        for number in itertools.count():
            name = f"{os.getpid()}-{number}"
            while (outcome := _write(alias, name, pause)) == "refused":
                alias = next(aliases)
            file.write(f"{outcome} {name} {time.monotonic()}\n")


def _write(alias: str, name: str, pause: float) -> str:
    """What became of it; "refused" when nothing was written."""
    from django.db import OperationalError, connections, transaction

    from litefs_django.exceptions import CommitOutcomeUnknown, NotPrimaryError
    from tests.cluster.models import Author

    connections[alias].close_if_unusable_or_obsolete()
    try:
        with transaction.atomic(using=alias):
            Author.objects.using(alias).create(name=name)
            time.sleep(pause)
    except CommitOutcomeUnknown:
        return "unknown"
    except NotPrimaryError:
        time.sleep(0.002)
        return "refused"
    except OperationalError:
        # LiteFS is down there: nothing was written.
        time.sleep(0.02)
        return "refused"
    return "done"


if __name__ == "__main__":
    _main(sys.argv[1], float(sys.argv[2]), [json.loads(node) for node in sys.argv[3:]])
