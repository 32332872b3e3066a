"""litefs_check where there is no LiteFS; tests/cluster/test_check_command.py has real nodes."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import override_settings
from pytest_django import Settings

from litefs_django._litefs.node import checkup
from tests.configuring import OURS, Configure
from tests.machine import free_ports


def run(*arguments: str) -> tuple[int, str]:
    """The exit code, and what was printed."""
    stdout = StringIO()
    try:
        call_command("litefs_check", *arguments, stdout=stdout)
    except SystemExit as end:
        return int(str(end.code)), stdout.getvalue()
    return 0, stdout.getvalue()


def test_litefs_is_not_in_use(configure: Configure, settings: Settings) -> None:
    configure({"ENABLED": False, "MOUNT_PATH": 5}, default=OURS)
    settings.BASE_DIR = "/srv/mysite"
    code, printed = run()
    assert code == 0
    assert printed == (
        'warning  settings     LITEFS["ENABLED"] is False: no LiteFS, the databases are plain files '
        "(default: /srv/mysite/db.sqlite3).\n"
        "                      Fix: Are NODE and DEBUG set in this shell as they are for litefs_run?\n"
        "\n0 errors, 1 warning.\n"
    )


@pytest.fixture
def one_node(configure: Configure, tmp_path: Path, litefs_binary: Path) -> dict[str, Any]:
    litefs = {
        "NODE": "a",
        "NODES": {"a": {"ADDRESS": "127.0.0.1", "HTTP_PORT": free_ports(1)[0]}},
        "BINARY": str(litefs_binary),
        **{key: str(tmp_path / key) for key in ("MOUNT_PATH", "DATA_PATH", "RUN_PATH")},
    }
    configure(litefs, default={**OURS, "CONN_MAX_AGE": None})
    return litefs


def findings() -> list[dict[str, str]]:
    _, printed = run("--format", "json")
    found: list[dict[str, str]] = json.loads(printed)["findings"]
    return found


def test_one_node_that_has_never_run(one_node: dict[str, Any]) -> None:
    found = findings()
    # What this machine lacks, if it does, is not this test's.
    levels = {finding["subject"]: finding["level"] for finding in found if finding["subject"] != "machine"}
    assert levels == {
        "settings": "ok",
        "binary": "ok",
        "directories": "ok",
        "port": "ok",
        "supervisor": "warning",
        "disk": "ok",
    }
    assert found[0]["message"] == "1 node, this one is 'a'; the primary is 'a'"


def test_on_another_system(one_node: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at on a running machine does not exist there."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(checkup, "check_up", None)
    code, printed = run()
    assert code == 1
    assert "(litefs_django.E016) LiteFS runs on Linux only" in printed


def test_what_is_silenced(one_node: dict[str, Any], configure: Configure) -> None:
    configure(one_node, default=OURS)
    assert [finding["id"] for finding in findings() if finding["id"]] == ["litefs_django.W002"]
    with override_settings(SILENCED_SYSTEM_CHECKS=["litefs_django.W002"]):
        assert not [finding for finding in findings() if finding["id"]]
