"""The node file: what the supervisor tells this machine's connections, for the price of a few loads.

A small file in RUN_PATH that the supervisor alone writes and every connection maps. It is never
truncated nor rewritten in place (a reader would die of SIGBUS): a new supervisor renames a new one
over it. All words are native, aligned and 64 bits wide, so each load and store is whole:

    0  format and size     FORMAT, so that a reader of another release refuses it
    1  heartbeat           CLOCK_BOOTTIME in ns, written every HEARTBEAT seconds
    2  mount generation    grows with each mount of LiteFS; odd while LiteFS is down

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
FORMAT = 0x4C46_444A_0001_0018  # "LFDJ", version 1, 24 bytes
HEARTBEAT = 0.25
STALE_NS = 1_000_000_000

_WORDS = struct.Struct("=3Q")
_FORMAT, _BEAT, _GENERATION = range(3)


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
            os.write(descriptor, _WORDS.pack(FORMAT, boottime_ns(), boottime_ns() | 1))
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

    def _open(self) -> memoryview | None:
        try:
            with self.path.open("rb") as file:
                words = memoryview(mmap.mmap(file.fileno(), _WORDS.size, prot=mmap.PROT_READ)).cast("Q")
        except (OSError, ValueError):
            return None
        return words if words[_FORMAT] == FORMAT else None
