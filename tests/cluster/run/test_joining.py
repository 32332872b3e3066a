"""A node that does not fit into the cluster that runs is refused before its LiteFS starts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import pytest

from tests.cluster.run.applications import IDLE, python
from tests.cluster.run.conftest import StartNodes
from tests.cluster.run.nodes import DATABASE, SupervisedNode, wait_equal
from tests.machine import mount_points

pytestmark = pytest.mark.cluster


def refusal(node: SupervisedNode) -> str:
    node.start()
    assert node.wait() == 1, node.output()
    assert "Traceback" not in node.output()
    assert not node.found("litefs | ")
    assert str(node.mount) not in mount_points()
    return node.output()


def start_with_content(nodes: Sequence[SupervisedNode]) -> None:
    """The tables of the project are on all nodes."""
    for node in nodes:
        node.start_and_wait("--migrate")


def test_a_second_fixed_primary(start_nodes: StartNodes) -> None:
    first, second = start_nodes(2)
    first.start_and_wait()
    second.litefs["PRIMARY"] = "node2"
    assert "LITEFS[\"PRIMARY\"] is 'node2' here, and 'node1' is the primary" in refusal(second)
    assert first.stop() == 0


def test_a_replica_of_another_primary(start_nodes: StartNodes) -> None:
    first, _, third = start_nodes(3)
    first.start_and_wait()
    third.litefs["PRIMARY"] = "node2"
    assert "set it to 'node1'" in refusal(third)
    assert first.stop() == 0


def test_a_replica_of_another_primary_that_does_not_answer(start_nodes: StartNodes) -> None:
    first, second, third = start_nodes(3)
    first.start_and_wait()
    second.start_and_wait()
    assert first.stop() == 0
    third.litefs["PRIMARY"] = "node2"
    third.start()
    third.wait_for_line("litefs_run | waits for node2, the PRIMARY: it is a replica itself")
    assert not third.found("app | ")
    assert third.stop() == 0
    assert second.stop() == 0


def test_a_primary_with_an_empty_disk(start_nodes: StartNodes) -> None:
    first, second = start_nodes(2)
    start_with_content([first, second])
    wait_equal([first, second])
    held = second.detector.position(DATABASE)
    assert first.stop() == 0
    shutil.rmtree(first.data)
    output = refusal(first)
    assert f"database '{DATABASE}' is at TXID 0 (0: not there)" in output
    assert "set LITEFS[\"PRIMARY\"] to 'node2'" in output
    assert second.detector.position(DATABASE) == held
    assert second.stop() == 0


def test_a_primary_with_an_old_disk(start_nodes: StartNodes) -> None:
    """As restored from a backup of DATA_PATH."""
    first, second = start_nodes(2)
    first.start("--migrate", application=["true"])
    assert first.wait() == 0
    shutil.copytree(first.data, first.directory / "old")
    first.start_and_wait(application=write_and_idle())
    second.start_and_wait()
    wait_equal([first, second])
    assert first.stop() == 0
    shutil.rmtree(first.data)
    (first.directory / "old").rename(first.data)
    assert "would make the others drop what it lacks" in refusal(first)
    assert second.stop() == 0


def test_the_way_out_loses_nothing(start_nodes: StartNodes) -> None:
    """The replica that has the data becomes the primary, and the emptied node gets it from there."""
    nodes = first, second = start_nodes(2)
    start_with_content(nodes)
    wait_equal(nodes)
    held = second.detector.position(DATABASE)
    assert first.stop() == 0
    assert second.stop() == 0
    shutil.rmtree(first.data)
    for node in nodes:
        node.litefs["PRIMARY"] = "node2"
    second.start_and_wait()
    first.start_and_wait()
    wait_equal(nodes)
    assert first.detector.position(DATABASE) == held
    assert first.stop() == 0
    assert second.stop() == 0


def test_a_node_of_another_cluster(start_nodes: StartNodes) -> None:
    first, second = start_nodes(2)
    first.start_and_wait()
    second.data.mkdir(parents=True, mode=0o700)
    (second.data / "clusterid").write_text("LFSC0123456789ABCDEF\n")
    output = refusal(second)
    assert "is of the cluster LFSC0123456789ABCDEF, and node1 of LFSC" in output
    assert "move" in output
    assert first.stop() == 0


def test_nodes_that_do_not_answer_are_no_obstacle(start_nodes: StartNodes) -> None:
    first, second = start_nodes(2)
    first.start_and_wait()
    second.start_and_wait()
    litefs = second.litefs_process()
    assert first.stop() == 0
    litefs.suspend()
    try:
        first.start_and_wait()
    finally:
        litefs.resume()
    assert first.stop() == 0
    assert second.stop() == 0


def write_and_idle() -> list[str]:
    """An application that writes one row, says so and idles."""
    return python(
        "import django; django.setup()\n"
        "from django.contrib.auth.models import Group; Group.objects.create(name='new')\n" + IDLE
    )
