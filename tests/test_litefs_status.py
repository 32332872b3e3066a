"""Clusters of which nothing answers; tests/cluster/test_status.py has real ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from litefs_django.management.commands.litefs_status import _lease_rows
from tests.machine import free_ports


@contextmanager
def stopped_cluster() -> Iterator[list[int]]:
    ports = free_ports(2)
    nodes = {f"node{port}": {"ADDRESS": "127.0.0.1", "HTTP_PORT": port} for port in ports}
    names = list(nodes)
    with override_settings(LITEFS={"NODES": nodes, "NODE": names[0], "PRIMARY": names[1]}):
        yield ports


def run(*arguments: str) -> tuple[int, str]:
    """The exit code, and what was printed."""
    stdout = StringIO()
    try:
        call_command("litefs_status", *arguments, stdout=stdout)
    except SystemExit as end:
        return int(str(end.code)), stdout.getvalue()
    return 0, stdout.getvalue()


@pytest.mark.parametrize(
    ("holder", "left", "expected"),
    [
        (None, None, "nobody"),
        ("web1", 2.34, "web1, for 2.3 s unless it renews it or gives it back"),
        ("web1", 0.0, "web1 until it ran out, and nobody else before a node leads"),
    ],
)
def test_the_lease_is_told(holder: str | None, left: float | None, expected: str) -> None:
    lease = {"holder": holder, "left": left, "term": 1, "leader": None, "voters": {"web1": True}, "votes": "It votes."}
    assert next(_lease_rows(lease, "web1")) == ("LEASE", expected)


def test_nobody_answers() -> None:
    with stopped_cluster() as (first, second):
        code, printed = run()
    assert code == 1
    assert printed.splitlines() == [
        "NODE              ROLE       CANDIDATE  LAG  DATABASE  POSITION",
        f"node{first:<5} (here)  no answer",
        f"node{second:<5}         no answer".rstrip(),
        "",
        "Not healthy:",
        f"- node{first}: http://127.0.0.1:{first}/info did not answer: Connection refused.",
        f"- node{second}: http://127.0.0.1:{second}/info did not answer: Connection refused.",
        "- No node is primary.",
    ]


def test_as_json() -> None:
    with stopped_cluster() as (first, _):
        code, printed = run("--format", "json")
    status: dict[str, Any] = json.loads(printed)
    assert code == 1
    assert status["healthy"] is False
    assert len(status["reasons"]) == 3
    assert status["nodes"][0] == {
        "name": f"node{first}",
        "here": True,
        "answers": False,
        "error": f"http://127.0.0.1:{first}/info did not answer: Connection refused.",
        "role": None,
        "primary": None,
        "candidate": None,
        "cluster_id": None,
        "lag": None,
        "positions": {},
    }
    assert [node["here"] for node in status["nodes"]] == [True, False]


@override_settings(LITEFS={"MAX_LAG": 0, "MOUNTPATH": ""})
def test_it_names_each_wrong_setting() -> None:
    with pytest.raises(CommandError) as error:
        run()
    assert 'LITEFS["MAX_LAG"]' in str(error.value)
    assert 'LITEFS["MOUNTPATH"]' in str(error.value)
