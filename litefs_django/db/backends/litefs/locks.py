"""A connection's hold on the write turn and on the commit gate of its database."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from litefs_django._litefs.write_turn import FileLock, gate_path, turn_path
from litefs_django.db.backends.litefs.place import Place


class Locks:
    """Turn and gate, each opened when it is first taken.

    Taking one raises OperationalError: 'database is locked' when it does not come within `timeout` seconds, turn
    and gate together where both are taken at once; or the reason why its file cannot be opened.
    """

    def __init__(self, place: Place, timeout: float) -> None:
        self._place = place
        self._timeout = timeout
        self._turn: FileLock | None = None
        self._gate: FileLock | None = None

    @property
    def has_turn(self) -> bool:
        return self._turn is not None and self._turn.is_held

    def take_turn(self, *, with_gate: bool = False) -> None:
        if self._turn is None:
            self._turn = self._open(turn_path)
        deadline = time.monotonic() + self._timeout
        self._acquire(self._turn, self._timeout)
        if with_gate:
            try:
                self.take_gate(deadline)
            except BaseException:
                self._turn.release()
                raise

    def take_gate(self, deadline: float | None = None) -> None:
        if self._gate is None:
            self._gate = self._open(gate_path)
        self._acquire(self._gate, self._timeout if deadline is None else max(0, deadline - time.monotonic()))

    def end_turn(self) -> None:
        """Gives the turn back; nothing happens when it is not held."""
        if self._turn is not None:
            self._turn.release()

    def end_gate(self) -> None:
        """Gives the gate back; nothing happens when it is not held."""
        if self._gate is not None:
            self._gate.release()

    def close(self) -> None:
        for lock in (self._gate, self._turn):
            if lock is not None:
                lock.close()

    def _acquire(self, lock: FileLock, timeout: float) -> None:
        if not lock.acquire(timeout):
            raise sqlite3.OperationalError("database is locked")

    def _open(self, path_of: Callable[[Path, str], Path]) -> FileLock:
        path = path_of(self._place.settings.run, self._place.path.name)
        try:
            return FileLock(path)
        except OSError as error:
            raise sqlite3.OperationalError(
                f"Writes are refused, since the lock file {path} cannot be opened ({error.strerror}). Start the node "
                'with litefs_run, or set LITEFS["RUN_PATH"] to a local directory that this user may write.'
            ) from error


class _Holder(Protocol):
    @property
    def locks(self) -> Locks: ...
    def close(self) -> None: ...


class _EndOfThread:
    """Goes with its thread's local variables, and closes what the thread has left holding the write turn."""

    def __init__(self) -> None:
        self.holders: WeakSet[_Holder] = WeakSet()

    def __del__(self) -> None:
        for holder in self.holders:
            if holder.locks.has_turn:
                holder.close()


_thread = threading.local()


def end_with_thread(holder: _Holder) -> None:
    """A thread that dies in a transaction takes its connection along: garbage collection may be far off."""
    if not hasattr(_thread, "end"):
        _thread.end = _EndOfThread()
    _thread.end.holders.add(holder)
