"""What depends on the node's role: `--on-primary` and `--migrate`."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.cluster.run.applications import IDLE, WRITERS, WRITTEN, python
from tests.cluster.run.conftest import StartNodes
from tests.cluster.run.nodes import SupervisedNode
from tests.cluster.test_migrate import SLOW, project

# For `--on-primary`; the second one does not end by SIGTERM.
WORKER = shlex.join(python(IDLE))
DEAF_CODE = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)
DEAF = shlex.join(python(DEAF_CODE))


def worker_of(node: SupervisedNode, code: str) -> list[psutil.Process]:
    found = []
    for process in node.children():
        # It may end, or have ended and not been reaped, meanwhile.
        with suppress(psutil.NoSuchProcess):
            if process.ppid() == node.pid and code in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.cluster
def test_command_is_started_again_ever_later(start_nodes: StartNodes) -> None:
    node, replica = start_nodes(2)
    marked = WORKER + " 0 worker"
    node.start_and_wait("--on-primary", marked, shlex.join(python("print('done')")))
    replica.start_and_wait("--on-primary", marked)
    node.wait_for_line("primary-1 | application runs")
    for count in range(2, 5):
        worker_of(node, "0 worker")[0].kill()
        node.wait_for_line("primary-1 | application runs", count=count)
    node.wait_for_line("primary-2 | done", count=4)
    ended = len(node.found("primary-2 has ended: exit code 0"))
    assert 3 <= ended < 10
    # LiteFS's restart takes the role away for a moment, not the command.
    worker = worker_of(node, "0 worker")[0]
    node.litefs_process().kill()
    node.wait_for_line("LiteFS serves", count=2)
    node.wait_for_line("the application runs, this node is the primary", count=2)
    assert worker.is_running()
    assert node.stop() == 0
    assert not replica.found("primary-1")
    assert replica.stop() == 0
    node.assert_nothing_left()


@pytest.mark.cluster
def test_command_of_a_primary_whose_litefs_hangs(start_nodes: StartNodes) -> None:
    """Nobody knows what other nodes do meanwhile: it ends, and comes back."""
    (node,) = start_nodes(1)
    node.start_and_wait("--on-primary", WORKER)
    node.wait_for_line("primary-1 | application runs")
    litefs = node.litefs_process()
    litefs.suspend()
    node.wait_for_line("primary-1 has ended")
    assert node.node_file.generation() is not None
    litefs.resume()
    node.wait_for_line("primary-1 | application runs", count=2)
    litefs.suspend()
    started = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - started < 8
    node.assert_nothing_left()


@pytest.mark.consul
def test_commands_follow_the_role(consul_nodes: list[SupervisedNode]) -> None:
    first, second = consul_nodes
    first.start_and_wait("--on-primary", WORKER, DEAF)
    first.wait_for_line("primary-1 | application runs")
    first.wait_for_line("primary-2 | deaf")
    second.start_and_wait("--on-primary", WORKER)
    second.wait_for_line("this node is a replica of node1")
    assert not second.found("primary-1")
    second.promote()
    first.wait_for_line("primary-1 | got SIGTERM")
    second.wait_for_line("primary-1 | application runs")
    first.wait_for_line("primary-2 has ended: SIGKILL")
    first.wait_for_line("this node is a replica of node2")
    first.promote()
    first.wait_for_line("primary-1 | application runs", count=2)
    second.wait_for_line("primary-1 | got SIGTERM")
    assert second.stop() == 0
    assert first.stop() == 0
    first.assert_nothing_left()


@pytest.mark.consul
def test_clean_stop_of_a_primary_loses_nothing(consul_nodes: list[SupervisedNode]) -> None:
    """The other node takes over with every acknowledged row."""
    first, second = consul_nodes
    first.start("--migrate", application=python(WRITERS, "4"))
    first.wait_for_line("app | wrote")
    second.start_and_wait("--migrate")
    first.wait_for_line("app | wrote", count=100)
    assert first.stop() == 0
    acknowledged = {line.split()[-1] for line in first.found("app | wrote")}
    second.wait_for_line("this node is the primary")
    with second.popen(python(WRITTEN), stdout=subprocess.PIPE) as reader:
        output, _ = reader.communicate()
    assert acknowledged <= {line.split()[-1] for line in output.splitlines()}
    assert second.stop() == 0


@pytest.mark.cluster
def test_replica_waits_for_the_primarys_migrations(start_nodes: StartNodes) -> None:
    primary, replica = start_nodes(2)
    primary.start_and_wait()
    replica.start("--migrate", application=python(WRITTEN))
    replica.wait_for_line("litefs_run | waits for the primary's migrations to arrive (2 s)")
    assert not replica.found("app |")
    assert primary.stop() == 0
    primary.start_and_wait("--migrate")
    assert primary.found("migrate |   Applying auth.0001_initial... OK")
    assert replica.wait() == 0, replica.output()
    assert not replica.found("Applying")
    assert primary.stop() == 0


# litefs_run with less patience than litefs_migrate has by default.
IMPATIENT = """
import json, os, sys
from litefs_django._litefs.node import launch, supervisor
from litefs_django._litefs.node.description import NodeDescription
from litefs_django._litefs.reading import read_settings
settings = read_settings(json.loads(os.environ["LITEFS_TEST_LITEFS"]), {"default": "db.sqlite3"})
migrate = (sys.executable, "-m", "django", "litefs_migrate", "--timeout", "1")
path = launch.prepare(settings, ("true",), migrate=migrate)
sys.exit(supervisor.Supervisor(NodeDescription.read(path)).run())
"""


@pytest.mark.cluster
def test_migrations_that_never_arrive(start_nodes: StartNodes) -> None:
    primary, replica = start_nodes(2)
    primary.start_and_wait()
    with replica.popen(python(IMPATIENT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "migrate | CommandError: Not within 1 s: database 'default' (db.sqlite3) is not here" in output
    assert "litefs_run | The migrations have failed" in output
    replica.assert_nothing_left()
    assert primary.stop() == 0


@pytest.mark.cluster
def test_sigterm_while_waiting_for_migrations(start_nodes: StartNodes) -> None:
    primary, replica = start_nodes(2)
    primary.start_and_wait()
    replica.start("--migrate")
    replica.wait_for_line("waits for the primary's migrations to arrive")
    assert replica.stop() == 0
    replica.assert_nothing_left()
    assert primary.stop() == 0


@pytest.mark.cluster
def test_failing_migration(start_nodes: StartNodes) -> None:
    (node,) = start_nodes(1)
    node.environment["LITEFS_TEST_OPTIONS"] = '{"no_such_option": 1}'
    node.start("--migrate")
    assert node.wait() == 1
    assert node.found("litefs_run | The migrations have failed: ")
    assert not node.found("app |")
    node.assert_nothing_left()


@pytest.mark.cluster
@pytest.mark.parametrize("is_killed", [False, True])
def test_litefs_dies_during_a_migration(start_nodes: StartNodes, tmp_path: Path, is_killed: bool) -> None:
    """It is migrated again, also when the process died with LiteFS, of whose mount it maps a file (played by kill)."""
    (node,) = start_nodes(1)
    node.environment |= project(tmp_path, SLOW)
    node.start("--migrate", application=python(WRITTEN))
    begun, go = (tmp_path / "changes" / name for name in ("begun", "go"))
    node.wait_for(begun.exists, "it is in the middle")
    migration = node.application_process()
    node.litefs_process().kill()
    node.wait_for_line("LiteFS serves", count=2)
    if is_killed:
        migration.send_signal(signal.SIGBUS)
        node.wait_for_line("litefs_migrate has ended: SIGBUS")
    go.touch()
    assert node.wait(60) == 0, node.output()
    if not is_killed:
        assert node.found("Waits: database 'default' was being migrated when: ")
    assert node.found("migrate | Database 'default' has all migrations.")
    assert node.found("Applying cluster.0001_initial... OK")


# Leaves a process behind that SIGTERM does not end, in the group of the migration.
LEAVING = f"""
import subprocess, sys
from pathlib import Path
from django.db import migrations
def leave(apps, schema_editor):
    code = {DEAF_CODE!r}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    Path(__file__).with_name("left").write_text(str(process.pid))
class Migration(migrations.Migration):
    operations = [migrations.RunPython(leave)]
"""


@pytest.mark.cluster
def test_a_migration_leaves_nothing_running(start_nodes: StartNodes, tmp_path: Path) -> None:
    (node,) = start_nodes(1)
    node.environment |= project(tmp_path, LEAVING)
    node.start("--migrate")
    node.wait_for_line("ends what the migrations have left running")
    left = psutil.Process(int((tmp_path / "changes" / "left").read_text()))
    node.wait_for_line("app | application runs")
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
    assert node.stop() == 0


@pytest.mark.cluster
def test_sigterm_in_mid_migration(start_nodes: StartNodes, tmp_path: Path) -> None:
    (node,) = start_nodes(1)
    node.environment |= project(tmp_path, SLOW)
    node.start("--migrate")
    node.wait_for((tmp_path / "changes" / "begun").exists, "it is in the middle")
    node.children()
    assert node.stop() == 0
    assert not node.found("app |")
    node.assert_nothing_left()


@pytest.mark.consul
def test_replica_that_is_promoted_while_it_waits_migrates(consul_nodes: list[SupervisedNode]) -> None:
    first, second = consul_nodes
    first.start_and_wait()
    second.start("--migrate")
    second.wait_for_line("waits for the primary's migrations to arrive")
    second.promote()
    second.wait_for_line("app | application runs")
    assert second.found("migrate |   Applying auth.0001_initial... OK")
    assert second.stop(number=signal.SIGTERM) == 0
    assert first.stop() == 0
