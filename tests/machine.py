"""What this machine can do for the tests, and what they have left behind on it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import psutil

from litefs_django._litefs import binary
from litefs_django._litefs.errors import BinaryError

T = TypeVar("T")

# Every process that a test starts inherits it, however far it detaches itself.
SESSION_VARIABLE = "LITEFS_TEST_SESSION"

_MS_NOSUID_NODEV = 2 | 4
_MNT_DETACH = 2


@cache
def fuse_problem() -> str | None:
    """Why FUSE cannot be mounted here; None when it can. As root it is tried."""
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}"
    try:
        if os.geteuid():
            return None if shutil.which("fusermount3") else "fusermount3 is not installed"
        return _mount_problem(descriptor)
    finally:
        os.close(descriptor)


def _mount_problem(descriptor: int) -> str | None:
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory() as directory:
        path = os.fsencode(directory)
        options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"litefs-test", path, b"fuse", _MS_NOSUID_NODEV, options):
            return f"FUSE cannot be mounted: {os.strerror(ctypes.get_errno())}"
        libc.umount2(path, _MNT_DETACH)
    return None


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A disk of 8 MB at this path, which is made. Only root may mount it."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill_disk(path: Path, left: int = 0) -> Path:
    """Leaves that many bytes free on the disk of this directory. Returns the file that fills it."""
    filler = path / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(path).free - left)
    return filler


def mount_points() -> list[str]:
    """Where something is mounted, the dead mounts of killed processes too (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return [line.split(" ")[4] for line in mounts]


def leftover_processes() -> Iterator[psutil.Process]:
    """The living processes that this one, or anything that it started, has started."""
    session = os.environ[SESSION_VARIABLE]
    children = set(psutil.Process().children(recursive=True))
    for process in psutil.process_iter():
        try:
            ours = process in children or process.environ().get(SESSION_VARIABLE) == session
            if process.pid == os.getpid() or not ours or process.status() == psutil.STATUS_ZOMBIE:
                continue
            # Python ends it with the session.
            if "multiprocessing.resource_tracker" not in " ".join(process.cmdline()):
                yield process
        except psutil.Error:
            continue


def built_once(name: str, build: Callable[[Path], object]) -> Path:
    """The file `name` of a cache that outlives the session; `build` makes it at the path that it is given."""
    cache_directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "litefs-django-tests"
    cache_directory.mkdir(parents=True, exist_ok=True)
    target = cache_directory / name
    with (cache_directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=cache_directory) as directory:
                built = Path(directory) / name
                build(built)
                built.rename(target)
    return target


def litefs() -> Path:
    """A verified LiteFS: the one that the package finds here, else built into a cache that outlives the session."""
    try:
        found = binary.find(None)
        binary.verify(found)
    except BinaryError:
        found = built_once(f"litefs-{binary.VERSION}", binary.build)
        binary.verify(found)
    return found


def free_ports(count: int) -> list[int]:
    """Loopback TCP ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


def wait_until(
    condition: Callable[[], T],
    what: str | Callable[[], str],
    *,
    timeout: float = 30.0,
    context: Callable[[], str] = lambda: "",
) -> T:
    """Polls `condition` and returns its first true value.

    Fails after `timeout` seconds with `what` and `context`, both made then.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            said = what() if callable(what) else what
            raise AssertionError(f"Not within {timeout:g} s: {said}\n{context()}")
        time.sleep(0.01)
    return value
