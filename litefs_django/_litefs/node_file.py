"""The node file: what the supervisor tells this machine's connections, for the price of a few loads.

A small file in RUN_PATH that the supervisor alone writes and every connection maps. It is never
truncated nor rewritten in place (a reader would die of SIGBUS): a new supervisor renames a new one
over it. All words are native, aligned and 64 bits wide, so each load and store is whole:

    0  format and size     FORMAT, so that a reader of another release refuses it
    1  heartbeat           CLOCK_BOOTTIME in ns, written every HEARTBEAT seconds
    2  mount generation    grows with each mount of LiteFS; odd while LiteFS is down
    3  lease deadline      CLOCK_BOOTTIME in ns until which LiteFS may acknowledge writes; 0 when it may not. With Raft
                           alone: the lease process writes it before it tells LiteFS
    4  lease heartbeat     CLOCK_BOOTTIME in ns, written by the lease process every LEASE_HEARTBEAT seconds

Nothing is ever decided from it that could put a write in the wrong place.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from functools import partial
from pathlib import Path

NAME = "node"
FORMAT = 0x4C46_444A_0002_0028  # "LFDJ", version 2, 40 bytes
HEARTBEAT = 0.25
LEASE_HEARTBEAT = 0.1
STALE_NS = 1_000_000_000

_WORDS = struct.Struct("=5Q")
_FORMAT, _BEAT, _GENERATION, _DEADLINE, _LEASE_BEAT = range(5)


# CLOCK_BOOTTIME in nanoseconds: monotonic, and it goes on while the machine is suspended. Not a function of ours:
# each query asks.
boottime_ns = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)


class NodeFileWriter:
    """The supervisor's side. The file exists, with LiteFS down, once this is constructed.

    A generation begins at the clock, so that no two supervisors ever share one.
    """

    def __init__(self, run_path: Path) -> None:
        self.path = run_path / NAME
        temporary = run_path / f".{NAME}.{os.getpid()}"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(descriptor, 0o644)
            os.write(descriptor, _WORDS.pack(FORMAT, boottime_ns(), boottime_ns() | 1, 0, 0))
            self._words = memoryview(mmap.mmap(descriptor, _WORDS.size)).cast("Q")
        finally:
            os.close(descriptor)
        temporary.rename(self.path)

    def beat(self) -> None:
        """To be called every HEARTBEAT seconds."""
        self._words[_BEAT] = boottime_ns()

    @property
    def generation(self) -> int:
        """The mount generation."""
        return self._words[_GENERATION]

    @property
    def deadline(self) -> int:
        """The lease deadline, as the lease process has written it."""
        return self._words[_DEADLINE]

    @property
    def lease_beat(self) -> int:
        """The lease heartbeat: when a lease process of this node has last shown that it lives; 0 before the first."""
        return self._words[_LEASE_BEAT]

    @property
    def lease_silence(self) -> float:
        """Seconds since the lease process has last shown that it lives."""
        return (boottime_ns() - self.lease_beat) / 1e9

    def mount_is_up(self) -> None:
        """LiteFS serves a new mount."""
        self._words[_GENERATION] += self._words[_GENERATION] & 1
        self.beat()

    def mount_is_down(self) -> None:
        """LiteFS has ended, or is about to: connections let go of it before their next statement."""
        self._words[_GENERATION] |= 1
        self.beat()

    def close(self) -> None:
        """Leaves LiteFS marked as down for those who still map the file, and takes it away."""
        self.mount_is_down()
        self.path.unlink(missing_ok=True)


class LeaseWords:
    """The lease process's side. Raises OSError when there is no node file."""

    def __init__(self, run_path: Path) -> None:
        with (run_path / NAME).open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), _WORDS.size)).cast("Q")

    def set_deadline(self, deadline: float) -> None:
        """In seconds of CLOCK_BOOTTIME."""
        self._words[_DEADLINE] = int(deadline * 1e9)

    def beat(self) -> None:
        """To be called every LEASE_HEARTBEAT seconds."""
        self._words[_LEASE_BEAT] = boottime_ns()


class NodeFile:
    """A reader; one serves a whole process and its forks. Thread-safe."""

    def __init__(self, run_path: Path) -> None:
        self.path = run_path / NAME
        self._words: memoryview | None = None
        self._next_open_ns = 0

    def generation(self) -> int | None:
        """The mount generation; None when no living supervisor says."""
        now = boottime_ns()
        words = self._words
        if words is not None and now - words[_BEAT] < STALE_NS:
            return words[_GENERATION]
        if now < self._next_open_ns:
            return None
        self._next_open_ns = now + STALE_NS
        self._words = words = self._open()
        if words is not None and now - words[_BEAT] < STALE_NS:
            return words[_GENERATION]
        return None

    def is_leased(self) -> bool:
        """Whether the lease of this node's LiteFS has not come to its end; False when nobody says."""
        words = self._words
        if words is not None and boottime_ns() < words[_DEADLINE]:
            return True
        # It may be that of a supervisor that has ended.
        return self.generation() is not None and self._words is not None and boottime_ns() < self._words[_DEADLINE]

    def _open(self) -> memoryview | None:
        try:
            with self.path.open("rb") as file:
                words = memoryview(mmap.mmap(file.fileno(), _WORDS.size, prot=mmap.PROT_READ)).cast("Q")
        except (OSError, ValueError):
            return None
        return words if words[_FORMAT] == FORMAT else None
