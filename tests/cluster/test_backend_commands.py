"""Django's own commands and its test runner on a database of the mount."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.connections import run_python
from tests.cluster.nodes import LiteFSNode, StaticCluster

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, litefs_binary: Path) -> Iterator[StaticCluster]:
    """Two nodes; each test has a database of its own."""
    with StaticCluster(2, tmp_path_factory.mktemp("commands"), litefs_binary) as cluster:
        yield cluster


def rows(node: LiteFSNode, name: str, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{node.database(name)}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


COMMANDS = """
import io, json, os
from pathlib import Path
from datetime import datetime, timezone
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connection

directory = Path({directory!r})
call_command("migrate", verbosity=0)
call_command("migrate", "auth", "0010", verbosity=0)
call_command("migrate", verbosity=0)
User.objects.bulk_create(User(username=f"user{{n}}") for n in range(100))
call_command("dumpdata", "auth.user", output=str(directory / "users.json"), verbosity=0)
assert len(json.loads((directory / "users.json").read_text())) == 100

permissions = Permission.objects.count()
call_command("flush", interactive=False, verbosity=0)
assert not User.objects.exists()
assert Permission.objects.count() == permissions

call_command("loaddata", str(directory / "users.json"), verbosity=0)
assert User.objects.count() == 100

models = io.StringIO()
call_command("inspectdb", stdout=models)
assert "class AuthUser(models.Model):" in models.getvalue()

settings.CACHES = {{"default": {{"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache"}}}}
call_command("createcachetable", verbosity=0)
from django.core.cache import cache
cache.set("key", "value")
assert cache.get("key") == "value"

expiry = datetime(2020, 1, 1, tzinfo=timezone.utc)
Session.objects.create(session_key="old", session_data="", expire_date=expiry)
Session.objects.create(session_key="new", session_data="", expire_date=expiry.replace(year=2999))
call_command("clearsessions")
assert [session.pk for session in Session.objects.all()] == ["new"]
call_command("check", database=["default"], verbosity=0)
"""


def test_django_s_commands(cluster: StaticCluster, tmp_path: Path) -> None:
    run_python(cluster.primary, COMMANDS.format(directory=str(tmp_path)), "commands.sqlite3")
    cluster.wait_equal("commands.sqlite3")
    for node in cluster.nodes:
        assert rows(node, "commands.sqlite3", "SELECT count(*) FROM auth_user") == [(100,)]
        assert rows(node, "commands.sqlite3", "SELECT session_key FROM django_session") == [("new",)]


def test_dbshell(cluster: StaticCluster) -> None:
    assert shutil.which("sqlite3"), "the sqlite3 shell is missing: apt-get install sqlite3"
    shell = "from django.core.management import call_command\ncall_command('dbshell', '--', '{}')"
    primary, replica = cluster.nodes
    run_python(primary, shell.format("CREATE TABLE t (x)"), "shell.sqlite3")
    run_python(primary, shell.format("INSERT INTO t VALUES (7)"), "shell.sqlite3")
    cluster.wait_equal("shell.sqlite3")
    for node in (primary, replica):
        assert run_python(node, shell.format("SELECT x FROM t"), "shell.sqlite3") == "7\n"
    with pytest.raises(AssertionError, match="attempt to write a readonly database"):
        run_python(replica, shell.format("INSERT INTO t VALUES (8)"), "shell.sqlite3")
    with pytest.raises(AssertionError, match="has not arrived"):
        run_python(replica, shell.format("SELECT 1"), "absent.sqlite3")
    assert not primary.database("absent.sqlite3").exists()


TESTS = """
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase

class Tests:
    def test_write(self):
        assert str(connection.settings_dict["NAME"]).startswith({mount!r}), connection.settings_dict["NAME"]
        assert connection.is_guarded
        assert connection.cursor().execute("PRAGMA journal_mode").fetchone() == ("wal",)
        User.objects.create(username="new")
        with transaction.atomic():
            User.objects.create(username="newer")
        self.assertEqual(User.objects.filter(username__startswith="new").count(), 2)

    test_again = test_write
    test_and_again = test_write

class A(Tests, TestCase): pass
class B(Tests, TestCase): pass
class C(Tests, TransactionTestCase): pass
"""

RUN = """
import sys, warnings
from django.conf import settings
# Threads of SQLite's helper, where Python warns of the fork that Django makes.
warnings.simplefilter("ignore", DeprecationWarning)
sys.path.insert(0, {directory!r})
settings.DATABASES["default"].setdefault("TEST", {{}})["NAME"] = {name!r}
from django.db import connection
assert connection.creation.test_db_signature() == ("project.sqlite3", {name!r})
from django.test.runner import DiscoverRunner
runner = DiscoverRunner(parallel={parallel}, verbosity=2, interactive=False, keepdb={keepdb})
sys.exit(runner.run_tests(["on_the_mount"]))
"""


@pytest.mark.parametrize("parallel", [1, 2])
def test_test_databases_on_the_mount(cluster: StaticCluster, tmp_path: Path, parallel: int) -> None:
    node = cluster.primary
    (tmp_path / "on_the_mount.py").write_text(TESTS.format(mount=str(node.mount)))
    name = f"test{parallel}.sqlite3"
    for keepdb in (False, True, True):
        code = RUN.format(directory=str(tmp_path), parallel=parallel, name=name, keepdb=keepdb)
        run_python(node, code, "project.sqlite3")
        there = {path.name for path in node.mount.glob(f"test{parallel}*.sqlite3")}
        assert len(there) == (0 if not keepdb else 1 if parallel == 1 else 3)
    assert not node.database("project.sqlite3").exists()
