"""The commit gates of all databases, as the supervisor takes them to change the role or to stop LiteFS."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from litefs_django._litefs.write_turn import FileLock, gate_path, turn_path


class CommitGates:
    """No process of this machine commits while they are held. The lock files exist once this is constructed."""

    def __init__(self, run_path: Path, databases: Sequence[str]) -> None:
        self._run_path = run_path
        self._gates = {name: _make_locks(run_path, name) for name in databases}
        self._lock = threading.Lock()  # a change of primary and a stop may meet
        self._is_for_good = False

    def take(self, timeout: float, *, for_good: bool = False) -> list[str]:
        """Takes those that are not held yet. The databases whose gate was not free within `timeout` seconds.

        Raises OSError or RuntimeError where no file descriptor or no thread is left, when it has tried all.

        After `for_good` nothing releases them but the end of this process.
        """
        deadline = time.monotonic() + timeout
        missing, errors = [], []
        with self._lock:
            self._is_for_good = self._is_for_good or for_good
            for name, gate in self._gates.items():
                try:
                    if not gate.is_held and not gate.acquire(max(0.0, deadline - time.monotonic())):
                        missing.append(name)
                except (OSError, RuntimeError) as error:  # no file descriptor or no thread is left
                    errors.append(error)
        if errors:
            raise errors[0]
        return missing

    def renew(self) -> bool:
        """Puts new lock files in the place of the old ones, between one LiteFS and the next.

        A statement that hangs on the mount of the one that has ended, for ten seconds, then holds up nobody. Gates
        that are held, and their turns, stay. False, and nothing is done, while a gate is being waited for.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            for name, gate in self._gates.items():
                if not gate.is_held:
                    for path in (turn_path(self._run_path, name), gate.path):
                        new = path.with_name(f".{path.name}.{os.getpid()}")
                        new.touch(mode=0o644)
                        new.chmod(0o644)
                        new.rename(path)
        finally:
            self._lock.release()
        return True

    def release(self) -> None:
        """Lets go of all that are held, unless this is the end."""
        with self._lock:
            for gate in () if self._is_for_good else self._gates.values():
                gate.release()


def _make_locks(run_path: Path, database: str) -> FileLock:
    """Makes the database's lock files, which every user may open, and returns the commit gate."""
    FileLock(turn_path(run_path, database)).close()
    gate = FileLock(gate_path(run_path, database))
    for path in (turn_path(run_path, database), gate.path):
        path.chmod(0o644)
    return gate
