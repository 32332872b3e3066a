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
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Self, TypeVar

import psutil

from litefs_django._litefs import binary
from litefs_django._litefs.errors import BinaryError

T = TypeVar("T")

SECRET = "of the tests, and long enough to be one"

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


@cache
def _own_ports() -> Iterator[int]:
    """Ports in turn that are this process's alone among those that run tests, below those of outgoing connections."""
    for first in range(10_000, 30_000, 250):
        guard = socket.socket()
        try:
            guard.bind(("127.0.0.1", first))
        except OSError:
            guard.close()
            continue
        # It stays bound, and so the ports after it taken, for as long as this process lives.
        guard.detach()
        return cycle(range(first + 1, first + 250))
    raise RuntimeError("Too many processes run tests: each port that stands for a range of ports is taken")


def free_ports(count: int) -> list[int]:
    """Loopback TCP ports that nothing listens on, and that no test in another process is given."""
    ports = _own_ports()
    found: list[int] = []
    while len(found) < count:
        port = next(ports)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


@contextmanager
def deaf_url() -> Iterator[str]:
    """Where no packet is answered, as at a machine that is off.

    The kernel lets those who want to connect wait when a socket has as many as its backlog takes.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class CleanedUp:
    """As a context manager it starts, and cleans up behind itself, also when the start fails."""

    def __enter__(self) -> Self:
        with ExitStack() as failure:
            failure.callback(self.clean_up)
            self.start()
            failure.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.clean_up()

    def start(self) -> None:
        raise NotImplementedError

    def clean_up(self) -> None:
        raise NotImplementedError


def wait_until(
    condition: Callable[[], T],
    what: str | Callable[[], str],
    *,
    timeout: float = 100.0,
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
