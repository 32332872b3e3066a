"""The Raft file: on a full disk, damaged, lost; and all that a node had."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.raft.cluster import RaftCluster
from tests.cluster.raft.conftest import MakeCluster
from tests.cluster.run.nodes import SupervisedNode
from tests.machine import fill_disk, small_disk

pytestmark = [pytest.mark.cluster, pytest.mark.raft]


def raft_file(node: SupervisedNode) -> Path:
    return node.data / "raft" / "raft.json"


def test_the_disk_of_a_raft_file_is_full(make_cluster: MakeCluster) -> None:
    """Its node cannot vote, and says so; the other two can, and it can again once there is room."""
    cluster = make_cluster()
    full = cluster.nodes[2]
    with small_disk(raft_file(full).parent), cluster:
        filler = fill_disk(raft_file(full).parent)
        for node in cluster.nodes:
            # Each of them ends the term, so that there is something to be stored.
            failed = cluster.fails_now()
            cluster.kill(node, "lease")
            cluster.wait_for_writes(cluster.nodes, failed)
        full.wait_for_line("cannot be written")
        filler.unlink()
        print(cluster.finish())


def replace_while_it_is_down(cluster: RaftCluster, change: Callable[[SupervisedNode], object]) -> None:
    """Kills a whole replica, changes what it has on its disk, and starts it again."""
    replica = cluster.replicas[0]
    others = [node for node in cluster.nodes if node is not replica]
    failed = cluster.fails_now()
    cluster.kill(replica, "all")
    cluster.end(replica)
    change(replica)
    cluster.wait_for_writes(others, failed)
    cluster.restart(replica)


def test_a_raft_file_is_lost(cluster: RaftCluster) -> None:
    replace_while_it_is_down(cluster, lambda node: raft_file(node).unlink())
    print(cluster.finish())


def test_a_raft_file_is_damaged(cluster: RaftCluster) -> None:
    """The node refuses to start and says which file to remove; it may have voted for anybody."""
    replica = cluster.replicas[0]
    replace_while_it_is_down(cluster, lambda node: raft_file(node).write_bytes(raft_file(node).read_bytes()[:-9]))
    assert replica.wait() == 1
    assert replica.found(f"{raft_file(replica)} is damaged"), replica.output()
    raft_file(replica).unlink()
    cluster.restart(replica)
    print(cluster.finish())


def test_a_lost_node_is_replaced(cluster: RaftCluster) -> None:
    """By one of the same name whose disk is empty."""
    replace_while_it_is_down(cluster, lambda node: shutil.rmtree(node.data))
    print(cluster.finish())


def test_a_lost_primary_is_replaced(cluster: RaftCluster) -> None:
    primary, replicas = cluster.primary, cluster.replicas
    failed = cluster.fails_now()
    cluster.kill(primary, "all")
    cluster.wait_for_writes(replicas, failed)
    cluster.end(primary)
    shutil.rmtree(primary.data)
    cluster.restart(primary)
    print(cluster.finish())
