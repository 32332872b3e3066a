"""The control socket: what it answers, whom, and that nobody disturbs the node through it."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from litefs_django._litefs.errors import SupervisorError
from litefs_django._litefs.node.control import ask
from tests.cluster.run.conftest import StartNodes
from tests.cluster.run.nodes import SupervisedNode, static_nodes
from tests.machine import wait_until

pytestmark = pytest.mark.cluster


@contextmanager
def connected(node: SupervisedNode) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(20)
        client.connect(str(node.run_path / "control"))
        yield client


def answer_to(node: SupervisedNode, request: bytes) -> dict[str, str]:
    with connected(node) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        answer: dict[str, str] = json.loads(client.makefile("rb").read())
        return answer


def test_status(start_nodes: StartNodes) -> None:
    first, second = start_nodes(2)
    for node in (first, second):
        node.start_and_wait()
    first.wait_for_line("this node is the primary")
    second.wait_for_line("this node is a replica of node1")
    status = ask(first.run_path, "status", timeout=5)
    assert status == {
        "node": "node1",
        "serves": True,
        "synced": True,
        "role": "primary",
        "primary": "node1",
        "generation": first.node_file.generation(),
        "lease": None,
        "positions": {},
        "application": first.application_process().pid,
        "stopping": False,
    }
    assert ask(second.run_path, "status", timeout=5) | {"application": 0, "generation": 0} == {
        **status,
        "node": "node2",
        "role": "replica",
        "application": 0,
        "generation": 0,
    }
    assert stat.S_IMODE((first.run_path / "control").stat().st_mode) == 0o600


def test_stop(node: SupervisedNode) -> None:
    node.start_and_wait()
    assert ask(node.run_path, "stop", timeout=5) == "node1 stops."
    assert node.wait() == 0
    node.assert_nothing_left()
    assert not (node.run_path / "control").exists()
    with pytest.raises(SupervisorError, match="No litefs_run runs here"):
        ask(node.run_path, "status", timeout=5)


def test_a_killed_supervisor_leaves_nothing_in_the_way(node: SupervisedNode) -> None:
    node.start_and_wait()
    node.kill()
    with pytest.raises(SupervisorError, match="No litefs_run runs here"):
        ask(node.run_path, "status", timeout=5)
    node.start_and_wait()
    assert ask(node.run_path, "status", timeout=5)["role"] == "primary"
    assert node.stop() == 0


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (b"", "one line of JSON"),
        (b"\n", "one line of JSON"),
        (b"[]\n", "one line of JSON"),
        (b"\xff\xfe\x00\n", "one line of JSON"),
        (b"{" * 60_000, "one line of JSON"),
        (b'{"request": "status"}\n', "of another release"),
        (b'{"version": 2, "request": "status"}\n', "of another release"),
        (b'{"version": 1, "request": "explode"}\n', "of another release"),
        (b'{"version": 1, "request": ["status"]}\n', "of another release"),
        (b'{"version": 1, "request": "promote"}\n', "'None' is not one of"),
        (b'{"version": 1, "request": "promote", "node": "node9"}\n', "'node9' is not one of"),
    ],
)
def test_rubbish_is_answered_and_harms_nothing(shared_node: SupervisedNode, request_: bytes, reason: str) -> None:
    assert reason in answer_to(shared_node, request_)["error"]
    assert ask(shared_node.run_path, "status", timeout=5)["serves"]


def test_clients_that_hang_harm_nothing(shared_node: SupervisedNode) -> None:
    with ExitStack() as hanging:
        for _ in range(20):
            hanging.enter_context(connected(shared_node))

        def is_answered() -> bool:
            try:
                return bool(ask(shared_node.run_path, "status", timeout=20)["serves"])
            except SupervisorError:
                return False

        # As soon as the first of them have had their time.
        wait_until(is_answered, "a new client is answered")
        assert shared_node.is_up()


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory, litefs_binary: Path) -> Iterator[SupervisedNode]:
    with static_nodes(1, tmp_path_factory.mktemp("control"), litefs_binary)[0] as node:
        node.start_and_wait()
        yield node
        assert node.stop() == 0
        node.assert_nothing_left()


def test_another_user_is_refused(node: SupervisedNode, tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    node.start_and_wait()
    # Even where they come through to the socket.
    (node.run_path / "control").chmod(0o666)
    code = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534); client = socket.socket(socket.AF_UNIX); "
        """client.connect('control'); client.sendall(b'{"version": 1, "request": "stop"}\\n'); """
        "print(client.makefile().read())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=node.run_path, capture_output=True, text=True, check=False
    )
    assert json.loads(result.stdout or result.stderr) == {"error": "User 65534 may not ask this litefs_run."}
    assert node.is_up()
    assert node.stop() == 0


def test_promote_with_a_static_lease(start_nodes: StartNodes) -> None:
    first, second = start_nodes(2)
    for node in (first, second):
        node.start_and_wait()
    refused = first.run_command("litefs_promote", "node2")
    assert refused.returncode == 1
    assert 'The lease is "static": LITEFS["PRIMARY"] alone' in refused.stdout
    assert "Nothing was done. To change it:\n1. Stop litefs_run on node1.\n" in refused.stdout
    already = first.run_command("litefs_promote")
    assert already.returncode == 0, already.stdout
    assert "node1 is the primary already." in already.stdout
    elsewhere = second.run_command("litefs_promote")
    assert elsewhere.returncode == 1
    assert 'The lease is "static"' in elsewhere.stdout
    assert "node1 is the primary already." in second.run_command("litefs_promote", "node1").stdout
    for node in (first, second):
        assert node.stop() == 0


def test_promote_without_litefs_run(node: SupervisedNode) -> None:
    result = node.run_command("litefs_promote")
    assert result.returncode == 1
    assert "No litefs_run runs here" in result.stdout
