"""Whether a directory can be what the settings make of it, for the user who asks. Nothing is made or changed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

# Linux's limit on symbolic links in one path (path_resolution(7)).
_MAX_LINKS = 40


def directory_problem(path: Path, *, is_owned: bool, may_be_link: bool = True) -> str:
    """Why litefs_run of this user could not use the directory, or not make it where there is none; "" when it can.

    `is_owned`: nobody but this user and root may write to it. A file is tried there that has no name, so nothing is
    left behind however this ends.
    """
    if path.is_symlink() and not may_be_link:
        return "is a symbolic link, and has to be the directory itself"
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return _making_problem(path)
    except OSError as error:
        return f"cannot be reached ({error.strerror})"
    if not stat.S_ISDIR(status.st_mode):
        return "is not a directory"
    if reason := _writing_problem(path):
        return f"cannot be written to by {_user()} ({reason})"
    if is_owned and (status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022):
        mode = f"{status.st_mode & 0o7777:o}"
        return f"belongs to user {status.st_uid} or others may write to it (mode {mode}), and this is {_user()}"
    return ""


def overlap(path: Path, mount_path: Path) -> Path | None:
    """Where `path` really lies, when that is on `mount_path`, around it or the same; None when they are apart.

    Symbolic links are followed up to the mount and no further: a LiteFS that hangs is never asked.
    """
    mount = real_mount_path(mount_path)
    real = _followed(path, mount)
    return real if real.is_relative_to(mount) or mount.is_relative_to(real) else None


def real_mount_path(mount_path: Path) -> Path:
    """As the kernel lists it. The last part is left alone: it may be a dead mount, which nobody can resolve."""
    return mount_path.parent.resolve() / mount_path.name


def _making_problem(path: Path) -> str:
    if path.is_symlink():
        return f"is a symbolic link to {os.readlink(path)}, which does not exist"
    ancestor = next(parent for parent in path.parents if parent.is_symlink() or parent.exists())
    if not ancestor.is_dir():
        return f"cannot be made: {ancestor} is not a directory"
    if reason := _writing_problem(ancestor):
        return f"does not exist and cannot be made by {_user()} in {ancestor} ({reason})"
    return ""


def _writing_problem(directory: Path) -> str:
    """Why this user cannot make a file there; "" when it can."""
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        is_read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
        return os.strerror(errno.EROFS if is_read_only else errno.EACCES)
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        # Not every file system has such files.
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return str(error.strerror)
    return ""


def _followed(path: Path, stop: Path) -> Path:
    """The path without its symbolic links, those beyond `stop` left as they are."""
    current, left, links = Path("/"), list(path.parts[1:]), 0
    while left:
        current /= left.pop(0)
        if current == stop:
            return current.joinpath(*left)
        try:
            target = Path(os.readlink(current))
        except OSError:
            continue
        links += 1
        if links > _MAX_LINKS:
            break
        resolved = Path(os.path.normpath(current.parent / target))
        current, left = Path("/"), [*resolved.parts[1:], *left]
    return current.joinpath(*left)


def _user() -> str:
    return f"user {os.geteuid()}"
