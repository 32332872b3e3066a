"""The clusters of the other tests are what they claim to be."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.nodes import Cluster, ConsulCluster, LiteFSNode, StaticCluster
from tests.machine import leftover_processes, mount_points


def write(node: LiteFSNode, value: str) -> None:
    """Adds a row through SQLite alone."""
    with closing(sqlite3.connect(f"file:{node.database()}?mode=rwc", uri=True, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS t (value)")
        connection.execute("INSERT INTO t VALUES (?)", [value])


def rows_everywhere(cluster: Cluster) -> set[tuple[str, ...]]:
    """The rows of each answering node, once all are at the same position."""
    cluster.wait_equal()
    found = set()
    for node in cluster.answering:
        with closing(sqlite3.connect(f"file:{node.database()}?mode=ro", uri=True)) as connection:
            found.add(tuple(value for (value,) in connection.execute("SELECT value FROM t ORDER BY rowid")))
    return found


@pytest.mark.cluster
def test_a_write_on_the_primary_arrives_everywhere(static_cluster: StaticCluster) -> None:
    write(static_cluster.primary, "one")
    assert rows_everywhere(static_cluster) == {("one",)}


@pytest.mark.cluster
def test_each_node_comes_back_after_a_kill(static_cluster: StaticCluster) -> None:
    write(static_cluster.primary, "one")
    for node in static_cluster.nodes:
        node.kill()
        assert str(node.mount) in mount_points()
        static_cluster.start()
        write(static_cluster.primary, node.name)
    assert rows_everywhere(static_cluster) == {("one", "node1", "node2", "node3")}


@pytest.mark.cluster
def test_a_node_stops_cleanly_and_comes_back(static_cluster: StaticCluster) -> None:
    write(static_cluster.primary, "one")
    for node in static_cluster.nodes:
        assert node.stop() == 0
        assert str(node.mount) not in mount_points()
        static_cluster.start()
    assert rows_everywhere(static_cluster) == {("one",)}


@pytest.mark.cluster
def test_a_paused_replica_catches_up(static_cluster: StaticCluster) -> None:
    write(static_cluster.primary, "one")
    static_cluster.wait_equal()
    replica = static_cluster.replicas[0]
    replica.pause()
    write(static_cluster.primary, "two")
    replica.resume()
    assert rows_everywhere(static_cluster) == {("one", "two")}


@pytest.mark.cluster
def test_nothing_is_left_even_of_a_busy_cluster(tmp_path: Path, litefs_binary: Path) -> None:
    with StaticCluster(2, tmp_path, litefs_binary) as cluster:
        write(cluster.primary, "one")
        pids = {node.pid for node in cluster.nodes}
        cluster.nodes[1].pause()
        with closing(sqlite3.connect(cluster.primary.database())) as connection:
            connection.execute("BEGIN IMMEDIATE")
            cluster.clean_up()
    assert not [path for path in mount_points() if Path(path).is_relative_to(tmp_path)]
    assert not pids & {process.pid for process in leftover_processes()}


@pytest.mark.consul
def test_each_node_can_be_made_primary(consul_cluster: ConsulCluster) -> None:
    for node in (*consul_cluster.nodes, *consul_cluster.nodes):
        consul_cluster.promote(node)
        assert consul_cluster.primary is node
        write(node, node.name)
    assert rows_everywhere(consul_cluster) == {("node1", "node2", "node3") * 2}


@pytest.mark.consul
def test_another_node_takes_over_from_a_killed_primary(consul_cluster: ConsulCluster) -> None:
    write(consul_cluster.primary, "one")
    consul_cluster.wait_equal()
    killed = consul_cluster.primary
    killed.kill()
    consul_cluster.expire_lease()
    consul_cluster.wait_settled()
    write(consul_cluster.primary, "two")
    consul_cluster.start()
    assert consul_cluster.primary is not killed
    assert rows_everywhere(consul_cluster) == {("one", "two")}
