"""Ends what this node may do as the primary before its lease does (node/lease/DESIGN.md, 'Leaving').

LiteFS leaves by itself when its lease service says so. It waits for one that hangs without a time-out (LiteFS v0.5.14,
consul.go, Renew), and one that was stopped itself hears nothing: then it has to be killed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from litefs_django._litefs.node.gates import CommitGates
from litefs_django._litefs.node.lease.timing import Times
from litefs_django._litefs.node_file import NodeFileWriter, boottime_ns

# Seconds of a lease process that says nothing: its relay carries nothing either.
_SILENT = 0.5
# Seconds between two looks, and those when it comes to it; and for the mount to say what this node is.
_INTERVAL = 0.1
_CLOSE_INTERVAL = 0.01
_LOOK = 0.1
# Seconds that LiteFS may seem to be primary without a lease: its view is 0.2 s old, and more on a loaded machine.
_LATE = 1.0


class Fence:
    """Watches the lease of LEASE_TTL `ttl`, in a thread of its own.

    `node_file` says until when LiteFS may act, and that the lease process lives; `is_primary` asks the mount, and may
    hang, `seems_primary` says what it said last; `kill` ends LiteFS with SIGKILL. The gates are its own: no commit may
    be under way when LiteFS leaves, which would end it, and lose a commit that was acknowledged. Nor may one that no
    other node gets to know of, for as long as the lease process, with its relay, is silent.
    """

    def __init__(
        self,
        ttl: float,
        gates: CommitGates,
        node_file: NodeFileWriter,
        *,
        is_primary: Callable[[], bool],
        seems_primary: Callable[[], bool],
        kill: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._times = Times(ttl)
        self._gates = gates
        self._node_file = node_file
        self._is_primary = is_primary
        self._seems_primary = seems_primary
        self._late_since: float | None = None
        self._kill = kill
        self._say = say
        self._done = 0  # the deadline that was seen to
        self._holds_gates = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="litefs-fence", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """To be called once LiteFS has ended."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        interval, said = 0.0, ""
        while not self._stopped.wait(interval):
            try:
                interval, said = self._step(), ""
            except (OSError, RuntimeError) as error:  # no file descriptor or no thread is left: it is tried again
                interval = _CLOSE_INTERVAL
                if str(error) != said:
                    said = str(error)
                    self._say(f"commits cannot be held off: {error}")

    def _step(self) -> float:
        """Does what is to be done now; the seconds until the next look."""
        deadline = self._node_file.deadline
        left = deadline / 1e9 - boottime_ns() / 1e9
        is_silent = self._node_file.lease_silence > _SILENT
        if deadline in (0, self._done) or (left > self._times.doubt and not is_silent):
            if self._holds_gates:
                self._gates.release()
                self._holds_gates = False
            self._end_late(is_over=left < 0)
            return _INTERVAL
        if left <= self._times.guard + _LOOK:
            self._see_to(deadline)
        else:
            if not self._holds_gates:
                why = "the lease process is silent" if is_silent else "the lease is not renewed in time"
                self._say(f"{why}: commits are held off")
            self._holds_gates = True
            self._gates.take(_CLOSE_INTERVAL)  # those that it does not hold yet
        return _CLOSE_INTERVAL

    def _end_late(self, *, is_over: bool) -> None:
        """Kills a LiteFS that is primary without a lease: it heard of it from a lease process that went on too late."""
        if not (is_over and self._seems_primary()):
            self._late_since = None
        elif self._late_since is None:
            self._late_since = time.monotonic()
        elif time.monotonic() > self._late_since + _LATE:
            self._say("LiteFS is primary without a lease: it is killed")
            self._kill()
            self._late_since = None

    def _see_to(self, deadline: int) -> None:
        """Kills LiteFS unless the mount says that it has left, or the lease was renewed meanwhile."""
        looks_primary: list[bool] = []
        thread = threading.Thread(target=lambda: looks_primary.append(self._is_primary()), daemon=True)
        with suppress(RuntimeError):  # no thread can be had: then it is not known
            thread.start()
            thread.join(max(0.0, deadline / 1e9 - self._times.guard - boottime_ns() / 1e9))
        if self._node_file.deadline != deadline:
            return
        if looks_primary != [False]:
            self._say("LiteFS has not left before the end of its lease: it is killed")
            self._kill()
        self._done = deadline
