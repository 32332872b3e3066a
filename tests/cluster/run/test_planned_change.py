"""Planned changes of primary and clean restarts, under load with a real Consul: nothing is lost, the pause is short."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from statistics import median

import pytest
from django.db import transaction
from pytest_django import DjangoDbBlocker

from litefs_django._litefs.write_turn import FileLock, gate_path
from tests.cluster.connections import create_tables
from tests.cluster.models import Author
from tests.cluster.run.connections import connection_to
from tests.cluster.run.nodes import DATABASE, SupervisedNode, wait_equal
from tests.cluster.run.writing import Writers

pytestmark = pytest.mark.consul

ROUNDS = 20
WRITERS = 8
# Of whom so many are idle inside a transaction for most of the time.
IDLE = 2
LONGEST_PAUSE = 0.3  # seconds, of 95 %


def primary_of(nodes: Sequence[SupervisedNode]) -> SupervisedNode:
    def found() -> list[SupervisedNode]:
        return [node for node in nodes if node.is_primary()]

    nodes[0].wait_for(lambda: len(found()) == 1, "there is one primary", timeout=60)
    return found()[0]


def start(nodes: Sequence[SupervisedNode]) -> SupervisedNode:
    """The primary of the cluster, in which the table is on all nodes."""
    for node in nodes:
        node.start_and_wait()
    primary = primary_of(nodes)
    with closing(connection_to(primary)) as connection:
        create_tables(connection)
    wait_equal(nodes)
    return primary


def promote(primary: SupervisedNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`manage.py litefs_promote` on that node."""
    return primary.run_command("litefs_promote", *arguments)


def check(nodes: Sequence[SupervisedNode], writers: Writers) -> None:
    """Every acknowledged row is on every node, and none twice."""
    wait_equal(nodes)
    done = [write.name for write in writers.done()]
    for node in nodes:
        with closing(connection_to(node)) as connection:
            there = list(Author.objects.using(connection.alias).values_list("name", flat=True))
        assert not set(done) - set(there), f"acknowledged, and not on {node.name}"
        assert len(there) == len(set(there)), "written twice"


def report(
    what: str, pauses: list[float], before: list[float], writers: Writers, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints the pauses beside those of the same load just before each change, and fails when they are too long."""
    pauses.sort()
    p95 = pauses[len(pauses) * 95 // 100 - 1]
    unknown = sum(write.outcome == "unknown" for write in writers.writes())
    with capsys.disabled():
        sys.stdout.write(
            f"\n{what}: {len(pauses)} under {WRITERS} writers, {len(writers.done())} writes acknowledged, "
            f"{unknown} of unknown outcome; longest time without one: p50 {median(pauses):.3f} s, p95 {p95:.3f} s, "
            f"max {pauses[-1]:.3f} s (before each change: p50 {median(before):.3f} s, max {max(before):.3f} s)\n"
        )
    assert p95 <= LONGEST_PAUSE


@pytest.fixture(autouse=True)
def unblocked(django_db_blocker: DjangoDbBlocker) -> object:
    with django_db_blocker.unblock():
        yield


def test_planned_changes_under_load(
    three_consul_nodes: list[SupervisedNode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = three_consul_nodes
    primary = start(nodes)
    pauses, before = [], []
    with Writers(tmp_path / "writers", nodes, WRITERS, IDLE) as writers:
        for _ in range(ROUNDS):
            since = time.monotonic()
            writers.wait_for_more(50)
            target = next(node for node in nodes if node is not primary)
            others = [node for node in nodes if node is not primary]
            nodes[0].wait_for(lambda: all(each.follows(primary) for each in others), "all follow")  # noqa: B023
            begin = time.monotonic()
            before.append(writers.longest_pause(since, begin))
            result = promote(primary, target.litefs["NODE"])
            assert result.returncode == 0, result.stdout + "\n".join(node.output() for node in nodes)
            assert f"{target.litefs['NODE']} is the primary now." in result.stdout
            end = time.monotonic()
            primary = primary_of(nodes)
            assert primary is target
            writers.wait_for_more(20)
            pauses.append(writers.longest_pause(begin, end))
    check(nodes, writers)
    assert not writers.killed_by_sigbus
    for node in nodes:
        assert not node.found("LiteFS has ended")
        assert node.stop() == 0
        assert len(node.found("LiteFS has ended: exit code 0")) == 1, node.output()
    report("planned changes", pauses, before, writers, capsys)


def test_clean_restarts_of_the_primary_under_load(
    three_consul_nodes: list[SupervisedNode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = three_consul_nodes
    primary = start(nodes)
    pauses, before = [], []
    with Writers(tmp_path / "writers", nodes, WRITERS, IDLE) as writers:
        for _ in range(ROUNDS):
            since = time.monotonic()
            writers.wait_for_more(50)
            others = [node for node in nodes if node is not primary]
            nodes[0].wait_for(lambda: all(each.follows(primary) for each in others), "all follow")  # noqa: B023
            begin = time.monotonic()
            before.append(writers.longest_pause(since, begin))
            assert primary.stop() == 0
            assert time.monotonic() - begin < 8
            # 1 is that of one whose mount is in use, as it is by the writers.
            (ended,) = primary.found("LiteFS has ended")
            assert ended.endswith(("exit code 0", "exit code 1")), primary.output()
            end = time.monotonic()
            writers.wait_for_more(20)
            pauses.append(writers.longest_pause(begin, end))
            primary.start_and_wait()
            primary = primary_of(nodes)
    check(nodes, writers)
    for node in nodes:
        assert node.stop() == 0
    report("clean restarts of the primary", pauses, before, writers, capsys)


@pytest.fixture
def two(consul_nodes: list[SupervisedNode]) -> tuple[SupervisedNode, SupervisedNode]:
    """A running cluster: its primary, and a replica that follows it."""
    primary = start(consul_nodes)
    replica = next(node for node in consul_nodes if node is not primary)
    replica.wait_for(lambda: replica.follows(primary), "the replica follows")
    return primary, replica


@contextmanager
def held_gate(node: SupervisedNode) -> Iterator[None]:
    """A commit of another process is under way."""
    with closing(FileLock(gate_path(node.run_path, DATABASE))) as gate:
        assert gate.acquire(10)
        yield


@contextmanager
def long_read(node: SupervisedNode) -> Iterator[None]:
    """A transaction that reads on a replica: LiteFS applies nothing there meanwhile."""
    with closing(connection_to(node)) as connection, transaction.atomic(using=connection.alias):
        assert not Author.objects.using(connection.alias).filter(name="behind").exists()
        yield


def write(node: SupervisedNode, *names: str) -> None:
    with closing(connection_to(node)) as connection:
        for name in names:
            Author.objects.using(connection.alias).create(name=name)


def start_promote(primary: SupervisedNode, replica: SupervisedNode) -> subprocess.Popen[str]:
    return primary.popen(
        [sys.executable, str(primary.manage), "litefs_promote", replica.name],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def check_unchanged(primary: SupervisedNode, result: subprocess.CompletedProcess[str], reason: str) -> None:
    """The command says why, and the primary still takes writes."""
    assert result.returncode == 1, result.stdout
    assert reason in result.stdout
    assert f"Nothing is changed: {primary.name} is the primary." in result.stdout
    assert primary.is_primary()
    write(primary, f"after {reason}")


def check_whole(nodes: Sequence[SupervisedNode], *names: str) -> None:
    """One primary, which takes writes; these rows on all nodes; no gate held; LiteFS ends only when it is asked to."""
    write(primary_of(nodes), "afterwards")
    wait_equal(nodes)
    for node in nodes:
        with closing(connection_to(node)) as connection:
            there = set(Author.objects.using(connection.alias).values_list("name", flat=True))
        assert {*names, "afterwards"} <= there
        with held_gate(node):
            pass
        assert not node.found("LiteFS has ended")
    for node in nodes:
        assert node.stop() == 0


Two = tuple[SupervisedNode, SupervisedNode]


def test_a_commit_that_does_not_end_stops_the_change(two: Two) -> None:
    primary, replica = two
    write(primary, "before")
    with held_gate(primary):
        result = promote(primary, replica.name)
    check_unchanged(primary, result, "A commit does not end (db.sqlite3): does its process hang?")
    check_whole(two, "before")


def test_a_target_that_does_not_answer_stops_the_change(two: Two) -> None:
    primary, replica = two
    litefs = replica.litefs_process()
    litefs.suspend()
    try:
        check_unchanged(primary, promote(primary, replica.name), "did not answer within")
    finally:
        litefs.resume()
    check_whole(two)


def test_a_target_that_is_stopped_stops_the_change(two: Two) -> None:
    primary, replica = two
    assert replica.stop() == 0
    check_unchanged(primary, promote(primary, replica.name), "did not answer")
    replica.start_and_wait()
    check_whole(two)


def test_a_target_that_does_not_catch_up_stops_the_change(two: Two) -> None:
    primary, replica = two
    with long_read(replica):
        write(primary, "behind")
        result = promote(primary, replica.name)
        check_unchanged(primary, result, f"{DATABASE} is 1 transactions behind")
    assert f"waits until {replica.name} has nearly caught up: {DATABASE} is" in result.stdout
    check_whole(two, "behind")


def test_a_target_that_can_never_be_primary_stops_the_change(consul_nodes: list[SupervisedNode]) -> None:
    primary, replica = consul_nodes
    replica.litefs["LITEFS_YML"] = {"lease": {"candidate": False}}
    assert start(consul_nodes) is primary
    check_unchanged(primary, promote(primary, replica.name), "node2 can never be primary")
    check_whole(consul_nodes)


def test_one_change_at_a_time(two: Two) -> None:
    primary, replica = two
    with held_gate(primary):
        first = start_promote(primary, replica)
        primary.wait_for_line("catch up")
        second = promote(primary, replica.name)
        first.communicate(timeout=30)
    assert first.returncode == 1
    assert "Another change of primary is under way" in second.stdout or "A commit does not end" in second.stdout


def test_a_killed_command_leaves_a_whole_change(two: Two) -> None:
    primary, replica = two
    write(primary, "before")
    with held_gate(primary):
        command = start_promote(primary, replica)
        primary.wait_for_line("catch up")
        command.kill()
        command.communicate()
    # The supervisor goes on without its client.
    primary.wait_for_line("is the primary now.", timeout=60)
    assert replica.is_primary()
    check_whole(two, "before")


def test_a_target_that_dies_before_the_handoff_stops_the_change(two: Two) -> None:
    primary, replica = two
    write(primary, "before")
    with held_gate(primary):
        command = start_promote(primary, replica)
        primary.wait_for_line("catch up")
        replica.kill()
    output, _ = command.communicate(timeout=30)
    check_unchanged(primary, subprocess.CompletedProcess([], command.returncode, output), "did not answer")
    replica.start_and_wait()
    check_whole(two, "before")


def test_a_target_that_dies_at_the_handoff_leaves_a_cluster_that_elects(two: Two) -> None:
    primary, replica = two
    write(primary, "before")
    command = start_promote(primary, replica)
    primary.wait_for_line("hands the lease")
    replica.kill()
    command.communicate(timeout=60)
    # Either has the lease. Consul lets a dead one's go after its TTL, or twice that.
    primary.wait_for(primary.is_primary, "the one that is left is the primary", timeout=60)
    write(primary, "meanwhile")
    replica.start_and_wait()
    check_whole(two, "before", "meanwhile")


@pytest.mark.parametrize("moment", ["catch up", "hands the lease"])
def test_a_killed_supervisor_leaves_a_cluster_that_elects(two: Two, moment: str) -> None:
    primary, replica = two
    write(primary, "before")
    with held_gate(primary) if moment == "catch up" else nullcontext():
        command = start_promote(primary, replica)
        primary.wait_for_line(moment)
        primary.kill()
        output, _ = command.communicate(timeout=30)
    assert (command.returncode == 0) == ("is the primary now." in output)
    replica.wait_for(replica.is_primary, "the replica becomes the primary", timeout=60)
    write(replica, "meanwhile")
    primary.start_and_wait()
    check_whole(two, "before", "meanwhile")
