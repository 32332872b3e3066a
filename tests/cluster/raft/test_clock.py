"""The wall clock of a node moves by an hour: the lease knows no wall clock.

It moves for supervisor, lease process and application. LiteFS is linked statically and reads the machine's; for its
lease it uses Go's monotonic time (LiteFS v0.5.14, store.go, monitorLeaseAsPrimary).
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster.raft.conftest import MakeCluster
from tests.cluster.raft.writers import now

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.raft,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing"),
]

HOUR = 3600


@pytest.mark.parametrize("moved", [HOUR, -HOUR])
@pytest.mark.parametrize("role", ["primary", "replica"])
def test_the_wall_clock_moves(make_cluster: MakeCluster, tmp_path: Path, role: str, moved: int) -> None:
    cluster = make_cluster()
    library = tmp_path / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    for node in cluster.nodes:
        clock = tmp_path / f"{node.name}.clock"
        clock.write_bytes(struct.pack("l", 0))
        node.environment |= {"LD_PRELOAD": str(library), "CLOCK_FILE": str(clock)}
    with cluster:
        primary = cluster.primary
        node = primary if role == "primary" else cluster.replicas[0]
        others = [other for other in cluster.nodes if other is not node]
        with (tmp_path / f"{node.name}.clock").open("r+b", buffering=0) as clock_file:
            clock_file.write(struct.pack("l", moved))
            time.sleep(3 * cluster.ttl)
            # What nodes sign for each other is not valid on both sides now: who hands over to it, or it to, is refused.
            cluster.wait_for_writes([primary] if role == "primary" else others, now())
            assert cluster.primary is primary
            clock_file.seek(0)
            clock_file.write(struct.pack("l", 0))
        print(cluster.finish(may_lose=False))
