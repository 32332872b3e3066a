"""How `manage.py litefs_run` ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from litefs_django._litefs.write_turn import FileLock, gate_path
from tests.cluster.run.applications import IDLE, WRITERS, WRITTEN, python
from tests.cluster.run.conftest import StartNodes
from tests.cluster.run.nodes import SupervisedNode
from tests.machine import free_ports

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 128 + signal.SIGTERM),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
)
def test_application_that_ends_by_itself(node: SupervisedNode, code: str, expected: int) -> None:
    node.start(application=python(code))
    assert node.wait() == expected
    node.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_exit_code_is_the_applications(node: SupervisedNode, number: signal.Signals) -> None:
    node.start_and_wait(application=python(IDLE, "7"))
    assert node.stop(number=number) == 7
    assert node.found("app | got SIGTERM")
    assert node.found("litefs_run | LiteFS has ended: exit code 0")
    node.assert_nothing_left()


def test_application_without_a_handler_ends_well(node: SupervisedNode) -> None:
    node.start(application=["sleep", "1000"])
    node.wait_for_line("the application runs, this node is the primary")
    assert node.stop() == 0


def test_application_that_does_not_end(node: SupervisedNode) -> None:
    """It and what it started are killed, soon enough for docker stop."""
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {deaf!r}])\n{deaf}"
    node.start_and_wait(application=python(code))
    node.wait_for_line("app | deaf", count=2)
    node.children()
    started = time.monotonic()
    assert node.stop() == 128 + signal.SIGKILL
    assert 4.5 < time.monotonic() - started < 8
    assert node.found("LiteFS has ended: exit code 0")
    node.assert_nothing_left()


@pytest.mark.parametrize(
    "server",
    [
        ["uvicorn", "--port", "PORT", "--app-dir", "."],
        ["gunicorn", "--no-control-socket", "--bind", "127.0.0.1:PORT", "--chdir", "."],
    ],
)
def test_servers_end_with_0(node: SupervisedNode, server: list[str]) -> None:
    node.directory.mkdir()
    (node.directory / "page.py").write_text("async def app(scope, receive, send): pass")
    port, directory = str(free_ports(1)[0]), str(node.directory)
    arguments = [directory if part == "." else part.replace("PORT", port) for part in server]
    node.start_and_wait(application=[sys.executable, "-m", *arguments, "page:app"])
    node.wait_for_line("process" if server[0] == "uvicorn" else "Booting worker")
    assert node.stop() == 0
    node.assert_nothing_left()


def test_clean_restart_under_writers(node: SupervisedNode) -> None:
    """LiteFS never exits 99 or 1, and every acknowledged row is there afterwards."""
    acknowledged: set[str] = set()
    node.start("--migrate", application=["true"])
    assert node.wait() == 0
    for _ in range(5):
        node.start(application=python(WRITERS, "8"))
        node.wait_for_line("app | wrote", count=50)
        started = time.monotonic()
        assert node.stop() == 0, node.output()
        assert time.monotonic() - started < 8
        assert len(node.found("LiteFS has ended: exit code 0")) == 1, node.output()
        assert not node.found("app | failed")
        acknowledged |= {line.split()[-1] for line in node.found("app | wrote")}
        node.assert_nothing_left()
    node.start(application=python(WRITTEN))
    assert node.wait() == 0
    assert acknowledged <= {line.split()[-1] for line in node.found("app | has")}


def test_other_processes_on_the_mount(node: SupervisedNode) -> None:
    """Their commits are held off; they lose the mount, but nothing that was acknowledged, and none is left in doubt."""
    node.start_and_wait("--migrate")
    writers = node.popen(python(WRITERS, "4", "1000000"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with writers:
        assert writers.stdout is not None
        lines = [writers.stdout.readline() for _ in range(20)]
        code = node.stop()
        os.killpg(writers.pid, signal.SIGKILL)
        lines += writers.stdout.readlines()
    assert code == 0
    assert node.found("LiteFS has ended: exit code 1")
    assert node.found("another process has files open")
    node.assert_nothing_left()
    node.start(application=python(WRITTEN))
    assert node.wait() == 0
    found = {line.split()[-1] for line in node.found("app | has")}
    assert {line.split()[-1] for line in lines if line.startswith("wrote")} <= found
    assert not [line for line in lines if "CommitOutcomeUnknown" in line]


def test_commit_that_does_not_end(start_nodes: StartNodes) -> None:
    """Nobody waits for it longer than docker stop would, nor for a node that does not answer."""
    node, _ = start_nodes(2)
    node.start_and_wait("--migrate")
    gate = FileLock(gate_path(node.run_path, "db.sqlite3"))
    assert gate.acquire(5)
    started = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - started < 3
    gate.close()
    assert node.found("litefs_run | a commit does not end: db.sqlite3")
    assert node.found("litefs_run | no other node is known to have all transactions of this one")
    assert node.found("LiteFS has ended: exit code 0")
    node.assert_nothing_left()
