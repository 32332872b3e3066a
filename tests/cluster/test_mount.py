from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from litefs_django._litefs.errors import MountError
from litefs_django._litefs.mount import litefs_devices
from tests.cluster.nodes import DATABASE, StaticCluster
from tests.machine import wait_until

pytestmark = pytest.mark.cluster


def test_what_each_node_says(static_cluster: StaticCluster) -> None:
    primary, replica, _ = static_cluster.nodes
    # The database does not exist yet.
    assert primary.detector.is_primary(DATABASE)
    assert not replica.detector.is_primary(DATABASE)
    assert primary.detector.position(DATABASE) is None

    with closing(sqlite3.connect(primary.database(), isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (value)")
    static_cluster.wait_equal()
    position = primary.detector.position(DATABASE)
    assert position is not None
    assert position.txid == 1
    assert replica.detector.position(DATABASE) == position
    assert primary.detector.is_primary(DATABASE)
    assert not replica.detector.is_primary(DATABASE)

    assert primary.detector.primary_name() is None
    assert replica.detector.primary_name() == "node1"
    assert primary.detector.lag() == 0.0
    lag = replica.detector.lag()
    assert lag is not None
    assert 0 <= lag < 5


def test_the_mounts_are_known(static_cluster: StaticCluster) -> None:
    devices = [node.detector.device() for node in static_cluster.nodes]
    assert None not in devices
    assert len(set(devices)) == 3
    assert set(devices) <= litefs_devices()


def test_a_dead_mount(static_cluster: StaticCluster) -> None:
    replica = static_cluster.nodes[1]
    before = replica.detector.device()
    replica.kill()
    for ask in (replica.detector.lag, replica.detector.primary_name, lambda: replica.detector.is_primary(DATABASE)):
        with pytest.raises(MountError, match=f"LiteFS does not answer on {replica.mount}: "):
            ask()
    replica.unmount()
    assert replica.detector.device() is None
    assert before not in litefs_devices()


def test_a_replica_that_was_never_synchronised(tmp_path: Path, litefs_binary: Path) -> None:
    replica = StaticCluster(2, tmp_path, litefs_binary).nodes[1]
    try:
        replica.start()
        assert replica.detector.lag() is None
        assert not replica.detector.is_primary(DATABASE)
        wait_until(lambda: replica.detector.primary_name() in (None, "node1"), "it answers")
    finally:
        replica.clean_up()
