"""The primary changes, or loses its LiteFS, while visitors write and read on every node."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from litefs_django._litefs.node.control import ask
from tests.cluster.consul import ConsulAgent
from tests.cluster.handover.site import SERVERS, Site
from tests.cluster.handover.visitors import Visitors
from tests.cluster.run.nodes import DATABASE, SupervisedNode, elected_nodes, wait_equal
from tests.machine import wait_until

# LITEFS_TEST_REQUESTS=10000 for the whole of it.
REQUESTS = int(os.environ.get("LITEFS_TEST_REQUESTS", "900"))
CHANGES, KILLS = 10, 5
UNKNOWN = r"litefs_django\.exceptions\.CommitOutcomeUnknown: "


class SupervisedCluster:
    """Three nodes that litefs_run runs, with a Consul of their own; each idles beside its application server."""

    def __init__(self, directory: Path, binary: Path, consul_binary: Path) -> None:
        self.consul = ConsulAgent(directory / "consul", consul_binary)
        lease = {
            "LEADER_ELECTION": "consul",
            "CONSUL": {"URL": self.consul.url, "KEY": "litefs"},
            "LITEFS_YML": {"lease": {"reconnect-delay": "100ms", "consul": {"lock-delay": "1ms"}}},
        }
        self.nodes = elected_nodes(3, directory, binary, lease)

    def __enter__(self) -> SupervisedCluster:
        with ExitStack() as failure:
            failure.callback(self.consul.clean_up)
            self.consul.start()
            for node in self.nodes:
                failure.enter_context(node)
                node.start_and_wait()
            self.wait_settled()
            self._stack = failure.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def primary(self) -> SupervisedNode:
        (primary,) = (node for node in self.nodes if node.is_primary())
        return primary

    @property
    def replicas(self) -> list[SupervisedNode]:
        primary = self.primary
        return [node for node in self.nodes if node is not primary]

    def wait_settled(self) -> None:
        """Waits until one node is primary and the others follow it."""

        def settled() -> bool:
            primaries = [node for node in self.nodes if node.is_primary()]
            return len(primaries) == 1 and all(
                node is primaries[0] or node.follows(primaries[0]) for node in self.nodes
            )

        self.nodes[0].wait_for(settled, "one node is primary, and the others follow it")

    def wait_equal(self, *names: str) -> None:
        for name in names or (DATABASE,):
            wait_equal(self.nodes, name)

    def kill_primary(self) -> int:
        """kill -9 of its LiteFS, which its supervisor starts again; then the lease ends, and any node may win it.

        Returns how many transactions the new primary never got: LiteFS replicates after it has acknowledged.
        """
        killed = self.primary
        generation = killed.node_file.generation()
        killed.litefs_process().send_signal(signal.SIGKILL)
        killed.wait_for(lambda: killed.is_up() and killed.node_file.generation() != generation, "LiteFS is back")
        reached = {node.name: last_transaction(node) for node in self.nodes}
        self.consul.expire("litefs")
        self.wait_settled()
        return reached[killed.name] - reached[self.primary.name]


def last_transaction(node: SupervisedNode) -> int:
    """The TXID of the last LTX file of a node."""
    return max(int(path.stem.split("-")[1], 16) for path in (node.data / "dbs" / DATABASE / "ltx").glob("*.ltx"))


@pytest.fixture(params=SERVERS)
def site(
    request: pytest.FixtureRequest, tmp_path: Path, litefs_binary: Path, consul_binary: Path
) -> Iterator[tuple[SupervisedCluster, Site]]:
    with (
        SupervisedCluster(tmp_path, litefs_binary, consul_binary) as cluster,
        Site(cluster, request.param, tmp_path, HANDOVER_TIMEOUT=25) as site,  # type: ignore[arg-type]
    ):
        yield cluster, site


@pytest.mark.cluster
@pytest.mark.consul
@pytest.mark.timeout(1200)
def test_mixed_requests(site: tuple[SupervisedCluster, Site]) -> None:
    """Planned changes: no request fails. Kills: one whose commit was under way may, and says so."""
    cluster, pages = site
    visitors = Visitors(pages, REQUESTS)

    def wait_for_requests(step: int) -> None:
        due = REQUESTS * step // (CHANGES + KILLS + 2)
        wait_until(lambda: visitors.seen.requests >= due, "the next requests", timeout=300, context=pages.logs)

    lost = 0
    visitors.start()
    try:
        for change in range(CHANGES):
            wait_for_requests(change + 1)
            target = cluster.replicas[change % 2]
            ask(cluster.primary.run_path, "promote", timeout=30, node=target.name)
            cluster.wait_settled()
        wait_for_requests(CHANGES + 1)
        planned = dict(visitors.seen.statuses)
        for kill in range(KILLS):
            wait_for_requests(CHANGES + 1 + kill)
            lost += cluster.kill_primary()
    except BaseException:
        visitors.cut_short()
        visitors.stop()
        raise
    seen = visitors.stop()
    cluster.wait_equal()
    print(
        f"{seen.requests} requests, {len(seen.acknowledged)} writes, {planned}, then {seen.statuses}, "
        f"{lost} transactions never replicated, slowest {seen.slowest:.2f} s"
    )
    assert [node.process and node.process.poll() for node in pages.nodes] == [None] * 3, "a server has died"
    found = Counter(pages.primary.fetch("GET", "/authors/").json["names"])
    assert max(found.values()) == 1
    assert set(found) <= {*seen.acknowledged, *seen.unknown}
    missing = [name for name in seen.acknowledged if name not in found]
    assert len(missing) <= lost
    assert [miss for miss in seen.missed if miss[0] not in missing] == []
    assert set(planned) == {200}
    # Those whose COMMIT was under way on a LiteFS that was killed. Who waited in line behind them went on elsewhere.
    assert set(seen.statuses) <= {200, 500}
    said = "\n".join(node.output() for node in pages.nodes)
    assert seen.statuses.get(500, 0) <= len(re.findall(f"^{UNKNOWN}", said, re.MULTILINE))
