"""Real LiteFS that replicates through two relays."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from litefs_django._litefs import config
from tests.cluster.nodes import DATABASE, LiteFSNode, StaticCluster, wait_for
from tests.machine import free_ports
from tests.relays import RelayProcess

pytestmark = pytest.mark.cluster


class RelayedNode(LiteFSNode):
    """Its LiteFS finds the primary at `port` on loopback, and not where the settings say."""

    port: int

    def _write_config(self) -> None:
        content = config.ConfigGenerator(self.settings).config
        content["lease"]["advertise-url"] = f"http://127.0.0.1:{self.port}"
        self._config.write_text(config.render(content))


class RelayedCluster(StaticCluster):
    """Two nodes: the second one's LiteFS reaches the first one's through both relays."""

    def __init__(self, directory: Path, binary: Path) -> None:
        super().__init__(2, directory, binary)
        primary, replica = self.nodes
        self.replica = RelayedNode(replica.litefs, directory / replica.name, binary)
        self.nodes[1] = self.replica
        members = {node.name: f"127.0.0.1:{port}" for node, port in zip(self.nodes, free_ports(2), strict=True)}
        self.relays = [RelayProcess(node.name, members, node.http_port) for node in (primary, self.replica)]
        self._running = ExitStack()

    def start(self) -> None:
        for relay in self.relays:
            self._running.enter_context(relay)
        self.grant("node1")
        self.replica.port = self.relays[1].ports["node1"]
        super().start()

    def clean_up(self) -> None:
        with self._running:
            super().clean_up()

    def grant(self, name: str) -> None:
        """Tells the relays who holds the lease."""
        for relay in self.relays:
            relay.tell("holder", name)

    def write(self) -> None:
        with closing(sqlite3.connect(self.primary.database(), isolation_level=None)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
            connection.execute("INSERT INTO t VALUES (randomblob(1000000))")

    def rows(self) -> int:
        """How many the replica has."""
        with closing(sqlite3.connect(f"file:{self.replica.database()}?mode=ro", uri=True)) as connection:
            count: int = connection.execute("SELECT count(*) FROM t").fetchone()[0]
            return count


@pytest.fixture
def cluster(tmp_path: Path, litefs_binary: Path) -> Iterator[RelayedCluster]:
    with RelayedCluster(tmp_path, litefs_binary) as cluster:
        yield cluster


def test_data_arrives_and_litefs_connects_again_after_a_cut(cluster: RelayedCluster) -> None:
    cluster.write()
    cluster.wait_equal(DATABASE)
    assert cluster.rows() == 1
    for relay in cluster.relays:
        disconnections = cluster.replica.log.read_text().count("disconnected from primary")
        relay.tell("cut", "node1")
        wait_for(
            lambda seen=disconnections: cluster.replica.log.read_text().count("disconnected from primary") > seen,  # type: ignore[misc]
            "LiteFS has lost its stream",
            cluster.nodes,
        )
        cluster.write()
        cluster.wait_equal(DATABASE)
    assert cluster.rows() == 3


def test_nothing_arrives_from_a_primary_that_has_lost_the_lease(cluster: RelayedCluster) -> None:
    cluster.write()
    cluster.wait_equal(DATABASE)
    cluster.grant("node2")
    for relay in cluster.relays:
        relay.tell("cut", "node1")
    cluster.write()
    refused = cluster.replica.log.read_text().count("\n")
    wait_for(lambda: cluster.replica.log.read_text().count("\n") > refused + 3, "LiteFS tries again", cluster.nodes)
    assert cluster.rows() == 1
    cluster.grant("node1")
    cluster.wait_equal(DATABASE)
    assert cluster.rows() == 2
