"""Failures drawn at random, on real nodes: `tox run -e soak -- [--minutes N] [--seed N]`.

Each round makes one or two things fail at the same time, for a while, puts everything right, and waits until writes go
through all nodes again. After every few rounds, and at the end, all nodes are compared and all writes judged. A
finding ends it, with what the nodes have said; the seed draws the same failures again, though not at the same moments.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from tests.cluster.raft.cluster import PARTS, RaftCluster
from tests.cluster.raft.network import network_problem
from tests.cluster.run.nodes import SupervisedNode
from tests.machine import fuse_problem, litefs

ROUNDS = 5


class Soak:
    """Fails, repairs, judges."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.chance = random.Random(seed)
        self.directory = directory
        self.rounds = 0
        self._killed: list[SupervisedNode] = []  # whose supervisors have been

    def run(self, minutes: float) -> None:
        end = time.monotonic() + 60 * minutes
        with RaftCluster(3, self.directory, litefs()) as cluster:
            while time.monotonic() < end:
                for _ in range(ROUNDS):
                    self._round(cluster)
                print(f"{self.rounds} rounds: {cluster.finish()}", flush=True)
                for node in cluster.nodes:
                    cluster.start_writer(node)

    def _round(self, cluster: RaftCluster) -> None:
        self.rounds += 1
        faults = self.chance.sample([self._kill, self._stop, self._cut], self.chance.choice([1, 1, 2]))
        nodes = self.chance.sample(cluster.nodes, len(faults))
        if cluster.primary not in nodes and self.chance.random() < 0.5:
            nodes[0] = cluster.primary
        length = self.chance.uniform(0, 4 * cluster.ttl)
        self._killed = []
        cluster.fails_now()
        with ExitStack() as repairs:
            for fault, node in zip(faults, nodes, strict=True):
                print(f"{self.rounds}. {fault(cluster, node, repairs)}, {length:.1f} s", flush=True)
            time.sleep(length)
        cluster.restart(*self._killed)
        cluster.is_repaired()
        ended = [node.output() for node in cluster.nodes if node.process is None or node.process.poll() is not None]
        assert not ended, ended

    def _kill(self, cluster: RaftCluster, node: SupervisedNode, repairs: ExitStack) -> str:
        part = self.chance.choice(PARTS)
        cluster.kill(node, part)
        if part in ("supervisor", "all"):
            self._killed.append(node)
        return f"kill -9 of {part} on {node.name}"

    def _stop(self, cluster: RaftCluster, node: SupervisedNode, repairs: ExitStack) -> str:
        part = self.chance.choice(PARTS)
        stopped: AbstractContextManager[None] = cluster.stopped(node, part)
        repairs.enter_context(stopped)
        return f"SIGSTOP of {part} on {node.name}"

    def _cut(self, cluster: RaftCluster, node: SupervisedNode, repairs: ExitStack) -> str:
        hosts = cluster.network.hosts
        this, others = [cluster.host(node)], [host for host in hosts if host != cluster.host(node)]
        ways: Sequence[tuple[str, Callable[[], None]]] = [
            (f"{node.name} is cut off", lambda: cluster.network.isolate(*this)),
            ("all are cut off", lambda: cluster.network.isolate(*hosts)),
            (f"{node.name} is not heard", lambda: self._cut_way(cluster, this, others)),
            (f"{node.name} hears nobody", lambda: self._cut_way(cluster, others, this)),
            ("slow links", lambda: cluster.network.fail(delay=0.1, loss=0.2)),
        ]
        name, fail = self.chance.choice(ways)
        fail()
        repairs.callback(cluster.network.heal)
        return name

    def _cut_way(self, cluster: RaftCluster, origins: Sequence[int], targets: Sequence[int]) -> None:
        cluster.network.fail(cut=cluster.network.directions(origins, targets))


def main() -> int | str:
    parser = argparse.ArgumentParser(description="Draws failures at random.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    if problem := fuse_problem() or network_problem():
        return problem
    print(f"--seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="litefs-soak-") as directory:
        soak = Soak(options.seed, Path(directory))
        soak.run(options.minutes)
    print(f"{soak.rounds} rounds without a finding", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
