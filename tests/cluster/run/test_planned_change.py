"""Planned changes of primary and clean restarts, under load with a real Consul: nothing is lost, the pause is short."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

import pytest
from pytest_django import DjangoDbBlocker

from litefs_django._litefs.errors import MountError
from litefs_django._litefs.reading import read_settings
from litefs_django._litefs.write_turn import FileLock, gate_path
from litefs_django.db.backends.litefs.base import DatabaseWrapper
from tests.cluster.connections import create_tables, open_connection
from tests.cluster.models import Author
from tests.cluster.run.nodes import DATABASE, SupervisedNode
from tests.cluster.run.writing import Writers

pytestmark = pytest.mark.consul

ROUNDS = 20
WRITERS = 8
# Of whom so many are idle inside a transaction for most of the time.
IDLE = 2
LONGEST_PAUSE = 0.3  # seconds, of 95 %


def primary_of(nodes: Sequence[SupervisedNode]) -> SupervisedNode:
    def found() -> list[SupervisedNode]:
        return [node for node in nodes if is_primary(node)]

    nodes[0].wait_for(lambda: len(found()) == 1, "there is one primary", timeout=60)
    return found()[0]


def is_primary(node: SupervisedNode) -> bool:
    try:
        return node.is_up() and node.detector.is_primary(DATABASE)
    except MountError:
        return False


def follows(node: SupervisedNode, primary: SupervisedNode) -> bool:
    return node.detector.primary_name() == primary.litefs["NODE"] and node.detector.lag() is not None


def connection_to(node: SupervisedNode) -> DatabaseWrapper:
    class Opened:
        name = node.litefs["NODE"]
        settings = read_settings(node.litefs, {"default": DATABASE})

    return open_connection(Opened(), DATABASE)  # type: ignore[arg-type]


def start(nodes: Sequence[SupervisedNode]) -> SupervisedNode:
    """The primary of the cluster, in which the table is on all nodes."""
    for node in nodes:
        node.start_and_wait()
    primary = primary_of(nodes)
    with closing(connection_to(primary)) as connection:
        create_tables(connection)
    wait_equal(nodes)
    return primary


def wait_equal(nodes: Sequence[SupervisedNode]) -> None:
    def positions() -> set[object]:
        return {node.detector.position(DATABASE) for node in nodes}

    nodes[0].wait_for(lambda: len(positions()) == 1 and None not in positions(), "the positions are equal", timeout=60)


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
        assert not set(done) - set(there), f"acknowledged, and not on {node.litefs['NODE']}"
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
            nodes[0].wait_for(lambda: all(follows(each, primary) for each in others), "all follow")  # noqa: B023
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
            nodes[0].wait_for(lambda: all(follows(each, primary) for each in others), "all follow")  # noqa: B023
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
    replica.wait_for(lambda: follows(replica, primary), "the replica follows")
    return primary, replica


@contextmanager
def held_gate(node: SupervisedNode) -> Iterator[None]:
    """A commit of another process is under way."""
    with closing(FileLock(gate_path(node.run_path, DATABASE))) as gate:
        assert gate.acquire(10)
        yield


def write(node: SupervisedNode, name: str) -> None:
    with closing(connection_to(node)) as connection:
        Author.objects.using(connection.alias).create(name=name)


def name_of(node: SupervisedNode) -> str:
    return str(node.litefs["NODE"])


def test_a_commit_that_does_not_end_stops_the_change(two: tuple[SupervisedNode, SupervisedNode]) -> None:
    primary, replica = two
    with held_gate(primary):
        result = promote(primary, name_of(replica))
    assert result.returncode == 1
    assert "A commit does not end (db.sqlite3): does its process hang? Nothing is changed" in result.stdout
    assert is_primary(primary)
    write(primary, "goes on")


def test_a_target_that_cannot_take_over_stops_the_change(two: tuple[SupervisedNode, SupervisedNode]) -> None:
    primary, replica = two
    litefs = replica.litefs_process()
    litefs.suspend()
    try:
        result = promote(primary, name_of(replica))
        assert result.returncode == 1
        assert "did not answer within" in result.stdout
        write(primary, "goes on")
    finally:
        litefs.resume()
    assert replica.stop() == 0
    result = promote(primary, name_of(replica))
    assert result.returncode == 1
    assert "Nothing is changed" in result.stdout
    write(primary, "still")


def test_one_change_at_a_time(two: tuple[SupervisedNode, SupervisedNode]) -> None:
    primary, replica = two
    with held_gate(primary):
        first = primary.popen([sys.executable, str(primary.manage), "litefs_promote", name_of(replica)])
        primary.wait_for_line("catch up")
        second = promote(primary, name_of(replica))
        assert first.wait(30) == 1
    assert "Another change of primary is under way" in second.stdout or "A commit does not end" in second.stdout


def test_a_killed_command_leaves_a_whole_change(two: tuple[SupervisedNode, SupervisedNode]) -> None:
    primary, replica = two
    with held_gate(primary):
        command = primary.popen([sys.executable, str(primary.manage), "litefs_promote", name_of(replica)])
        primary.wait_for_line("catch up")
        command.kill()
        command.wait()
    # The supervisor goes on without its client.
    primary.wait_for_line("is the primary now.", timeout=60)
    write(replica, "goes on")
    wait_equal(two)
    for node in two:
        assert node.stop() == 0


def test_a_killed_supervisor_leaves_a_cluster_that_elects(two: tuple[SupervisedNode, SupervisedNode]) -> None:
    primary, replica = two
    with held_gate(primary):
        command = primary.popen(
            [sys.executable, str(primary.manage), "litefs_promote", name_of(replica)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        primary.wait_for_line("catch up")
        primary.kill()
        output, _ = command.communicate(timeout=30)
    assert command.returncode == 1, output
    # Consul lets the dead one's lease go after its TTL, or twice that.
    replica.wait_for(lambda: is_primary(replica), "the replica becomes the primary", timeout=60)
    write(replica, "goes on")
    primary.start_and_wait()
    wait_equal(two)
    for node in two:
        assert node.stop() == 0
