"""What a node costs that does nothing: supervisor and lease process, beside supervisor and a Consul server.

Memory is what each process has for itself, and once what they share: the libraries, of which one has all that the other
has. LITEFS_BENCH_SECONDS says how long the CPU time is counted.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from tests.cluster.consul import ConsulAgent, consul
from tests.cluster.run.nodes import SupervisedNode, elected_nodes, raft_nodes
from tests.machine import fuse_problem, litefs

SECONDS = float(os.environ.get("LITEFS_BENCH_SECONDS", "60"))
MAXIMUM_MIB = 80.0
MAXIMUM_CPU = 6.0


def run() -> list[dict[str, Any]]:
    """Three idle nodes of each kind; the figures are of the one that takes most."""
    if problem := fuse_problem():
        raise SystemExit(problem)
    return [_raft(), _consul()]


def table(figures: list[dict[str, Any]]) -> list[list[str]]:
    """The head and one line for each side, a target in brackets."""
    lines = [["idle node", "MiB", "% of a core"]]
    for row in figures:
        targets = row["targets"]
        memory = f"{row['mib']:.1f}" + (f" ({targets['mib']:g})" if targets else "")
        lines.append([row["side"], memory, f"{row['cpu_percent']:.1f}" + (f" ({targets['cpu']:g})" if targets else "")])
    return lines


def _raft() -> dict[str, Any]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="litefs-bench-")))
        nodes = [stack.enter_context(node) for node in raft_nodes(3, directory, litefs())]
        _start(nodes)
        groups = [[psutil.Process(node.pid), *node.lease_processes()] for node in nodes]
        targets = {"mib": MAXIMUM_MIB, "cpu": MAXIMUM_CPU}
        return {"side": "supervisor and lease process", **_most(groups), "targets": targets}


def _consul() -> dict[str, Any]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="litefs-bench-")))
        agent = ConsulAgent(directory / "consul", consul())
        stack.callback(agent.clean_up)
        agent.start()
        lease = {"LEADER_ELECTION": "consul", "CONSUL": {"URL": agent.url, "KEY": "litefs"}}
        nodes = [stack.enter_context(node) for node in elected_nodes(3, directory, litefs(), lease)]
        _start(nodes)
        groups = [[psutil.Process(node.pid), psutil.Process(agent.pid)] for node in nodes]
        return {"side": "supervisor and a Consul server", **_most(groups), "targets": {}}


def _start(nodes: Sequence[SupervisedNode]) -> None:
    for node in nodes:
        node.start()
    for node in nodes:
        node.wait_for_line("app | ")


def _most(groups: Sequence[Sequence[psutil.Process]]) -> dict[str, float]:
    before = [sum(map(_cpu_seconds, group)) for group in groups]
    since = time.monotonic()
    time.sleep(SECONDS)
    took = time.monotonic() - since
    used = [sum(map(_cpu_seconds, group)) - earlier for group, earlier in zip(groups, before, strict=True)]
    return {"mib": max(map(_memory, groups)) / 2**20, "cpu_percent": 100 * max(used) / took}


def _memory(group: Sequence[psutil.Process]) -> int:
    found = [process.memory_full_info() for process in group]
    return sum(each.uss for each in found) + max(each.rss - each.uss for each in found)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
