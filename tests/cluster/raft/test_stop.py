"""SIGSTOP of what makes up a node, and SIGCONT after a while."""

from __future__ import annotations

import time

import pytest

from tests.cluster.raft.cluster import PARTS, RaftCluster

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("part", "times"),
    [
        ("all", 5),
        *(
            pytest.param(part, times, marks=pytest.mark.raft)
            for part in PARTS
            for times in (1, 5)
            if (part, times) != ("all", 5)
        ),
    ],
)
def test_the_primary_stands_still(cluster: RaftCluster, part: str, times: int) -> None:
    """For as many TTLs. What goes on afterwards acknowledges nothing as the old primary."""
    primary, replicas = cluster.primary, cluster.replicas
    failed = cluster.fails_now()
    with cluster.stopped(primary, part):
        time.sleep(times * cluster.ttl)
        if times > 1:
            cluster.wait_for_writes(replicas, failed)
    print(cluster.finish())


@pytest.mark.raft
@pytest.mark.parametrize("part", PARTS)
def test_a_replica_stands_still(cluster: RaftCluster, part: str) -> None:
    replica, primary = cluster.replicas[0], cluster.primary
    others = [node for node in cluster.nodes if node is not replica]
    failed = cluster.fails_now()
    with cluster.stopped(replica, part):
        time.sleep(5 * cluster.ttl)
        cluster.wait_for_writes(others, failed)
    print(cluster.finish(may_lose=False))
    assert cluster.primary is primary
