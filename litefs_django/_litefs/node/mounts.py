"""LiteFS mounts, dead ones included, by the kernel's list of them (proc_pid_mountinfo(5)). Nothing here blocks."""

from __future__ import annotations

import re
from pathlib import Path

MOUNTINFO = "/proc/self/mountinfo"


def is_mounted(path: Path) -> bool:
    """Whether a LiteFS, running or dead, is mounted on exactly this path, which must hold no symbolic link."""
    with open(MOUNTINFO, "rb") as mounts:
        return any(_litefs_mount_point(line) == str(path).encode("utf-8", "surrogateescape") for line in mounts)


def unmount_command(path: Path) -> tuple[str, ...]:
    """Takes the mount away although files on it are open: those who hold them see it end with LiteFS."""
    return ("fusermount3", "-u", "-z", "--", str(path))


def _litefs_mount_point(line: bytes) -> bytes | None:
    before, _, after = line.partition(b" - ")
    if after.split(b" ")[:2] != [b"fuse", b"litefs"]:
        return None
    escaped = before.split(b" ")[4]
    return re.sub(rb"\\(\d{3})", lambda match: bytes([int(match[1], 8)]), escaped)
