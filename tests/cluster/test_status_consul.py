from __future__ import annotations

import pytest

from tests.cluster.nodes import ConsulCluster
from tests.cluster.test_status import answer, open_database


@pytest.mark.consul
def test_after_a_change_of_the_primary(consul_cluster: ConsulCluster) -> None:
    with open_database(consul_cluster.primary) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (value)")
    consul_cluster.wait_equal()
    consul_cluster.promote(consul_cluster.nodes[2])
    found = answer(consul_cluster.nodes[0])
    assert found["reasons"] == []
    assert [node["role"] for node in found["nodes"]] == ["replica", "replica", "primary"]
    assert {node["primary"] for node in found["nodes"]} == {"node3"}
    assert all(node["candidate"] for node in found["nodes"])
