"""What the mount tells of this node: role, primary, lag, position. Read from LiteFS each time, never kept.

Sources: LiteFS v0.5.14, fuse/primary_node.go, fuse/lag_node.go, fuse/pos_node.go, fuse/database_node.go.
Reading blocks for as long as LiteFS does (it answers within microseconds unless it is stopped).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from litefs_django._litefs.errors import MountError

# Bytes: more than any of these files has.
_LONGEST = 4096

WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """How far a database has come on one node: TXID, and the checksum of all pages after it."""

    txid: int
    checksum: str

    @classmethod
    def parse(cls, text: str) -> Position:
        """From LiteFS's '%016x/%016x'. Raises ValueError."""
        txid, _, checksum = text.strip().partition("/")
        if len(txid) != 16 or len(checksum) != 16:
            raise ValueError(f"{text!r} is not a LiteFS position")
        return cls(int(txid, 16), checksum)

    def __str__(self) -> str:
        return f"{self.txid:016x}/{self.checksum}"


class PrimaryDetector:
    """This node's role, lag and positions, from the special files of its mount."""

    def __init__(self, mount_path: Path) -> None:
        self.mount_path = mount_path

    def device(self) -> int | None:
        """The mount's st_dev when LiteFS serves there; None when MOUNT_PATH is anything else.

        The kernel's list of mounts says so: a directory left unmounted, or another file system, is
        never taken for LiteFS's.
        """
        try:
            device = os.stat(self.mount_path).st_dev
        except OSError:
            return None
        return device if device in litefs_devices() else None

    def is_primary(self, database: str) -> bool:
        """Whether this node may write to the database now. Raises MountError when LiteFS does not answer.

        The mode bits say it once the database exists (LiteFS reports 0666 on the primary, 0444 elsewhere);
        until then a node is primary when it names no other and does not lag.
        """
        try:
            return bool(os.stat(self.mount_path / database).st_mode & WRITABLE)
        except FileNotFoundError:
            return self.primary_name() is None and self.lag() == 0.0
        except OSError as error:
            raise self._unreadable(error) from error

    def primary_name(self) -> str | None:
        """The node that this one follows; None on the primary, and when there is none.

        LiteFS names it as soon as it tries to connect, so a dead primary may be named.
        """
        try:
            return self._read(".primary").strip() or None
        except FileNotFoundError:
            return None

    def lag(self) -> float | None:
        """Seconds since this replica was last up to date; 0.0 on the primary, None when it never was.

        It compares the clocks of two machines.
        """
        try:
            milliseconds = int(self._read(".lag"))
        except FileNotFoundError:
            raise MountError(f"{self.mount_path} is not a LiteFS mount: it has no file '.lag'.") from None
        return None if milliseconds == 2147483647 else milliseconds / 1000

    def position(self, database: str) -> Position | None:
        """How far the database has come here; None when it has not arrived."""
        try:
            return Position.parse(self._read(f"{database}-pos"))
        except FileNotFoundError:
            return None

    def _read(self, name: str) -> str:
        # Python's open() and read() ask LiteFS more than that, and take twice as long: 0.6 and not 0.3 ms.
        try:
            descriptor = os.open(self.mount_path / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(descriptor, _LONGEST).decode()
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> MountError:
        return MountError(f"LiteFS does not answer on {self.mount_path}: {error.strerror}.")


def litefs_devices() -> set[int]:
    """The st_dev of every LiteFS mount that this process sees (proc_pid_mountinfo(5))."""
    devices: set[int] = set()
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            if after.split(" ")[:2] == ["fuse", "litefs"]:
                major, minor = before.split(" ")[2].split(":")
                devices.add(os.makedev(int(major), int(minor)))
    return devices
