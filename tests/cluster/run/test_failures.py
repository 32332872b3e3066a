"""What fails under `manage.py litefs_run`, and what it does about it."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from litefs_django._litefs.write_turn import FileLock, gate_path, turn_path
from tests.cluster.run.applications import IDLE, READER, WRITERS, WRITTEN, python
from tests.cluster.run.conftest import StartNodes
from tests.cluster.run.nodes import DATABASE, SupervisedNode, static_nodes
from tests.machine import free_ports, mount_points

pytestmark = pytest.mark.cluster


def test_litefs_killed_under_a_reader(node: SupervisedNode) -> None:
    """The application keeps running; its connection is another one, without a statement that hangs."""
    node.start_and_wait("--migrate", application=python(READER))
    node.wait_for_line("connected after")
    application = node.application_process()
    for count in (1, 2):
        generation = node.node_file.generation()
        node.litefs_process().kill()
        node.wait_for_line("LiteFS has ended: SIGKILL", count=count)
        node.wait_for_line("connected after", count=count + 1)
        assert node.is_up()
        assert node.node_file.generation() != generation
    assert application.is_running()
    # The one that was in flight may hang, once, for SQLite's 10 s.
    slow = [line for line in node.found("app | ") if float(re.search(r"after ([\d.]+) s", line)[1]) > 1]  # type: ignore[index]
    assert len(slow) <= 2, node.output()
    assert node.stop() == 0
    node.assert_nothing_left()


def test_who_hangs_on_a_killed_litefs_holds_up_nobody_on_the_next(node: SupervisedNode) -> None:
    """The test plays a writer that does, in a COMMIT; any user may write then, as before."""
    node.start_and_wait()
    paths = [turn_path(node.run_path, DATABASE), gate_path(node.run_path, DATABASE)]
    with ExitStack() as stack:
        for path in paths:
            assert stack.enter_context(closing(FileLock(path))).acquire(1)
        generation = node.node_file.generation()
        node.litefs_process().kill()
        node.wait_for(lambda: node.is_up() and node.node_file.generation() != generation, "LiteFS is back")
        for path in paths:
            assert stack.enter_context(closing(FileLock(path))).acquire(0)
            assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert not [each for each in node.run_path.iterdir() if each.name.startswith(".") and each.is_file()]
    assert node.stop() == 0
    node.assert_nothing_left()


def test_litefs_that_keeps_dying_is_restarted_ever_later(node: SupervisedNode) -> None:
    node.start_and_wait()
    restarts: list[float] = []
    for count in range(2, 6):
        killed = time.monotonic()
        node.litefs_process().kill()
        node.wait_for_line("litefs_run | LiteFS serves", count=count)
        restarts.append(time.monotonic() - killed)
    assert restarts[0] < 0.5 < restarts[3] < 3, restarts
    assert node.stop() == 0


def test_mount_taken_away_under_writers(node: SupervisedNode) -> None:
    """It is mounted again, no plain file is made meanwhile, and what was acknowledged is there."""
    node.start("--migrate", application=python(WRITERS, "4"))
    node.wait_for_line("app | wrote", count=20)
    generation = node.node_file.generation()
    subprocess.run(["fusermount3", "-uz", node.mount], check=True)
    node.wait_for_line("was unmounted by somebody")
    node.wait_for(lambda: node.is_up() and node.node_file.generation() != generation, "mounted again")
    node.wait_for_line("app | wrote", count=len(node.found("app | wrote")) + 20)
    assert node.stop() == 0
    assert not list(node.mount.iterdir())
    acknowledged = {line.split()[-1] for line in node.found("app | wrote")}
    node.start(application=python(WRITTEN))
    assert node.wait() == 0
    assert acknowledged <= {line.split()[-1] for line in node.found("app | has")}


def test_supervisor_killed(node: SupervisedNode) -> None:
    """Nothing is left running, and the next start takes the dead mount away."""
    node.start_and_wait("--on-primary", " ".join(["sleep", "1000"]))
    node.wait_for_line("primary-1 runs")
    processes = node.children()
    assert len(processes) == 3
    node.kill()
    node.wait_for(lambda: not any(process.is_running() for process in processes), "all have ended")
    assert str(node.mount) in mount_points()
    node.start_and_wait()
    assert node.is_up()
    assert node.stop() == 0
    node.assert_nothing_left()


def test_dead_mounts_one_over_the_other(node: SupervisedNode) -> None:
    node.start_and_wait()
    config = (node.run_path / "litefs.yml").read_text()
    config = config.replace(str(node.data), f"{node.data}2").replace(str(node.http_port), str(free_ports(1)[0]))
    (node.directory / "second.yml").write_text(config)
    with subprocess.Popen(
        [node.binary, "mount", "-config", node.directory / "second.yml", "-skip-unmount"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as litefs:
        node.wait_for(lambda: mount_points().count(str(node.mount)) == 2, "a second mount over the first")
        litefs.kill()
    node.kill()
    assert mount_points().count(str(node.mount)) == 2
    node.start_and_wait()
    assert node.stop() == 0
    node.assert_nothing_left()


def test_application_killed(node: SupervisedNode) -> None:
    """All ends with its exit code, what it left behind included."""
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {IDLE!r}]).wait()"
    node.start_and_wait(application=python(code))
    application = node.application_process()
    (worker,) = application.children()
    node.children()
    application.kill()
    assert node.wait() == 128 + signal.SIGKILL
    assert not worker.is_running()
    assert node.found("app | got SIGTERM")
    node.assert_nothing_left()


@pytest.mark.parametrize("who", ["supervisor", "application"])
def test_killed_under_writers(node: SupervisedNode, who: str) -> None:
    """What was acknowledged is there after each restart."""
    acknowledged: set[str] = set()
    node.start("--migrate", application=["true"])
    assert node.wait() == 0
    for _ in range(3):
        node.start_and_wait(application=python(WRITERS, "4"))
        node.wait_for_line("app | wrote", count=20)
        if who == "supervisor":
            processes = node.children()
            node.kill()
            node.wait_for(lambda before=processes: not any(each.is_running() for each in before), "all have ended")  # type: ignore[misc]
        else:
            node.application_process().kill()
            assert node.wait() == 128 + signal.SIGKILL
        acknowledged |= {line.split()[-1] for line in node.found("app | wrote")}
    node.start(application=python(WRITTEN))
    assert node.wait() == 0
    assert acknowledged <= {line.split()[-1] for line in node.found("app | has")}
    node.assert_nothing_left()


def test_sigbus(node: SupervisedNode) -> None:
    """The -shm file is mapped into memory: who reads it when LiteFS ends may die of SIGBUS."""
    worker = f"{sys.executable} -c 'import time; print(\"worker\", flush=True); time.sleep(1000)'"
    node.start_and_wait("--on-primary", worker)
    node.wait_for_line("primary-1 | worker")
    litefs = node.litefs_process().pid
    for process in node.children():
        if process.pid != litefs:
            process.send_signal(signal.SIGBUS)
    node.wait_for_line("the application has ended: SIGBUS")
    node.wait_for_line("app | application runs", count=2)
    node.wait_for_line("primary-1 | worker", count=2)
    assert node.stop() == 0


def test_replica_waits_for_its_primary(start_nodes: StartNodes) -> None:
    """It says for whom and why, each second, and SIGTERM ends it although LiteFS itself ignores it then."""
    primary, replica = start_nodes(2)
    replica.start()
    for second in range(1, 4):
        replica.wait_for_line(f"({second} s)")
    url = f"http://127.0.0.1:{replica.litefs['NODES']['node1']['HTTP_PORT']}/info"
    assert replica.found(f"litefs_run | waits for node1, the PRIMARY: {url} did not answer: Connection refused (3 s)")
    assert not replica.found("app |")
    litefs = replica.litefs_process()
    stopped = time.monotonic()
    assert replica.stop() == 0
    assert time.monotonic() - stopped < 2
    assert not litefs.is_running()
    replica.assert_nothing_left()
    replica.start()
    replica.wait_for_line("(1 s)")
    primary.start_and_wait()
    replica.wait_for_line("app | application runs")
    replica.wait_for_line("this node is a replica of node1")
    # LiteFS restarted without its primary is not synchronised, but serves what it has.
    primary.kill()
    replica.litefs_process().kill()
    replica.wait_for_line("litefs_run | LiteFS serves", count=2)
    assert replica.is_up()
    assert replica.stop() == 0
    assert primary.process is not None
    primary.clean_up()


def test_output_that_nobody_reads(node: SupervisedNode) -> None:
    """The node file's heart beats on, and LiteFS is restarted."""
    flood = "while True: print('x' * 1000)"
    node.environment["LITEFS_TEST_LITEFS"] = node.litefs_json()
    node.process = subprocess.Popen(
        node.command(application=python(flood)),
        cwd=node.directory.parent,
        env=node.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    node.wait_for(node.is_up, "LiteFS serves")
    generation = node.node_file.generation()
    node.wait_for(lambda: node.application_process().status() == psutil.STATUS_SLEEPING, "its pipe is full")
    node.litefs_process().kill()
    node.wait_for(lambda: node.is_up() and node.node_file.generation() != generation, "LiteFS is back")
    node.process.terminate()
    output, _ = node.process.communicate(timeout=20)
    assert node.process.returncode == 0
    assert set(re.findall(r"^(\S+) \| ", output, re.MULTILINE)) <= {"app", "litefs", "litefs_run"}


def test_without_fusermount3(node: SupervisedNode) -> None:
    """Root needs none: a helper of ours mounts and unmounts, after a crash too."""
    node.environment["PATH"] = "/nonexistent"
    node.start_and_wait()
    assert (node.run_path / "bin" / "fusermount3").exists()
    node.litefs_process().kill()
    node.wait_for_line("litefs_run | LiteFS serves", count=2)
    node.kill()
    node.start_and_wait()
    assert node.stop() == 0
    node.assert_nothing_left()


# Leaves five orphans behind, each of which outlives its parent.
ORPHANS = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.1)
        os._exit(0)
for _ in range(5):
    os.wait()
"""


@pytest.mark.parametrize("prefix", [["unshare", "--pid", "--fork"], ["unshare", "--pid", "--fork", "--mount-proc"]])
def test_as_pid_1(node: SupervisedNode, prefix: list[str]) -> None:
    """It reaps the orphans of the application."""
    node.start_and_wait(application=python(ORPHANS + IDLE), prefix=prefix)
    (supervisor,) = psutil.Process(node.pid).children()
    assert f"NSpid:\t{supervisor.pid}\t1\n" in Path(f"/proc/{supervisor.pid}/status").read_text()
    node.wait_for(lambda: len(supervisor.children()) == 2, "LiteFS and the application alone are left")
    node.children()
    supervisor.send_signal(signal.SIGTERM)
    assert node.wait() == 0
    node.assert_nothing_left()


def test_application_as_another_user(litefs_binary: Path) -> None:
    """As a server does that starts as root: it has read its code when it changes the user."""
    code = """
import os
import django
django.setup()
from django.contrib.auth.models import Group
from django.db import connection
Group.objects.create(name="by root")
connection.close()
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
Group.objects.create(name="by nobody")
print("groups:", list(Group.objects.values_list("name", flat=True)), flush=True)
"""
    # Not in pytest's directory, which nobody else may enter.
    with TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        (node,) = static_nodes(1, Path(directory), litefs_binary)
        with node:
            node.start("--migrate", application=python(code))
            assert node.wait() == 0, node.output()
            assert node.found("app | groups: ['by root', 'by nobody']")


def test_environment_reaches_the_application(node: SupervisedNode) -> None:
    node.environment |= {"ADDED": "$PATH and spaces"}
    node.start(application=python("import os; print(os.environ['ADDED'], os.getsid(0) == os.getpid(), os.getcwd())"))
    assert node.wait() == 0
    assert node.found(f"app | $PATH and spaces True {node.directory.parent}")
    assert os.getcwd() != str(node.directory.parent)
