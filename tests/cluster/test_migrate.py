"""`manage.py litefs_migrate` on real clusters."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.commands import Running, fail, manage, run, succeed
from tests.cluster.connections import ROOT
from tests.cluster.nodes import ConsulCluster, LiteFSNode, StaticCluster, wait_for
from tests.cluster.plain import write
from tests.machine import wait_until

pytestmark = pytest.mark.cluster

LACKS_ALL = "database 'default' (db.sqlite3) is not here, and lacks all migrations"
FROM_PRIMARY = "they come from the primary (node1) once it is migrated with this release."


def tables(node: LiteFSNode) -> set[str]:
    if not node.database().exists():
        return set()
    with closing(sqlite3.connect(f"file:{node.database()}?mode=ro", uri=True, timeout=20)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def test_from_the_first_to_the_last_migration(static_cluster: StaticCluster) -> None:
    primary, replica, other = static_cluster.nodes
    with Running(replica, "litefs_migrate") as waiting:
        assert waiting.next_line() == f"Waits: {LACKS_ALL}; {FROM_PRIMARY}"
        succeed(primary, "migrate", "contenttypes")
        line = waiting.next_line()
        while "auth" not in line:
            line = waiting.next_line()
        assert line.startswith("Waits: database 'default' (db.sqlite3) lacks auth.0001_initial and ")
        assert line.endswith(f" more; {FROM_PRIMARY}")
        assert succeed(primary, "litefs_migrate").splitlines()[-1] == "Database 'default' has all migrations."
        code, said = waiting.end()
        assert code == 0
        assert said.splitlines()[-1] == "Database 'default' has all migrations."
    assert "auth_user" in tables(replica)
    # Once more, with nothing to do.
    assert "No migrations to apply." in succeed(primary, "litefs_migrate")
    assert succeed(other, "litefs_migrate") == "Database 'default' has all migrations.\n"
    assert succeed(other, "litefs_migrate", "-v", "0") == ""


def test_a_replica_does_not_wait_for_ever(static_cluster: StaticCluster) -> None:
    replica = static_cluster.nodes[1]
    error = fail(replica, "litefs_migrate", "--timeout", "1")
    assert error == f"CommandError: Not within 1 s: {LACKS_ALL}; {FROM_PRIMARY}\n"
    succeed(static_cluster.primary, "migrate", "contenttypes")
    static_cluster.wait_equal()
    error = fail(replica, "litefs_migrate", "--timeout", "0")
    assert error.startswith("CommandError: Not within 0 s: database 'default' (db.sqlite3) lacks auth.0001_initial and")


@pytest.mark.parametrize("seconds", ["-1", "nan"])
def test_a_time_that_is_none(static_cluster: StaticCluster, seconds: str) -> None:
    error = fail(static_cluster.primary, "litefs_migrate", f"--timeout={seconds}")
    assert error == f"CommandError: --timeout {seconds}: give 0 or more seconds.\n"


def checked(node: LiteFSNode) -> tuple[int, list[str]]:
    """Exit code and lines of --check."""
    code, output, errors = run(node, "litefs_migrate", "--check")
    return code, [*output.splitlines(), *errors.splitlines()]


def test_checking(static_cluster: StaticCluster) -> None:
    primary, replica, third = static_cluster.nodes
    nothing = [f"{node}: db.sqlite3 is no further than that of this node." for node in ("node1", "node2", "node3")]
    assert checked(primary) == (1, [f"node1: {LACKS_ALL}; litefs_migrate applies them.", nothing[1], nothing[2]])
    assert checked(replica) == (1, [f"node2: {LACKS_ALL}; {FROM_PRIMARY}", nothing[0], nothing[2]])
    assert [node.database().exists() for node in static_cluster.nodes] == [False] * 3
    succeed(primary, "migrate", "contenttypes")
    code, (line, *others) = checked(primary)
    assert code == 1
    assert line.startswith("node1: database 'default' (db.sqlite3) lacks auth.0001_initial and ")
    assert others == nothing[1:]
    # One that is further may have them.
    with closing(sqlite3.connect(third.database(), isolation_level=None)) as reader:
        static_cluster.wait_equal()
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM django_migrations").fetchall()
        write(primary, "CREATE TABLE sooner (x)")
        wait_until(lambda: replica.position() == primary.position(), "the second node has it")
        assert [line.split(":")[0] for line in checked(third)[1]] == ["node3"]
    static_cluster.wait_equal()
    succeed(primary, "litefs_migrate")
    static_cluster.wait_equal()
    assert [checked(node) for node in static_cluster.nodes] == [(0, ["All nodes have them."])] * 3
    # A reader keeps the third node behind.
    with closing(sqlite3.connect(third.database(), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM django_migrations").fetchall()
        write(primary, "CREATE TABLE later (x)")
        wait_until(lambda: replica.position() == primary.position(), "the second node has it")
        assert checked(primary) == checked(replica) == (1, ["node3: db.sqlite3 is behind that of this node."])
    static_cluster.wait_equal()
    # One that is down does not wait, and is named.
    third.kill()
    code, lines = checked(replica)
    assert (code, lines[0]) == (0, "All nodes that answer have them (node3 did not).")
    assert lines[1].startswith("node3 is left out: http://127.0.0.1:")


def test_litefs_starts_while_it_waits(static_cluster: StaticCluster) -> None:
    primary, replica = static_cluster.nodes[:2]
    succeed(primary, "litefs_migrate")
    static_cluster.wait_equal()
    replica.kill()
    with Running(replica, "litefs_migrate") as waiting:
        assert "Transport endpoint is not connected" in waiting.next_line()
        replica.unmount()
        assert f"No LiteFS is mounted at {replica.mount} on node 'node2'" in waiting.next_line()
        assert os.listdir(replica.mount) == []
        replica.start()
        assert waiting.end()[0] == 0


BROKEN = """
from django.db import migrations
class Migration(migrations.Migration):
    operations = [migrations.RunSQL("CREATE TABLE made (x)"), migrations.RunSQL("CREATE NONSENSE")]
"""
# Stops in its middle until a file `go` lies beside it.
SLOW = """
import time
from pathlib import Path
from django.db import migrations
def stop(apps, schema_editor):
    Path(__file__).with_name("begun").touch()
    while not Path(__file__).with_name("go").exists():
        time.sleep(0.01)
class Migration(migrations.Migration):
    operations = [migrations.RunSQL("CREATE TABLE made (x)"), migrations.RunPython(stop)]
"""


def project(directory: Path, migration: str) -> dict[str, str]:
    """The environment of commands of a project with this migration."""
    (directory / "changes").mkdir()
    (directory / "changes" / "__init__.py").touch()
    (directory / "changes" / "0001_initial.py").write_text(migration)
    settings = "from tests.cluster.project_settings import *\nMIGRATION_MODULES = {'cluster': 'changes'}"
    (directory / "project.py").write_text(settings)
    return {"DJANGO_SETTINGS_MODULE": "project", "PYTHONPATH": f"{ROOT}:{directory}"}


def test_a_migration_that_fails(static_cluster: StaticCluster, tmp_path: Path) -> None:
    primary = static_cluster.primary
    command = manage(primary, "litefs_migrate")
    command["env"] |= project(tmp_path, BROKEN)
    ended = subprocess.run(**command, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith('django.db.utils.OperationalError: near "NONSENSE": syntax error')
    assert "made" not in tables(primary)


def test_litefs_dies_while_it_migrates(static_cluster: StaticCluster, tmp_path: Path) -> None:
    """The migration in hand is rolled back, and run again with the rest when LiteFS is back."""
    primary = static_cluster.primary
    environment = manage(primary)["env"] | project(tmp_path, SLOW)
    with Running(primary, "litefs_migrate", env=environment) as migrating:
        migrating.wait_until((tmp_path / "changes" / "begun").exists, "it is in the middle")
        primary.kill()
        primary.start()
        (tmp_path / "changes" / "go").touch()
        code, said = migrating.end()
    assert code == 0, said
    assert "Waits: database 'default' was being migrated when: " in said
    assert {"made", "auth_user"} <= tables(primary)


@pytest.mark.consul
def test_a_replica_that_becomes_the_primary_migrates(consul_cluster: ConsulCluster) -> None:
    first, second = consul_cluster.nodes[:2]
    succeed(first, "migrate", "contenttypes")
    consul_cluster.wait_equal()
    with Running(second, "litefs_migrate") as waiting:
        assert "lacks auth.0001_initial" in waiting.next_line()
        consul_cluster.promote(second)
        assert waiting.end()[0] == 0
    consul_cluster.wait_equal()
    assert all("auth_user" in tables(node) for node in consul_cluster.nodes)


@pytest.mark.consul
def test_a_primary_that_loses_its_role_waits(consul_cluster: ConsulCluster, tmp_path: Path) -> None:
    """In mid-migration, with no commit under way: the new primary migrates in its place."""
    first, second = consul_cluster.nodes[:2]
    environment = project(tmp_path, SLOW)
    with Running(first, "litefs_migrate", env=manage(first)["env"] | environment) as migrating:
        migrating.wait_until((tmp_path / "changes" / "begun").exists, "it is in the middle")
        wait_until(lambda: first.position() == second.position(), "the second node has all that is committed")
        change = threading.Thread(target=consul_cluster.promote, args=(second,))
        change.start()
        wait_for(second.is_primary, "the second node is the primary", consul_cluster.nodes)
        # The first one follows when its transaction has ended.
        (tmp_path / "changes" / "go").touch()
        change.join()
        line = migrating.next_line()
        while "Waits: " not in line:
            line = migrating.next_line()
        assert "It has lost the primary's role meanwhile." in line
        succeed(second, "litefs_migrate", env=manage(second)["env"] | environment)
        assert migrating.end()[0] == 0
    consul_cluster.wait_equal()
    assert all({"made", "auth_user"} <= tables(node) for node in consul_cluster.nodes)
