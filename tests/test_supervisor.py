"""The supervisor's parts that need no LiteFS; the whole of it is tested in tests/cluster/run."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from litefs_django._litefs.errors import SupervisorError
from litefs_django._litefs.identity import Identity
from litefs_django._litefs.node import mounts
from litefs_django._litefs.node.children import Backoff, Child, Children
from litefs_django._litefs.node.claim import PRIVATE, claim, claim_mount_path
from litefs_django._litefs.node.description import LeaseService, NodeDescription
from litefs_django._litefs.node.mounts import is_mounted
from litefs_django._litefs.node.output import Output
from litefs_django._litefs.node.primary_command import PrimaryCommand
from litefs_django._litefs.node.waiting import counted
from tests.machine import wait_until

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


def test_supervisor_imports_neither_django_nor_yaml() -> None:
    code = "import sys, litefs_django._litefs.node.supervisor; print(sorted({m.split('.')[0] for m in sys.modules}))"
    # What measures coverage imports all kinds of things itself.
    bare = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=bare).stdout
    assert "'litefs_django'" in modules
    assert not re.search("'(django|yaml|asyncio|multiprocessing)'", modules)


LEASE = LeaseService(command=("python", "-m", "lease"), listener=6, port=4321, token="t0ken", ttl=3.0)
IDENTITY = Identity(name="web1", shown="a key and a certificate", accepted="an authority")


@pytest.mark.parametrize(("identity", "lease"), [(None, None), (IDENTITY, LEASE)])
def test_description_round_trip(identity: Identity | None, lease: LeaseService | None, tmp_path: Path) -> None:
    node = NodeDescription(
        mount_path=Path("/litefs"),
        run_path=tmp_path,
        databases=("db.sqlite3", "ünïcode"),
        name="web1",
        primary="web1",
        urls={"web1": "http://10.0.0.1:20202", "web2": "http://10.0.0.2:20202"},
        identity=identity,
        lease=lease,
        litefs=("/bin/litefs", "mount"),
        search_path="/bin:/usr/bin",
        application=("server", "", "$A 'b' \n"),
        on_primary=(("worker",), ("other", "-v")),
        migrate=("manage.py", "litefs_migrate"),
        claims=(3, 4, 5),
    )
    node.write(tmp_path / "node.json")
    assert NodeDescription.read(tmp_path / "node.json") == node
    assert (tmp_path / "node.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["node.json"]


def test_how_long_it_waits_is_said_at_first_and_then_seldom() -> None:
    said = [counted(tenths / 10) for tenths in range(350)]
    assert list(dict.fromkeys(said)) == [f"({second} s)" for second in (0, 1, 2, 3, 4, 5, 10, 20, 30)]


class TestMounts:
    LINE = b"46 27 0:43 / %s rw,nosuid,nodev,relatime shared:1 - fuse %s rw,user_id=0\n"

    @pytest.fixture
    def mountinfo(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """What the kernel says; it stands in only for mounts that a test should not make."""
        path = tmp_path / "mountinfo"
        monkeypatch.setattr(mounts, "MOUNTINFO", str(path))
        return path

    def test_exactly_that_path(self, mountinfo: Path) -> None:
        mountinfo.write_bytes(self.LINE % (b"/srv/litefs", b"litefs"))
        assert is_mounted(Path("/srv/litefs"))
        assert not is_mounted(Path("/srv"))
        assert not is_mounted(Path("/srv/litefs2"))

    def test_other_file_systems(self, mountinfo: Path) -> None:
        mountinfo.write_bytes(self.LINE % (b"/srv/litefs", b"sshfs") + b"21 1 8:1 / / rw - ext4 /dev/sda litefs\n")
        assert not is_mounted(Path("/srv/litefs"))
        assert not is_mounted(Path("/"))

    def test_escaped_names(self, mountinfo: Path) -> None:
        mountinfo.write_bytes(self.LINE % (rb"/a\040b\134c\303\274", b"litefs"))
        assert is_mounted(Path("/a b\\cü"))


class TestClaim:
    def test_makes_and_holds_the_directory(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b"
        umask = os.umask(0o077)
        try:
            descriptor = claim("RUN_PATH", path)
        finally:
            os.umask(umask)
        assert path.stat().st_mode & 0o777 == 0o755
        assert path.parent.stat().st_mode & 0o777 == 0o755
        with pytest.raises(SupervisorError, match=r'LITEFS\["DATA_PATH"\]: .* in use by another litefs_run'):
            claim("DATA_PATH", path)
        os.close(descriptor)
        descriptor = claim("RUN_PATH", path)
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)

    def test_not_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(SupervisorError, match=r'LITEFS\["RUN_PATH"\].*cannot be used'):
            claim("RUN_PATH", tmp_path / "file")
        with pytest.raises(SupervisorError, match=r'LITEFS\["RUN_PATH"\].*cannot be used'):
            claim("RUN_PATH", tmp_path / "file" / "run")

    def test_data_path_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "manage.py").touch()
        mode = tmp_path.stat().st_mode
        with pytest.raises(SupervisorError, match=r'LITEFS\["DATA_PATH"\].*not LiteFS\'s \(manage.py\)'):
            claim("DATA_PATH", tmp_path, PRIVATE)
        assert tmp_path.stat().st_mode == mode

    @pytest.mark.parametrize("names", [[], ["lost+found"], ["clusterid"], ["clusterid", "dbs", "notes"]])
    def test_data_path_of_litefs(self, tmp_path: Path, names: list[str]) -> None:
        for name in names:
            (tmp_path / name).mkdir()
        os.close(claim("DATA_PATH", tmp_path, PRIVATE))
        assert tmp_path.stat().st_mode & 0o777 == PRIVATE

    def test_mount_path_that_is_not_empty_is_let_go(self, tmp_path: Path) -> None:
        (tmp_path / "db.sqlite3").touch()
        with pytest.raises(SupervisorError, match=r"is not empty \(db.sqlite3\)"):
            claim_mount_path(tmp_path, os.defpath)
        os.close(claim("MOUNT_PATH", tmp_path))


@pytest.fixture
def printed() -> Iterator[tuple[Output, Callable[[], str]]]:
    """An Output whose stdout and stderr is one pipe, and what came out of it."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    text = b""

    def read() -> str:
        nonlocal text
        while select.select([reader], [], [], 0)[0] and (data := os.read(reader, 65536)):
            text += data
        return text.decode()

    output = Output(stdout=writer, stderr=writer)
    yield output, read
    output.close(5)
    os.close(writer)
    os.close(reader)


Printed = tuple[Output, Callable[[], str]]


class TestOutput:
    def test_lines_are_marked(self, printed: Printed) -> None:
        output, read = printed
        source = output.open("app", is_error=False)
        for part in (b"one\ntw", b"o\n", b"\n", b"no end"):
            os.write(source, part)
        os.close(source)
        wait_until(lambda: "no end" in read(), "all is written")
        assert read() == "app | one\napp | two\napp | \napp | no end\n"

    def test_own_lines_never_block(self) -> None:
        reader, writer = os.pipe()
        output = Output(stdout=writer, stderr=writer)
        for _ in range(2000):
            output.say("y" * 1000)
        assert os.read(reader, 100).startswith(b"litefs_run | yyy")
        os.close(reader)
        output.close(5)
        os.close(writer)


@pytest.fixture
def children(printed: Printed) -> Iterator[Children]:
    """Children of the test's own process: it is not PID 1, and has no others that it waits for here."""
    children = Children(printed[0])
    yield children
    for child in list(children._running.values()):
        child.send(signal.SIGKILL)
        reap(children, child)


def reap(children: Children, child: Child) -> int:
    wait_until(lambda: children.reap() or not child.is_running, "it has ended")
    assert child.returncode is not None
    return child.returncode


def ending(children: Children, child: Child) -> bool:
    """A turn of the supervisor's loop while it ends a child; whether nothing is left of it."""
    child.end(grace=0.2)
    children.reap()
    return child.is_gone


def start(children: Children, code: str, **options: Any) -> Child:
    return children.start("app", [sys.executable, "-c", code], on_our_death=signal.SIGTERM, **options)


class TestChildren:
    def test_exit_codes_and_output(self, children: Children, printed: Printed) -> None:
        child = start(children, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
        assert child.is_running
        assert reap(children, child) == 3
        assert child.how_it_ended == "exit code 3"
        assert child.is_gone
        child.send(signal.SIGKILL)
        wait_until(lambda: "app | out" in printed[1]() and "app | err" in printed[1](), "both lines")

    def test_line_without_end_is_passed_on_in_pieces(self, children: Children, printed: Printed) -> None:
        child = start(children, "import sys; sys.stdout.write('x' * 300_000)")
        wait_until(lambda: printed[1]().count("x") == 300_000, "all of it")
        assert reap(children, child) == 0
        lines = printed[1]().splitlines()
        assert len(lines) > 1
        assert {line[:7] for line in lines} == {"app | x"}

    def test_killed(self, children: Children) -> None:
        child = start(children, "import time; time.sleep(60)")
        child.send(signal.SIGKILL)
        assert reap(children, child) == -signal.SIGKILL
        assert child.how_it_ended == "SIGKILL"

    def test_cannot_be_executed(self, children: Children, printed: Printed, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            children.start("app", [str(tmp_path / "missing")], on_our_death=signal.SIGTERM)
        assert children.reap() == []

    def test_search_path_and_environment(self, children: Children, tmp_path: Path) -> None:
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\ntest $PATH = {tmp_path} && test $ADDED = yes\n")
        program.chmod(0o755)
        os.environ["ADDED"] = "yes"
        try:
            child = children.start("app", ["program"], on_our_death=signal.SIGTERM, search_path=str(tmp_path))
        finally:
            del os.environ["ADDED"]
        assert reap(children, child) == 0

    def test_ends_by_sigterm(self, children: Children) -> None:
        child = start(children, "import time; time.sleep(60)")
        child.end(grace=60)
        assert child.is_ending
        assert reap(children, child) == -signal.SIGTERM
        assert child.is_gone

    def test_is_killed_when_it_does_not_end(self, children: Children, printed: Printed) -> None:
        child = start(children, DEAF)
        wait_until(lambda: "deaf" in printed[1](), "it ignores SIGTERM")
        wait_until(lambda: ending(children, child), "it is killed")
        assert child.returncode == -signal.SIGKILL

    def test_what_it_leaves_behind_is_ended(self, children: Children, printed: Printed) -> None:
        child = start(children, f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {DEAF!r}])")
        assert reap(children, child) == 0
        wait_until(lambda: "deaf" in printed[1](), "the grandchild runs")
        assert not child.is_gone
        wait_until(lambda: ending(children, child), "the grandchild is killed")

    def test_ends_with_its_parent(self) -> None:
        code = """
import os, signal, time
from litefs_django._litefs.node.children import Children
from litefs_django._litefs.node.output import Output
child = Children(Output()).start("app", ["sleep", "1000"], on_our_death=signal.SIGKILL)
print(child.pid, flush=True)
time.sleep(1000)
"""
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            parent.kill()
        wait_until(lambda: not Path(f"/proc/{pid}").exists() or "State:\tZ" in status(pid), "it has ended")


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "State:\tZ"


def test_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    backoff = Backoff()
    assert backoff.is_over
    pauses = []
    for _ in range(8):
        backoff.ended(started=now[0])
        ended = now[0]
        while not backoff.is_over:
            now[0] += 0.25
        pauses.append(now[0] - ended)
    assert pauses == [0, 0.25, 0.5, 1, 2, 4, 5, 5]
    now[0] += 60
    backoff.ended(started=now[0] - 60)
    assert backoff.is_over
    backoff.ended(started=now[0])
    assert not backoff.is_over


def test_primary_command_that_cannot_be_started(children: Children) -> None:
    said: list[str] = []
    command = PrimaryCommand("primary-1", ("/nonexistent/worker",), children, said.append)
    command.keep(is_primary=False)
    assert said == []
    for _ in range(10):
        command.keep(is_primary=True)
    # At once, and then after a pause.
    assert 1 < len(said) < 10
    assert "cannot be started" in said[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not kill the command")
def test_primary_command_that_cannot_be_ended(children: Children) -> None:
    said: list[str] = []
    command = PrimaryCommand("primary-1", ("sleep", "60"), children, said.append)
    command.keep(is_primary=True)
    child = command.child
    assert child is not None

    def is_told() -> bool:
        command.keep(is_primary=False)
        return len(said) > 1

    os.setresuid(65534, 65534, 0)
    try:
        wait_until(is_told, "it is said")
        command.keep(is_primary=False)
        # It is not run twice.
        command.keep(is_primary=True)
    finally:
        os.setresuid(0, 0, 0)
    assert said[1:] == [f"primary-1 cannot be ended: process {child.pid} runs on, as another user or hanging"]
    assert command.child is child
    command.keep(is_primary=False)
    wait_until(children.reap, "it has ended")
    command.keep(is_primary=False)
    assert said[2:] == ["primary-1 has ended: SIGKILL"]
