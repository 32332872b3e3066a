"""The primary changes, or loses its LiteFS, while visitors write and read on every node."""

from __future__ import annotations

import os
import time
from collections import Counter

import pytest

from litefs_django._litefs.write_turn import FileLock, gate_path
from tests.cluster.handover.conftest import StartSite
from tests.cluster.handover.site import Site
from tests.cluster.handover.visitors import Seen, Visitors
from tests.cluster.nodes import DATABASE, ConsulCluster, LiteFSNode
from tests.machine import wait_until

# LITEFS_TEST_REQUESTS=10000 for the whole of it.
REQUESTS = int(os.environ.get("LITEFS_TEST_REQUESTS", "1500"))


def hand_on(cluster: ConsulCluster, target: LiteFSNode) -> None:
    """A planned change of primary, as the supervisor does it: no commit may be in flight."""
    old = cluster.primary
    gate = FileLock(gate_path(old.run, DATABASE))
    assert gate.acquire(10)
    try:
        wait_until(lambda: target.position() == old.position(), "the target has caught up")
        wait_until(lambda: cluster.request(target), "the target accepts POST /promote")
        wait_until(lambda: not old.is_primary(), "the old primary has noticed")
    finally:
        gate.close()
    wait_until(target.is_primary, "the target is primary")
    cluster.wait_settled()


def check(site: Site, seen: Seen) -> None:
    """Each acknowledged write is there once, and its browser has seen it."""
    site.wait_equal()
    found = Counter(site.primary.fetch("GET", "/authors/").json["names"])
    assert [name for name in seen.acknowledged if found[name] != 1] == []
    assert set(found) <= {*seen.acknowledged, *seen.unknown}
    assert seen.missed == []
    print(f"{seen.requests} requests, {len(seen.acknowledged)} writes, {seen.statuses}, slowest {seen.slowest:.2f} s")


@pytest.mark.cluster
@pytest.mark.consul
@pytest.mark.timeout(1200)
def test_planned_changes(consul_site: Site) -> None:
    """Ten: no request fails."""
    site = consul_site
    cluster = site.cluster
    assert isinstance(cluster, ConsulCluster)
    visitors = Visitors(site, REQUESTS)
    visitors.start()
    try:
        for change in range(10):
            due = REQUESTS * (change + 1) // 12
            wait_until(lambda due=due: visitors.seen.requests >= due, "the next change", timeout=300)  # type: ignore[misc]
            hand_on(cluster, cluster.replicas[change % 2])
    except BaseException:
        visitors.cut_short()
        visitors.stop()
        raise
    seen = visitors.stop()
    check(site, seen)
    assert set(seen.statuses) == {200}


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_litefs_is_killed(start_site: StartSite, server: str) -> None:
    """Five times, and started again: what was acknowledged is there; what was not may fail, and says so."""
    site = start_site(server, HANDOVER_TIMEOUT=20)
    visitors = Visitors(site, REQUESTS)
    visitors.start()
    primary = site.primary.litefs_node
    try:
        for kill in range(5):
            due = REQUESTS * (kill + 1) // 7
            wait_until(lambda due=due: visitors.seen.requests >= due, "the next kill", timeout=300)  # type: ignore[misc]
            primary.kill()
            time.sleep(0.3)
            primary.start()
    except BaseException:
        visitors.cut_short()
        visitors.stop()
        raise
    seen = visitors.stop()
    check(site, seen)
    # 400 is what Django makes of a session that could not be saved.
    assert set(seen.statuses) <= {200, 400, 500, 503, 504}
    assert seen.statuses[200] > REQUESTS * 0.9
