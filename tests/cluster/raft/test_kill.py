"""kill -9 of what makes up a node."""

from __future__ import annotations

import pytest

from tests.cluster.raft.cluster import PARTS, RaftCluster

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    "part", ["litefs", "all", *(pytest.param(part, marks=pytest.mark.raft) for part in ("lease", "supervisor"))]
)
def test_the_primary_loses(cluster: RaftCluster, part: str) -> None:
    """Another node takes over; or this one goes on, if its next lease process answers before the lease has ended."""
    primary, replicas = cluster.primary, cluster.replicas
    failed = cluster.fails_now()
    cluster.kill(primary, part)
    cluster.wait_for_writes(replicas, failed)
    if part in ("supervisor", "all"):
        cluster.restart(primary)
    print(cluster.finish())


@pytest.mark.raft
@pytest.mark.parametrize("part", PARTS)
def test_a_replica_loses(cluster: RaftCluster, part: str) -> None:
    """Nobody else notices, and nothing is lost."""
    replica, primary = cluster.replicas[0], cluster.primary
    others = [node for node in cluster.nodes if node is not replica]
    failed = cluster.fails_now()
    cluster.kill(replica, part)
    cluster.wait_for_writes(others, failed)
    if part in ("supervisor", "all"):
        cluster.restart(replica)
    print(cluster.finish(may_lose=False))
    assert cluster.primary is primary
