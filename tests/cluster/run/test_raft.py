"""Three nodes that elect their primary themselves. What fails and how: tests/cluster/raft."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import transaction

from litefs_django._litefs import diverged
from litefs_django._litefs.config import parse
from litefs_django._litefs.ltx import LtxFiles, checksum, checksum_before
from litefs_django._litefs.node.control import ask
from litefs_django._litefs.node.lease.divergence import NAME
from litefs_django.exceptions import NotPrimaryError
from tests.cluster.run.connections import connection_to
from tests.cluster.run.nodes import SupervisedNode, raft_nodes, wait_equal
from tests.machine import mount_points

pytestmark = pytest.mark.cluster

CREATE = "from django.contrib.auth.models import Group; Group.objects.create(name={!r})"
COUNT = "from django.contrib.auth.models import Group; print('groups:', Group.objects.count())"


@pytest.fixture
def nodes(tmp_path: Path, litefs_binary: Path) -> Iterator[list[SupervisedNode]]:
    """Up, and migrated."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(node) for node in raft_nodes(3, tmp_path, litefs_binary)]
        for node in nodes:
            node.start("--migrate")
        for node in nodes:
            node.wait_for_line("app | ")
        yield nodes


def primary_of(nodes: list[SupervisedNode]) -> SupervisedNode:
    nodes[0].wait_for(lambda: sum(node.is_primary() for node in nodes) == 1, "one node is the primary")
    return next(node for node in nodes if node.is_primary())


def others(nodes: list[SupervisedNode], node: SupervisedNode) -> list[SupervisedNode]:
    return [other for other in nodes if other is not node]


def status(node: SupervisedNode) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(node.run_command("litefs_status", "--format=json").stdout.splitlines()[-1])
    return answer


def create(node: SupervisedNode, name: str) -> None:
    done = node.run_command("shell", "-c", CREATE.format(name))
    assert done.returncode == 0, done.stdout


def test_a_cluster_elects_promotes_and_fails_over(nodes: list[SupervisedNode]) -> None:
    primary = primary_of(nodes)
    first, second = others(nodes, primary)
    create(primary, "one")
    wait_equal(nodes)
    assert parse((primary.run_path / "litefs.yml").read_text())["http"]["addr"].startswith("127.0.0.1:")

    # From a node that is not the primary, and is not to be it.
    done = second.run_command("litefs_promote", first.name)
    assert done.stdout.splitlines()[-1] == f"{first.name} is the primary now.", done.stdout
    assert primary_of(nodes) is first
    refused = second.run_command("litefs_promote", "web9")
    assert refused.returncode == 1
    assert "'web9' is not one of" in refused.stdout

    second.wait_for(lambda: status(second)["healthy"], "all is well")
    said = status(second)
    assert said["lease"]["holder"] == first.name
    assert said["lease"]["voters"] == dict.fromkeys(sorted(node.name for node in nodes), True)
    assert said["diverged"] == []

    # It may be the primary again: LiteFS is back within milliseconds.
    first.litefs_process().kill()
    first.wait_for_line("LiteFS has ended: SIGKILL")
    new = primary_of(nodes)
    create(new, "two")
    wait_equal(nodes)
    assert all(node is new or node.follows(new) for node in nodes)
    assert "groups: 2" in second.run_command("shell", "-c", COUNT).stdout

    # A clean stop hands the lease over, and leaves nothing behind.
    assert new.stop() == 0
    assert primary_of(others(nodes, new)) is not new
    new.assert_nothing_left()


def wait_settled(nodes: list[SupervisedNode]) -> None:
    """None of those that follow has anything of its last reign to compare."""
    marks = [node.data / "raft" / NAME for node in others(nodes, primary_of(nodes))]
    nodes[0].wait_for(lambda: not any(mark.exists() for mark in marks), "all reigns of before are settled")


def test_what_a_dead_primary_had_to_itself_is_kept_and_shown(nodes: list[SupervisedNode]) -> None:
    primary = primary_of(nodes)
    create(primary, "shared")
    wait_equal(nodes)
    transactions = list(LtxFiles(primary.data / "dbs" / "db.sqlite3" / "ltx").above(0))
    assert len(transactions) > 1
    assert all(checksum_before(after) == checksum(before) for after, before in pairwise(transactions))
    # The others vote, and have no LiteFS that would follow: nothing arrives there.
    for node in others(nodes, primary):
        os.kill(node.pid, signal.SIGSTOP)
        node.litefs_process().kill()
    create(primary, "alone")
    primary.lose()
    for node in others(nodes, primary):
        os.kill(node.pid, signal.SIGCONT)
    new = primary_of(others(nodes, primary))
    create(new, "another")
    primary.start()
    primary.wait_for(lambda: primary.follows(new), "it follows the new primary")
    wait_equal(nodes)
    primary.wait_for(lambda: status(primary)["diverged"], "it says what it had")
    (found,) = status(primary)["diverged"]
    assert (found["database"], found["count"]) == ("db.sqlite3", 1)
    primary.wait_for_line("Not in the cluster: transactions of db.sqlite3 (1, ")
    shown = primary.run_command("litefs_status").stdout
    assert "Not in the cluster: 1 transaction of db.sqlite3" in shown
    assert "Removed: 1 transaction of db.sqlite3" in primary.run_command("litefs_status", "--dismiss").stdout
    assert status(primary)["diverged"] == []
    assert "nothing to dismiss" in primary.run_command("litefs_status", "--dismiss").stdout


def test_a_node_that_has_missed_nothing_keeps_nothing(nodes: list[SupervisedNode]) -> None:
    """However many were the primary before it started: its lease process goes through all of them."""
    for number in range(2):
        for node in nodes:
            if node is not primary_of(nodes):
                ask(node.run_path, "promote", timeout=30, node=node.name)
            create(node, f"{node.name}-{number}")
            wait_settled(nodes)
    for node in nodes:
        assert node.stop() == 0
        node.start_and_wait()
        wait_settled(nodes)
        assert not (node.data / diverged.DIRECTORY).exists()


@pytest.mark.django_db(databases=[])
def test_a_transaction_that_outlasts_a_planned_change_is_refused(nodes: list[SupervisedNode]) -> None:
    """It is not of unknown outcome: nothing of it was written."""
    primary = primary_of(nodes)
    first, second = others(nodes, primary)
    with closing(connection_to(primary)) as connection:
        objects = Group.objects.using(connection.alias)

        def outlast() -> None:
            with transaction.atomic(connection.alias):
                objects.create(name="late")
                ask(primary.run_path, "promote", timeout=30, node=first.name)

        with pytest.raises(NotPrimaryError) as refused:
            outlast()
        assert "meanwhile" not in str(refused.value), "COMMIT was tried"
        assert not objects.filter(name="late").exists()
    create(first, "one")
    wait_equal(nodes)
    assert "groups: 1" in second.run_command("shell", "-c", COUNT).stdout


def test_two_nodes_and_a_witness(tmp_path: Path, litefs_binary: Path) -> None:
    with ExitStack() as stack:
        nodes = [stack.enter_context(node) for node in raft_nodes(3, tmp_path, litefs_binary, witnesses=1)]
        *data, witness = nodes
        for node in data:
            node.start("--migrate")
        witness.start_as_witness()
        for node in data:
            node.wait_for_line("app | ")
        primary = primary_of(data)
        (replica,) = others(data, primary)
        assert set(status(witness)["lease"]["voters"]) == {node.name for node in nodes}
        done = witness.run_command("litefs_promote", replica.name)
        assert done.stdout.splitlines()[-1] == f"{replica.name} is the primary now.", done.stdout
        primary, replica = replica, primary
        assert primary_of(data) is primary
        primary.kill()
        assert primary_of([replica]) is replica
        done = witness.run_command("litefs_promote", primary.name)
        assert done.returncode == 1
        assert f"Nothing is changed: {replica.name} is the primary." in done.stdout
        create(replica, "one")
        assert str(witness.mount) not in mount_points()
        assert witness.stop() == 0
        witness.assert_nothing_left()
