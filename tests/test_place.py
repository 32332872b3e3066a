"""A node's role by one stat; the mode bits as LiteFS sets them are in tests/cluster/test_mount.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from litefs_django._litefs.mount import PrimaryDetector
from litefs_django._litefs.node_file import LeaseWords, NodeFile, NodeFileWriter, boottime_ns
from litefs_django._litefs.reading import read_settings
from litefs_django.db.backends.litefs.place import Place, Role
from tests.machine import SECRET


def place(directory: Path, **litefs: Any) -> Place:
    settings = read_settings({"NODE": "web1", "NODES": {"web1": {"ADDRESS": "127.0.0.1"}}, **litefs}, {})
    return Place("default", directory / "db", settings, PrimaryDetector(directory), NodeFile(directory))


RAFT = {"LEADER_ELECTION": "raft", "SECRET": SECRET}


def test_with_raft_mode_bits_alone_do_not_make_a_primary(tmp_path: Path) -> None:
    file, device = tmp_path / "db", tmp_path.stat().st_dev
    file.touch(mode=0o644)
    raft, static = place(tmp_path, **RAFT), place(tmp_path)
    assert static.role(device) is Role.PRIMARY
    assert raft.role(device) is Role.REPLICA, "no supervisor says until when"
    writer = NodeFileWriter(tmp_path)
    raft = place(tmp_path, **RAFT)
    lease, now = LeaseWords(tmp_path), boottime_ns() / 1e9
    lease.set_deadline(now + 60)
    assert raft.role(device) is Role.PRIMARY
    lease.set_deadline(now - 0.001)
    assert raft.role(device) is Role.REPLICA
    lease.set_deadline(0)
    assert raft.role(device) is Role.REPLICA
    assert static.role(device) is Role.PRIMARY
    writer.close()


@pytest.mark.parametrize("litefs", [{}, RAFT])
def test_a_lease_alone_does_not_make_a_primary_either(tmp_path: Path, litefs: dict[str, Any]) -> None:
    file, device = tmp_path / "db", tmp_path.stat().st_dev
    writer = NodeFileWriter(tmp_path)
    LeaseWords(tmp_path).set_deadline(boottime_ns() / 1e9 + 60)
    found = place(tmp_path, **litefs)
    assert found.role(device) is Role.GONE
    file.touch()
    file.chmod(0o444)
    assert found.role(device) is Role.REPLICA
    assert found.role(device + 1) is Role.GONE
    writer.close()
