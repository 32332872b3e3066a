"""What a node says of itself, and what a command says that writes on the wrong one."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.cluster.commands import fail, succeed
from tests.cluster.connections import DjangoConnections, create_tables, python
from tests.cluster.nodes import StaticCluster

pytestmark = pytest.mark.cluster

SAY = """
import json, time
from litefs_django import is_primary, position, primary, wait_for
here = primary()
now = position()
later = f"{(now.txid if now else 0) + 1000:016x}/0123456789abcdef"
began = time.monotonic()
print(json.dumps({
    "is_primary": is_primary(),
    "primary": here and here.name,
    "position": str(now),
    "reached": [wait_for(None, 0), wait_for(now, 0), wait_for(str(now), 0), wait_for(later, 0.2)],
    "waited": time.monotonic() - began >= 0.2,
}))
"""


def said(cluster: StaticCluster, number: int, code: str = SAY) -> dict[str, object]:
    command = python(cluster.nodes[number], "import django; django.setup()\n" + code)
    result = subprocess.run(**command, capture_output=True, check=True)
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_what_each_node_says(static_cluster: StaticCluster, django_connection: DjangoConnections) -> None:
    create_tables(django_connection(static_cluster.primary))
    static_cluster.wait_equal()
    position = str(static_cluster.primary.position())
    for number, node in enumerate(static_cluster.nodes):
        assert said(static_cluster, number) == {
            "is_primary": node is static_cluster.primary,
            "primary": static_cluster.primary.name,
            "position": position,
            "reached": [True, True, True, False],
            "waited": True,
        }


def test_without_litefs(static_cluster: StaticCluster) -> None:
    static_cluster.primary.kill()
    code = "from litefs_django import *; import json; print(json.dumps([is_primary(), primary(), position()]))"
    assert said(static_cluster, 0, code) == [False, None, None]  # type: ignore[comparison-overlap]


def test_a_command_that_writes_on_a_replica(static_cluster: StaticCluster) -> None:
    succeed(static_cluster.nodes[0], "migrate")
    static_cluster.wait_equal()
    errors = fail(static_cluster.nodes[1], "createsuperuser", "--noinput", "--username=ada", "--email=ada@example.com")
    assert errors.splitlines()[-1] == (
        "Node 'node2' is a replica, and only the primary 'node1' (127.0.0.1) writes. Run it there: "
        "python -m django createsuperuser --noinput --username=ada --email=ada@example.com"
    )
    succeed(static_cluster.nodes[1], "check")
