"""`manage.py litefs_run` where there is no LiteFS to run; with one: tests/cluster/run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from tests.cluster.run.applications import python
from tests.cluster.run.nodes import MANAGE, ROOT


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A project with ENABLED False; its database lies in tmp_path."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.cluster.project_settings",
        "LITEFS_TEST_LITEFS": json.dumps({"ENABLED": False, "MOUNT_PATH": "/nonexistent"}),
        "LITEFS_TEST_DATABASE": str(tmp_path / "db.sqlite3"),
        "PYTHONPATH": str(ROOT),
    }


def litefs_run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(MANAGE), "litefs_run", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_disabled_the_command_takes_its_place(environment: dict[str, str]) -> None:
    code = "import os, sys; print(os.getpid(), sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, str(MANAGE), "litefs_run", "--", *python(code, "-v", "--", "--migrate")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        output, said = process.communicate(timeout=60)
    assert output == f"{process.pid} ['-v', '--', '--migrate']\n"
    file = environment["LITEFS_TEST_DATABASE"]
    assert said == f'LITEFS["ENABLED"] is False: no LiteFS, the databases are plain files (default: {file}).\n'
    assert process.returncode == 0


def test_disabled_exit_codes(environment: dict[str, str]) -> None:
    assert litefs_run(environment, "--", *python("raise SystemExit(3)")).returncode == 3
    killed = litefs_run(environment, "--", *python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert killed.returncode == -signal.SIGKILL
    missing = litefs_run(environment, "--", "/nonexistent/server")
    assert missing.returncode == 127
    assert "'/nonexistent/server' cannot be started" in missing.stderr


def test_disabled_migrates_first(environment: dict[str, str]) -> None:
    code = "import django; django.setup()\nfrom django.contrib.auth.models import Group; print(Group.objects.count())"
    result = litefs_run(environment, "--migrate", "--", *python(code))
    assert result.returncode == 0, result.stderr
    assert "Applying auth.0001_initial... OK" in result.stdout
    assert result.stdout.endswith("\n0\n")


def test_disabled_failing_migration(environment: dict[str, str]) -> None:
    environment["LITEFS_TEST_OPTIONS"] = '{"no_such_option": 1}'
    result = litefs_run(environment, "--migrate", "--", *python("print('application')"))
    assert result.returncode == 1
    assert "The migrations have failed." in result.stderr
    assert "application" not in result.stdout


def test_disabled_commands_for_the_primary_are_refused(environment: dict[str, str]) -> None:
    result = litefs_run(environment, "--on-primary", "sleep 1", "--", "true")
    assert result.returncode == 1
    assert "--on-primary needs LiteFS" in result.stderr


def test_a_command_is_needed(environment: dict[str, str]) -> None:
    result = litefs_run(environment, "--migrate")
    assert result.returncode == 2
    assert "It needs the command to run" in result.stderr


def test_options_of_the_command(environment: dict[str, str]) -> None:
    result = litefs_run(environment, "server", "--bind", ":8000")
    assert result.returncode == 2
    assert "-- CMD ..." in result.stderr
    assert 'unrecognized arguments: --bind :8000. Put "--" before the command' in result.stderr
    assert '"--" before' not in litefs_run(environment, "--bind", "--", "server").stderr


def test_a_command_of_the_virtual_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "server").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(CommandError, match=f"There is no command 'server' on PATH. Write '{tmp_path / 'server'}'"):
        call_command("litefs_run", "server")
    with pytest.raises(CommandError, match=r"There is no command 'other' on PATH\. Is it installed"):
        call_command("litefs_run", "other")


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CommandError, match="Linux only"):
        call_command("litefs_run", "server")


def test_settings_are_checked() -> None:
    """Those of the unit tests lead nowhere: all that is wrong is said, and nothing is made."""
    with pytest.raises(CommandError, match="There is no command '/nonexistent/server'"):
        call_command("litefs_run", "/nonexistent/server")
    assert not Path("/nonexistent").exists()
