"""A network that fails: cut, in one direction, slow, with losses."""

from __future__ import annotations

import time

import pytest

from tests.cluster.raft.cluster import RaftCluster
from tests.cluster.raft.writers import now

pytestmark = pytest.mark.cluster

# TTLs that a fault lasts.
LENGTH = 4


def last(cluster: RaftCluster) -> None:
    """Lets a fault last."""
    time.sleep(LENGTH * cluster.ttl)


def test_the_primary_is_cut_off(cluster: RaftCluster) -> None:
    """The others go on, and what it acknowledges until its lease ends is all that is lost."""
    primary, replicas = cluster.primary, cluster.replicas
    failed = cluster.fails_now()
    cluster.network.isolate(cluster.host(primary))
    cluster.wait_for_writes(replicas, failed)
    last(cluster)
    cluster.network.heal()
    print(cluster.finish())


@pytest.mark.raft
def test_a_replica_is_cut_off(cluster: RaftCluster) -> None:
    primary, (replica, other) = cluster.primary, cluster.replicas
    failed = cluster.fails_now()
    cluster.network.isolate(cluster.host(replica))
    cluster.wait_for_writes([primary, other], failed)
    last(cluster)
    cluster.wait_for_writes([primary, other], now())
    cluster.network.heal()
    print(cluster.finish())


@pytest.mark.raft
@pytest.mark.parametrize("way", ["says", "hears"])
@pytest.mark.parametrize("role", ["primary", "replica"])
def test_a_node_is_cut_off_in_one_direction(cluster: RaftCluster, role: str, way: str) -> None:
    """It `says` nothing that arrives, or `hears` nothing."""
    node = cluster.primary if role == "primary" else cluster.replicas[0]
    others = [other for other in cluster.nodes if other is not node]
    this, rest = [cluster.host(node)], [cluster.host(other) for other in others]
    cut = cluster.network.directions(this, rest) if way == "says" else cluster.network.directions(rest, this)
    failed = cluster.fails_now()
    cluster.network.fail(cut=cut)
    last(cluster)
    cluster.wait_for_writes(others, failed + cluster.ttl)
    cluster.network.heal()
    print(cluster.finish())


@pytest.mark.raft
def test_two_nodes_do_not_reach_each_other(cluster: RaftCluster) -> None:
    """The primary and one replica; the third reaches both."""
    primary, (replica, other) = cluster.primary, cluster.replicas
    pair = [cluster.host(primary), cluster.host(replica)]
    failed = cluster.fails_now()
    cluster.network.fail(cut=cluster.network.directions(pair, pair))
    last(cluster)
    cluster.wait_for_writes([other], failed + cluster.ttl)
    cluster.network.heal()
    print(cluster.finish())


@pytest.mark.raft
def test_all_are_apart(cluster: RaftCluster) -> None:
    """Nobody has a majority: no write is acknowledged after the lease has ended, until they meet again."""
    failed = cluster.fails_now()
    cluster.network.isolate(*cluster.network.hosts)
    last(cluster)
    healed = now()
    cluster.network.heal()
    print(cluster.finish())
    late = [write for write in cluster.acknowledged() if failed + cluster.ttl < write.began and write.ended < healed]
    assert not late, late


@pytest.mark.raft
@pytest.mark.parametrize(("delay", "loss"), [(0.1, 0.0), (0.0, 0.2)], ids=["slow", "lossy"])
def test_bad_links(cluster: RaftCluster, delay: float, loss: float) -> None:
    """200 ms there and back, or a fifth of all packets lost: writes go on, or resume meanwhile."""
    cluster.fails_now()
    cluster.network.fail(delay=delay, loss=loss)
    last(cluster)
    cluster.wait_for_writes([cluster.primary], now())
    cluster.network.heal()
    print(cluster.finish())


@pytest.mark.raft
def test_links_that_are_slow_and_lossy(cluster: RaftCluster) -> None:
    """Both: more than Raft's time-outs bear. Nobody can say for long that he is the primary, until it is over."""
    cluster.fails_now()
    cluster.network.fail(delay=0.1, loss=0.2)
    last(cluster)
    cluster.network.heal()
    print(cluster.finish())


@pytest.mark.raft
def test_power_is_lost(cluster: RaftCluster) -> None:
    """The primary's link is cut, and all of its processes are gone; then it starts again."""
    primary, replicas = cluster.primary, cluster.replicas
    failed = cluster.fails_now()
    cluster.network.isolate(cluster.host(primary))
    cluster.kill(primary, "all")
    cluster.wait_for_writes(replicas, failed)
    cluster.network.heal()
    cluster.restart(primary)
    print(cluster.finish())
