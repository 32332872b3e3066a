"""Failover of real LiteFS under the lease of ours."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.leases import KEY, LeaseCluster, stopped
from tests.cluster.nodes import LiteFSNode
from tests.machine import wait_until

pytestmark = pytest.mark.cluster

TTL = 3.0


@pytest.fixture
def cluster(tmp_path: Path, litefs_binary: Path) -> Iterator[LeaseCluster]:
    with LeaseCluster(3, tmp_path, litefs_binary, TTL) as cluster:
        yield cluster


def write(node: LiteFSNode) -> None:
    with closing(sqlite3.connect(node.database(), isolation_level=None)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
        connection.execute("INSERT INTO t VALUES (1)")


def others(cluster: LeaseCluster, node: LiteFSNode) -> list[LiteFSNode]:
    return [other for other in cluster.nodes if other is not node]


def test_one_node_is_elected_and_stays(cluster: LeaseCluster) -> None:
    primary = cluster.primary
    write(primary)
    cluster.wait_equal()
    held = cluster.lease(primary).status()["held"]
    wait_until(lambda: cluster.lease(primary).status()["held"]["deadline"] > held["deadline"] + TTL, "it renews")
    assert cluster.primary is primary
    assert {lease.status()["state"]["lease"]["node"] for lease in cluster.leases.values()} == {primary.name}
    assert {lease.status()["state"]["grants"] for lease in cluster.leases.values()} == {1}


def test_killed_litefs_is_replaced_at_once(cluster: LeaseCluster) -> None:
    primary = cluster.primary
    write(primary)
    cluster.wait_equal()
    killed = time.monotonic()
    cluster.lose(primary)
    new = cluster.wait_primary(others(cluster, primary))
    assert time.monotonic() - killed < TTL, "it has waited for the lease to expire"
    write(new)
    primary.start()
    cluster.wait_settled()
    cluster.wait_equal()
    assert cluster.primary is new


def test_a_lost_node_is_replaced_when_its_lease_has_expired(cluster: LeaseCluster) -> None:
    primary = cluster.primary
    write(primary)
    cluster.wait_equal()
    lease = cluster.lease(primary)
    deadline = lease.status()["held"]["deadline"]
    lease.kill()
    primary.kill()
    new = cluster.wait_primary(others(cluster, primary))
    assert time.clock_gettime(time.CLOCK_BOOTTIME) > deadline, "it could still have acted"
    write(new)
    lease.start()
    primary.start()
    cluster.wait_settled()
    cluster.wait_equal()


def test_a_clean_stop_gives_the_lease_back(cluster: LeaseCluster) -> None:
    primary = cluster.primary
    stopped_at = time.monotonic()
    assert primary.stop() == 0
    cluster.wait_primary(others(cluster, primary))
    assert time.monotonic() - stopped_at < TTL


def test_the_role_is_handed_there_and_back_within_one_session(cluster: LeaseCluster) -> None:
    first, second = cluster.primary, cluster.replicas[0]
    write(first)
    cluster.wait_equal()
    session = cluster.lease(first).status()["held"]["session"]
    for number, node in enumerate((second, first), start=2):
        cluster.hand_off(node)
        cluster.wait_settled()
        lease = cluster.lease(node)
        assert lease.status()["state"]["lease"]["grant"] == number
        deadline = lease.status()["held"]["deadline"]
        wait_until(lambda lease=lease, last=deadline: lease.status()["held"]["deadline"] > last, "it renews")  # type: ignore[misc]
        assert lease.status()["held"]["session"] == session
        write(node)
        cluster.wait_equal()


def test_a_lease_process_that_is_killed_costs_nothing(tmp_path: Path, litefs_binary: Path) -> None:
    """Where it is there again within the TTL: on a loaded machine Python alone takes seconds to start.

    The next one goes through the holders of before, and takes nothing from the node for that.
    """
    with LeaseCluster(3, tmp_path, litefs_binary, 20.0) as cluster:
        primary = cluster.replicas[0]
        cluster.hand_off(primary)
        cluster.wait_settled()
        lease = cluster.lease(primary)
        session = lease.status()["held"]["session"]
        deadline = lease.node_file.deadline
        lease.kill()
        lease.start()
        wait_until(lambda: lease.status()["state"]["grants"], "it has caught up", context=cluster.logs)
        assert lease.node_file.deadline >= deadline > 0
        wait_until(lambda: lease.status()["held"], "it has renewed", context=cluster.logs)
        assert lease.status()["held"]["session"] == session
        assert cluster.primary is primary
        assert lease.status()["state"]["grants"] == 2


def test_without_a_majority_the_primary_leaves_before_its_deadline(cluster: LeaseCluster) -> None:
    primary = cluster.primary
    write(primary)
    cluster.wait_equal()
    lease = cluster.lease(primary)
    for node in others(cluster, primary):
        cluster.lease(node).send(signal.SIGSTOP)
    deadline = lease.status()["held"]["deadline"]
    wait_until(lambda: not primary.is_primary(), "it is not primary", context=cluster.logs)
    left = time.clock_gettime(time.CLOCK_BOOTTIME)
    # One renewal may have been committed beside the question.
    assert left < deadline + TTL / 2
    assert "could not be renewed in time" in lease.log.read_text()
    for node in others(cluster, primary):
        cluster.lease(node).send(signal.SIGCONT)
    write(cluster.wait_primary(cluster.nodes))
    cluster.wait_settled()
    cluster.wait_equal()


def test_a_node_whose_lease_process_hangs_is_replaced(cluster: LeaseCluster) -> None:
    """Its LiteFS has to be ended by its supervisor: LiteFS waits for the answer of its lease service for ever."""
    primary = cluster.primary
    write(primary)
    cluster.wait_equal()
    deadline = cluster.lease(primary).status()["held"]["deadline"]
    with stopped(cluster.lease(primary)):
        primary.kill()
        new = cluster.wait_primary(others(cluster, primary))
        assert time.clock_gettime(time.CLOCK_BOOTTIME) > deadline
    primary.start()
    cluster.wait_settled()
    assert cluster.primary is new


def test_the_most_advanced_node_wins(cluster: LeaseCluster) -> None:
    primary = cluster.primary
    ahead, behind = cluster.replicas
    write(primary)
    cluster.wait_equal()
    behind.kill()
    write(primary)
    wait_until(lambda: ahead.position() == primary.position(), "one replica has it")
    primary.kill()
    # It comes back to a primary that is dead, with what it had.
    behind.start()
    assert cluster.lease(primary).left()[0] == 200
    assert cluster.wait_primary([ahead, behind]) is ahead


def test_what_litefs_asks_is_answered_as_consul_does(cluster: LeaseCluster) -> None:
    primary = cluster.primary
    lease, other = cluster.lease(primary), cluster.lease(cluster.replicas[0])
    session = lease.status()["held"]["session"]
    status, text = other.call("GET", f"/v1/kv/{KEY}")
    (entry,) = json.loads(text)
    assert status == 200
    found = json.loads(b64decode(entry["Value"]))
    # A port of the relay: each node has its own for each other one.
    address = found.pop("advertise-url").removeprefix("http://")
    assert found == {"hostname": primary.name}
    assert address.rpartition(":")[0] == "127.0.0.1"
    assert address != f"127.0.0.1:{primary.http_port}"
    assert b64decode(json.loads(other.call("GET", f"/v1/kv/{KEY}/clusterid")[1])[0]["Value"]).startswith(b"LFSC")
    assert other.call("PUT", f"/v1/kv/{KEY}/clusterid", b"LFSC0000000000000000")[0] == 500

    mine = json.loads(other.call("PUT", "/v1/session/create", b"{}")[1])["ID"]
    assert other.call("PUT", f"/v1/kv/{KEY}?acquire={mine}", b"{}") == (200, "false")
    assert other.call("PUT", f"/v1/kv/{KEY}?release={mine}") == (200, "false")
    assert other.call("PUT", f"/v1/session/destroy/{mine}") == (200, "false")
    assert other.call("PUT", f"/v1/session/renew/{mine}")[0] == 404
    assert lease.call("PUT", f"/v1/session/renew/{mine}")[0] == 404
    assert lease.call("PUT", f"/v1/session/renew/{session}")[0] == 200
    assert other.left() == (200, "false")
    assert lease.call("GET", f"/v1/kv/{KEY}", token="another")[0] == 403
    for method, path in (("DELETE", f"/v1/kv/{KEY}"), ("GET", "/v1/kv/more"), ("PUT", "/v1/catalog/register")):
        assert lease.call(method, path)[0] == 400
    assert cluster.primary is primary


def test_a_lease_process_ends_when_it_is_told_to(cluster: LeaseCluster) -> None:
    lease = cluster.lease(cluster.replicas[0])
    assert lease.stop() == 0
    lease.start()
    wait_until(lambda: len(lease.status()["reachable"]) == 3, "it is back", context=cluster.logs)
