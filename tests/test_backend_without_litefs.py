"""Where LiteFS is not in use the ENGINE is Django's plain sqlite3, on any system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SETTINGS = """
import sys
from pathlib import Path

class NotOnThisSystem:
    def find_spec(self, name, path=None, target=None):
        if name in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

if {missing!r}:
    sys.meta_path.insert(0, NotOnThisSystem())
    for name in {missing!r}:
        sys.modules.pop(name, None)

BASE_DIR = Path(__file__).parent
SECRET_KEY = "only for tests"
INSTALLED_APPS = ["litefs_django", "django.contrib.auth", "django.contrib.contenttypes"]
DATABASES = {{"default": {{"ENGINE": "litefs_django.db.backends.litefs", "NAME": {name!r}}}}}
LITEFS = {litefs!r}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
"""

# Modules that exist on Linux alone, or on Unix alone.
MISSING = ("fcntl", "resource", "termios", "pwd", "grp")


def run(directory: Path, *arguments: str, litefs: dict[str, object], name: str = "db.sqlite3") -> str:
    """manage.py with these arguments, in a project of its own; its output."""
    is_elsewhere = litefs.get("ENABLED") is False
    text = SETTINGS.format(litefs=litefs, name=name, missing=MISSING if is_elsewhere else ())
    (directory / "plain_settings.py").write_text(text)
    result = subprocess.run(
        [sys.executable, "-m", "django", *arguments],
        cwd=directory,
        env={
            **{name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_START"},
            "DJANGO_SETTINGS_MODULE": "plain_settings",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{directory}",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


DISABLED = {"ENABLED": False, "MOUNT_PATH": "/nonexistent/litefs"}

USE = """
import os
from django.contrib.auth.models import User
from django.db import connection, transaction
User.objects.create(username='a')
with transaction.atomic():
    User.objects.create(username='b')
connection.cursor().execute('PRAGMA journal_mode = DELETE')
assert type(connection.connection).__module__ == 'sqlite3'
print(User.objects.count(), connection.is_guarded)
"""


@pytest.mark.parametrize("name", ["db.sqlite3", "/nonexistent/litefs/db.sqlite3"])
def test_with_enabled_false_the_file_lies_beside_the_project(tmp_path: Path, name: str) -> None:
    run(tmp_path, "migrate", "--verbosity=0", litefs=DISABLED, name=name)
    assert (tmp_path / "db.sqlite3").stat().st_size
    assert run(tmp_path, "shell", "--verbosity=0", f"--command={USE}", litefs=DISABLED, name=name).strip() == "2 False"


TESTS = """
from django.contrib.auth.models import User
from django.db import connection
from django.test import TestCase

class Tests(TestCase):
    def test_write(self):
        User.objects.create(username="new")
        self.assertEqual(User.objects.count(), 1)
        self.assertTrue(connection.is_in_memory_db())

class MoreTests(Tests): pass
"""

LITEFS = {
    "MOUNT_PATH": "/nonexistent/litefs",
    "DATA_PATH": "/nonexistent/data",
    "RUN_PATH": "/nonexistent/run",
    "LEADER_ELECTION": "static",
    "NODE": "node1",
    "NODES": {"node1": {"ADDRESS": "127.0.0.1"}},
    "PRIMARY": "node1",
}


@pytest.mark.parametrize("litefs", [DISABLED, LITEFS], ids=["disabled", "enabled, and nothing mounted"])
@pytest.mark.parametrize("parallel", [1, 2])
def test_in_memory_test_databases_need_no_litefs(tmp_path: Path, litefs: dict[str, object], parallel: int) -> None:
    (tmp_path / "test_project.py").write_text(TESTS)
    output = run(tmp_path, "test", f"--parallel={parallel}", litefs=litefs)
    assert "Ran 2 tests" in output
    assert "OK" in output
    assert not list(tmp_path.glob("*.sqlite3"))
