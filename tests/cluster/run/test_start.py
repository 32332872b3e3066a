"""How `manage.py litefs_run` starts, with a real LiteFS."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest

from tests.cluster.run.applications import python
from tests.cluster.run.nodes import MANAGE, ROOT, SupervisedNode
from tests.machine import free_ports, wait_until

pytestmark = pytest.mark.cluster


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_modes_and_marks(node: SupervisedNode) -> None:
    node.start_and_wait()
    assert mode(node.run_path) == 0o755
    assert mode(node.run_path / "litefs.yml") == 0o600
    assert mode(node.run_path / "node.json") == 0o600
    for name in ("node", "db.sqlite3.turn", "db.sqlite3.gate"):
        assert mode(node.run_path / name) == 0o644
    assert mode(node.data) == 0o700
    node.wait_for_line("litefs_run | the application runs, this node is the primary")
    assert node.found("litefs | ")
    assert node.found("app | application runs")
    assert all(line.split(" | ")[0] in ("litefs_run", "litefs", "app") for line in node.lines), node.output()
    assert node.is_up()


def test_umask_does_not_shut_out_other_users(node: SupervisedNode) -> None:
    node.start_and_wait(umask=0o077)
    assert mode(node.run_path) == 0o755
    assert mode(node.run_path / "db.sqlite3.turn") == 0o644
    assert mode(node.run_path / "litefs.yml") == 0o600


def test_is_small_and_knows_no_django(node: SupervisedNode) -> None:
    # What measures coverage is not small.
    node.environment = {name: value for name, value in node.environment.items() if not name.startswith("COVERAGE")}
    node.start_and_wait()
    process = psutil.Process(node.pid)
    assert process.cmdline()[1:4] == ["-P", "-m", "litefs_django._litefs.node"]
    assert process.memory_info().rss < 35_000_000
    assert not [mapped.path for mapped in process.memory_maps() if "_sqlite3" in mapped.path]


def test_package_beside_manage_py(node: SupervisedNode, tmp_path: Path) -> None:
    """The supervisor leaves manage.py's directory out of its path, and finds the package all the same."""
    project = tmp_path / "project"
    project.mkdir()
    for name in ("litefs_django", "tests"):
        (project / name).symlink_to(ROOT / name)
    shutil.copy(MANAGE, project)
    node.environment["PYTHONPATH"] = ""
    node.manage = project / "manage.py"
    node.start(application=["true"])
    assert node.wait() == 0, node.output()


def test_arguments_of_the_application_are_its_own(node: SupervisedNode) -> None:
    node.start(application=python("import sys; print(sys.argv[1:])", "-v", "3", "--migrate", "--", "-x", "--"))
    assert node.wait() == 0
    assert node.found("app | ['-v', '3', '--migrate', '--', '-x', '--']")


def answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    with closing(connection), suppress(OSError):
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    return False


def test_gunicorn_reloads_on_sighup(node: SupervisedNode) -> None:
    (port,) = free_ports(1)
    code = "def app(environ, start): start('200 OK', []); return [b'hello']"
    (node.directory).mkdir()
    (node.directory / "page.py").write_text(code)
    # No control socket: it would be a file in the home directory.
    gunicorn = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--chdir", str(node.directory)]
    gunicorn += ["-b", f"127.0.0.1:{port}"]
    node.start(application=[*gunicorn, "page:app"])
    node.wait_for_line("Booting worker")
    wait_until(lambda: answers(port), "gunicorn answers")
    os.kill(node.pid, signal.SIGHUP)
    node.wait_for_line("Booting worker", count=2)
    assert node.stop() == 0
    node.assert_nothing_left()


def test_a_terminal_that_is_closed_stops_everything(node: SupervisedNode) -> None:
    ours, theirs = os.openpty()
    node.directory.mkdir()
    # It becomes the controlling terminal of a new session, whose leader this is: closing it sends SIGHUP.
    code = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
    node.start(prefix=[sys.executable, "-c", code], stdin=theirs)
    os.close(theirs)
    node.wait_for_line("app | application runs")
    node.children()
    os.close(ours)
    assert node.wait() == 0
    node.assert_nothing_left()
