"""A connection's hold on the write turn and on the commit gate of its database."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar
from weakref import WeakSet

from litefs_django._litefs.write_turn import FileLock, InVain, gate_path, turn_path
from litefs_django.db.backends.litefs.place import Place

T = TypeVar("T")


class Locks:
    """Turn and gate, each opened when it is first taken.

    Taking one raises OperationalError: 'database is locked' when it does not come within `timeout` seconds, turn
    and gate together where both are taken at once, or when it `is_in_vain`; or the reason why its file does not open.

    `taken_by` is the thread that took the turn last.
    """

    taken_by: int | None = None

    def __init__(self, place: Place, timeout: float) -> None:
        self._place = place
        self._timeout = timeout
        self._turn: FileLock | None = None
        self._gate: FileLock | None = None

    @property
    def has_turn(self) -> bool:
        return self._turn is not None and self._turn.is_held

    @property
    def has_gate(self) -> bool:
        return self._gate is not None and self._gate.is_held

    def take_turn(self, is_in_vain: InVain, *, with_gate: bool = False) -> float:
        """The seconds that it waited; 0.0 for less than a tenth of the time-out, which is not worth two PRAGMAs."""
        if self._turn is None:
            self._turn = self._open(turn_path)
        begin = time.monotonic()
        self._acquire(self._turn, self._timeout, is_in_vain)
        self.taken_by = threading.get_ident()
        if with_gate:
            try:
                self.take_gate(is_in_vain, begin + self._timeout)
            except BaseException:
                self._turn.release()
                raise
        waited = time.monotonic() - begin
        return waited if waited > self._timeout / 10 else 0.0

    def take_gate(self, is_in_vain: InVain, deadline: float | None = None) -> bool:
        """Whether somebody had it."""
        if self._gate is None:
            self._gate = self._open(gate_path)
        timeout = self._timeout if deadline is None else max(0, deadline - time.monotonic())
        self._acquire(self._gate, timeout, is_in_vain)
        return self._gate.has_waited

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

    def _acquire(self, lock: FileLock, timeout: float, is_in_vain: InVain) -> None:
        try:
            is_taken = lock.acquire(timeout, is_in_vain)
        except OSError as error:  # somebody has removed its file
            raise _unusable(lock.path, error) from error
        if not is_taken:
            raise sqlite3.OperationalError("database is locked")

    def _open(self, path_of: Callable[[Path, str], Path]) -> FileLock:
        path = path_of(self._place.settings.run, self._place.path.name)
        try:
            return FileLock(path)
        except OSError as error:
            raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> sqlite3.OperationalError:
    return sqlite3.OperationalError(
        f"Writes are refused, since the lock file {path} cannot be opened ({error.strerror}). Start the node "
        'with litefs_run, or set LITEFS["RUN_PATH"] to a local directory that this user may write.'
    )


def run_after(waited: float, connection: sqlite3.Connection, statement: Callable[[], T]) -> T:
    """Runs a statement that has waited so many seconds in line.

    For a program that does not stand in line SQLite then waits what is left of the connection's time-out.
    """
    if not waited:
        return statement()
    execute = sqlite3.Cursor(connection).execute
    (timeout,) = execute("PRAGMA busy_timeout").fetchone()
    execute(f"PRAGMA busy_timeout = {max(0, timeout - round(waited * 1000))}")
    try:
        return statement()
    finally:
        execute(f"PRAGMA busy_timeout = {timeout}")


class _Holder(Protocol):
    @property
    def locks(self) -> Locks: ...
    def close(self) -> None: ...


class _EndOfThread:
    """Goes with its thread's local variables, and closes what the thread has left holding the write turn."""

    def __init__(self) -> None:
        self.holders: WeakSet[_Holder] = WeakSet()
        self._thread = threading.get_ident()

    def __del__(self) -> None:
        for holder in self.holders:
            # Not what another thread writes by a connection that both share.
            if holder.locks.has_turn and holder.locks.taken_by == self._thread:
                holder.close()


_thread = threading.local()


def end_with_thread(holder: _Holder) -> None:
    """A thread that dies in a transaction takes its connection along: garbage collection may be far off."""
    if not hasattr(_thread, "end"):
        _thread.end = _EndOfThread()
    _thread.end.holders.add(holder)
