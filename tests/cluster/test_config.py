from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.nodes import StaticCluster

pytestmark = pytest.mark.cluster


def test_names_that_litefs_would_expand(tmp_path: Path, litefs_binary: Path) -> None:
    with StaticCluster(2, tmp_path / "$HOME-${PATH}-'\"ü", litefs_binary) as cluster:
        with closing(sqlite3.connect(cluster.primary.database(), isolation_level=None)) as connection:
            connection.execute("CREATE TABLE t (value)")
        cluster.wait_equal()
        assert all((node.data / "dbs").is_dir() for node in cluster.nodes)


def test_the_api_listens_on_one_address(static_cluster: StaticCluster) -> None:
    """Each node's port is free on this machine's other addresses."""
    listening = {
        line.split()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A"  # TCP_LISTEN
    }
    for node in static_cluster.nodes:
        assert f"0100007F:{node.http_port:04X}" in listening
        assert f"00000000:{node.http_port:04X}" not in listening
    assert not any(
        int(line.split()[1].rpartition(":")[2], 16) in {node.http_port for node in static_cluster.nodes}
        for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    )
