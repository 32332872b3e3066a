"""What a client gets when the primary does not answer, and what it does not get."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.handover.conftest import StartSite
from tests.cluster.handover.site import Reply, Site, SiteNode
from tests.cluster.nodes import StaticCluster
from tests.machine import deaf_url, wait_until

pytestmark = pytest.mark.cluster


class Meanwhile:
    """Something that runs in a thread; its result once it is there."""

    def __init__(self, function: Callable[[], Reply]) -> None:
        self._found: list[Reply] = []
        self._thread = threading.Thread(target=lambda: self._found.append(function()))
        self._thread.start()

    @property
    def is_waiting(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> Reply:
        self._thread.join(60)
        return self._found[0]


def post(site: Site, name: str) -> Callable[[], Reply]:
    return lambda: site.replicas[0].fetch("POST", "/post/", {"name": name})


def assert_not_saved(reply: Reply) -> None:
    assert reply.status == 503
    assert reply.get("Retry-After") == "2"
    assert "no-store" in (reply.get("Cache-Control") or "")


def test_no_primary(start_site: StartSite, server: str) -> None:
    site = start_site(server, HANDOVER_TIMEOUT=1)
    primary, (first, second) = site.primary, site.replicas
    primary.litefs_node.kill()
    reply = first.fetch("POST", "/post/", {"name": "never"})
    assert_not_saved(reply)
    assert reply.get("Content-Type") == "text/html; charset=utf-8"
    assert "<h1>Not saved</h1>" in reply.text
    reply = second.fetch("POST", "/post/", {"name": "never"}, [("Accept", "application/json")])
    assert_not_saved(reply)
    assert reply.json["status"] == 503
    # A write inside of a safe request, and on the node that is the primary but has no LiteFS.
    assert_not_saved(first.fetch("GET", "/write/plain/?name=never"))
    assert_not_saved(primary.fetch("POST", "/post/", {"name": "never"}))
    # Reading goes on.
    assert first.fetch("GET", "/authors/").json == {"node": first.name, "names": []}


def test_a_request_waits_for_the_primary(start_site: StartSite, server: str) -> None:
    """Its LiteFS is killed and comes back: who asks the replica, and who asks the node itself, waits."""
    site = start_site(server, HANDOVER_TIMEOUT=30)
    primary = site.primary
    primary.litefs_node.kill()
    waiting = [
        Meanwhile(partial(node.fetch, "POST", "/post/", {"name": str(number)}))
        for number, node in enumerate(site.nodes)
    ]
    time.sleep(0.5)
    assert all(each.is_waiting for each in waiting)
    primary.litefs_node.start()
    assert [each.result().status for each in waiting] == [200, 200, 200]
    assert primary.fetch("GET", "/authors/").json["names"] == ["0", "1", "2"]


def test_a_request_waits_for_the_application(start_site: StartSite, server: str) -> None:
    """Nothing is sent before there is a connection."""
    site = start_site(server, HANDOVER_TIMEOUT=30)
    primary = site.primary
    primary.stop()
    waiting = Meanwhile(post(site, "waited"))
    large = Meanwhile(lambda: site.replicas[1].fetch("POST", "/swallow/", bytes(5_000_000)))
    time.sleep(0.5)
    assert waiting.is_waiting
    site.start()
    assert waiting.result().json == {"node": primary.name, "name": "waited"}
    assert large.result().json["length"] == 5_000_000


def test_a_primary_that_does_not_answer(start_site: StartSite, server: str) -> None:
    site = start_site(server, HANDOVER_TIMEOUT=1)
    primary, replica = site.primary, site.replica
    assert primary.process is not None
    os.killpg(primary.process.pid, signal.SIGSTOP)
    try:
        reply = replica.fetch("POST", "/post/?token=private", {"name": "perhaps"})
    finally:
        os.killpg(primary.process.pid, signal.SIGCONT)
    assert reply.status == 504
    assert reply.get("Retry-After") is None
    assert "not known" in reply.text
    (said,) = [line for line in replica.logged() if "litefs_django" in line]
    assert said.startswith("LOG WARNING litefs_django.handover.course POST /post/ was sent to 'node1'")
    assert "private" not in replica.output()


def test_a_machine_that_swallows_packets(static_cluster: StaticCluster, server: str, tmp_path: Path) -> None:
    site = Site(static_cluster, server, tmp_path)
    site.configure(HANDOVER_TIMEOUT=1)
    with deaf_url() as url:
        for node in site.replicas:
            node.litefs["NODES"]["node1"]["URL"] = url
        with site:
            began = time.monotonic()
            assert_not_saved(site.replica.fetch("POST", "/post/", {"name": "never"}))
            assert time.monotonic() - began < 1.8


def test_a_primary_that_breaks_off(start_site: StartSite, server: str) -> None:
    site = start_site(server, HANDOVER_TIMEOUT=20)
    primary = site.primary
    waiting = Meanwhile(lambda: site.replica.fetch("POST", "/slow/?seconds=20", b""))
    time.sleep(1)
    assert waiting.is_waiting
    assert primary.process is not None
    os.killpg(primary.process.pid, signal.SIGKILL)
    primary.process.wait()
    reply = waiting.result()
    assert (reply.status, reply.get("Retry-After")) == (504, None)


def test_a_part_that_was_saved(start_site: StartSite, server: str) -> None:
    """Through another ENGINE, which writes on any node: the request is not run twice."""
    site = start_site(server, {"OTHER_DATABASE": True})
    reply = site.replica.fetch("GET", "/both/?name=both")
    assert (reply.status, reply.get("Retry-After")) == (500, None)
    assert "Only a part was saved" in reply.text
    assert site.primary.fetch("GET", "/authors/").json["names"] == []
    assert site.primary.fetch("GET", "/both/?name=both").status == 200
    # What is rolled back, and what only reads, stands in nobody's way.
    for how in ("atomic", "read"):
        reply = site.replica.fetch("GET", f"/both/?name={how}&{how}=1")
        assert (reply.status, reply.json["node"]) == (200, site.primary.name)


def test_a_page_of_the_project(start_site: StartSite, server: str, tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    (templates / "litefs_django").mkdir(parents=True)
    (templates / "litefs_django" / "503.html").write_text("<p>ours: {{ status }} {{ title }}</p>")
    site = start_site(server, {"TEMPLATE_DIRS": [str(templates)]}, HANDOVER_TIMEOUT=0.1)
    site.primary.litefs_node.kill()
    assert site.nodes[1].fetch("POST", "/post/", {"name": "x"}).text == "<p>ours: 503 Not saved</p>"


def test_it_does_not_start_without(static_cluster: StaticCluster, server: str, tmp_path: Path) -> None:
    node = Site(static_cluster, server, tmp_path).replica
    secret = node.litefs.pop("SECRET")
    assert_does_not_start(node, '["SECRET"]: is missing')
    node.litefs["SECRET"] = secret
    del node.litefs["NODES"]["node1"]["URL"]
    assert_does_not_start(node, '["URL"]: is missing')


def assert_does_not_start(node: SiteNode, why: str) -> None:
    node.start()
    try:
        wait_until(lambda: why in node.output(), why, context=node.output)
        assert "ImproperlyConfigured" in node.output()
    finally:
        node.stop()
