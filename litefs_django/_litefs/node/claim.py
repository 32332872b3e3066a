"""Takes a node's directories for this supervisor, before anything is written or mounted."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import threading
import time
from pathlib import Path

from litefs_django._litefs.errors import SupervisorError
from litefs_django._litefs.node.mounts import is_mounted, unmount_command

PRIVATE = 0o700
_DYING_TIMEOUT = 2.0  # seconds; a LiteFS that was killed a moment ago may still be ending


def claim(setting: str, path: Path, mode: int = 0o755) -> int:
    """Makes the directory where there is none, and locks it. Returns the descriptor that holds the lock.

    Raises SupervisorError when another supervisor has it, or when it cannot be used.
    """
    where = f'LITEFS["{setting}"]: {str(path)!r}'
    try:
        _make(path, mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SupervisorError(
            f"{where} cannot be used ({error}). Give a directory that this user may write to."
        ) from error
    try:
        if not os.access(path, os.W_OK | os.X_OK):
            raise SupervisorError(f"{where} cannot be written to. Give a directory that this user may write to.")
        if setting != "MOUNT_PATH":
            _check_owner(where, descriptor)
        if setting == "DATA_PATH":
            _check_is_litefs_own(where, os.listdir(descriptor))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SupervisorError(
            f"{where} is in use by another litefs_run. Stop that one first, or give this one paths of its own."
        ) from None
    except SupervisorError:
        os.close(descriptor)
        raise
    if mode == PRIVATE:
        # A volume comes as anybody's to read, and LiteFS leaves its files so.
        os.fchmod(descriptor, PRIVATE)
    return descriptor


def _check_owner(where: str, descriptor: int) -> None:
    """What root runs and reads there must not be another user's to replace."""
    status = os.fstat(descriptor)
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise SupervisorError(
            f"{where} belongs to user {status.st_uid} or others may write to it (mode {status.st_mode & 0o7777:o}). "
            "Give a directory that only this user may write to."
        )


def _check_is_litefs_own(where: str, found: list[str]) -> None:
    """Nobody else may enter it from now on: not what a mistyped path names, /var/lib or the project itself."""
    # LiteFS v0.5.14, store.go; litefs_import's; what a disk of its own has.
    ours = {"clusterid", "replaced", "raft", "diverged", "lost+found"}
    if "dbs" not in found and (others := sorted({*found} - ours)):
        raise SupervisorError(
            f"{where} holds files that are not LiteFS's ({', '.join(others[:5])}). Give a directory for LiteFS alone."
        )


def claim_mount_path(path: Path, search_path: str) -> int:
    """As `claim`, for the directory to mount on: takes away what a dead LiteFS left mounted, and wants it empty.

    `search_path` is the PATH that fusermount3 is looked for on.
    """
    where = f'LITEFS["MOUNT_PATH"]: {str(path)!r}'
    deadline = time.monotonic() + _DYING_TIMEOUT
    while is_mounted(path):
        if _is_served(path):
            if time.monotonic() > deadline:
                raise SupervisorError(
                    f"{where} is mounted by a LiteFS that runs, but not under this litefs_run. Stop it first."
                )
            time.sleep(0.05)
        else:
            _unmount(where, path, search_path)
    if path.is_symlink():
        raise SupervisorError(f"{where} is a symbolic link. Give the directory itself.")
    descriptor = claim("MOUNT_PATH", path)
    if found := sorted(os.listdir(path)):
        os.close(descriptor)
        raise SupervisorError(
            f"{where} is not empty ({', '.join(found[:5])}). LiteFS would hide what lies there: move it away, or "
            'give another path. A database is brought in by "manage.py litefs_import".'
        )
    return descriptor


def _make(path: Path, mode: int) -> None:
    # An application that runs as another user must come through, whatever the umask is.
    umask = os.umask(0o022)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode, exist_ok=True)
    finally:
        os.umask(umask)


def _is_served(path: Path) -> bool:
    """Whether a process stands behind the mount: it answers, or it hangs. A dead one's says ENOTCONN at once."""
    is_dead = threading.Event()

    def ask() -> None:
        try:
            # Not the root: the kernel answers for that from its cache.
            os.stat(path / ".lag")
        except OSError as error:
            # EACCES comes from a living one that is not for us.
            if error.errno == errno.ENOTCONN:
                is_dead.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(0.5)
    return not is_dead.is_set()


def _unmount(where: str, path: Path, search_path: str) -> None:
    result = subprocess.run(
        unmount_command(path),
        env=os.environ | {"PATH": search_path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode and is_mounted(path):
        raise SupervisorError(
            f"{where} is the mount of a LiteFS that is gone, and cannot be unmounted: {result.stderr.strip()}."
        )
