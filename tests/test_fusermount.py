"""The stand-in for fusermount3 under the real LiteFS. The mount that is expected is what fusermount3 itself makes."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

import pytest
import yaml

from litefs_django._litefs import fusermount
from tests.machine import free_ports, mount_points, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(os.geteuid() != 0, reason="the helper is for root")]


class Start(Protocol):
    def __call__(self, *, allow_other: bool = True) -> subprocess.Popen[bytes]: ...


@pytest.fixture
def helper(tmp_path: Path) -> Path:
    fusermount.install_helper(tmp_path / "helper")
    return tmp_path / "helper" / "fusermount3"


@pytest.fixture
def mount(tmp_path: Path, helper: Path) -> Iterator[Path]:
    path = tmp_path / "mount"
    path.mkdir()
    yield path
    while str(path) in mount_points():
        assert run(helper, "-uz", path) == (0, "")


@pytest.fixture
def start(tmp_path: Path, mount: Path, helper: Path, litefs_binary: Path) -> Iterator[Start]:
    """Starts a primary whose PATH holds the helper alone, and waits until it serves."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*, allow_other: bool = True) -> subprocess.Popen[bytes]:
        address = f"127.0.0.1:{free_ports(1)[0]}"
        lease = {"type": "static", "hostname": "one", "advertise-url": f"http://{address}", "candidate": True}
        config = {
            "fuse": {"dir": str(mount), "allow-other": allow_other},
            "data": {"dir": str(tmp_path / "data")},
            "http": {"addr": address},
            "lease": lease,
        }
        (tmp_path / "litefs.yml").write_text(yaml.safe_dump(config))
        with (tmp_path / "log").open("wb") as log:
            litefs = subprocess.Popen(
                [litefs_binary, "mount", "-config", tmp_path / "litefs.yml"],
                env={**os.environ, "PATH": str(helper.parent)},
                stdout=log,
                stderr=log,
            )
        started.append(litefs)
        wait_until(
            lambda: "connected to cluster, ready" in (tmp_path / "log").read_text(),
            "LiteFS is ready",
            context=(tmp_path / "log").read_text,
        )
        return litefs

    yield start
    for litefs in started:
        litefs.kill()
        litefs.wait()


def run(helper: Path, *arguments: str | Path, receiver: int | None = None) -> tuple[int, str]:
    """The exit code and what is said on stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "_FUSE_COMMFD"}
    result = subprocess.run(
        [helper, *arguments],
        env=environment if receiver is None else {**environment, "_FUSE_COMMFD": str(receiver)},
        pass_fds=() if receiver is None else (receiver,),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return result.returncode, result.stderr


def mounted_as(mount: Path) -> str:
    """The options and the kind of the mount, as proc_pid_mountinfo(5) has them."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return next(line.partition(f" {mount} ")[2] for line in lines if f" {mount} " in line)


@pytest.mark.parametrize(("allow_other", "option"), [(True, ",allow_other"), (False, "")])
def test_litefs_mounts_serves_and_unmounts(start: Start, mount: Path, allow_other: bool, option: str) -> None:
    litefs = start(allow_other=allow_other)
    assert mounted_as(mount) == f"rw,nosuid,nodev,relatime - fuse litefs rw,user_id=0,group_id=0{option}"
    with closing(sqlite3.connect(mount / "db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(50)])
        assert connection.execute("SELECT count(*), sum(x) FROM t").fetchone() == (50, 1225)
    litefs.send_signal(signal.SIGTERM)
    assert litefs.wait(30) == 0
    assert str(mount) not in mount_points()


def test_stale_mount_of_a_killed_litefs(start: Start, mount: Path, helper: Path) -> None:
    litefs = start()
    with closing(sqlite3.connect(mount / "db")) as connection:
        connection.execute("CREATE TABLE t (x)")
        litefs.kill()
        litefs.wait()
        assert run(helper, "-u", mount) == (
            1,
            f"fusermount3: failed to unmount {mount}: Device or resource busy\n",
        )
        assert str(mount) in mount_points()
        assert run(helper, "-uz", mount) == (0, "")
        assert str(mount) not in mount_points()
    start().kill()
    # LiteFS itself unmounts what it finds.
    start()
    assert mount_points().count(str(mount)) == 1


def test_receiver_that_is_gone_leaves_no_mount(mount: Path, helper: Path) -> None:
    receiver, gone = socket.socketpair()
    with receiver:
        gone.close()
        code, said = run(helper, "-o", "fsname=litefs", "--", mount, receiver=receiver.fileno())
    assert (code, said) == (1, "fusermount3: [Errno 32] Broken pipe\n")
    assert str(mount) not in mount_points()


def test_what_cannot_be_done_is_said(mount: Path, helper: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    receiver, other = socket.socketpair()
    with receiver, other:
        code, said = run(helper, "-o", "fsname=litefs", "--", missing, receiver=receiver.fileno())
        # LiteFS looks for these words.
        assert said == f"fusermount3: failed to access mountpoint {missing}: No such file or directory\n"
        assert code == 1
        code, said = run(helper, "-o", "no_such_option", "--", mount, receiver=receiver.fileno())
        assert (code, said) == (1, f"fusermount3: failed to mount {mount}: Invalid argument\n")
    for arguments, reason in {
        ("-u", mount): f"failed to unmount {mount}: Invalid argument",
        ("-u",): "one directory is needed, not []",
        ("-x", mount): "option -x not recognized",
        ("-o", "fsname=litefs", "--", mount): "$_FUSE_COMMFD is not the number of a socket: this is for LiteFS to run",
    }.items():
        assert run(helper, *arguments) == (1, f"fusermount3: {reason}\n")


def test_helper_is_private_and_runs_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "it's a python"
    python.symlink_to(sys.executable)
    monkeypatch.setattr("sys.executable", str(python))
    directory = tmp_path / "private"
    for _ in range(2):
        fusermount.install_helper(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert run(directory / "fusermount3", "-u")[1] == "fusermount3: one directory is needed, not []\n"
