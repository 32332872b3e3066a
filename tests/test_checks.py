from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from django.core import checks as django_checks
from django.test import override_settings
from pytest_django import Settings

from litefs_django import checks
from tests.configuring import ONE_NODE, OURS, TWO_NODES, Check, Configure, ids, run

ROOT = Path(__file__).parent.parent

ALL: tuple[Check, ...] = (*checks.CHECKS, *checks.DEPLOY_CHECKS)


def test_each_setting_mistake_is_a_message(configure: Configure) -> None:
    configure(
        {
            "NODE": "c",
            "NODES": {"a": {"ADDRESS": "10.0.0.1"}, "b": {}},
            "MOUNTPATH": "/litefs",
            "MAX_LAG": "10s",
            "RETENTION": 0,
            "DATA_PATH": "/litefs/data",
            "LITEFS_YML": {"exec": "app"},
        },
        default={**OURS, "NAME": "a/b"},
    )
    messages = run()
    assert sorted(ids(messages)) == ["E002", "E003", "E004", "E005", "E006", "E007", "E008"]
    assert all(message.level == django_checks.ERROR and message.hint for message in messages)
    by_id = dict(zip(ids(messages), messages, strict=True))
    assert by_id["E002"].msg == 'LITEFS["MOUNTPATH"]: is not a known key.'
    assert by_id["E002"].hint == "Did you mean 'MOUNT_PATH'?"


def test_nothing_is_wrong(configure: Configure, tmp_path: Path, settings: Settings) -> None:
    settings.MIDDLEWARE = ["litefs_django.middleware.LiteFSMiddleware"]
    litefs = {**TWO_NODES, "HANDOVER": "replay", "MOUNT_PATH": str(tmp_path)}
    configure(litefs, default={**OURS, "CONN_MAX_AGE": None})
    assert run() == []


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__)
def test_without_litefs_nothing_is_looked_at(check: Check, configure: Configure) -> None:
    configure({"ENABLED": False, "MOUNT_PATH": "/", "BINARY": "/none"}, default=OURS, other={**OURS, "NAME": "a/b"})
    assert check(None) == []


@pytest.mark.parametrize("check", ALL[1:], ids=lambda check: check.__name__)
def test_with_wrong_settings_only_they_are_reported(check: Check, configure: Configure) -> None:
    configure({"MOUNT_PATH": 5}, default=OURS, other={"ENGINE": "django.db.backends.sqlite3", "NAME": "x"})
    assert check(None) == []


def manage(directory: Path, *arguments: str, settings_text: str) -> subprocess.CompletedProcess[str]:
    """A management command of a project whose settings are those of the tests and this text."""
    (directory / "changed.py").write_text(f"from tests.settings import *\n{settings_text}\n")
    return subprocess.run(
        [sys.executable, *(arguments if arguments[0] == "-c" else ("-m", "django", *arguments))],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "changed", "PYTHONPATH": f"{directory}:{ROOT}"},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


class TestInMemory:
    """NAME of a database in memory: Django's test runner gives such names too."""

    SETTINGS = "DATABASES['default'] |= {{'CONN_MAX_AGE': None, 'NAME': {!r}}}\n"

    @pytest.mark.parametrize(
        "name", [":memory:", "file:x?mode=memory&cache=shared", "file:memorydb_default?mode=memory&cache=shared"]
    )
    def test_in_the_settings(self, tmp_path: Path, name: str) -> None:
        result = manage(tmp_path, "check", settings_text=self.SETTINGS.format(name))
        assert result.returncode == 1
        assert f'(litefs_django.E007) DATABASES["default"]["NAME"]: \'{name}\' is a database in memory' in result.stderr
        assert "Give a plain file name like 'db.sqlite3'" in result.stderr
        assert "Traceback" not in result.stderr

    @pytest.mark.parametrize("name", [":memory:", "db.sqlite3"])
    @pytest.mark.parametrize("case", ["TestCase", "SimpleTestCase"])
    def test_of_the_test_runner(self, tmp_path: Path, name: str, case: str) -> None:
        """With SimpleTestCase alone no test database is made, and NAME stays."""
        (tmp_path / "test_project.py").write_text(
            f"from django.test import {case}\n\nclass Tests({case}):\n    def test_nothing(self): pass\n"
        )
        result = manage(tmp_path, "test", settings_text=self.SETTINGS.format(name))
        assert result.returncode == 0, result.stderr
        assert "E007" not in result.stderr

    @pytest.mark.parametrize("test", [None, "file:mine?mode=memory&cache=shared"])
    def test_of_testserver(self, tmp_path: Path, test: str | None) -> None:
        """It makes a test database without a test environment, and its runserver checks."""
        result = manage(
            tmp_path,
            "-c",
            "import django; django.setup()\n"
            "from django.core.management import call_command\n"
            "from django.db import connection\n"
            "connection.creation.create_test_db(verbosity=0)\n"
            "assert 'mode=memory' in connection.settings_dict['NAME']\n"
            "call_command('check')\n",
            settings_text=self.SETTINGS.format("db.sqlite3") + f"DATABASES['default']['TEST'] = {{'NAME': {test!r}}}",
        )
        assert result.returncode == 0, result.stderr
        assert "no issues" in result.stdout


class TestMountPath:
    def test_with_files_in_it(self, configure: Configure, tmp_path: Path) -> None:
        for name in "abcdef":
            (tmp_path / name).touch()
        configure({**ONE_NODE, "MOUNT_PATH": str(tmp_path)})
        (message,) = checks.check_mount_path(None)
        assert ids([message]) == ["E009"]
        assert str(tmp_path) in message.msg
        assert message.msg.endswith("a, b, c, d, e ....")

    @pytest.mark.parametrize("name", ["empty", "missing"])
    def test_without(self, configure: Configure, tmp_path: Path, name: str) -> None:
        (tmp_path / "empty").mkdir()
        configure({**ONE_NODE, "MOUNT_PATH": str(tmp_path / name)})
        assert checks.check_mount_path(None) == []


class TestOverlaps:
    """By symbolic links; without one the settings are refused."""

    @pytest.mark.parametrize(("key", "link"), [("RUN_PATH", "link"), ("DATA_PATH", "link"), ("RUN_PATH", "link/run")])
    @pytest.mark.parametrize("target", ["mnt", "mnt/x", "../{}/mnt/x", "second", "."])
    def test_on_the_mount(self, configure: Configure, tmp_path: Path, key: str, link: str, target: str) -> None:
        (tmp_path / "second").symlink_to("mnt")
        (tmp_path / "link").symlink_to(target.format(tmp_path.name))
        configure({**ONE_NODE, "MOUNT_PATH": str(tmp_path / "mnt"), key: str(tmp_path / link)})
        messages = checks.check_overlaps(None)
        if target == "." and link == "link/run":
            assert messages == []
        else:
            (message,) = messages
            assert ids([message]) == ["E020"]
            assert message.msg.startswith(f"LITEFS[\"{key}\"]: '{tmp_path / link}' is really '{tmp_path}")

    def test_the_mount_through_a_link(self, configure: Configure, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(".")
        configure({**ONE_NODE, "MOUNT_PATH": str(tmp_path / "link/mnt"), "RUN_PATH": str(tmp_path / "mnt/run")})
        assert ids(checks.check_overlaps(None)) == ["E020"]

    @pytest.mark.parametrize("target", ["elsewhere", "loop", "/"])
    def test_elsewhere(self, configure: Configure, tmp_path: Path, target: str) -> None:
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "link").symlink_to(target)
        configure({**ONE_NODE, "MOUNT_PATH": str(tmp_path / "mnt"), "RUN_PATH": str(tmp_path / "link/run")})
        assert checks.check_overlaps(None) == []


class TestUnguarded:
    def test_on_the_mount(self, configure: Configure) -> None:
        stock = "django.db.backends.sqlite3"
        configure({**ONE_NODE, "MOUNT_PATH": "/mnt/x"}, other={"ENGINE": stock, "NAME": "/mnt/x/db.sqlite3"})
        (message,) = checks.check_unguarded(None)
        assert ids([message]) == ["E017"]
        assert message.msg.startswith('DATABASES["other"]["ENGINE"]: ')

    def test_elsewhere(self, configure: Configure) -> None:
        stock = "django.db.backends.sqlite3"
        configure({**ONE_NODE, "MOUNT_PATH": "/mnt/x"}, other={"ENGINE": stock, "NAME": "/mnt/y/db.sqlite3"})
        assert checks.check_unguarded(None) == []


class TestEngines:
    @pytest.mark.parametrize(
        "engine", ["django.db.backends.sqlite3", "django.contrib.gis.db.backends.spatialite", "pool.backends.sqlite3"]
    )
    def test_sqlite_in_a_cluster(self, configure: Configure, engine: str) -> None:
        configure(TWO_NODES, default=OURS, other={"ENGINE": engine, "NAME": "x"})
        (message,) = checks.check_engines(None)
        assert ids([message]) == ["W001"]
        assert message.msg.startswith('DATABASES["other"]["ENGINE"]: ')

    @pytest.mark.parametrize(
        ("litefs", "other"),
        [
            (ONE_NODE, {"ENGINE": "django.db.backends.sqlite3", "NAME": "x"}),
            (TWO_NODES, {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}),
            (TWO_NODES, {"ENGINE": "django.db.backends.postgresql", "NAME": "x"}),
            (TWO_NODES, {**OURS, "NAME": "x"}),
            (TWO_NODES, {}),
        ],
    )
    def test_where_all_see_the_same(self, configure: Configure, litefs: dict[str, Any], other: dict[str, Any]) -> None:
        configure(litefs, default=OURS, other=other)
        assert checks.check_engines(None) == []


class TestConnectionAge:
    @pytest.mark.parametrize("age", [{}, {"CONN_MAX_AGE": 0}])
    def test_a_connection_for_each_request(self, configure: Configure, age: dict[str, Any]) -> None:
        configure(ONE_NODE, default={**OURS, **age})
        (message,) = checks.check_connection_age(None)
        assert ids([message]) == ["W002"]
        assert message.msg.startswith('DATABASES["default"]["CONN_MAX_AGE"]: 0 ')
        with override_settings(ASGI_APPLICATION="site.asgi.application"):
            assert checks.check_connection_age(None) == []

    @pytest.mark.parametrize(
        "database",
        [
            {**OURS, "CONN_MAX_AGE": None},
            {**OURS, "CONN_MAX_AGE": 60},
            {**OURS, "NAME": ":memory:"},
            {"ENGINE": "django.db.backends.sqlite3", "NAME": "x"},
        ],
    )
    def test_others(self, configure: Configure, database: dict[str, Any]) -> None:
        configure(ONE_NODE, default=database)
        assert checks.check_connection_age(None) == []


def test_every_id_is_documented_once() -> None:
    documented = re.findall(
        r"^``litefs_django\.([EW]\d{3})``", (ROOT / "docs" / "checks.rst").read_text(), re.MULTILINE
    )
    sources = [*(ROOT / "litefs_django" / "checks").glob("*.py"), *(ROOT / "litefs_django" / "_litefs").glob("*.py")]
    used = {code for source in sources for code in re.findall(r'"(?:litefs_django\.)?([EW]0\d\d)"', source.read_text())}
    assert documented == sorted(used)


def test_each_check_is_of_one_family() -> None:
    assert Counter(check for _, family in checks.FAMILIES for check in family) == Counter(ALL)


@pytest.mark.parametrize("command", [["check"], ["check", "--database", "default"]], ids=" ".join)
def test_manage_py_check_reports_wrong_settings(tmp_path: Path, command: list[str]) -> None:
    """Models are loaded and checked before: the backend must not stop that because of its settings."""
    (tmp_path / "broken.py").write_text(
        "from tests.settings import *\n"
        "LITEFS = {**LITEFS, 'RETENTION': 0, 'MOUNTPATH': '/x'}\n"
        "INSTALLED_APPS = [*INSTALLED_APPS, 'documents']\n"
    )
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "__init__.py").touch()
    (tmp_path / "documents" / "models.py").write_text(
        "from django.db import models\n\n\nclass Document(models.Model):\n    content = models.JSONField()\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "django", *command],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "broken", "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert '(litefs_django.E004) LITEFS["RETENTION"]: 0.0 would break replication' in result.stderr
    assert '(litefs_django.E002) LITEFS["MOUNTPATH"]: is not a known key.' in result.stderr
    assert "Traceback" not in result.stderr
