from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core import checks as django_checks
from django.core.checks import CheckMessage
from django.test import override_settings

from litefs_django import checks, conf
from litefs_django._litefs import binary
from litefs_django._litefs.binary import Requirement
from tests.machine import free_ports

ROOT = Path(__file__).parent.parent
OURS = {"ENGINE": conf.ENGINE, "NAME": "db.sqlite3"}
ONE_NODE = {"NODE": "a", "NODES": {"a": {"ADDRESS": "10.0.0.1"}}}
TWO_NODES = {"NODE": "a", "PRIMARY": "a", "NODES": {"a": {"ADDRESS": "10.0.0.1"}, "b": {"ADDRESS": "10.0.0.2"}}}

Check = Callable[..., list[CheckMessage]]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets LITEFS, and DATABASES without the warning that override_settings gives."""

    def change(litefs: dict[str, Any], **databases: dict[str, Any]) -> None:
        monkeypatch.setattr(settings, "LITEFS", litefs)
        monkeypatch.setattr(settings, "DATABASES", databases or {"default": OURS})
        conf.read.cache_clear()

    yield change
    monkeypatch.undo()
    conf.read.cache_clear()


Configure = Callable[..., None]


def ids(messages: list[CheckMessage]) -> list[str]:
    return [str(message.id).removeprefix("litefs_django.") for message in messages]


def run(*, deploy: bool = False) -> list[CheckMessage]:
    return django_checks.run_checks(tags=[checks.TAG], include_deployment_checks=deploy)


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


def test_nothing_is_wrong(configure: Configure, tmp_path: Path) -> None:
    configure({**TWO_NODES, "MOUNT_PATH": str(tmp_path)}, default={**OURS, "CONN_MAX_AGE": None})
    assert run() == []


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__)
def test_without_litefs_nothing_is_looked_at(check: Check, configure: Configure) -> None:
    configure({"ENABLED": False, "MOUNT_PATH": "/", "BINARY": "/none"}, default=OURS, other={**OURS, "NAME": "a/b"})
    assert check(None) == []


@pytest.mark.parametrize("check", ALL[1:], ids=lambda check: check.__name__)
def test_with_wrong_settings_only_they_are_reported(check: Check, configure: Configure) -> None:
    configure({"MOUNT_PATH": 5}, default=OURS, other={"ENGINE": "django.db.backends.sqlite3", "NAME": "x"})
    assert check(None) == []


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


class TestDeployment:
    """What a machine lacks cannot be taken from it for a test: the answers of binary.py stand in."""

    def test_only_on_request(self, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(binary, "missing_requirements", lambda *args: [Requirement("fusermount3", "apt-get")])
        node = {"ADDRESS": "127.0.0.1", "HTTP_PORT": free_ports(1)[0]}
        configure({"NODE": "a", "NODES": {"a": node}, "BINARY": "/nonexistent"}, default={**OURS, "CONN_MAX_AGE": None})
        assert run() == []
        assert sorted(ids(run(deploy=True))) == ["E012", "E014"]

    def test_each_requirement_has_an_id(self, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(shutil, "which", lambda program: None)
        monkeypatch.setattr(binary, "_fuse_device_problem", lambda is_root: "No such file or directory")
        monkeypatch.setattr(binary, "_may_mount", lambda: False)
        monkeypatch.setattr(binary, "_has_user_allow_other", lambda: False)
        configure({**ONE_NODE, "ALLOW_OTHER": True})
        messages = checks.check_machine(None)
        assert ids(messages) == ["E010", "E011", "E012", "E013"]
        assert messages[0].msg.startswith("This machine lacks /dev/fuse (No such file or directory)")
        assert all(message.hint for message in messages)

    def test_another_system(self, configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """What these checks look at elsewhere does not exist there."""
        (tmp_path / "db.sqlite3").touch()
        configure({**ONE_NODE, "MOUNT_PATH": str(tmp_path)}, default={**OURS, "CONN_MAX_AGE": None})
        monkeypatch.setattr(sys, "platform", "darwin")
        assert run() == []
        (message,) = checks.check_machine(None)
        assert ids([message]) == ["E016"]
        assert "darwin" in message.msg

    @pytest.mark.parametrize("user", [0, 1000])
    def test_it_is_asked_for_this_user(self, configure: Configure, monkeypatch: pytest.MonkeyPatch, user: int) -> None:
        asked: list[tuple[bool, bool]] = []

        def missing(is_root: bool, allow_other: bool) -> list[Requirement]:
            asked.append((is_root, allow_other))
            return []

        monkeypatch.setattr(os, "geteuid", lambda: user)
        monkeypatch.setattr(binary, "missing_requirements", missing)
        for allow_other in (None, True, False):
            configure({**ONE_NODE, **({} if allow_other is None else {"ALLOW_OTHER": allow_other})})
            assert checks.check_machine(None) == []
        is_root = user == 0
        assert asked == [(is_root, is_root), (is_root, True), (is_root, False)]

    def test_a_real_binary(self, configure: Configure, litefs_binary: Path, tmp_path: Path) -> None:
        configure({**ONE_NODE, "BINARY": str(litefs_binary)})
        assert checks.check_binary(None) == []

    def test_no_binary(self, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
        configure({**ONE_NODE, "BINARY": "/nonexistent/litefs"})
        (message,) = checks.check_binary(None)
        assert ids([message]) == ["E014"]
        assert "/nonexistent/litefs" in message.msg

    def test_another_program(self, configure: Configure, tmp_path: Path) -> None:
        other = tmp_path / "litefs"
        other.write_text("#!/bin/sh\necho LiteFS v0.5.11, commit=x\n")
        other.chmod(0o755)
        configure({**ONE_NODE, "BINARY": str(other)})
        (message,) = checks.check_binary(None)
        assert ids([message]) == ["E015"]
        assert "v0.5.11" in message.msg


def test_every_id_is_documented_once() -> None:
    documented = re.findall(
        r"^``litefs_django\.([EW]\d{3})``", (ROOT / "docs" / "checks.rst").read_text(), re.MULTILINE
    )
    sources = [*(ROOT / "litefs_django" / "checks").glob("*.py"), *(ROOT / "litefs_django" / "_litefs").glob("*.py")]
    used = {code for source in sources for code in re.findall(r'"(?:litefs_django\.)?([EW]0\d\d)"', source.read_text())}
    assert documented == sorted(used)


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
