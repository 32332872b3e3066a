"""What `manage.py litefs_run` refuses: each with what to change, exit code 1 and nothing mounted."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.run.nodes import SupervisedNode
from tests.machine import free_ports, mount_points

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def _nothing_mounted(node: SupervisedNode) -> Iterator[None]:
    yield
    assert str(node.mount) not in mount_points()


def refusal(node: SupervisedNode, *arguments: str, **options: Any) -> str:
    node.start(*arguments, **options)
    assert node.wait() == 1, node.output()
    assert "Traceback" not in node.output()
    return node.output()


def test_mount_path_not_empty(node: SupervisedNode) -> None:
    node.mount.mkdir(parents=True)
    (node.mount / "db.sqlite3").write_text("precious")
    assert f"LITEFS[\"MOUNT_PATH\"]: '{node.mount}' is not empty (db.sqlite3)" in refusal(node)
    assert (node.mount / "db.sqlite3").read_text() == "precious"


def test_mount_path_is_a_link(node: SupervisedNode) -> None:
    (node.directory / "elsewhere").mkdir(parents=True)
    node.mount.symlink_to(node.directory / "elsewhere")
    assert "is a symbolic link" in refusal(node)


def test_settings(node: SupervisedNode) -> None:
    node.litefs["MOUNT_PTAH"] = "/x"
    node.litefs["PRIMARY"] = "node9"
    output = refusal(node)
    assert "Did you mean 'MOUNT_PATH'?" in output
    assert "no node is named 'node9'" in output


def test_commands_and_binary_are_found_first(node: SupervisedNode) -> None:
    node.litefs["BINARY"] = "/nonexistent/litefs"
    output = refusal(node, "--on-primary", "/nonexistent/worker -v", application=["/nonexistent/server"])
    assert "LITEFS[\"BINARY\"] is '/nonexistent/litefs': there is no such file." in output
    assert "There is no command '/nonexistent/server'.\n" in output
    assert "There is no command '/nonexistent/worker'.\nLiteFS cannot run here:\n" in output


@pytest.mark.parametrize("line", ["'unclosed", ""])
def test_unreadable_command_for_the_primary(node: SupervisedNode, line: str) -> None:
    assert "--on-primary" in refusal(node, "--on-primary", line)


@pytest.mark.parametrize("key", ["MOUNT_PATH", "DATA_PATH", "RUN_PATH"])
def test_wrong_permissions(node: SupervisedNode, key: str) -> None:
    path = Path(node.litefs[key])
    path.mkdir(parents=True)
    os.chown(path, 65534, 65534)
    # Root without the right to overrule a directory's mode.
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    assert f'LITEFS["{key}"]: {str(path)!r} cannot be written to' in refusal(node, prefix=prefix)


def test_directory_that_cannot_be_made(node: SupervisedNode) -> None:
    node.directory.mkdir()
    node.data.write_text("a file")
    assert 'LITEFS["DATA_PATH"]' in refusal(node)


def test_a_port_that_is_taken(node: SupervisedNode) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", node.litefs["NODES"]["node1"]["HTTP_PORT"]))
        taken.listen()
        output = refusal(node)
    assert f"another process ({os.getpid()}, " in output
    assert "litefs |" not in output
    node.assert_nothing_left()


def test_litefs_that_refuses_to_start(node: SupervisedNode) -> None:
    node.litefs["NODES"]["node1"]["ADDRESS"] = "192.0.2.1"  # of no machine: RFC 5737
    output = refusal(node)
    assert "litefs | ERROR: " in output
    assert "litefs_run | LiteFS refuses to start" in output
    assert "app |" not in output
    node.assert_nothing_left()


def beside(first: SupervisedNode) -> SupervisedNode:
    """A node with paths and a port of its own."""
    members = {"node1": {"ADDRESS": "127.0.0.1", "HTTP_PORT": free_ports(1)[0]}}
    return SupervisedNode({**first.litefs, "NODES": members}, first.directory.parent / "second", first.binary)


@pytest.mark.parametrize("shared", ["MOUNT_PATH", "DATA_PATH", "RUN_PATH"])
def test_second_on_the_same_path(node: SupervisedNode, shared: str) -> None:
    node.start_and_wait()
    names = ("litefs.yml", "node.json")
    before = [(node.run_path / name).read_bytes() for name in names]
    with beside(node) as second:
        second.litefs[shared] = node.litefs[shared]
        output = refusal(second)
    assert f'LITEFS["{shared}"]' in output
    assert "another litefs_run" in output or "not under this litefs_run" in output
    assert [(node.run_path / name).read_bytes() for name in names] == before
    assert node.is_serving()
    assert node.stop() == 0


def test_second_while_litefs_is_down(node: SupervisedNode) -> None:
    """Nothing is mounted then, but the mount path is not free."""
    binary = node.directory / "litefs"
    node.directory.mkdir()
    binary.symlink_to(node.litefs["BINARY"])
    node.litefs["BINARY"] = str(binary)
    node.start_and_wait()
    binary.rename(node.directory / "away")
    node.litefs_process().kill()
    node.wait_for_line("LiteFS cannot be started: [Errno 2]")
    with beside(node) as second:
        second.litefs |= {"BINARY": str(node.binary), "MOUNT_PATH": node.litefs["MOUNT_PATH"]}
        assert "is in use by another litefs_run" in refusal(second)
    (node.directory / "away").rename(binary)
    node.wait_for(node.is_up, "LiteFS is back")
    assert node.stop() == 0
