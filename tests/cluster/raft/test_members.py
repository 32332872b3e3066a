"""Nodes that are restarted, all at once and one after the other, and a cluster that grows."""

from __future__ import annotations

import signal

import pytest

from tests.cluster.raft.cluster import RaftCluster
from tests.cluster.raft.conftest import MakeCluster
from tests.cluster.raft.writers import now

pytestmark = [pytest.mark.cluster, pytest.mark.raft]


def test_all_are_killed_at_once(cluster: RaftCluster) -> None:
    cluster.fails_now()
    for node in cluster.nodes:
        cluster.kill(node, "all")
    cluster.restart(*cluster.nodes)
    print(cluster.finish())


def test_all_are_stopped_at_once(cluster: RaftCluster) -> None:
    """Cleanly; what the last primary had to itself is there when it is back."""
    cluster.fails_now()
    for node in cluster.nodes:
        cluster.signal(node, "supervisor", signal.SIGTERM)
    cluster.restart(*cluster.nodes)
    print(cluster.finish())


def test_one_after_the_other_is_restarted(cluster: RaftCluster) -> None:
    """As a release is deployed: nothing is lost."""
    for node in cluster.nodes:
        since = cluster.fails_now()
        node.stop()
        cluster.wait_for_writes([other for other in cluster.nodes if other is not node], since)
        cluster.restart(node)
        cluster.wait_for_writes(cluster.nodes, now())
    print(cluster.finish(may_lose=False))


def test_one_node_becomes_three(make_cluster: MakeCluster) -> None:
    """The first node restarts with the new list, and the others get all it has."""
    cluster = make_cluster(3)
    first, *others = cluster.nodes
    members = first.litefs["NODES"]
    cluster.use_members([first])
    cluster.starting = [first]
    with cluster:
        since = cluster.fails_now()
        first.stop()
        for node in cluster.nodes:
            node.litefs["NODES"] = members
        cluster.restart(first)
        cluster.start_nodes(others)
        for node in others:
            cluster.start_writer(node)
        cluster.wait_for_writes(cluster.nodes, since)
        print(cluster.finish(may_lose=False))
