"""How long nobody can write when the primary changes: elected by the nodes themselves, and beside it through Consul.

Writers on three nodes write all the time, each at whichever node lets it. What counts is the longest time without an
acknowledged write around each event, in seconds; each event comes when all of them write. `one waits` is the longest
time for which a single one had none acknowledged: SQLite holds a statement that was under way on the mount of a LiteFS
that is killed, for up to ten seconds. `missing` are rows that were acknowledged, and that no node has
afterwards: what a primary that dies has not sent yet. LITEFS_BENCH_ROUNDS and LITEFS_BENCH_CONSUL_ROUNDS say how often
each event happens.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from litefs_django._litefs.node.control import ask
from tests.cluster.connections import create_tables
from tests.cluster.consul import consul
from tests.cluster.run.conftest import running_consul
from tests.cluster.run.connections import connection_to
from tests.cluster.run.nodes import SupervisedNode, elected_nodes, raft_nodes, wait_equal
from tests.cluster.run.writing import Writers
from tests.machine import fuse_problem, litefs

ROUNDS = int(os.environ.get("LITEFS_BENCH_ROUNDS", "100"))
CONSUL_ROUNDS = int(os.environ.get("LITEFS_BENCH_CONSUL_ROUNDS", "3"))
WRITERS = 3
RAFT, CONSUL = "Raft", "Consul 1.8.7"

Event = Callable[[SupervisedNode, Sequence[SupervisedNode]], None]


def kill_litefs(primary: SupervisedNode, others: Sequence[SupervisedNode]) -> None:
    primary.litefs_process().kill()


def lose_node(primary: SupervisedNode, others: Sequence[SupervisedNode]) -> None:
    primary.lose()


def change(primary: SupervisedNode, others: Sequence[SupervisedNode]) -> None:
    ask(primary.run_path, "promote", timeout=30, node=others[0].name)


def stop(primary: SupervisedNode, others: Sequence[SupervisedNode]) -> None:
    assert primary.stop() == 0, primary.output()


# Targets of p50, p95 and the slowest, in seconds.
EVENTS: list[tuple[str, Event, dict[str, float]]] = [
    ("kill -9 of LiteFS", kill_litefs, {"p50": 0.5, "p95": 1.0, "max": 3.0}),
    ("whole node lost", lose_node, {"p50": 3.0, "p95": 5.0}),
    ("planned change", change, {"p95": 0.3}),
    ("clean stop", stop, {"p95": 0.3}),
]


def run() -> list[dict[str, Any]]:
    """One line for each event and side."""
    if problem := fuse_problem():
        raise SystemExit(problem)
    return [
        {"event": name, "side": side, **_measure(nodes_of, event, rounds), "targets": targets if side == RAFT else {}}
        for name, event, targets in EVENTS
        for side, nodes_of, rounds in ((RAFT, _raft_nodes, ROUNDS), (CONSUL, _consul_nodes, CONSUL_ROUNDS))
        if rounds
    ]


def table(figures: list[dict[str, Any]]) -> list[list[str]]:
    """The head and one line for each event and side, a target in brackets."""
    counted = ("acknowledged", "unknown", "missing")
    lines = [["event", "elected by", "rounds", "p50 s", "p95 s", "max s", "one waits s", *counted]]
    for row in figures:
        seconds = (
            f"{row[key]:.3f}" + (f" ({row['targets'][key]:g})" if key in row["targets"] else "")
            for key in ("p50", "p95", "max")
        )
        counts = (str(row[key]) for key in counted)
        lines.append([row["event"], row["side"], str(row["rounds"]), *seconds, f"{row['one_waits']:.3f}", *counts])
    return lines


@contextmanager
def _raft_nodes(directory: Path) -> Iterator[list[SupervisedNode]]:
    yield raft_nodes(3, directory, litefs())


@contextmanager
def _consul_nodes(directory: Path) -> Iterator[list[SupervisedNode]]:
    with running_consul(directory, consul()) as lease:
        yield elected_nodes(3, directory, litefs(), lease)


def _measure(nodes_of: Callable[[Path], Any], event: Event, rounds: int) -> dict[str, Any]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="litefs-bench-")))
        nodes = [stack.enter_context(node) for node in stack.enter_context(nodes_of(directory))]
        for node in nodes:
            node.start()
        for node in nodes:
            node.wait_for_line("app | ")
        primary = next(node for node in nodes if node.detector.primary_name() is None)
        with closing(connection_to(primary)) as connection:
            create_tables(connection)
        with Writers(directory / "writers", nodes, WRITERS) as writers:
            pauses = [_round(nodes, writers, event) for _ in range(rounds)]
            writers.wait_until_all_write()
        wait_equal(nodes)
        return {
            "rounds": rounds,
            "p50": median(pauses),
            "p95": sorted(pauses)[max(0, -(-rounds * 95 // 100) - 1)],
            "max": max(pauses),
            "one_waits": writers.longest_wait(),
            **_counts(nodes, writers),
        }


def _round(nodes: Sequence[SupervisedNode], writers: Writers, event: Event) -> float:
    writers.wait_until_all_write()
    _wait_settled(nodes)
    primary = next(node for node in nodes if node.is_primary())
    begin = time.monotonic()
    event(primary, [node for node in nodes if node is not primary])
    writers.wait_for_more(20)
    pause = writers.longest_pause(begin, time.monotonic())
    if primary.process is not None and primary.process.poll() is not None:
        primary.start_and_wait()
    return pause


def _wait_settled(nodes: Sequence[SupervisedNode]) -> None:
    """One is the primary, and the others follow it."""

    def are_settled() -> bool:
        primaries = [node for node in nodes if node.is_primary()]
        return len(primaries) == 1 and all(node is primaries[0] or node.follows(primaries[0]) for node in nodes)

    nodes[0].wait_for(are_settled, "one primary, which the others follow")


def _counts(nodes: Sequence[SupervisedNode], writers: Writers) -> dict[str, int]:
    done = {write.name for write in writers.done()}
    with closing(connection_to(nodes[0])) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT name FROM cluster_author")
        there = {name for (name,) in cursor.fetchall()}
    unknown = sum(write.outcome == "unknown" for write in writers.writes())
    return {"acknowledged": len(done), "unknown": unknown, "missing": len(done - there)}
