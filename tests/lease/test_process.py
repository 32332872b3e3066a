"""The lease process: what it is told, and how it ends."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from litefs_django._litefs.certificates import issue
from litefs_django._litefs.node.lease.description import LeaseDescription
from litefs_django._litefs.node.lease.files import NAME
from litefs_django._litefs.node_file import NodeFileWriter
from tests.lease.members import ROOT
from tests.machine import SECRET, free_ports


@pytest.fixture
def description(tmp_path: Path) -> Iterator[LeaseDescription]:
    raft, relay, litefs = free_ports(3)
    node_file = NodeFileWriter(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield LeaseDescription(
            name="web1",
            members={"web1": f"127.0.0.1:{raft}"},
            relays={"web1": f"127.0.0.1:{relay}"},
            secrets=(SECRET,),
            urls={"web1": f"http://127.0.0.1:{litefs}"},
            identity=issue("web1", (SECRET,)),
            ttl=3.0,
            directory=tmp_path / "raft",
            data_path=tmp_path / "data",
            is_bootstrap=False,
            listener=listener.fileno(),
            run_path=tmp_path,
            token="token",
            key="litefs",
            litefs_url=f"http://127.0.0.1:{litefs}",
        )
    node_file.close()


def run(description: LeaseDescription, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    description.write(tmp_path / "lease.json")
    command = [sys.executable, "-m", "litefs_django._litefs.node.lease", str(tmp_path / "lease.json")]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, pass_fds=[description.listener]
    )


def test_the_description_is_for_its_owner_and_arrives_as_it_was(description: LeaseDescription, tmp_path: Path) -> None:
    description.write(tmp_path / "lease.json")
    assert LeaseDescription.read(tmp_path / "lease.json") == description
    assert stat.S_IMODE((tmp_path / "lease.json").stat().st_mode) == 0o600


def test_a_port_in_use_ends_it_with_one_line(description: LeaseDescription, tmp_path: Path) -> None:
    host, _, port = description.relays["web1"].rpartition(":")
    with closing(socket.create_server((host, int(port)))):
        ended = run(description, tmp_path)
    assert ended.returncode == 1
    assert f"The relay cannot listen on {host} port {port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_damaged_file_ends_it_with_one_line(description: LeaseDescription, tmp_path: Path) -> None:
    description.directory.mkdir()
    (description.directory / NAME).write_text("{")
    ended = run(description, tmp_path)
    assert ended.returncode == 1
    assert "is damaged" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_of_another_machine_ends_it_with_one_line(description: LeaseDescription, tmp_path: Path) -> None:
    ended = run(replace(description, members={"web1": "192.0.2.1:4321"}), tmp_path)
    assert ended.returncode == 1
    assert "192.0.2.1:4321 cannot be listened on: RAFT_PORT is in use, or not this machine's" in ended.stderr
