"""The write turn and the commit gate: who may write on this machine, and who may commit.

Two locks per database, each an flock on a file in RUN_PATH, so that the kernel frees them when their
holder dies:

- the turn is the queue of writers, held from BEGIN IMMEDIATE until COMMIT has returned;
- the gate is held around a commit and its check. The supervisor takes it to change the role or to stop LiteFS:
  a commit in flight at that moment is what makes LiteFS lose an acknowledged write and exit.

flock has no time-out, so per process and file one helper thread blocks in it for those who wait, first
come, first served. While nobody waits the lock is tried directly (2 us).
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from weakref import WeakSet

# Seconds after which a helper thread that nobody waits for ends.
IDLE = 10.0

# Seconds between two looks of those who wait whether they wait in vain.
LOOK = 0.1

InVain = Callable[[], bool]


def turn_path(run_path: Path, database: str) -> Path:
    """The lock file of a database's write turn."""
    return run_path / f"{database}.turn"


def gate_path(run_path: Path, database: str) -> Path:
    """The lock file of a database's commit gate."""
    return run_path / f"{database}.gate"


class FileLock:
    """One holder's handle on a lock file: a connection has its own, so threads exclude each other too.

    `has_waited` says whether somebody had it when it was asked for last.

    Not reentrant. Opening raises OSError when the file is neither there nor can be made. A forked
    child's copy is closed (it would keep its parent's lock), and opens anew when the child uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.has_waited = False
        self._has_taken = False
        self._file = _open(path)

    @property
    def is_held(self) -> bool:
        """Whether this handle has the lock; never in a forked child."""
        return self._has_taken and self._file.descriptor >= 0

    def acquire(self, timeout: float, is_in_vain: InVain | None = None) -> bool:
        """Takes the lock, waiting at most `timeout` seconds, or until it `is_in_vain`; False when it was not taken."""
        self.has_waited = False
        try:
            self._has_taken = self._take(timeout, is_in_vain)
        except BaseException:
            # Interrupted, maybe when it had the lock already.
            self._has_taken = True
            self.release()
            raise
        return self._has_taken

    def _take(self, timeout: float, is_in_vain: InVain | None) -> bool:
        while True:
            if self._file.descriptor < 0:
                self._file = _open(self.path)
            # Somebody may remove the file: its lock excludes nobody who comes later.
            status = os.fstat(self._file.descriptor)
            if status.st_nlink:
                queue = _queue(status)
                if not queue.take_now(self._file):
                    self.has_waited = True
                    if timeout <= 0 or not queue.wait(self._file, timeout, is_in_vain):
                        return False
                if os.fstat(self._file.descriptor).st_nlink:
                    return True
            self._file.close()

    def release(self) -> None:
        """Gives the lock back; nothing happens when it is not held."""
        if self.is_held:
            fcntl.flock(self._file.descriptor, fcntl.LOCK_UN)
        self._has_taken = False

    def close(self) -> None:
        """Gives the lock back and closes its file."""
        self._has_taken = False
        self._file.close()


class _File:
    """An open lock file that closes with its last reference, as when a thread dies."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        _files.add(self)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close


class _Waiter:
    def __init__(self, file: _File) -> None:
        # Its owner may give up and close its own while the thread still blocks in this one.
        self.file = _File(os.dup(file.descriptor))
        self.is_granted = False
        self.has_given_up = False
        self.error: OSError | None = None
        self.wake = threading.Lock()
        self.wake.acquire()


class _Queue:
    """Those of this process who wait for one lock file, and the thread that blocks for them."""

    def __init__(self) -> None:
        self._waiters: deque[_Waiter] = deque()
        # Taken itself: the condition's own __enter__ can be left by a signal's exception with the lock taken.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None

    def take_now(self, file: _File) -> bool:
        """Whether nobody has it, or waits: it is taken then."""
        if self._waiters:
            return False
        try:
            fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self, file: _File, timeout: float, is_in_vain: InVain | None) -> bool:
        waiter = _Waiter(file)
        try:
            with self._lock:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._serve, name="litefs-write-turn", daemon=True)
                    self._thread.start()
                self._waiters.append(waiter)
                self._changed.notify_all()
            deadline = time.monotonic() + timeout
            step = threading.TIMEOUT_MAX if is_in_vain is None else LOOK
            while not waiter.wake.acquire(timeout=max(0.0, min(deadline - time.monotonic(), step))):
                if time.monotonic() >= deadline or (is_in_vain is not None and is_in_vain()):
                    break
        except BaseException:
            self._give_up(waiter)
            raise
        if waiter.error is not None:
            raise waiter.error
        return self._give_up(waiter)

    def _give_up(self, waiter: _Waiter) -> bool:
        """Ends the wait; whether the lock had been granted after all."""
        with self._lock:
            waiter.has_given_up = not waiter.is_granted
            # The first one's file is what the thread blocks on: that it takes away itself.
            if waiter.has_given_up and waiter in self._waiters and self._waiters[0] is not waiter:
                self._waiters.remove(waiter)
            return waiter.is_granted

    def _serve(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._waiters, timeout=IDLE)
                if self._thread is not threading.current_thread():
                    # Its start was interrupted, and another one was started.
                    return
                if not self._waiters:
                    self._thread = None
                    return
                waiter = self._waiters[0]
            try:
                if not waiter.has_given_up:
                    fcntl.flock(waiter.file.descriptor, fcntl.LOCK_EX)
            except OSError as error:
                waiter.error = error
            with self._lock:
                if waiter.has_given_up:
                    # Before the queue is empty: whoever finds it so takes the lock, perhaps by the same open file.
                    fcntl.flock(waiter.file.descriptor, fcntl.LOCK_UN)
                self._waiters.popleft()
                waiter.file.close()
                if not waiter.has_given_up:
                    waiter.is_granted = waiter.error is None
                    waiter.wake.release()


_files: WeakSet[_File] = WeakSet()
_queues: dict[tuple[int, int], _Queue] = {}


def _queue(status: os.stat_result) -> _Queue:
    # Not by its path: another file may have taken that from one that somebody still holds.
    file = status.st_dev, status.st_ino
    return _queues.get(file) or _queues.setdefault(file, _Queue())


def _open(path: Path) -> _File:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return _File(os.open(path, flags))
    except FileNotFoundError:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        return _File(os.open(path, flags | os.O_CREAT, 0o644))


def _after_fork() -> None:
    _queues.clear()
    for file in list(_files):
        file.close()


os.register_at_fork(after_in_child=_after_fork)
