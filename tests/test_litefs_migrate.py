"""litefs_migrate where there is no LiteFS; tests/cluster/test_migrate.py has the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

ROOT = Path(__file__).parents[1]


def test_without_litefs_it_is_migrate(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.cluster.project_settings",
        "LITEFS_TEST_LITEFS": json.dumps({"ENABLED": False}),
        "LITEFS_TEST_DATABASE": str(tmp_path / "db.sqlite3"),
    }

    def litefs_migrate(*arguments: str) -> int:
        command = [sys.executable, "-m", "django", "litefs_migrate", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False
        ).returncode

    assert [litefs_migrate("--check"), litefs_migrate(), litefs_migrate("--check")] == [1, 0, 0]


def test_settings_that_cannot_work() -> None:
    with override_settings(LITEFS={"MOUNT_PTAH": "/x"}), pytest.raises(CommandError, match="Did you mean 'MOUNT_PATH'"):
        call_command("litefs_migrate")
