"""Nodes that elect their primary themselves, each on a host of its own with a visitor who writes all the time."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from litefs_django._litefs.errors import MountError
from tests.cluster.raft.history import judge
from tests.cluster.raft.network import Network
from tests.cluster.raft.writers import PORT, Outcome, Write, Writer, now
from tests.cluster.run.nodes import DATABASE, SupervisedNode, raft_nodes
from tests.machine import CleanedUp, wait_until

PARTS = ("litefs", "lease", "supervisor", "all")

# Reads a file's rows.
_ROWS = """
import json, sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
print(json.dumps([name for (name,) in connection.execute("SELECT name FROM cluster_tag ORDER BY id")]))
"""


class RaftCluster(CleanedUp):
    """`count` nodes; `start` returns when writes go through each of them. TTL is LEASE_TTL in seconds."""

    def __init__(self, count: int, directory: Path, binary: Path, *, ttl: float = 3.0, **litefs: Any) -> None:
        self.ttl = ttl
        self.network = Network(count)
        self.nodes = raft_nodes(count, directory, binary, LEASE_TTL=ttl, HANDOVER_TIMEOUT=5, **litefs)
        self.writers: dict[str, Writer] = {}
        self.writes: list[Write] = []  # of writers that have been stopped
        self.failures: list[tuple[float, float]] = []  # from when until when something failed
        self._failing_since = math.inf
        self._writers = 0
        self.starting = self.nodes
        for host, node in enumerate(self.nodes, 1):
            address = self.network.address(host)
            member = node.litefs["NODES"][node.name]
            member |= {"ADDRESS": address, "URL": f"http://{address}:{PORT}"}
            member |= {"HTTP_PORT": 20202, "RAFT_PORT": 20203, "RELAY_PORT": 20204}
            node.environment["DJANGO_SETTINGS_MODULE"] = "tests.cluster.raft.project"

    def use_members(self, nodes: Sequence[SupervisedNode]) -> None:
        """Makes these nodes all members that those know which are started from now on."""
        members = {node.name: self.nodes[0].litefs["NODES"][node.name] for node in nodes}
        for node in nodes:
            node.litefs["NODES"] = members

    def host(self, node: SupervisedNode) -> int:
        return self.nodes.index(node) + 1

    def start(self) -> None:
        self.network.start()
        for host, node in enumerate(self.nodes, 1):
            node.prefix = self.network.prefix(host)
        self.start_nodes(self.starting)
        wait_until(self._is_migrated, "the tables are made", context=self.output)
        began = now()
        for node in self.starting:
            self.start_writer(node)
        self.wait_for_writes(self.starting, began)

    def _is_migrated(self) -> bool:
        """Makes the tables, unless nobody is the primary, or another one is when it comes to it."""
        primary = self.mounted_primary()
        return primary is not None and not primary.run_command("migrate", "--run-syncdb", "-v0").returncode

    def start_nodes(self, nodes: Iterable[SupervisedNode]) -> None:
        for node in nodes:
            node.directory.parent.mkdir(parents=True, exist_ok=True)
            bind = f"--bind={self.network.address(self.host(node))}:{PORT}"
            options = [bind, "--workers=1", "--threads=4", "--no-control-socket"]
            gunicorn = [sys.executable, "-m", "gunicorn", "django.core.wsgi:get_wsgi_application()", *options]
            node.start(application=gunicorn)

    def start_writer(self, node: SupervisedNode) -> None:
        host = self.host(node)
        self._writers += 1
        self.writers[node.name] = Writer(
            node.name, self._writers, self.network.address(host), lambda: self.network.enter(host)
        )

    def clean_up(self) -> None:
        with ExitStack() as stack:
            stack.callback(self.network.clean_up)
            for node in self.nodes:
                stack.callback(node.clean_up)
            for writer in self.writers.values():
                writer.tell_stop()

    def mounted_primary(self) -> SupervisedNode | None:
        """The node whose mount says so. None of them may hang."""
        return next((node for node in self.nodes if node.is_primary()), None)

    @property
    def primary(self) -> SupervisedNode:
        """Who has acknowledged the last write."""
        last = max(self.acknowledged(), key=lambda write: write.ended)
        return self.node(last.by)

    @property
    def replicas(self) -> list[SupervisedNode]:
        primary = self.primary
        return [node for node in self.nodes if node is not primary]

    def node(self, name: str) -> SupervisedNode:
        return next(node for node in self.nodes if node.name == name)

    def all_writes(self) -> list[Write]:
        return [*self.writes, *(write for writer in self.writers.values() for write in list(writer.writes))]

    def acknowledged(self) -> list[Write]:
        return [write for write in self.all_writes() if write.outcome is Outcome.ACKNOWLEDGED]

    def wait_for_writes(self, through: Sequence[SupervisedNode], since: float, timeout: float = 100.0) -> None:
        """Waits until a write that began after `since` was acknowledged through each of these nodes."""
        for node in through:
            wait_until(
                lambda node=node: any(  # type: ignore[misc]
                    write.asked == node.name and write.began > since for write in self.acknowledged()
                ),
                lambda node=node: f"a write through {node.name} is acknowledged",  # type: ignore[misc]
                timeout=timeout,
                context=self.output,
            )

    def fails_now(self) -> float:
        """To be called right before something is made to fail."""
        failed = now()
        self._failing_since = min(self._failing_since, failed)
        return failed

    def is_repaired(self) -> None:
        """To be called once all is put right: waits until writes go through all nodes, and arrive on all nodes."""
        since = now()
        self.wait_for_writes(self.nodes, since)
        wait_until(lambda: self._have_arrived(since), "writes arrive on all nodes", context=self.output)
        if self._failing_since < since:
            self.failures.append((self._failing_since, now()))
        self._failing_since = math.inf

    def _have_arrived(self, since: float) -> bool:
        """Whether one write through each node is on all nodes. A primary may acknowledge what nobody gets any more."""
        try:
            rows = [set(self.rows(node)) for node in self.nodes]
        except subprocess.CalledProcessError:
            return False
        recent = (write for write in self.acknowledged() if write.began > since)
        return {write.asked for write in recent if all(write.name in row for row in rows)} == self.writers.keys()

    def processes(self, node: SupervisedNode, part: str) -> list[psutil.Process]:
        """Those of one of PARTS, all of the node's for "all"."""
        if part == "supervisor":
            return [psutil.Process(node.pid)]
        if part == "lease":
            return node.lease_processes()
        found = node.children()
        if part == "litefs":
            return [process for process in found if node._is_litefs(process)]
        return [psutil.Process(node.pid), *found]

    def signal(self, node: SupervisedNode, part: str, number: int) -> None:
        processes = self.processes(node, part)
        assert processes, f"{node.name} has no {part}\n{node.output()}"
        random.shuffle(processes)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self, node: SupervisedNode, part: str) -> None:
        self.signal(node, part, signal.SIGKILL)

    @contextmanager
    def stopped(self, node: SupervisedNode, part: str) -> Iterator[None]:
        """SIGSTOP, and SIGCONT for those of them that are still there."""
        processes = self.processes(node, part)
        for process in random.sample(processes, len(processes)):
            process.suspend()
        yield
        for process in random.sample(processes, len(processes)):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def end(self, *nodes: SupervisedNode) -> None:
        """What an init system does once a supervisor has ended: it ends what is left of it."""
        for node in nodes:
            node.wait()
            _, alive = psutil.wait_procs(node._seen, timeout=5)
            for process in alive:
                process.kill()
            psutil.wait_procs(alive)

    def restart(self, *nodes: SupervisedNode) -> None:
        """Starts nodes again whose supervisors have been told to end."""
        self.end(*nodes)
        self.start_nodes(nodes)

    def finish(self, *, may_lose: bool = True) -> str:
        """Waits until writes go through all nodes and all nodes are equal, and judges. Returns what to tell.

        `may_lose`: a failure may have taken what no other node had yet.
        """
        self.is_repaired()
        for writer in self.writers.values():
            writer.tell_stop()
        for writer in self.writers.values():
            writer.stop()
            self.writes += writer.writes
        self.writers.clear()
        wait_until(self.are_equal, "all nodes are equal", context=self.output)
        rows = {node.name: self.rows(node) for node in self.nodes}
        first, *others = rows.values()
        assert all(other == first for other in others), {name: len(found) for name, found in rows.items()}
        writes = self.all_writes()
        verdict = judge(writes, first, self.failures if may_lose else [])
        counts = ", ".join(
            f"{sum(write.outcome is outcome for write in writes)} {outcome.value}" for outcome in Outcome
        )
        told = f"{counts}, {len(verdict.lost)} lost"
        if self.failures:
            told += f", {self.longest_pause():.2f} s without a write"
        if verdict.lost:
            ages = [self._since_failure(write) for write in verdict.lost]
            told += f"; lost were those of {min(ages):.3f} to {max(ages):.3f} s after the failure"
        assert not verdict.wrong, "\n".join([told, *verdict.wrong[:20], self.output()])
        return told

    def _since_failure(self, write: Write) -> float:
        """Seconds from the last failure that this lost write may be due to until it was acknowledged."""
        return min(
            (write.ended - began for began, ended in self.failures if write.began < ended), key=abs, default=math.nan
        )

    def longest_pause(self) -> float:
        """The longest time without an acknowledged write anywhere, from the first failure on."""
        ends = sorted(write.ended for write in self.acknowledged())
        first = next(number for number, end in enumerate(ends) if end > self.failures[0][0])
        return max(after - before for before, after in pairwise(ends[max(0, first - 1) :]))

    def are_equal(self) -> bool:
        """Whether all nodes answer and are at the same position."""
        try:
            found = {node.detector.position(DATABASE) for node in self.nodes if node.is_up()}
        except MountError:
            return False
        return len(found) == 1 and None not in found and all(node.is_up() for node in self.nodes)

    def rows(self, node: SupervisedNode) -> list[str]:
        """Of the node's database. Raises CalledProcessError when it cannot be read now.

        By a process of its own: SIGBUS ends one that reads from a mount whose LiteFS ends just then.
        """
        command = [sys.executable, "-c", _ROWS, str(node.mount / DATABASE)]
        done = subprocess.run(command, capture_output=True, check=True)
        rows: list[str] = json.loads(done.stdout)
        return rows

    def output(self) -> str:
        tails = (f"--- {node.name}\n" + "\n".join(node.lines[-60:]) for node in self.nodes)
        last = [str(write) for writer in self.writers.values() for write in writer.writes[-3:]]
        return "\n".join([*tails, *last])
