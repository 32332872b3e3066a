"""ATOMIC_REQUESTS: pages that only read never wait for a writer, and one that writes in the end runs again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from litefs_django._litefs.write_turn import FileLock, turn_path
from tests.cluster.handover.site import SERVERS, Site
from tests.cluster.handover.test_errors import Meanwhile
from tests.cluster.nodes import DATABASE, StaticCluster
from tests.machine import wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", params=SERVERS)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, litefs_binary: Path
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp(request.param)
    with StaticCluster(3, directory, litefs_binary) as cluster:
        site = Site(cluster, request.param, directory)
        site.configure({"ATOMIC_REQUESTS": True})
        with site:
            yield site


def names(site: Site) -> list[str]:
    found: list[str] = site.primary.fetch("GET", "/authors/").json["names"]
    return found


def test_late_writes_on_a_replica(site: Site) -> None:
    for how in ("plain", "swallowed", "swallowed_wholly", "on_commit"):
        name = f"{how} {site.primary.server}"
        reply = site.replica.fetch("GET", f"/write/{how}/?name={name.replace(' ', '%20')}")
        assert (reply.status, reply.json["node"]) == (200, site.primary.name)
        assert names(site).count(name) == 1
    assert site.replica.fetch("GET", "/authors/").json["node"] == site.replica.name


def test_a_page_does_not_wait_for_a_writer(site: Site) -> None:
    """Somebody has the write turn for longer than a writer would wait for it."""
    primary = site.primary
    with closing(FileLock(turn_path(primary.litefs_node.run, DATABASE))) as turn:
        assert turn.acquire(10)
        for method in ("GET", "HEAD", "OPTIONS"):
            assert primary.fetch(method, "/authors/").status == 200
        assert primary.fetch("POST", "/search/?name=x", b"").status == 200
        assert primary.fetch("POST", "/post/", {"name": "never"}).status == 500
    assert "never" not in names(site)


def test_a_page_that_writes_when_another_has_written(site: Site, tmp_path: Path) -> None:
    """What it has read is stale then: it runs again here, as one that writes."""
    primary, go_on = site.primary, tmp_path / "go_on"
    first, second = f"first-{primary.server}", f"second-{primary.server}"
    before = len(primary.logged())
    waiting = Meanwhile(partial(primary.fetch, "GET", f"/begun/plain/?name={first}&until={go_on}"))
    wait_until(lambda: f"ran {first}" in primary.output(), "it has read")
    assert primary.fetch("POST", "/post/", {"name": second}).status == 200
    go_on.touch()
    reply = waiting.result()
    assert (reply.status, reply.json["node"]) == (200, primary.name)
    assert primary.output().count(f"ran {first}\n") == 2
    assert [names(site).count(name) for name in (first, second)] == [1, 1]
    assert [line for line in primary.logged()[before:] if "wrote in a GET request" not in line] == []


def test_a_page_that_has_written_before_its_view(site: Site, tmp_path: Path) -> None:
    """It could not run again: so it begins as one that writes, and has the turn from the start."""
    primary, go_on = site.primary, tmp_path / "go_on"
    before, name = f"before-{primary.server}", f"behind-{primary.server}"
    waiting = Meanwhile(partial(primary.fetch, "GET", f"/begun/plain/?before={before}&name={name}&until={go_on}"))
    wait_until(lambda: f"ran {name}" in primary.output(), "it has read")
    with closing(FileLock(turn_path(primary.litefs_node.run, DATABASE))) as turn:
        is_free = turn.acquire(0)
    go_on.touch()
    assert waiting.result().status == 200
    assert not is_free
    assert {before, name} <= set(names(site))


def test_many_pages_that_write_at_once(site: Site) -> None:
    """Each ends once, and well."""
    primary = site.primary
    some = [f"many-{primary.server}-{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda name: primary.fetch("GET", f"/write/got_or_created/?name={name}"), some))
    assert {reply.status for reply in replies} == {200}
    assert [name for name in names(site) if name.startswith("many-")] == sorted(some)
