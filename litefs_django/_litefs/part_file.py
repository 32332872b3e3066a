"""A file that is made beside its place and put there once it is whole: nobody ever sees a half of it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

# struct flock: a write lock of the first byte. SQLite locks bytes from 1 GiB on (its "pending byte").
_FIRST_BYTE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)


class PartFile:
    """An empty file `path` beside `target`, for its owner only; it goes with the block unless it was put in place.

    A killed process leaves it behind, and the next one takes it over. Entering the block raises OSError when it cannot
    be made, a living process has it, or another user or another name does.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f".{target.name}.litefs_part")
        self._descriptor = -1

    def __enter__(self) -> Self:
        while self._descriptor < 0:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                self._lock(descriptor)
                if not _is_at(descriptor, self.path):
                    # Whoever had it has put it in place meanwhile.
                    os.close(descriptor)
                    continue
                self._check_owner(os.fstat(descriptor))
                os.ftruncate(descriptor, 0)
            except BaseException:
                os.close(descriptor)
                raise
            self._descriptor = descriptor
        return self

    def _lock(self, descriptor: int) -> None:
        try:
            # This kind of lock outlives SQLite, which drops the process's others when it closes the file.
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FIRST_BYTE)
        except (BlockingIOError, PermissionError) as error:
            raise OSError(error.errno, "another process is making it just now", str(self.target)) from error

    def _check_owner(self, status: os.stat_result) -> None:
        """In a directory that others may write to, like /tmp, one may lie in wait for what is written."""
        if status.st_uid != os.geteuid() or status.st_nlink != 1:
            raise OSError(errno.EPERM, f"{self.path} is not a file of this user alone: remove it", str(self.target))

    def put(self, target: Path) -> None:
        """Writes it to the disk, gives it the name `target`, in the same directory, and replaces what had it."""
        os.fsync(self._descriptor)
        self.path.rename(target)
        sync(target.parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _is_at(self._descriptor, self.path):
            self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1


def write_whole(path: Path, text: str) -> None:
    """Puts a file there as one step, readable for its owner only. Raises OSError unless it is on the disk."""
    with PartFile(path) as part:
        part.path.write_text(text, "utf-8")
        part.put(path)


def sync(path: Path) -> None:
    """Has that file or directory on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False
