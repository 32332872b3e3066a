"""The supervisor's child processes: each ends with the supervisor, however that ends.

Forked from the main thread alone, for the kernel sends PR_SET_PDEATHSIG when the forking *thread*
ends (prctl(2)). Each child leads a session of its own, so that a terminal's Ctrl-C reaches the supervisor
alone, and what a child leaves behind can be ended with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import suppress

from litefs_django._litefs.node.output import Output

GRACE = 5.0  # seconds between SIGTERM and SIGKILL; docker stop kills after 10

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


class Child:
    """A running or ended child process, and the process group that it leads."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.pid = process.pid
        self.returncode: int | None = None  # negative: the signal that it died of
        self.started = time.monotonic()
        self._process = process
        self._kill_at: float | None = None
        self._group_was_told = False

    @property
    def is_running(self) -> bool:
        return self.returncode is None

    @property
    def is_ending(self) -> bool:
        """Whether it has been told to end."""
        return self._kill_at is not None

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left of it, other processes of its group included, or all was done to end it."""
        if not self.is_running:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            except PermissionError:  # they run as another user
                pass
        # Killed, but not reaped by whoever is PID 1, or not ours to kill: waiting longer would help nobody.
        return self._kill_at is not None and time.monotonic() > self._kill_at + 0.5

    @property
    def how_it_ended(self) -> str:
        """For the log: 'exit code 1' or 'SIGKILL'."""
        assert self.returncode is not None
        return f"exit code {self.returncode}" if self.returncode >= 0 else signal.Signals(-self.returncode).name

    def send(self, number: int) -> None:
        """Sends it a signal, if it still runs."""
        if self.is_running:
            with suppress(PermissionError):  # it has become another user
                os.kill(self.pid, number)

    def end(self, grace: float = GRACE) -> None:
        """Ends it and what it leaves behind: SIGTERM, and SIGKILL after `grace` seconds.

        To be called again and again until `is_gone`.
        """
        now = time.monotonic()
        if self._kill_at is None:
            self._kill_at = now + grace
            self.send(signal.SIGTERM)
        if now >= self._kill_at:
            self._send_group(signal.SIGKILL)
        elif not self.is_running and not self._group_was_told:
            self._group_was_told = True
            self._send_group(signal.SIGTERM)

    def _send_group(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _reaped(self, status: int) -> None:
        # Popen must not wait for a process that is gone.
        self.returncode = self._process.returncode = os.waitstatus_to_exitcode(status)


class Children:
    """Starts and reaps all children. Only for the main thread."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._running: dict[int, Child] = {}

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        on_our_death: signal.Signals,
        search_path: str | None = None,
        descriptors: Collection[int] = (),
    ) -> Child:
        """Runs a command; `name` marks its output, `descriptors` are for it to have.

        Raises OSError when it cannot be executed.
        """
        parent = os.getpid()
        environment = os.environ if search_path is None else os.environ | {"PATH": search_path}

        def tie_to_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, int(on_our_death), 0, 0, 0)
            if os.getppid() != parent:  # it ended before it could be noticed
                os._exit(1)

        stdout, stderr = self._output.open(name, is_error=False), self._output.open(name, is_error=True)
        try:
            # preexec_fn runs Python between fork and exec, beside threads that may hold locks at that
            # moment: it takes none, and there is no other way to set PR_SET_PDEATHSIG.
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                start_new_session=True,
                pass_fds=descriptors,
                preexec_fn=tie_to_parent,
            )
        finally:
            os.close(stdout)
            os.close(stderr)
        child = self._running[process.pid] = Child(name, process)
        return child

    def reap(self) -> list[Child]:
        """Those of ours that have ended since the last call. As PID 1 it reaps everybody's orphans too."""
        ended: list[Child] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            if child := self._running.pop(pid, None):
                child._reaped(status)
                ended.append(child)


class Backoff:
    """When to start again what keeps ending: at once, then after ever longer pauses, at most MAX seconds."""

    MAX = 5.0
    HEALTHY = 60.0  # seconds; what ran that long starts afresh

    def __init__(self) -> None:
        self._pause = 0.0
        self._not_before = 0.0

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._not_before

    def ended(self, started: float) -> None:
        """Notes an end; `started` is when it was started, by time.monotonic()."""
        now = time.monotonic()
        if now - started >= self.HEALTHY:
            self._pause = 0.0
        self._not_before = now + self._pause
        self._pause = min(self.MAX, self._pause * 2 or 0.25)
